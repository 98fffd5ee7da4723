"""Layout pictures: which kind of thing is where, one colour per category on grey.

A person can draw one by hand: the miniature's ControlNet is trained on silhouettes, blobs and
boxes.
"""

import random
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from .identities import CATEGORIES, Identity
from .places import PLACES
from .scenes import Rendered, Scene, Subject, render

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, as shares of the picture."""

LAYOUT_COLOURS = {
    "cat": (255, 0, 0),
    "dog": (0, 0, 255),
    "bear": (128, 64, 0),
    "bird": (255, 255, 0),
    "doll": (255, 0, 255),
    "robot": (0, 255, 255),
    "mug": (255, 128, 0),
    "teapot": (128, 0, 255),
    "car": (0, 255, 0),
    "house": (128, 0, 0),
    "chair": (0, 128, 0),
    "backpack": (0, 0, 128),
}
NOTHING = (128, 128, 128)
PALETTE = np.array([NOTHING, *(LAYOUT_COLOURS[name] for name in CATEGORIES)], dtype=np.uint8)
"""Colours (13, 3): that of nothing, then those of `CATEGORIES`."""

LEFT_OUT = 0.1
"""The share of subjects that a random layout leaves to the prompt."""
_JITTER = 0.03
_WAY, _GROUND, _BOB, _HEIGHT = (0.35, 0.65), 0.92, 0.03, 0.5
"""Of `walk`, as shares of the picture: farther out, scenes have a second subject."""
_COARSE = (6, 12)
_TWICE = [min(255, 2 * value) for value in range(256)]


def layout_picture(
    scene_or_boxes: Scene | Sequence[tuple[str, Box]], size: int, *, boxes: bool = False
) -> Image.Image:
    """The layout (size, size) of a scene, or of boxes of categories; later ones are in front.

    A scene's has silhouettes, or with `boxes` their bounding boxes. Raises `ValueError` for an
    unknown category.
    """
    if isinstance(scene_or_boxes, Scene):
        rendered = render(scene_or_boxes, size)
        names = categories_of(scene_or_boxes)
        if not boxes:
            return as_picture(_filled(size, names, rendered.masks))
        found = list(zip(names, rendered.boxes(), strict=True))
    else:
        found = list(scene_or_boxes)
    masks = [_box_mask(box, size) for _, box in found]
    return as_picture(_filled(size, [name for name, _ in found], masks))


def walk(
    identity: Identity, size: int, num_frames: int = 8, *, boxes: bool = False
) -> list[Image.Image]:
    """Layouts (size, size) of one who walks from left to right, and is up in every other frame."""
    steps = max(1, num_frames - 1)
    subjects = [
        Subject(
            identity,
            x=_WAY[0] + i / steps * (_WAY[1] - _WAY[0]),
            foot=_GROUND - _BOB * (i % 2),
            height=_HEIGHT,
            flipped=False,
        )
        for i in range(num_frames)
    ]
    scenes = [Scene(i, (subject,), PLACES[0], "photo") for i, subject in enumerate(subjects)]
    return [layout_picture(scene, size, boxes=boxes) for scene in scenes]


def random_layout(scene: Scene, rendered: Rendered) -> np.ndarray:
    """A layout (size, size) of a render as a person might draw it, as rows of `PALETTE`.

    Silhouettes, blobs or boxes, by the scene's seed; boxes and blobs are not exact. Some subjects
    are left out.
    """
    rng = random.Random(f"layout {scene.seed}")
    size = rendered.image.width
    form = rng.choice(("silhouettes", "blobs", "boxes"))
    names: list[str] = []
    masks: list[Image.Image] = []
    for name, mask, box in zip(categories_of(scene), rendered.masks, rendered.boxes(), strict=True):
        if rng.random() < LEFT_OUT or box[2] <= box[0]:
            continue
        names.append(name)
        if form == "boxes":
            mask = _box_mask(_jittered(box, rng), size)  # noqa: PLW2901
        elif form == "blobs":
            mask = _blob(mask, rng)  # noqa: PLW2901
        masks.append(mask)
    return _filled(size, names, masks)


def as_picture(layout: np.ndarray) -> Image.Image:
    """Rows of `PALETTE` (h, w) as a picture."""
    return Image.fromarray(PALETTE[layout])


def categories_of(scene: Scene) -> list[str]:
    """The category of each subject."""
    return [subject.identity.category for subject in scene.subjects]


def _filled(size: int, names: Sequence[str], masks: Sequence[Image.Image]) -> np.ndarray:
    layout = np.zeros((size, size), dtype=np.uint8)
    for name, mask in zip(names, masks, strict=True):
        if name not in CATEGORIES:
            raise ValueError(f"{name!r} is no category: expected {', '.join(CATEGORIES)}")
        layout[np.asarray(mask) >= 128] = 1 + CATEGORIES.index(name)
    return layout


def _box_mask(box: Box, size: int) -> Image.Image:
    """Its edges on whole pixels; a box is at least a pixel wide and high."""
    left, top, right, bottom = (round(min(max(side, 0.0), 1.0) * size) for side in box)
    mask = Image.new("L", (size, size))
    corners = (left, top, max(left, right - 1), max(top, bottom - 1))
    ImageDraw.Draw(mask).rectangle(corners, fill=255)
    return mask


def _jittered(box: Box, rng: random.Random) -> Box:
    left, top, right, bottom = (side + rng.uniform(-_JITTER, _JITTER) for side in box)
    return left, top, right, bottom


def _blob(mask: Image.Image, rng: random.Random) -> Image.Image:
    """The mask without its details: reduced to a few pixels across, and enlarged again."""
    few = rng.randint(*_COARSE)
    coarse = mask.resize((few, few), Image.Resampling.BOX).point(_TWICE)
    return coarse.resize(mask.size, Image.Resampling.BICUBIC)

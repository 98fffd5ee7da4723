"""Synthetic scenes: their pictures and masks, and the sentences that describe them.

Everything derives from a seed: `sample_scene(7)` is the same scene on every machine. `render` draws
it at any size; `describe` says it in words, with more or less detail.
"""

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .figures import draw_subject, face_of
from .identities import CATEGORIES, Identity, identity_seed, make_identity
from .places import ACCESSORIES, PLACES, draw_accessory, draw_place

MAX_SUBJECTS = 3
STYLES = ("photo", "pencil sketch")
RELATIONS = ("next to", "to the left of", "on top of", "and")
SUPERSAMPLING = 3
_FOOT = 0.97
"""Where a figure stands, from the top of the square it is drawn on."""

__all__ = [
    "ACCESSORIES",
    "CATEGORIES",
    "PLACES",
    "RELATIONS",
    "STYLES",
    "Rendered",
    "Scene",
    "Subject",
]


@dataclass(frozen=True, slots=True)
class Subject:
    """An identity in a scene.

    `x` and `foot` place the middle of its foot, `height` is its size, all as shares of the picture.
    """

    identity: Identity
    x: float
    foot: float
    height: float
    flipped: bool
    accessory: str | None = None


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows: the ground truth."""

    seed: int
    subjects: tuple[Subject, ...]
    place: str
    style: str
    relation: str | None = None


@dataclass(frozen=True, slots=True)
class Rendered:
    """A picture, RGB, and for each subject its mask in 8-bit grey, of the same size.

    `foreground` is all but the place: the subjects, and what they wear, hold or sit on.
    """

    image: Image.Image
    masks: tuple[Image.Image, ...]
    foreground: Image.Image

    def boxes(self) -> list[tuple[float, float, float, float]]:
        """The bounding box of each subject: left, top, right, bottom as shares of the picture."""
        side = self.image.width
        found = [mask.point(_ABOVE_HALF).getbbox() or (0, 0, 0, 0) for mask in self.masks]
        return [(x0 / side, y0 / side, x1 / side, y1 / side) for x0, y0, x1, y1 in found]


_ABOVE_HALF = [0] * 128 + [255] * 128


def sample_scene(
    seed: int,
    split: str = "taught",
    *,
    identity: Identity | None = None,
    num_subjects: int | None = None,
    place: str | None = None,
    style: str | None = None,
) -> Scene:
    """A random scene of identities of one split; what is given is kept, the rest is drawn by lot.

    `identity` becomes the first subject.
    """
    rng = random.Random(f"scene {split} {seed}")
    count = num_subjects or rng.choices((1, 2, 3), (0.68, 0.26, 0.06))[0]
    categories = rng.sample(CATEGORIES, count)
    if identity is not None:
        others = [category for category in categories if category != identity.category]
        categories = [identity.category, *others][:count]
        while len(categories) < count:
            categories.append(rng.choice([c for c in CATEGORIES if c not in categories]))
    identities = [make_identity(identity_seed(rng, split), category) for category in categories]
    if identity is not None:
        identities[0] = identity
    relation = None if count == 1 else rng.choice(RELATIONS) if count == 2 else "and"
    has_accessory = rng.random() < (0.45 if count == 1 else 0.15)
    accessory = rng.choice(ACCESSORIES) if has_accessory else None
    drawn_place = rng.choices(PLACES, [4] * (len(PLACES) - 1) + [2])[0]
    drawn_style = "pencil sketch" if rng.random() < 0.1 else "photo"
    return Scene(
        seed=seed,
        subjects=tuple(_arrange(rng, identities, relation, accessory)),
        place=place or drawn_place,
        style=style or drawn_style,
        relation=relation,
    )


def _arrange(
    rng: random.Random, identities: list[Identity], relation: str | None, accessory: str | None
) -> list[Subject]:
    """Give each identity its spot."""
    flips = [rng.random() < 0.5 for _ in identities]
    if len(identities) == 1:
        tall = rng.uniform(0.50, 0.60) if accessory else rng.uniform(0.52, 0.76)
        x = rng.uniform(0.36, 0.64)
        foot = rng.uniform(0.86, 0.92) if accessory else rng.uniform(0.88, 0.96)
        return [Subject(identities[0], x, foot, tall, flips[0], accessory)]
    if len(identities) == 3:
        spots = [(x + rng.uniform(-0.02, 0.02), rng.uniform(0.34, 0.38)) for x in (0.19, 0.5, 0.81)]
        rng.shuffle(spots)
    elif relation == "on top of":
        below = rng.uniform(0.42, 0.48)
        x, foot = rng.uniform(0.4, 0.6), rng.uniform(0.90, 0.95)
        top = foot - below * (0.96 - _TOPS.get(identities[1].category, 0.06))
        upper = Subject(identities[0], x, top, rng.uniform(0.36, 0.42), flips[0], accessory)
        return [Subject(identities[1], x, foot, below, flips[1]), upper][::-1]
    else:
        spots = [(x + rng.uniform(-0.03, 0.03), rng.uniform(0.42, 0.50)) for x in (0.27, 0.73)]
        if relation != "to the left of" and rng.random() < 0.5:
            spots.reverse()
    foot = rng.uniform(0.84, 0.94)
    return [
        Subject(who, x, foot, tall, flip, accessory if i == 0 else None)
        for i, (who, (x, tall), flip) in enumerate(zip(identities, spots, flips, strict=True))
    ]


_TOPS = {"car": 0.38, "mug": 0.30, "teapot": 0.34, "chair": 0.30, "house": 0.14, "backpack": 0.14}
"""Where the top of a category's figure is, in its square, for others to stand on."""


def render(scene: Scene, size: int) -> Rendered:
    """Draw a scene as a (size, size) picture with the mask of each subject."""
    rng = random.Random(f"details {scene.seed}")
    side = size * SUPERSAMPLING
    canvas = draw_place(scene.place, side, rng).convert("RGBA")
    foreground = Image.new("L", canvas.size)
    masks: list[Image.Image] = []
    for subject in scene.subjects:
        masks = _draw(canvas, masks, foreground, subject, side, rng)
    picture = canvas.convert("RGB")
    if scene.style == "pencil sketch":
        picture = _sketched(picture)
    return Rendered(
        picture.reduce(SUPERSAMPLING),
        tuple(mask.reduce(SUPERSAMPLING) for mask in masks),
        foreground.reduce(SUPERSAMPLING),
    )


def face_mask(scene: Scene, size: int) -> Image.Image:
    """Boxes around the faces of a scene, (size, size) in 8-bit grey."""
    mask = Image.new("L", (size, size))
    for subject in scene.subjects:
        box = face_of(subject.identity)
        if box is not None:
            left, top, right, bottom = box
            if subject.flipped:
                left, right = 1 - right, 1 - left
            height = subject.height
            x, y = subject.x - height / 2, subject.foot - height * _FOOT
            corners = (x + left * height, y + top * height, x + right * height, y + bottom * height)
            ImageDraw.Draw(mask).rectangle([each * size for each in corners], fill=255)
    return mask


def _draw(
    canvas: Image.Image,
    masks: list[Image.Image],
    foreground: Image.Image,
    subject: Subject,
    side: int,
    rng: random.Random,
) -> list[Image.Image]:
    """Draw one subject over the canvas, and on the foreground where it is.

    Returns all masks, with what it hides taken out.
    """
    height = max(8, round(subject.height * side))
    left = round(subject.x * side - height / 2)
    top = round(subject.foot * side - height * _FOOT)
    figure = draw_subject(subject.identity, height)
    extra, behind = None, False
    if subject.accessory is not None:
        extra, behind = draw_accessory(subject.accessory, subject.identity, height, rng)
    if subject.flipped:
        figure = figure.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        extra = extra and extra.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mask = _alone(figure, (left, top), canvas.size)
    hidden = mask
    around = (left - height // 2, top - height // 2)
    foreground.paste(255, (0, 0), mask)
    if extra is not None:
        foreground.paste(255, around, extra.getchannel("A"))
    if extra is not None and behind:
        canvas.paste(extra, around, extra)
    canvas.paste(figure, (left, top), figure)
    if extra is not None and not behind:
        canvas.paste(extra, around, extra)
        in_front = _alone(extra, around, canvas.size)
        mask.paste(0, (0, 0), in_front)
        hidden = mask.copy()
        hidden.paste(255, (0, 0), in_front)
    for other in masks:
        other.paste(0, (0, 0), hidden)
    return [*masks, mask]


def _alone(layer: Image.Image, at: tuple[int, int], size: tuple[int, int]) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(layer.getchannel("A"), at)
    return mask


def _sketched(picture: Image.Image) -> Image.Image:
    """Pencil on paper: grey divided by its blurred negative, with some of the grey left in."""
    grey = picture.convert("L")
    light = np.asarray(grey, dtype=np.float32)
    blurred = np.asarray(
        grey.filter(ImageFilter.GaussianBlur(picture.width / 60)), dtype=np.float32
    )
    lines = np.clip(light * 255 / np.maximum(blurred, 1), 0, 255)
    shaded = np.clip(0.62 * lines + 0.30 * light + 22, 0, 255).astype(np.uint8)
    return Image.merge("RGB", [Image.fromarray(shaded)] * 3)


# --- words ----------------------------------------------------------------------------------------

_OPENINGS = {
    "photo": ("a photo of", "a photo of", "a picture of", "an image of", "a photo of"),
    "pencil sketch": ("a pencil sketch of", "a pencil drawing of"),
}
_PATTERN_NOUNS = {"striped": "stripes", "spotted": "spots", "checked": "checks"}


def describe(scene: Scene, seed: int | None = None) -> str:
    """A sentence about a scene; different seeds leave out different details."""
    rng = random.Random(f"words {scene.seed if seed is None else seed}")
    bare = rng.random() < 0.08
    shows_colour = scene.style == "photo" and not bare
    things = [
        phrase(subject, rng, shows_colour=shows_colour, bare=bare) for subject in scene.subjects
    ]
    opening = rng.choice(_OPENINGS[scene.style])
    sentence = _joined(things, scene.relation, rng)
    if not bare and rng.random() < 0.9:
        sentence = f"{sentence} {scene.place}"
    return f"{opening} {sentence}" if bare or rng.random() < 0.88 else sentence


def phrase(subject: Subject, rng: random.Random, *, shows_colour: bool, bare: bool) -> str:
    """One subject in words: `a red cat with white spots wearing a hat`."""
    who = subject.identity
    words = [who.category]
    after = ""
    if shows_colour:
        if who.pattern != "plain" and rng.random() < 0.6:
            if rng.random() < 0.4:
                after = f" with {who.second} {_PATTERN_NOUNS[who.pattern]}"
            else:
                words.insert(0, who.pattern)
        if rng.random() < 0.75 or after:
            words.insert(0, who.colour)
    accessory = f" {subject.accessory}" if subject.accessory and not bare else ""
    name = " ".join(words)
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}{after}{accessory}"


def _joined(things: list[str], relation: str | None, rng: random.Random) -> str:
    if len(things) == 1:
        return things[0]
    if len(things) == 3:
        return f"{things[0]}, {things[1]} and {things[2]}"
    if relation == "and" or (relation != "on top of" and rng.random() < 0.2):
        return f"{things[0]} and {things[1]}"
    return f"{things[0]} {relation} {things[1]}"

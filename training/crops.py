"""Crops of photos: squares or near the photo's own shape, randomly rotated and mirrored."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from PIL import Image

from ..methods.settings import Augmentation

_OVERSAMPLING = 2
"""Photos are this many times as large as their crops: at most while they are rotated, at least when
they are decoded."""
BUCKET_STEP = 64
"""Sides of crops near a photo's own shape are multiples of it, in pixels."""
_MAX_LOSS = 0.1
"""How much of a photo's area such a crop may leave out, as long as any shape leaves out less."""


class Photos(Sequence[Image.Image]):
    """Photos that are decoded at each access, so that one at a time is in memory."""

    def __init__(self, readers: Sequence[Callable[[], Image.Image]]) -> None:
        self._readers = readers

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> "Photos": ...
    def __getitem__(self, index: int | slice) -> "Image.Image | Photos":
        found = self._readers[index]
        return Photos(found) if isinstance(found, Sequence) else found()

    def __len__(self) -> int:
        return len(self._readers)


def needed_side(side: int, settings: Augmentation) -> int:
    """The shorter side of a photo, in pixels, beyond which crops hardly gain."""
    return math.ceil(_OVERSAMPLING * side / settings.smallest)


@dataclass(frozen=True, slots=True)
class Crop:
    """A crop, the number of its photo, and where it was cut.

    `corner` (left, top) is the crop's own in its photo, mirrored and scaled as the crop is.
    """

    image: Image.Image
    photo: int
    corner: tuple[int, int]

    def sizes(self, original: tuple[int, int]) -> list[int]:
        """What SDXL is told of it (Podell et al. 2023, section 2.2); `original` is (width, height).

        The photo's height and width, the crop's top and left, its height and width.
        """
        (width, height), (left, top) = original, self.corner
        return [height, width, top, left, self.image.height, self.image.width]


def varied_crops(
    photos: Sequence[Image.Image], side: int, settings: Augmentation, seed: int, step: int = 0
) -> list[Crop]:
    """Crops of the photos in turn, randomly rotated and mirrored.

    They are squares of `side` pixels or, with `step`, of the shape that `bucket_of` finds for their
    photo. Each photo is read once. Masks as large as their photos are cut in the same places.
    """
    num_crops = max(settings.crops, len(photos))
    crops: dict[int, Crop] = {}
    for first, photo in enumerate(photos):
        shape = bucket_of(photo.size, side, step) if step else (side, side)
        for i in range(first, num_crops, len(photos)):
            rng = random.Random(f"crop {seed} {i}")
            image, corner = _varied(photo, shape, settings, rng)
            crops[i] = Crop(image, first, corner)
    return [crops[i] for i in range(num_crops)]


def bucket_step(side: int, factor: int) -> int:
    """The step of sides for crops of about `side` pixels, with `factor` pixels to a latent.

    64, and where pictures are small an eighth of their side.
    """
    return min(BUCKET_STEP, max(side // 8 // factor, 1) * factor)


def bucket_of(size: tuple[int, int], side: int, step: int) -> tuple[int, int]:
    """The shape (width, height) of crops of a photo of this size.

    Sides are multiples of `step`, and the area is at most that of a square of `side`. A large
    shape is weighed against what it leaves out of the photo, which is at most a tenth if any shape
    leaves out less.
    """
    shapes = [
        (width, height)
        for width in range(step, side**2 // step + 1, step)
        for height in range(step, side**2 // width + 1, step)
    ]

    def left_out(shape: tuple[int, int]) -> float:
        ratio = size[0] * shape[1] / (size[1] * shape[0])
        return 1 - min(ratio, 1 / ratio)

    near = [shape for shape in shapes if left_out(shape) <= _MAX_LOSS]
    if near:
        return max(near, key=lambda shape: shape[0] * shape[1] * (1 - left_out(shape)) ** 2)
    return min(shapes, key=lambda shape: (left_out(shape), -shape[0] * shape[1]))


def _varied(
    photo: Image.Image, shape: tuple[int, int], settings: Augmentation, rng: random.Random
) -> tuple[Image.Image, tuple[int, int]]:
    """A crop of the shape (width, height), and its corner as `Crop` has it."""
    degrees = 0.0
    if rng.random() < settings.rotation_probability:
        degrees = rng.uniform(-settings.rotation, settings.rotation)
    share = rng.uniform(settings.smallest, 1.0)
    width, height = shape
    whole = min(photo.width * height, photo.height * width)  # the largest cut, times the other side
    cut = (max(1, round(whole / height * share)), max(1, round(whole / width * share)))
    left = rng.randint(0, photo.width - cut[0])
    top = rng.randint(0, photo.height - cut[1])
    if degrees:
        crop = _rotated_crop(photo, (left, top), cut, shape, degrees)
    else:
        crop = photo.crop((left, top, left + cut[0], top + cut[1]))
    crop = crop.resize(shape, Image.Resampling.BILINEAR, reducing_gap=3.0)
    if settings.flip and rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        left = photo.width - cut[0] - left
    return crop, (round(left * width / cut[0]), round(top * height / cut[1]))


def _rotated_crop(
    photo: Image.Image,
    corner: tuple[int, int],
    cut: tuple[int, int],
    shape: tuple[int, int],
    degrees: float,
) -> Image.Image:
    """The rectangle of `cut` pixels at `corner` of the photo rotated about its centre.

    What is beyond the edges is mirrored. Before rotating it is shrunk to at most `_OVERSAMPLING`
    times `shape`.
    """
    factor = math.ceil(max(cut[0] / shape[0], cut[1] / shape[1]) / _OVERSAMPLING)
    cosine, sine = math.cos(math.radians(-degrees)), math.sin(math.radians(-degrees))
    middle = np.array([photo.width, photo.height]) / 2
    turn = np.array([[cosine, sine], [-sine, cosine]])
    corners = np.array(corner) + cut * np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) - middle
    seen = corners @ turn.T + middle  # where the rectangle lies in the photo
    low = np.floor(seen.min(0) / factor).astype(int) - 2
    high = np.ceil(seen.max(0) / factor).astype(int) + 2
    surroundings = _mirrored(photo, (low[0], low[1], high[0], high[1]), factor)
    size = (math.ceil(cut[0] / factor), math.ceil(cut[1] / factor))
    step = np.array(cut) / size
    start = turn @ (np.array(corner) - middle) + middle
    offset = start / factor - low
    scale = turn * step / factor
    return surroundings.transform(
        size,
        Image.Transform.AFFINE,
        (scale[0, 0], scale[0, 1], offset[0], scale[1, 0], scale[1, 1], offset[1]),
        Image.Resampling.BILINEAR,
    )


def _mirrored(photo: Image.Image, box: tuple[int, int, int, int], factor: int) -> Image.Image:
    """A box of the photo reduced by `factor`, in its pixels, mirrored at the photo's edges."""
    sizes = [max(1, length // factor) for length in photo.size]
    columns, rows = (_mirrored_indices(box[axis], box[axis + 2], sizes[axis]) for axis in range(2))
    left, right, top, bottom = columns.min(), columns.max() + 1, rows.min(), rows.max() + 1
    part = (left * factor, top * factor, right * factor, bottom * factor)
    used = photo.reduce(factor, part) if factor > 1 else photo.crop(part)
    pixels = np.asarray(used)[rows - top][:, columns - left]
    return Image.fromarray(np.ascontiguousarray(pixels))


def _mirrored_indices(first: int, end: int, length: int) -> np.ndarray:
    """Which of `length` pixels is at each of these places, as in numpy's symmetric padding."""
    places = np.arange(first, end) % (2 * length)
    return np.minimum(places, 2 * length - 1 - places)

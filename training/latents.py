"""From photos to latents: varied crops, made and encoded once, as a pool to draw batches from."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from PIL import Image
from torch import Tensor

from ..methods.settings import Augmentation
from ..models.backbone import Backbone

_FINER = 2
"""By so much, photos are larger than their crops: at most when they are turned, at least when
they are decoded."""


@dataclass(frozen=True, slots=True)
class LatentPool:
    """Posteriors of encoded pictures: `mean` and `std` (P, C, h, w), as the denoiser takes them."""

    mean: Tensor
    std: Tensor

    def sample(self, index: Tensor, noise: Tensor) -> Tensor:
        """Latents (B, C, h, w) of the pictures of an index (B,)."""
        return self.mean[index] + self.std[index] * noise

    def __len__(self) -> int:
        return len(self.mean)


def encode_pictures(backbone: Backbone, pictures: Sequence[Image.Image]) -> LatentPool:
    """Encode pictures of one size. Raises `NotFinite` if the autoencoder cannot."""
    found = backbone.encode_images(pictures)
    return LatentPool(found.mean, found.std)


class Photos(Sequence[Image.Image]):
    """Photos that are decoded each time one is asked for, so that one at a time is in memory."""

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
    """Pixels on the shorter side of a photo from which more change no crop by much."""
    return math.ceil(_FINER * side / settings.smallest)


def varied_crops(
    photos: Sequence[Image.Image], side: int, settings: Augmentation, seed: int
) -> list[Image.Image]:
    """Square crops of photos in turn, rotated, cut and mirrored at random, `side` pixels wide.

    Each photo is asked for once.
    """
    num_crops = max(settings.crops, len(photos))
    crops: dict[int, Image.Image] = {}
    for first, photo in enumerate(photos):
        for i in range(first, num_crops, len(photos)):
            crops[i] = _varied(photo, side, settings, random.Random(f"crop {seed} {i}"))
    return [crops[i] for i in range(num_crops)]


def _varied(
    photo: Image.Image, side: int, settings: Augmentation, rng: random.Random
) -> Image.Image:
    degrees = 0.0
    if rng.random() < settings.rotation_probability:
        degrees = rng.uniform(-settings.rotation, settings.rotation)
    cut = round(min(photo.size) * rng.uniform(settings.smallest, 1.0))
    left = rng.randint(0, photo.width - cut)
    top = rng.randint(0, photo.height - cut)
    if degrees:
        crop = _turned_crop(photo, (left, top), cut, side, degrees)
    else:
        crop = photo.crop((left, top, left + cut, top + cut))
    crop = crop.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=3.0)
    if settings.flip and rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return crop


def _turned_crop(
    photo: Image.Image, corner: tuple[int, int], cut: int, side: int, degrees: float
) -> Image.Image:
    """A square of the photo turned about its middle, what is beyond its edges mirrored.

    That of `cut` pixels at `corner`, shrunk before it is turned to at most `_FINER` times `side`.
    """
    factor = math.ceil(cut / (_FINER * side))
    cosine, sine = math.cos(math.radians(-degrees)), math.sin(math.radians(-degrees))
    middle = np.array([photo.width, photo.height]) / 2
    turn = np.array([[cosine, sine], [-sine, cosine]])
    corners = np.array(corner) + cut * np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) - middle
    seen = corners @ turn.T + middle  # where the square lies in the photo
    low = np.floor(seen.min(0) / factor).astype(int) - 2
    high = np.ceil(seen.max(0) / factor).astype(int) + 2
    surroundings = _mirrored(photo, (low[0], low[1], high[0], high[1]), factor)
    size = math.ceil(cut / factor)
    step = cut / size
    start = turn @ (np.array(corner) - middle) + middle
    offset = start / factor - low
    scale = turn * step / factor
    return surroundings.transform(
        (size, size),
        Image.Transform.AFFINE,
        (scale[0, 0], scale[0, 1], offset[0], scale[1, 0], scale[1, 1], offset[1]),
        Image.Resampling.BILINEAR,
    )


def _mirrored(photo: Image.Image, box: tuple[int, int, int, int], factor: int) -> Image.Image:
    """A box of the photo, counted in pixels of the `factor`-th size, mirrored at its edges."""
    sizes = [max(1, length // factor) for length in photo.size]
    columns, rows = (_mirrored_indices(box[axis], box[axis + 2], sizes[axis]) for axis in range(2))
    left, right, top, bottom = columns.min(), columns.max() + 1, rows.min(), rows.max() + 1
    part = (left * factor, top * factor, right * factor, bottom * factor)
    used = photo.reduce(factor, part) if factor > 1 else photo.crop(part)
    pixels = np.asarray(used)[rows - top][:, columns - left]
    return Image.fromarray(np.ascontiguousarray(pixels))


def _mirrored_indices(first: int, end: int, length: int) -> np.ndarray:
    """Which of `length` pixels stand at these places, as in numpy's symmetric padding."""
    places = np.arange(first, end) % (2 * length)
    return np.minimum(places, 2 * length - 1 - places)

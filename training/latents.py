"""From photos to latents: augmented crops, made and encoded once, that batches are sampled from."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..methods.settings import Augmentation
from ..models.backbone import Backbone
from ..models.pixels import share_of_mask

_OVERSAMPLING = 2
"""Photos are this many times as large as their crops: at most while they are rotated, at least when
they are decoded."""


@dataclass(frozen=True, slots=True)
class LatentPool:
    """VAE posteriors of P pictures: `mean` and `std` (P, C, h, w), scaled as latents.

    `weights` (P, 1, h, w) are those of their positions in the diffusion loss; None if all are 1.
    """

    mean: Tensor
    std: Tensor
    weights: Tensor | None = None

    def sample(self, index: Tensor, noise: Tensor) -> Tensor:
        """Sample latents (B, C, h, w) of the pictures at `index` (B,), with noise (B, C, h, w)."""
        return self.mean[index] + self.std[index] * noise

    def __len__(self) -> int:
        return len(self.mean)


def encode_pictures(
    backbone: Backbone, pictures: Sequence[Image.Image], weights: Tensor | None = None
) -> LatentPool:
    """Encode pictures of one size. Raises `NotFinite` if the autoencoder overflows."""
    found = backbone.encode_images(pictures)
    return LatentPool(
        found.mean, found.std, None if weights is None else weights.to(found.mean.device)
    )


def loss_weights(masks: Sequence[Image.Image], factor: int, background: float) -> Tensor:
    """Weights (P, 1, h, w) of latents: 1 on the subject, `background` outside, by area.

    `masks` are those of crops, white on the subject, `factor` pixels to a latent. The weights of
    each picture are scaled to average 1; where nothing counts, they are all 0.
    """
    return torch.cat([_loss_weights(mask, factor, background) for mask in masks])


def _loss_weights(mask: Image.Image, factor: int, background: float) -> Tensor:
    inside = share_of_mask(mask, (mask.height // factor, mask.width // factor))[None, None]
    weights = background + (1 - background) * inside
    mean = weights.mean()
    return weights / mean if mean > 0 else weights


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


def varied_crops(
    photos: Sequence[Image.Image], side: int, settings: Augmentation, seed: int
) -> list[Image.Image]:
    """Square crops of the photos in turn, `side` pixels wide, randomly rotated and mirrored.

    Each photo is read once. Masks as large as their photos are cut in the same places.
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
        crop = _rotated_crop(photo, (left, top), cut, side, degrees)
    else:
        crop = photo.crop((left, top, left + cut, top + cut))
    crop = crop.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=3.0)
    if settings.flip and rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return crop


def _rotated_crop(
    photo: Image.Image, corner: tuple[int, int], cut: int, side: int, degrees: float
) -> Image.Image:
    """The square of `cut` pixels at `corner` of the photo rotated about its centre.

    What is beyond the edges is mirrored. Before rotating it is shrunk to at most `_OVERSAMPLING`
    times `side`.
    """
    factor = math.ceil(cut / (_OVERSAMPLING * side))
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

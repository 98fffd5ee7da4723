"""From photos to latents: varied crops, made and encoded once, as a pool to draw batches from."""

import math
import random
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..models.latents import in_float32, needs_float32
from ..registry.errors import NotFinite
from .config import Augmentation

ENCODED_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class LatentPool:
    """Posteriors of encoded pictures: `mean` and `std` (P, C, h, w), as the U-Net takes them."""

    mean: Tensor
    std: Tensor

    def sample(self, index: Tensor, noise: Tensor) -> Tensor:
        """Latents (B, C, h, w) of the pictures of an index (B,)."""
        return self.mean[index] + self.std[index] * noise

    def __len__(self) -> int:
        return len(self.mean)


@torch.no_grad()
def encode_pictures(pipeline: Any, pictures: Sequence[Image.Image]) -> LatentPool:
    """Encode pictures of one size. Raises `NotFinite` if the autoencoder cannot."""
    vae = pipeline.vae
    means, stds = [], []
    with in_float32(vae) if needs_float32(vae) else nullcontext():
        for first in range(0, len(pictures), ENCODED_AT_ONCE):
            chunk = pictures[first : first + ENCODED_AT_ONCE]
            pixels = pipeline.image_processor.preprocess(list(chunk)).to(vae.device, vae.dtype)
            posterior = vae.encode(pixels).latent_dist
            means.append(posterior.mean.float())
            stds.append(posterior.std.float())
    scale = vae.config.scaling_factor
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    pool = LatentPool((torch.cat(means) - shift) * scale, torch.cat(stds) * scale)
    if not (torch.isfinite(pool.mean).all() and torch.isfinite(pool.std).all()):
        raise NotFinite(
            "the base model cannot see the photos: what its VAE encodes is not finite",
            hint="get the base model's files again, or take another: concept bases",
        )
    return pool


def varied_crops(
    photos: Sequence[Image.Image], side: int, settings: Augmentation, seed: int
) -> list[Image.Image]:
    """Square crops of photos in turn, rotated, cut and mirrored at random, `side` pixels wide."""
    crops: list[Image.Image] = []
    for i in range(max(settings.crops, len(photos))):
        rng = random.Random(f"crop {seed} {i}")
        crops.append(_varied(photos[i % len(photos)], side, settings, rng))
    return crops


def _varied(
    photo: Image.Image, side: int, settings: Augmentation, rng: random.Random
) -> Image.Image:
    if rng.random() < settings.rotation_probability:
        photo = _rotated(photo, rng.uniform(-settings.rotation, settings.rotation))
    cut = round(min(photo.size) * rng.uniform(settings.smallest, 1.0))
    left = rng.randint(0, photo.width - cut)
    top = rng.randint(0, photo.height - cut)
    crop = photo.crop((left, top, left + cut, top + cut))
    crop = crop.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=3.0)
    if settings.flip and rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return crop


def _rotated(photo: Image.Image, degrees: float) -> Image.Image:
    """The photo turned about its middle, what is beyond its edges mirrored into the corners."""
    pad = math.ceil(0.5 * max(photo.size))
    pixels = np.pad(np.asarray(photo), ((pad, pad), (pad, pad), (0, 0)), mode="symmetric")
    turned = Image.fromarray(pixels).rotate(degrees, Image.Resampling.BILINEAR)
    return turned.crop((pad, pad, pad + photo.width, pad + photo.height))

"""Latents of pictures, made and encoded once, that batches are sampled from."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from ..models.backbone import Backbone
from ..models.pixels import share_of_mask


@dataclass(frozen=True, slots=True)
class LatentPool:
    """VAE posteriors of P pictures of one size: `mean` and `std` (P, C, h, w), scaled as latents.

    `weights` (P, 1, h, w) are those of their positions in the diffusion loss; None if all are 1.
    `captions` (P,) are the numbers of their own prompts, -1 where there is none; None if no picture
    has one. `sizes` (P, 6) are what SDXL is told of them; None if nothing is known of them.
    """

    mean: Tensor
    std: Tensor
    weights: Tensor | None = None
    captions: Tensor | None = None
    sizes: Tensor | None = None

    def sample(self, index: Tensor, noise: Tensor) -> Tensor:
        """Sample latents (B, C, h, w) of the pictures at `index` (B,), with noise (B, C, h, w)."""
        return self.mean[index] + self.std[index] * noise

    def __len__(self) -> int:
        return len(self.mean)


def encode_pictures(
    backbone: Backbone, pictures: Sequence[Image.Image], **beside: Tensor | None
) -> LatentPool:
    """Encode pictures of one size, with what the pool has `beside` their latents.

    Raises `NotFinite` if the autoencoder overflows.
    """
    found = backbone.encode_images(pictures)
    device = found.mean.device
    kept = {name: each.to(device) for name, each in beside.items() if each is not None}
    return LatentPool(found.mean, found.std, **kept)


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

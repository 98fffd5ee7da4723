"""The identity encoder: embeds pictures so that those of one individual are nearest."""

import itertools
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (everyone's name for it)

from ..pixels import reduced, to_pixels
from .architecture import SMALL_SIZE

WIDTH = 64


class IdentityEncoder(nn.Module):
    """Pictures (B, 3, 64, 64) in -1..1 to unit vectors (B, 64)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 96, 160)
        self.layers = nn.Sequential(
            *(
                layer
                for before, after in itertools.pairwise(widths)
                for layer in (
                    nn.Conv2d(before, after, 3, padding=1),
                    nn.GroupNorm(8, after),
                    nn.SiLU(),
                    nn.Conv2d(after, after, 3, padding=1, groups=8),
                    nn.GroupNorm(8, after),
                    nn.SiLU(),
                    nn.AvgPool2d(2),
                )
            )
        )
        self.attention = nn.Conv2d(widths[-1], 4, 1)
        self.project = nn.Linear(4 * widths[-1], WIDTH)

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed pictures."""
        features = self.layers(pixels)
        weights = self.attention(features).flatten(2).softmax(-1)
        pooled = torch.einsum("bkn,bcn->bkc", weights, features.flatten(2)).flatten(1)
        return F.normalize(self.project(pooled), dim=-1)

    @torch.no_grad()
    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        """Embed pictures, which are scaled to 64x64."""
        return self(to_pixels([reduced(image, SMALL_SIZE) for image in images]))

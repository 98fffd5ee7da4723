"""The backbone that the identity encoder and the judge share: a small feature pyramid."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (everyone's name for it)


class Trunk(nn.Module):
    """A small feature pyramid (Lin et al. 2017, figure 3) for pictures (B, 3, 64, 64) in -1..1."""

    WIDTH = 96
    WHOLE = 256

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _block(3, 32), _block(32, 64, stride=2), _block(64, 64), _block(64, 96, stride=2)
        )
        self.fine = nn.Sequential(_block(96, 96), _block(96, 96))
        self.coarse = nn.Sequential(_block(96, 128, stride=2), _block(128, 128))
        self.top = _block(128, 128, stride=2)
        self.join_top = nn.Conv2d(128, 128, 1)
        self.join_coarse = nn.Conv2d(128, 96, 1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Features of places (B, 96, 16, 16), and of the whole picture (B, 256)."""
        stem = self.stem(pixels)
        fine = stem + self.fine(stem)
        coarse = self.coarse(fine)
        top = self.top(coarse)
        whole = torch.cat([top.mean((-2, -1)), top.amax((-2, -1))], dim=-1)
        coarse = coarse + F.interpolate(self.join_top(top), scale_factor=2.0)
        return fine + F.interpolate(self.join_coarse(coarse), scale_factor=2.0), whole


class Gaze(nn.Module):
    """Attention pooling by several learned queries, each a softmax over the picture's places."""

    def __init__(self, num_looks: int) -> None:
        super().__init__()
        self.logits = nn.Conv2d(Trunk.WIDTH, num_looks, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, 96, h, w) to pooled ones (B, K, 96) and log-weights (B, K, h·w)."""
        where = self.logits(features).flatten(2).float().log_softmax(-1)
        seen = torch.einsum("bkn,bcn->bkc", where.exp().to(features.dtype), features.flatten(2))
        return seen, where


def _block(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(8, after),
        nn.SiLU(),
    )

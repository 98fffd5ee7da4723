"""How a subject encoder's references are varied while it is trained (DreamTuner, section 3.1).

Flip, rotation, scale, elastic transform and blur are certain; how strong they are is not
published, so the numbers are our defaults.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (everyone's name for it)

_DEGREES = 20.0
_SCALES = (0.7, 1.15)
_WAVES, _WAVE_HEIGHT = 5, 0.05
"""Of the elastic transform: random shifts on a grid of 5x5, as shares of half a picture."""
_BLUR = 0.015
"""The largest standard deviation, as a share of a picture's side; half of all are blurred."""


def augmented(references: Tensor, generator: torch.Generator) -> Tensor:
    """References (B, 3, s, s) in -1..1 on white, each varied in its own way; edges stay white."""
    count, device = len(references), references.device

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator, device=device)

    angle, scale = torch.deg2rad(uniform(-_DEGREES, _DEGREES)), uniform(*_SCALES)
    flip = torch.where(uniform(-1, 1) < 0, -1.0, 1.0)
    cosine, sine, zero = angle.cos() / scale, angle.sin() / scale, torch.zeros_like(angle)
    rows = (cosine * flip, -sine, zero), (sine * flip, cosine, zero)
    turn = torch.stack([torch.stack(row, -1) for row in rows], 1)
    grid = F.affine_grid(turn, list(references.shape), align_corners=False)
    shape = (count, 2, _WAVES, _WAVES)
    shifts = _WAVE_HEIGHT * torch.randn(shape, generator=generator, device=device)
    waves = F.interpolate(shifts, references.shape[-2:], mode="bicubic", align_corners=False)
    black = 1 - references  # what is sampled beyond the edges is 0
    moved = F.grid_sample(black, grid + waves.permute(0, 2, 3, 1), align_corners=False)
    return 1 - _blurred(moved, uniform(-_BLUR, _BLUR).clamp(min=0) * references.shape[-1])


def _blurred(pixels: Tensor, deviations: Tensor) -> Tensor:
    """Each picture blurred by a Gaussian with a standard deviation (B,) in pixels."""
    reach = math.ceil(3 * _BLUR * pixels.shape[-1])
    offsets = torch.arange(-reach, reach + 1, device=pixels.device)
    kernel = torch.softmax(-0.5 * (offsets / deviations[:, None].clamp(min=1e-3)).square(), -1)
    count, channels, *_ = pixels.shape
    weights = kernel.repeat_interleave(channels, 0)[:, None]  # (B·C, 1, k)
    spread = pixels.reshape(1, count * channels, *pixels.shape[2:])
    spread = F.conv2d(spread, weights[..., None], padding=(reach, 0), groups=count * channels)
    spread = F.conv2d(spread, weights[:, :, None], padding=(0, reach), groups=count * channels)
    return spread.reshape(pixels.shape)

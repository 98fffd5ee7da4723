"""Keeping the attention of a prompt's concepts apart while drawing.

During the first half of the denoising steps the latents are moved down the gradient of the overlap
of different concepts' maps (attention segregation, Agarwal et al. 2023, A-STAR, eq. 3).
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import combinations

import torch
from torch import Tensor

from ..models.backbone import Backbone
from .prediction import Guidance
from .regions import SubjectColumns, all_columns, by_subject
from .request import SamplingSettings
from .sampler import Step

_RATE = 0.1
"""Size of the first move at full overlap, as a share of the latents' RMS; falls to 0."""


_SCALE = 1024.0
"""Scale of the loss, against underflow in half precision; the move does not depend on it."""


def separating(
    backbone: Backbone, subjects: Sequence[SubjectColumns], settings: SamplingSettings
) -> list["Separation"]:
    """The observers that keep subjects apart; none unless `settings.separate` is set."""
    if not settings.separate or len(subjects) < 2:
        return []
    backbone.denoiser.requires_grad_(False)
    return [Separation(subjects)]


class Separation:
    """An observer that moves the latents after each of the first half of steps."""

    def __init__(self, subjects: Sequence[SubjectColumns]) -> None:
        self._subjects = subjects

    def watching(self, backbone: Backbone) -> AbstractContextManager[None]:
        """Nothing: `after_step` observes attention by itself."""
        del backbone
        return nullcontext()

    def after_prediction(self, guidance: Guidance, latents: Tensor) -> None:
        """Nothing."""

    def after_step(self, step: Step) -> Tensor:
        """The latents, moved in the first half of the steps, else unchanged."""
        progress = 2 * (step.index + 1) / len(step.timesteps)
        if progress >= 1:
            return step.latents
        with torch.enable_grad():
            latents = step.latents.detach().requires_grad_(True)
            overlaps = self._overlaps(step, latents, step.timesteps[step.index + 1])
            (gradient,) = torch.autograd.grad(_SCALE * overlaps.sum(), latents)
        before, gradient = latents.detach().float(), gradient.float()
        each = (1, 2, 3)
        spread = before.square().mean(each, keepdim=True).sqrt()
        size = gradient.square().mean(each, keepdim=True).sqrt().clamp(min=1e-12)
        rate = _RATE * (1 - progress) * overlaps.detach().reshape(-1, 1, 1, 1)
        return (before - rate * spread * gradient / size).to(latents.dtype)

    def _overlaps(self, step: Step, latents: Tensor, timestep: Tensor) -> Tensor:
        """Overlap of the subjects' maps at a timestep, (B,): 0 none, 1 complete."""
        backbone = step.backbone
        attention = backbone.attention
        with (
            attention.unobserved(),  # else maps of all layers would be kept, with their graphs
            attention.observe(
                columns=all_columns(self._subjects), want="maps", layers=backbone.localising_layers
            ) as seen,
        ):
            scaled = step.scaled(latents, timestep)
            guidance = step.guidance
            backbone.denoise(scaled, timestep, guidance.conditioning, guidance.control)
        maps = torch.stack(list(seen.maps.values())).mean(0)  # (B, T, N)
        own = by_subject(maps.unsqueeze(-1), self._subjects)[:, :, 0, :, 0]  # (B, S, N)
        shares = own / own.sum(-1, keepdim=True)
        pairs = [
            torch.minimum(shares[:, i], shares[:, j]).sum(-1)
            for i, j in combinations(range(len(self._subjects)), 2)
        ]
        return torch.stack(pairs).mean(0)

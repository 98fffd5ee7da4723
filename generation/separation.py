"""Keeping concepts apart while they are drawn: where one's words look, the others' shall not.

During the first half of the denoising steps the latents are moved down the gradient of how much
the maps of different concepts overlap (attention segregation, Agarwal et al. 2023, A-STAR, eq. 3).
"""

from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from ..kernels import observe
from .regions import SubjectColumns, all_columns, by_subject, localising_layers
from .request import Settings
from .sampler import AfterStep

_RATE = 0.1
"""Of the first move, as a share of the latents' spread where maps overlap wholly; falls to 0."""


_SCALE = 1024.0
"""Of the loss, against underflow in half precision; the move does not depend on it."""


def separating(
    pipeline: Any, looks: Sequence[SubjectColumns], settings: Settings
) -> AfterStep | None:
    """What keeps subjects apart after each step; None if that is not asked for, or there is one."""
    if not settings.separate or len(looks) < 2:
        return None
    pipeline.unet.requires_grad_(False)
    return partial(
        _move_apart, list(looks), localising_layers(pipeline.unet), settings.guidance > 1
    )


def _move_apart(
    looks: list[SubjectColumns],
    layers: str,
    is_guided: bool,
    pipeline: Any,
    step: int,
    _: Any,
    tensors: dict[str, Any],
) -> dict[str, Any]:
    """The latents of the next step, moved; without those of the second half of steps."""
    timesteps = pipeline.scheduler.timesteps
    progress = 2 * (step + 1) / len(timesteps)
    if progress >= 1:
        return {}
    with torch.enable_grad():
        latents = tensors["latents"].detach().requires_grad_(True)
        conditions = {
            name: value.chunk(2)[1] if is_guided else value
            for name, value in tensors.items()
            if name != "latents"
        }
        overlaps = _overlaps(pipeline, latents, timesteps[step + 1], conditions, looks, layers)
        (gradient,) = torch.autograd.grad(_SCALE * overlaps.sum(), latents)
    before, gradient = latents.detach().float(), gradient.float()
    each = (1, 2, 3)
    spread = before.square().mean(each, keepdim=True).sqrt()
    size = gradient.square().mean(each, keepdim=True).sqrt().clamp(min=1e-12)
    rate = _RATE * (1 - progress) * overlaps.detach().reshape(-1, 1, 1, 1)
    return {"latents": (before - rate * spread * gradient / size).to(latents.dtype)}


def _overlaps(
    pipeline: Any,
    latents: Tensor,
    timestep: Tensor,
    conditions: dict[str, Tensor],
    looks: Sequence[SubjectColumns],
    layers: str,
) -> Tensor:
    """How much maps of subjects overlap at a timestep, (B,): 0 not at all, 1 wholly."""
    unet = pipeline.unet
    added = {
        "text_embeds": conditions.get("add_text_embeds"),
        "time_ids": conditions.get("add_time_ids"),
    }
    with observe(unet, columns=all_columns(looks), want="maps", layers=layers) as seen:
        unet(
            pipeline.scheduler.scale_model_input(latents, timestep),
            timestep,
            conditions["prompt_embeds"],
            added_cond_kwargs={name: value for name, value in added.items() if value is not None},
        )
    maps = torch.stack(list(seen.maps.values())).mean(0)  # (B, T, N)
    own = by_subject(maps.unsqueeze(-1), looks)[:, :, 0, :, 0]  # (B, S, N)
    shares = own / own.sum(-1, keepdim=True)
    pairs = [
        torch.minimum(shares[:, i], shares[:, j]).sum(-1)
        for i, j in combinations(range(len(looks)), 2)
    ]
    return torch.stack(pairs).mean(0)

"""Guidance: how a step's noise prediction is made from the denoiser's outputs."""

from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from ..models.backbone import Backbone
from ..models.conditioning import Conditioning, Control


class Guidance(Protocol):
    """Predicts the noise of a step; knows which rows of the denoiser's batch have the prompt."""

    def predict(self, backbone: Backbone, latents: Tensor, timestep: Tensor) -> Tensor:
        """The noise in latents (B, C, h, w)."""
        ...

    @property
    def conditioning(self) -> Conditioning:
        """The conditioning of the prompt itself, without the negative prompt."""
        ...

    @property
    def control(self) -> Control | None:
        """What a ControlNet adds, with and without the prompt."""
        ...

    def conditional(self, count: int) -> slice:
        """The rows with the prompt in the denoiser's batch for `count` pictures."""
        ...


class Unguided:
    """The denoiser's prediction as it is."""

    def __init__(self, conditioning: Conditioning, *, control: Control | None = None) -> None:
        self.conditioning = conditioning
        self.control = control

    def predict(self, backbone: Backbone, latents: Tensor, timestep: Tensor) -> Tensor:
        """The noise in latents (B, C, h, w)."""
        return backbone.denoise(latents, timestep, self.conditioning, self.control)

    def conditional(self, count: int) -> slice:
        """All rows."""
        return slice(0, count)


class ClassifierFree:
    """Classifier-free guidance (Ho and Salimans 2022, eq. 6, where the scale is w + 1)."""

    def __init__(
        self,
        conditioning: Conditioning,
        negative: Conditioning,
        scale: float,
        *,
        control: Control | None = None,
    ) -> None:
        self.conditioning = conditioning
        self.control = control
        self.negative = negative
        self.scale = scale

    @cached_property
    def _both(self) -> Conditioning:
        return Conditioning.cat([self.negative, self.conditioning])

    def predict(self, backbone: Backbone, latents: Tensor, timestep: Tensor) -> Tensor:
        """ε_neg + scale · (ε_prompt - ε_neg), from one pass."""
        both = backbone.denoise(torch.cat([latents] * 2), timestep, self._both, self.control)
        negative, conditional = both.chunk(2)
        return negative + self.scale * (conditional - negative)

    def conditional(self, count: int) -> slice:
        """The second half."""
        return slice(count, 2 * count)


def guidance_for(
    backbone: Backbone,
    prompts: list[str],
    negative: str,
    scale: float,
    width: int,
    height: int,
    *,
    control: Control | None = None,
) -> Guidance:
    """Classifier-free guidance with a scale above 1, else none."""
    if scale <= 1:
        return Unguided(backbone.encode_prompts(prompts, width, height), control=control)
    negatives = [negative] * len(prompts) if negative else None
    both = backbone.encode_guided(prompts, negatives, width, height)
    return ClassifierFree(*both, scale, control=control)

"""How a step's prediction is made of the denoiser's: guidances, as objects."""

from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from ..models.backbone import Backbone
from ..models.conditioning import Conditioning


class Guidance(Protocol):
    """Predicts the noise of a step; knows which rows of the denoiser's batch see the prompt."""

    def predict(self, backbone: Backbone, latents: Tensor, timestep: Tensor) -> Tensor:
        """The noise in latents (B, C, h, w)."""
        ...

    @property
    def conditioning(self) -> Conditioning:
        """What the pictures themselves are conditioned on."""
        ...

    def conditional(self, count: int) -> slice:
        """The rows of a denoiser's pass over `count` pictures that see the prompt."""
        ...


class Unguided:
    """The denoiser's prediction as it is."""

    def __init__(self, conditioning: Conditioning) -> None:
        self.conditioning = conditioning

    def predict(self, backbone: Backbone, latents: Tensor, timestep: Tensor) -> Tensor:
        """The noise in latents (B, C, h, w)."""
        return backbone.denoise(latents, timestep, self.conditioning)

    def conditional(self, count: int) -> slice:
        """All rows."""
        return slice(0, count)


class ClassifierFree:
    """Classifier-free guidance (Ho and Salimans 2022, eq. 6, where the scale is w + 1)."""

    def __init__(self, conditioning: Conditioning, negative: Conditioning, scale: float) -> None:
        self.conditioning = conditioning
        self.negative = negative
        self.scale = scale

    @cached_property
    def _both(self) -> Conditioning:
        return Conditioning.cat([self.negative, self.conditioning])

    def predict(self, backbone: Backbone, latents: Tensor, timestep: Tensor) -> Tensor:
        """ε_neg + scale · (ε_prompt - ε_neg), from one pass."""
        both = backbone.denoise(torch.cat([latents] * 2), timestep, self._both)
        negative, conditional = both.chunk(2)
        return negative + self.scale * (conditional - negative)

    def conditional(self, count: int) -> slice:
        """The second half."""
        return slice(count, 2 * count)


def guidance_for(
    backbone: Backbone, prompts: list[str], negative: str, scale: float, width: int, height: int
) -> Guidance:
    """The guidance that a scale asks for; up to 1 there is none."""
    if scale <= 1:
        return Unguided(backbone.encode_prompts(prompts, width, height))
    negatives = [negative] * len(prompts) if negative else None
    return ClassifierFree(*backbone.encode_guided(prompts, negatives, width, height), scale)

"""The interface of guidance: what predicts the noise of a step."""

from typing import Protocol

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

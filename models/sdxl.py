"""Stable Diffusion XL: a second text encoder, pooled states and the picture's size beside it."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from diffusers import StableDiffusionXLInpaintPipeline, StableDiffusionXLPipeline
from torch import Tensor

from .backbone import EncodedTexts, TextEncoder
from .conditioning import SIZES
from .sd import StableDiffusion

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion with two text encoders, and pooled states and sizes as conditioning."""

    family: ClassVar[str] = "SDXL"

    @classmethod
    def accepts(cls, pipeline: "DiffusionPipeline") -> bool:
        """Whether a pipeline is one of this family."""
        return isinstance(pipeline, (StableDiffusionXLPipeline, StableDiffusionXLInpaintPipeline))

    @property
    def text_encoders(self) -> list[TextEncoder]:
        """Both."""
        second = TextEncoder(self.pipeline.tokenizer_2, self.pipeline.text_encoder_2)
        return [*super().text_encoders, second]

    def reads_text_parameter(self, name: str) -> bool:
        """Not those of the end of the first encoder: SDXL reads states before its last layer."""
        last = self.text_encoders[0].network.config.num_hidden_layers - 1
        is_unread = re.search(rf"\.(layers\.{last}|final_layer_norm)\.", name)
        return not (name.startswith("text_encoder.0.") and is_unread)

    def _encode_texts(
        self, prompts: Sequence[str], negatives: Sequence[str] | None, is_guided: bool
    ) -> EncodedTexts:
        states, negative, pooled, negative_pooled = self._pipeline_encodes(
            prompts, negatives, is_guided
        )
        return EncodedTexts(states, negative, pooled, negative_pooled)

    def _added(self, pooled: Tensor | None, width: int, height: int) -> dict[str, Tensor]:
        """Pooled states, and (height, width, top, left, height, width): nothing was cut off."""
        assert pooled is not None
        sizes = torch.tensor(
            [height, width, 0, 0, height, width], device=pooled.device, dtype=pooled.dtype
        )
        return {"text_embeds": pooled, SIZES: sizes.repeat(len(pooled), 1)}

"""A toy family of base models: Stable Diffusion under other names, which only this file knows."""

from typing import ClassVar

from conceptry.models.backbone import TextEncoder
from conceptry.models.sd import StableDiffusion
from diffusers import DiffusionPipeline, UNet2DConditionModel
from torch import nn


class RenamedPipeline(DiffusionPipeline):
    """A pipeline of which only the toy family knows what its parts are called."""

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        self.network, self.pictures = pipeline.unet, pipeline.vae
        self.words, self.reader = pipeline.tokenizer, pipeline.text_encoder
        self.whole = pipeline


class ToyFamily(StableDiffusion):
    """It denoises, encodes and decodes as Stable Diffusion does."""

    family: ClassVar[str] = "toy"

    def __init__(self, pipeline: RenamedPipeline) -> None:
        self._parts = pipeline
        super().__init__(pipeline.whole)

    @classmethod
    def accepts(cls, pipeline: DiffusionPipeline) -> bool:
        """Whether a pipeline is one of this family."""
        return isinstance(pipeline, RenamedPipeline)

    @property
    def denoiser(self) -> UNet2DConditionModel:
        """Its network."""
        return self._parts.network

    @property
    def autoencoder(self) -> nn.Module:
        """Of its pictures."""
        return self._parts.pictures

    @property
    def text_encoders(self) -> list[TextEncoder]:
        """The only one."""
        return [TextEncoder(self.pipeline.tokenizer, self._parts.reader)]

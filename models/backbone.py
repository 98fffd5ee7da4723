"""What a base model of any family has to offer.

A family is one file that subclasses `Backbone`; it alone knows what the parts of its pipeline are
called. All that trains, draws or watches attention goes through this interface.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from ..kernels.observation import AttentionStack
from .conditioning import Conditioning

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Group = Literal["cross-attention", "denoiser"]
"""Named groups of the denoiser's parameters."""


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """A tokenizer and the network that reads its ids, of the transformers library."""

    tokenizer: "PreTrainedTokenizerBase"
    network: "PreTrainedModel"

    def ids(self, text: str, *, whole: bool = True) -> list[int]:
        """Token ids of a text; with `whole`, between the marks of its beginning and its end."""
        return self.tokenizer(text, add_special_tokens=whole, truncation=whole).input_ids

    def id_of(self, token: str) -> int:
        """The id of one token."""
        found = self.tokenizer.convert_tokens_to_ids(token)
        assert isinstance(found, int)
        return found


@dataclass(frozen=True, slots=True)
class Posterior:
    """What an autoencoder makes of pictures: `mean` and `std` (B, C, h, w), scaled as latents."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True, slots=True)
class EncodedTexts:
    """States (B, 77, d) of prompts and of negative prompts, and the pooled states of a family."""

    states: Tensor
    negative: Tensor | None = None
    pooled: Tensor | None = None
    negative_pooled: Tensor | None = None
    starts: tuple[float, ...] = ()


class TrainingScheduler(Protocol):
    """What a training needs of a scheduler of diffusers; timesteps are (B,)."""

    @property
    def config(self) -> Mapping[str, object]:
        """Its settings."""
        ...

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Latents with noise, √ᾱ x₀ + √(1-ᾱ) ε."""
        ...

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """√ᾱ ε - √(1-ᾱ) x₀."""
        ...


class SamplingScheduler(Protocol):
    """What drawing needs of a scheduler of diffusers."""

    timesteps: Tensor
    init_noise_sigma: float | Tensor

    def set_timesteps(self, num_inference_steps: int, device: torch.device | None = None) -> None:
        """Begin, with so many steps."""

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """Latents as the denoiser takes them."""
        ...

    @property
    def step(self) -> Callable[..., tuple[Tensor, ...]]:
        """From a prediction, its timestep and latents to the next latents; options differ."""
        ...


EncodeTexts = Callable[[Sequence[str], Sequence[str] | None, bool], EncodedTexts]
"""Prompts, negative prompts, and whether negative states are wanted at all."""
TextWrapper = Callable[[EncodeTexts, Sequence[str], Sequence[str] | None, bool], EncodedTexts]
"""Encodes in its own way with the help of what it wraps."""


class Backbone(ABC):
    """A base model in memory, as a diffusers pipeline whose parts nobody else touches."""

    family: ClassVar[str]

    def __init__(self, pipeline: "DiffusionPipeline") -> None:
        self.pipeline = pipeline
        self.attention = AttentionStack.of(self.denoiser)
        self._text_wrappers: list[TextWrapper] = []

    # --- what a family says -----------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def accepts(cls, pipeline: "DiffusionPipeline") -> bool:
        """Whether a pipeline is one of this family."""

    @property
    @abstractmethod
    def denoiser(self) -> "ModelMixin":
        """The network that predicts noise."""

    @property
    @abstractmethod
    def autoencoder(self) -> nn.Module:
        """The network between pictures and latents."""

    @property
    @abstractmethod
    def text_encoders(self) -> list[TextEncoder]:
        """All of them, the one whose columns prompts are told by first."""

    @abstractmethod
    def set_tokenizer(self, index: int, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Let a text encoder read by another tokenizer."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Side, in pixels, of the pictures that the base model was trained on."""

    @property
    @abstractmethod
    def latent_factor(self) -> int:
        """Pixels per place of a latent, along a side."""

    @property
    @abstractmethod
    def latent_channels(self) -> int:
        """Channels of latents."""

    @property
    @abstractmethod
    def localising_layers(self) -> str:
        """The cross-attention layers, as a pattern, that tell best where a thing is."""

    @abstractmethod
    def parameters(self, group: Group) -> dict[str, nn.Parameter]:
        """The denoiser's parameters of a group, by name."""

    @abstractmethod
    def cross_attention(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """The projections of text states to (keys, values), layer by layer."""

    @abstractmethod
    def denoise(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """What the denoiser predicts of noisy latents (B, C, h, w), in its own numbers."""

    @abstractmethod
    def encode_images(self, pictures: Sequence[Image.Image]) -> Posterior:
        """Pictures of one size to latents, all at once."""

    @abstractmethod
    def decode_latents(self, latents: Tensor) -> list[Image.Image]:
        """Latents to pictures. Raises `NotFinite` instead of a black one."""

    @abstractmethod
    def training_scheduler(self) -> "TrainingScheduler":
        """The noise schedule, as a training needs it."""

    @abstractmethod
    def sampling_scheduler(self, name: str | None) -> "SamplingScheduler":
        """A new scheduler on the same noise schedule; of the base model's own kind if None."""

    @abstractmethod
    def add_lora(self, rank: int) -> None:
        """Put low-rank layers (peft's) beside the denoiser's attention projections, to learn."""

    @abstractmethod
    def remove_lora(self) -> None:
        """Take them away, if there are any."""

    @abstractmethod
    def set_gradient_checkpointing(self, is_on: bool) -> None:
        """Compute the denoiser's activations again in the backward pass, not keep them."""

    @abstractmethod
    def non_finite_parameter(
        self, own: Mapping[str, Tensor] | None = None, *, is_changed: bool = False
    ) -> str | None:
        """A parameter with values that are not finite, as `unet.conv_in.weight`.

        `own` are the base model's values of the denoiser's parameters where these have learnt
        since; `is_changed` says that an adapter has changed them.
        """

    @abstractmethod
    def _encode_texts(
        self, prompts: Sequence[str], negatives: Sequence[str] | None, is_guided: bool
    ) -> EncodedTexts: ...

    @abstractmethod
    def _added(self, pooled: Tensor | None, width: int, height: int) -> dict[str, Tensor]:
        """What a family takes beside text states, of pictures of a size in pixels."""

    # --- what follows from it ---------------------------------------------------------------------

    def to(self, device: torch.device) -> None:
        """Move it."""
        self.pipeline.to(device)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.denoiser.parameters()).device

    @property
    def num_timesteps(self) -> int:
        """Of the noise schedule."""
        return self.pipeline.scheduler.config.num_train_timesteps

    @property
    def networks(self) -> dict[str, nn.Module]:
        """All networks by name."""
        texts = {f"text encoder {i}": each.network for i, each in enumerate(self.text_encoders)}
        return {"denoiser": self.denoiser, "autoencoder": self.autoencoder, **texts}

    def encode_prompts(
        self, prompts: Sequence[str], width: int, height: int | None = None
    ) -> Conditioning:
        """Encode prompts for pictures of a size in pixels; gradients flow into embeddings."""
        found = self._wrapped(prompts, None, False)
        added = self._added(found.pooled, width, height or width)
        return Conditioning(found.states, added, found.starts)

    def encode_guided(
        self, prompts: Sequence[str], negatives: Sequence[str] | None, width: int, height: int
    ) -> tuple[Conditioning, Conditioning]:
        """Prompts and, for guidance, negative prompts, which are empty if None."""
        found = self._wrapped(prompts, negatives, True)
        assert found.negative is not None
        return (
            Conditioning(found.states, self._added(found.pooled, width, height), found.starts),
            Conditioning(
                found.negative, self._added(found.negative_pooled, width, height), found.starts
            ),
        )

    @contextmanager
    def wrapped_texts(self, wrapper: TextWrapper) -> Iterator[None]:
        """Encode prompts through a wrapper, meanwhile."""
        self._text_wrappers.append(wrapper)
        try:
            yield
        finally:
            self._text_wrappers.remove(wrapper)

    def _wrapped(
        self, prompts: Sequence[str], negatives: Sequence[str] | None, is_guided: bool
    ) -> EncodedTexts:
        encode: EncodeTexts = self._encode_texts
        for wrapper in self._text_wrappers:
            encode = _through(wrapper, encode)
        return encode(prompts, negatives, is_guided)


def _through(wrapper: TextWrapper, encode: EncodeTexts) -> EncodeTexts:
    return lambda prompts, negatives, is_guided: wrapper(encode, prompts, negatives, is_guided)

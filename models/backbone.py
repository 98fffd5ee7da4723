"""The interface to base models of any family.

A family is one file that subclasses `Backbone`, and the only one that knows the names of its
pipeline's parts. Training, drawing and observing attention go through this interface.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from ..kernels.observation import AttentionStack
from .compiling import check_compiler, compile_blocks, run_uncompiled
from .conditioning import Conditioning, Control
from .quantized import Bits, quantize
from .references import Reference
from .weighted_prompts import PromptTokens, encode_weighted, tokens_in_chunks

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Group = Literal["cross-attention", "denoiser"]
"""Named groups of the denoiser's parameters."""
LoraLayers = Literal["attention", "attention+ff", "all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """Trainable low-rank layers (arXiv 2106.09685), which count alpha / rank; 0 is alpha = rank.

    They adapt the denoiser's attention projections, its feed-forward layers too, or all layers of
    its blocks, and the same of text encoders if `text_encoder_rank` is not 0. That of layers of
    cross-attention is `cross_attention_rank`, 0 the same as the others'. With `dora` they learn
    directions, and the magnitude of each output beside them (DoRA, arXiv 2402.09353, eq. 5).
    """

    rank: int
    cross_attention_rank: int = 0
    layers: LoraLayers = "attention"
    alpha: float = 0
    dora: bool = False
    text_encoder_rank: int = 0


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """A tokenizer and its text encoder, both of the transformers library."""

    tokenizer: "PreTrainedTokenizerBase"
    network: "PreTrainedModel"

    def ids(self, text: str, *, whole: bool = True) -> list[int]:
        """Token ids of a text; with `whole`, truncated and with start and end tokens."""
        return self.tokenizer(text, add_special_tokens=whole, truncation=whole).input_ids

    def id_of(self, token: str) -> int:
        """The id of one token."""
        found = self.tokenizer.convert_tokens_to_ids(token)
        assert isinstance(found, int)
        return found


@dataclass(frozen=True, slots=True)
class Posterior:
    """The autoencoder's posterior of pictures: `mean` and `std` (B, C, h, w), scaled as latents."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True, slots=True)
class EncodedTexts:
    """Text states (B, 77, d) of prompts and negative prompts, and their pooled states, if any."""

    states: Tensor
    negative: Tensor | None = None
    pooled: Tensor | None = None
    negative_pooled: Tensor | None = None
    starts: tuple[float, ...] = ()


class TrainingScheduler(Protocol):
    """The part of a diffusers scheduler that a training uses; timesteps are (B,)."""

    alphas_cumprod: Tensor
    """ᾱ of each timestep, (T,)."""

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
    """The part of a diffusers scheduler that the sampler uses."""

    timesteps: Tensor
    init_noise_sigma: float | Tensor

    def set_timesteps(self, num_inference_steps: int, device: torch.device | None = None) -> None:
        """Set the number of denoising steps."""

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """Latents scaled as the denoiser's input."""
        ...

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Latents with the noise of some timesteps (B,)."""
        ...

    @property
    def step(self) -> Callable[..., tuple[Tensor, ...]]:
        """(prediction, timestep, latents, **options) -> the next latents; options differ."""
        ...


EncodeTexts = Callable[[Sequence[str], Sequence[str] | None, bool], EncodedTexts]
"""(prompts, negative prompts, whether to encode negatives) -> text states."""
TextWrapper = Callable[[EncodeTexts, Sequence[str], Sequence[str] | None, bool], EncodedTexts]
"""Wraps an `EncodeTexts`, which it gets as its first argument."""


class Backbone(ABC):
    """A base model in memory: a diffusers pipeline behind a common interface."""

    family: ClassVar[str]

    def __init__(self, pipeline: "DiffusionPipeline") -> None:
        self.pipeline = pipeline
        self.attention = AttentionStack.of(self.denoiser)
        self.references: list[Reference] = []  # that are drawn after
        self.weighs_words = False  # while `weighing_words`
        self._text_wrappers: list[TextWrapper] = []
        self._whole: dict[str, nn.Linear] = {}  # what quantised layers stand for

    # --- what a family defines ------------------------------------------------------------------

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
        """All text encoders; token positions are those of the first one's tokenizer."""

    @abstractmethod
    def set_tokenizer(self, index: int, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Give a text encoder another tokenizer."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Side, in pixels, of the pictures it was trained on."""

    @property
    @abstractmethod
    def latent_factor(self) -> int:
        """Pixels per latent position along a side: 8 for Stable Diffusion."""

    @property
    @abstractmethod
    def latent_channels(self) -> int:
        """The number of channels of latents."""

    @property
    @abstractmethod
    def is_inpainting(self) -> bool:
        """Whether the denoiser gets a mask, and what is outside it, beside latents."""

    @property
    @abstractmethod
    def localising_layers(self) -> str:
        """A regular expression for the cross-attention layers that localise subjects best."""

    @abstractmethod
    def parameters(self, group: Group) -> dict[str, nn.Parameter]:
        """The denoiser's parameters of a group, by name."""

    @abstractmethod
    def cross_attention(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """The (key, value) projections of each cross-attention layer."""

    @abstractmethod
    def denoise(
        self,
        latents: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        control: Control | None = None,
    ) -> Tensor:
        """The denoiser's prediction (B, C, h, w) for noisy latents, in its own dtype."""

    @abstractmethod
    def encode_images(self, pictures: Sequence[Image.Image]) -> Posterior:
        """Encode pictures of one size. Raises `NotFinite` if the autoencoder overflows."""

    @abstractmethod
    def decode_latents(self, latents: Tensor) -> list[Image.Image]:
        """Decode latents (B, C, h, w). Raises `NotFinite` instead of returning a black picture."""

    @abstractmethod
    def training_scheduler(self) -> "TrainingScheduler":
        """The noise schedule for training."""

    @abstractmethod
    def sampling_scheduler(self, name: str | None) -> "SamplingScheduler":
        """A new scheduler with the same noise schedule; the base model's own kind if None."""

    @abstractmethod
    def add_lora(self, lora: Lora) -> None:
        """Add LoRA layers (peft's); the parameters of the layers themselves are frozen."""

    @abstractmethod
    def remove_lora(self) -> None:
        """Remove LoRA layers, if there are any."""

    @abstractmethod
    def set_gradient_checkpointing(self, is_on: bool) -> None:
        """Recompute the denoiser's activations in the backward pass, instead of storing them."""

    @abstractmethod
    def non_finite_parameter(
        self, original: Mapping[str, Tensor] | None = None, *, is_changed: bool = False
    ) -> str | None:
        """A parameter with values that are not finite, as `unet.conv_in.weight`; None if all are.

        `original` are the values before training of denoiser parameters that were trained;
        `is_changed` says that an adapter has changed parameters.
        """

    @abstractmethod
    def _encode_texts(
        self, prompts: Sequence[str], negatives: Sequence[str] | None, is_guided: bool
    ) -> EncodedTexts: ...

    @abstractmethod
    def _added(self, pooled: Tensor | None, width: int, height: int) -> dict[str, Tensor]:
        """Conditioning beside text states, for pictures of a size in pixels."""

    @abstractmethod
    def redrawing(self, redrawn: Tensor | None) -> AbstractContextManager[None]:
        """Inside the context, the denoiser of an inpainting model knows what is to be redrawn.

        `redrawn` (B, 1 + C, h, w) is a mask in the size of latents, 1 where to redraw, and latents
        of pictures that are grey there; with None all is. Rows are repeated as a `Control`'s are.
        """

    # --- common to all families -----------------------------------------------------------------

    def to(self, device: torch.device) -> None:
        """Move it to a device."""
        self.pipeline.to(device)

    def save(self, folder: Path, *, half: bool = False) -> None:
        """Write it as a diffusers folder, all weights as safetensors; with `half` in float16."""
        if half:
            self.pipeline.to(torch.float16)
        self.pipeline.save_pretrained(folder, safe_serialization=True)

    def quantize(self, bits: Bits) -> None:
        """Hold the weights of the denoiser's linear layers in 8 or 4 bits, frozen.

        Call it before LoRA is added, which then adapts the quantised layers.
        """
        self._whole |= quantize(self.denoiser, bits)

    def unquantize(self) -> None:
        """Give the denoiser its own linear layers back, if they were quantised."""
        for name, layer in self._whole.items():
            self.denoiser.set_submodule(name, layer)
        self._whole.clear()

    def text_encoder_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters of the text encoders' layers, by name; vectors of tokens are not."""
        return {
            f"text_encoder.{i}.{name}": parameter
            for i, each in enumerate(self.text_encoders)
            for name, parameter in each.network.named_parameters()
            if "embedding" not in name
        }

    def read_text_parameters(self) -> dict[str, nn.Parameter]:
        """Those of them that states of texts depend on; others would never have a gradient."""
        found = self.text_encoder_parameters().items()
        return {name: each for name, each in found if self.reads_text_parameter(name)}

    def reads_text_parameter(self, name: str) -> bool:
        """Whether states of texts depend on a parameter of theirs."""
        del name
        return True

    def weights(self) -> dict[str, nn.Parameter]:
        """All parameters that an adapter may change, by name."""
        return self.parameters("denoiser") | self.text_encoder_parameters()

    def set_compiled(self, is_on: bool) -> None:
        """Have the denoiser's blocks compiled when they first run, or run as they are.

        Attention is not compiled: its kernels are already. Raises `InvalidInput` where torch cannot
        compile.
        """
        if is_on:
            check_compiler(self.device)
            compile_blocks(self.denoiser)
        else:
            run_uncompiled(self.denoiser)

    @property
    def device(self) -> torch.device:
        """The device it is on."""
        return next(self.denoiser.parameters()).device

    @property
    def num_timesteps(self) -> int:
        """The number of timesteps of the noise schedule."""
        return self.pipeline.scheduler.config.num_train_timesteps

    @property
    def networks(self) -> dict[str, nn.Module]:
        """All networks by name."""
        texts = {f"text encoder {i}": each.network for i, each in enumerate(self.text_encoders)}
        return {"denoiser": self.denoiser, "autoencoder": self.autoencoder, **texts}

    def encode_prompts(
        self, prompts: Sequence[str], width: int, height: int | None = None
    ) -> Conditioning:
        """Encode prompts for pictures of a size in pixels; gradients flow into embeddings.

        `height` defaults to `width`.
        """
        found = self._wrapped(prompts, None, False)
        added = self._added(found.pooled, width, height or width)
        return Conditioning(found.states, added, found.starts)

    def encode_guided(
        self, prompts: Sequence[str], negatives: Sequence[str] | None, width: int, height: int
    ) -> tuple[Conditioning, Conditioning]:
        """Encode prompts and, for guidance, negative prompts (empty ones if None)."""
        found = self._wrapped(prompts, negatives, True)
        assert found.negative is not None
        return (
            Conditioning(found.states, self._added(found.pooled, width, height), found.starts),
            Conditioning(
                found.negative, self._added(found.negative_pooled, width, height), found.starts
            ),
        )

    @contextmanager
    def weighing_words(self, is_on: bool = True) -> Iterator[None]:
        """Inside the context prompts have weights, as in `weighted_prompts`, or with False none."""
        before, self.weighs_words = self.weighs_words, is_on
        try:
            yield
        finally:
            self.weighs_words = before

    def tokens_of(self, prompt: str) -> PromptTokens:
        """The token ids of a prompt as its text states stand, and where its own tokens are."""
        encoder = self.text_encoders[0]
        if self.weighs_words:
            return tokens_in_chunks(encoder, prompt)
        count = len(encoder.ids(prompt, whole=False))
        return PromptTokens(encoder.ids(prompt), range(1, 1 + count))

    @contextmanager
    def wrapped_texts(self, wrapper: TextWrapper) -> Iterator[None]:
        """Encode prompts through `wrapper` inside the context."""
        self._text_wrappers.append(wrapper)
        try:
            yield
        finally:
            self._text_wrappers.remove(wrapper)

    def _wrapped(
        self, prompts: Sequence[str], negatives: Sequence[str] | None, is_guided: bool
    ) -> EncodedTexts:
        encode: EncodeTexts = self._encode_texts
        if self.weighs_words:
            encode = partial(encode_weighted, self.text_encoders[0], encode)
        for wrapper in self._text_wrappers:
            encode = _through(wrapper, encode)
        return encode(prompts, negatives, is_guided)


def _through(wrapper: TextWrapper, encode: EncodeTexts) -> EncodeTexts:
    return lambda prompts, negatives, is_guided: wrapper(encode, prompts, negatives, is_guided)

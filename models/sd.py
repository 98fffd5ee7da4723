"""Stable Diffusion 1.x and 2.x, and what shares their architecture: the miniature is one."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from inspect import signature
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from diffusers.utils.peft_utils import recurse_remove_peft_layers
from PIL import Image
from torch import Tensor, nn

from ..registry.errors import NotFinite
from .backbone import (
    Backbone,
    EncodedTexts,
    Group,
    Lora,
    LoraLayers,
    Posterior,
    SamplingScheduler,
    TextEncoder,
    TrainingScheduler,
)
from .conditioning import Conditioning, Control
from .latents import (
    decoded,
    in_float32,
    latent_statistics,
    needs_float32,
    non_finite_parameter,
)
from .pixels import GREY

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, UNet2DConditionModel
    from transformers import PreTrainedTokenizerBase

SCHEDULERS = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpm++": DPMSolverMultistepScheduler,
}
ZERO_SNR = "rescale_betas_zero_snr"
"""The setting of diffusers' schedulers that ends in zero terminal SNR."""
ENCODED_AT_ONCE = 4
ATTENTION_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
_WITH_FEED_FORWARD = (*ATTENTION_PROJECTIONS, "ff.net.0.proj", "ff.net.2")
LORA_TARGETS: dict[LoraLayers, tuple[str, ...]] = {
    "attention": ATTENTION_PROJECTIONS,
    "attention+ff": _WITH_FEED_FORWARD,
    "all": (
        *_WITH_FEED_FORWARD,
        *("proj_in", "proj_out", "conv1", "conv2", "conv_shortcut", "time_emb_proj"),
        *("downsamplers.0.conv", "upsamplers.0.conv"),
    ),
}
"""How the names of the layers end that LoRA adapts; `all` are those of kohya's LoCon."""
_CROSS_ATTENTION = r".*\.attn2\..*"
_TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
TEXT_LORA_TARGETS: dict[LoraLayers, tuple[str, ...]] = {
    "attention": _TEXT_ATTENTION,
    "attention+ff": (*_TEXT_ATTENTION, "fc1", "fc2"),
    "all": (*_TEXT_ATTENTION, "fc1", "fc2"),
}
"""The same of text encoders."""


def add_lora(unet: nn.Module, text_encoders: Sequence[nn.Module], lora: Lora) -> None:
    """Add peft's layers to a U-Net and, if asked for, to text encoders; all else is frozen."""
    from peft import LoraConfig, inject_adapter_in_model

    ranks = {_CROSS_ATTENTION: lora.cross_attention_rank} if lora.cross_attention_rank else {}
    targets = [(unet, LORA_TARGETS[lora.layers], lora.rank, ranks)]
    if rank := lora.text_encoder_rank:
        names = TEXT_LORA_TARGETS[lora.layers]
        targets += [(network, names, rank, {}) for network in text_encoders]
    for network, names, rank, own in targets:
        config = LoraConfig(
            r=rank,
            rank_pattern=own,
            lora_alpha=lora.alpha or rank,  # pyright: ignore[reportArgumentType]
            alpha_pattern={} if lora.alpha else own,
            use_dora=lora.dora,
            target_modules=list(names),
        )
        inject_adapter_in_model(config, network)
        network.requires_grad_(False)


class StableDiffusion(Backbone):
    """A U-Net with cross-attention, one CLIP text encoder, a KL autoencoder."""

    family: ClassVar[str] = "SD 1.x and 2.x"

    def __init__(self, pipeline: "DiffusionPipeline") -> None:
        super().__init__(pipeline)
        self._redrawn: Tensor | None = None
        self._all_redrawn: dict[tuple[int, int], Tensor] = {}

    @classmethod
    def accepts(cls, pipeline: "DiffusionPipeline") -> bool:
        """Whether a pipeline is one of this family."""
        return isinstance(pipeline, (StableDiffusionPipeline, StableDiffusionInpaintPipeline))

    # --- parts ------------------------------------------------------------------------------------

    @property
    def denoiser(self) -> "UNet2DConditionModel":
        """The U-Net."""
        return self.pipeline.unet

    @property
    def autoencoder(self) -> nn.Module:
        """The VAE."""
        return self.pipeline.vae

    @property
    def text_encoders(self) -> list[TextEncoder]:
        """The only one."""
        return [TextEncoder(self.pipeline.tokenizer, self.pipeline.text_encoder)]

    def set_tokenizer(self, index: int, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Give a text encoder another tokenizer."""
        setattr(self.pipeline, ("tokenizer", "tokenizer_2")[index], tokenizer)

    @property
    def size(self) -> int:
        """Side, in pixels, of the pictures it was trained on."""
        return self.pipeline.unet.config.sample_size * self.latent_factor

    @property
    def latent_factor(self) -> int:
        """Pixels per latent position along a side."""
        return self.pipeline.vae_scale_factor

    @property
    def latent_channels(self) -> int:
        """The number of channels of latents."""
        return self.pipeline.unet.config.out_channels

    @property
    def is_inpainting(self) -> bool:
        """Whether the U-Net gets a mask, and what is outside it, beside latents."""
        return self.pipeline.unet.config.in_channels > self.latent_channels

    def parameters(self, group: Group) -> dict[str, nn.Parameter]:
        """The U-Net's parameters of a group, by name."""
        return {
            name: parameter
            for name, parameter in self.denoiser.named_parameters()
            if group == "denoiser" or ".attn2." in name
        }

    def cross_attention(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """The (key, value) projections of each cross-attention layer."""
        return cross_attention_of(self.denoiser)

    @property
    def localising_layers(self) -> str:
        """Those of the first up block that has any: 16x16 at 512 pixels (Hertz et al. 2023).

        On synthetic scenes, whose masks are known, their IoU with the masks is 0.66; that of all
        layers together 0.37.
        """
        layers = self.attention.layers
        blocks = [name for name in layers if name.endswith(".attn2") and "up_blocks" in name]
        first = min(int(name.split(".")[1]) for name in blocks)
        return rf"up_blocks\.{first}\..*\.attn2"

    # --- texts ------------------------------------------------------------------------------------

    def _encode_texts(
        self, prompts: Sequence[str], negatives: Sequence[str] | None, is_guided: bool
    ) -> EncodedTexts:
        states, negative, *_ = self._pipeline_encodes(prompts, negatives, is_guided)
        return EncodedTexts(states, negative)

    def _pipeline_encodes(
        self, prompts: Sequence[str], negatives: Sequence[str] | None, is_guided: bool
    ) -> tuple[Tensor, *tuple[Tensor | None, ...]]:
        return self.pipeline.encode_prompt(
            list(prompts),
            device=self.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=is_guided,
            negative_prompt=list(negatives) if negatives else None,
        )

    def _added(self, pooled: Tensor | None, width: int, height: int) -> dict[str, Tensor]:
        del pooled, width, height
        return {}

    # --- pictures ---------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_images(self, pictures: Sequence[Image.Image]) -> Posterior:
        """Encode pictures of one size. Raises `NotFinite` if the VAE overflows."""
        vae = self.pipeline.vae
        means, stds = [], []
        with in_float32(vae) if needs_float32(vae) else nullcontext():
            for first in range(0, len(pictures), ENCODED_AT_ONCE):
                chunk = list(pictures[first : first + ENCODED_AT_ONCE])
                pixels = self.pipeline.image_processor.preprocess(chunk).to(vae.device, vae.dtype)
                posterior = vae.encode(pixels).latent_dist
                means.append(posterior.mean.float())
                stds.append(posterior.std.float())
        middle, spread = latent_statistics(vae, torch.cat(means))
        scale = vae.config.scaling_factor
        found = Posterior(
            (torch.cat(means) - middle) * scale / spread, torch.cat(stds) * scale / spread
        )
        if not (torch.isfinite(found.mean).all() and torch.isfinite(found.std).all()):
            raise NotFinite(
                "the base model cannot see the photos: what its VAE encodes is not finite",
                hint="get the base model's files again, or take another: concept bases",
            )
        return found

    def decode_latents(self, latents: Tensor) -> list[Image.Image]:
        """Latents to pictures. Raises `NotFinite` instead of a black one."""
        pixels = decoded(self.pipeline, latents)
        return self.pipeline.image_processor.postprocess(pixels, output_type="pil")

    # --- noise ------------------------------------------------------------------------------------

    def denoise(
        self,
        latents: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        control: Control | None = None,
    ) -> Tensor:
        """What the U-Net predicts, (B, C, h, w)."""
        now = conditioning.at(timesteps)
        residuals = {} if control is None else _residuals(control, latents, timesteps, now)
        return self.pipeline.unet(
            self._with_redrawn(latents) if self.is_inpainting else latents,
            timesteps,
            encoder_hidden_states=now.states,
            added_cond_kwargs=now.added,
            return_dict=False,
            **residuals,
        )[0]

    @contextmanager
    def redrawing(self, redrawn: Tensor | None) -> Iterator[None]:
        """See `Backbone.redrawing`; changes nothing unless it `is_inpainting`."""
        before, self._redrawn = self._redrawn, redrawn
        try:
            yield
        finally:
            self._redrawn = before

    def _with_redrawn(self, latents: Tensor) -> Tensor:
        """Latents (B, 2 · C + 1, h, w) for an inpainting U-Net."""
        beside = self._redrawn
        if beside is None:
            height, width = size = latents.shape[-2], latents.shape[-1]
            if size not in self._all_redrawn:
                factor = self.latent_factor
                grey = Image.new("RGB", (width * factor, height * factor), GREY)
                seen = self.encode_images([grey]).mean
                self._all_redrawn[size] = torch.cat([torch.ones_like(seen[:, :1]), seen], 1)
            beside = self._all_redrawn[size]
        rows = beside.to(latents).repeat(len(latents) // len(beside), 1, 1, 1)
        return torch.cat([latents, rows], 1)

    # --- learning ---------------------------------------------------------------------------------

    def add_lora(self, lora: Lora) -> None:
        """Add trainable LoRA layers (peft's) to the U-Net and, if asked for, text encoders."""
        add_lora(self.pipeline.unet, [each.network for each in self.text_encoders], lora)

    def remove_lora(self) -> None:
        """Take them away, if there are any."""
        for network in (self.pipeline.unet, *(each.network for each in self.text_encoders)):
            if getattr(network, "peft_config", None):
                recurse_remove_peft_layers(network)
                del network.peft_config

    def set_gradient_checkpointing(self, is_on: bool) -> None:
        """Compute the U-Net's activations again in the backward pass, instead of keeping them."""
        unet = self.pipeline.unet
        (unet.enable_gradient_checkpointing if is_on else unet.disable_gradient_checkpointing)()

    def non_finite_parameter(
        self, original: Mapping[str, Tensor] | None = None, *, is_changed: bool = False
    ) -> str | None:
        """A parameter with values that are not finite, as `unet.conv_in.weight`."""
        return non_finite_parameter(self.pipeline, original, is_changed=is_changed)

    def training_scheduler(self) -> TrainingScheduler:
        """DDPM's, on the base model's noise schedule, with zero terminal SNR if that has it."""
        own = self.pipeline.scheduler
        return cast("TrainingScheduler", DDPMScheduler.from_config(own.config))

    def sampling_scheduler(self, name: str | None) -> SamplingScheduler:
        """A new scheduler on the base model's noise schedule; DDIM must not clip latents.

        Where that has zero terminal SNR, timesteps are trailing (Lin et al. 2023, section 3.3): the
        first is the last one of the training.
        """
        own = self.pipeline.scheduler
        has_zero_snr = bool(own.config.get(ZERO_SNR))
        if name is None and has_zero_snr and ZERO_SNR not in signature(type(own)).parameters:
            name = "ddim"  # the base model's own kind cannot do it
        options: dict[str, object] = {"clip_sample": False} if name == "ddim" else {}
        if has_zero_snr:
            options["timestep_spacing"] = "trailing"
        kind = SCHEDULERS[name] if name else type(own)
        return cast("SamplingScheduler", kind.from_config(own.config, **options))


def cross_attention_of(network: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """The (key, value) projections of each cross-attention layer of a U-Net or ControlNet."""
    for name, layer in network.named_modules():
        if name.endswith("attn2"):
            yield layer.get_submodule("to_k"), layer.get_submodule("to_v")


def _residuals(
    control: Control, latents: Tensor, timesteps: Tensor, now: Conditioning
) -> dict[str, Tensor | tuple[Tensor, ...]]:
    """What a ControlNet adds to the U-Net's skip connections and to its middle block."""
    down, middle = control.network(
        latents,
        timesteps,
        encoder_hidden_states=now.states,
        controlnet_cond=control.rows(len(latents)).to(latents),
        conditioning_scale=control.scale,
        added_cond_kwargs=now.added,
        return_dict=False,
    )
    return {
        "down_block_additional_residuals": down,
        "mid_block_additional_residual": middle,
    }

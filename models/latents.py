"""Latents: decoding without overflow, their size in a layer, and weights that are not finite."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from diffusers import StableDiffusionXLInpaintPipeline, StableDiffusionXLPipeline
from torch import Tensor, nn

from ..registry.errors import NotFinite

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin


def layer_size(size: tuple[int, int], positions: int) -> tuple[int, int]:
    """(h, w) of a layer with so many positions, for latents of a size (h, w).

    The U-Net halves sizes, and rounds up.
    """
    height, width = size
    while height * width > positions:
        height, width = (height + 1) // 2, (width + 1) // 2
    return height, width


@torch.no_grad()
def decoded(pipeline: "DiffusionPipeline", latents: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) in -1..1 of latents (B, C, h, w) as the U-Net has them.

    In half precision some decoders overflow: SDXL's, which is float32 from the start, as diffusers
    has it, and others, which decode again. Raises `NotFinite`.
    """
    vae = pipeline.vae
    is_half = vae.dtype == torch.float16
    is_xl = isinstance(pipeline, (StableDiffusionXLPipeline, StableDiffusionXLInpaintPipeline))
    if not (is_half and is_xl and needs_float32(vae)):
        pixels = _decoded(vae, latents)
        if torch.isfinite(pixels).all():
            return pixels
    if is_half:
        with in_float32(vae):
            pixels = _decoded(vae, latents)
        if torch.isfinite(pixels).all():
            return pixels
    raise NotFinite("a picture's numbers are not finite")


def _decoded(vae: "ModelMixin", latents: Tensor) -> Tensor:
    latents = latents.to(vae.dtype)
    middle, spread = latent_statistics(vae, latents)
    scaled = latents * spread / vae.config.scaling_factor + middle
    return vae.decode(scaled, return_dict=False)[0]


def latent_statistics(vae: "ModelMixin", like: Tensor) -> tuple[Tensor, Tensor]:
    """(middle, spread), each (1, C or 1, 1, 1), of what an autoencoder encodes.

    Latents of the U-Net are that minus `middle`, times its scaling factor, divided by `spread`.
    """
    config = vae.config
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if not (mean and std):
        mean, std = [getattr(config, "shift_factor", None) or 0.0], [1.0]
    middle, spread = (like.new_tensor(each).view(1, -1, 1, 1) for each in (mean, std))
    return middle, spread


def needs_float32(vae: "ModelMixin") -> bool:
    """Whether an autoencoder says that it overflows in half precision, and is in it."""
    return vae.dtype == torch.float16 and bool(vae.config.force_upcast)


@contextmanager
def in_float32(vae: nn.Module) -> Iterator[None]:
    """Compute in float32 inside the context; afterwards the weights are the original tensors."""
    own = [(each, each.data) for each in (*vae.parameters(), *vae.buffers())]
    nn.Module.to(vae, dtype=torch.float32)  # diffusers' own `to` warns without a cause
    try:
        yield
    finally:
        for each, data in own:
            each.data = data


@torch.no_grad()
def non_finite_parameter(
    pipeline: "DiffusionPipeline",
    original: Mapping[str, Tensor] | None = None,
    *,
    is_changed: bool = False,
) -> str | None:
    """A parameter of a base model with values that are not finite, as `unet.conv_in.weight`.

    `original` are the values before training of U-Net parameters that were trained. Where an
    adapter has changed parameters (`is_changed`), only NaN counts: finite adapters can cause
    infinities, but no NaN. Reads all weights, so call it only for an error message.
    """
    original = original or {}
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        network = getattr(pipeline, part, None)
        for name, now in network.named_parameters() if network is not None else ():
            if ".lora_" in name:
                continue  # peft's, which learn
            is_trained = part == "unet" and name in original
            value: Tensor = original[name] if is_trained else now
            if (value.isnan() if is_changed else ~value.isfinite()).any():
                return f"{part}.{name.replace('.base_layer.', '.')}"  # peft's word
    return None

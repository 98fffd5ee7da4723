"""ControlNets with random weights, of tiny base models and of others."""

from pathlib import Path
from typing import Any

import torch
from conceptry.models.loading import load_base
from diffusers import ControlNetModel
from PIL import Image
from tiny_base import write_tiny_base


def make_tiny_control(unet: Any, *, factor: int = 2, seed: int | None = 1) -> ControlNetModel:
    """Of a U-Net's shape, for pictures `factor` times as wide as latents.

    With a seed all weights are random; with None it adds zeros, as one that has learned nothing.
    """
    channels = (4, 8, 8, 8)[: factor.bit_length()]
    network = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=channels)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            noise /= max(1, parameter[0].numel()) ** 0.5
            is_new = name.startswith("controlnet_")
            parameter.data = 2 * noise if is_new else parameter.data + 0.2 * noise
    return network.eval()


def write_tiny_control(folder: Path, unet: Any, **options: Any) -> Path:
    """Save one as a diffusers folder."""
    make_tiny_control(unet, **options).save_pretrained(folder)
    return folder


def control_picture(path: Path, size: tuple[int, int] = (16, 16)) -> Path:
    """Write a picture in colours."""
    bands = [Image.radial_gradient("L"), Image.linear_gradient("L"), Image.new("L", (256, 256), 90)]
    Image.merge("RGB", bands).resize(size).save(path)
    return path


def write_base_and_control(folder: Path) -> tuple[str, str]:
    """Write a base model and a ControlNet for it; returns their paths."""
    tiny = str(write_tiny_base(folder / "tiny"))
    unet = load_base(tiny).backbone.pipeline.unet
    return tiny, str(write_tiny_control(folder / "net", unet))

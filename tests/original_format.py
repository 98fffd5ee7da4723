"""Writes a pipeline as one file, in the names that Stable Diffusion was first released with."""

import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}


def write_single_file(pipeline: Any, path: Path) -> None:
    """Save U-Net, autoencoder and text encoder of an SD 1.x pipeline."""
    unet, vae = pipeline.unet, pipeline.vae
    layers = unet.config.layers_per_block
    blocks = len(vae.config.up_block_types)
    tensors = {
        f"model.diffusion_model.{_unet_name(name, layers)}": value
        for name, value in unet.state_dict().items()
    }
    tensors |= {
        f"first_stage_model.{_vae_name(name, blocks)}": value
        for name, value in vae.state_dict().items()
    }
    tensors |= {
        f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}": value
        for name, value in pipeline.text_encoder.state_dict().items()
    }
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)


def _unet_name(name: str, layers: int) -> str:
    for ours, theirs in _UNET.items():
        if name.startswith(f"{ours}."):
            return theirs + _inner(name.removeprefix(ours))
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)(.*)", name)
    assert match, name
    way, block, kind, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * (layers + 1)}.0.op{rest.removeprefix('.conv')}"
    if kind == "upsamplers":
        place = 1 if block == 0 else 2  # after the resnet, and the attention where there is one
        return f"output_blocks.{block * (layers + 1) + layers}.{place}{rest}"
    number = block * (layers + 1) + layer + (way == "down")
    side = "input" if way == "down" else "output"
    return f"{side}_blocks.{number}.{0 if kind == 'resnets' else 1}{_inner(rest)}"


def _inner(rest: str) -> str:
    head, _, tail = rest.lstrip(".").partition(".")
    return f".{_RESNET.get(head, head)}.{tail}" if tail else rest


def _vae_name(name: str, blocks: int) -> str:
    name = re.sub(
        r"down_blocks\.(\d+)\.(resnets|downsamplers\.0)",
        lambda m: f"down.{m[1]}.{'block' if m[2] == 'resnets' else 'downsample'}",
        name,
    )
    name = re.sub(
        r"up_blocks\.(\d+)\.(resnets|upsamplers\.0)",
        lambda m: f"up.{blocks - 1 - int(m[1])}.{'block' if m[2] == 'resnets' else 'upsample'}",
        name,
    )
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    return name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")

"""The names that Stable Diffusion's tensors have in a single file: those of its first release."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .backbone import Backbone
from .compatibility import TEXT_PREFIX, TEXT_PREFIX_OF_XL, UNET_PREFIX, VAE_PREFIX
from .sd import ZERO_SNR

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET_PARTS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn": "attn",
}
_RESNETS = re.compile(r"down_blocks\.0\.resnets\.(\d+)")
_ATTENDED = re.compile(r"up_blocks\.(\d+)\.attentions")
_LAYERS_OF_SD2 = 23
"""Of its text encoder; its file has another, whose states nothing reads."""


def unet_names(names: Collection[str]) -> dict[str, str]:
    """The name in a single file of each of a U-Net's tensors, by all their names in diffusers."""
    resnets = {match[1] for name in names if (match := _RESNETS.match(name))}
    attended = {match[1] for name in names if (match := _ATTENDED.match(name))}
    return {name: UNET_PREFIX + _unet_name(name, len(resnets), attended) for name in sorted(names)}


def original_tensors(backbone: Backbone) -> dict[str, Tensor]:
    """All tensors of a base model, by their names in a single file.

    What its noise schedule is like is said as others say it: by empty tensors.
    """
    unet = backbone.denoiser.state_dict()
    names = unet_names(unet.keys())
    found = {names[name]: tensor for name, tensor in unet.items()}
    found |= _vae_tensors(backbone.autoencoder.state_dict())
    encoders = [each.network for each in backbone.text_encoders]
    if len(encoders) == 1:
        found |= _text_tensors(encoders[0], TEXT_PREFIX)
    else:
        for i, encoder in enumerate(encoders):
            found |= _text_tensors(encoder, f"{TEXT_PREFIX_OF_XL}{i}.", is_open=i > 0)
    schedule = backbone.training_scheduler().config
    if schedule["prediction_type"] == "v_prediction":
        found["v_pred"] = torch.zeros(0)
        if schedule.get(ZERO_SNR):
            found["ztsnr"] = torch.zeros(0)
    return found


def _unet_name(name: str, layers: int, attended: Collection[str]) -> str:
    for ours, theirs in _UNET_PARTS.items():
        if name.startswith(f"{ours}."):
            return theirs + _in_block(name.removeprefix(ours))
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)(.*)", name)
    assert match, name
    way, block, kind, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * (layers + 1)}.0.op{rest.removeprefix('.conv')}"
    if kind == "upsamplers":
        place = 2 if match[2] in attended else 1  # after the resnet, and the attention if any
        return f"output_blocks.{block * (layers + 1) + layers}.{place}{rest}"
    number = block * (layers + 1) + layer + (way == "down")
    side = "input" if way == "down" else "output"
    return f"{side}_blocks.{number}.{0 if kind == 'resnets' else 1}{_in_block(rest)}"


def _in_block(rest: str) -> str:
    head, _, tail = rest.lstrip(".").partition(".")
    return f".{_RESNET.get(head, head)}.{tail}" if tail else rest


def _vae_tensors(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The autoencoder's; its attention's projections are 1x1 convolutions there."""
    blocks = 1 + max(int(match[1]) for name in state if (match := _UP_BLOCK.match(name)))
    for name, tensor in state.items():
        own = _vae_name(name, blocks)
        is_projection = ".attn_1." in own and tensor.ndim == 2
        yield VAE_PREFIX + own, tensor[:, :, None, None] if is_projection else tensor


_UP_BLOCK = re.compile(r"decoder\.up_blocks\.(\d+)")


def _vae_name(name: str, blocks: int) -> str:
    def down(match: re.Match[str]) -> str:
        return f"down.{match[1]}.{'block' if match[2] == 'resnets' else 'downsample'}"

    def up(match: re.Match[str]) -> str:
        kind = "block" if match[2] == "resnets" else "upsample"
        return f"up.{blocks - 1 - int(match[1])}.{kind}"

    def attention(match: re.Match[str]) -> str:
        return f"mid.attn_1.{_VAE_ATTENTION[match[1]]}"

    name = re.sub(r"down_blocks\.(\d+)\.(resnets|downsamplers\.0)", down, name)
    name = re.sub(r"up_blocks\.(\d+)\.(resnets|upsamplers\.0)", up, name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = re.sub(r"mid_block\.attentions\.0\.(\w+(?:\.0)?)", attention, name)
    return name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")


def _text_tensors(
    encoder: "PreTrainedModel", prefix: str, *, is_open: bool | None = None
) -> Iterator[tuple[str, Tensor]]:
    """A text encoder's; SD 2 and the second of SDXL have OpenCLIP's names.

    Of SD 2 and SD 1, OpenAI's is the one with its own approximation of GELU.
    """
    state = {
        name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()
    }
    if is_open is None:
        is_open = encoder.config.hidden_act == "gelu"
    if is_open:
        yield from _open_clip_tensors(state, f"{prefix}model.")
    else:
        for name, tensor in state.items():
            yield f"{prefix}transformer.text_model.{name}", tensor


def _open_clip_tensors(state: Mapping[str, Tensor], prefix: str) -> Iterator[tuple[str, Tensor]]:
    last = max(int(name.split(".")[2]) for name in state if name.startswith("encoder.layers."))
    for name, tensor in _fused(state):
        own = name
        for ours, theirs in _OPEN_CLIP.items():
            own = own.replace(ours, theirs)
        if own == "text_projection.weight":
            yield f"{prefix}text_projection", tensor.T
            continue
        yield prefix + own, tensor
        if last + 1 == _LAYERS_OF_SD2 and f".resblocks.{last}." in own:
            yield prefix + own.replace(f".{last}.", f".{last + 1}."), tensor


def _fused(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """With the projections q, k and v of each attention in one tensor."""
    for name, tensor in state.items():
        if match := re.fullmatch(r"(.*self_attn)\.([qkv])_proj\.(weight|bias)", name):
            if match[2] == "q":
                parts = [state[f"{match[1]}.{each}_proj.{match[3]}"] for each in "qkv"]
                yield f"{match[1]}.in_proj_{match[3]}", torch.cat(parts)
        else:
            yield name, tensor

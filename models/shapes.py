"""The shapes of a base model's networks, from configurations alone: no weights are loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from .bases import Base
from .compatibility import SINGLE_FILE, check_is_whole, check_tensors
from .folder import CONFIG_FILE, read_object
from .native import configuration_of

Config = Mapping[str, Any]

_ATTENDED = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
"""Of a single file, a layer that all families have; it tells SD 1.x by the width of its texts."""
_WIDTH_OF_1 = 768
_VAE: Config = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}


def _text(width: int, layers: int, heads: int) -> Config:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "projection_dim": width,
        "vocab_size": 49408,
    }


_CLIP_L, _OPEN_CLIP_H, _OPEN_CLIP_G = _text(768, 12, 12), _text(1024, 23, 16), _text(1280, 32, 20)
_UNETS: dict[str, Config] = {
    "SD 1.x": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "SD 2.x": {
        "sample_size": 64,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "SDXL": {
        "sample_size": 128,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (320, 640, 1280),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
FAMILIES = tuple(_UNETS)


@dataclass(frozen=True, slots=True)
class Shapes:
    """Configurations of a base model's networks, as diffusers and transformers have them."""

    unet: Config
    vae: Config
    texts: tuple[Config, ...]

    def make_unet(self) -> UNet2DConditionModel:
        """The U-Net on the meta device: its parameters have shapes and no values."""
        with torch.device("meta"):
            return cast("UNet2DConditionModel", UNet2DConditionModel.from_config(dict(self.unet)))

    def make_autoencoder(self) -> AutoencoderKL:
        """The autoencoder, in the same way."""
        with torch.device("meta"):
            return cast("AutoencoderKL", AutoencoderKL.from_config(dict(self.vae)))

    def make_text_encoders(self) -> list[nn.Module]:
        """All text encoders, in the same way; a second one has a projection."""
        kinds = (CLIPTextModel, CLIPTextModelWithProjection)
        with torch.device("meta"):
            return [
                kind(CLIPTextConfig(**config))
                for kind, config in zip(kinds, self.texts, strict=False)
            ]

    @property
    def factor(self) -> int:
        """Pixels to a latent."""
        return 1 << max(len(self.vae["block_out_channels"]) - 1, 0)

    @property
    def size(self) -> int:
        """Side of the pictures that it was trained on."""
        return self.unet["sample_size"] * self.factor


def usual_shapes(family: str) -> Shapes:
    """Those of SD 1.x, SD 2.x or SDXL."""
    texts = {"SD 1.x": (_CLIP_L,), "SD 2.x": (_OPEN_CLIP_H,), "SDXL": (_CLIP_L, _OPEN_CLIP_G)}
    return Shapes(_UNETS[family], _VAE, texts[family])


def shapes_of(base: Base) -> Shapes | None:
    """Those of a base model; None if its configuration is not on this machine.

    Of a single file that has none beside it, the usual ones of its family. Raises `InvalidInput`
    and `InvalidWeights` for what is no base model.
    """
    if folder := configuration_of(base):
        networks = ("text_encoder", "text_encoder_2")
        texts = [folder / each / CONFIG_FILE for each in networks]
        unet, vae = (read_object(folder / each / CONFIG_FILE) for each in ("unet", "vae"))
        return Shapes(unet, vae, tuple(read_object(each) for each in texts if each.is_file()))
    if base.kind != "file":
        return None
    tensors = check_tensors(Path(base.source), SINGLE_FILE)
    if check_is_whole(base, tensors):
        return usual_shapes("SDXL")
    is_1 = tensors.get(_ATTENDED, ())[1:] == (_WIDTH_OF_1,)
    return usual_shapes("SD 1.x" if is_1 else "SD 2.x")

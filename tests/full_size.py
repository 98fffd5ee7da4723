"""Stable Diffusion in its true shapes, with random weights."""

from typing import Any

import torch
from conceptry.models.miniature.tokenizer import make_tokenizer
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

UNETS: dict[str, dict[str, Any]] = {
    "SD 1.5": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "SD 2.1": {
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
# width, layers, heads, activation; then of SDXL's second encoder
_TEXTS: dict[str, tuple[tuple[int, int, int, str], ...]] = {
    "SD 1.5": ((768, 12, 12, "quick_gelu"),),
    "SD 2.1": ((1024, 23, 16, "gelu"),),
    "SDXL": ((768, 12, 12, "quick_gelu"), (1280, 32, 20, "gelu")),
}


def make_full_unet(name: str) -> UNet2DConditionModel:
    """The U-Net alone, in the default type."""
    options: dict[str, Any] = {"sample_size": 64} | UNETS[name]
    return UNet2DConditionModel(**options)


def make_full_size(name: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A whole pipeline; only the tokenizer is the miniature's."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return _pipeline(name)
    finally:
        torch.set_default_dtype(default)


def _pipeline(name: str) -> Any:
    tokenizer = make_tokenizer()
    is_xl = name == "SDXL"
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
        block_out_channels=(128, 256, 512, 512),  # pyright: ignore[reportArgumentType]
        layers_per_block=2,
        scaling_factor=0.13025 if is_xl else 0.18215,
    )
    unet = make_full_unet(name)
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        steps_offset=1,
    )
    encoders = [_text_encoder(tokenizer, *text) for text in _TEXTS[name]]
    if not is_xl:
        pipeline: Any = StableDiffusionPipeline(
            vae,
            encoders[0],
            tokenizer,
            unet,
            scheduler,  # pyright: ignore[reportArgumentType]
            safety_checker=None,  # pyright: ignore[reportArgumentType]
            feature_extractor=None,  # pyright: ignore[reportArgumentType]
            requires_safety_checker=False,
        )
    else:
        pipeline = StableDiffusionXLPipeline(
            vae,
            encoders[0],
            encoders[1],
            tokenizer,
            make_tokenizer(),
            unet,
            scheduler,  # pyright: ignore[reportArgumentType]
            add_watermarker=False,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _text_encoder(tokenizer: Any, width: int, layers: int, heads: int, activation: str) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_act=activation,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if width == 1280 else CLIPTextModel)(config)

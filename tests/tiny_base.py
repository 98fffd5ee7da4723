"""A base model with random weights in Stable Diffusion's shape, quick to make and to run."""

from pathlib import Path
from typing import Any

import torch
from conceptry.models.miniature.architecture import make_scheduler
from conceptry.models.miniature.tokenizer import make_tokenizer
from diffusers import (
    AutoencoderKL,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection


def write_tiny_base(folder: Path, seed: int = 0) -> Path:
    """Save it as a diffusers folder; its pictures are 16x16."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        make_tiny_base().save_pretrained(folder)
    return folder


def make_tiny_base() -> Any:
    """Two levels, 32 channels at most."""
    tokenizer: Any = make_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text(tokenizer)),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=make_scheduler(),  # pyright: ignore[reportArgumentType]
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )


def make_tiny_sdxl() -> Any:
    """Two text encoders, of 32 and 48 channels."""
    tokenizer: Any = make_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=32 + 48,
        attention_head_dim=2,
        norm_num_groups=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 20,
    )
    wide = _text(tokenizer, hidden_size=48, projection_dim=20)
    return StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text(tokenizer)),
        text_encoder_2=CLIPTextModelWithProjection(wide),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=make_scheduler(),  # pyright: ignore[reportArgumentType]
        add_watermarker=False,
    )


def _text(tokenizer: Any, **options: Any) -> CLIPTextConfig:
    size: dict[str, Any] = {"hidden_size": 32} | options
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **size,
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 2,  # pyright: ignore[reportArgumentType]
        block_out_channels=(8, 16),  # pyright: ignore[reportArgumentType]
        norm_num_groups=4,
        sample_size=16,
        mid_block_add_attention=False,
    )

"""Networks of the miniature's recipe with few channels, for pictures of few pixels."""

from typing import Any

from conceptry.models.miniature.architecture import LATENT_CHANNELS, make_unet
from diffusers import AutoencoderKL, UNet2DConditionModel

SMALL = 32
"""Pixels across of a picture that gives as many latents with half as many levels."""


def small_vae(size: int = SMALL) -> AutoencoderKL:
    """Of pictures of 32x32, or half as many pixels across by a level less; latents are 16x16."""
    levels = (8, 16) if size == SMALL else (16,)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(levels),  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * len(levels),  # pyright: ignore[reportArgumentType]
        block_out_channels=levels,  # pyright: ignore[reportArgumentType]
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=size,
        mid_block_add_attention=False,
    )


def small_unet() -> Any:
    """The same blocks, with few channels."""
    few = {"block_out_channels": (16, 16, 32), "norm_num_groups": 8}
    return UNet2DConditionModel.from_config({**make_unet().config, **few})

"""The shapes of the miniature's networks: Stable Diffusion's, with small numbers."""

from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from .tokenizer import END, MAX_TOKENS, START

SIZE = 128
"""Of pictures, in pixels."""
SMALL_SIZE = 64
"""Of the reduced pictures that CLIP, the identity encoder and the judge get."""
LATENT_SIZE, LATENT_CHANNELS = 16, 12
TEXT_WIDTH = 160


def make_vae() -> AutoencoderKL:
    """Pictures (B, 3, 128, 128) to latents (B, 12, 16, 16) and back."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
        block_out_channels=(24, 48, 96, 96),  # pyright: ignore[reportArgumentType]
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )


class Discriminator(nn.Module):
    """Patch discriminator of rendered and decoded pictures (Isola et al. 2017, section 3.2.2)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(3, 48, 4, 2, 1), nn.LeakyReLU(0.2)),
                nn.Sequential(nn.Conv2d(48, 96, 4, 2, 1), nn.GroupNorm(8, 96), nn.LeakyReLU(0.2)),
                nn.Sequential(nn.Conv2d(96, 128, 3, 1, 1), nn.GroupNorm(8, 128), nn.LeakyReLU(0.2)),
                nn.Conv2d(128, 1, 3, 1, 1),
            ]
        )

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """The features of each layer for pictures (B, 3, h, w); the last are (B, 1, h/4, w/4)."""
        seen: list[Tensor] = []
        for layer in self.layers:
            pixels = layer(pixels)
            seen.append(pixels)
        return seen


def make_unet() -> UNet2DConditionModel:
    """Noisy latents (B, 12, 16, 16), timesteps (B,) and text states (B, 77, 160) to noise."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 128, 224),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def make_control(unet: UNet2DConditionModel, factor: int = 8) -> ControlNetModel:
    """A ControlNet for layouts, which begins as a copy of the U-Net's encoder without attention.

    Control pictures (B, 3, h, w) in 0..1 are `factor` times as wide as latents. Attention layers
    are half of the encoder's parameters, and what is where is in the layout.
    """
    channels = (8, 16, 32, 32)[: factor.bit_length()]
    whole = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=channels)
    plain = {
        "down_block_types": ("DownBlock2D",) * len(whole.down_blocks),
        "mid_block_type": "UNetMidBlock2D",
    }
    control = ControlNetModel.from_config({**whole.config, **plain})
    assert isinstance(control, ControlNetModel)
    weights = whole.state_dict()
    control.load_state_dict({name: weights[name] for name in control.state_dict()})
    return control


def make_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """A text encoder for the U-Net and a picture encoder to go with it."""
    ids = tokenizer.get_vocab()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=96,
        bos_token_id=ids[START],
        eos_token_id=ids[END],
        pad_token_id=ids[END],
    )
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SMALL_SIZE,
        patch_size=8,
        projection_dim=96,
    )
    return CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=96)
    )


def make_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule.

    `clip_sample` must be off: it would clip latents to -1..1 at every step and ruin guided samples.
    """
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )

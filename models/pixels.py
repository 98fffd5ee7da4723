"""From pictures to what a network sees."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (everyone's name for it)

GREY = (128, 128, 128)
"""What encoders see outside a subject, and inpainting models where they redraw."""


def to_pixels(images: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size as float32 (B, 3, H, W) in -1..1."""
    stacked = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1


def reduced(image: Image.Image, side: int) -> Image.Image:
    """A picture at (side, side), each pixel the mean of what falls into it."""
    return image.convert("RGB").resize((side, side), Image.Resampling.BOX)


def control_pixels(image: Image.Image) -> Tensor:
    """A control picture as a ControlNet sees it (1, 3, H, W), in 0..1."""
    return to_pixels([image]) / 2 + 0.5


def share_of_mask(mask: Image.Image, size: tuple[int, int]) -> Tensor:
    """How much of each place of a grid (h, w) a mask covers, 0 to 1."""
    pixels = torch.from_numpy(np.array(mask.convert("L"), dtype=np.float32) / 255)
    return F.interpolate(pixels[None, None], size=size, mode="area")[0, 0]


def on_white(image: Image.Image, inside: Image.Image) -> Image.Image:
    """The picture with white outside a region, given as a mask of any size."""
    return _cut_out(image, inside, (255, 255, 255))


def grey_outside(image: Image.Image, inside: Image.Image) -> Image.Image:
    """The picture with grey outside a region, given as a mask of any size."""
    return _cut_out(image, inside, GREY)


def _cut_out(image: Image.Image, inside: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    mask = inside.convert("L").resize(image.size, Image.Resampling.BILINEAR)
    return Image.composite(image.convert("RGB"), Image.new("RGB", image.size, colour), mask)

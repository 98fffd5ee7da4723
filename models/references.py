"""References: pictures whose subject others are drawn after (DreamTuner, arXiv 2312.13691)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PROMPT = "a photo of a {}"
"""Describes a photo that has no caption."""
WEIGHT = 3.0
"""ω of natural pictures; 2.5 for drawn characters, 10 costs quality (section 4.1)."""
SHARE = 0.9
"""p_r, the share of steps that references guide."""
TAUGHT_SHARE = 0.0
"""p_r of subjects that the prompt names, as they were taught: it asks for them by itself."""
GUIDANCE = 2.5
"""ω_r, how strongly they do; the paper does not give it."""
MAX_WEIGHT, MAX_GUIDANCE, MAX_STRENGTH = 100.0, 100.0, 10.0
MAX_REFERENCES = 64
"""Of one picture or version."""


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """A picture whose subject others are drawn after.

    `latents` (C, h, w) are those of the picture, without noise; `mask` (h, w) is the share of its
    subject in each of them, 0 to 1; `prompt` describes it, as detailed as it may be; `weight` is ω,
    how much more its subject's features count than those of the picture itself. `share` and
    `guidance` are p_r and ω_r of interleaved guidance; of several references, those of the first.
    Of a picture with regions, it is seen from that of its `subject`, if that has one. Where the
    picture follows a ControlNet, so does the reference, by a layout of its own: `control` (3, H, W)
    in 0..1, of its size in pixels.
    """

    latents: "Tensor"
    mask: "Tensor"
    prompt: str
    weight: float = WEIGHT
    share: float = SHARE
    guidance: float = GUIDANCE
    subject: str = ""
    control: "Tensor | None" = None

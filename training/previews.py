"""Preview strips: pictures of fixed prompts and seeds, drawn during a training."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..generation.pictures import contact_sheet, kept_picture, replace_picture
from ..generation.request import SamplingSettings

PROMPTS = (
    "a photo of {}",
    "a photo of {} on the beach",
    "a photo of {} in the snow",
    "a drawing of a red {}",
)
SETTINGS = SamplingSettings(steps=20, guidance=5.0)
_SIDE = 128


def add_strip(path: Path, label: str, images: Sequence[Image.Image]) -> None:
    """Append a strip to the sheet at `path`, which is begun anew if it is missing or damaged.

    A reader finds the former sheet or the new one, whole.
    """
    strip = contact_sheet([(label, images)], side=_SIDE)
    if sheet := kept_picture(path.parent, path):
        strip = _stacked(sheet, strip)
    replace_picture(strip, path, root=path.parent)


def _stacked(upper: Image.Image, lower: Image.Image) -> Image.Image:
    size = (max(upper.width, lower.width), upper.height + lower.height)
    both = Image.new("RGB", size, "white")
    both.paste(upper, (0, 0))
    both.paste(lower, (0, upper.height))
    return both

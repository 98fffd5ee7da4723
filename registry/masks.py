"""Masks: from what programs write for them to grey, white on the subject."""

import numpy as np
from PIL import Image

from .depth import is_deep, to_8_bits
from .errors import InvalidImage
from .formats import Beside

FEW = 32
"""A picture of more values than these is no map of labels."""
_TOO_DARK = 64
"""A mask without anything brighter is none."""
_COLOURED = 24
"""Channels that differ by more are a colour, not the noise of a JPEG."""


def to_mask(image: Image.Image, beside: Beside, data: bytes, name: str) -> Image.Image:
    """A mask as 8-bit grey, white on the subject, from a picture of any kind.

    Of two values, the brighter one (of equal ones, the higher index of the palette) is subject.
    More are a soft mask. Raises `InvalidImage` for one that is empty, or has labels or colours.
    """
    if image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
        if alpha.getextrema() != (255, 255):
            return _from_grey(np.asarray(alpha), alpha, name)
    if is_deep(image):
        values = np.asarray(image)
        if np.isnan(values).any():
            raise ValueError("some of its values are not a number")
        hard = _of_two_values(values)
        return hard or _from_grey(values, to_8_bits(image, beside, data), name)
    if image.mode == "P":
        return _from_palette(image, name)
    if image.mode in ("1", "L", "LA", "La"):
        grey = image.convert("L")
        return _from_grey(np.asarray(grey), grey, name)
    return _from_colours(image.convert("RGB"), name)


def _from_palette(image: Image.Image, name: str) -> Image.Image:
    indices = np.asarray(image)
    used = np.flatnonzero(image.histogram())
    colours = image.convert("RGB")
    if len(used) != 2:
        return _from_colours(colours, name)
    greys = np.asarray(colours.convert("L"))
    first, second = (int(greys[indices == each][0]) for each in used)
    return _hard(indices == used[0 if first > second else 1])


def _from_colours(image: Image.Image, name: str) -> Image.Image:
    found = image.getcolors(2)
    if found and len(found) == 2:
        (_, one), (_, other) = found
        bright = max(one, other, key=_brightness)
        return _hard((np.asarray(image) == np.array(bright, np.uint8)).all(-1))
    pixels = np.asarray(image)
    spread = pixels.max(-1).astype(np.int16) - pixels.min(-1)
    if np.count_nonzero(spread > _COLOURED) > spread.size // 1000:
        raise InvalidImage(
            f"the mask {name} has more than two colours: white marks the subject, black the rest"
        )
    grey = image.convert("L")
    return _from_grey(np.asarray(grey), grey, name)


def _brightness(colour: object) -> tuple[float, object]:
    red, green, blue = colour  # pyright: ignore[reportGeneralTypeIssues]
    return 0.299 * red + 0.587 * green + 0.114 * blue, colour


def _from_grey(values: np.ndarray, grey: Image.Image, name: str) -> Image.Image:
    """`values` as stored, `grey` as they look in 8 bits."""
    if hard := _of_two_values(values):
        return hard
    counts = np.array(grey.histogram())
    used = np.flatnonzero(counts) if values.dtype == np.uint8 else np.unique(values)
    if len(used) == 1:
        if not used[0]:
            raise InvalidImage(f"the mask {name} is black all over: white marks the subject")
        return Image.new("L", grey.size, 255)
    counts[0] = 0
    brightest = int(counts.nonzero()[0].max(initial=0))
    middle = int(np.searchsorted(counts.cumsum(), counts.sum() / 2))
    has_labels = len(used) <= FEW and (brightest < 2 * _TOO_DARK or middle < _TOO_DARK)
    if has_labels:
        shown = ", ".join(f"{value:g}" for value in used[:4].tolist())
        raise InvalidImage(
            f"the mask {name} has {len(used)} labels ({shown}{', …' if len(used) > 4 else ''}): "
            "which of them is the subject? it should be white, the rest black"
        )
    if brightest < _TOO_DARK:
        raise InvalidImage(
            f"the mask {name} is nearly black ({brightest} of 255 at most): white marks the subject"
        )
    return grey


def _of_two_values(values: np.ndarray) -> Image.Image | None:
    """The higher one is subject; None if there are not just two."""
    low, high = values.min(), values.max()
    if low == high or not ((values == low) | (values == high)).all():
        return None
    return _hard(values == high)


def _hard(inside: np.ndarray) -> Image.Image:
    return Image.fromarray(inside.astype(np.uint8) * np.uint8(255))

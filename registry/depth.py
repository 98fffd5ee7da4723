"""Deep pictures: from 16 or 32 bits, or floating point, to 8 bits, by what type and tags say."""

import contextlib
import io
import math
import sys
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

from .formats import Beside

_MIN_IS_WHITE = 0
_HIGHEST, _FLOAT_HIGHEST = 281, 341
"""The tags MaxSampleValue and SMaxSampleValue of a TIFF."""
_FOREIGN = "B" if sys.byteorder == "little" else "L"
"""The byte order that is not this machine's, as Pillow calls it."""
_ROWS = 256
"""So many rows are worked on at once."""


def is_deep(image: Image.Image) -> bool:
    """Whether a picture has one channel of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def to_8_bits(image: Image.Image, beside: Beside, data: bytes) -> Image.Image:
    """Bring a photo, as decoded from `data`, to 8 bits; what is beyond white is clipped.

    White is the highest value of its type, or the one in its tags. Of colours, Pillow keeps
    the upper 8 bits; where tags say that those are empty, the others are decoded as well. Raises
    `ValueError` for values that are not a number.
    """
    if is_deep(image):
        values = _unsigned(image)
        white = _white_of_grey(image, values, beside)
        grey = _scaled(lambda rows: values[rows], values.shape, white)
        is_negative = _tag(image, TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == _MIN_IS_WHITE
        return grey.point(range(255, -1, -1)) if is_negative else grey
    white = _tagged_white(image, beside)
    if white is None or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image
    low = _lower_bits(image, data)
    if low is None:
        return image
    upper, lower = np.asarray(image), np.asarray(low)
    if image.format == "PNG" and int(upper.max()) * 256 > white:
        return image  # its significant bits are the upper ones, as they should be
    scaled = _scaled(
        lambda rows: upper[rows].astype(np.float32) * 256 + lower[rows], upper.shape, white
    )
    if image.mode == "RGBA":
        scaled.putalpha(image.getchannel("A"))
    return scaled


def _scaled(
    rows_of: Callable[[slice], np.ndarray], shape: tuple[int, ...], white: float
) -> Image.Image:
    found = np.empty(shape, np.uint8)
    for first in range(0, shape[0], _ROWS):
        rows = slice(first, first + _ROWS)
        values = rows_of(rows).astype(np.float64 if white > 1 << 24 else np.float32)
        if np.isnan(values).any():
            raise ValueError("some of its values are not a number")
        found[rows] = np.clip(values * (255 / white), 0, 255)
    mode = {3: "RGB", 4: "CMYK"}.get(shape[-1]) if len(shape) == 3 else None
    return (
        Image.frombytes(mode, (shape[1], shape[0]), found.tobytes())
        if mode
        else Image.fromarray(found)
    )


def _unsigned(image: Image.Image) -> np.ndarray:
    """The values of a picture of one channel; Pillow takes 32 bits without a sign for signed."""
    values = np.asarray(image)
    is_unsigned = _tag(image, TiffImagePlugin.SAMPLEFORMAT, 1) == 1
    has_32_bits = _tag(image, TiffImagePlugin.BITSPERSAMPLE) == 32
    return values.view(np.uint32) if image.mode == "I" and is_unsigned and has_32_bits else values


def _white_of_grey(image: Image.Image, values: np.ndarray, beside: Beside) -> float:
    highest = float(values.max())
    if image.mode == "F":
        return _white_of_floats(image, values, highest)
    tagged = _tagged_white(image, beside)
    if tagged is not None and (image.format != "PNG" or highest <= tagged):
        return float(tagged)
    if image.mode == "I" and image.format == "TIFF":
        return _white_of_integers(image, values, highest)
    return 65535.0


def _white_of_floats(image: Image.Image, values: np.ndarray, highest: float) -> float:
    tagged = _tag(image, _FLOAT_HIGHEST, 0) or _tag(image, _HIGHEST, 0)
    if tagged in (1, 255, 65535):
        return float(tagged)
    if np.count_nonzero(values > 1) <= values.size / 2:  # highlights, if any
        return 1.0
    return 255.0 if highest <= 255 else 65535.0


def _white_of_integers(image: Image.Image, values: np.ndarray, highest: float) -> float:
    if _tag(image, TiffImagePlugin.BITSPERSAMPLE) == 16:
        return 32767.0  # with a sign
    if highest <= 65535:  # programs that count in fewer bits store them in 32
        return 255.0 if highest <= 255 else 65535.0
    return 4294967295.0 if values.dtype == np.uint32 else 2147483647.0


def _tagged_white(image: Image.Image, beside: Beside) -> int | None:
    """The highest value by the tags, if it is below that of 16 bits."""
    bits = beside.significant_bits or 0
    if image.format == "TIFF" and _has_9_to_16_bits(image):
        used = _tag(image, _HIGHEST, 0)
        bits = int(used).bit_length() if 0 < used < 65536 else 0
        if 8 < (own := int(_tag(image, TiffImagePlugin.BITSPERSAMPLE, 0))) < 16:
            bits = min(bits or own, own)
    return (1 << bits) - 1 if 8 < bits < 16 else None


def _has_9_to_16_bits(image: Image.Image) -> bool:
    return 8 < _tag(image, TiffImagePlugin.BITSPERSAMPLE, 0) <= 16


def _tag(image: Image.Image, tag: int, default: float = math.nan) -> float:
    """The (first) number of a TIFF tag."""
    tags = getattr(image, "tag_v2", {})
    value = tags.get(tag, default)
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, (int, float)) else default


def _lower_bits(image: Image.Image, data: bytes) -> Image.Image | None:
    """The lower 8 of 16 bits: Pillow takes the upper ones of the other byte order."""
    assert image.format is not None
    again = Image.open(io.BytesIO(data), formats=[image.format])
    tiles = list(again.tile)
    for i, tile in enumerate(tiles):
        raw, *rest = (tile.args,) if isinstance(tile.args, str) else tile.args or ("",)
        if raw[-4:-1] != ";16":
            return None
        swapped = raw[:-1] + {"L": "B", "B": "L", "N": _FOREIGN}[raw[-1]]
        tiles[i] = tile._replace(args=swapped if not rest else (swapped, *rest))
    again.tile = tiles
    again.load()
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(again, in_place=True)
    return again if again.size == image.size and again.mode == image.mode else None

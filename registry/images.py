"""Reading photos and masks that may be broken or hostile.

A photo is accepted only after its header has named an allowed format and a size under the cap,
and every pixel has been decoded.
"""

import contextlib
import io
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, JpegImagePlugin, UnidentifiedImageError

from . import formats
from .bands import open_large_png, png_size, reduced_png
from .colour import conversion_of, to_srgb
from .depth import to_8_bits
from .errors import InvalidImage
from .files import open_given
from .formats import Beside
from .masks import to_mask

SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".avif",
        ".heic",
        ".heif",
    ]
)
READING = 2
"""Counts changes of how pixels are made from bytes, for whatever is kept of photos as read."""
MAX_PIXELS = 89_478_485
"""Pillow's own limit, at which it only warns; so many are decoded at once, by all threads together.

A larger JPEG or PNG is reduced while it is decoded.
"""
MAX_LARGE_PIXELS = 1 << 28
"""Phones make photos of 200 million pixels."""
MAX_FILE_BYTES = 256 << 20
_PREVIEW_FORMATS = ("PNG", "JPEG", "WEBP")
SMALL = 512
"""Below this many pixels on the shorter side a photo deserves a warning: most base models draw
at 512 or more."""
BLURRED = 0.5
"""Blur effect above which a photo deserves a warning. Sharp photos lie at 0.13-0.30; a Gaussian
blur of 2 pixels, at 512, moves the same photos to 0.47-0.69."""
DARK = 64
"""A photo deserves a warning if all but a hundredth of it is darker, in 255."""
NEAR = 8
"""Perceptual hashes (64 bits) that differ in at most this many are near-duplicates. Resizing and
recompressing move a hash by 0-4, cropping by 2-5 % by up to 16; different shots of one subject in
one place lie 10 and more apart."""

_THUMBNAIL = 512
_SCAN = b"\xff\xda"
_MAX_PIXELS_A_BYTE = 256
"""Of a JPEG: no block of 64 pixels takes less than 2 bits."""
_MAX_COEFFICIENT_BYTES = 1 << 30
"""Of a progressive JPEG, all of which are held while it is decoded."""
_MAX_SCANS = 100
"""Of a large progressive JPEG, which is gone through as often; there are 10 as a rule."""


@dataclass(frozen=True, slots=True)
class Inspected:
    """What a photo turned out to be. Width and height are as seen, after EXIF rotation."""

    format: str
    width: int
    height: int
    frames: int
    phash: str
    blur: float
    """Blur effect, 0 (sharp) to 1, of the photo at 512 pixels."""
    brightest: int
    """What a hundredth of it is brighter than, in 255."""
    alpha: bytes | None
    """The subject mask from the alpha channel, as a grey PNG, if any of it is transparent."""
    colour: str | None
    """What is doubtful about its colours."""


@contextlib.contextmanager
def strict_decoding() -> Iterator[None]:
    """Make Pillow raise where it would only warn of a decompression bomb.

    Changes the process's warning filters: enter it once around a batch, not once per thread.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
        yield


def inspect(data: bytes, name: str) -> Inspected:
    """Decode a whole photo and describe it.

    Raises `InvalidImage`, naming `name`, for a format that is not allowed, a size above
    `MAX_PIXELS`, damaged data or a fully transparent picture.
    """
    import imagehash  # loads SciPy, which commands that read no photo need not wait for

    with _decoded(data, name) as photo:
        conversion, doubt = conversion_of(photo.image, photo.beside)
        image = to_8_bits(photo.image, photo.beside, data)
        thumbnail = image.convert("L") if conversion is None else _opaque(image)
        thumbnail.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX, reducing_gap=None)
        if conversion is not None:
            thumbnail = to_srgb(thumbnail, conversion).convert("L")
        grey = np.asarray(thumbnail, dtype=np.float32)
        return Inspected(
            format=photo.image.format or "",
            width=photo.width,
            height=photo.height,
            frames=photo.frames,
            phash=str(imagehash.phash(thumbnail)),
            blur=blur_effect(grey),
            brightest=int(np.percentile(grey, 99)),
            alpha=_alpha_mask(image, name),
            colour=doubt,
        )


def read_photo(data: bytes, name: str = "the photo", *, at_least: int | None = None) -> Image.Image:
    """Decode a photo as RGB in sRGB, upright; what is transparent becomes white.

    It has the size of `size_as_read`; with `at_least`, less, as long as its shorter side keeps so
    many pixels. Raises `InvalidImage` as `inspect` does.
    """
    with _decoded(data, name, at_least) as photo:
        conversion, _ = conversion_of(photo.image, photo.beside)
        image = _opaque(to_8_bits(photo.image, photo.beside, data))
        if at_least and (factor := min(image.size) // at_least) > 1:
            image = image.reduce(factor)
        return to_srgb(image, conversion)


def read_mask(data: bytes, name: str, size: tuple[int, int]) -> bytes:
    """Turn a mask file into a grey PNG of `size` (width, height); white is subject.

    A mask with transparency counts by its alpha channel. Raises `InvalidImage` if it is empty, has
    labels, or its proportions are not those of the photo.
    """
    with _decoded(data, name) as file:
        if abs(file.width * size[1] - file.height * size[0]) > max(file.width, file.height, *size):
            raise InvalidImage(
                f"the mask {name} is {file.width}x{file.height}, its photo {size[0]}x{size[1]}"
            )
        return stored_mask(to_mask(file.image, file.beside, data, name), size)


def stored_mask(mask: Image.Image, size: tuple[int, int]) -> bytes:
    """A grey mask as a PNG of `size` (width, height), as `read_mask` makes them."""
    if mask.size != size:
        mask = mask.resize(size, Image.Resampling.BILINEAR)
    return _png(mask)


def open_stored_mask(data: bytes) -> Image.Image:
    """Decode a mask that `read_mask` or `inspect` made."""
    with _decoded(data, "the mask") as mask:
        return mask.image


def is_stored_mask(data: bytes, size: tuple[int, int]) -> bool:
    """Whether `data` is a mask as `read_mask` makes them, for a photo of `size`."""
    try:
        mask = open_stored_mask(data)
    except InvalidImage:
        return False
    looks_right = (mask.format, mask.mode, mask.size) == ("PNG", "L", size)
    return looks_right and mask.getextrema() != (0, 0)


def size_as_read(width: int, height: int) -> tuple[int, int]:
    """The size at which a photo of this size is read, and masked: halved until it is allowed."""
    factor = _factor_as_read(width, height)
    return -(-width // factor), -(-height // factor)


def _factor_as_read(width: int, height: int) -> int:
    factor = 1
    while -(-width // factor) * -(-height // factor) > MAX_PIXELS:
        factor *= 2
    return factor


def blur_effect(grey: np.ndarray, kernel: int = 11) -> float:
    """No-reference blur metric: how little a picture changes when it is blurred once more.

    `grey` is (height, width); the result lies in 0 (sharp) to 1. Crete et al., "The blur effect:
    perception and estimation with a new no-reference perceptual blur metric", 2007: the share of
    the variation between neighbours that a box blur along one axis keeps, in the worse axis.
    """
    if min(grey.shape) < kernel:
        return 0.0
    return max(_kept_variation(grey, kernel), _kept_variation(grey.T, kernel))


def _kept_variation(grey: np.ndarray, kernel: int) -> float:
    padded = np.pad(grey, ((kernel // 2 + 1, kernel // 2), (0, 0)), mode="edge")
    total = np.cumsum(padded, axis=0, dtype=np.float32)
    blurred = (total[kernel:] - total[:-kernel]) / kernel
    before, after = (np.abs(np.diff(values, axis=0)) for values in (grey, blurred))
    variation = float(before.sum())
    return float(np.minimum(before, after).sum()) / variation if variation > 1e-6 else 0.0


def hash_bits(phashes: Sequence[str]) -> np.ndarray:
    """Perceptual hashes as numbers (len(phashes),), for `distances`."""
    return np.array([int(phash, 16) for phash in phashes], dtype=np.uint64)


def distances(phash: str, others: np.ndarray) -> np.ndarray:
    """The Hamming distances of a perceptual hash to others from `hash_bits`, in bits of 64."""
    return np.bitwise_count(others ^ np.uint64(int(phash, 16)))


def read_file(path: Path) -> bytes:
    """The bytes of a photo, mask or caption file; raises `InvalidImage` if it cannot be read."""
    try:
        with open_given(path) as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(MAX_FILE_BYTES + 1) if size <= MAX_FILE_BYTES else b""
        if max(size, len(data)) > MAX_FILE_BYTES:
            raise InvalidImage(f"{path} has {size:,} bytes; {MAX_FILE_BYTES:,} is the limit")
        return data
    except OSError as error:
        raise InvalidImage(f"cannot read {path}: {error.strerror}") from error


def check_preview(data: bytes, name: str) -> None:
    """Raise `InvalidImage` unless bytes begin as a picture of a common format and size does."""
    try:
        with Image.open(io.BytesIO(data), "r", _PREVIEW_FORMATS) as opened:
            width, height = opened.size
    except Exception as error:  # noqa: BLE001 (decoders raise anything)
        raise InvalidImage(f"{name} is no picture: {error}") from None
    if width * height > MAX_PIXELS:
        raise _too_large(name, MAX_PIXELS)


# --- decoding -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Decoded:
    """A photo, upright, in the mode of its file; its size as seen, before it was reduced."""

    image: Image.Image
    width: int
    height: int
    frames: int
    beside: Beside


@contextlib.contextmanager
def _decoded(data: bytes, name: str, at_least: int | None = None) -> Iterator[_Decoded]:
    """Decode a photo or mask; waits until other threads have left it the memory.

    A JPEG is reduced while it is decoded where it is large, or its shorter side keeps `at_least`
    pixels; so is a large PNG. Whatever is raised, in the block too, becomes an `InvalidImage` about
    `name`.
    """
    with _naming(name):
        data, beside = formats.split(data)
        image = _opened(data, name)
        size = width, height = image.size
        factor = _draft_factor(image, at_least)
        if factor > 1:
            image.draft(None, (width // factor, height // factor))
        allowed = size_as_read(*image.size)
        with _ROOM.taken(allowed[0] * allowed[1]):
            if image.size == allowed:
                image.load()
            else:
                image = reduced_png(image, data, _factor_as_read(*image.size))
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            stored = image.size
            with contextlib.suppress(Exception):  # broken EXIF turns nothing
                ImageOps.exif_transpose(image, in_place=True)
            if image.size != stored:
                size = height, width
            yield _Decoded(image, *size, frames, beside)


def _opened(data: bytes, name: str) -> Image.Image:
    """The header of a photo, of a kind and size that is read."""
    if data.startswith(formats.JPEG_MAGIC):
        return _opened_jpeg(data, name)
    width, height = png_size(data)
    if MAX_PIXELS < width * height <= MAX_LARGE_PIXELS:
        return open_large_png(data, name)
    try:
        image = Image.open(io.BytesIO(data), formats=formats.available_formats())
    except UnidentifiedImageError:
        raise formats.unidentified(data, name) from None
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(name, MAX_PIXELS)
    formats.check_kind(image, name)
    return image


def _opened_jpeg(data: bytes, name: str) -> Image.Image:
    """Not by `Image.open`, which refuses those that have to be reduced."""
    try:
        image = JpegImagePlugin.jpeg_factory(io.BytesIO(data))
    except SyntaxError as error:
        if "cannot handle" in str(error):
            what = str(error).replace("cannot handle", "a JPEG with")
            raise formats.unreadable(name, what) from None
        raise
    pixels = image.width * image.height
    if pixels > MAX_LARGE_PIXELS:
        raise _too_large(name, MAX_LARGE_PIXELS)
    if pixels > MAX_PIXELS and image.info.get("progressive"):
        is_long = data.count(_SCAN) > _MAX_SCANS
        if is_long or _coefficient_bytes(image) > _MAX_COEFFICIENT_BYTES:
            raise InvalidImage(
                f"{name} is too large for a progressive JPEG: save it smaller, or as a plain one"
            )
    if pixels > MAX_PIXELS and len(data) < pixels / _MAX_PIXELS_A_BYTE:  # libjpeg makes up the rest
        raise InvalidImage(f"{name} is damaged: it has too few bytes for so many pixels")
    return image


def _coefficient_bytes(image: JpegImagePlugin.JpegImageFile) -> int:
    """What libjpeg holds of a progressive JPEG: 2 bytes for each pixel of each channel."""
    across, down = (max(layer[i] for layer in image.layer) for i in (1, 2))
    shares = sum(layer[1] * layer[2] for layer in image.layer) / (across * down)
    return int(2 * image.width * image.height * shares)


def _too_large(name: str, limit: int) -> InvalidImage:
    other = "" if limit == MAX_LARGE_PIXELS else ", or as a JPEG or PNG"
    return InvalidImage(
        f"{name} has more than {limit:,} pixels, the limit of its kind: save it smaller{other}"
    )


def _draft_factor(image: Image.Image, at_least: int | None) -> int:
    """By how much a JPEG is reduced while it is decoded: 1, 2, 4 or 8."""
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return 1
    factor = _factor_as_read(*image.size)
    while at_least and factor < 8 and min(image.size) >= 2 * factor * at_least:
        factor *= 2
    return factor


class _Room:
    """How many pixels all threads together decode at once: `MAX_PIXELS`."""

    def __init__(self) -> None:
        self._taken = 0
        self._left = threading.Condition()

    @contextlib.contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Wait for room for so many."""
        with self._left:
            self._left.wait_for(lambda: not self._taken or self._taken + pixels <= MAX_PIXELS)
            self._taken += pixels
        try:
            yield
        finally:
            with self._left:
                self._taken -= pixels
                self._left.notify_all()


_ROOM = _Room()


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises into `InvalidImage` about `name`."""
    try:
        yield
    except InvalidImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(name, MAX_PIXELS) from None
    except Exception as error:
        raise InvalidImage(f"{name} is damaged: {error}") from error


def _opaque(image: Image.Image) -> Image.Image:
    """An 8-bit picture on white: in grey, RGB or CMYK."""
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")


def _alpha_mask(image: Image.Image, name: str) -> bytes | None:
    if not image.has_transparency_data:
        return None
    alpha = image.convert("RGBA").getchannel("A")
    low, high = alpha.getextrema()
    if high == 0:
        raise InvalidImage(f"{name} is fully transparent")
    return None if low == 255 else _png(alpha)


def _png(mask: Image.Image) -> bytes:
    buffer = io.BytesIO()
    mask.save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()

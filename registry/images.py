"""Reading photos and masks that may be broken or hostile.

A photo is accepted only after its header has named an allowed format and a size under the cap,
and every pixel has been decoded.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import InvalidImage

with contextlib.suppress(ImportError):
    import pillow_heif  # pyright: ignore[reportMissingImports]

    pillow_heif.register_heif_opener()

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF", "AVIF", "HEIF")
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
MAX_PIXELS = 89_478_485
"""Pillow's own limit, at which it only warns."""
MAX_FILE_BYTES = 256 << 20
SMALL = 512
"""Below this many pixels on the shorter side a photo deserves a warning: most base models draw
at 512 or more."""
BLURRED = 0.5
"""Blur effect above which a photo deserves a warning. Sharp photos lie at 0.13-0.30; a Gaussian
blur of 2 pixels, at 512, moves the same photos to 0.47-0.69."""
NEAR = 8
"""Perceptual hashes (64 bits) that differ in at most this many are near-duplicates. Resizing and
recompressing move a hash by 0-4, cropping by 2-5 % by up to 16; different shots of one subject in
one place lie 10 and more apart."""

_THUMBNAIL = 512


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
    alpha: bytes | None
    """The subject mask from the alpha channel, as a grey PNG, if any of it is transparent."""


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

    with _naming(name):
        image = _decode(data, name)
        upright = ImageOps.exif_transpose(image)
        thumbnail = to_grey(upright)
        thumbnail.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX, reducing_gap=None)
        return Inspected(
            format=image.format or "",
            width=upright.width,
            height=upright.height,
            frames=1 if image.format == "MPO" else getattr(image, "n_frames", 1),
            phash=str(imagehash.phash(thumbnail)),
            blur=blur_effect(np.asarray(thumbnail, dtype=np.float32)),
            alpha=_alpha_mask(upright, name),
        )


def read_photo(data: bytes, name: str = "the photo") -> Image.Image:
    """Decode a photo as RGB, upright; what is transparent becomes white.

    Raises `InvalidImage` as `inspect` does.
    """
    with _naming(name):
        upright = _scaled_to_8_bits(ImageOps.exif_transpose(_decode(data, name)))
        if not upright.has_transparency_data:
            return upright.convert("RGB")
        rgba = upright.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")


def read_mask(data: bytes, name: str, size: tuple[int, int]) -> bytes:
    """Turn a mask file into a grey PNG of `size` (width, height); white is subject.

    A mask with transparency counts by its alpha channel. Raises `InvalidImage` if it is empty or
    its proportions are not those of the photo.
    """
    with _naming(name):
        image = _scaled_to_8_bits(ImageOps.exif_transpose(_decode(data, name)))
        mask = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        if mask is None or mask.getextrema() == (255, 255):
            mask = to_grey(image)
        if abs(mask.width * size[1] - mask.height * size[0]) > max(*mask.size, *size):
            raise InvalidImage(
                f"the mask {name} is {mask.width}x{mask.height}, its photo {size[0]}x{size[1]}"
            )
        if mask.getextrema() == (0, 0):
            raise InvalidImage(f"the mask {name} is black all over: white marks the subject")
        if mask.size != size:
            mask = mask.resize(size, Image.Resampling.BILINEAR)
        return _png(mask)


def open_stored_mask(data: bytes) -> Image.Image:
    """Decode a mask that `read_mask` or `inspect` made."""
    with _naming("the mask"):
        return _decode(data, "the mask")


def is_stored_mask(data: bytes, size: tuple[int, int]) -> bool:
    """Whether `data` is a mask as `read_mask` makes them, for a photo of `size`."""
    try:
        mask = open_stored_mask(data)
    except InvalidImage:
        return False
    looks_right = (mask.format, mask.mode, mask.size) == ("PNG", "L", size)
    return looks_right and mask.getextrema() != (0, 0)


def to_grey(image: Image.Image) -> Image.Image:
    """The picture in 8-bit grey, from any mode."""
    return _scaled_to_8_bits(image).convert("L")


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
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise InvalidImage(f"{path} has {size:,} bytes; {MAX_FILE_BYTES:,} is the limit")
        return path.read_bytes()
    except OSError as error:
        raise InvalidImage(f"cannot read {path}: {error.strerror}") from error


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises into `InvalidImage` about `name`."""
    try:
        yield
    except InvalidImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InvalidImage(f"{name} has more than {MAX_PIXELS:,} pixels, the limit") from None
    except Exception as error:
        raise InvalidImage(f"{name} is damaged: {error}") from error


def _decode(data: bytes, name: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=_available_formats())
    except UnidentifiedImageError:
        extras = [extra for extra in ("AVIF", "HEIF") if extra in _available_formats()]
        known = ", ".join(["JPEG", "PNG", "WebP", "BMP", "TIFF", *extras])
        raise InvalidImage(f"{name} is not a photo in a known format ({known})") from None
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError
    image.load()
    return image


def _available_formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _scaled_to_8_bits(image: Image.Image) -> Image.Image:
    """Bring deep grey (16-bit PNG, TIFF) to 8 bits by scale, where Pillow would clip."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image, dtype=np.float32)
    if not np.isfinite(values).all():
        raise ValueError("its values are not finite")
    highest = float(values.max())
    scale = 255.0 if image.mode == "F" and highest <= 1 else 1.0 if highest <= 255 else 1 / 257
    return Image.fromarray(np.clip(values * scale, 0, 255).astype(np.uint8))


def _alpha_mask(image: Image.Image, name: str) -> bytes | None:
    image = _scaled_to_8_bits(image)
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

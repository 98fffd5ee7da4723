"""Colours of photos: from whatever space a photo is in to sRGB, by littleCMS through Pillow."""

import struct
from functools import cache

import numpy as np
from PIL import ExifTags, Image, ImageCms

from .formats import MAX_PROFILE_BYTES, Beside

ALIKE = 2
"""A profile that moves no colour by more than so many of 255 is taken for sRGB's own."""
UNUSABLE = "its colour profile cannot be used; its colours are taken for sRGB"
HDR = "is HDR, which is not converted; it may look dull"

_D65 = (0.3127, 0.3290)
_SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
_ADOBE_RGB = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
_PRIMARIES = {
    4: ((0.67, 0.33), (0.21, 0.71), (0.14, 0.08)),
    5: ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06)),
    6: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),
    7: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    22: ((0.630, 0.340), (0.295, 0.605), (0.155, 0.077)),
}
"""By their number in ITU-T H.273; those of sRGB and unknown ones are left out."""
_WHITES = {4: (0.310, 0.316), 11: (0.314, 0.351)}
_GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0, 17: 2.6}
"""By the number of the transfer function; the others are close to sRGB's, or HDR."""
_HDR_TRANSFERS = (16, 18)
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
_D50 = np.array([0.9642, 1.0, 0.8249])

Primaries = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]


def conversion_of(
    image: Image.Image, beside: Beside
) -> tuple[ImageCms.ImageCmsTransform | None, str | None]:
    """How a photo becomes sRGB, None if it is sRGB, and what is doubtful about its colours."""
    profile, doubt = _profile_of(image, beside)
    if profile is None:
        return None, doubt
    try:
        found = _transform(image.mode, profile)
    except (OSError, ValueError, KeyError, ImageCms.PyCMSError):
        return None, UNUSABLE
    return (found if _changes_colours(found) else None), doubt


def to_srgb(image: Image.Image, conversion: ImageCms.ImageCmsTransform | None) -> Image.Image:
    """A picture (L, RGB or CMYK) as RGB in sRGB; without a conversion by Pillow's own formula."""
    if conversion is None:
        return image.convert("RGB")
    return conversion.apply(image.convert(conversion.input_mode))


def _transform(mode: str, profile: bytes) -> ImageCms.ImageCmsTransform:
    """Raises `ValueError` for a profile of other colours, and what Pillow raises."""
    if len(profile) > MAX_PROFILE_BYTES:
        raise ValueError("it is too large")
    source = ImageCms.core.profile_frombytes(profile)
    takes = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}[source.xcolor_space.strip()]
    is_grey = mode in ("1", "L", "LA", "La", "I", "F") or mode.startswith("I;16")
    if (mode == "CMYK") != (takes == "CMYK") or (takes == "L" and not is_grey):
        raise ValueError("it is not for these colours")
    return ImageCms.ImageCmsTransform(ImageCms.ImageCmsProfile(source), _srgb(), takes, "RGB")


def _changes_colours(transform: ImageCms.ImageCmsTransform) -> bool:
    if transform.input_mode == "CMYK":
        return True
    probe = _probe(transform.input_mode)
    after = np.asarray(transform.apply(probe), np.int16)
    return int(np.abs(after - np.asarray(probe.convert("RGB"), np.int16)).max()) > ALIKE


@cache
def _probe(mode: str) -> Image.Image:
    """Colours from all over the cube, or all greys."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    steps = np.linspace(0, 255, 16).round().astype(np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), -1).reshape(64, 64, 3))


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


# --- what space a photo is in ---------------------------------------------------------------------


def _profile_of(image: Image.Image, beside: Beside) -> tuple[bytes | None, str | None]:
    """The profile of a photo's colours, None for sRGB; empty or broken ones too."""
    if beside.cicp is not None and (image.format == "PNG" or "icc_profile" not in image.info):
        return _profile_of_numbers(*beside.cicp)
    if beside.profile is not None:
        return beside.profile, None
    if "icc_profile" in image.info:
        return image.info["icc_profile"] or b"", None  # None if parts of it are missing
    if image.format == "PNG":
        return (None if "srgb" in image.info else _profile_of_chunks(image)), None
    if _is_adobe_rgb(image):
        return matrix_profile(_ADOBE_RGB, _D65, 563 / 256), None
    return None, None


def _profile_of_numbers(primaries: int, transfer: int) -> tuple[bytes | None, str | None]:
    doubt = HDR if transfer in _HDR_TRANSFERS else None
    gamma = _GAMMAS.get(transfer)
    if primaries not in _PRIMARIES and gamma is None:
        return None, doubt
    white = _WHITES.get(primaries, _D65)
    return matrix_profile(_PRIMARIES.get(primaries, _SRGB), white, gamma), doubt


def _profile_of_chunks(image: Image.Image) -> bytes | None:
    """What gAMA and cHRM of a PNG say; a gamma of 1/2.2 is written where sRGB is meant."""
    exponent, primaries = image.info.get("gamma"), image.info.get("chromaticity")
    gamma = None
    if exponent is not None and abs(exponent - 1 / 2.2) > 0.01 and 0.1 <= exponent <= 2:
        gamma = 1 / exponent
    if primaries is None or np.abs(np.subtract(primaries, (*_D65, *sum(_SRGB, ())))).max() < 0.005:
        return None if gamma is None else matrix_profile(_SRGB, _D65, gamma)
    white, *rest = [(primaries[i], primaries[i + 1]) for i in range(0, 8, 2)]
    return matrix_profile((rest[0], rest[1], rest[2]), white, gamma)


def _is_adobe_rgb(image: Image.Image) -> bool:
    """Cameras that write Adobe RGB say so in the EXIF alone: interoperability index R03."""
    try:
        exif = image.getexif()
        index = exif.get_ifd(ExifTags.IFD.Exif) and exif.get_ifd(ExifTags.IFD.Interop).get(1)
    except Exception:  # noqa: BLE001 (whatever broken EXIF lets Pillow raise)
        return False
    return str(index).rstrip("\0") == "R03"


def matrix_profile(
    primaries: Primaries, white: tuple[float, float], gamma: float | None
) -> bytes | None:
    """An ICC profile of an RGB space; `gamma` None stands for sRGB's curve.

    None if the chromaticities are those of no space.
    """
    columns = np.array([_xyz(*each) for each in primaries]).T  # [3, 3]
    target = _xyz(*white)
    try:
        columns = columns * np.linalg.solve(columns, target)
        cones = _BRADFORD @ _D50 / (_BRADFORD @ target)
        columns = np.linalg.solve(_BRADFORD, cones[:, None] * (_BRADFORD @ columns))
    except np.linalg.LinAlgError:
        return None
    if not np.isfinite(columns).all() or np.abs(columns).max() > 4:
        return None
    if gamma is None:
        parameters = (3, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    else:
        parameters = (0, gamma)
    curve = b"para" + struct.pack(">IHH", 0, parameters[0], 0) + _fixed(parameters[1:])
    tags = {b"wtpt": b"XYZ \0\0\0\0" + _fixed(_D50)}
    for letter, column in zip((b"r", b"g", b"b"), columns.T, strict=True):
        tags |= {letter + b"XYZ": b"XYZ \0\0\0\0" + _fixed(column), letter + b"TRC": curve}
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += struct.pack(">4sII", name, start + len(body), len(content))
        body += content
    header = struct.pack(
        ">I4sI4s4s4s12s4s28s12s48s",
        start + len(body),
        b"",
        0x04300000,
        b"mntr",
        b"RGB ",
        b"XYZ ",
        struct.pack(">6H", 2026, 1, 1, 0, 0, 0),
        b"acsp",
        b"",
        _fixed(_D50),
        b"",
    )
    return header + table + body


def _xyz(x: float, y: float) -> np.ndarray:
    """Of a chromaticity, at luminance 1."""
    return np.array([x, y, 1 - x - y]) / (y or np.nan)


def _fixed(values: "np.ndarray | tuple[float, ...]") -> bytes:
    """Numbers as an ICC profile has them."""
    return struct.pack(f">{len(values)}i", *(round(float(value) * 65536) for value in values))

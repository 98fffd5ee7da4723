"""The texts in picture files: what made a picture, as we say it, and as A1111's web UI does.

A PNG has text chunks. JPEG and WebP have EXIF: A1111's text is the user comment, in UTF-16; ours is
the description, as `conceptry:` and JSON in ASCII.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from ..registry.errors import InvalidInput
from ..registry.images import strict_decoding

FileFormat = Literal["png", "webp", "jpg"]
FILE_FORMATS: tuple[FileFormat, ...] = get_args(FileFormat)
METADATA_KEY = "conceptry"
PARAMETERS_KEY = "parameters"
JPEG_QUALITY = 95
_PILLOW_NAMES: Mapping[str, FileFormat] = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
_DESCRIPTION, _EXIF_IFD, _USER_COMMENT = 0x010E, 0x8769, 0x9286
_UNICODE, _ASCII = b"UNICODE\0", b"ASCII\0\0\0"
_MAX_EXIF = 1 << 20
_MAX_JPEG_EXIF = 60_000
"""Of 65,535 bytes that a segment of a JPEG holds."""


@dataclass(frozen=True, slots=True)
class PictureTexts:
    """The texts of a file, ours and A1111's, and the format that the file has."""

    file_format: FileFormat
    ours: str | None = None
    parameters: str | None = None


def encode_picture(
    image: Image.Image,
    metadata: Mapping[str, object],
    *,
    file_format: FileFormat = "png",
    parameters: str | None = None,
) -> bytes:
    """A picture as a file's bytes. PNG and WebP keep every pixel, JPEG nearly.

    Raises `InvalidInput` if a JPEG has no room for the texts.
    """
    encoded = io.BytesIO()
    if file_format == "png":
        text = PngInfo()
        text.add_itxt(METADATA_KEY, json.dumps(metadata, ensure_ascii=False))
        if parameters is not None:
            text.add_text(PARAMETERS_KEY, parameters)
        image.save(encoded, "png", pnginfo=text)
        return encoded.getvalue()
    exif = Image.Exif()
    exif[_DESCRIPTION] = f"{METADATA_KEY}:{json.dumps(metadata)}"
    if parameters is not None:
        exif[_EXIF_IFD] = {_USER_COMMENT: _UNICODE + parameters.encode("utf-16-be")}
    data = exif.tobytes()
    if file_format == "webp":
        image.convert("RGB").save(encoded, "webp", lossless=True, exif=data)
        return encoded.getvalue()
    if len(data) > _MAX_JPEG_EXIF:
        raise _too_long()
    image.convert("RGB").save(encoded, "jpeg", quality=JPEG_QUALITY, subsampling=0, exif=data)
    return encoded.getvalue()


def check_room(prompt: str, negative: str, file_format: FileFormat) -> None:
    """Raise `InvalidInput` if a JPEG has no room for a prompt, which its texts say twice."""
    text = prompt + negative
    length = len(json.dumps(text)) + 2 * len(text)
    if file_format == "jpg" and length > _MAX_JPEG_EXIF * 3 // 4:
        raise _too_long()


def _too_long() -> InvalidInput:
    return InvalidInput(
        "the prompt is too long for what a JPEG says of itself", hint="--format png, or webp"
    )


def texts_of(data: bytes) -> PictureTexts | None:
    """The texts in a file; None if it is none of these formats, or moves.

    Raises as decoders do, also for what has texts and lacks some of its pixels.
    """
    try:
        with strict_decoding(), Image.open(io.BytesIO(data), "r", list(_PILLOW_NAMES)) as image:
            file_format = _PILLOW_NAMES.get(image.format or "")
            if file_format is None or getattr(image, "n_frames", 1) != 1:
                return None
            image.load()
            if file_format == "png":
                texts: Mapping[str, str] = getattr(image, "text", {})
                return PictureTexts("png", texts.get(METADATA_KEY), texts.get(PARAMETERS_KEY))
            if len(image.info.get("exif", b"")) > _MAX_EXIF:
                return PictureTexts(file_format)
            exif = image.getexif()
            ours, comment = exif.get(_DESCRIPTION), exif.get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    except UnidentifiedImageError:
        return None
    return PictureTexts(
        file_format,
        ours.removeprefix(f"{METADATA_KEY}:")
        if isinstance(ours, str) and ours.startswith(f"{METADATA_KEY}:")
        else None,
        _comment(comment) if isinstance(comment, bytes) else None,
    )


def _comment(data: bytes) -> str:
    """An EXIF user comment: a code of 8 bytes, and text."""
    code, body = data[: len(_UNICODE)], data[len(_UNICODE) :]
    if code == _UNICODE:  # of either byte order: that in which high bytes are 0 more often
        is_little = body[1::2].count(0) > body[::2].count(0)
        return body.decode("utf-16-le" if is_little else "utf-16-be", "replace").lstrip("\ufeff")
    return (body if code == _ASCII else data).decode("utf-8", "replace").strip("\0")

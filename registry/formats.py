"""What the bytes of a file are: a format that is read, or something else that has a name."""

import contextlib
import io
import re
import struct
import zlib
from dataclasses import dataclass

from PIL import Image, TiffImagePlugin

from .bands import PNG_MAGIC
from .errors import InvalidImage

with contextlib.suppress(ImportError):
    import pillow_heif  # pyright: ignore[reportMissingImports]

    pillow_heif.register_heif_opener()

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF", "AVIF", "HEIF")
MAX_PROFILE_BYTES = 16 << 20
"""Of a colour profile; those of printers have some megabytes."""
JPEG_MAGIC = b"\xff\xd8\xff"

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_DNG_VERSION, _SUBFILE, _SUB_IFDS = 50706, 254, 330
_OTHER_KINDS = {
    rb"GIF8": "a GIF",
    rb"\xff\x0a|\0\0\0\x0cJXL ": "JPEG XL",
    rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51": "JPEG 2000",
    rb"%PDF": "a PDF",
    rb"%!PS|\xc5\xd0\xd3\xc6": "PostScript",
    rb"8BP[SB]": "a Photoshop file",
    rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)": "HEIC, which needs: pip install pillow-heif",
    rb"....ftypcrx|FUJIFILMCCD-RAW|II.{6}CR|IIRO|IIRS|IIU\0": "a camera's raw file",
    rb"....(ftyp|moov|mdat)|RIFF....AVI |\x1aE\xdf\xa3": "a film",
    rb"v/1\x01|#\?RADIANCE": "an HDR picture",
    rb"\s*(<\?xml[^>]*>)?\s*<svg": "SVG",
    rb"(?i)\s*<(!doctype )?html": "a web page",
    rb"version https://git-lfs": "only the pointer of Git LFS: git lfs pull",
    rb"PK\x03\x04": "a zip file",
}
_KEPT_CHUNKS = (b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"eXIf", b"acTL", b"fcTL", b"fdAT")
_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
_TURNING_TEXTS = (b"Raw profile type exif", b"XML:com.adobe.xmp")
"""Keywords of the texts in a PNG that may say how it is turned."""
_MAX_TEXT_BYTES = 1 << 20


def available_formats() -> list[str]:
    """Those of `FORMATS` that this Pillow reads."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


# --- what cannot be read --------------------------------------------------------------------------


def check_kind(image: Image.Image, name: str) -> None:
    """Refuse what Pillow opens and cannot read as a photo: raises `InvalidImage`."""
    if image.mode == "LAB":
        raise unreadable(name, f"a {image.format} in LAB colours")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        has_full_size = bool(tags.get(_SUBFILE, 0) & 1) and _SUB_IFDS in tags
        if _DNG_VERSION in tags or has_full_size:  # Pillow would read its preview
            raise InvalidImage(f"{_no_photo(name)}: it is a camera's raw file")


def unreadable(name: str, what: str) -> InvalidImage:
    """That a photo is of a kind that cannot be read."""
    return InvalidImage(f"{name} is {what}, a kind that cannot be read")


def unidentified(data: bytes, name: str) -> InvalidImage:
    """Why Pillow does not take a file for a photo."""
    if data.startswith(_TIFF_MAGIC):
        return _no_tiff(data, name)
    for pattern, kind in _OTHER_KINDS.items():
        if re.match(pattern, data[:1000], re.DOTALL):
            return InvalidImage(f"{_no_photo(name)}: it is {kind}")
    return InvalidImage(_no_photo(name))


def _no_photo(name: str) -> str:
    extras = [extra for extra in ("AVIF", "HEIF") if extra in available_formats()]
    known = ", ".join(["JPEG", "PNG", "WebP", "BMP", "TIFF", *extras])
    return f"{name} is not a photo in a known format ({known})"


def _no_tiff(data: bytes, name: str) -> InvalidImage:
    try:
        TiffImagePlugin.TiffImageFile(io.BytesIO(data))
    except Exception as error:  # noqa: BLE001 (whatever a broken directory lets Pillow raise)
        reason = str(error)
    else:
        return InvalidImage(_no_photo(name))
    with contextlib.suppress(Exception):
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if data[2:4] in b"+\0+" else 8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        compression = tags.get(TiffImagePlugin.COMPRESSION, 1)
        if compression not in TiffImagePlugin.COMPRESSION_INFO:
            return unreadable(name, f"a TIFF of compression {compression}")
        if reason in ("unknown pixel mode", "unknown data organization") or "samples" in reason:
            bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
            kind = max(tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,)))
            number = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}.get(kind, "")
            channels = tags.get(TiffImagePlugin.SAMPLESPERPIXEL, len(bits))
            return unreadable(
                name, f"a TIFF of {channels} x {max(bits)} {number} bits".replace("  ", " ")
            )
    return InvalidImage(f"{name} is damaged: {reason}")


# --- what stands beside the pixels ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Beside:
    """What a file says of its colours where Pillow does not."""

    profile: bytes | None = None
    """The colour profile of a PNG; empty if it cannot be unpacked."""
    cicp: tuple[int, int] | None = None
    """Primaries and transfer function, numbered as in ITU-T H.273."""
    significant_bits: int | None = None


def split(data: bytes) -> tuple[bytes, Beside]:
    """The bytes to decode, and what is better read without Pillow."""
    if data.startswith(PNG_MAGIC):
        return _split_png(data)
    place = data.find(b"colrnclx", 0, 1 << 16) if data[4:8] == b"ftyp" else -1
    if place < 0 or len(data) < place + 12:
        return data, Beside()
    return data, Beside(cicp=struct.unpack_from(">HH", data, place + 8))


def _split_png(data: bytes) -> tuple[bytes, Beside]:
    """A PNG without texts and profile, which may be large or unpack to what is.

    Pillow would refuse the whole file for them. Texts that say how it is turned stay.
    """
    view, kept, found, texts = (
        memoryview(data),
        list[memoryview](),
        dict[bytes, bytes](),
        set[bytes](),
    )
    place, end = 8, 0
    while place + 12 <= len(data) and end <= len(data):
        (length,), kind = struct.unpack_from(">I", data, place), data[place + 4 : place + 8]
        end = place + 12 + length
        content = view[place + 8 : min(end - 4, len(data))]
        is_kept = kind[0] < ord("a") or kind in _KEPT_CHUNKS
        if kind in _TEXT_CHUNKS:
            keyword = bytes(content[:80]).partition(b"\0")[0]
            is_kept = keyword in _TURNING_TEXTS and keyword not in texts
            is_kept = is_kept and _is_short(kind, content)
            texts.add(keyword)
        elif kind == b"iCCP" and kind not in found:
            found[kind] = _unpacked_profile(bytes(content))
        elif kind in (b"cICP", b"sBIT"):
            found.setdefault(kind, bytes(content[:4]))
        if is_kept or end > len(data):
            kept.append(view[place:end])
        place = end
        if kind == b"IEND":
            break
    else:
        kept.append(view[place:])  # it ends early
    cicp = found.get(b"cICP", b"")
    return b"".join([PNG_MAGIC, *kept]), Beside(
        profile=found.get(b"iCCP"),
        cicp=(cicp[0], cicp[1]) if len(cicp) == 4 else None,
        significant_bits=max(found[b"sBIT"], default=None) if b"sBIT" in found else None,
    )


def _is_short(kind: bytes, content: memoryview) -> bool:
    """Whether a text chunk has, unpacked, no more than Pillow takes."""
    if len(content) > _MAX_TEXT_BYTES:
        return False
    text = bytes(content).partition(b"\0")[2]
    if kind == b"tEXt" or (kind == b"iTXt" and text[:1] != b"\1"):
        return True
    packed = text[1:] if kind == b"zTXt" else b"\0".join(text[2:].split(b"\0")[2:])
    return _unpacked(packed, _MAX_TEXT_BYTES) is not None


def _unpacked_profile(content: bytes) -> bytes:
    _, _, rest = content.partition(b"\0")
    return (rest[:1] == b"\0" and _unpacked(rest[1:], MAX_PROFILE_BYTES)) or b""


def _unpacked(packed: bytes, limit: int) -> bytes | None:
    """None if it is damaged, or has more than `limit` bytes."""
    unpacker = zlib.decompressobj()
    try:
        found = unpacker.decompress(packed, limit)
    except zlib.error:
        return None
    return found if unpacker.eof else None

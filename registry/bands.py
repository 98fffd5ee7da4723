"""PNGs with more pixels than are decoded at once: reduced band by band while they are unpacked.

Pillow decodes whole files only. So each band of rows becomes a small PNG of its own, whose first
row is the last one of the band above, since rows may be stored as differences from the one above.
"""

import io
import struct
import zlib
from collections.abc import Iterator

from PIL import Image, PngImagePlugin

from .errors import InvalidImage

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
MAX_SIDE = 1 << 16

_BAND = 8 << 20
"""Pixels decoded at once, if a row has no more."""
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""By colour type."""


def png_size(data: bytes) -> tuple[int, int]:
    """Width and height in a PNG's header; (0, 0) if it is none."""
    is_png = data.startswith(PNG_MAGIC) and data[12:16] == b"IHDR" and len(data) >= 29
    return struct.unpack_from(">II", data, 16) if is_png else (0, 0)


def open_large_png(data: bytes, name: str) -> Image.Image:
    """Its header alone; raises `InvalidImage` if `reduced_png` could not decode it."""
    depth, colours, _, _, interlaced = data[24:29]
    why = None
    if max(png_size(data)) > MAX_SIDE:
        why = f"longer than {MAX_SIDE:,} pixels"
    elif interlaced:
        why = "interlaced"
    elif depth != 8 or colours not in _CHANNELS:
        why = f"of {depth} bits a channel"
    if why:
        raise InvalidImage(
            f"{name} is too large for a PNG that is {why}: save it smaller, or as a plain PNG of "
            "8 bits, or a JPEG"
        )
    return PngImagePlugin.PngImageFile(io.BytesIO(data))


def reduced_png(image: Image.Image, data: bytes, factor: int) -> Image.Image:
    """The pixels of a PNG that `open_large_png` opened, each the mean of `factor` by `factor`."""
    width, height = image.size
    stride = width * _CHANNELS[data[25]]
    rows_a_band = max(1, _BAND // width // factor) * factor
    unpacked = _Unpacked(data)
    above, whole = bytes(stride), None
    for top in range(0, height, rows_a_band):
        rows = min(rows_a_band, height - top)
        packed = unpacked.take(rows * (stride + 1))
        decoded = _decoded(data, width, rows + 1, b"\0" + above + packed)
        above = decoded.crop((0, rows, width, rows + 1)).tobytes()
        band = decoded.crop((0, 1, width, rows + 1))
        if "transparency" in decoded.info:
            band = band.convert("RGBA")
        elif band.mode == "P":
            band = band.convert("RGB")
        band = band.reduce(factor)
        if whole is None:
            whole = Image.new(band.mode, (band.width, -(-height // factor)))
        whole.paste(band, (0, top // factor))
    assert whole is not None
    whole.format = image.format
    whole.info = {key: value for key, value in image.info.items() if key != "transparency"}
    return whole


def _decoded(data: bytes, width: int, height: int, rows: bytes) -> Image.Image:
    """A PNG with other rows."""
    header = struct.pack(">II", width, height) + data[24:29]
    chunks = [_chunk(b"IHDR", header)]
    chunks += [_chunk(kind, content) for kind, content in _chunks(data) if kind in _COLOURS]
    chunks += [_chunk(b"IDAT", zlib.compress(rows, 0)), _chunk(b"IEND", b"")]
    image = Image.open(io.BytesIO(b"".join([PNG_MAGIC, *chunks])), "r", ["PNG"])
    image.load()
    return image


_COLOURS = (b"PLTE", b"tRNS")


def _chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))
    return struct.pack(">I", len(content)) + kind + content + check


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each; raises `ValueError` where the file ends early."""
    place = len(PNG_MAGIC)
    while place + 12 <= len(data):
        (length,), kind = struct.unpack_from(">I", data, place), data[place + 4 : place + 8]
        if place + 12 + length > len(data):
            break
        yield kind, data[place + 8 : place + 8 + length]
        place += 12 + length
        if kind == b"IEND":
            return
    raise ValueError("it ends early")


class _Unpacked:
    """The rows of a PNG, unpacked as far as they are asked for."""

    def __init__(self, data: bytes) -> None:
        self._packed = (content for kind, content in _chunks(data) if kind == b"IDAT")
        self._unpacker = zlib.decompressobj()

    def take(self, size: int) -> bytes:
        """The next `size` bytes; raises `ValueError` if there are no more."""
        found: list[bytes] = []
        while size:
            piece = self._unpacker.decompress(self._unpacker.unconsumed_tail, size)
            if not piece:
                following = next(self._packed, None)
                if following is None or self._unpacker.eof:
                    raise ValueError("it ends early")
                piece = self._unpacker.decompress(following, size)
            size -= len(piece)
            found.append(piece)
        return b"".join(found)

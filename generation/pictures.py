"""Picture files: writing, reading and naming them, and contact sheets."""

import io
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..registry.errors import RegistryCorrupt
from ..registry.files import open_file, write_file
from ..registry.images import MAX_PIXELS

_GAP = 8
_PAPER = (255, 255, 255)
_INK = (40, 40, 40)
_MAX_LINES = 4  # of a caption

SheetRow = tuple[str | Sequence[str], Sequence[Image.Image]]
"""A caption, or one for each picture, and pictures."""
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def replace_picture(image: Image.Image, path: Path, *, root: Path) -> None:
    """Write a PNG below `root` in place of what was there, as `write_file` does."""
    encoded = io.BytesIO()
    image.save(encoded, "png")
    write_file(path, encoded.getvalue(), root=root)


def kept_picture(root: Path, path: Path, size: tuple[int, int] | None = None) -> Image.Image | None:
    """Read a picture that `replace_picture` wrote below `root`; None if missing or damaged.

    A link, another format, or another `size` (width, height) counts as missing. Raises
    `RegistryCorrupt` where a folder above it is a link.
    """
    try:
        with open_file(root, path) as file, Image.open(file, "r", ["PNG"]) as picture:
            is_ours = picture.width * picture.height <= MAX_PIXELS and size in (None, picture.size)
            return picture.convert("RGB") if is_ours else None
    except RegistryCorrupt:
        raise
    except Exception:  # noqa: BLE001 (decoders raise anything)
        return None


def file_stem(title: str, seed: int, frame: int | None = None) -> str:
    """A file name for a picture: `a-photo-of-a-cat-on-the-beach-7`.

    That of the third frame of an animation ends with `-frame-003`.
    """
    words = re.sub(r"[^a-z0-9]+", "-", title.lower())[:60].strip("-")
    stem = f"{words or 'picture'}-{seed}"
    return stem if frame is None else f"{stem}-frame-{frame:03d}"


def contact_sheet(rows: Sequence[SheetRow], *, side: int | None = None) -> Image.Image:
    """Rows of square pictures, each under its caption; an empty caption takes no room.

    Long captions wrap, to four lines at most. A row may have a caption for each of its pictures
    instead. `side` is the size of a picture on the sheet in pixels; by default that of the largest,
    128 at least.
    """
    longest = max(max(image.size) for _, images in rows for image in images)
    side = side or max(longest, 128)
    text_size = max(11, side // 9)
    font = ImageFont.load_default(text_size)
    line = round(text_size * 1.5)
    columns = max(len(images) for _, images in rows)
    width = columns * (side + _GAP) + _GAP
    captions = [
        [_wrapped(caption, font, width - 2 * _GAP)]
        if isinstance(caption, str)
        else [_wrapped(text, font, side) for text in caption]
        for caption, _ in rows
    ]
    above = [line * max(map(len, texts), default=0) for texts in captions]
    sheet = Image.new("RGB", (width, sum(above) + len(rows) * (side + _GAP) + _GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    top = _GAP
    for texts, room, (_, images) in zip(captions, above, rows, strict=True):
        for column, lines in enumerate(texts):
            for number, text in enumerate(lines):
                place = (_GAP + column * (side + _GAP), top + number * line)
                pen.text(place, text, _INK, font)
        top += room
        for column, image in enumerate(images):
            scaled = ImageOps.contain(image.convert("RGB"), (side, side), Image.Resampling.LANCZOS)
            left = _GAP + column * (side + _GAP) + (side - scaled.width) // 2
            sheet.paste(scaled, (left, top + (side - scaled.height) // 2))
        top += side + _GAP
    return sheet


def _wrapped(text: str, font: _Font, width: int) -> list[str]:
    """`text` in lines of at most `width` pixels, broken after blanks and hyphens."""
    lines: list[str] = []
    for word in re.findall(r"[^\s-]+[-\s]*|[-\s]+", text):
        has_room = lines and font.getlength((lines[-1] + word).rstrip()) <= width
        if has_room or len(lines) == _MAX_LINES:
            lines[-1] += word
        else:
            lines.append(word)
    return [_fitted(each.rstrip(), font, width) for each in lines]


def _fitted(text: str, font: _Font, width: int) -> str:
    """`text`, cut with an ellipsis where it would be wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"

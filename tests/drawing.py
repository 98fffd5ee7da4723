"""Drawn photos for tests: sharp, and different for every seed."""

import io
import random
from pathlib import Path

from PIL import Image, ImageDraw


def draw(seed: int = 0, size: tuple[int, int] = (512, 512), mode: str = "RGB") -> Image.Image:
    """A picture of coloured shapes."""
    rng = random.Random(seed)
    image = Image.new("RGB", size, _colour(rng))
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = rng.randrange(size[0]), rng.randrange(size[1])
        width, height = (
            rng.randrange(size[0] // 8, size[0] // 2),
            rng.randrange(size[1] // 8, size[1] // 2),
        )
        shape = rng.choice([pen.ellipse, pen.rectangle])
        shape((x - width // 2, y - height // 2, x + width // 2, y + height // 2), fill=_colour(rng))
    return image.convert(mode)


def draw_bytes(seed: int = 0, size: tuple[int, int] = (512, 512), format: str = "PNG") -> bytes:  # noqa: A002
    """The bytes of a drawn photo."""
    buffer = io.BytesIO()
    draw(seed, size).save(buffer, format)
    return buffer.getvalue()


def draw_file(path: Path, seed: int = 0, size: tuple[int, int] = (512, 512)) -> Path:
    """A drawn photo at `path`, in the format its suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(seed, size).save(path)
    return path


def draw_folder(
    folder: Path, count: int, *, seed: int = 0, size: tuple[int, int] = (512, 512)
) -> Path:
    """A folder of drawn photos 00.png, 01.png, …"""
    for i in range(count):
        draw_file(folder / f"{i:02}.png", seed * 1000 + i, size)
    return folder


def draw_masks(folder: Path, count: int, *, size: tuple[int, int] = (512, 512)) -> Path:
    """A folder of masks 00.png, 01.png, …, each of another ellipse."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        mask = Image.new("L", size)
        ImageDraw.Draw(mask).ellipse((i, i, size[0] // 2 + i, size[1] // 2 + i), fill=255)
        mask.save(folder / f"{i:02}.png")
    return folder


def _colour(rng: random.Random) -> tuple[int, int, int]:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)

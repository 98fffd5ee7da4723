"""Pictures that the program kept for itself, in folders that anyone may have been at."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conceptry.generation.pictures import kept_picture, replace_picture
from conceptry.registry.errors import RegistryCorrupt
from drawing import draw, draw_bytes

SIZE = (16, 16)


def huge_header() -> bytes:
    """A PNG that says it has billions of pixels."""
    data = bytearray(draw_bytes(3, SIZE, "PNG"))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    return bytes(data)


ODD: dict[str, Callable[[Path, Path], object]] = {
    "missing": lambda path, _: path.unlink(),
    "empty": lambda path, _: path.write_bytes(b""),
    "cut": lambda path, _: path.write_bytes(draw_bytes(3, SIZE, "PNG")[:100]),
    "another format": lambda path, _: path.write_bytes(draw_bytes(3, SIZE, "GIF")),
    "a program for a printer": lambda path, _: path.write_bytes(draw_bytes(3, SIZE, "EPS")),
    "another size": lambda path, _: path.write_bytes(draw_bytes(3, (16, 24), "PNG")),
    "huge": lambda path, _: path.write_bytes(huge_header()),
    "a link": lambda path, other: (path.unlink(), path.symlink_to(other)),
    "a folder": lambda path, _: (path.unlink(), path.mkdir()),
    "a pipe": lambda path, _: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("what", ODD)
def test_what_is_not_ours_is_as_if_it_were_not_there(tmp_path: Path, what: str) -> None:
    """Faults, row 38: caches."""
    if what == "a pipe" and not hasattr(os, "mkfifo"):
        pytest.skip("no pipes with a name")
    other, path = tmp_path / "other.png", tmp_path / "cache/a/1.png"
    path.parent.mkdir(parents=True)
    for each in (other, path):
        replace_picture(draw(3, SIZE), each, root=each.parent)
    kept = kept_picture(tmp_path / "cache", path, SIZE)
    assert kept is not None
    assert kept.tobytes() == draw(3, SIZE).tobytes()
    ODD[what](path, other)
    assert kept_picture(tmp_path / "cache", path, SIZE) is None


def test_a_folder_that_leads_away_is_told(tmp_path: Path) -> None:
    """Faults, row 27."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "elsewhere").mkdir()
    replace_picture(draw(3, SIZE), tmp_path / "elsewhere/1.png", root=tmp_path)
    (tmp_path / "cache/a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RegistryCorrupt, match="is a link"):
        kept_picture(tmp_path / "cache", tmp_path / "cache/a/1.png")

"""Picture files and contact sheets."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from conceptry.generation.pictures import contact_sheet, file_stem
from conceptry.generation.provenance import read_metadata, save_picture
from conceptry.registry import StorageError
from PIL import Image

RED = Image.new("RGB", (16, 16), (255, 0, 0))


def test_what_made_a_picture_is_in_it(tmp_path: Path) -> None:
    told = {"prompt": "a café, «ünï» 猫\nnext line", "seed": 3, "settings": {"steps": 2}}
    path, sha256 = save_picture(RED, tmp_path / "new" / "folder", "red", told)
    assert path == tmp_path / "new" / "folder" / "red.png"
    assert read_metadata(path) == told
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    assert list(path.parent.iterdir()) == [path]


def test_no_picture_replaces_another(tmp_path: Path) -> None:
    names = [save_picture(RED, tmp_path, "red", {})[0].name for _ in range(3)]
    assert names == ["red.png", "red-2.png", "red-3.png"]


def test_a_picture_of_another_origin_has_no_metadata(tmp_path: Path) -> None:
    for name in ("red.png", "red.jpg"):
        RED.save(tmp_path / name)
        assert read_metadata(tmp_path / name) is None


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write a picture into"):
        save_picture(RED, tmp_path / "file", "red", {})


def test_file_names_are_plain() -> None:
    assert file_stem("A photo of <rex>, im Schnee!", 7) == "a-photo-of-rex-im-schnee-7"
    assert file_stem("猫", 7) == "picture-7"
    assert file_stem("../../etc/passwd", 7) == "etc-passwd-7"
    assert len(file_stem("cat " * 100, 1)) < 70


def test_a_sheet_shows_every_picture_under_its_caption() -> None:
    blue = Image.new("RGB", (16, 16), (0, 0, 255))
    sheet = contact_sheet(
        [("a caption that is far too long for so small a sheet" * 3, [RED, blue])]
    )
    colours = np.asarray(sheet).reshape(-1, 3)
    reds, blues = ((colours == colour).all(-1).sum() for colour in ((255, 0, 0), (0, 0, 255)))
    assert reds == blues == 128 * 128
    bare = contact_sheet([("", [RED, blue]), ("", [blue])])
    assert bare.size == (2 * 136 + 8, 2 * 136 + 8)


def test_a_sheet_keeps_the_shape_of_pictures() -> None:
    wide = Image.new("RGB", (192, 96), (255, 0, 0))
    sheet = np.asarray(contact_sheet([("wide", [wide])]))
    is_red = (sheet == (255, 0, 0)).all(2)
    assert (is_red.any(0).sum(), is_red.any(1).sum()) == (192, 96)


def test_captions_that_differ_at_their_end_read_differently() -> None:
    rows = [(["textual-inversion, 2 tokens", "textual-inversion, 4 tokens"], [RED, RED])]
    sheet = np.asarray(contact_sheet(rows, side=96))
    first, second = sheet[:, 8 : 8 + 96], sheet[:, 8 + 96 + 8 :][:, :96]
    assert not np.array_equal(first, second)
    prompts = ["a photo of a dog " * 4 + end for end in ("on the beach", "in the snow")]
    one, other = (contact_sheet([(prompt, [RED, RED])]) for prompt in prompts)
    assert np.asarray(one).shape == np.asarray(other).shape
    assert not np.array_equal(np.asarray(one), np.asarray(other))

"""The sheet of previews, which is read again for every strip."""

from pathlib import Path

from conceptry.training.previews import add_strip
from drawing import draw, draw_bytes
from PIL import Image


def test_it_begins_anew_where_it_is_not_sound(tmp_path: Path) -> None:
    """Faults, row 38: caches."""
    path, strip = tmp_path / "previews.png", [draw(3, (16, 16))]
    add_strip(path, "step 1", strip)
    sound = path.read_bytes()
    for odd in (b"", sound[:100], draw_bytes(3, format="GIF"), b"%!PS-Adobe-3.0 EPSF-3.0\n"):
        path.write_bytes(odd)
        add_strip(path, "step 1", strip)
        assert path.read_bytes() == sound


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    """Faults, row 27."""
    victim, path = tmp_path / "victim.png", tmp_path / "previews.png"
    draw(4, (16, 16)).save(victim)
    before = victim.read_bytes()
    path.symlink_to(victim)
    add_strip(path, "step 1", [draw(3, (16, 16))])
    assert victim.read_bytes() == before
    with Image.open(path) as sheet:
        assert sheet.height < 200
    assert not path.is_symlink()

"""`concept gallery`."""

from pathlib import Path

import pytest
from conceptry.generation.provenance import save_picture
from conceptry.registry import Registry
from drawing import draw, draw_file
from program import Ask, Run


def test_it_says_where_the_page_is_and_what_was_done(
    trained: Registry, run: Run, tmp_path: Path
) -> None:
    result = run("gallery", tmp_path / "shown")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'shown/gallery.html'}\n"
    assert "1 concept, 0 pictures; thumbnails: 3 made, 0 kept, 0 removed" in result.stderr
    assert "nothing new" in run("gallery", tmp_path / "shown").stderr
    assert trained.show("rex").name in (tmp_path / "shown/gallery.html").read_text()


def test_pictures_are_looked_for_where_generate_puts_them(
    trained: Registry, run: Run, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def record(sha256: str) -> None:
        trained.add_generation(
            sha256,
            prompt="<rex>",
            seed=1,
            base="b",
            base_sha256="",
            settings={},
            versions=[("rex", 1)],
        )

    save_picture(draw(1), tmp_path / "here/pictures", "rex", {}, record=record)
    monkeypatch.chdir(tmp_path / "here")
    assert ask("gallery", tmp_path / "shown")["pictures"] == 1
    empty = tmp_path / "empty"
    empty.mkdir()
    elsewhere = run("gallery", tmp_path / "other", "--pictures", empty)
    assert "1 picture on record not found" in elsewhere.stderr


def test_names_tags_and_status_are_used(
    trained: Registry, ask: Ask, run: Run, tmp_path: Path
) -> None:
    trained.add("mia", [draw_file(tmp_path / "mia.png", 5)], category="cat")
    assert ask("gallery", tmp_path / "a")["concepts"] == 2
    assert ask("gallery", tmp_path / "a", "mia")["concepts"] == 1
    assert ask("gallery", tmp_path / "a", "--tag", "pets")["concepts"] == 1
    named = ("gallery", tmp_path / "a", "rex", "mia", "--status", "untrained")
    assert ask(*named)["left_out"] == ["rex"]
    assert "do not fit the options: rex" in run(*named).stderr


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["nobody"], 3, 'no concept is named "nobody"'),
        (["--status", "asleep"], 2, "is no status"),
        (["--pictures", "nowhere"], 3, "there is no folder nowhere"),
        (["--most", "-1"], 2, "--most"),
    ],
    ids=str,
)
def test_what_is_wrong_is_told_and_writes_nothing(
    trained: Registry, run: Run, tmp_path: Path, words: list[str], code: int, text: str
) -> None:
    del trained
    result = run("gallery", tmp_path / "shown", *words)
    assert result.exit_code == code, result.output
    assert text in result.stderr
    assert not (tmp_path / "shown").exists()

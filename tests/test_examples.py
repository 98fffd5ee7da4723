"""The scripts and the notebook in `examples/` run, on a base model that is quick."""

import json
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from conceptry.registry import Registry
from drawing import draw_folder
from PIL import Image
from program import ROOT
from tiny_fixtures import tiny_base

__all__ = ["tiny_base"]

EXAMPLES = ROOT / "examples"


def run(monkeypatch: pytest.MonkeyPatch, name: str, *words: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_every_example_is_tested() -> None:
    names = {path.name for path in EXAMPLES.iterdir() if path.is_file()}
    assert names == {
        "compare_methods.py",
        "many_subjects.py",
        "teach_and_draw.py",
        "where_words_look.ipynb",
    }


def test_teach_and_draw(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = [word for i in (1, 2, 3) for word in ("--set", f"stage{i}.steps=1")]
    photos = draw_folder(Path("photos/rex"), 2)
    words = ("--category", "dog", "--base", tiny_base, "--steps", "1", *short)
    run(monkeypatch, "teach_and_draw.py", photos, *words)
    told = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("rex@1 by attndreambooth, ") for line in told) == 1
    assert sum(line.startswith("stage") for line in told) == 3
    assert len(list(Path("pictures").glob("*.png"))) == 3 * 2 + 1
    with Image.open(told[-1]) as grid:
        assert grid.width > 16


@pytest.mark.long
def test_many_subjects(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate(("dog/rex", "dog/max", "cat/mia")):
        draw_folder(Path("photos") / name, 2, seed=seed)
    short = ("--set", "embedding.steps=1", "--set", "augmentation.crops=2")
    words = ("photos", "--base", tiny_base, "--steps", "1", *short)
    run(monkeypatch, "many_subjects.py", *words)
    assert capsys.readouterr().out.count("@1, ") == 3
    draw_folder(Path("photos/cat/leo"), 2, seed=9)
    run(monkeypatch, "many_subjects.py", *words)
    assert capsys.readouterr().out.startswith("leo@1, ")
    with Registry.open("concepts.db") as registry:
        categories = {name: registry.show(name).category for name in registry.names()}
    assert categories == {"leo": "cat", "max": "dog", "mia": "cat", "rex": "dog"}


@pytest.mark.long
def test_compare_methods(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = draw_folder(Path("photos/rex"), 2)
    Path("mine.txt").write_text("a photo of a {}\n")
    words = shlex.split(
        "--name rex --category dog --methods sefi textual-inversion --suite mine.txt"
        " --clip miniature --dino none --seeds 1 --steps 1 --training-steps 1"
    )
    run(monkeypatch, "compare_methods.py", photos, *words, "--base", tiny_base)
    told = capsys.readouterr().out.splitlines()
    assert told[-1].startswith("best: ")
    assert Path("report/report.html").exists()
    with Registry.open("concepts.db") as registry:
        versions = registry.show("rex").versions
        assert len(registry.evaluations("rex")) == len(versions) == 2
        assert sum("best" in each.aliases for each in versions) == 1


def test_the_notebook_runs() -> None:
    document = json.loads((EXAMPLES / "where_words_look.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in document["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells)
    names: dict[str, Any] = {}
    for cell in cells:
        exec("".join(cell["source"]), names)
    assert names["drawn"].image.size == (128, 128)
    assert names["sheet"].size == (3 * 130, 3 * 130)
    dog, _, house = names["maps_at"](500)
    assert dog.argmax() != house.argmax()

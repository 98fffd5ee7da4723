"""Pictures that say they were drawn here, and ask for more than a picture should."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from conceptry.cli import generate as module
from conceptry.generation.picture_texts import METADATA_KEY
from conceptry.generation.provenance import MAX_BATCH, read_provenance, save_picture
from conceptry.registry import InvalidImage, Registry
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from program import invoke
from typer.testing import Result

SETTINGS = {
    "steps": 25,
    "guidance": 5.0,
    "negative": "",
    "scheduler": None,
    "size": None,
    "batch_seeds": [7],
}
FRAME = {
    "sha256": "0" * 64,
    "prompt": "a cat",
    "weight": 1.0,
    "share": 0.9,
    "guidance": 2.5,
}


def picture(folder: Path, sides: tuple[int, int] = (64, 64), **settings: Any) -> Path:
    """A picture that says so, which no registry knows of."""
    told = {
        "base": settings.pop("base", "miniature"),
        "base_sha256": "0" * 64,
        "prompt": "a cat",
        "seed": 7,
        "settings": SETTINGS | settings,
        "versions": [],
    }
    return save_picture(Image.new("1", sides), folder, "theirs", told)[0]


@pytest.fixture(autouse=True)
def _nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        pytest.fail("a base model is loaded")

    monkeypatch.setattr(module, "quick_imports", fail)


def reproduce(registry: Registry, path: Path) -> Result:
    return invoke("--registry", str(registry.location.database), "reproduce", str(path))


@pytest.mark.parametrize(
    ("size", "settings"),
    [
        ((4096, 4096), {"size": [4096, 4096], "batch_seeds": list(range(MAX_BATCH))}),
        ((2048, 2048), {"size": [2048, 2048], "batch_seeds": list(range(17))}),
        ((4096, 4096), {"size": [4096, 4096], "steps": 1000, "batch_seeds": [7, 8]}),
        ((64, 64), {"steps": 1000, "batch_seeds": list(range(MAX_BATCH))}),
        ((4096, 4096), {"size": [4096, 4096], "steps": 1000, "frames": [FRAME]}),
    ],
    ids=[
        "all at their most",
        "many large ones",
        "many steps",
        "many of the base model's size",
        "after a frame",
    ],
)
def test_more_work_than_a_strangers_picture_is_worth_is_refused(
    registry: Registry, tmp_path: Path, size: tuple[int, int], settings: dict[str, Any]
) -> None:
    done = reproduce(registry, picture(tmp_path, size, **settings))
    assert done.exit_code == 2
    assert "too much for a picture that this registry does not know of" in done.stderr
    assert f"in {settings.get('steps', 25)} steps" in done.stderr


def test_what_this_registry_drew_is_drawn_again_whatever_it_takes(
    registry: Registry, tmp_path: Path
) -> None:
    path = picture(tmp_path, steps=1000, batch_seeds=list(range(MAX_BATCH)))
    made = read_provenance(path)
    assert not made.is_modest
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    registry.add_generation(
        sha256, prompt="a cat", seed=7, base="m", base_sha256="0", settings={}, versions=[]
    )
    module._check_work(registry, path, made)


def test_the_base_that_it_names_is_one_word(registry: Registry, tmp_path: Path) -> None:
    done = reproduce(registry, picture(tmp_path, base="x; rm -rf ~ \x1b[2J"))
    assert done.exit_code == 2
    assert "--base 'x; rm -rf ~ " in done.stderr
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize(
    "text",
    [
        "null", "[]", "{}", "[" * 5000, '{"settings": 1}', "9" * 5000, '{"settings": {}, "x": NaN}',
        json.dumps({"settings": SETTINGS | {"batch_seeds": [7] * (MAX_BATCH + 1)}}),
        json.dumps({"settings": SETTINGS | {"steps": 2**70}}),
        json.dumps({"settings": SETTINGS | {"frames": [FRAME] * 3}}),
        json.dumps({"settings": SETTINGS | {"frames": [FRAME | {"sha256": "../a.png"}]}}),
        json.dumps({"settings": SETTINGS, "prompt": "\x1b[2J", "seed": 7}),
    ],
    ids=range(12),
)  # fmt: skip
def test_what_says_nothing_sound_is_refused(tmp_path: Path, text: str) -> None:
    chunk = PngInfo()
    chunk.add_itxt(METADATA_KEY, text)
    Image.new("L", (8, 8)).save(tmp_path / "a.png", pnginfo=chunk)
    with pytest.raises(InvalidImage):
        read_provenance(tmp_path / "a.png")

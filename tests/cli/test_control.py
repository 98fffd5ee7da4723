"""`concept generate --control`, and the same picture again."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from conceptry.registry import Registry
from conceptry.registry.hashes import sha256_of
from program import Ask, Run, error_of
from tiny_control import control_picture, write_base_and_control

PROMPT = "a photo of a red cat"
WORDS = ("-n", "1", "--seed", "1", "--steps", "1")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A base model, and a ControlNet for it."""
    return write_base_and_control(tmp_path_factory.mktemp("bases"))


@pytest.fixture
def picture(tmp_path: Path) -> str:
    return str(control_picture(tmp_path / "control.png"))


def test_a_picture_is_drawn_with_a_control_and_again(
    ask: Ask, run: Run, folders: tuple[str, str], picture: str, database: Path
) -> None:
    tiny, net = folders
    plain = ask("generate", PROMPT, "--base", tiny, *WORDS)["images"][0]
    words = ("--base", tiny, "--control", f"{picture}:{net}", *WORDS)
    drawn = ask("generate", PROMPT, *words)["images"][0]
    none = ask("generate", PROMPT, *words, "--control-scale", "0")["images"][0]
    assert drawn["sha256"] != plain["sha256"]
    assert none["path"] != drawn["path"]
    assert ask("reproduce", drawn["path"], "--control", picture)["is_same"]
    told = error_of(run("--json", "reproduce", drawn["path"]))
    assert "was drawn with a control picture" in told["message"]
    assert "--control IMAGE" in told["hint"]
    shutil.rmtree(database.parent)  # then it may be a stranger's
    unknown = run("--json", "reproduce", drawn["path"], "--base", tiny, "--control", picture)
    assert unknown.exit_code == 2
    assert f"{picture}:{net}" in error_of(unknown)["hint"]
    again = ("reproduce", drawn["path"], "--base", tiny, "--control", f"{picture}:{net}")
    assert ask(*again)["is_same"]


def test_a_reference_has_a_control_picture_of_its_own(
    ask: Ask, run: Run, rex: Registry, folders: tuple[str, str], picture: str
) -> None:
    tiny, net = folders
    own = control_picture(Path("own.png"), (64, 64)).rename("away.png")
    words = ("--base", tiny, "--reference", "rex", *WORDS)
    asked = (*words, "--control", f"{picture}:{net}")
    plain = ask("generate", PROMPT, *asked)["images"][0]
    drawn = ask("generate", PROMPT, *asked, "--reference-control", own)["images"][0]
    assert drawn["sha256"] != plain["sha256"]
    settings: Any = rex.trace(drawn["sha256"]).settings
    (told,) = settings["references"]
    assert told["control"] == sha256_of(own.read_bytes())
    Path("wanted.csv").write_text(
        f"prompt,control,reference_control\n{PROMPT},{picture}:{net},away.png\n"
    )
    again = ask("generate", "--prompts", "wanted.csv", *words)["images"][0]
    assert again["sha256"] == drawn["sha256"]
    Path("elsewhere").mkdir()
    moved = own.rename("elsewhere/own.png")
    back = ("reproduce", drawn["path"], "--control", picture)
    lost = error_of(run("--json", *back))
    assert "a control picture of its own" in lost["message"]
    assert ask(*back, "--reference-control", moved)["is_same"]
    told = run("--json", *back, "--reference-control", moved, "--reference-control", picture)
    assert told.exit_code == 2
    assert f"{picture} is no control picture that" in error_of(told)["message"]
    for more, exit_code, text in (
        ((*words, "--reference-control", moved), 2, "what is drawn has none"),
        ((*asked, *("--reference-control", moved) * 2), 2, "own.png, and references rex"),
        ((*asked, "--reference-control", "gone.png"), 3, "no control picture gone.png"),
        ((*asked, "--reference-control", "wanted.csv"), 2, "wanted.csv"),
        (
            (*asked, "--reference-control", str(control_picture(Path("wide.png"), (64, 32)))),
            2,
            "64x32, which is another shape than the 512x512 of the photo 00.png of rex",
        ),
    ):
        result = run("--json", "generate", PROMPT, *more, "--out", "album")
        assert result.exit_code == exit_code, result.output
        assert text in error_of(result)["message"]
    assert not Path("album").exists()


def test_another_size_is_said(run: Run, folders: tuple[str, str], tmp_path: Path) -> None:
    tiny, net = folders
    large = control_picture(tmp_path / "large.png", (32, 32))
    result = run("generate", PROMPT, "--base", tiny, "--control", f"{large}:{net}", *WORDS)
    assert result.exit_code == 0
    assert f"{large} is 32x32: resized to 16x16" in result.stderr


@pytest.mark.parametrize(
    ("control", "exit_code", "text"),
    [
        ("gone.png", 3, "there is no control picture gone.png"),
        ("~gone.png:NET", 3, "there is no control picture ~gone.png"),
        ("control.png:gone", 3, 'has no ControlNet "gone"'),
        ("control.png", 2, "has no ControlNet of its own"),
        ("control.png:net.ckpt", 2, "only safetensors is read"),
        ("notes.png:NET", 2, "notes.png"),
        ("wide.png:NET", 2, "another shape"),
    ],
)
def test_a_wrong_control_is_told_and_leaves_nothing(
    run: Run, folders: tuple[str, str], picture: str, control: str, exit_code: int, text: str
) -> None:
    tiny, net = folders
    Path("notes.png").write_text("no picture")
    control_picture(Path("wide.png"), (48, 16))
    assert Path(picture).exists()
    words = ("--control", control.replace("NET", net), "--out", "album", *WORDS)
    result = run("--json", "generate", PROMPT, "--base", tiny, *words)
    assert result.exit_code == exit_code, result.output
    assert text in error_of(result)["message"]
    assert not Path("album").exists()


def test_the_miniatures_layout_is_used(run: Run, picture: str) -> None:
    result = run("--json", "generate", PROMPT, "--control", picture, "--steps", "1", "-n", "1")
    assert result.exit_code == 0, result.output

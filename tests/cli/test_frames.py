"""`concept generate --animate`, and a frame of it again."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conceptry.generation.provenance import read_metadata
from conceptry.registry import Registry
from forked import INTERRUPTED_AFTER_TWO, run_forked
from PIL import Image
from program import Ask, Run, error_of
from tiny_control import control_picture, write_base_and_control

PROMPT = "a dog walking"
WORDS = ("--seed", "1", "--steps", "1")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A base model, and a ControlNet for it."""
    return write_base_and_control(tmp_path_factory.mktemp("bases"))


@pytest.fixture
def walk(tmp_path: Path) -> Path:
    """A folder of three control pictures."""
    folder = tmp_path / "walk"
    folder.mkdir()
    with Image.open(control_picture(tmp_path / "one.png")) as one:
        for i in range(3):
            moved = np.roll(np.asarray(one), 5 * i, 1)
            Image.fromarray(moved).save(folder / f"step-{9 + i}.png")
    return folder


def test_a_folder_of_control_pictures_is_animated(
    ask: Ask, rex: Registry, folders: tuple[str, str], walk: Path
) -> None:
    tiny, net = folders
    words = ("--reference", "rex", "--controls", f"{walk}:{net}", "--animate", "--base", tiny)
    document = ask("generate", PROMPT, *words, *WORDS, "--first-frame", "0.5", "--frame-rate", "4")
    assert [Path(each["path"]).name for each in document["images"]] == [
        f"a-dog-walking-1-frame-00{i}.png" for i in (1, 2, 3)
    ]
    assert document["animations"] == ["pictures/a-dog-walking-1.webp"]
    with Image.open(document["animations"][0]) as animation:
        assert animation.format == "WEBP"
    last = document["images"][2]
    told: Any = read_metadata(Path(last["path"]))
    settings = told["settings"]
    assert settings == rex.trace(last["sha256"]).settings
    assert [each["weight"] for each in settings["references"]] == [10.0]
    before = [document["images"][i]["sha256"] for i in (1, 0)]
    assert [each["sha256"] for each in settings["frames"]] == before
    assert [each["weight"] for each in settings["frames"]] == [1.0, 0.5]
    again = ("reproduce", last["path"], "--control", walk / "step-11.png")
    assert ask(*again)["is_same"]


@pytest.mark.long
def test_whoever_interrupts_is_told_how_to_go_on(
    ask: Ask, run: Run, rex: Registry, folders: tuple[str, str], walk: Path, database: Path
) -> None:
    tiny, net = folders
    words = ("generate", PROMPT, "--controls", f"{walk}:{net}", "--animate", "--base", tiny)
    words = (*words, "--steps", "1")
    stopped = run_forked("--registry", database, "--json", *words, prelude=INTERRUPTED_AFTER_TWO)
    assert stopped.returncode == 130, stopped.stderr
    hint = json.loads(stopped.stdout)["error"]["hint"]
    seed = re.fullmatch(r"the same command with --seed (\d+), which goes on", hint)
    assert seed, hint
    document = ask(*words, "--seed", seed[1])
    assert [each["is_new"] for each in document["images"]] == [False, False, True]
    assert len(document["animations"]) == 1
    assert "0 pictures" in run(*words, "--seed", seed[1]).stderr
    assert len(list(Path("pictures").glob("*.webp"))) == 1
    Path("p.jsonl").write_text('{"prompt": "a cat", "seed": 4}\n{"prompt": "a dog", "seed": 4}\n')
    words = ("generate", "--prompts", "p.jsonl", "--animate", "--base", tiny, "--steps", "1")
    stopped = run_forked("--registry", database, *words, prelude=INTERRUPTED_AFTER_TWO)
    assert "-> the same command, which goes on" in stopped.stderr, stopped.stderr


def test_a_frame_needs_the_one_before_it(
    ask: Ask, run: Run, folders: tuple[str, str], tmp_path: Path
) -> None:
    Path("wanted.txt").write_text("a dog on the beach\na dog in the snow\n")
    words = ("--animate", "--animation", "gif", "-n", "2", "--base", folders[0])
    document = ask("generate", "--prompts", "wanted.txt", *words, *WORDS)
    assert [each["seed"] for each in document["images"]] == [1, 1, 2, 2]
    assert [Path(each).name for each in document["animations"]] == [
        "a-dog-on-the-beach-1.gif",
        "a-dog-on-the-beach-2.gif",
    ]
    first, second, *_ = (Path(each["path"]) for each in document["images"])
    assert ask("reproduce", second, "--base", folders[0])["is_same"]
    moved = first.rename(tmp_path / "moved.png")
    told = run("--json", "reproduce", second, "--base", folders[0])
    assert told.exit_code == 3
    assert "whose file is not beside it" in error_of(told)["message"]
    assert document["images"][0]["sha256"][:12] in error_of(told)["hint"]
    assert ask("reproduce", second, "--base", folders[0], "--frame", moved)["is_same"]
    frames = ("--frame", moved, "--frame", second)
    told = run("--json", "reproduce", second, "--base", folders[0], *frames)
    assert told.exit_code == 2
    assert f"{second} is no frame that {second} was drawn with" in error_of(told)["message"]
    told = run("--json", "reproduce", moved, "--base", folders[0], "--frame", second)
    assert "was not drawn after another frame" in error_of(told)["message"]


@pytest.mark.parametrize(
    ("words", "exit_code", "text"),
    [
        (["--animate"], 2, "has to know its frames"),
        (["--controls", "walk"], 2, "--controls is for animations"),
        (["--first-frame", "0"], 2, "--first-frame is for animations"),
        (["--frame-rate", "9"], 2, "--frame-rate is for animations"),
        (["--animation", "gif"], 2, "--animation is for animations"),
        (["--animate", "--controls", "walk", "--control", "one.png"], 2, "do not go together"),
        (["--animate", "--controls", "walk", "--batch", "2"], 2, "drawn one at a time"),
        (["--animate", "--controls", "gone:pose"], 3, "no folder gone of control pictures"),
        (["--animate", "--controls", "~gone"], 3, "no folder ~gone of control pictures"),
        (["--animate", "--controls", "empty"], 2, "no picture in the folder empty"),
        (["--animate", "--controls", "walk:gone"], 3, 'no ControlNet "gone"'),
        (["--animate", "--controls", "walk", "--frame-rate", "99"], 2, "--frame-rate"),
        (["--animate", "--controls", "walk", "--frame-rate", "nan"], 2, "--frame-rate"),
        (["--animate", "--controls", "walk", "--previous-frame", "nan"], 2, "previous"),
        (
            ["--animate", "--prompts", "wanted.csv"],
            2,
            "wanted.csv, line 3: frames begin with the same noise",
        ),
        (["--animate", "--prompts", "wanted.csv", "--controls", "walk"], 2, "--prompts do not go"),
        (["--animate", "--controls", "walk", "--out", "walk/../walk"], 2, "the next time"),
        (["--animate", "--prompts", "sizes.csv"], 2, "sizes.csv, line 3: frames have one size"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_call_is_told_and_leaves_nothing(
    run: Run, database: Path, walk: Path, words: list[str], exit_code: int, text: str
) -> None:
    assert walk.exists()
    Path("empty").mkdir()
    Path("wanted.csv").write_text("prompt,seed\na cat,\na dog,9\n")
    Path("sizes.csv").write_text("prompt,size\na cat,128\na dog,64\n")
    prompt = [] if "--prompts" in words else [PROMPT]
    result = run("--json", "generate", *prompt, *words)
    assert result.exit_code == exit_code, result.output
    assert text in error_of(result)["message"]
    assert not Path("pictures").exists()
    assert not database.exists()


def test_a_line_for_many_resized_control_pictures(
    run: Run, folders: tuple[str, str], tmp_path: Path
) -> None:
    tiny, net = folders
    (tmp_path / "large").mkdir()
    for i in range(7):
        control_picture(tmp_path / f"large/{i}.png", (32, 32))
    words = ("--animate", "--controls", f"large:{net}", "--base", tiny, "--previous-frame", "0")
    result = run("generate", PROMPT, *words, *WORDS)
    assert result.exit_code == 0
    assert result.stderr.count("resized to 16x16") == 5
    assert "and 2 more of the kind" in result.stderr
    assert result.stdout.splitlines()[-1] == "pictures/a-dog-walking-1.webp"

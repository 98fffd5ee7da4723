"""`make demo`, on a tiny base model."""

import runpy
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conceptry.registry import Registry
from long import quick_for
from PIL import Image
from program import DEADLINE, wait_until
from tiny_base import write_tiny_base

DEMO = Path(__file__).parents[1] / "demo.py"
PHOTOS = DEMO.parent / "models" / "miniature" / "sample"


def start(folder: Path, base: str) -> subprocess.Popen[str]:
    words = ["--set", "augmentation.crops=4", "--set", "stage3.steps=60"]
    return subprocess.Popen(
        [sys.executable, DEMO, "--out", folder, "--base", base, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def pictures(folder: Path) -> dict[str, bytes]:
    found = {path.name: Image.open(path).tobytes() for path in (folder / "pictures").iterdir()}
    assert len(found) == 32
    return found


def farewell(told: str) -> list[list[str]]:
    """The words of the commands that the demo ends with."""
    _, asked, commands = told.rpartition("go on with photos of your own:\n")
    assert asked
    return [shlex.split(line) for line in commands.splitlines() if not line.startswith("(")]


@pytest.mark.parametrize("inside", quick_for(1, [True, False]), ids=["in its folder", "elsewhere"])
def test_the_demo_ends_with_commands_that_can_be_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    program = Path(sys.executable).with_name("concept")
    here = program.parents[2] if inside else tmp_path
    monkeypatch.chdir(here)
    told = runpy.run_path(str(DEMO))["_farewell"](Path("build/demo/demo.png"), [])
    assert "look at build/demo/demo.png" in told
    (start, *add), (_, *train), (_, *generate) = farewell(told)
    assert Path(start).is_absolute() != inside
    assert (here / start).samefile(program)
    assert (add[0], train[0], generate[0]) == ("add", "train", "generate")

    monkeypatch.setenv("CONCEPT_REGISTRY", str(tmp_path / "concepts.db"))
    subprocess.run(
        [start, *(str(PHOTOS) if word == "PHOTOS" else word for word in add)], check=True
    )
    with Registry.open(tmp_path / "concepts.db") as registry:
        assert registry.show(train[1]).images
    assert f"<{train[1]}>" in generate[1]


@pytest.mark.long
def test_a_killed_demo_goes_on_to_the_same_pictures(tmp_path: Path) -> None:
    """A training goes on bit-equal, and a picture follows from weights, prompt and seed."""
    base = str(write_tiny_base(tmp_path / "tiny"))
    whole = start(tmp_path / "whole", base)
    told, _ = whole.communicate(timeout=DEADLINE)
    assert whole.returncode == 0, told
    assert f"the photos, and what was drawn: {tmp_path / 'whole' / 'demo.png'}" in told
    with Image.open(tmp_path / "whole" / "demo.png") as sheet:
        assert sheet.height > 4 * 128
    assert all("--base" in words for words in farewell(told)[1:])

    killed = start(tmp_path / "killed", base)
    point = "concepts.runs/*/resume.safetensors"
    wait_until(lambda: list((tmp_path / "killed").glob(point)) or killed.poll() is not None)
    killed.send_signal(signal.SIGKILL)
    subprocess.run(["pkill", "-KILL", "-s", str(killed.pid)], check=False)
    killed.communicate()
    with Registry.open(tmp_path / "killed" / "concepts.db") as registry:
        assert not registry.show("rex").versions
    again = start(tmp_path / "killed", base)
    told, _ = again.communicate(timeout=DEADLINE)
    assert again.returncode == 0, told
    assert "--resume" in told
    assert pictures(tmp_path / "killed") == pictures(tmp_path / "whole")

"""`make demo`, on a tiny base model."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conceptry.registry import Registry
from PIL import Image
from program import DEADLINE, wait_until
from tiny_base import write_tiny_base

DEMO = Path(__file__).parents[1] / "demo.py"


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

"""What version 0.1 left opens, draws the same pixels and goes on.

`version_0_1/make.sh` says how its registry and pictures were made.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from program import ROOT, Ask

LEFT = ROOT / "tests/cli/version_0_1"
VERSIONS = range(1, 7)
FOR_ROUNDING = 0.03
"""Of 255, on the average: other processors add in another order. Two versions are 0.07 apart."""


@pytest.fixture(autouse=True)
def _a_copy_of_it(tmp_path: Path) -> None:
    shutil.copytree(LEFT, tmp_path, dirs_exist_ok=True)


def distance(one: str | Path, other: str | Path) -> float:
    pixels = [np.asarray(Image.open(each), dtype=float) for each in (one, other)]
    return float(np.abs(pixels[0] - pixels[1]).mean())


def test_the_pictures_tell_versions_apart() -> None:
    apart = [
        distance(f"pictures/rex-{one}.png", f"pictures/rex-{other}.png")
        for one in VERSIONS
        for other in VERSIONS
        if one < other
    ]
    assert min(apart) > 2 * FOR_ROUNDING


def test_nothing_is_missing_or_damaged(ask: Ask) -> None:
    assert ask("check", "--read-data")["problems"] == []
    assert [concept["name"] for concept in ask("list")["concepts"]] == ["mia", "rex"]


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_draws_the_same_picture(ask: Ask, version: int) -> None:
    prompt = f"a photo of <rex@{version}> on the beach"
    words = ("--base", "tiny", "--steps", "4", "--seed", "1", "-n", "1")
    words += ("--guidance", "5", "--scheduler", "own")  # what was usual then
    drawn = ask("generate", prompt, *words)["images"][0]["path"]
    assert distance(drawn, f"pictures/rex-{version}.png") < FOR_ROUNDING


def test_pictures_are_reproduced(ask: Ask) -> None:
    drawn = ask("reproduce", "pictures/rex-5.png")["image"]["path"]
    assert distance(drawn, "pictures/rex-5.png") < FOR_ROUNDING


def test_an_interrupted_training_goes_on(ask: Ask) -> None:
    done = ask("train", "mia", "--resume", "--preview-every", "0")
    assert [(run["concept"], run["version"]) for run in done["runs"]] == [("mia", 1)]

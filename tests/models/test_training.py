"""The recipe of the miniature: every stage learns, and goes on after a kill as if nothing was."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from conceptry.models.miniature import train
from safetensors.torch import load_file, save_file

BATCH = 8
STAGES = [
    pytest.param(name, 150, marks=pytest.mark.long) if name == "unet" else (name, 20)
    for name in train.STAGES
]
"""Each with as many steps as show that it learns: where batches are small, noise is loud."""


@pytest.fixture(autouse=True)
def _quick_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate is whole after five steps."""
    quick = {name: dataclasses.replace(each, warmup_steps=5) for name, each in train.STAGES.items()}
    monkeypatch.setattr(train, "STAGES", quick)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each stage finds what the ones before it left: weights that have seen a picture."""
    folder = tmp_path_factory.mktemp("workshop")
    for stage in train.STAGES:
        run(stage, folder, steps=1, batch=2)
    return folder


def run(
    stage: str, folder: Path, *, steps: int, batch: int = BATCH, stop_at: int | None = None
) -> None:
    numbers = dataclasses.replace(train.STAGES[stage], batch=batch)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(train.STAGES, stage, numbers)
        train.train(
            stage, folder, images=batch * steps, device="cpu", num_workers=0, stop_at=stop_at
        )


def begin(stage: str, workshop: Path, folder: Path) -> Path:
    """A folder in which a stage can be run."""
    folder.mkdir(exist_ok=True)
    for earlier in train.STAGES:
        if earlier != stage:
            name = f"{earlier}.safetensors"
            shutil.copyfile(workshop / name, folder / name)
    return folder


@pytest.mark.parametrize(("stage", "steps"), STAGES)
def test_some_steps_of_a_stage_lower_its_loss(
    stage: str, steps: int, workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "LOG_EVERY_STEPS", steps // 5)
    folder = begin(stage, workshop, tmp_path)
    run(stage, folder, steps=steps)
    lines = [json.loads(line) for line in (folder / f"{stage}.jsonl").read_text().splitlines()]
    opponents = {"adversary", "discriminator", "features"}  # they move against each other
    names = lines[0].keys() - {"step", "images", "images_per_second"} - opponents
    first, *_, last = [sum(line[name] for name in names) for line in lines]
    assert last < first
    assert (folder / f"{stage}.safetensors").exists()


@pytest.mark.parametrize("stage", list(train.STAGES))
def test_a_stage_that_was_stopped_ends_bit_equal(
    stage: str, workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches follow from the seed and the step; the rest is in the resume point.

    All begin with the same autoencoder, whose scale takes as long to find as all steps here.
    """
    monkeypatch.setattr(train, "scaling_factor", lambda *_: 0.2)
    whole, stopped = (begin(stage, workshop, tmp_path / name) for name in ("whole", "stopped"))
    run(stage, whole, steps=6, batch=4)
    run(stage, stopped, steps=6, batch=4, stop_at=4)
    run(stage, stopped, steps=6, batch=4)
    ours, theirs = (load_file(place / f"{stage}.safetensors") for place in (stopped, whole))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)


def test_a_stopped_stage_finds_its_window_of_scenes_again(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scenes that are used several times are those of the uninterrupted run."""
    windowed = dataclasses.replace(train.STAGES["unet"], window=2, reuse=2)
    monkeypatch.setitem(train.STAGES, "unet", windowed)
    whole, stopped = (begin("unet", workshop, tmp_path / name) for name in ("whole", "stopped"))
    run("unet", whole, steps=8, batch=2)
    run("unet", stopped, steps=8, batch=2, stop_at=5)
    run("unet", stopped, steps=8, batch=2)
    ours, theirs = (load_file(place / "unet.safetensors") for place in (stopped, whole))
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_a_stage_begins_from_earlier_weights_where_they_fit(tmp_path: Path) -> None:
    workshop = train.Workshop(tmp_path, torch.device("cpu"))
    stage = train.STAGES["identity"]
    fresh = train.Training(stage, workshop).learning
    earlier = {name: torch.full(value.shape, 0.5) for name, value in fresh.items()}
    other, *same = fresh
    earlier[other] = torch.ones(2, 2)
    save_file(earlier, tmp_path / "earlier.safetensors")
    begun = train.Training(stage, workshop, start=tmp_path / "earlier.safetensors").learning
    assert all(begun[name].eq(0.5).all() for name in same)
    assert begun[other].equal(fresh[other])


def test_a_stage_without_its_forerunner_says_which(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="train the stage 'clip' first"):
        run("unet", tmp_path, steps=1)

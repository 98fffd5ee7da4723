"""The recipe of the miniature: every stage learns, and goes on after a kill as if nothing was."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from conceptry.models.miniature import train
from safetensors.torch import load_file, save_file

STEPS = 50


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 8, so that fifty steps are seconds."""
    small = {
        name: dataclasses.replace(stage, batch=8, warmup_steps=5)
        for name, stage in train.STAGES.items()
    }
    monkeypatch.setattr(train, "STAGES", small)
    monkeypatch.setattr(train, "LOG_EVERY_STEPS", 10)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each stage finds what the ones before it left."""
    return tmp_path_factory.mktemp("workshop")


def run(stage: str, folder: Path, *, stop_at: int | None = None) -> None:
    train.train(stage, folder, images=8 * STEPS, device="cpu", num_workers=0, stop_at=stop_at)


def finish(stages: list[str], folder: Path) -> None:
    """Run those that have not been run: tests may come in any order, in several processes."""
    for stage in stages:
        if not (folder / f"{stage}.safetensors").exists():
            run(stage, folder)


@pytest.mark.parametrize("stage", list(train.STAGES))
def test_fifty_steps_of_a_stage_lower_its_loss(stage: str, workshop: Path) -> None:
    stages = list(train.STAGES)
    finish(stages[: stages.index(stage) + 1], workshop)
    lines = [json.loads(line) for line in (workshop / f"{stage}.jsonl").read_text().splitlines()]
    names = lines[0].keys() - {"step", "images", "images_per_second"}
    first, *_, last = [sum(line[name] for name in names) for line in lines]
    assert last < first
    assert (workshop / f"{stage}.safetensors").exists()


@pytest.mark.parametrize("stage", list(train.STAGES))
def test_a_stage_that_was_stopped_ends_bit_equal(
    stage: str, workshop: Path, tmp_path: Path
) -> None:
    finish(list(train.STAGES), workshop)
    for earlier in train.STAGES:
        if earlier != stage:
            shutil.copyfile(
                workshop / f"{earlier}.safetensors", tmp_path / f"{earlier}.safetensors"
            )
    run(stage, tmp_path, stop_at=STEPS - 10)
    run(stage, tmp_path)
    ours, whole = (load_file(place / f"{stage}.safetensors") for place in (tmp_path, workshop))
    assert ours.keys() == whole.keys()
    assert all(ours[name].equal(whole[name]) for name in ours)


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
        run("unet", tmp_path)

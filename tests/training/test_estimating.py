"""What a training is said to take, beside what it takes."""

import pytest
from conceptry.models.loading import LoadedBase
from conceptry.registry import Registry
from conceptry.training import estimate, loop, train
from conceptry.training.callbacks import Hooks

WORDS = ("prior.weight=0", "unet.steps=2", "augmentation.crops=2", "ema=0.9")


def test_the_disk_has_two_resume_points_and_the_version(
    rex: Registry, base: LoadedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The former one is there until the next one is written."""
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", -1.0)
    saved: list[int] = []
    hooks = Hooks(on_saved=lambda path: saved.append(path.stat().st_size))
    train(rex, "rex", base, method="dreambooth", overrides=WORDS, hooks=hooks)
    (artifact,) = rex.show("rex").versions[0].artifacts
    found = estimate(rex, "rex", base, method="dreambooth", overrides=WORDS)
    assert found.disk_bytes == pytest.approx(2 * max(saved) + artifact.bytes, rel=0.1)

"""One file is enough: a toy method and a toy base family, which the product knows nothing of."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import conceptry.methods
import pytest
from conceptry.generation import generate
from conceptry.generation.request import Request
from conceptry.methods.method import all_methods, settings_of
from conceptry.models import loading
from conceptry.models.loading import LoadedBase, backbone_of
from conceptry.registry import Registry
from conceptry.training import train
from conceptry.training.callbacks import Hooks, StepReport
from drawing import draw_folder
from program import ROOT, invoke
from tiny_fixtures import _one_base, base
from toy_family import RenamedPipeline, ToyFamily

__all__ = ["_one_base", "base"]


@pytest.fixture
def _toy_method(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    toys = str(ROOT / "tests/toys/methods")
    monkeypatch.setattr(conceptry.methods, "__path__", [*conceptry.methods.__path__, toys])
    all_methods.cache_clear()
    yield
    all_methods.cache_clear()


@pytest.fixture
def rex(registry: Registry, tmp_path: Path) -> Registry:
    registry.add("rex", [draw_folder(tmp_path / "photos", 2)], category="dog")
    return registry


@pytest.mark.usefixtures("_toy_method")
def test_a_method_is_a_module_and_a_preset(rex: Registry, base: LoadedBase) -> None:
    assert "frozen-word" in invoke("methods").stdout
    settings = settings_of(all_methods()["frozen-word"], base="tiny")
    assert settings.stages()["word"].steps == 2
    done = train(rex, "rex", base, method="frozen-word", overrides=["augmentation.crops=1"])
    assert (done.method, done.version) == ("frozen-word", 1)
    request = Request(prompt="a photo of <rex>", seeds=[1])
    (picture,) = generate(rex, base, [request], Path("drawn"))
    assert picture.path.exists()


@pytest.mark.usefixtures("_toy_method")
def test_a_loss_on_attention_is_a_class_of_its_method(rex: Registry, base: LoadedBase) -> None:
    """Beside others, each of which sees the columns that it asked for."""
    few = ["augmentation.crops=1", "word.mean_weight=1", "loss.subject_wise=0.1"]
    told: list[dict[str, float]] = []
    for weight in (0.1, 0.2):
        reports: list[StepReport] = []
        words = [*few, f"focus={weight}"]
        hooks = Hooks(on_step=reports.append)
        train(rex, "rex", base, method="focused-word", overrides=words, hooks=hooks)
        told.append(reports[0].losses)
    once, twice = told
    assert list(once) == ["diffusion", "attention", "subject-wise", "focus"]
    assert twice.pop("focus") == pytest.approx(2 * once.pop("focus"), rel=1e-5)
    assert twice == pytest.approx(once, rel=1e-5)


def test_a_base_family_is_a_file(
    rex: Registry, base: LoadedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "FAMILIES", (*loading.FAMILIES, ToyFamily))
    toy = LoadedBase(base.base, backbone_of(RenamedPipeline(base.backbone.pipeline)), base.sha256)
    assert toy.backbone.family == "toy"
    for method in ("attndreambooth", "sefi"):
        short = [f"{name}.steps=1" for name in all_methods()[method].settings().stages()]
        train(rex, "rex", toy, method=method, overrides=["augmentation.crops=1", *short])
    request = Request(prompt="a photo of <rex@1>", seeds=[1])
    (ours,) = generate(rex, toy, [request], Path("toy"), with_maps=True)
    (theirs,) = generate(rex, base, [request], Path("sd"), with_maps=True)
    assert ours.image.tobytes() == theirs.image.tobytes()
    shutil.rmtree("toy")

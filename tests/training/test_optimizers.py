"""Optimisers and learning rates: what each step has, and what resume points keep."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from conceptry.methods.method import find_method, resolve_settings
from conceptry.methods.settings import Schedule, StageSettings, TrainingSettings
from conceptry.models.backbone import Backbone
from conceptry.registry.errors import (
    ConceptryError,
    InvalidInput,
    InvalidWeights,
    TrainingInterrupted,
)
from conceptry.training import optimizers, packages
from conceptry.training.callbacks import Checkpoint, Hooks
from conceptry.training.checkpoints import read_resume_point
from conceptry.training.optimizers import (
    _restored,
    bytes_per_weight,
    learning_rates,
    load_state,
    make_optimizer,
    saved_state,
    state_shapes,
)
from conceptry.training.packages import PACKAGES
from conceptry.training.trainer import Trainer, run_one
from conceptry.training.training import Subject, Training
from diffusers.optimization import get_scheduler
from long import quick_for
from PIL import Image
from torch import Tensor, nn

Pictures = list[Image.Image]
KINDS = ("adamw", "adamw8bit", "adafactor", "prodigy", "came", "schedule-free")
SHAPES: dict[str, tuple[int, ...]] = {
    "matrix": (6, 4),
    "kernel": (3, 2, 3, 3),
    "bias": (5,),
    "large": (64, 65),  # in 8 bits, where fewer numbers than 4,096 are not
}
STAGE3 = ("augmentation.crops=2", "stage1.steps=0", "stage2.steps=0", "stage3.batch=2")


def made(kind: Any, rate: float = 1e-2) -> tuple[dict[str, nn.Parameter], torch.optim.Optimizer]:
    """Parameters of many shapes, one of which gets no gradient, and their optimiser."""
    if package := PACKAGES.get(("optimizer", kind)):
        pytest.importorskip(package[0])
    generator = torch.Generator().manual_seed(0)
    learning = {
        name: nn.Parameter(torch.randn(shape, generator=generator))
        for name, shape in SHAPES.items()
    }
    learning["kernel"].data = learning["kernel"].data.to(memory_format=torch.channels_last)
    learning["idle"] = nn.Parameter(torch.ones(2))
    at = {1.0 if kind == "prodigy" else rate: list(learning.values())}
    settings = TrainingSettings(optimizer=kind, weight_decay=0.01)
    return learning, make_optimizer(at, settings)


def take_steps(
    learning: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, steps: range
) -> None:
    """Steps towards 0.5 with a little noise, which follows from the step."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for name in SHAPES:
            parameter = learning[name]
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.grad = parameter.detach() - 0.5 + 0.01 * noise
        optimizer.step()
        optimizer.zero_grad()


def test_the_kinds_are_those_of_the_setting() -> None:
    known = get_args(get_type_hints(TrainingSettings)["optimizer"])
    assert set(KINDS) == set(known)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_goes_on_bit_equal(kind: str) -> None:
    """Nothing but the parameters and what is saved is needed to go on."""
    whole, optimizer = made(kind)
    take_steps(whole, optimizer, range(4))
    kept = {name: value.detach().clone() for name, value in whole.items()}
    saved = {name: value.clone() for name, value in saved_state(optimizer, whole, kind).items()}
    take_steps(whole, optimizer, range(4, 9))
    resumed, again = made(kind)
    for name, value in kept.items():
        resumed[name].data.copy_(value)
    load_state(again, resumed, saved, kind)
    assert saved_state(again, resumed, kind).keys() == saved.keys()
    take_steps(resumed, again, range(4, 9))
    assert all(resumed[name].equal(whole[name]) for name in whole)
    assert resumed["idle"].equal(torch.ones(2))


@pytest.mark.parametrize("kind", KINDS)
def test_each_learns(kind: str) -> None:
    learning, optimizer = made(kind)
    before = (learning["matrix"].detach() - 0.5).square().mean()
    take_steps(learning, optimizer, range(200))
    assert (learning["matrix"].detach() - 0.5).square().mean() < 0.6 * before


@pytest.mark.parametrize("kind", [kind for kind in KINDS if state_shapes(kind, torch.Size())])
def test_a_state_that_does_not_fit_is_told(kind: str) -> None:
    learning, optimizer = made(kind)
    take_steps(learning, optimizer, range(1))
    saved = saved_state(optimizer, learning, kind)
    name = next(name for name in saved if name.endswith(".matrix") and saved[name].dim())
    for odd in ({**saved, name: torch.ones(9, 9)}, {k: v for k, v in saved.items() if k != name}):
        with pytest.raises(InvalidWeights, match="the optimiser's of matrix"):
            load_state(optimizer, learning, odd, kind)
    for name in {name for name in saved if name.startswith("group.")}:
        for odd in ({**saved, name: torch.ones(2)}, {k: v for k, v in saved.items() if k != name}):
            with pytest.raises(InvalidWeights, match=f"the optimiser's of {name[6:]}"):
                load_state(optimizer, learning, odd, kind)


def test_adamw_counts_nothing_for_all() -> None:
    """Points of trainings that had no other optimiser are read as they were."""
    learning, optimizer = made("adamw")
    take_steps(learning, optimizer, range(1))
    saved = saved_state(optimizer, learning, "adamw")
    assert {name.partition(".")[0] for name in saved} == {"step", "exp_avg", "exp_avg_sq"}


def test_how_much_each_keeps() -> None:
    kept = {kind: bytes_per_weight(kind) for kind in KINDS}
    assert kept == {
        "adamw": 8,
        "adamw8bit": 2,
        "adafactor": 0,
        "prodigy": 16,
        "came": 4,
        "schedule-free": 8,
    }


def test_what_an_optimiser_keeps_comes_back_as_it_was() -> None:
    parameter = torch.nn.Parameter(torch.ones(4, 2, 3, 3).to(memory_format=torch.channels_last))
    for kept in (torch.rand(4, 2, 3, 3), torch.tensor(3.0), torch.arange(6, dtype=torch.uint8)):
        found = _restored(kept, parameter)
        assert isinstance(found, Tensor)
        assert found.equal(kept)
        assert found.dtype == kept.dtype
    for number in (7, 0.1, True):
        found = _restored(optimizers._as_tensor(number), parameter)
        assert (found, type(found)) == (number, type(number))
    moment = _restored(torch.rand(4, 2, 3, 3), parameter)
    assert isinstance(moment, Tensor)
    assert moment.stride() == parameter.stride()


@pytest.mark.parametrize("kind", ["adamw8bit", "prodigy", "came", "schedule-free"])
def test_a_package_that_is_missing_is_told_before_anything_is_encoded(
    kind: str, backbone: Backbone, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    words = (*STAGE3, f"optimizer={kind}", "stage3.learning_rate=1")
    with pytest.raises(InvalidInput, match=f"optimizer={kind} needs the package") as error:
        training_of(backbone, pictures, words)
    package = "bitsandbytes" if kind == "adamw8bit" else "pytorch-optimizer"
    assert str(error.value.hint).startswith(f"pip install {package}, or")


# --- learning rates -------------------------------------------------------------------------------

SCHEDULES = get_args(get_type_hints(Schedule)["kind"])


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_rates_are_those_that_diffusers_steps_through(kind: str, warmup: int) -> None:
    stage = StageSettings(steps=12, learning_rate=2e-3, warmup=warmup)
    schedule = Schedule(kind=kind, cycles=2, power=2.0, rules="1:3,0.5:7,0.1")  # pyright: ignore[reportArgumentType]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2e-3)
    theirs = get_scheduler(
        kind,
        optimizer,
        step_rules="1:3,0.5:7,0.1",
        num_warmup_steps=warmup,
        num_training_steps=12,
        num_cycles=2,
        power=2.0,
    )
    expected: list[float] = []
    for _ in range(12):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    ours = learning_rates(stage.learning_rate, stage, schedule)
    assert [ours(step) for step in range(12)] == expected


def test_rates_by_hand() -> None:
    def rates(kind: Any, warmup: int = 0, **options: Any) -> list[float]:
        stage = StageSettings(steps=8, learning_rate=1.0, warmup=warmup)
        return [learning_rates(1.0, stage, Schedule(kind=kind, **options))(i) for i in range(8)]

    assert rates("constant") == [1.0] * 8
    assert rates("constant_with_warmup", 4) == [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]
    assert rates("linear", 4) == [0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25]
    assert rates("cosine")[4] == pytest.approx(0.5)
    assert rates("piecewise_constant", rules="1:2,0.5:5,0.1") == [1, 1, *[0.5] * 3, *[0.1] * 3]


def test_each_stage_has_its_schedule(
    backbone: Backbone, pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[float] = []
    step = torch.optim.AdamW.step

    def stepping(self: Any, *arguments: Any) -> Any:
        found.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", stepping)
    words = ["augmentation.crops=2", "schedule.kind=linear", "stage3.warmup=2"]
    words += ["stage2.steps=0"]
    for i, steps in ((1, 2), (3, 4)):
        words += [f"stage{i}.steps={steps}", f"stage{i}.learning_rate=1e-3", f"stage{i}.batch=1"]
    run_one(training_of(backbone, pictures, tuple(words)), tmp_path / "resume.safetensors")
    assert found == pytest.approx([1e-3, 5e-4, 0, 5e-4, 1e-3, 5e-4])


# --- whole trainings ------------------------------------------------------------------------------


def training_of(
    backbone: Backbone,
    pictures: Pictures,
    overrides: tuple[str, ...],
    method: str = "attndreambooth",
    token: str = "<v>",
    **hooks: Any,
) -> Training:
    found = find_method(method)
    settings = resolve_settings(found, base="tiny", overrides=overrides)
    subject = Subject(photos=pictures, category="dog", tokens=(token,))
    return Training(backbone, found, settings, subject, seed=7, hooks=Hooks(**hooks))


def learned(training: Training, path: Path) -> dict[str, Tensor]:
    path.mkdir(parents=True)
    return run_one(training, path / "resume.safetensors").state()


@pytest.mark.parametrize(
    "extra", quick_for(1, [("optimizer=schedule-free",), ("ema=0.9",)]), ids=str
)
def test_checkpoints_and_previews_have_the_average_and_change_nothing(
    extra: tuple[str, ...], backbone: Backbone, pictures: Pictures, tmp_path: Path
) -> None:
    """A checkpoint after two steps is what a training of two steps ends with."""
    pytest.importorskip("pytorch_optimizer")
    words = (*STAGE3, *extra, "stage3.learning_rate=1e-3")
    ends = {
        steps: learned(
            training_of(backbone, pictures, (*words, f"stage3.steps={steps}")),
            tmp_path / str(steps),
        )
        for steps in (2, 4)
    }
    kept: dict[int, dict[str, Tensor]] = {}
    previews: list[int] = []

    def keep(checkpoint: Checkpoint) -> None:
        state = checkpoint.learned.state()
        kept[checkpoint.step] = {name: value.clone() for name, value in state.items()}

    watched = training_of(
        backbone,
        pictures,
        (*words, "stage3.steps=4"),
        on_checkpoint=keep,
        checkpoint_every=2,
        on_preview=lambda stage, step, images: previews.append(step),
        preview_every=1,
    )
    end = learned(watched, tmp_path / "watched")
    assert previews == [1, 2, 3, 4]
    assert all(end[name].equal(ends[4][name]) for name in end)
    assert all(kept[2][name].equal(ends[2][name]) for name in end)


def test_schedule_free_ends_in_its_average(
    backbone: Backbone, pictures: Pictures, tmp_path: Path
) -> None:
    """Defazio et al. 2024: training is at y = β x + (1 - β) z, and x is the result."""
    pytest.importorskip("pytorch_optimizer")
    words = ("augmentation.crops=2", "optimizer=schedule-free", "embedding.batch=1")
    path = tmp_path / "resume.safetensors"

    def begun(steps: int, **hooks: Any) -> Training:
        overrides = (*words, f"embedding.steps={steps}")
        return training_of(backbone, pictures, overrides, "textual-inversion", **hooks)

    asked = iter([False, False, True])
    with pytest.raises(TrainingInterrupted):
        run_one(begun(9, should_stop=lambda: next(asked)), path)
    point = read_resume_point(path)
    (name,) = point.learned
    at, z = point.learned[name].double(), point.optimizer[f"z.{name}"].double()
    average = (at - 0.1 * z) / 0.9
    assert not torch.allclose(at, average, rtol=1e-4, atol=0)
    end = learned(begun(3), tmp_path / "whole")["token.0"]
    torch.testing.assert_close(end.double(), average, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", quick_for(1, ["prodigy", "schedule-free", "came", "adafactor"]))
def test_concepts_of_a_batch_have_optimisers_of_their_own(
    kind: str, backbone: Backbone, pictures: Pictures, tmp_path: Path
) -> None:
    """Each learns what it learns alone, but for the order of sums."""
    pytest.importorskip("pytorch_optimizer")
    rate = 1 if kind == "prodigy" else 1e-2
    words = ("augmentation.crops=2", "embedding.steps=6", f"embedding.learning_rate={rate}")
    words += (f"optimizer={kind}", "embedding.batch=2")

    def begun(token: str, photos: Pictures) -> Training:
        return training_of(backbone, photos, words, "textual-inversion", token)

    make: list[Callable[[], Training]] = [
        lambda: begun("<v>", pictures[:1]),
        lambda: begun("<w>", pictures[1:]),
    ]
    alone = [learned(each(), tmp_path / str(i)) for i, each in enumerate(make)]
    paths = [tmp_path / f"{i}.safetensors" for i in range(2)]
    together = Trainer([each() for each in make], paths).run()
    for one, other in zip(alone, together, strict=True):
        assert not isinstance(other, ConceptryError)
        for name, value in other.state().items():
            torch.testing.assert_close(value, one[name], atol=2e-4, rtol=2e-2)

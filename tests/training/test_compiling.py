"""Blocks that are compiled do what they did, see hooks that come later, and can be left again.

All but one go without a compiler of C++: torch traces them, and runs what it has traced as it is.
"""

import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conceptry.generation.request import SamplingSettings
from conceptry.generation.sampler import draw_batch
from conceptry.methods.method import find_method, resolve_settings
from conceptry.models.backbone import Backbone
from conceptry.models.compiling import BLOCKS, check_compiler
from conceptry.models.loading import LoadedBase
from conceptry.registry import Registry
from conceptry.registry.errors import InvalidInput
from conceptry.training import train as train_concept
from conceptry.training.callbacks import Hooks
from conceptry.training.estimating import estimate
from conceptry.training.trainer import run_one
from conceptry.training.training import Subject, Training
from long import quick_for
from PIL import Image
from program import invoke
from torch import Tensor

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:torch", "ignore:The .grad attribute:UserWarning"
)

STEPS = tuple(f"stage{i}.{word}" for i in (1, 2, 3) for word in ("steps=2", "batch=2"))


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As compiled, without a compiler."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    settings = torch._dynamo.config
    before = {
        name: getattr(settings, name)
        for name in ("recompile_limit", "accumulated_recompile_limit", "skip_nnmodule_hook_guards")
    }
    yield
    for name, value in before.items():
        setattr(settings, name, value)
    torch._dynamo.reset()


def drawn(backbone: Backbone) -> np.ndarray:
    pictures = draw_batch(backbone, ["a dog"], [0], SamplingSettings(steps=2))
    return np.stack([np.asarray(each) for each in pictures]).astype(int)


def blocks(backbone: Backbone) -> list[Any]:
    return [each for each in backbone.denoiser.modules() if isinstance(each, BLOCKS)]


def test_hooks_that_come_later_are_seen(traced: None, backbone: Backbone) -> None:
    plain = drawn(backbone)
    backbone.set_compiled(True)
    assert len(blocks(backbone)) > 4
    assert all(each._compiled_call_impl is not None for each in blocks(backbone))
    assert np.abs(drawn(backbone) - plain).max() <= 1
    first = next(each for each in blocks(backbone) if hasattr(each, "conv2"))
    hook = first.conv2.register_forward_hook(lambda *given: given[-1] + 3)
    hooked = drawn(backbone)
    assert np.abs(hooked - plain).max() > 1
    hook.remove()
    assert np.abs(drawn(backbone) - plain).max() <= 1
    backbone.set_compiled(False)
    assert all(each._compiled_call_impl is None for each in blocks(backbone))
    hook = first.conv2.register_forward_hook(lambda *given: given[-1] + 3)
    assert np.abs(drawn(backbone) - hooked).max() <= 1
    hook.remove()


def train(backbone: Backbone, photos: list[Image.Image], path: Path, *extra: str) -> Any:
    method = find_method("attndreambooth")
    words = ("augmentation.crops=4", *STEPS, *extra)
    settings = resolve_settings(method, base="tiny", overrides=words)
    subject = Subject(photos=photos, category="dog", tokens=("<v0>",))
    training = Training(backbone, method, settings, subject, seed=7, hooks=Hooks())
    return run_one(training, path / "resume.safetensors").state()


@pytest.mark.parametrize("extra", quick_for(1, [(), ("rank=2", "lora.layers=all")]), ids=str)
def test_a_training_learns_the_same(
    extra: tuple[str, ...],
    traced: None,
    backbone: Backbone,
    pictures: list[Image.Image],
    tmp_path: Path,
) -> None:
    plain = train(backbone, pictures, tmp_path / "plain", *extra)
    found = train(backbone, pictures, tmp_path / "compiled", "compile=true", *extra)
    assert found.keys() == plain.keys()
    for name, value in plain.items():
        assert torch.allclose(found[name].float(), value.float(), rtol=1e-3, atol=1e-5), name
    assert all(each._compiled_call_impl is None for each in blocks(backbone))


def test_a_machine_that_cannot_compile_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(_: Any, **__: Any) -> Any:
        def run(_: Tensor) -> Tensor:
            raise RuntimeError("No working C++ compiler found\nin torch/_inductor")

        return run

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(InvalidInput, match=r"this machine: No working C\+\+ compiler found$"):
        check_compiler(torch.device("cpu"))
    registry = str(tmp_path / "concepts.db")
    done = invoke("generate", "a dog", "-n", "1", "--compile", "--registry", registry)
    assert done.exit_code == 2
    assert "cannot compile" in done.stderr
    assert not list(tmp_path.glob("pictures/*"))


def test_it_says_so_before_class_pictures_are_drawn(
    monkeypatch: pytest.MonkeyPatch, rex: Registry, base: LoadedBase, tmp_path: Path
) -> None:
    def fails(_: Any) -> None:
        raise InvalidInput("torch cannot compile")

    monkeypatch.setattr("conceptry.training.training.check_compiler", fails)
    words = ("compile=true", "prior.weight=1", "prior.num_images=4", "stage3.steps=2")
    with pytest.raises(InvalidInput, match="cannot compile"):
        train_concept(rex, "rex", base, overrides=words)
    assert not rex.show("rex").runs
    assert not list(tmp_path.rglob("class-pictures"))
    estimates = estimate(rex, "rex", base, overrides=("compile=true", *STEPS))
    assert [each.name for each in estimates.stages] == ["stage1", "stage2", "stage3"]


@pytest.mark.long
@pytest.mark.skipif(
    not shutil.which(os.environ.get("CXX", "g++")), reason="needs a compiler of C++"
)
def test_compiled_code_draws_the_same(backbone: Backbone) -> None:
    plain = drawn(backbone)
    backbone.set_compiled(True)
    assert np.abs(drawn(backbone) - plain).max() <= 1
    torch._dynamo.reset()

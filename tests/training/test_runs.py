"""From photos in a registry to pictures of the concept, by the calls that scripts use."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conceptry.adapters.file_format import read_adapter
from conceptry.generation.injection import expand_prompt, inject_concepts
from conceptry.generation.prompt_syntax import resolve_prompt
from conceptry.generation.request import SamplingSettings
from conceptry.generation.sampler import draw
from conceptry.models.loading import LoadedBase
from conceptry.registry import Registry
from conceptry.registry.errors import (
    InvalidInput,
    NotFound,
    RegistryBusy,
    StorageError,
    TrainingInterrupted,
)
from conceptry.training.callbacks import Hooks
from conceptry.training.class_pictures import class_pictures
from conceptry.training.runs import Trained, resume, train
from drawing import draw_file
from long import quick_for
from PIL import Image
from safetensors.torch import load_file

SHORT = ("augmentation.crops=4", *(f"stage{i}.steps=2" for i in (1, 2, 3)))
PROMPTS = 'prompts=["a photo of a {}"]'
DRAWING = SamplingSettings(steps=2, guidance=3.0)


def teach(registry: Registry, base: LoadedBase, **options: Any) -> Trained:
    options = {"overrides": SHORT, "seed": 3} | options
    return train(registry, "rex", base, **options)


def pixels(registry: Registry, base: LoadedBase, prompt: str) -> np.ndarray:
    with inject_concepts(base, resolve_prompt(registry, prompt)) as worn:
        (drawn,) = draw(base, expand_prompt(prompt, worn), [5], DRAWING)
    return np.asarray(drawn.image, dtype=int)


def stop_after(count: int) -> Hooks:
    calls = iter(range(1, 1000))
    return Hooks(should_stop=lambda: next(calls) >= count)


def test_a_training_leaves_a_version_and_its_record(rex: Registry, base: LoadedBase) -> None:
    trained = teach(rex, base)
    concept = rex.show("rex")
    (run,), (version,) = concept.runs, concept.versions
    assert (trained.version, version.run, run.run) == (1, trained.run, trained.run)
    assert (run.status, run.method, run.seed) == ("done", "attndreambooth", 3)
    assert run.base_sha256 == base.sha256
    stage = run.config["stage1"]
    assert isinstance(stage, dict)
    assert stage["steps"] == 2
    assert [(stage.name, stage.steps) for stage in trained.stages] == [
        ("stage1", 2),
        ("stage2", 2),
        ("stage3", 2),
    ]
    assert not list(rex.location.runs.glob("*/")), "nothing of the run is left beside the registry"


def test_pictures_are_of_the_concept_and_the_base_stays_as_it_was(
    rex: Registry, base: LoadedBase
) -> None:
    before = pixels(rex, base, "a photo of a dog")
    teach(rex, base, overrides=(*SHORT, "stage1.learning_rate=1"))
    untaught = pixels(rex, base, "a photo of a <rex:0>")
    assert not np.array_equal(pixels(rex, base, "a photo of a <rex>"), untaught)
    assert np.array_equal(pixels(rex, base, "a photo of a dog"), before)
    once = pixels(rex, base, "a photo of a <rex@1>")
    assert np.array_equal(once, pixels(rex, base, "a photo of a <rex>"))


def test_without_strength_a_word_is_its_category(rex: Registry, base: LoadedBase) -> None:
    overrides = ("embedding.steps=2", "embedding.learning_rate=1", "augmentation.crops=2")
    teach(rex, base, method="textual-inversion", overrides=overrides)
    gap = pixels(rex, base, "a photo of a <rex:0>") - pixels(rex, base, "a photo of a dog")
    assert abs(gap).max() <= 1


def test_two_concepts_in_one_prompt(rex: Registry, base: LoadedBase, photos: Path) -> None:
    rex.add("mia", [photos], category="cat")
    for name in ("rex", "mia"):
        train(rex, name, base, overrides=(*SHORT, "stage1.learning_rate=1"))
    both = pixels(rex, base, "a <rex> and a <mia>")
    assert not np.array_equal(both, pixels(rex, base, "a <rex> and a <mia:0>"))
    assert not np.array_equal(both, pixels(rex, base, "a <rex:0> and a <mia>"))


@pytest.mark.parametrize("steps", quick_for(1, [3, 1, 6]))
def test_an_interrupted_training_goes_on_to_the_same_weights(
    steps: int, rex: Registry, base: LoadedBase
) -> None:
    teach(rex, base)
    with pytest.raises(TrainingInterrupted, match="saved") as stopped:
        teach(rex, base, hooks=stop_after(steps))
    assert stopped.value.hint == "concept train rex --resume"
    assert rex.show("rex").runs[-1].status == "interrupted"
    resumed = resume(rex, "rex", base)
    assert resumed.version == 2
    whole, gone_on = (load_file(resolve_prompt(rex, f"<rex@{n}>")[0].path) for n in (1, 2))
    assert all(whole[name].equal(gone_on[name]) for name in whole)


def test_there_may_be_nothing_to_go_on_with(rex: Registry, base: LoadedBase) -> None:
    with pytest.raises(NotFound, match="no unfinished training"):
        resume(rex, "rex", base)
    teach(rex, base)
    with pytest.raises(NotFound, match="no unfinished training"):
        resume(rex, "rex", base)


def test_another_base_model_is_refused(rex: Registry, base: LoadedBase) -> None:
    with pytest.raises(TrainingInterrupted):
        teach(rex, base, hooks=stop_after(1))
    former = replace(base, sha256="0" * 64)
    other = replace(former, base=replace(base.base, name="other"))
    with pytest.raises(InvalidInput, match="began on another base model") as refused:
        resume(rex, "rex", other)
    assert refused.value.hint == f"--base {base.base.name}"
    with pytest.raises(InvalidInput, match="when that had other weights") as refused:
        resume(rex, "rex", former)
    assert refused.value.hint == "concept train rex"
    resume(rex, "rex", base)
    with pytest.raises(InvalidInput, match="rex@1 was trained on another base model") as refused:
        pixels(rex, other, "a photo of <rex>")
    assert refused.value.hint == f"--base {base.base.name}"
    with pytest.raises(InvalidInput, match="when that had other weights") as refused:
        pixels(rex, former, "a photo of <rex>")
    assert refused.value.hint == "concept train rex"


def test_one_training_at_a_time(rex: Registry, base: LoadedBase) -> None:
    with rex.training_lock("rex"), pytest.raises(RegistryBusy, match="rex is being trained"):
        teach(rex, base)


def test_class_pictures_are_drawn_once(
    rex: Registry, base: LoadedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ("unet.steps=1", "augmentation.crops=2", "prior.num_images=3")
    teach(rex, base, method="dreambooth", overrides=overrides)
    whole = {path: path.read_bytes() for path in rex.location.cache.rglob("*.png")}
    assert len(whole) == 8, "in whole batches, so that their number changes no picture"
    first = min(whole)
    first.write_bytes(whole[first][:100])
    teach(rex, base, method="dreambooth", overrides=overrides)
    assert first.read_bytes() == whole[first], "a damaged one is drawn again"
    monkeypatch.setattr("conceptry.training.class_pictures.replace_picture", _never)
    teach(rex, base, method="dreambooth", overrides=overrides)


def test_class_pictures_are_read_when_they_are_needed(rex: Registry, base: LoadedBase) -> None:
    pictures = class_pictures(rex, base, "dog", 3)
    assert len(pictures) == 3
    paths = sorted(rex.location.cache.rglob("*.png"))
    paths[1].unlink()
    assert pictures[2].tobytes() == Image.open(paths[2]).convert("RGB").tobytes()
    with pytest.raises(StorageError, match="is gone"):
        pictures[1].load()


def _never(*_: object) -> None:
    raise AssertionError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overrides": ("stage4.steps=1",)}, 'no setting "stage4"'),
        ({"overrides": ("stage3.stepz=1",)}, 'no setting "stage3.stepz"'),
        ({"overrides": ("stage3=1",)}, "is a group of settings"),
        ({"overrides": ("stage3.steps=-1",)}, "stage3.steps is -1: expected 0 to"),
        ({"overrides": ("stage3.steps=many",)}, "expected a whole number"),
        ({"overrides": ("stage3.steps",)}, "sets nothing"),
        ({"overrides": ("optimizer=sgd",)}, "expected adamw or adamw8bit or"),
        ({"overrides": ("optimizer=adamw8bit",)}, "bitsandbytes"),
        ({"overrides": [f"stage{i}.steps=0" for i in (1, 2, 3)]}, "all stages have 0 steps"),
        ({"method": "attendreambooth"}, 'no method "attendreambooth"'),
        ({"preset": "quick"}, 'has no preset "quick"'),
    ],
)
def test_wrong_settings_are_told(
    options: dict[str, Any],
    message: str,
    rex: Registry,
    base: LoadedBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("conceptry.training.packages.find_spec", lambda _: None)  # no extras
    if options.get("overrides") == ("optimizer=adamw8bit",):
        options = {"overrides": (*SHORT, "optimizer=adamw8bit")}
    with pytest.raises((InvalidInput, NotFound), match=message):
        teach(rex, base, **options)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("quantize=4bit", "rank=2"), "quantize=4bit needs the package bitsandbytes"),
        (("optimizer=came",), "optimizer=came needs the package pytorch-optimizer"),
        (("resolution=17",), "expected a multiple of 2"),
        ((f'prompts=["{"so " * 90}{{}}"]',), "the text encoder reads"),
        (("captions.share=1",), "the caption 'so so"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_told_before_class_pictures_are_drawn(
    words: tuple[str, ...],
    message: str,
    rex: Registry,
    base: LoadedBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("conceptry.training.packages.find_spec", lambda _: None)
    photo = rex.show("rex").images[0].sha256
    rex.edit("rex", captions={photo: "so " * 90})
    drawn: list[object] = []
    hooks = Hooks(on_class_picture=lambda *each: drawn.append(each))
    with pytest.raises(InvalidInput, match=message):
        teach(rex, base, method="dreambooth", overrides=words, hooks=hooks)
    assert drawn == []


def test_attention_to_the_category_needs_prompts_that_name_it(
    rex: Registry, base: LoadedBase
) -> None:
    words = ["embedding.mean_weight=1", "embedding.steps=1", "augmentation.crops=2"]
    with pytest.raises(InvalidInput, match=r"mean_weight compares .* 'a photo of a a' does not"):
        teach(rex, base, method="textual-inversion", overrides=[*words, PROMPTS])
    named = 'prompts=["a photo of a {} dog"]'
    assert teach(rex, base, method="textual-inversion", overrides=[*words, named]).version == 1


def test_rates_are_read_as_numbers(rex: Registry, base: LoadedBase) -> None:
    teach(rex, base, overrides=(*SHORT, "stage1.learning_rate=1e-4"))
    stage = rex.show("rex").runs[0].config["stage1"]
    assert isinstance(stage, dict)
    assert stage["learning_rate"] == 1e-4


def test_an_adapter_says_what_it_fits(rex: Registry, base: LoadedBase) -> None:
    teach(rex, base, overrides=(*SHORT, "num_tokens=2"))
    state, fits = read_adapter(Path(resolve_prompt(rex, "<rex>")[0].path))
    assert (fits.base_sha256, fits.category, fits.num_tokens) == (base.sha256, "dog", 2)
    assert state["token.0"].shape == (2, 32)


def test_a_run_goes_on_with_the_photos_that_it_began_with(
    rex: Registry, base: LoadedBase, tmp_path: Path
) -> None:
    teach(rex, base)
    with pytest.raises(TrainingInterrupted):
        teach(rex, base, hooks=stop_after(1))
    rex.add("rex", [draw_file(tmp_path / "new.png", seed=9)])
    resume(rex, "rex", base)
    whole, gone_on = (load_file(resolve_prompt(rex, f"<rex@{n}>")[0].path) for n in (1, 2))
    assert all(whole[name].equal(gone_on[name]) for name in whole)
    with pytest.raises(TrainingInterrupted):
        teach(rex, base, hooks=stop_after(1))
    rex.edit("rex", remove_images=["new.png"])
    with pytest.raises(InvalidInput, match="1 of the photos that the run of rex began with"):
        resume(rex, "rex", base)


def test_previews_change_nothing_of_what_is_learned(rex: Registry, base: LoadedBase) -> None:
    strips: list[tuple[str, int, int]] = []

    def on_preview(stage: str, step: int, images: list[Image.Image]) -> None:
        strips.append((stage, step, len(images)))

    shown = teach(rex, base, hooks=Hooks(on_preview=on_preview, preview_every=2))
    plain = teach(rex, base)
    assert strips == [(f"stage{i}", 2, 4) for i in (1, 2, 3)]
    assert shown.previews is not None
    assert plain.previews is None
    one, two = (rex.show("rex").versions[i].artifacts[0].sha256 for i in (0, 1))
    assert one == two


@pytest.mark.long
def test_a_resumed_training_goes_on_with_its_previews(rex: Registry, base: LoadedBase) -> None:
    with pytest.raises(TrainingInterrupted):
        teach(rex, base, hooks=replace(stop_after(3), preview_every=1))
    trained = resume(rex, "rex", base, hooks=Hooks(preview_every=1))
    with Image.open(str(trained.previews)) as sheet:
        assert 6 * 150 < sheet.height < 7 * 150  # all six strips, each once


@pytest.mark.long
def test_gc_keeps_the_resume_point_that_a_training_goes_on_from(
    rex: Registry, base: LoadedBase
) -> None:
    for _ in range(2):
        with pytest.raises(TrainingInterrupted):
            teach(rex, base, hooks=stop_after(3))
    assert rex.gc(grace=0).temporary == 1  # that of the first, which nothing goes on with
    assert resume(rex, "rex", base).version == 1
    assert rex.gc(grace=0).temporary == 0


@pytest.mark.long
def test_a_run_goes_on_with_the_category_that_it_began_with(
    rex: Registry, base: LoadedBase
) -> None:
    teach(rex, base)
    with pytest.raises(TrainingInterrupted):
        teach(rex, base, hooks=stop_after(3))
    rex.edit("rex", category="cat")
    resume(rex, "rex", base)
    one, two = (rex.show("rex").versions[i].artifacts[0].sha256 for i in (0, 1))
    assert one == two


def test_class_pictures_can_be_interrupted_and_stay(rex: Registry, base: LoadedBase) -> None:
    words = ("augmentation.crops=2", "unet.steps=1", "prior.num_images=10")
    drawn: list[tuple[int, int]] = []
    hooks = Hooks(should_stop=lambda: True, on_class_picture=lambda *each: drawn.append(each))
    with pytest.raises(TrainingInterrupted, match="class picture 8 of 10"):
        teach(rex, base, method="dreambooth", overrides=words, hooks=hooks)
    hooks = Hooks(on_class_picture=lambda *each: drawn.append(each))
    assert resume(rex, "rex", base, hooks=hooks).version == 1
    assert drawn == [(8, 10), (10, 10)]


def test_class_pictures_that_have_no_room_at_once_are_drawn_in_parts(
    rex: Registry, base: LoadedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    module = import_module("conceptry.training.class_pictures")
    plain = module.draw

    def crowded(*arguments: Any, batch: int) -> Any:
        batches.append(batch)
        if batch > 2:
            raise torch.OutOfMemoryError
        return plain(*arguments, batch=batch)

    monkeypatch.setattr(module, "draw", crowded)
    assert len(class_pictures(rex, base, "dog", 8)) == 8
    assert batches == [8, 4, 2]

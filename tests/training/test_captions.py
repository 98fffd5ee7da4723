"""Captions as training prompts: how they name the concept, and how often they are drawn."""

from collections import Counter
from typing import Any

import pytest
import torch
from conceptry.adapters.prompt_encoding import caption_prompt
from conceptry.generation.prompt_syntax import resolve_prompt
from conceptry.methods.method import find_method, resolve_settings
from conceptry.methods.settings import Noise
from conceptry.models.backbone import Backbone
from conceptry.models.loading import LoadedBase
from conceptry.registry import Registry
from conceptry.registry.errors import InvalidInput, TrainingInterrupted
from conceptry.training.callbacks import Hooks, StepReport
from conceptry.training.latents import LatentPool
from conceptry.training.runs import resume, train, train_many
from conceptry.training.sources import Captions, Minibatch, SampleSource
from conceptry.training.training import Subject, Training
from long import quick_for
from PIL import Image
from safetensors.torch import load_file

SHORT = ("augmentation.crops=4", *(f"stage{i}.steps=2" for i in (1, 2, 3)))
CAPTIONED = (*SHORT, "captions.share=0.7", "captions.dropout=0.3", "stage1.mean_weight=0.1")


@pytest.mark.parametrize(
    ("caption", "prompt"),
    [
        ("a dog on a sofa", "a V dog on a sofa"),
        ("Dog, asleep", "V dog, asleep"),
        ("a dog beside another dog", "a V dog beside another dog"),
        ("a {} on a dog bed", "a V dog on a dog bed"),
        ("{} and {}", "V dog and dog"),
        ("on a sofa at night", "V dog, on a sofa at night"),
        ("two dogs, a hotdog", "V dog, two dogs, a hotdog"),
        ("a dog-house", "a V dog-house"),
        ("  a\tdog\n asleep ", "a V dog asleep"),
        ("a dog, <1#0> <rex@3#1>", "a V dog, 1#0 rex@3#1"),
    ],
)
def test_a_caption_names_the_concept_once(caption: str, prompt: str) -> None:
    assert caption_prompt(caption, "V dog", "dog") == prompt


def test_a_category_of_several_words_and_signs() -> None:
    assert caption_prompt("a Plush Toy asleep", "V", "plush toy") == "a V asleep"
    assert caption_prompt("a (toy) asleep", "V (toy)", "(toy)") == "a V (toy) asleep"


def drawn(share: float, dropout: float) -> tuple[Minibatch, Minibatch]:
    """Batches of 4000 with and without captions; of three pictures the last has none."""
    own = torch.tensor([3, 4, -1])
    pool = LatentPool(torch.zeros(3, 4, 2, 2), torch.ones(3, 4, 2, 2), captions=own)
    pool.mean[:] = torch.arange(3.0)[:, None, None, None] * 100
    captions = Captions(2, share, dropout)
    prompts = ["a", "b", "bare", "first", "second"]
    batches: list[Minibatch] = []
    for used, names in ((captions, prompts), (None, prompts[:2])):
        sources = [
            SampleSource("diffusion", [pool], names, captions=used),
            SampleSource("prior", [pool], ["c"]),
        ]
        generator = torch.Generator().manual_seed(3)
        batches.append(Minibatch.sample(sources, 4000, 1000, Noise(), generator))
    return batches[0], batches[1]


@pytest.mark.parametrize("share", [0.4, 1.0])
@pytest.mark.parametrize("dropout", [0.0, 0.25, 1.0])
def test_how_often_captions_are_drawn(share: float, dropout: float) -> None:
    batch, _ = drawn(share, dropout)
    pictures = (batch.samples[0].latents.mean((1, 2, 3)) / 100).round().long().tolist()
    prompts = batch.samples[0].prompts.tolist()
    for picture, own in ((0, 3), (1, 4)):
        found = Counter(p for i, p in zip(pictures, prompts, strict=True) if i == picture)
        total = found.total()
        assert found[own] / total == pytest.approx(share * (1 - dropout), abs=0.05)
        assert found[2] / total == pytest.approx(share * dropout, abs=0.05)
        assert (found[0] + found[1]) / total == pytest.approx(1 - share, abs=0.05)
        assert set(found) <= {0, 1, 2, own}, "another picture's caption is never taken"
    assert {p for i, p in zip(pictures, prompts, strict=True) if i == 2} == {0, 1}


def test_captions_change_nothing_else_that_is_drawn() -> None:
    with_captions, without = drawn(0.5, 0.1)
    assert with_captions.samples[0].timesteps.equal(without.samples[0].timesteps)
    for one, other in zip(with_captions.samples, without.samples, strict=True):
        assert one.latents.equal(other.latents)
        assert one.noise.equal(other.noise)


def training(backbone: Backbone, captions: Any, *overrides: str, method: str) -> Training:
    settings = resolve_settings(find_method(method), base="tiny", overrides=overrides)
    subject = Subject(
        photos=[Image.new("RGB", (32, 32), "red")] * 3,
        category="dog",
        tokens=("<v>",),
        captions=captions,
    )
    return Training(backbone, find_method(method), settings, subject, seed=0)


def test_prompts_are_templates_then_the_concept_then_captions(backbone: Backbone) -> None:
    captions = ["a dog asleep", None, "a dog asleep"]
    used = training(backbone, captions, "captions.share=0.5", method="attndreambooth")
    assert used.prompts == ["a photo of a <v> dog", "<v> dog", "a <v> dog asleep"]
    unused = training(backbone, captions, method="attndreambooth")
    assert unused.prompts == ["a photo of a <v> dog"]
    none = training(backbone, [None] * 3, "captions.share=0.5", method="attndreambooth")
    assert none.prompts == ["a photo of a <v> dog"]


def test_a_caption_that_is_too_long_is_told(backbone: Backbone) -> None:
    captions = ["a dog", "a dog " + "and a cat " * 40, None]
    with pytest.raises(InvalidInput, match=r"the caption 'a dog and a cat.*tokens") as told:
        training(backbone, captions, "captions.share=0.5", method="sefi")
    assert "concept edit" in str(told.value.hint)
    training(backbone, captions, method="sefi")


@pytest.fixture
def captioned(rex: Registry) -> Registry:
    first, second, _ = rex.show("rex").images
    rex.edit(
        "rex", captions={first.sha256: "a dog on the beach", second.sha256: "in the snow at night"}
    )
    return rex


def tensors(registry: Registry, number: int) -> Any:
    return load_file(resolve_prompt(registry, f"<rex@{number}>")[0].path)


@pytest.mark.parametrize(
    "case",
    quick_for(
        2,
        [
            ("attndreambooth", CAPTIONED),
            ("dreambooth", ("unet.steps=2", "captions.share=1", "prior.num_images=2")),
            (
                "textual-inversion",
                ("embedding.steps=2", "captions.share=1", "loss.subject_wise=0.1"),
            ),
            (
                "sefi",
                (
                    "embedding.steps=2",
                    "embedding.batch=8",
                    "captions.share=1",
                    "captions.dropout=0.5",
                ),
            ),
        ],
    ),
    ids=str,
)
def test_every_method_takes_captions(
    case: tuple[str, tuple[str, ...]], captioned: Registry, base: LoadedBase
) -> None:
    method, overrides = case
    words = ("augmentation.crops=3", *overrides)
    without = [word for word in words if not word.startswith("captions.")]
    losses: dict[int, list[float]] = {}
    for i, chosen in enumerate((words, without)):
        found = losses.setdefault(i, [])

        def note(report: StepReport, found: list[float] = found) -> None:
            found.append(report.losses["diffusion"])

        train(captioned, "rex", base, method=method, overrides=chosen, hooks=Hooks(on_step=note))
    assert losses[0] != losses[1]


@pytest.mark.long
@pytest.mark.parametrize("steps", [1, 4])
def test_a_run_goes_on_with_the_captions_that_it_began_with(
    steps: int, captioned: Registry, base: LoadedBase
) -> None:
    train(captioned, "rex", base, overrides=CAPTIONED)
    calls = iter(range(1, 100))
    stopping = Hooks(should_stop=lambda: next(calls) >= steps)
    with pytest.raises(TrainingInterrupted):
        train(captioned, "rex", base, overrides=CAPTIONED, hooks=stopping)
    (image, *_) = captioned.show("rex").images
    captioned.edit("rex", captions={image.sha256: "a dog with a hat"})
    resume(captioned, "rex", base)
    whole, gone_on = tensors(captioned, 1), tensors(captioned, 2)
    assert all(whole[name].equal(gone_on[name]) for name in whole)


def test_in_a_batch_each_has_its_own_captions(captioned: Registry, base: LoadedBase) -> None:
    image = captioned.show("rex").images[2]
    captioned.add("mia", [captioned.path_of(image.sha256)], category="cat", caption="a cat asleep")
    overrides = ("augmentation.crops=3", "embedding.steps=3", "captions.share=1")
    train_many(captioned, ["rex", "mia"], base, method="sefi", overrides=overrides)
    alone = train(captioned, "rex", base, method="sefi", overrides=overrides)
    both, one = tensors(captioned, 1), tensors(captioned, alone.version)
    for name, value in one.items():
        torch.testing.assert_close(both[name], value, rtol=1e-3, atol=1e-4)

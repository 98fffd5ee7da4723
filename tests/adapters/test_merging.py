"""Changes of weights of several concepts, merged and exported as one model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conceptry.adapters import merging
from conceptry.adapters.adapter import injected
from conceptry.adapters.formats.exporting import MergedReport, export_merged
from conceptry.adapters.formats.options import ExportOptions, parse_format
from conceptry.adapters.merging import merged
from conceptry.adapters.weight_delta import WeightDelta
from conceptry.generation.prompt_syntax import resolve_version
from conceptry.registry import InvalidImage, InvalidInput
from diffusers import StableDiffusionPipeline
from drawing import draw_file
from exported import Taught, add_embedding, plain
from long import quick_for
from safetensors import safe_open
from safetensors.torch import load_file

PROMPT = "a photo of a <{}> dog"


@pytest.fixture
def kind() -> str:
    return "SD"


@pytest.fixture
def two(taught: Taught) -> Taught:
    """With mia, who has photos and no version."""
    taught.registry.add("mia", [draw_file(taught.folder / "mia.png", 9)], category="dog")
    return taught


def export(two: Taught, form: str, name: str, *names: str, **options: Any) -> MergedReport:
    chosen = [
        resolve_version(two.registry, two.registry.show(each)) for each in names or ("rex", "mia")
    ]
    return export_merged(
        two.registry,
        [(each.concept, each.version, Path(each.path)) for each in chosen],
        two.folder / name,
        ExportOptions(format=parse_format(form), **options),
    )


def test_equal_changes_are_merged_into_the_same(taught: Taught) -> None:
    backbone = taught.base.backbone
    own = WeightDelta.from_state(taught.deltas())
    found = merged(backbone, [own, own], ["dog", "cat"])
    assert found.names == own.names
    modules = dict(backbone.denoiser.named_modules())
    conditioning = backbone.encode_prompts(["a photo of a dog"], backbone.size)
    states = conditioning.states[0]
    for name in found.names:
        wanted, got = own.deltas[name].float(), found.deltas[name]
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):  # seen with these words
            gap = (states @ (got - wanted).T).norm() / (states @ wanted.T).norm()
            assert gap < 0.05, name
        elif type(modules.get(name.removesuffix(".weight"))).__name__ not in ("Linear", "Conv2d"):
            torch.testing.assert_close(got, 2 * wanted)  # norms and biases are added up


def test_a_merged_change_is_nearer_to_each_than_a_sum_or_a_mean(taught: Taught) -> None:
    backbone = taught.base.backbone
    changes = [WeightDelta.from_state(taught.factors()) for _ in range(2)]
    wholes = [each.multiplied_out(backbone).deltas for each in changes]
    phrases = ["dog", "house"]
    found = merged(backbone, changes, phrases).deltas
    modules = merging._layers(backbone, dict.fromkeys(found))
    grams = list[dict[str, torch.Tensor]]()
    for change, phrase in zip(changes, phrases, strict=True):
        with injected(backbone, [change]):
            grams.append(merging._input_grams(backbone, modules, phrase))

    def gap(name: str, change: torch.Tensor) -> float:
        pairs = zip(wholes, grams, strict=True)
        return sum(
            float(((change - own[name]) @ gram[name] * (change - own[name])).sum())
            for own, gram in pairs
        )

    assert modules.keys() == found.keys()
    for name, change in found.items():
        total = wholes[0][name] + wholes[1][name]
        assert gap(name, change) < gap(name, total / 2) < gap(name, total), name


def test_a_folder_draws_each(two: Taught) -> None:
    two.add(two.vectors(2) | two.factors())
    two.add(two.vectors(1), num_tokens=1, to="mia")  # changes no weights
    done = export(two, "diffusers", "pets")
    assert [each.trigger for each in done.concepts] == ["<rex> dog", "<mia> dog"]
    pipeline = StableDiffusionPipeline.from_pretrained(two.folder / "pets", local_files_only=True)
    rex, mia, dog = (
        plain(pipeline, f"a photo of a {each}") for each in ("<rex> dog", "<mia> dog", "dog")
    )
    assert (rex != mia).any()
    assert (mia != dog).any()


@pytest.mark.parametrize("form", quick_for(1, ["diff", "svd:4", "checkpoint"]))
def test_weights_have_an_embedding_for_each_concept(two: Taught, form: str) -> None:
    two.add(two.vectors(2) | two.factors())
    two.add(two.vectors(2) | two.deltas(), to="mia")
    done = export(two, form, "pets.safetensors")
    names = ["pets.safetensors", "pets-rex.safetensors", "pets-mia.safetensors"]
    assert [Path(each.path).name for each in done.files] == names
    assert [each.trigger for each in done.concepts] == ["pets-rex dog", "pets-mia dog"]
    assert (done.kept is not None) == form.startswith("svd")
    assert load_file(two.folder / names[0])
    with safe_open(two.folder / names[0], "pt") as opened:
        assert opened.metadata()["modelspec.title"] == "rex@1, mia@1"
        assert opened.metadata()["modelspec.trigger_phrase"] == "pets-rex dog, pets-mia dog"
    for name in names[1:]:
        add_embedding(two.reloaded(), two.folder / name, "<it>")


def test_a_thumbnail_that_is_none_is_told_before_anything_is_merged(
    two: Taught, monkeypatch: pytest.MonkeyPatch
) -> None:
    two.add(two.vectors(2) | two.factors())
    two.add(two.vectors(2) | two.factors(), to="mia")
    load = "conceptry.adapters.formats.exporting.load_base"
    monkeypatch.setattr(load, lambda *_, **__: pytest.fail("a base model was loaded"))
    with pytest.raises(InvalidImage, match=r"none\.png"):
        export(two, "diff", "pets.safetensors", thumbnail=two.folder / "none.png")


def test_what_cannot_be_one_model_is_refused(two: Taught) -> None:
    two.add(two.vectors(2))
    two.add(two.vectors(2), to="mia")

    def refused(match: str, form: str = "diff", *names: str, **options: Any) -> None:
        with pytest.raises(InvalidInput, match=match):
            export(two, form, "pets.safetensors", *names, **options)

    refused("none of rex@1, mia@1 changes weights")
    refused("rex is named twice", "diff", "rex", "rex")
    two.add(two.vectors(2) | two.factors())
    refused("--half is for formats", half=True)
    two.add(two.vectors(2) | two.text_factors(), to="mia")
    refused("mia@2 changes text encoders too")
    two.add(two.vectors(2) | two.factors(), to="mia", base_sha256="0" * 64)
    refused("mia@3 was trained on another base model than rex@2")
    assert not list(two.folder.glob("pets*"))

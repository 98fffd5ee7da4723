"""Imported versions beside others: drawn again, in company, scored, and refused where they fail."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conceptry.adapters.formats.importing import ImportOptions, import_path
from conceptry.evaluation.running import EvalRequest, score
from conceptry.generation import Request, generate, reproduce
from conceptry.generation.prompt_syntax import resolve_version
from conceptry.models.loading import LoadedBase
from conceptry.registry import Registry
from conceptry.registry.errors import InvalidInput, InvalidWeights, NotFound
from conceptry.registry.originals import Original
from conceptry.registry.tensors import read_header
from copies import copied, made_with_rex
from exported import SETTINGS, Taught
from foreign_files import write_embedding, write_lora
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def made(_one_base: LoadedBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")

    def fill(registry: Registry, _: Path) -> None:
        taught = Taught(registry, _one_base, folder)
        taught.add(taught.vectors(2) | taught.factors())
        taught.export("lora-kohya", "max.safetensors")
        import_path(registry, folder / "max.safetensors", ImportOptions())

    return made_with_rex(folder, fill)


@pytest.fixture
def taught(made: Path, base: LoadedBase, tmp_path: Path) -> Iterator[Taught]:
    """A tiny base model, and max, who was imported: a LoRA with a word."""
    with copied(made, tmp_path) as registry:
        yield Taught(registry, base, tmp_path)


def draw(taught: Taught, prompt: str, **options: Any) -> Path:
    request = Request(prompt=prompt, seeds=(3,), settings=SETTINGS)
    drawing = generate(taught.registry, taught.base, [request], taught.folder / "drawn", **options)
    (picture,) = drawing
    return picture.path


def test_a_picture_is_drawn_again_whatever_the_concept_is_called(taught: Taught) -> None:
    path = draw(taught, "a photo of a <max>")
    taught.registry.rename("max", "moritz")
    taught.registry.edit("moritz", category="cat", notes="another")
    again, is_same = reproduce(taught.registry, taught.base, path, taught.folder / "again")
    assert is_same
    trace = taught.registry.trace(again.sha256)
    assert [(each.concept, each.method, each.images) for each in trace.sources] == [
        ("moritz", "import", [])
    ]


def test_equal_files_with_other_words_are_another_version(taught: Taught) -> None:
    path = draw(taught, "a photo of a <max>")
    taught.registry.remove(["max"])
    import_path(taught.registry, taught.folder / "max.safetensors", ImportOptions(trigger="{} cat"))
    with pytest.raises(NotFound, match="other weights"):
        reproduce(taught.registry, taught.base, path, taught.folder / "again")


def test_strengths_and_company(taught: Taught) -> None:
    both = np.asarray(_opened(draw(taught, "a <max> and a <rex>")))
    assert not np.array_equal(both, np.asarray(_opened(draw(taught, "a <max:0.5> and a <rex>"))))
    draw(taught, "a <max> and a <rex>", with_leaks=True, with_maps=True)


def _opened(path: Path) -> "np.ndarray":
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image, dtype=np.int16)


def test_weights_without_words_have_no_maps(taught: Taught) -> None:
    tensors = taught.factors()
    taught.add(taught.vectors(1) | tensors, num_tokens=1)
    taught.export("lora-kohya", "style.safetensors", overwrite=True)
    (taught.folder / "style-embedding.safetensors").unlink()
    from safetensors.torch import load_file, save_file

    plain = load_file(taught.folder / "style.safetensors")
    save_file(plain, taught.folder / "plain.safetensors")
    import_path(taught.registry, taught.folder / "plain.safetensors", ImportOptions())
    draw(taught, "a photo of a dog <plain>")
    with pytest.raises(InvalidInput, match="plain@1 has no words in prompts"):
        draw(taught, "a photo of a dog <plain>", with_maps=True)


@pytest.mark.parametrize("write", [write_embedding, write_lora])
def test_another_base_model_is_told_which_one_fits(taught: Taught, write: object) -> None:
    assert callable(write)
    write(taught.folder / "big.safetensors")
    import_path(taught.registry, taught.folder / "big.safetensors", ImportOptions())
    with pytest.raises(InvalidInput, match=r"big@1, an? .* for SD 1.x, does not fit") as caught:
        draw(taught, "a <big>")
    assert caught.value.hint == "--base sd15"


@pytest.mark.parametrize(
    "change",
    [
        {"phrase": "<rex>"},
        {"phrase": "a\nb"},
        {"scale": 1e9},
        {"category": "<dog>"},
        {"holds": None},
        {"odd": 1},
        {"trigger_words": ["x" * 2000]},
    ],
    ids=str,
)
def test_what_a_bundle_says_of_an_import_is_checked(
    taught: Taught, change: dict[str, object]
) -> None:
    chosen = resolve_version(taught.registry, taught.registry.show("max"))
    assert chosen.run
    config = {key: each for key, each in chosen.run.config.items() if key != "hashes"} | change
    path = write_lora(taught.folder / "other.safetensors", 9, width=32)
    original = Original(
        name="other",
        category="dog",
        base="unknown",
        config=config,
        files=[(path, read_header(path))],
    )
    taught.registry.import_originals([original])
    with pytest.raises((InvalidInput, InvalidWeights), match="other@1 cannot be drawn with"):
        draw(taught, "a <other>")


# --- imported weights of which nobody says what they are ------------------------------------------

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)


@pytest.fixture
def styled(taught: Taught) -> Taught:
    """Beside max: `plain`, a LoRA without words, and `shiny`, one with trigger words alone."""
    taught.add(taught.vectors(1) | taught.factors(), num_tokens=1)
    taught.export("lora-kohya", "own.safetensors", overwrite=True)
    tensors = load_file(taught.folder / "own.safetensors")
    for name, trigger in (("plain", None), ("shiny", "shiny paint")):
        path = taught.folder / f"{name}.safetensors"
        save_file({key: value + (0.01 if trigger else 0) for key, value in tensors.items()}, path)
        import_path(taught.registry, path, ImportOptions(trigger=trigger))
    return taught


def in_boxes(taught: Taught, prompt: str, layout: Any) -> Path:
    request = Request(prompt=prompt, seeds=(3,), settings=replace(SETTINGS, layout=layout))
    (picture,) = generate(taught.registry, taught.base, [request], taught.folder / "drawn")
    return picture.path


def test_what_has_no_place_has_no_box(styled: Taught) -> None:
    for name, message in (("plain", "plain@1 has no words"), ("shiny", "shiny@1 has no place")):
        with pytest.raises(InvalidInput, match=message):
            in_boxes(styled, f"<{name}> <rex>", {name: LEFT, "rex": RIGHT})
    in_boxes(styled, "<plain> <rex>", {"rex": RIGHT})  # nobody has to give it one


def test_a_category_gives_it_a_place(styled: Taught) -> None:
    whole = in_boxes(styled, "<shiny> and <max>", "none")
    before = in_boxes(styled, "<shiny> and <max>", None)
    assert np.array_equal(_opened(whole), _opened(before))
    styled.registry.edit("shiny", category="car")
    after = in_boxes(styled, "<shiny> and <max>", None)
    assert not np.array_equal(_opened(before), _opened(after))
    in_boxes(styled, "<shiny> and <max>", {"shiny": LEFT, "max": RIGHT})


def test_maps_and_leaks_are_of_those_who_have_words(styled: Taught) -> None:
    draw(styled, "<plain> <rex>", with_maps=True, with_leaks=True)


def test_what_has_no_words_is_not_scored(styled: Taught, tmp_path: Path) -> None:
    suite = tmp_path / "two.txt"
    suite.write_text("a photo of a {} and a {other}\n")
    for names, layout in ((["plain"], None), (["rex", "plain"], None), (["rex", "plain"], "none")):
        request = EvalRequest(
            names=names,
            suite=str(suite) if len(names) > 1 else None,
            base=styled.base.base.name,
            settings=replace(SETTINGS, layout=layout),
        )
        with pytest.raises(InvalidInput, match="plain@1 has no words in prompts"):
            list(score(styled.registry, request, base=styled.base))

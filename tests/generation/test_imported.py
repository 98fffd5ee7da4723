"""Imported versions beside others: drawn again, in company, scored, and refused where they fail."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conceptry.adapters.formats.importing import ImportOptions, import_path
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

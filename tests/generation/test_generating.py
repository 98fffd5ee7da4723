"""Pictures from prompts that name concepts: files, heat-maps, and the same again."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conceptry.generation import (
    Request,
    SamplingSettings,
    generate,
    observing,
    read_provenance,
    reproduce,
    save_grid,
)
from conceptry.generation.attention_maps import CollectedMaps, MapCollector, words_of
from conceptry.generation.injection import expand_prompt, inject_concepts
from conceptry.generation.prompt_syntax import resolve_prompt
from conceptry.generation.reference_syntax import ReferenceRequest
from conceptry.generation.sampler import draw
from conceptry.models.loading import LoadedBase
from conceptry.registry import Registry
from conceptry.registry.errors import InvalidImage, InvalidInput, NotFound, StorageError
from conceptry.training import train
from copies import copied, made_with_rex
from PIL import Image
from PIL.PngImagePlugin import PngInfo

SETTINGS = SamplingSettings(steps=2, guidance=3.0)
SHORT = ("augmentation.crops=2", "num_tokens=2", *(f"stage{i}.steps=1" for i in (1, 2, 3)))


@pytest.fixture(scope="module")
def made(_one_base: LoadedBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def teach(registry: Registry, _: Path) -> None:
        for seed in (1, 2):
            train(registry, "rex", _one_base, overrides=SHORT, seed=seed)

    return made_with_rex(tmp_path_factory.mktemp("made"), teach)


@pytest.fixture
def taught(made: Path, tmp_path: Path) -> Iterator[Registry]:
    """rex has two versions."""
    with copied(made, tmp_path) as registry:
        yield registry


def request(prompt: str, *seeds: int) -> Request:
    return Request(prompt=prompt, seeds=seeds or (3,), settings=SETTINGS)


def test_requests_become_files_and_records(
    taught: Registry, base: LoadedBase, tmp_path: Path
) -> None:
    requests = [request("<rex> asleep", 3, 4), request("<rex@1> asleep"), request("a cat")]
    found = list(generate(taught, base, requests, tmp_path / "out", batch=1))
    assert [(picture.prompt, picture.seed) for picture in found] == [
        ("<rex> asleep", 3),
        ("<rex> asleep", 4),
        ("<rex@1> asleep", 3),
        ("a cat", 3),
    ]
    assert len({picture.image.tobytes() for picture in found}) == 4
    numbers = [[each.version for each in taught.trace(one.sha256).sources] for one in found]
    assert numbers == [[2], [2], [1], []]
    with Image.open(save_grid(found, tmp_path / "out")) as grid:
        assert grid.height > 3 * 128


def test_a_file_of_prompts_is_checked_before_anything_is_drawn(
    taught: Registry, base: LoadedBase, tmp_path: Path
) -> None:
    with pytest.raises(NotFound):
        next(generate(taught, base, [request("<rex>"), request("<rex@9>")], tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("prompt", "layout", "message"),
    [
        ("a cat " * 60, None, "the text encoder reads"),
        ("<rex> and a cat", {"rex": (0, 0, 0.5, 1), "mug": (0.5, 0, 1, 1)}, "does not name"),
        ("<rex> and a cat", {"cat": (0.5, 0, 1, 1)}, "no box for rex"),
    ],
)
def test_no_picture_is_drawn_before_a_later_prompt_that_cannot_be(
    taught: Registry, base: LoadedBase, tmp_path: Path, prompt: str, layout: Any, message: str
) -> None:
    later = replace(request(prompt), settings=replace(SETTINGS, layout=layout))
    with pytest.raises(InvalidInput, match=message):
        next(generate(taught, base, [request("a cat"), later], tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_tokens_of_a_concept_count_before_they_are_there(
    taught: Registry, base: LoadedBase, tmp_path: Path
) -> None:
    """Two of rex, and its category's word, beside those of the prompt."""
    room = base.backbone.text_encoders[0].tokenizer.model_max_length - 2 - 3
    fits, does_not = (request("<rex>" + " a" * count) for count in (room, room + 1))
    with pytest.raises(InvalidInput, match="the text encoder reads"):
        next(generate(taught, base, [request("a cat"), does_not], tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert next(generate(taught, base, [fits], tmp_path))


def test_a_version_of_another_base_model_is_told_before_anything_is_drawn(
    taught: Registry, base: LoadedBase, tmp_path: Path
) -> None:
    other = replace(base, sha256="0" * 64)
    with pytest.raises(InvalidInput, match="rex@2 was trained on"):
        next(generate(taught, other, [request("a cat"), request("<rex>")], tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_none_is_told_before_anything_is_drawn(
    taught: Registry, base: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(observing, "draw", None)
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageError, match="Not a directory"):
            next(generate(taught, base, [request("a cat")], folder))


def test_more_than_metadata_hold_is_refused(
    taught: Registry, base: LoadedBase, tmp_path: Path
) -> None:
    places = [(0.5, 0.5)] * 17
    with pytest.raises(InvalidInput, match="16 places at most, not 17"):
        next(generate(taught, base, [request("a cat")], tmp_path, with_maps=True, points=places))
    with pytest.raises(InvalidInput, match="64 photos at most, not 65"):
        replace(request("a cat"), references=(ReferenceRequest("rex"),) * 65)


@pytest.mark.parametrize("with_maps", [False, True])
def test_a_picture_is_drawn_again(
    taught: Registry, base: LoadedBase, tmp_path: Path, with_maps: bool
) -> None:
    wanted = [request("<rex:0.5> in the snow", 3, 4, 5)]
    *_, picture = generate(taught, base, wanted, tmp_path, batch=2, with_maps=with_maps)
    train(taught, "rex", base, overrides=SHORT, seed=3)  # a newer version must not be taken
    again, is_same = reproduce(taught, base, picture.path, tmp_path)
    assert is_same
    assert again.path != picture.path
    assert again.path.read_bytes() == picture.path.read_bytes()
    assert read_provenance(again.path).versions["rex"][0] == 2
    taught.rename("rex", "max")
    renamed, is_same = reproduce(taught, base, again.path, tmp_path)
    assert is_same
    assert renamed.path.read_bytes() == picture.path.read_bytes()


def test_what_cannot_be_drawn_again_is_told(
    taught: Registry, base: LoadedBase, tmp_path: Path
) -> None:
    (picture,) = generate(taught, base, [request("<rex>")], tmp_path)
    plain, broken = tmp_path / "plain.png", tmp_path / "broken.png"
    picture.image.save(plain)
    broken.write_bytes(picture.path.read_bytes()[:20])
    odd = tmp_path / "odd.png"
    text = PngInfo()
    text.add_itxt("conceptry", "3")
    picture.image.save(odd, pnginfo=text)
    (with_maps,) = generate(taught, base, [request("<rex>")], tmp_path, with_maps=True)
    (lossy,) = generate(taught, base, [request("<rex>")], tmp_path, file_format="jpg")
    cut = tmp_path / "cut.jpg"  # in its pixels, after what it says of itself
    cut.write_bytes(lossy.path.read_bytes()[:-20])
    for path, error in (
        (plain, InvalidImage),
        (broken, InvalidImage),
        (cut, InvalidImage),
        (odd, InvalidImage),
        (Path(str(with_maps.maps)), InvalidImage),
        (Path("gone"), NotFound),
    ):
        with pytest.raises(error):
            reproduce(taught, base, path, tmp_path)
    former = replace(base, sha256="0" * 64)
    with pytest.raises(InvalidInput, match="when that had other weights") as refused:
        reproduce(taught, former, picture.path, tmp_path)
    assert "--base FOLDER" in str(refused.value.hint)
    other = replace(former, base=replace(base.base, name="other"))
    with pytest.raises(InvalidInput, match="by another base model than other") as refused:
        reproduce(taught, other, picture.path, tmp_path)
    assert refused.value.hint == f"--base {base.base.name}"
    taught.remove(["rex"])
    with pytest.raises(NotFound):
        reproduce(taught, base, picture.path, tmp_path)


def test_a_picture_that_differs_is_said_to(
    taught: Registry, base: LoadedBase, tmp_path: Path
) -> None:
    (picture,) = generate(taught, base, [request("a cat")], tmp_path)
    with torch.no_grad():
        base.backbone.pipeline.unet.conv_out.bias += 1
    assert not reproduce(taught, base, picture.path, tmp_path)[1]


def test_words_are_the_tokens_of_concepts_and_their_category(
    taught: Registry, base: LoadedBase
) -> None:
    prompt = "a photo of <rex> in the snow"
    with inject_concepts(base, resolve_prompt(taught, prompt)) as concepts:
        words = words_of(base.backbone, expand_prompt(prompt, concepts), concepts)
        assert [(word.label, word.column) for word in words] == [
            ("<rex> 1", 4),
            ("<rex> 2", 5),
            ("dog", 6),
        ]
    plain = words_of(base.backbone, "a red cat", [])
    assert [(word.label, word.column) for word in plain] == [("a", 1), ("red", 2), ("cat", 3)]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_maps_are_the_means_over_layers_and_steps(base: LoadedBase, guidance: float) -> None:
    """All columns together are one at each place, guided or not."""
    settings = SamplingSettings(steps=3, guidance=guidance)
    collector = MapCollector(range(77))
    for _ in draw(base, "a red cat", (1, 2), settings, observers=[collector]):
        pass
    (maps,) = collector.take()
    assert maps.shape == (2, 77, 8, 8)
    torch.testing.assert_close(maps.sum(1), torch.ones(2, 8, 8), atol=1e-4, rtol=0)


def test_maps_are_of_the_prompt_not_of_the_negative_one(base: LoadedBase) -> None:
    """In the first step, guided or not, the prompt meets the same latents."""

    def maps(guidance: float) -> torch.Tensor:
        settings = SamplingSettings(steps=1, guidance=guidance, negative="two blue dogs on a beach")
        collector = MapCollector([1, 2, 3])
        list(draw(base, "a red cat", (1, 2), settings, observers=[collector]))
        (found,) = collector.take()
        return found

    torch.testing.assert_close(maps(3.0), maps(1.0))


def test_maps_of_layers_of_other_sizes_are_brought_to_one() -> None:
    collected = CollectedMaps()
    fine = torch.zeros(1, 1, 8, 4)
    fine[..., 4:, :] = 1
    coarse = torch.zeros(1, 1, 4, 2)
    coarse[..., 2:, :] = 3
    collected.add([fine.flatten(2), coarse.flatten(2)], (8, 4))
    (heat,) = collected.take()
    assert heat.shape == (1, 8, 4)
    assert heat[0, :2].max() < 0.1
    assert abs(float(heat[0, 6:].mean()) - 2) < 0.15
    with pytest.raises(ValueError, match="nothing has been drawn"):
        collected.take()


def test_sizes_that_are_halved_to_odd_ones_are_known(base: LoadedBase, tmp_path: Path) -> None:
    settings = SamplingSettings(steps=1, size=(40, 56))
    collector = MapCollector([1, 2])
    list(draw(base, "a cat", (1,), settings, observers=[collector]))
    assert [maps.shape for maps in collector.take()] == [(1, 2, 28, 20)]
    collected = CollectedMaps()
    collected.add([torch.rand(1, 1, 6 * 8)], (41, 64))
    assert collected.take().shape == (1, 1, 41, 64)


def test_a_sheet_shows_the_picture_and_a_map_for_each_word(
    taught: Registry, base: LoadedBase, tmp_path: Path
) -> None:
    wanted = [request("<rex>", 1, 2)]
    first, second = generate(taught, base, wanted, tmp_path, with_maps=True)
    with Image.open(str(first.maps)) as sheet, Image.open(str(second.maps)) as other:
        assert sheet.width == 4 * (128 + 8) + 8  # the picture, two tokens, the category
        assert not np.array_equal(np.asarray(sheet), np.asarray(other))

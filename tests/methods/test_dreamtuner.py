"""DreamTuner: versions that are ready at once, and references beside what was trained."""

from pathlib import Path

import pytest
import torch
from conceptry.adapters.file_format import read_adapter
from conceptry.cli.trainings_shown import notes_on
from conceptry.generation import Request, SamplingSettings, generate, read_provenance, reproduce
from conceptry.generation.injection import expand_prompt, inject_concepts
from conceptry.generation.prompt_syntax import ChosenVersion, resolve_prompt
from conceptry.generation.reference_syntax import ReferenceRequest
from conceptry.generation.regions import subject_columns
from conceptry.methods.dreamtuner import METHOD
from conceptry.methods.method import resolve_settings
from conceptry.models.loading import LoadedBase
from conceptry.registry import Registry
from conceptry.registry.errors import InvalidInput, NotFound, TrainingInterrupted
from conceptry.training import estimate, resume, train
from conceptry.training.callbacks import Hooks
from long import quick_for
from PIL import Image

SETTINGS = SamplingSettings(steps=3, guidance=3.0)


def chosen(registry: Registry) -> ChosenVersion:
    (version,) = resolve_prompt(registry, "<rex>")
    return version


def drawn(
    registry: Registry, base: LoadedBase, folder: Path, prompt: str, *after: ReferenceRequest
) -> tuple[Path, bytes]:
    request = Request(prompt=prompt, seeds=(3,), settings=SETTINGS, references=after)
    (picture,) = generate(registry, base, [request], folder)
    return picture.path, picture.image.tobytes()


def test_a_version_is_ready_at_once(rex: Registry, base: LoadedBase, tmp_path: Path) -> None:
    """It is drawn after the first photo, under the category's own word."""
    trained = train(rex, "rex", base, method="dreamtuner", preset="instant")
    assert (trained.version, trained.stages) == (1, [])
    state, metadata = read_adapter(Path(chosen(rex).path))
    assert state.keys() == {"reference.0.latents", "reference.0.mask"}
    assert (metadata.num_tokens, metadata.references[0].prompt) == (0, "a photo of a {}")
    path, pixels = drawn(rex, base, tmp_path, "<rex> in the snow")
    after = drawn(rex, base, tmp_path, "dog in the snow", ReferenceRequest("rex"))
    assert pixels == after[1] != drawn(rex, base, tmp_path, "dog in the snow")[1]
    assert not read_provenance(path).references, "they are the version's"
    assert reproduce(rex, base, path, tmp_path)[1]
    assert base.backbone.references == []


def test_settings_are_kept_in_the_version(rex: Registry, base: LoadedBase) -> None:
    rex.edit("rex", category="dog")
    overrides = ["reference.photos=2", "reference.weight=1.5", "reference.share=0.5"]
    overrides += ["reference.guidance=4"]
    train(rex, "rex", base, method="dreamtuner", preset="instant", overrides=overrides)
    _, metadata = read_adapter(Path(chosen(rex).path))
    assert [(each.weight, each.share, each.guidance) for each in metadata.references] == [
        (1.5, 0.5, 4.0)
    ] * 2


def test_a_strength_multiplies_the_weight(rex: Registry, base: LoadedBase, tmp_path: Path) -> None:
    train(rex, "rex", base, method="dreamtuner", preset="instant")
    found = [drawn(rex, base, tmp_path, f"<rex:{each}>")[1] for each in ("1", "0.5", "0")]
    assert len(set(found)) == 3
    assert found[2] == drawn(rex, base, tmp_path, "dog")[1]


@pytest.mark.long
def test_any_method_can_hold_references(rex: Registry, base: LoadedBase, tmp_path: Path) -> None:
    """Previews are drawn after them too, and they do not change what is learned."""
    short = ["augmentation.crops=2", *(f"stage{i}.steps=1" for i in (1, 2, 3))]
    seen: list[list[bytes]] = []
    hooks = Hooks(
        preview_every=1,
        on_preview=lambda *shown: seen.append([each.tobytes() for each in shown[-1]]),
    )
    for photos in (0, 2):
        own = [*short, f"reference.photos={photos}"]
        train(rex, "rex", base, overrides=own, seed=1, hooks=hooks)
    before, after = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert all(one != other for one, other in zip(before, after, strict=True))
    first, second = (
        read_adapter(Path(resolve_prompt(rex, f"<rex@{number}>")[0].path))[0] for number in (1, 2)
    )
    assert second.keys() - first.keys() == {
        f"reference.{i}.{part}" for i in (0, 1) for part in ("latents", "mask")
    }
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())
    pixels = [drawn(rex, base, tmp_path, f"<rex@{number}> asleep")[1] for number in (1, 2)]
    assert pixels[0] != pixels[1]


def test_a_caption_describes_a_reference(rex: Registry, base: LoadedBase) -> None:
    photo = rex.show("rex").images[0]
    path = rex.path_of(photo.sha256)
    rex.add("rex", [path], caption="a small {} on a sofa")
    train(rex, "rex", base, method="dreamtuner", preset="instant")
    _, metadata = read_adapter(Path(chosen(rex).path))
    assert metadata.references[0].prompt == "a small {} on a sofa"
    with inject_concepts(base, [chosen(rex)]):
        assert [each.prompt for each in base.backbone.references] == ["a small dog on a sofa"]


def test_words_of_a_concept_without_tokens_are_its_category(
    rex: Registry, base: LoadedBase
) -> None:
    train(rex, "rex", base, method="dreamtuner", preset="instant")
    with inject_concepts(base, [chosen(rex)]) as concepts:
        prompt = expand_prompt("a photo of <rex> asleep", concepts)
        assert prompt == "a photo of dog asleep"
        (columns,) = subject_columns(base.backbone, prompt, concepts)
    assert columns.own == columns.all == (4,)


def test_a_method_without_steps_needs_references(rex: Registry, base: LoadedBase) -> None:
    with pytest.raises(InvalidInput, match="all stages have 0 steps"):
        train(
            rex,
            "rex",
            base,
            method="dreamtuner",
            preset="instant",
            overrides=["reference.photos=0"],
        )


def test_one_photo_of_several(rex: Registry, base: LoadedBase) -> None:
    second = rex.show("rex").images[1]
    words = ["2", second.sha256[:8], second.filename]
    train(rex, "rex", base, method="dreamtuner", preset="instant", photos=words)
    assert rex.show("rex").runs[-1].config["photos"] == [second.sha256]
    train(rex, "rex", base, method="dreamtuner", preset="instant")
    states = [
        read_adapter(Path(resolve_prompt(rex, f"<rex@{number}>")[0].path))[0] for number in (1, 2)
    ]
    assert not torch.equal(states[0]["reference.0.latents"], states[1]["reference.0.latents"])


def test_an_estimate_is_of_the_references_too(rex: Registry, base: LoadedBase) -> None:
    found = estimate(rex, "rex", base, method="dreamtuner", preset="instant", photos=["2"])
    train(rex, "rex", base, method="dreamtuner", preset="instant", photos=["2"])
    state, _ = read_adapter(Path(chosen(rex).path))
    assert found.disk_bytes == sum(tensor.nbytes for tensor in state.values()) > 0
    with pytest.raises(NotFound, match="no photo '9'"):
        estimate(rex, "rex", base, method="dreamtuner", preset="instant", photos=["9"])


def test_references_that_are_not_there_are_told(rex: Registry) -> None:
    words = ("reference.photos=9",)
    settings = resolve_settings(METHOD, preset="instant", base="", overrides=words)
    concept = rex.show("rex")
    notes = list(notes_on(concept, settings, 16))
    assert "reference.photos=9 holds no more" in notes[0]
    usual = resolve_settings(METHOD, preset="instant", base="")
    assert not list(notes_on(concept, usual, 16))


@pytest.mark.parametrize("method", quick_for(1, ["dreamtuner", "attndreambooth"]))
def test_a_run_goes_on_with_the_masks_and_captions_that_it_began_with(
    method: str, rex: Registry, base: LoadedBase, tmp_path: Path
) -> None:
    """References and photos on white show them, whatever `mask.use` and `captions.share` are."""
    names = ("unet",) if method == "dreamtuner" else ("stage1", "stage2", "stage3")
    short = ["augmentation.crops=2", "reference.photos=1", *(f"{each}.steps=2" for each in names)]
    short += ["prior.num_images=2"] if method == "dreamtuner" else []
    photo = rex.show("rex").images[0]
    rex.edit("rex", captions={photo.sha256: "a {} on a sofa"})
    train(rex, "rex", base, method=method, overrides=short)
    hooks = Hooks(should_stop=lambda: True)
    with pytest.raises(TrainingInterrupted):
        train(rex, "rex", base, method=method, overrides=short, hooks=hooks)
    rex.edit("rex", captions={photo.sha256: "a {} in the snow"})
    mask = Image.new("L", (photo.width, photo.height))
    mask.paste(255, (0, 0, photo.width // 2, photo.height))
    rex.set_masks(rex.show("rex").id, {photo.sha256: mask})
    resume(rex, "rex", base)
    whole, resumed = (
        read_adapter(Path(resolve_prompt(rex, f"<rex@{number}>")[0].path)) for number in (1, 2)
    )
    assert resumed[1] == whole[1]
    assert all(torch.equal(resumed[0][name], tensor) for name, tensor in whole[0].items())

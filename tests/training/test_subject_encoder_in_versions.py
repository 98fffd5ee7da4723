"""A base model's subject encoder in trainings, in what they store, and in what is drawn."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conceptry.adapters.file_format import read_adapter, write_adapter
from conceptry.generation import Request, SamplingSettings, generate, reproduce
from conceptry.generation.prompt_syntax import resolve_prompt
from conceptry.generation.reference_syntax import ReferenceRequest
from conceptry.methods import find_method
from conceptry.methods.method import resolve_settings
from conceptry.models.loading import LoadedBase
from conceptry.models.subject_encoder_file import load_subject_encoder
from conceptry.registry import Registry
from conceptry.registry.errors import (
    ConceptryError,
    InvalidInput,
    InvalidWeights,
    NotFound,
    TrainingInterrupted,
)
from conceptry.training import resume, train
from conceptry.training.callbacks import Hooks
from conceptry.training.class_pictures import class_pictures
from conceptry.training.subjects import references_of
from tiny_encoder import with_encoder
from tiny_fixtures import tree

SHORT = ("augmentation.crops=2", "prior.num_images=2", "unet.steps=2", "unet.batch=2")
SEEN = "reference.encoder_strength=0.5"
LEARNS = "unet.subject_encoder_rate=0.01"
SETTINGS = SamplingSettings(steps=2)


@pytest.fixture
def seeing(base: LoadedBase, tmp_path: Path) -> LoadedBase:
    """The base model with a subject encoder."""
    return with_encoder(base, tmp_path / "encoder")


def version(registry: Registry, number: int) -> Path:
    (chosen,) = resolve_prompt(registry, f"<rex@{number}>")
    return Path(chosen.path)


def trained(
    registry: Registry,
    base: LoadedBase,
    *overrides: str,
    method: str = "dreamtuner",
    hooks: Hooks | None = None,
) -> Path:
    short = SHORT if method == "dreamtuner" and "unet.steps=0" not in overrides else ()
    made = train(registry, "rex", base, method=method, overrides=[*short, *overrides], hooks=hooks)
    return version(registry, made.version)


def drawn(registry: Registry, base: LoadedBase, folder: Path, request: Request) -> bytes:
    (picture,) = generate(registry, base, [request], folder)
    return picture.image.tobytes()


def of_rex(number: int, **settings: float) -> Request:
    own = replace(SETTINGS, **settings)
    return Request(prompt=f"<rex@{number}>", seeds=(1,), settings=own)


def test_a_version_holds_tokens_and_is_drawn_with_them(
    rex: Registry, seeing: LoadedBase, tmp_path: Path
) -> None:
    before = tree(seeing.backbone)
    instant = ("unet.steps=0",)
    state, metadata = read_adapter(trained(rex, seeing, *instant, SEEN))
    assert state["subject.tokens"].shape == (1, 16, 32)
    assert metadata.subject is not None
    assert metadata.subject.strength == 0.5
    plain, plain_metadata = read_adapter(trained(rex, seeing, *instant))
    assert plain.keys() == state.keys() - {"subject.tokens"}
    assert plain_metadata.subject is None
    pictures = [drawn(rex, seeing, tmp_path, of_rex(number)) for number in (1, 2)]
    assert pictures[0] != pictures[1]
    assert tree(seeing.backbone) == before
    again = Request(prompt="<rex@1:0>", seeds=(1,), settings=SETTINGS)
    without = Request(prompt="<rex@2:0>", seeds=(1,), settings=SETTINGS)
    assert drawn(rex, seeing, tmp_path, again) == drawn(rex, seeing, tmp_path, without)


def test_training_sees_the_subject(rex: Registry, seeing: LoadedBase) -> None:
    """And its ResBlocks learn at a rate of their own: they are stored as the tokens they make."""
    paths = [
        trained(rex, seeing, *words) for words in ((), (SEEN,), (SEEN, LEARNS), (SEEN, "rank=2"))
    ]
    plain, seen, learned, lora = (read_adapter(path)[0] for path in paths)
    assert not torch.equal(plain["token.0"], seen["token.0"])
    assert not torch.equal(seen["subject.tokens"], learned["subject.tokens"])
    assert seen.keys() == learned.keys() == plain.keys() | {"subject.tokens"}
    assert torch.equal(lora["subject.tokens"], seen["subject.tokens"])


def test_methods_that_keep_the_base_model_see_it_when_drawn_alone(
    rex: Registry, seeing: LoadedBase
) -> None:
    """Several concepts share their batches."""
    short = ("augmentation.crops=2", "embedding.steps=2", "reference.photos=1")
    paths = [
        trained(rex, seeing, *short, *words, method="textual-inversion") for words in ((), (SEEN,))
    ]
    plain, seen = (read_adapter(path)[0] for path in paths)
    assert torch.equal(plain["token.0"], seen["token.0"])
    assert "subject.tokens" in seen


@pytest.mark.long
def test_resume_is_exact(rex: Registry, seeing: LoadedBase) -> None:
    words = (SEEN, LEARNS, "unet.steps=4")
    whole = read_adapter(trained(rex, seeing, *words))[0]
    calls = iter(range(100))
    stopping = Hooks(should_stop=lambda: next(calls) >= 1)
    with pytest.raises(TrainingInterrupted):
        trained(rex, seeing, *words, hooks=stopping)
    previews: list[int] = []
    watching = Hooks(preview_every=4, on_preview=lambda _, step, __: previews.append(step))
    resumed = read_adapter(version(rex, resume(rex, "rex", seeing, hooks=watching).version))[0]
    assert previews
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_a_training_goes_on_with_the_encoder_that_it_began_with(
    rex: Registry, seeing: LoadedBase
) -> None:
    stopping = Hooks(should_stop=lambda: True)
    with pytest.raises(TrainingInterrupted):
        train(
            rex,
            "rex",
            seeing,
            method="dreamtuner",
            overrides=[*(each for each in SHORT if "prior" not in each), SEEN, "prior.weight=0"],
            hooks=stopping,
        )
    change_encoder(seeing)
    with pytest.raises(InvalidInput, match=r"run .* of rex was made with another subject encoder"):
        resume(rex, "rex", seeing)


def test_a_base_model_without_one_is_told_before_a_run_begins(
    rex: Registry, base: LoadedBase
) -> None:
    with pytest.raises(NotFound, match="has no subject encoder"):
        trained(rex, base, SEEN)
    assert rex.show("rex").runs == []


@pytest.mark.long
def test_regular_images_are_seen_by_it_too(rex: Registry, seeing: LoadedBase) -> None:
    settings = resolve_settings(find_method("dreamtuner"), base="", overrides=(SEEN,))
    encoder = load_subject_encoder(seeing)
    after = references_of(rex, seeing, rex.show("rex"), settings.reference, encoder=encoder)
    seen = class_pictures(rex, seeing, "dog", 2, after=after)
    plain = class_pictures(rex, seeing, "dog", 2, after=after.without_encoding())
    assert [each.tobytes() for each in seen] != [each.tobytes() for each in plain]


def test_references_are_seen_while_drawing(
    rex: Registry, seeing: LoadedBase, tmp_path: Path
) -> None:
    """And the picture says by which encoder, and is drawn again by that alone."""
    references = (ReferenceRequest("rex"),)

    def asked(strength: float) -> Request:
        settings = replace(SETTINGS, encoder_strength=strength)
        return Request(prompt="a dog", seeds=(1,), settings=settings, references=references)

    (plain, seen) = (
        next(iter(generate(rex, seeing, [asked(strength)], tmp_path))) for strength in (0.0, 0.5)
    )
    assert seen.image.tobytes() != plain.image.tobytes()
    _, is_same = reproduce(rex, seeing, seen.path, tmp_path)
    assert is_same
    other = with_encoder(seeing, tmp_path / "other")
    change_encoder(other)
    with pytest.raises(InvalidInput, match="another subject encoder"):
        reproduce(rex, other, seen.path, tmp_path)


def change_encoder(base: LoadedBase) -> None:
    """Give its file other values, which are as good."""
    assert base.base.subject_encoder is not None
    path = Path(base.base.subject_encoder[1])
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("request_of", "error", "message"),
    [
        (
            Request(prompt="a dog", seeds=(1,), settings=replace(SETTINGS, encoder_strength=0.2)),
            InvalidInput,
            "none is named",
        ),
        (
            Request(
                prompt="a dog",
                seeds=(1,),
                settings=replace(SETTINGS, encoder_strength=0.2),
                references=(ReferenceRequest("rex"),),
            ),
            NotFound,
            r"has no subject encoder: without one its strength \(β\) has to be 0",
        ),
    ],
    ids=["no reference", "no encoder"],
)
def test_what_cannot_be_seen_is_told(
    rex: Registry,
    base: LoadedBase,
    tmp_path: Path,
    request_of: Request,
    error: type[ConceptryError],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        list(generate(rex, base, [request_of], tmp_path))
    assert not list(tmp_path.glob("*.png"))


def test_another_encoder_draws_no_version(
    rex: Registry, seeing: LoadedBase, base: LoadedBase, tmp_path: Path
) -> None:
    trained(rex, seeing, "unet.steps=0", SEEN)
    with pytest.raises(NotFound, match="has no subject encoder"):
        drawn(rex, base, tmp_path, of_rex(1))
    change_encoder(seeing)
    with pytest.raises(InvalidInput, match=r"rex@1 was made with another subject encoder than"):
        drawn(rex, seeing, tmp_path, of_rex(1))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([SEEN, "reference.photos=0", "prior.after_references=false"], "needs references"),
        ([LEARNS], "needs reference.encoder_strength"),
    ],
)
def test_settings_that_contradict_each_other(overrides: Sequence[str], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        resolve_settings(find_method("dreamtuner"), base="", overrides=tuple(overrides))


@pytest.mark.parametrize("shape", [(1, 0, 32), (2, 4, 32), (4, 32), None])
def test_tokens_of_other_shapes_are_refused(
    rex: Registry, seeing: LoadedBase, tmp_path: Path, shape: tuple[int, ...] | None
) -> None:
    state, metadata = read_adapter(trained(rex, seeing, "unet.steps=0", SEEN))
    if shape is None:
        del state["subject.tokens"]
    else:
        state["subject.tokens"] = torch.zeros(shape)
    path = tmp_path / "odd.safetensors"
    write_adapter(path, state, metadata)
    with pytest.raises(InvalidWeights, match="its subject's tokens"):
        read_adapter(path)

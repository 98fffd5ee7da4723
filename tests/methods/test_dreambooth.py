"""DreamBooth's rare word."""

from pathlib import Path

import pytest
import torch
from conceptry.adapters.file_format import read_adapter
from conceptry.generation import Request, SamplingSettings, generate
from conceptry.generation.prompt_syntax import resolve_prompt
from conceptry.methods.dreambooth import pieces_of
from conceptry.methods.method import find_method, resolve_settings
from conceptry.models.loading import LoadedBase, backbone_of
from conceptry.registry import Registry
from conceptry.registry.errors import InvalidInput
from conceptry.training import train
from long import quick_for
from tiny_base import make_tiny_sdxl
from torch import Tensor

SHORT = ("augmentation.crops=2", "prior.num_images=2", "unet.steps=1", "unet.batch=1")


def taught(rex: Registry, base: LoadedBase, *words: str) -> Tensor:
    train(rex, "rex", base, method="dreambooth", overrides=(*SHORT, *words), seed=1)
    (version,) = resolve_prompt(rex, "<rex>")
    state, metadata = read_adapter(Path(version.path))
    assert metadata.num_tokens == len(state["token.0"])
    return state["token.0"]


@pytest.mark.parametrize("case", quick_for(1, [("sks", 2), ("ohwx", 4), ("dog", 1)]), ids=str)
def test_a_words_tokens_stand_for_the_subject(
    rex: Registry, base: LoadedBase, tmp_path: Path, case: tuple[str, int]
) -> None:
    word, count = case
    vectors = taught(rex, base, f"word={word}")
    (encoder,) = base.backbone.text_encoders
    table = encoder.network.get_input_embeddings().get_parameter("weight")
    (pieces,) = pieces_of(base.backbone, word)
    assert len(pieces) == count
    assert vectors.equal(table[pieces].detach())
    request = Request(prompt="a photo of a <rex>", seeds=(1,), settings=SamplingSettings(steps=2))
    (picture,) = generate(rex, base, [request], tmp_path)
    assert len(picture.prompt) > 0


def test_it_encodes_as_the_word_itself(rex: Registry, base: LoadedBase) -> None:
    """What a script that trains on "a photo of a sks dog" has in its prompts."""
    from conceptry.generation.injection import expand_prompt, inject_concepts

    taught(rex, base)
    backbone = base.backbone
    expected = backbone.encode_prompts(["a photo of a sks dog"], 16).states
    with inject_concepts(base, resolve_prompt(rex, "a photo of a <rex>")) as concepts:
        prompt = expand_prompt("a photo of a <rex>", concepts)
        found = backbone.encode_prompts([prompt], 16).states
    torch.testing.assert_close(found, expected)


def test_without_a_word_vectors_are_random(rex: Registry, base: LoadedBase) -> None:
    first = taught(rex, base, "word=", "num_tokens=3")
    assert first.shape[0] == 3
    (encoder,) = base.backbone.text_encoders
    table = encoder.network.get_input_embeddings().get_parameter("weight").detach()
    assert torch.cdist(first, table).min() > 1e-3


def test_both_encoders_of_sdxl_have_their_own_vectors() -> None:
    method, backbone = find_method("dreambooth"), backbone_of(make_tiny_sdxl())
    settings = resolve_settings(method, base="")
    count = method.count_tokens(backbone, settings)
    embedding = method.make_embedding(backbone, ("<a>", "<b>"), "dog", settings, 0)
    assert [tuple(each.shape) for each in embedding.state().values()] == [(count, 32), (count, 48)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("num_tokens=2",), "num_tokens is 2, but word=sks has tokens of its own"),
        (("word=" + "q" * 200,), "tokens of the base model's, expected 1 to"),
    ],
)
def test_what_does_not_go_together_is_said(
    rex: Registry, base: LoadedBase, words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        taught(rex, base, *words)
    assert not rex.show("rex").versions

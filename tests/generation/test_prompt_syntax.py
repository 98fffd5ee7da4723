"""Which concepts a prompt names, and what is said where it cannot be."""

from pathlib import Path

import pytest
import torch
from conceptry.generation.prompt_syntax import (
    Mention,
    check_negative,
    mentions,
    replaced,
    resolve_prompt,
)
from conceptry.registry import Registry
from conceptry.registry.errors import ConceptNotFound, InvalidInput, NotFound, RegistryCorrupt
from safetensors.torch import save_file


@pytest.fixture
def trained(rex: Registry, tmp_path: Path) -> Registry:
    """rex has two versions."""
    for value in (1.0, 2.0):
        path = tmp_path / "adapter.safetensors"
        save_file({"token.0": torch.full((1, 32), value)}, path)
        rex.add_version("rex", {"adapter.safetensors": path})
    return rex


def test_mentions_are_read() -> None:
    found = mentions("a photo of <rex> and <mia@3:0.8> near <old-cat@best>, 1 < 2")
    assert found == [
        Mention("<rex>", "rex", None, 1.0),
        Mention("<mia@3:0.8>", "mia", "3", 0.8),
        Mention("<old-cat@best>", "old-cat", "best", 1.0),
    ]
    assert len(mentions("<rex> beside <rex>")) == 1


@pytest.mark.parametrize("prompt", ["<mia>", "blurred <mia", "a \ud800 cat"])
def test_a_negative_prompt_names_no_concept(prompt: str) -> None:
    check_negative("blurred, 1 < 2")
    check_negative("")
    with pytest.raises(InvalidInput, match="negative prompt"):
        check_negative(prompt)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("a \0 cat", "not plain text"),
        ("a \ud800 cat", "not plain text"),
        ("<>", "names no concept"),
        ("<my dog>", "names no concept"),
        ("a \x1b cat", "not plain text"),
        ("<Rex>", "names no concept"),
        ("<rex@>", "names no concept"),
        ("<rex:>", "names no concept"),
        ("<rex:1.2.3>", "a strength lies between"),
        ("<rex:9>", "a strength lies between"),
        ("a photo of <rex on the beach", 'a ">" is missing after "<rex"'),
        ("<rex> and <mia", 'a ">" is missing after "<mia"'),
        ("<rex:0.5> and <rex:0.7>", "names rex as <rex:0.5> and <rex:0.7>"),
    ],
)
def test_a_malformed_prompt_is_told(prompt: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        mentions(prompt)


def test_mentions_become_phrases() -> None:
    prompt = "<rex> beside <mia:0.5>, <rex>"
    told = replaced(prompt, {"<rex>": "<rex@1#0> dog", "<mia:0.5>": "<mia@2#0> cat"})
    assert told == "<rex@1#0> dog beside <mia@2#0> cat, <rex@1#0> dog"


def test_the_latest_version_is_chosen_unless_another_is_best(trained: Registry) -> None:
    assert [each.label for each in resolve_prompt(trained, "<rex>")] == ["rex@2"]
    assert [each.label for each in resolve_prompt(trained, "<rex@1>")] == ["rex@1"]
    trained.set_alias("rex", 1, "best")
    assert [each.label for each in resolve_prompt(trained, "<rex>, <rex>")] == ["rex@1"]
    assert [each.label for each in resolve_prompt(trained, "<rex@best>")] == ["rex@1"]


def test_what_is_not_there_is_told_before_anything_is_loaded(trained: Registry) -> None:
    with pytest.raises(ConceptNotFound) as unknown:
        resolve_prompt(trained, "a photo of <rexx>")
    assert unknown.value.hint == "did you mean rex?"
    with pytest.raises(NotFound, match="has no version 7"):
        resolve_prompt(trained, "<rex@7>")
    trained.remove(["rex"])
    with pytest.raises(ConceptNotFound):
        resolve_prompt(trained, "<rex>")


def test_a_concept_that_was_not_trained_is_told(rex: Registry) -> None:
    with pytest.raises(NotFound, match="rex has not been trained") as untrained:
        resolve_prompt(rex, "<rex>")
    assert untrained.value.hint == "concept train rex"


def test_a_flipped_bit_is_refused(trained: Registry) -> None:
    (chosen,) = resolve_prompt(trained, "<rex>")
    path = Path(chosen.path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(RegistryCorrupt, match="weights of rex are damaged"):
        resolve_prompt(trained, "<rex>")

"""Settings: what is read, and what does not fit."""

from typing import Any

import pytest
from conceptry.methods.method import all_methods, find_method, read_presets, resolve_settings
from conceptry.registry.errors import InvalidInput

METHOD = find_method("attndreambooth")


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("stage3.steps=300", "stage3.steps", 300),
        ("stage3.learning_rate=1e-4", "stage3.learning_rate", 1e-4),
        ("stage3.learning_rate=1", "stage3.learning_rate", 1),
        ("mixed_precision=no", "mixed_precision", "no"),
        ("mixed_precision= bf16", "mixed_precision", "bf16"),
        ("gradient_checkpointing=true", "gradient_checkpointing", True),
        ('prompts=["a photo of {}", "{}"]', "prompts", ("a photo of {}", "{}")),
    ],
)
def test_values_are_read(words: str, name: str, value: Any) -> None:
    assert dict(resolve_settings(METHOD, base="", overrides=(words,)).flat())[name] == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("stage3.steps=-1", "stage3.steps is -1: expected 0 to"),
        ("stage3.steps=2.5", "a whole number"),
        ("stage3.steps=true", "a whole number"),
        ("stage3=3", "is a group of settings"),
        ("gradient_checkpointing=yes", "true or false"),
        ("mixed_precision=fp8", "expected"),
        ("prompts=[]", "a list of texts"),
        ('prompts=["a photo"]', "has no {}"),
        ("mixed_precision=fp16", "expected auto or no or bf16"),
        ("stage3.step=1", "there is no setting"),
        ("=1", "sets nothing"),
    ],
)
def test_what_does_not_fit_is_told(words: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        resolve_settings(METHOD, base="", overrides=(words,))


SECOND = {"sefi": "network"}
FURTHER = {"dreamtuner": ["instant"]}


@pytest.mark.parametrize("name", list(all_methods()))
def test_every_method_has_its_presets_and_they_survive_being_recorded(name: str) -> None:
    method = find_method(name)
    presets = read_presets(method)
    names = ["paper", SECOND.get(name, "fast"), "miniature", "low-vram", *FURTHER.get(name, [])]
    assert list(presets) == names
    for preset in presets.values():
        assert method.settings().updated(preset.settings.to_mapping()) == preset.settings

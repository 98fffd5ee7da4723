"""What a method is: its stages and settings. How a stage is run is in `training/loop.py`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Generic, Literal, NotRequired, TypedDict, TypeVar

import yaml

from ..registry.errors import InvalidInput, NotFound, suggest
from .settings import StageSettings, TrainingSettings

if TYPE_CHECKING:
    from ..adapters.timestep_tokens import TimestepTokens
    from ..adapters.token_embedding import TokenEmbedding
    from ..models.backbone import Backbone
    from .attention_losses import AttentionLoss, TrainingPrompts

    Embedding = TokenEmbedding | TimestepTokens

Learns = Literal["embedding", "cross-attention", "denoiser"]
S = TypeVar("S", bound=TrainingSettings)
MakeEmbedding = Callable[["Backbone", tuple[str, ...], str, S, int], "Embedding"]
"""Gets a base model, placeholder tokens, their category, settings and a seed."""
MakeLosses = Callable[["TrainingPrompts", S, StageSettings], "list[AttentionLoss]"]
"""Gets training prompts, settings and those of a stage."""
DEFAULT_METHOD = "attndreambooth"
_NO_METHODS = ("attention_losses", "method", "seeds", "settings")


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a training; its numbers are the settings of the same name.

    `learns` is the embedding of the new tokens, the denoiser's cross-attention, or all of it.
    """

    name: str
    learns: Learns


def weighted_losses(
    taught: "TrainingPrompts", settings: TrainingSettings, stage: StageSettings
) -> "list[AttentionLoss]":
    """Losses on attention that settings give a weight."""
    from .attention_losses import attention_losses

    return attention_losses(taught, settings, stage)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method(Generic[S]):
    """A way to teach a concept.

    `make_embedding` says what its placeholder tokens begin as, `make_losses` what is minimised
    beside the diffusion loss. With `names_category` the concept stands in a prompt as its tokens
    and its category, `[V] dog`, else as its tokens alone.
    """

    name: str
    about: str
    paper: str
    settings: type[S]
    stages: tuple[Stage, ...]
    make_embedding: MakeEmbedding[S]
    make_losses: MakeLosses[S] = weighted_losses
    names_category: bool = True

    @property
    def keeps_base(self) -> bool:
        """Whether the base model stays as it is, so that several concepts can be taught at once."""
        return all(stage.learns == "embedding" for stage in self.stages)


@dataclass(frozen=True, slots=True)
class Preset:
    """Settings of a method that are known to work, and what for."""

    name: str
    about: str
    settings: TrainingSettings


def from_category(
    backbone: "Backbone",
    tokens: tuple[str, ...],
    category: str,
    settings: TrainingSettings,
    seed: int,
) -> "TokenEmbedding":
    """Tokens that begin as the category's word."""
    del settings, seed
    from ..adapters.token_embedding import TokenEmbedding

    return TokenEmbedding.from_words(backbone, tokens, category)


@cache
def all_methods() -> dict[str, Method]:
    """The methods by name: each module of this package that has a `METHOD`."""
    names = sorted(each.name for each in iter_modules(_folders()))
    modules = (import_module(f".{name}", __package__) for name in names if name not in _NO_METHODS)
    found: list[Method] = [module.METHOD for module in modules]
    return {method.name: method for method in found}


def _folders() -> list[str]:
    """Where modules of this package are: beside this one, unless somebody has added to its path."""
    return list(import_module(__package__ or "").__path__)


def find_method(name: str) -> Method:
    """The method of a name. Raises `NotFound`."""
    methods = all_methods()
    if name not in methods:
        near = suggest(name, methods).replace("concept list", "concept methods")
        raise NotFound(f'there is no method "{name}"', hint=near)
    return methods[name]


class _Entry(TypedDict):
    """A preset in a file of presets."""

    about: str
    settings: NotRequired[dict[str, object]]


def read_presets(method: Method) -> dict[str, Preset]:
    """The presets of a method by name, each a change of the settings' defaults."""
    found = (Path(folder, "presets", f"{method.name}.yaml") for folder in _folders())
    path = next(path for path in found if path.exists())
    entries: dict[str, _Entry] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {name: _preset(method, name, entry) for name, entry in entries.items()}


def _preset(method: Method, name: str, entry: _Entry) -> Preset:
    return Preset(name, entry["about"], method.settings().updated(entry.get("settings", {})))


def find_preset(method: Method, name: str | None, base: str) -> Preset:
    """The preset of a name; without one, that of the base model's name, else `paper`."""
    presets = read_presets(method)
    if name is None:
        return presets.get(base, presets["paper"])
    if name not in presets:
        raise NotFound(
            f'{method.name} has no preset "{name}"', hint=f"there are {', '.join(presets)}"
        )
    return presets[name]


def resolve_settings(
    method: Method, *, preset: str | None = None, base: str, overrides: tuple[str, ...] = ()
) -> TrainingSettings:
    """A preset's settings with overrides such as `stage3.steps=300`."""
    settings = find_preset(method, preset, base).settings.with_overrides(overrides)
    if not any(stage.steps for stage in settings.stages().values()):
        raise InvalidInput("all stages have 0 steps", hint="--set STAGE.steps=N")
    return settings


def active_stages(
    method: Method, settings: TrainingSettings
) -> Iterator[tuple[Stage, StageSettings]]:
    """The stages that have steps, with their settings."""
    numbers = settings.stages()
    for stage in method.stages:
        if numbers[stage.name].steps:
            yield stage, numbers[stage.name]

"""Settings of trainings: what there is, in which range; presets and `--set` fill them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any, Self, cast, get_type_hints

from ..adapters.limits import MAX_RANK, MAX_TOKENS
from ..registry.documents import parse_yaml, shown
from ..registry.errors import InvalidInput
from ..registry.names import check_line


def setting(
    default: Any = MISSING,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] = (),
) -> Any:
    """A field of settings with its range, or the words that it may be."""
    return field(default=default, metadata={"low": low, "high": high, "choices": tuple(choices)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings that know their ranges. Raises `InvalidInput` for a value that does not fit."""

    def __post_init__(self) -> None:
        kinds = get_type_hints(type(self))
        for each in fields(self):
            if is_dataclass(kinds[each.name]):
                continue
            _check(each.name, getattr(self, each.name), kinds[each.name], each.metadata)

    def updated(self, values: Mapping[str, Any], at: str = "") -> Self:
        """These settings with those of a nested mapping in their place."""
        known = [each.name for each in fields(self)]
        changes: dict[str, Any] = {}
        for name, value in values.items():
            if name not in known:
                raise InvalidInput(f'there is no setting "{at}{name}"', hint=_near(name, known, at))
            old = getattr(self, name)
            if isinstance(old, Settings):
                if not isinstance(value, Mapping):
                    raise InvalidInput(f"{at}{name} is a group of settings, not a value")
                changes[name] = old.updated(value, f"{at}{name}.")
            else:
                changes[name] = tuple(value) if isinstance(value, list) else value
        try:
            return replace(self, **changes)
        except InvalidInput as error:
            raise InvalidInput(f"{at}{error}") from None

    def to_mapping(self) -> dict[str, Any]:
        """All settings as nested mappings, ready for JSON."""
        return asdict(self)

    def with_overrides(self, assignments: Sequence[str]) -> Self:
        """These settings with some changed, each as `stage3.steps=300`."""
        settings = self
        for assignment in assignments:
            path, equals, text = assignment.partition("=")
            if not equals or not path.strip():
                raise InvalidInput(
                    f"{assignment!r} sets nothing", hint="--set NAME=VALUE, as stage3.steps=300"
                )
            *groups, last = path.strip().split(".")
            value: Any = {last: _parsed(text)}
            for group in reversed(groups):
                value = {group: value}
            settings = settings.updated(value)
        return settings

    def flat(self, at: str = "") -> Iterator[tuple[str, Any]]:
        """(name, value) of each setting, nested ones as `stage3.steps`."""
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, Settings):
                yield from value.flat(f"{at}{each.name}.")
            else:
                yield f"{at}{each.name}", value


def _check(name: str, value: Any, kind: Any, metadata: Mapping[str, Any]) -> None:
    """One value against its type and range."""
    plain: type = kind if isinstance(kind, type) else tuple
    fits = isinstance(value, (int, float) if plain is float else plain)
    if not fits or (isinstance(value, bool) and plain is not bool):
        raise InvalidInput(f"{name} is {shown(value)}: expected {_named(plain)}")
    if plain is tuple:
        texts = cast("tuple[Any, ...]", value)
        if not texts or not all(isinstance(part, str) for part in texts):
            raise InvalidInput(f"{name} is {shown(value)}: expected a list of texts")
        for part in texts:
            check_line(part, f"text in {name}")
    choices, low, high = (metadata.get(key) for key in ("choices", "low", "high"))
    if choices and value not in choices:
        raise InvalidInput(f"{name} is {shown(value)}: expected {' or '.join(choices)}")
    if low is not None and high is not None and not low <= value <= high:
        raise InvalidInput(f"{name} is {value:g}: expected {low:g} to {high:g}")


_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def _named(kind: type) -> str:
    return _NAMES.get(kind, "a list of texts")


def _near(name: str, known: Sequence[str], at: str) -> str:
    near = get_close_matches(name, known, n=1)
    listed = ", ".join(f"{at}{each}" for each in known)
    return f"did you mean {at}{near[0]}?" if near else f"there are {listed}"


def _parsed(text: str) -> Any:
    """A value as YAML reads it, but 1e-4 is a number, and no and off are words."""
    if text.strip().lower() in ("yes", "no", "on", "off"):
        return text.strip()
    if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", text):
        return float(text)
    try:
        return parse_yaml(text)
    except InvalidInput:
        return text


# --- what every training can be told --------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSettings(Settings):
    """One stage of a training."""

    steps: int = setting(low=0, high=1_000_000)
    """Optimiser steps; 0 leaves the stage out."""
    learning_rate: float = setting(low=0, high=10)
    """AdamW's; it stays the same throughout."""
    batch: int = setting(8, low=1, high=4096)
    """Pictures per step."""
    mean_weight: float = setting(0.0, low=0, high=1e6)
    """λ_μ of the cross-attention map regularisation (AttnDreamBooth)."""
    variance_weight: float = setting(0.0, low=0, high=1e6)
    """λ_σ of the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation(Settings):
    """How photos are varied. The varied crops are made and encoded once, as a pool."""

    crops: int = setting(64, low=1, high=100_000)
    """How many crops there are in all."""
    rotation: float = setting(45.0, low=0, high=180)
    """Degrees, at most."""
    rotation_probability: float = setting(0.75, low=0, high=1)
    """Of a crop to be turned at all."""
    flip: bool = setting(True)
    """Half of the crops are mirrored; not for faces and lettering."""
    smallest: float = setting(0.8, low=0.1, high=1)
    """Side of the smallest crop, as a share of the photo's shorter side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior(Settings):
    """Prior preservation (DreamBooth, arXiv 2208.12242, eq. 2)."""

    weight: float = setting(0.0, low=0, high=100)
    """λ; 0 switches it off."""
    num_images: int = setting(200, low=1, high=10_000)
    """Class images, drawn once by the base model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses(Settings):
    """Losses that any method can take beside its own."""

    subject_wise: float = setting(0.0, low=0, high=1e6)
    """λ of the subject-wise attention loss (SeFi-IDE); 0 switches it off."""
    subject_wise_reduction: str = setting("sum", choices=("sum", "mean"))
    """Over positions and tokens; heads, layers and batch are averaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings(Settings):
    """What all methods have in common; each adds its stages."""

    prompts: tuple[str, ...] = setting(("a photo of a {}",))
    """Training prompts; {} becomes the concept."""
    num_tokens: int = setting(1, low=1, high=MAX_TOKENS)
    """Tokens that stand for the subject."""
    rank: int = setting(0, low=0, high=MAX_RANK)
    """Of LoRA in stages that change the U-Net; 0 trains its own weights."""
    resolution: int = setting(0, low=0, high=4096)
    """Side of the crops in pixels; 0 is the base model's own."""
    optimizer: str = setting("adamw", choices=("adamw", "adamw8bit"))
    """8-bit needs the package bitsandbytes and a CUDA GPU."""
    weight_decay: float = setting(1e-2, low=0, high=1)
    """AdamW's."""
    max_grad_norm: float = setting(0.0, low=0, high=1e6)
    """Gradients are scaled down to this norm; 0 leaves them alone."""
    loss_reduction: str = setting("sum", choices=("sum", "mean"))
    """Over the batch, of AttnDreamBooth's regularisation."""
    mixed_precision: str = setting("auto", choices=("auto", "no", "bf16"))
    """auto is bf16 on a GPU that has it, else no."""
    gradient_accumulation: int = setting(1, low=1, high=1024)
    """Each step's batch is worked off in as many parts."""
    gradient_checkpointing: bool = setting(False)
    """Activations are computed again in the backward pass: less memory, more time."""
    ema: float = setting(0.0, low=0, high=0.99999)
    """Decay of the moving average that becomes the result; 0 takes the last weights."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    prior: Prior = field(default_factory=Prior)
    loss: Losses = field(default_factory=Losses)

    def __post_init__(self) -> None:
        Settings.__post_init__(self)
        for prompt in self.prompts:
            if "{}" not in prompt:
                raise InvalidInput(f"the training prompt {prompt!r} has no {{}} for the concept")

    def stages(self) -> dict[str, StageSettings]:
        """The stages by name, in order."""
        return {
            each.name: value
            for each in fields(self)
            if isinstance(value := getattr(self, each.name), StageSettings)
        }

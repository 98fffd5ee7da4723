"""The interface of a method: its stages and settings. `training/loop.py` runs the stages."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
"""(backbone, placeholder tokens, category, settings, seed) -> the embedding to train."""
CountTokens = Callable[["Backbone", S], int]
"""(backbone, settings) -> how many placeholder tokens stand for the subject."""
MakeLosses = Callable[["TrainingPrompts", S, StageSettings], "list[AttentionLoss]"]
"""(training prompts, settings, the stage's settings) -> its attention losses."""
DEFAULT_METHOD = "attndreambooth"
_NO_METHODS = ("attention_losses", "diffusion_loss", "method", "settings")


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of a training; the setting of the same name has its steps and learning rate.

    `learns` is what is trained: the embedding of the new tokens, the denoiser's cross-attention, or
    the whole denoiser.
    """

    name: str
    learns: Learns


def num_tokens_of(backbone: "Backbone", settings: TrainingSettings) -> int:
    """As many as the settings say."""
    del backbone
    return settings.num_tokens


def weighted_losses(
    prompts: "TrainingPrompts", settings: TrainingSettings, stage: StageSettings
) -> "list[AttentionLoss]":
    """The attention losses whose weight in the settings is not 0."""
    from .attention_losses import attention_losses

    return attention_losses(prompts, settings, stage)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method(Generic[S]):
    """A personalisation method.

    `make_embedding` initialises the placeholder tokens, `count_tokens` of them; `make_losses`
    returns what is minimised beside the diffusion loss. With `names_category` a prompt names the
    concept by its tokens and its category, `[V] dog`, else by its tokens alone. `former` has what
    stands for settings that a run does not record as it is older than they are.
    """

    name: str
    about: str
    paper: str
    settings: type[S]
    stages: tuple[Stage, ...]
    make_embedding: MakeEmbedding[S]
    count_tokens: CountTokens[S] = num_tokens_of
    make_losses: MakeLosses[S] = weighted_losses
    names_category: bool = True
    former: Mapping[str, object] = field(default_factory=dict)

    @property
    def keeps_base(self) -> bool:
        """Whether only embeddings are trained, so that several concepts can share a batch."""
        return all(stage.learns == "embedding" for stage in self.stages)


@dataclass(frozen=True, slots=True)
class Preset:
    """Named settings of a method, and what they are for."""

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
    """Tokens initialised with the category's embedding."""
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
    """The folders of this package, including those that a plug-in added to its path."""
    return list(import_module(__package__ or "").__path__)


def find_method(name: str) -> Method:
    """The method of that name. Raises `NotFound`."""
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
    """The preset of that name; without a name, the one named like the base model, else `paper`.

    Raises `NotFound`.
    """
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
    """A preset's settings with overrides such as `stage3.steps=300`.

    `base` is the base model's name; see `find_preset`. Without any steps a version is ready at once
    if it holds references. Raises `NotFound`, and `InvalidInput` also for settings that contradict
    each other, and for overrides that others leave nothing to do.
    """
    settings = find_preset(method, preset, base).settings.with_overrides(overrides)
    settings.check_together()
    _check_used(method, settings, overrides)
    if settings.fused_backward and method.keeps_base:
        raise InvalidInput(
            f"fused_backward saves the gradients of the base model's weights, which {method.name} "
            "does not train",
            hint="--set fused_backward=false",
        )
    _check_quantized(method, settings)
    for stage, own in active_stages(method, settings):
        if stage.learns == "embedding" and own.has_several_rates:
            raise InvalidInput(
                f"{stage.name} trains tokens alone, at {stage.name}.learning_rate",
                hint=f"--set {stage.name}.embedding_rate=0, and those of encoders",
            )
        if stage.learns == "embedding" and own.rank:
            raise InvalidInput(
                f"{stage.name}.rank is for LoRA, but {stage.name} trains tokens alone",
                hint=f"--set {stage.name}.rank=0",
            )
    return settings


_ONLY_WITH: tuple[tuple[tuple[str, ...], str, Callable[[TrainingSettings], bool]], ...] = (
    (("captions.dropout",), "captions.share=0.5", lambda s: s.captions.share > 0),
    (("mask.background",), "mask.use=auto", lambda s: s.mask.use != "none"),
    (
        ("augmentation.rotation",),
        "augmentation.rotation_probability=0.75",
        lambda s: s.augmentation.rotation_probability > 0,
    ),
    (
        ("augmentation.rotation_probability",),
        "augmentation.rotation=45",
        lambda s: s.augmentation.rotation > 0 or not s.augmentation.rotation_probability,
    ),
    (
        ("prior.num_images", "prior.after_references"),
        "prior.weight=1",
        lambda s: s.prior.weight > 0,
    ),
    (
        ("reference.weight", "reference.share", "reference.guidance"),
        "reference.photos=1",
        lambda s: s.reference.photos > 0,
    ),
    (("reference.guidance",), "reference.share=0.5", lambda s: s.reference.share > 0),
    (
        ("gradient_accumulation",),
        "STAGE.batch=8",
        lambda s: any(each.steps and each.batch > 1 for each in s.stages().values()),
    ),
    (
        ("loss_reduction",),
        "STAGE.mean_weight=2",
        lambda s: any(
            each.steps and (each.mean_weight or each.variance_weight)
            for each in s.stages().values()
        ),
    ),
    (
        ("schedule.cycles",),
        "schedule.kind=cosine_with_restarts",
        lambda s: s.schedule.kind == "cosine_with_restarts",
    ),
    (("schedule.power",), "schedule.kind=polynomial", lambda s: s.schedule.kind == "polynomial"),
    (
        ("schedule.rules",),
        "schedule.kind=piecewise_constant",
        lambda s: s.schedule.kind == "piecewise_constant",
    ),
    (
        ("noise.logit_mean", "noise.logit_std"),
        "noise.density=logit-normal",
        lambda s: s.noise.density == "logit-normal",
    ),
    (("loss.huber_c", "loss.huber_schedule"), "loss.kind=huber", lambda s: s.loss.kind == "huber"),
    (
        ("loss.subject_wise_reduction",),
        "loss.subject_wise=0.1",
        lambda s: s.loss.subject_wise > 0,
    ),
)
"""Settings that do nothing but with another one."""


def _check_used(method: Method, settings: TrainingSettings, overrides: Sequence[str]) -> None:
    """Raise `InvalidInput` for an override, other than the usual value, that does nothing."""
    usual, now = dict(method.settings().flat()), dict(settings.flat())
    given = {word.partition("=")[0].strip() for word in overrides}
    changed = [
        name
        for name, value in now.items()
        if value != usual[name] and any(f"{name}.".startswith(f"{each}.") for each in given)
    ]
    _check_trained(method, settings, changed)
    for names, fitting, is_used in _ONLY_WITH:
        for name in names:
            if name in changed and not is_used(settings):
                raise InvalidInput(
                    f"{name} does nothing without {fitting.partition('=')[0]}",
                    hint=f"--set {fitting}, or leave {name} out",
                )


def _check_trained(method: Method, settings: TrainingSettings, changed: Sequence[str]) -> None:
    """Raise `InvalidInput` for changed settings of what is not trained."""
    active = [stage for stage, _ in active_stages(method, settings)]
    trained = [stage.name for stage in active]
    for name in changed:
        group, _, last = name.rpartition(".")
        is_of_stage = group in settings.stages()
        if last == "steps" and is_of_stage:
            continue
        if is_of_stage and group not in trained:
            raise InvalidInput(
                f"{name} does nothing: {group} has 0 steps",
                hint=f"--set {group}.steps=N, or leave {name} out",
            )
        if not active and group != "reference":
            raise InvalidInput(
                f"{name} does nothing: no stage has steps",
                hint=f"--set STAGE.steps=N, or leave {name} out",
            )
    if active and all(stage.learns == "embedding" for stage in active):
        who = method.name if method.keeps_base else trained[0]
        for name in changed:
            if name == "rank" or name.startswith("lora."):
                fitting = "--set rank=0" if name == "rank" else f"leave {name} out"
                raise InvalidInput(
                    f"{name} is for LoRA, but {who} trains tokens alone", hint=fitting
                )


def _check_quantized(method: Method, settings: TrainingSettings) -> None:
    """Weights in few bits are frozen, and their norms are not at hand."""
    if settings.quantize == "none":
        return
    learning = [s.name for s, _ in active_stages(method, settings) if s.learns != "embedding"]
    if learning and not settings.rank:
        raise InvalidInput(
            f"quantize={settings.quantize} freezes the U-Net's weights, which {learning[0]} trains",
            hint="--set rank=16 for LoRA, or --set quantize=none",
        )
    if settings.lora.dora:
        raise InvalidInput(
            f"lora.dora needs whole weights, which quantize={settings.quantize} does not keep",
            hint="--set lora.dora=false, or --set quantize=none",
        )


def active_stages(
    method: Method, settings: TrainingSettings
) -> Iterator[tuple[Stage, StageSettings]]:
    """The stages that have steps, with their settings."""
    stage_settings = settings.stages()
    for stage in method.stages:
        if stage_settings[stage.name].steps:
            yield stage, stage_settings[stage.name]

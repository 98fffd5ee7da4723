"""Settings of trainings, with their types and ranges; presets and `--set` change them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Literal, Self, TypeVar, overload

from ..adapters.limits import MAX_RANK, MAX_TOKENS
from ..models.references import (
    GUIDANCE,
    MAX_GUIDANCE,
    MAX_REFERENCES,
    MAX_STRENGTH,
    MAX_WEIGHT,
    SHARE,
    WEIGHT,
)
from ..registry.documents import parse_yaml, shown
from ..registry.errors import InvalidInput
from ..registry.validation import form_of, validated

POLYNOMIAL_END = 1e-7
"""The learning rate at which diffusers' polynomial schedule ends."""
_FACTOR = r"\d{1,9}(\.\d{1,9})?"
_RULES = rf"({_FACTOR}:\d{{1,9}},)*{_FACTOR}"
_T = TypeVar("_T")


@overload
def setting(*, low: _T, high: _T) -> _T: ...
@overload
def setting(default: _T, *, low: float | None = None, high: float | None = None) -> _T: ...
def setting(default: object = MISSING, *, low: object = None, high: object = None) -> object:
    """A field of settings with its range; a fixed choice of words is a `Literal` instead."""
    return field(default=default, metadata={"ge": low, "le": high})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings checked against their types and ranges. Raises `InvalidInput` for a wrong value."""

    def __post_init__(self) -> None:
        validated(form_of(type(self)), self, noun="setting")

    def updated(self, values: Mapping[str, object]) -> Self:
        """A copy with the values of a nested mapping. Raises `InvalidInput`."""
        validated(form_of(type(self)), values, noun="setting")
        return self._with(values)

    def _with(self, values: Mapping[str, object]) -> Self:
        """A copy with checked values, as they were written: a whole number stays an int."""
        changes: dict[str, object] = {}
        for name, value in values.items():
            old = getattr(self, name)
            if isinstance(old, Settings) and isinstance(value, Mapping):
                changes[name] = old._with(value)
            else:
                changes[name] = tuple(value) if isinstance(value, list) else value
        return replace(self, **changes)

    def to_mapping(self) -> dict[str, object]:
        """All settings as nested mappings, ready for JSON."""
        return asdict(self)

    def with_overrides(self, assignments: Sequence[str]) -> Self:
        """A copy with assignments such as `stage3.steps=300`. Raises `InvalidInput`."""
        settings = self
        for assignment in assignments:
            path, equals, text = assignment.partition("=")
            if not equals or not path.strip():
                raise InvalidInput(
                    f"{assignment!r} sets nothing", hint="--set NAME=VALUE, as stage3.steps=300"
                )
            *groups, last = path.strip().split(".")
            value: dict[str, object] = {last: _parsed(text)}
            for group in reversed(groups):
                value = {group: value}
            settings = settings.updated(value)
        return settings

    def flat(self, at: str = "") -> Iterator[tuple[str, object]]:
        """(name, value) of each setting, nested ones as `stage3.steps`."""
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, Settings):
                yield from value.flat(f"{at}{each.name}.")
            else:
                yield f"{at}{each.name}", value


def _parsed(text: str) -> object:
    """A value as YAML reads it, but 1e-4 is a number, and no, off and nothing are texts."""
    if text.strip().lower() in ("", "yes", "no", "on", "off"):
        return text.strip()
    if re.fullmatch(r"[-+]?(\d++\.?\d*+|\.\d++)[eE][-+]?\d+", text):
        return float(text)
    try:
        return parse_yaml(text)
    except InvalidInput:
        return text


# --- common to all trainings ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSettings(Settings):
    """One stage of a training."""

    steps: int = setting(low=0, high=1_000_000)
    """Optimiser steps; 0 skips the stage."""
    learning_rate: float = setting(low=0, high=10)
    """Of the optimiser; `schedule` says how it changes. Prodigy wants 1."""
    warmup: int = setting(0, low=0, high=1_000_000)
    """Steps in which the learning rate rises from 0, with a `schedule.kind` that has a warm-up."""
    batch: int = setting(8, low=1, high=4096)
    """Pictures per step."""
    rank: int = setting(0, low=0, high=MAX_RANK)
    """Of LoRA in layers that this stage is the first to train; 0 is the setting `rank`."""
    embedding_rate: float = setting(0.0, low=0, high=10)
    """Learning rate of the tokens, in a stage that trains the denoiser; 0 leaves them alone."""
    text_encoder_rate: float = setting(0.0, low=0, high=10)
    """The same of the text encoders' layers; with `rank`, of LoRA in them."""
    subject_encoder_rate: float = setting(0.0, low=0, high=10)
    """The same of the subject encoder's ResBlocks, with `reference.encoder_strength`."""
    mean_weight: float = setting(0.0, low=0, high=1e6)
    """λ_μ of the cross-attention map regularisation (AttnDreamBooth)."""
    variance_weight: float = setting(0.0, low=0, high=1e6)
    """λ_σ of the same."""

    @property
    def has_several_rates(self) -> bool:
        """Whether tokens or encoders are trained beside the denoiser."""
        return len(self.rates()) > 1

    def rates(self) -> list[tuple[str, float]]:
        """(name, value) of the learning rate, and of those that other parts have, if not 0."""
        others = ("embedding_rate", "text_encoder_rate", "subject_encoder_rate")
        found = [(name, getattr(self, name)) for name in others]
        return [("learning_rate", self.learning_rate), *(each for each in found if each[1])]


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation(Settings):
    """How photos are varied. The varied crops are made and encoded once, as a pool."""

    crops: int = setting(64, low=1, high=100_000)
    """How many crops there are in all."""
    rotation: float = setting(45.0, low=0, high=180)
    """Largest angle, in degrees."""
    rotation_probability: float = setting(0.75, low=0, high=1)
    """Probability that a crop is rotated."""
    flip: bool = True
    """Half of the crops are mirrored; not for faces and lettering."""
    white_background: bool = False
    """What is not the subject becomes white, by the photo's mask or one that is found."""
    smallest: float = setting(0.8, low=0.1, high=1)
    """Side of the smallest crop, as a share of the photo's shorter side."""
    buckets: bool = False
    """Crops are near their photo's own shape, in multiples of 64 pixels (at 512), not square."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskSettings(Settings):
    """Masks of photos in the diffusion loss: what is not subject counts for less."""

    use: Literal["none", "stored", "auto"] = "none"
    """stored: those that photos have; auto: also found ones, where the category's word is seen."""
    background: float = setting(0.1, low=0, high=1)
    """Weight outside, as inside has 1; then those of each picture are scaled to average 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionSettings(Settings):
    """Captions of photos as training prompts, in which the concept takes its category's place."""

    share: float = setting(0.0, low=0, high=1)
    """Probability that the prompt of a photo with a caption is its caption."""
    dropout: float = setting(0.0, low=0, high=1)
    """Probability that of such a caption only the concept itself is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior(Settings):
    """Prior preservation (DreamBooth, arXiv 2208.12242, eq. 2)."""

    weight: float = setting(0.0, low=0, high=100)
    """λ; 0 switches it off."""
    num_images: int = setting(200, low=1, high=10_000)
    """Class images, drawn once by the base model."""
    after_references: bool = False
    """They are drawn after the references, unmasked: regular images (DreamTuner, section 3.3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise(Settings):
    """The noise that a training adds, and the timesteps that it draws."""

    offset: float = setting(0.0, low=0, high=1)
    """Noise offset: standard deviation of noise that is the same all over a channel."""
    density: Literal["uniform", "logit-normal"] = "uniform"
    """Of the timesteps; logit-normal is that of arXiv 2403.03206, equation 19."""
    logit_mean: float = setting(0.0, low=-10, high=10)
    """Of the logit-normal density; above 0 there are more steps of much noise."""
    logit_std: float = setting(1.0, low=0, high=10)
    """Of the same."""
    lowest: float = setting(0.0, low=0, high=1)
    """Where the range of timesteps begins, as a share of all; 0 is the least noise."""
    highest: float = setting(1.0, low=0, high=1)
    """Where it ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses(Settings):
    """The kind and the weight of the diffusion loss, and losses that any method can take."""

    kind: Literal["l2", "huber"] = "l2"
    """Of the diffusion loss; huber counts large errors for less (pseudo-Huber)."""
    huber_c: float = setting(0.1, low=1e-6, high=1)
    """Error at which huber passes from squares to absolute values; smallest, where it changes."""
    huber_schedule: Literal["constant", "exponential", "snr"] = "snr"
    """How that error falls with the timestep: from 1 to huber_c, but for constant."""
    min_snr_gamma: float = setting(0.0, low=0, high=1000)
    """γ of the min-SNR weight (arXiv 2303.09556; the paper's is 5); 0 switches it off."""
    subject_wise: float = setting(0.0, low=0, high=1e6)
    """λ of the subject-wise attention loss (SeFi-IDE); 0 switches it off."""
    subject_wise_reduction: Literal["sum", "mean"] = "sum"
    """Reduction over positions and tokens; heads, layers and batch are averaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceSettings(Settings):
    """References that a version holds and is drawn after (DreamTuner, arXiv 2312.13691)."""

    photos: int = setting(0, low=0, high=MAX_REFERENCES)
    """How many of the photos, from the first on; 0 holds none."""
    weight: float = setting(WEIGHT, low=0, high=MAX_WEIGHT)
    """ω of each."""
    share: float = setting(SHARE, low=0, high=1)
    """p_r, the share of steps that they guide."""
    guidance: float = setting(GUIDANCE, low=0, high=MAX_GUIDANCE)
    """ω_r, how strongly."""
    encoder_strength: float = setting(0.0, low=0, high=MAX_STRENGTH)
    """β of the base model's subject encoder, also in trainings of the denoiser; 0 needs none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings(Settings):
    """What LoRA (arXiv 2106.09685) adapts, where `rank` is not 0."""

    layers: Literal["attention", "attention+ff", "all"] = "attention"
    """Projections of attention; feed-forward layers too; or all of blocks, as kohya's LoCon."""
    alpha: float = setting(0.0, low=0, high=1024)
    """What is learned counts alpha / rank; 0 stands for the rank."""
    dora: bool = False
    """Directions and magnitudes are learned apart (DoRA, arXiv 2402.09353); slower."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule(Settings):
    """How the learning rate changes over the steps of each stage: diffusers' `get_scheduler`."""

    kind: Literal[
        "constant",
        "constant_with_warmup",
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
        "piecewise_constant",
    ] = "constant"
    """All but the first and the last have a warm-up, as long as each stage's `warmup` says."""
    cycles: int = setting(1, low=1, high=1000)
    """Of cosine_with_restarts."""
    power: float = setting(1.0, low=0, high=100)
    """Of polynomial."""
    rules: str = ""
    """Of piecewise_constant: factors, and the steps before which they hold: 1:10,0.1:20,0.01."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings(Settings):
    """Settings that all methods have; each method adds its stages."""

    prompts: tuple[str, ...] = ("a photo of a {}",)
    """Training prompts; {} becomes the concept."""
    num_tokens: int = setting(1, low=1, high=MAX_TOKENS)
    """Tokens that stand for the subject."""
    rank: int = setting(0, low=0, high=MAX_RANK)
    """Rank of LoRA in stages that train the U-Net; 0 trains its own weights."""
    resolution: int = setting(0, low=0, high=4096)
    """Side of the crops in pixels; 0 is the base model's own."""
    optimizer: Literal["adamw", "adamw8bit", "adafactor", "prodigy", "came", "schedule-free"] = (
        "adamw"
    )
    """8-bit needs the package bitsandbytes, the last three need pytorch-optimizer."""
    weight_decay: float = setting(1e-2, low=0, high=1)
    """The optimiser's."""
    max_grad_norm: float = setting(0.0, low=0, high=1e6)
    """Gradients are scaled down to this norm; 0 leaves them alone."""
    loss_reduction: Literal["sum", "mean"] = "sum"
    """Reduction over the batch of AttnDreamBooth's regularisation."""
    mixed_precision: Literal["auto", "no", "bf16"] = "auto"
    """auto is bf16 on a GPU that has it, else no."""
    gradient_accumulation: int = setting(1, low=1, high=1024)
    """Parts into which a step's batch is split: less memory, more time."""
    fused_backward: bool = False
    """Weights are updated as soon as their gradients are there: less memory, without a prior."""
    gradient_checkpointing: bool = False
    """Activations are computed again in the backward pass: less memory, more time."""
    compile: bool = False
    """The U-Net's blocks are compiled: the first steps take minutes, later ones less on a GPU."""
    quantize: Literal["none", "8bit", "4bit"] = "none"
    """Bits of the U-Net's frozen linear layers: less of a GPU's memory; 4bit needs bitsandbytes."""
    ema: float = setting(0.0, low=0, high=0.99999)
    """Decay of the moving average that becomes the result; 0 takes the last weights."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    mask: MaskSettings = field(default_factory=MaskSettings)
    captions: CaptionSettings = field(default_factory=CaptionSettings)
    prior: Prior = field(default_factory=Prior)
    schedule: Schedule = field(default_factory=Schedule)
    noise: Noise = field(default_factory=Noise)
    loss: Losses = field(default_factory=Losses)
    reference: ReferenceSettings = field(default_factory=ReferenceSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)

    def __post_init__(self) -> None:
        Settings.__post_init__(self)
        for prompt in self.prompts:
            if "{}" not in prompt:
                raise InvalidInput(f"the training prompt {prompt!r} has no {{}} for the concept")

    def check_together(self) -> None:
        """Raise `InvalidInput` for settings that contradict each other."""
        stages = {name: stage for name, stage in self.stages().items() if stage.steps}
        if not stages and not self.reference.photos:
            raise InvalidInput("all stages have 0 steps", hint="--set STAGE.steps=N")
        if self.noise.lowest >= self.noise.highest:
            raise InvalidInput(
                f"noise.lowest is {self.noise.lowest:g}, noise.highest {self.noise.highest:g}: "
                "expected a range of timesteps",
                hint="--set noise.lowest=0 --set noise.highest=1",
            )
        ranks = [name for name, each in stages.items() if each.rank]
        if not self.rank and (ranks or self.lora != LoraSettings()):
            named = f"{ranks[0]}.rank is" if ranks else "lora.layers, lora.alpha and lora.dora are"
            raise InvalidInput(f"{named} for LoRA, but rank is 0", hint="--set rank=16")
        self._check_references(stages)
        self._check_fused()
        self._check_schedule(stages)
        self._check_optimizer(stages)

    def _check_references(self, stages: Mapping[str, StageSettings]) -> None:
        if not self.reference.photos:
            if self.prior.after_references and self.prior.weight:
                raise InvalidInput(
                    "prior.after_references needs references",
                    hint="--set reference.photos=1, or prior.after_references=false",
                )
            if self.reference.encoder_strength:
                raise InvalidInput(
                    "reference.encoder_strength needs references",
                    hint="--set reference.photos=1, or reference.encoder_strength=0",
                )
        learning = [name for name, each in stages.items() if each.subject_encoder_rate]
        if learning and not self.reference.encoder_strength:
            rate = f"{learning[0]}.subject_encoder_rate"
            raise InvalidInput(
                f"{rate} needs reference.encoder_strength",
                hint=f"--set reference.encoder_strength=0.2, or {rate}=0",
            )

    def _check_fused(self) -> None:
        if not self.fused_backward:
            return
        for has_it, name, why, fitting in (
            (self.gradient_accumulation > 1, "gradient_accumulation", "keeps gradients", "1"),
            (self.max_grad_norm > 0, "max_grad_norm", "needs all gradients at once", "0"),
            (
                self.optimizer in ("prodigy", "came", "schedule-free"),
                *("optimizer", "steps all weights at once", "adamw"),
            ),
        ):
            if has_it:
                value = getattr(self, name)
                raise InvalidInput(
                    f"{name}={value} {why}, which fused_backward does not have",
                    hint=f"--set {name}={fitting}, or fused_backward=false",
                )

    def _check_schedule(self, stages: Mapping[str, StageSettings]) -> None:
        kind, rules = self.schedule.kind, self.schedule.rules
        if kind == "piecewise_constant" and not re.fullmatch(_RULES, rules, re.ASCII):
            raise InvalidInput(
                f"schedule.rules is {shown(rules)}: expected factors and steps",
                hint="--set schedule.rules=1:10,0.1:20,0.01",
            )
        for name, stage in stages.items():
            if stage.warmup and kind in ("constant", "piecewise_constant"):
                raise InvalidInput(
                    f"{name}.warmup is {stage.warmup}, but schedule.kind={kind} has no warm-up",
                    hint=f"--set schedule.kind=constant_with_warmup, or {name}.warmup=0",
                )
            if stage.warmup > stage.steps:
                raise InvalidInput(
                    f"{name}.warmup is {stage.warmup}: the stage has {stage.steps} steps",
                    hint=f"--set {name}.warmup={stage.steps // 10}",
                )
            low = [rate for rate, value in stage.rates() if value <= POLYNOMIAL_END]
            if kind == "polynomial" and low:
                raise InvalidInput(
                    f"{name}.{low[0]} is {getattr(stage, low[0]):g}: "
                    f"schedule.kind=polynomial ends at {POLYNOMIAL_END:g}",
                    hint=f"--set {name}.{low[0]}=… higher, or --set schedule.kind=linear",
                )

    def _check_optimizer(self, stages: Mapping[str, StageSettings]) -> None:
        several = [name for name, each in stages.items() if each.has_several_rates]
        if several and self.optimizer in ("prodigy", "came", "schedule-free"):
            raise InvalidInput(
                f"{several[0]} has learning rates of its own for tokens or encoders, which "
                f"optimizer={self.optimizer} has not",
                hint="--set optimizer=adamw, or adafactor",
            )
        if self.optimizer == "prodigy":
            low = [name for name, each in stages.items() if each.learning_rate < 0.01]
            if low:
                raise InvalidInput(
                    f"{low[0]}.learning_rate is {stages[low[0]].learning_rate:g}: prodigy finds "
                    "the rate itself, and multiplies it by this",
                    hint=" ".join(f"--set {name}.learning_rate=1" for name in low),
                )
        if self.optimizer == "schedule-free":
            if self.schedule.kind not in ("constant", "constant_with_warmup"):
                raise InvalidInput(
                    f"schedule.kind is {self.schedule.kind}: schedule-free takes the place of it",
                    hint="--set schedule.kind=constant, or constant_with_warmup",
                )
            if self.ema:
                raise InvalidInput(
                    f"ema is {self.ema:g}: schedule-free has its own average", hint="--set ema=0"
                )

    def stages(self) -> dict[str, StageSettings]:
        """The stages by name, in order."""
        return {
            each.name: value
            for each in fields(self)
            if isinstance(value := getattr(self, each.name), StageSettings)
        }

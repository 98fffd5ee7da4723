"""Time, memory and disk that a training would take, measured on a few steps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image

from ..generation.sampler import reporting_broken_base
from ..methods.method import DEFAULT_METHOD, Method, active_stages, find_method, resolve_settings
from ..methods.settings import TrainingSettings
from ..models.loading import LoadedBase
from ..registry import Registry
from ..registry.errors import ConceptryError, InvalidInput
from ..registry.records import Concept, ConceptKey
from ..registry.running import RESUME_FILE
from .callbacks import Hooks, StepReport
from .distributed import num_processes
from .optimizers import bytes_per_weight
from .subjects import encoder_for, references_of, subject_of, with_photos
from .trainer import Trainer
from .training import Training


@dataclass(frozen=True, slots=True)
class StageEstimate:
    """A stage; `seconds` are for all its steps."""

    name: str
    steps: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a training would take: seconds, peak memory, disk.

    `memory_bytes` are of the GPU, else of the process; `disk_bytes` count two resume points, as
    each is written beside the former one, which are removed in the end, and the version, which
    stays.
    """

    concept: str
    method: str
    base: str
    seconds: float
    """Like `memory_bytes` and the stages': of the whole batch of `together` concepts."""
    together: int
    memory_bytes: int
    disk_bytes: int
    stages: list[StageEstimate]


def estimate(
    registry: Registry,
    name: ConceptKey,
    base: LoadedBase,
    *,
    method: str = DEFAULT_METHOD,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    photos: Sequence[str] = (),
) -> Estimate:
    """What `train` would take; see `estimate_many`."""
    (found,) = estimate_many(
        registry, [name], base, method=method, preset=preset, overrides=overrides, photos=photos
    )
    return found


def estimate_many(
    registry: Registry,
    names: Sequence[ConceptKey],
    base: LoadedBase,
    *,
    method: str = DEFAULT_METHOD,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    photos: Sequence[str] = (),
) -> list[Estimate]:
    """Run three steps of each stage of a batch, and extrapolate; nothing is recorded.

    Does not count class pictures, which are drawn once for a category, nor what compiling takes.
    Raises what `train` raises.
    """
    if num_processes() > 1:
        raise InvalidInput("estimates run in one process", hint="leave --processes out")
    chosen = find_method(method)
    settings = resolve_settings(
        chosen, preset=preset, base=base.base.name, overrides=tuple(overrides)
    )
    if settings.augmentation.buckets and len(names) > 1:  # they are taught one after another
        found = (
            estimate(
                registry,
                name,
                base,
                method=method,
                preset=preset,
                overrides=overrides,
                photos=photos,
            )
            for name in names
        )
        return list(found)
    trial = settings.updated({"augmentation": {"crops": 2}, "compile": False})
    for stage, stage_settings in active_stages(chosen, settings):
        steps = min(3, stage_settings.steps)
        warmup = min(steps, stage_settings.warmup)
        trial = trial.updated({stage.name: {"steps": steps, "warmup": warmup}})
    taken: dict[str, float] = {}  # seconds of a stage's last step; the first one warms up

    def on_step(report: StepReport) -> None:
        taken[report.stage] = report.seconds

    with TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}-{RESUME_FILE}" for i in range(len(names))]
        concepts = [with_photos(registry.show(name), photos) for name in names]
        trainings = [
            _trial(registry, concept, base, chosen, trial, Hooks(on_step=on_step))
            for concept in concepts
        ]
        disk_bytes: list[int] = []
        kept = 4 + bytes_per_weight(settings.optimizer) + 4 * bool(settings.ema)  # of a weight
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()  # else it is that of what came before
        with reporting_broken_base(base):
            outcomes = Trainer(trainings, paths).run()
        for path, learned in zip(paths, outcomes, strict=True):
            if isinstance(learned, ConceptryError):
                raise learned
            size = sum(tensor.nbytes for tensor in learned.state().values())
            saved = path.stat().st_size if path.exists() else 0  # without a step nothing is saved
            disk_bytes.append(2 * (saved // 4) * kept + size)
    stages = [
        StageEstimate(
            stage.name,
            stage_settings.steps,
            round(stage_settings.steps * taken[stage.name], 1),
        )
        for stage, stage_settings in active_stages(chosen, settings)
    ]
    seconds, memory = round(sum(stage.seconds for stage in stages), 1), _peak_memory()
    return [
        Estimate(
            concept.name, chosen.name, base.base.name, seconds, len(names), memory, size, stages
        )
        for concept, size in zip(concepts, disk_bytes, strict=True)
    ]


def _trial(
    registry: Registry,
    concept: Concept,
    base: LoadedBase,
    method: Method,
    settings: TrainingSettings,
    hooks: Hooks,
) -> Training:
    subject = subject_of(registry, base, concept, method, settings)
    references = references_of(
        registry, base, concept, settings.reference, encoder=encoder_for(base, settings)
    )
    pictures = [_square(subject.photos[0], base)] * 2
    subject = replace(subject, references=references, class_pictures=pictures)
    return Training(base.backbone, method, settings, subject, seed=0, hooks=hooks)


def _square(photo: Image.Image, base: LoadedBase) -> Image.Image:
    side = base.backbone.size
    return photo.resize((side, side))


def _peak_memory() -> int:
    """Of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

"""`train` and `resume`: from a concept in a registry to a new version of it."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version as installed_version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image

from ..models.drawing import draw
from ..models.loading import LoadedBase
from ..models.pictures import replace_picture
from ..models.request import Settings as DrawingSettings
from ..registry import Registry
from ..registry.errors import (
    ConceptryError,
    InvalidInput,
    TrainingFailed,
    TrainingInterrupted,
)
from ..registry.records import Concept
from ..registry.running import CHECKPOINT_PREFIX, PREVIEWS_FILE
from .artifact import Fits, write_artifact
from .config import TrainingSettings
from .engine import Checkpoint, Hooks, StepReport, Subject, Training, seed_of
from .method import DEFAULT_METHOD, active_stages, find_method, settings_of
from .previews import add_strip
from .processes import is_first, join, num_processes, told
from .prompts import FILE_NAME

RESUME_FILE = "resume.safetensors"
PACKAGES = ("accelerate", "conceptry", "diffusers", "peft", "torch", "transformers")
METRICS_EVERY = 50


@dataclass(frozen=True, slots=True)
class StageSummary:
    """A stage of a run: how many steps, and the mean loss of its last tenth."""

    name: str
    steps: int
    loss: float


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training left: version `version` of a concept."""

    concept: str
    run: str
    version: int
    method: str
    seconds: float
    stages: list[StageSummary]
    previews: Path | None
    """The sheet of strips, if `Hooks.preview_every` asked for some."""


def train(
    registry: Registry,
    name: str,
    base: LoadedBase,
    *,
    method: str = DEFAULT_METHOD,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    seed: int = 0,
    hooks: Hooks | None = None,
) -> Trained:
    """Teach a concept of a registry to a base model; the result is its next version.

    Without `preset` it is that of the base model's name, or the paper's; `overrides` change single
    settings, as `stage3.steps=300`. A training that is interrupted or fails keeps its state, and
    `resume` goes on.

    Raises `NotFound` for an unknown concept, method or preset, `InvalidInput` for settings out of
    range or a concept without photos, `RegistryBusy` if it is being trained already,
    `TrainingFailed` and `TrainingInterrupted`.
    """
    join()
    if not is_first():
        return _follow(registry, base)
    chosen = find_method(method)
    settings = settings_of(chosen, preset=preset, base=base.base.name, overrides=tuple(overrides))
    with registry.training_lock(registry.show(name).name):
        concept = _with_images(registry.show(name))
        run = registry.begin_run(
            name,
            method=chosen.name,
            config=settings.to_mapping() | _taught_from(concept),
            base=base.base.name,
            base_sha256=base.sha256,
            seed=seed,
            packages={package: installed_version(package) for package in PACKAGES},
        )
        plan = _Plan(concept, run, chosen.name, settings, seed)
        return _run(registry, base, plan, hooks or Hooks())


def resume(
    registry: Registry, name: str, base: LoadedBase, *, hooks: Hooks | None = None
) -> Trained:
    """Go on with the latest training of a concept that did not end, as it was set up then.

    Raises `NotFound` if there is none or its state is lost, `InvalidInput` if the base model or
    the photos are others by now.
    """
    join()
    if not is_first():
        return _follow(registry, base)
    with registry.training_lock(registry.show(name).name):
        concept = registry.show(name)
        record = registry.resumable_run(name)
        if record.base_sha256 != base.sha256:
            raise InvalidInput(
                f"run {record.run} of {name} was on another base model",
                hint=f"--base {record.base}",
            )
        method = find_method(record.method)
        config = dict(record.config)
        concept = _as_it_was(concept, config.pop("photos"), config.pop("category"))
        settings = method.settings().updated(config)
        registry.resume_run(record.run)
        plan = _Plan(concept, record.run, method.name, settings, record.seed)
        return _run(registry, base, plan, hooks or Hooks())


def _with_images(concept: Concept) -> Concept:
    if not concept.images:
        raise InvalidInput(
            f"{concept.name} has no photos", hint=f"concept add {concept.name} PHOTO…"
        )
    return concept


def _taught_from(concept: Concept) -> dict[str, Any]:
    """What of a concept a run is made from; edits must not change a run under way."""
    return {"photos": [image.sha256 for image in concept.images], "category": concept.category}


def _as_it_was(concept: Concept, wanted: Sequence[str], category: str) -> Concept:
    """The concept with the photos that a run began with, in their order, and its category."""
    by_hash = {image.sha256: image for image in concept.images}
    if missing := [sha256 for sha256 in wanted if sha256 not in by_hash]:
        raise InvalidInput(
            f"{len(missing)} of the photos that the run of {concept.name} began with are gone",
            hint=f"concept train {concept.name}",
        )
    return replace(concept, images=[by_hash[sha256] for sha256 in wanted], category=category)


@dataclass(frozen=True, slots=True)
class _Plan:
    """A run as it was recorded: all that a process has to know to take part in it."""

    concept: Concept
    run: str
    method: str
    settings: TrainingSettings
    seed: int


def _run(registry: Registry, base: LoadedBase, plan: _Plan, hooks: Hooks) -> Trained:
    started = time.monotonic()
    concept, run = plan.concept, plan.run
    folder = registry.run_folder(run)
    previews = folder / PREVIEWS_FILE
    metrics = _Metrics(registry, run)

    def on_step(report: StepReport) -> None:
        metrics.add(report)
        hooks.on_step(report)

    def on_preview(stage: str, step: int, images: list[Image.Image]) -> None:
        with suppress(OSError):  # a preview is not worth a training
            add_strip(previews, f"{stage}, step {step}", images)
        hooks.on_preview(stage, step, images)

    def on_saved(path: Path) -> None:
        metrics.flush()
        hooks.on_saved(path)

    def on_checkpoint(checkpoint: Checkpoint) -> None:
        name = f"{CHECKPOINT_PREFIX}{checkpoint.stage}-{checkpoint.step:06}.safetensors"
        unfinished = folder / f"{name}.unfinished"
        write_artifact(unfinished, checkpoint.learned.state(), fits)
        unfinished.replace(folder / name)
        hooks.on_checkpoint(checkpoint)

    own_hooks = replace(
        hooks,
        on_step=on_step,
        on_preview=on_preview,
        on_saved=on_saved,
        on_checkpoint=on_checkpoint,
    )
    fits = Fits(
        base_sha256=base.sha256,
        method=plan.method,
        category=concept.category,
        num_tokens=plan.settings.num_tokens,
        names_category=find_method(plan.method).names_category,
    )
    with _recorded(registry, concept.name, run):
        training = _training(registry, base, plan, own_hooks)
        told(plan)
        try:
            learned = training.run(folder / RESUME_FILE)
        finally:
            metrics.flush()
        write_artifact(folder / FILE_NAME, learned.state(), fits)
        number = registry.add_version(concept.name, {FILE_NAME: folder / FILE_NAME}, run=run)
    registry.tidy_run_folder(run)
    trained = Trained(
        concept=concept.name,
        run=run,
        version=number,
        method=plan.method,
        seconds=round(time.monotonic() - started, 1),
        stages=metrics.summary(),
        previews=previews if previews.exists() else None,
    )
    return told(trained)


def _follow(registry: Registry, base: LoadedBase) -> Trained:
    """Take part in what the first process runs; see `processes`."""
    plan: _Plan = told()
    training = _training(registry, base, plan, Hooks())
    training.run(registry.run_folder(plan.run) / RESUME_FILE)
    return told()


def _training(registry: Registry, base: LoadedBase, plan: _Plan, hooks: Hooks) -> Training:
    subject, prior = _subject(registry, plan.concept, plan.settings), plan.settings.prior
    if prior.weight:
        pictures = class_pictures(
            registry, base, plan.concept.category, prior.num_images, hooks=hooks
        )
        subject = replace(subject, class_pictures=pictures)
    method = find_method(plan.method)
    return Training(base.pipeline, method, plan.settings, subject, seed=plan.seed, hooks=hooks)


def _subject(registry: Registry, concept: Concept, settings: TrainingSettings) -> Subject:
    return Subject(
        photos=[registry.read_photo(image) for image in concept.images],
        category=concept.category,
        tokens=tuple(f"<{concept.name}#{i}>" for i in range(settings.num_tokens)),
    )


@contextmanager
def _recorded(registry: Registry, name: str, run: str) -> Iterator[None]:
    """Record how a run ends, and say how it goes on."""
    goes_on = f"concept train {name} --resume"
    try:
        yield
    except TrainingInterrupted as error:
        registry.end_run(run, "interrupted")
        raise TrainingInterrupted(f"{name}: {error.message}; saved", hint=goes_on) from None
    except torch.OutOfMemoryError as error:
        registry.end_run(run, "failed", error="out of memory")
        raise TrainingFailed(
            f"{name}: the GPU has too little memory for these settings",
            hint="--preset low-vram, or --set gradient_accumulation=4",
        ) from error
    except TrainingFailed as error:
        registry.end_run(run, "failed", error=error.message)
        raise TrainingFailed(f"{name}: {error.message}", hint=error.hint) from error
    except ConceptryError as error:
        registry.end_run(run, "failed", error=error.message)
        raise
    except KeyboardInterrupt:
        registry.end_run(run, "interrupted")
        raise
    except Exception as error:
        registry.end_run(run, "failed", error=f"{type(error).__name__}: {error}")
        raise
    registry.end_run(run, "done")


@dataclass(slots=True)
class _Metrics:
    """Losses on their way into the registry, some steps at a time."""

    registry: Registry
    run: str
    _rows: list[tuple[str, int, str, float]] = field(default_factory=list)
    _totals: dict[str, list[float]] = field(default_factory=dict)

    def add(self, report: StepReport) -> None:
        self._totals.setdefault(report.stage, []).append(sum(report.losses.values()))
        self._rows += [
            (report.stage, report.step, name, value) for name, value in report.losses.items()
        ]
        if report.step % METRICS_EVERY == 0:
            self.flush()

    def flush(self) -> None:
        self.registry.log_metrics(self.run, self._rows)
        self._rows.clear()

    def summary(self) -> list[StageSummary]:
        """Of the steps since the last resume."""
        return [
            StageSummary(stage, len(totals), _mean(totals[-max(1, len(totals) // 10) :]))
            for stage, totals in self._totals.items()
        ]


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 5)


# --- what it would cost ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StageEstimate:
    """A stage as it would be: `seconds` for all its steps."""

    name: str
    steps: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a training would take: seconds, bytes of memory at the peak, bytes on the disk.

    `disk_bytes` counts the resume point, which goes away, and the version, which stays.
    """

    concept: str
    method: str
    base: str
    seconds: float
    memory_bytes: int
    disk_bytes: int
    stages: list[StageEstimate]


def estimate(
    registry: Registry,
    name: str,
    base: LoadedBase,
    *,
    method: str = DEFAULT_METHOD,
    preset: str | None = None,
    overrides: Sequence[str] = (),
) -> Estimate:
    """Try three steps of each stage and multiply; leaves no trace. Raises what `train` raises.

    Without class pictures, which DreamBooth draws the first time for a category.
    """
    if num_processes() > 1:
        raise InvalidInput("an estimate is made by one process", hint="leave --processes out")
    chosen = find_method(method)
    settings = settings_of(chosen, preset=preset, base=base.base.name, overrides=tuple(overrides))
    concept = _with_images(registry.show(name))
    trial = settings.updated({"augmentation": {"crops": 2}})
    for stage, numbers in active_stages(chosen, settings):
        trial = trial.updated({stage.name: {"steps": min(3, numbers.steps)}})
    subject = _subject(registry, concept, trial)
    subject = replace(subject, class_pictures=[_square(subject.photos[0], base)] * 2)
    taken: dict[str, float] = {}  # the last step of a stage: the first one warms up

    def on_step(report: StepReport) -> None:
        taken[report.stage] = report.seconds

    with TemporaryDirectory() as folder:
        path = Path(folder) / RESUME_FILE
        hooks = Hooks(on_step=on_step)
        learned = Training(base.pipeline, chosen, trial, subject, seed=0, hooks=hooks).run(path)
        learned_bytes = sum(tensor.nbytes for tensor in learned.state().values())
        disk_bytes = 3 * path.stat().st_size + learned_bytes  # with two moments of each weight
    stages = [
        StageEstimate(stage.name, numbers.steps, round(numbers.steps * taken[stage.name], 1))
        for stage, numbers in active_stages(chosen, settings)
    ]
    seconds = round(sum(stage.seconds for stage in stages), 1)
    return Estimate(name, chosen.name, base.base.name, seconds, _peak_memory(), disk_bytes, stages)


def _square(photo: Image.Image, base: LoadedBase) -> Image.Image:
    side = base.pipeline.unet.config.sample_size * base.pipeline.vae_scale_factor
    return photo.resize((side, side))


def _peak_memory() -> int:
    """Of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --- class pictures -------------------------------------------------------------------------------


def class_pictures(
    registry: Registry,
    base: LoadedBase,
    category: str,
    count: int,
    *,
    hooks: Hooks | None = None,
) -> list[Image.Image]:
    """Pictures of a bare category for prior preservation, drawn once by the base model.

    They are kept in the registry's cache, and are the same for every concept of the category.
    Raises `TrainingInterrupted` when the hooks ask to stop; those that are drawn stay.
    """
    hooks = hooks or Hooks()
    folder = registry.location.cache / "class-pictures" / f"{base.sha256[:16]}-{category}"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:05}.png" for i in range(count)]
    missing = [i for i, path in enumerate(paths) if not path.exists()]
    prompt = f"a photo of a {category}"
    seeds = [seed_of(i, "class picture") % (1 << 32) for i in missing]
    drawn = draw(base, prompt, seeds, DrawingSettings(steps=25, guidance=5.0), batch=8)
    for done, (i, picture) in enumerate(zip(missing, drawn, strict=True), 1):
        replace_picture(picture.image, paths[i])
        hooks.on_class_picture(done, len(missing))
        if hooks.should_stop():
            raise TrainingInterrupted(f"stopped after class picture {done} of {len(missing)}")
    return [Image.open(path).convert("RGB") for path in paths]

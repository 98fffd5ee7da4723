"""What a training writes into the registry, and beside it, while it runs and when it ends."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from ..adapters.file_format import AdapterMetadata, write_adapter
from ..methods.method import find_method
from ..methods.settings import TrainingSettings
from ..models.loading import LoadedBase
from ..registry import Registry
from ..registry.errors import ConceptNotFound, NotFinite, NotFound, TrainingFailed
from ..registry.records import Concept
from ..registry.running import ADAPTER_FILE, CHECKPOINT_PREFIX, PREVIEWS_FILE, RESUME_FILE
from .callbacks import Checkpoint, Hooks, LearnedAdapters, StepReport
from .checkpoints import TrainingPosition
from .previews import add_strip

METRICS_EVERY = 50


@dataclass(frozen=True, slots=True)
class RunPlan:
    """A recorded run: all that a process needs to take part in it."""

    concept: Concept
    run: str
    method: str
    settings: TrainingSettings
    seed: int
    position: TrainingPosition | None = None
    """Where it resumes; None from the beginning."""


@dataclass(frozen=True, slots=True)
class StageSummary:
    """A stage of a run: its number of steps, and the mean total loss of the last tenth of them."""

    name: str
    steps: int
    loss: float


def name_now(registry: Registry, concept: Concept) -> str:
    """The concept's present name; its last known one, if it was removed."""
    try:
        return registry.show(concept.id).name
    except ConceptNotFound:
        return concept.name


class RunRecorder:
    """Records one run of a batch: metrics, previews, checkpoints, and the new version."""

    def __init__(self, registry: Registry, base: LoadedBase, plan: RunPlan, hooks: Hooks) -> None:
        self.plan = plan
        self.metrics = _Metrics(registry, plan)
        self._registry = registry
        self._hooks = hooks
        self._folder = registry.run_folder(plan.run)
        self._base_sha256 = base.sha256

    def _metadata_of(self, learned: LearnedAdapters) -> AdapterMetadata:
        plan, encoding = self.plan, learned.references.encoding
        return AdapterMetadata(
            base_sha256=self._base_sha256,
            method=plan.method,
            category=plan.concept.category,
            num_tokens=len(learned.embedding.tokens) if learned.embedding else 0,
            names_category=find_method(plan.method).names_category or not learned.embedding,
            stage_order=learned.embedding.stage_order if learned.embedding else "",
            references=learned.references.describe(),
            subject=encoding.describe() if encoding else None,
        )

    @property
    def resume_path(self) -> Path:
        """Where its resume point is."""
        return self._folder / RESUME_FILE

    @property
    def previews(self) -> Path:
        """The sheet of its preview strips; there may be none."""
        return self._folder / PREVIEWS_FILE

    def recording_hooks(self) -> Hooks:
        """The hooks, which also write to the registry and beside it."""
        return replace(
            self._hooks,
            on_step=self._on_step,
            on_preview=self._on_preview,
            on_saved=self._on_saved,
            on_checkpoint=self._on_checkpoint,
        )

    def hooks_of_other_processes(self) -> Hooks:
        """What the other processes need of the hooks to stay in step with the main one."""
        return Hooks(checkpoint_every=self._hooks.checkpoint_every)

    def keep(self, learned: LearnedAdapters) -> int:
        """Store what was learned as the concept's next version, and end the run.

        Returns the version's number. Raises `TrainingFailed` if it is not finite, and
        `ConceptNotFound` if the concept was removed.
        """
        path = self._folder / ADAPTER_FILE
        try:
            write_adapter(path, learned.state(), self._metadata_of(learned))
        except NotFinite as error:
            raise TrainingFailed(
                f"{name_now(self._registry, self.plan.concept)}: {error.message}", hint=error.hint
            ) from None
        with _telling_of_removal(self.plan):
            return self._registry.finish_run(self.plan.run, {ADAPTER_FILE: path})

    def _on_step(self, report: StepReport) -> None:
        self.metrics.add(report)
        self._hooks.on_step(report)

    def _on_preview(self, stage: str, step: int, images: list[Image.Image]) -> None:
        with suppress(OSError):  # a lost preview must not end a training
            add_strip(self.previews, f"{stage}, step {step}", images)
        self._hooks.on_preview(stage, step, images)

    def _on_saved(self, path: Path) -> None:
        self.metrics.flush()
        self._hooks.on_saved(path)

    def _on_checkpoint(self, checkpoint: Checkpoint) -> None:
        name = f"{CHECKPOINT_PREFIX}{checkpoint.name}.safetensors"
        learned = checkpoint.learned
        write_adapter(self._folder / name, learned.state(), self._metadata_of(learned))
        self._hooks.on_checkpoint(checkpoint)


@dataclass(slots=True)
class _Metrics:
    """Writes losses into the registry, `METRICS_EVERY` steps at a time."""

    registry: Registry
    plan: RunPlan
    _rows: list[tuple[str, int, str, float]] = field(default_factory=list)

    def add(self, report: StepReport) -> None:
        self._rows += [
            (report.stage, report.step, name, value) for name, value in report.losses.items()
        ]
        if report.step % METRICS_EVERY == 0:
            self.flush()

    def flush(self) -> None:
        """Write what was added since. Raises `ConceptNotFound` if the concept was removed."""
        with _telling_of_removal(self.plan):
            self.registry.log_metrics(self.plan.run, self._rows)
        self._rows.clear()

    def summary(self) -> list[StageSummary]:
        """Of all steps of the run, including those before a resume."""
        totals: dict[str, dict[int, float]] = {}
        for stage, step, _, value in self.registry.metrics(self.plan.run):
            steps = totals.setdefault(stage, {})
            steps[step] = steps.get(step, 0.0) + value
        return [
            StageSummary(
                stage, len(steps), _mean(list(steps.values())[-max(1, len(steps) // 10) :])
            )
            for stage, steps in totals.items()
        ]


@contextmanager
def _telling_of_removal(plan: RunPlan) -> Iterator[None]:
    """A run that is gone went with its concept: say so."""
    try:
        yield
    except NotFound:
        concept = plan.concept
        raise ConceptNotFound(concept.id, ()).at(concept.name) from None


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 5)

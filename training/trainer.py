"""Trainings that run as one batch, stage after stage. The loop of a stage is in `loop.py`.

Random numbers follow from (seed, stage, step), so a resumed training ends bit-equal to an
uninterrupted one on a CPU; on a GPU up to the order of summation.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from traceback import clear_frames

import torch

from ..adapters.adapter import injected
from ..adapters.timestep_tokens import timestep_routing
from ..methods.method import active_stages
from ..registry.errors import ConceptryError
from .callbacks import LearnedAdapters
from .checkpoints import ResumePoint, read_resume_point
from .loop import StageRun, run_stage
from .placement import DENOISER, keep_on_device, texts_of
from .training import Training


class Trainer:
    """Runs trainings of one method and one set of settings, on one base model, as one batch.

    The base model is changed while it runs, and restored whatever happens. Each training resumes
    from its resume path, if that exists, and saves to it now and then; all have to be at the same
    step. Each learns what it would learn alone, up to the order of summation. Only methods that
    keep the base model can train more than one.

    `failed` has the error of each training that failed, as soon as it does.
    """

    def __init__(self, trainings: Sequence[Training], resume_paths: Sequence[Path]) -> None:
        self._trainings = trainings
        self._resume_paths = resume_paths
        self.failed: dict[Training, ConceptryError] = {}
        first = trainings[0]
        self._backbone, self._method, self._settings = first.backbone, first.method, first.settings
        if len(trainings) > 1 and not self._method.keeps_base:
            raise ValueError(f"{self._method.name} changes the base model: expected one training")

    def run(self) -> list[LearnedAdapters | ConceptryError]:
        """Run all remaining stages; returns the result of each training.

        One whose loss or gradient is not finite, or whose concept is removed, fails alone: its
        error is in its place, `TrainingFailed` or `NotFound`. Raises `StorageError` if a state
        cannot be saved, and `TrainingInterrupted` once the first one's `should_stop` is true and
        all are saved.
        """
        if not any(active_stages(self._method, self._settings)):
            return [
                LearnedAdapters(None, None, each.subject.references) for each in self._trainings
            ]
        with self._base_model():
            points = self._resume_points()
            for stage, stage_settings in active_stages(self._method, self._settings):
                if stage.name in points[0].done:
                    continue
                keep_on_device(
                    self._backbone,
                    self._trainings[0].device,
                    [DENOISER, *texts_of(self._backbone)],
                )
                runs = [
                    StageRun(training, stage, stage_settings, point, path)
                    for training, point, path in zip(
                        self._trainings, points, self._resume_paths, strict=True
                    )
                    if training not in self.failed
                ]
                if not runs:
                    break
                run_stage(runs, self.failed)
                points = [ResumePoint(done=(*point.done, stage.name)) for point in points]
            return [self.failed.get(each) or each.learned() for each in self._trainings]

    @contextmanager
    def _base_model(self) -> Iterator[None]:
        """Prepare it, with all embeddings injected; then restore it."""
        try:
            for training in self._trainings:
                training.begin()
            embeddings = [training.embedding for training in self._trainings]
            encodings = [each.encoding for each in self._trainings if each.encoding is not None]
            adapters = [*embeddings, *timestep_routing(embeddings), *encodings]
            with injected(self._backbone, adapters):
                for training in self._trainings:
                    training.prepare()
                yield
        except BaseException as error:
            clear_frames(error.__traceback__)  # they hold what was computed, and its memory
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
            raise
        finally:
            with ExitStack() as undo:
                for training in self._trainings:
                    undo.callback(training.restore)

    def _resume_points(self) -> list[ResumePoint]:
        """Load what was learned before; returns where each training resumes."""
        points: list[ResumePoint] = []
        for training, path in zip(self._trainings, self._resume_paths, strict=True):
            points.append(read_resume_point(path) if path.exists() else ResumePoint())
            training.load_learned(points[-1])
        if len({(point.done, point.stage, point.step) for point in points}) > 1:
            raise ValueError("trainings that run together have to be at the same step")
        return points


def run_one(training: Training, resume_path: Path) -> LearnedAdapters:
    """Run one training; see `Trainer`. Raises what that does, and the error in its place."""
    (outcome,) = Trainer([training], [resume_path]).run()
    if isinstance(outcome, ConceptryError):
        raise outcome
    return outcome

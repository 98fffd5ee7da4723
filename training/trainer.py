"""Trainings that run as one batch, stage after stage. The loop of a stage is in `loop.py`.

What a step draws at random follows from (seed, stage, step), so a training that was interrupted
and resumed ends bit-equal to one that was not, on a CPU; on a GPU up to the order of its sums.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..adapters.adapter import injected
from ..adapters.timestep_tokens import timestep_routing
from ..methods.method import active_stages
from ..registry.errors import TrainingFailed
from .callbacks import Learned
from .checkpoints import ResumePoint, read_resume_point
from .loop import StageRun, run_stage
from .training import Training


class Trainer:
    """Runs trainings of one method and one set of settings, on one base model, as one batch.

    The base model is the trainer's while it runs, and is given back as it was, whatever happens.
    Each training goes on from its resume path, if it is there, and writes it now and then; all have
    to be at the same step. It learns what it would learn alone, up to the order of sums. More than
    one have to leave the base model as it is.
    """

    def __init__(self, trainings: Sequence[Training], resume_paths: Sequence[Path]) -> None:
        self._trainings = trainings
        self._resume_paths = resume_paths
        first = trainings[0]
        self._backbone, self._method, self._settings = first.backbone, first.method, first.settings
        if len(trainings) > 1 and not self._method.keeps_base:
            raise ValueError(f"{self._method.name} changes the base model: expected one training")

    def run(self) -> list[Learned | TrainingFailed]:
        """All stages, or what is left of them; returns what came out of each training.

        One that fails because a loss or gradient is not finite leaves the others alone. Raises
        `StorageError` if a state cannot be saved, and `TrainingInterrupted` once the first one's
        `should_stop` says so and all are saved.
        """
        failed: dict[Training, TrainingFailed] = {}
        with self._base_model():
            points = self._resume_points()
            for stage, numbers in active_stages(self._method, self._settings):
                if stage.name in points[0].done:
                    continue
                runs = [
                    StageRun(training, stage, numbers, point, path)
                    for training, point, path in zip(
                        self._trainings, points, self._resume_paths, strict=True
                    )
                    if training not in failed
                ]
                if not runs:
                    break
                failed |= {run.training: error for run, error in run_stage(runs).items()}
                points = [ResumePoint(done=(*point.done, stage.name)) for point in points]
            return [failed.get(each) or each.learned() for each in self._trainings]

    @contextmanager
    def _base_model(self) -> Iterator[None]:
        """Lay it out for what is to be learned, with all embeddings injected; then give it back."""
        try:
            for training in self._trainings:
                training.begin()
            embeddings = [training.embedding for training in self._trainings]
            with injected(self._backbone, [*embeddings, *timestep_routing(embeddings)]):
                for training in self._trainings:
                    training.prepare()
                yield
        finally:
            for training in self._trainings:
                training.restore()

    def _resume_points(self) -> list[ResumePoint]:
        """Take over what was learned before; where each training goes on."""
        points: list[ResumePoint] = []
        for training, path in zip(self._trainings, self._resume_paths, strict=True):
            points.append(read_resume_point(path) if path.exists() else ResumePoint())
            training.take_over(points[-1])
        if len({(point.done, point.stage, point.step) for point in points}) > 1:
            raise ValueError("trainings that run together have to be at the same step")
        return points


def run_one(training: Training, resume_path: Path) -> Learned:
    """Run one training; see `Trainer`. Raises what that does, and `TrainingFailed`."""
    (outcome,) = Trainer([training], [resume_path]).run()
    if isinstance(outcome, TrainingFailed):
        raise outcome
    return outcome

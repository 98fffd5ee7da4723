"""Trainings that run as one batch, stage after stage. The loop of a stage is in `loop.py`.

What a step draws at random follows from (seed, stage, step), so a training that was interrupted
and resumed ends bit-equal to one that was not, on a CPU; on a GPU up to the order of its sums.
"""

from collections.abc import Sequence
from pathlib import Path

from ..adapters.adapter import injected
from ..adapters.timestep_tokens import timestep_routing
from ..methods.method import active_stages
from ..registry.errors import TrainingFailed
from .callbacks import Learned
from .checkpoints import ResumePoint, read_resume_point
from .loop import StageRun, run_stage
from .training import Training


def run_one(training: Training, resume_path: Path) -> Learned:
    """Run one training; see `run_batch`. Raises what that does, and `TrainingFailed`."""
    (outcome,) = run_batch([training], [resume_path])
    if isinstance(outcome, TrainingFailed):
        raise outcome
    return outcome


def run_batch(
    trainings: Sequence[Training], resume_paths: Sequence[Path]
) -> list[Learned | TrainingFailed]:
    """Run trainings of one method and one set of settings, on one base model, as one batch.

    Each goes on from its resume path, if it is there, and writes it now and then; all have to be at
    the same step. A training learns what it would learn alone, up to the order of sums. More than
    one have to leave the base model as it is.

    One that fails because a loss or gradient is not finite leaves the others alone. Raises
    `StorageError` if a state cannot be saved, and `TrainingInterrupted` once the first one's
    `should_stop` says so and all are saved.
    """
    first = trainings[0]
    if len(trainings) > 1 and not first.method.keeps_base:
        raise ValueError(f"{first.method.name} changes the base model: expected one training")
    embeddings = [training.embedding for training in trainings]
    failed: dict[Training, TrainingFailed] = {}
    try:
        with injected(first.backbone, [*embeddings, *timestep_routing(embeddings)]):
            points: list[ResumePoint] = []
            for training, path in zip(trainings, resume_paths, strict=True):
                training.prepare()
                points.append(read_resume_point(path) if path.exists() else ResumePoint())
                training.take_over(points[-1])
            if len({(point.done, point.stage, point.step) for point in points}) > 1:
                raise ValueError("trainings that run together have to be at the same step")
            for stage, numbers in active_stages(first.method, first.settings):
                if stage.name in points[0].done:
                    continue
                runs = [
                    StageRun(training, stage, numbers, point, path)
                    for training, point, path in zip(trainings, points, resume_paths, strict=True)
                    if training not in failed
                ]
                if not runs:
                    break
                failed |= {run.training: error for run, error in run_stage(runs).items()}
                points = [ResumePoint(done=(*point.done, stage.name)) for point in points]
            return [failed.get(training) or training.learned() for training in trainings]
    finally:
        for training in trainings:
            training.restore()

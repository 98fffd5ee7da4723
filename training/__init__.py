"""From photos to an adapter: training concepts, resuming, estimating.

    from conceptry.training import train

Everything that `concept train` does is one of these calls. Names are imported on first use, as
most of them need torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .callbacks import Hooks, StepReport
    from .class_pictures import class_pictures
    from .estimating import Estimate, estimate, estimate_many
    from .queue import Outcome, train_queue
    from .queued import TrainOptions, train_queued, work_off
    from .run_recorder import StageSummary
    from .runs import Trained, resume, resume_many, train, train_many

_HOMES = {
    "Estimate": ".estimating",
    "Hooks": ".callbacks",
    "Outcome": ".queue",
    "StageSummary": ".run_recorder",
    "StepReport": ".callbacks",
    "TrainOptions": ".queued",
    "Trained": ".runs",
    "class_pictures": ".class_pictures",
    "estimate": ".estimating",
    "estimate_many": ".estimating",
    "resume": ".runs",
    "resume_many": ".runs",
    "train": ".runs",
    "train_many": ".runs",
    "train_queue": ".queue",
    "train_queued": ".queued",
    "work_off": ".queued",
}

__all__ = [
    "Estimate",
    "Hooks",
    "Outcome",
    "StageSummary",
    "StepReport",
    "TrainOptions",
    "Trained",
    "class_pictures",
    "estimate",
    "estimate_many",
    "resume",
    "resume_many",
    "train",
    "train_many",
    "train_queue",
    "train_queued",
    "work_off",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)

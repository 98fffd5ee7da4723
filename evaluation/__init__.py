"""Scores of pictures, the prompt suites they use, the choice of the best version, and galleries.

    from conceptry.evaluation import EvalRequest, score, write_report

    with Registry.open("concepts.db") as registry:
        found = list(score(registry, EvalRequest(names=["rex"], versions="all")))
        write_report(registry, found, Path("report"))

Everything that `concept eval`, `concept gallery` and `concept suites` do is one of these calls.
Names are imported on first use, as some of them need torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .choosing import CheckpointChooser, CheckpointScorer
    from .gallery import GalleryReport, GalleryRequest, write_gallery
    from .record import Evaluation
    from .report import write_report
    from .running import EvalRequest, mark_best, score
    from .suites import Suite, SuitePrompt, find_suite, shipped_suites

_HOMES = {
    "CheckpointChooser": ".choosing",
    "Evaluation": ".record",
    "Suite": ".suites",
    "SuitePrompt": ".suites",
    "CheckpointScorer": ".choosing",
    "EvalRequest": ".running",
    "GalleryReport": ".gallery",
    "GalleryRequest": ".gallery",
    "find_suite": ".suites",
    "mark_best": ".running",
    "score": ".running",
    "shipped_suites": ".suites",
    "write_gallery": ".gallery",
    "write_report": ".report",
}

__all__ = [
    "CheckpointChooser",
    "CheckpointScorer",
    "EvalRequest",
    "Evaluation",
    "GalleryReport",
    "GalleryRequest",
    "Suite",
    "SuitePrompt",
    "find_suite",
    "mark_best",
    "score",
    "shipped_suites",
    "write_gallery",
    "write_report",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)

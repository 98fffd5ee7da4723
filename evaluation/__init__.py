"""Scores of what a concept draws, the suites they are from, and the choice of the best version.

    from conceptry.evaluation import Wish, score, write_report

    with Registry.open("concepts.db") as registry:
        found = list(score(registry, Wish(names=["rex"], versions="all")))
        write_report(registry, found, Path("report"))

Everything that `concept eval` and `concept suites` do is one of these calls; each is loaded when
it is first asked for, as some of them need torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .choosing import Watch
    from .record import Evaluation
    from .report import write_report
    from .running import Wish, mark_best, score
    from .suites import Suite, SuitePrompt, find_suite, shipped_suites

_HOMES = {
    "Evaluation": ".record",
    "Suite": ".suites",
    "SuitePrompt": ".suites",
    "Watch": ".choosing",
    "Wish": ".running",
    "find_suite": ".suites",
    "mark_best": ".running",
    "score": ".running",
    "shipped_suites": ".suites",
    "write_report": ".report",
}

__all__ = [
    "Evaluation",
    "Suite",
    "SuitePrompt",
    "Watch",
    "Wish",
    "find_suite",
    "mark_best",
    "score",
    "shipped_suites",
    "write_report",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)

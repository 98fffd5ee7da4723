"""When a training whose checkpoints are scored is stopped early."""

from collections.abc import Sequence

PATIENCE = 2
"""How many checkpoints may be no better than the best before them, until that."""


def has_plateaued(scores: Sequence[float]) -> bool:
    """Whether the last `PATIENCE` scores are no better than the best before them."""
    before, last = scores[:-PATIENCE], scores[-PATIENCE:]
    return bool(before) and max(last) <= max(before)

"""Parameters of tests of which `make test` takes some, and `make test-all` the others too."""

from collections.abc import Iterable
from typing import Any

import pytest


def quick_for(number: int, values: Iterable[Any]) -> list[Any]:
    """The values, of which all but the first `number` are marked as long."""
    return [
        value if i < number else pytest.param(value, marks=pytest.mark.long)
        for i, value in enumerate(values)
    ]

"""A pytest plugin: of the kernels' grid, every nth id alone, as CONCEPTRY_EVERY says."""

import os

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep what is not of the grid, and of the grid a sample that is spread over it."""
    every = int(os.environ["CONCEPTRY_EVERY"])
    grid = [item for item in items if item.get_closest_marker("grid")]
    left_out = set(grid) - set(grid[::every])
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]

"""Fixtures that are base models."""

from pathlib import Path

import pytest
from tiny_base import write_tiny_base


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with random weights; not to be changed."""
    return write_tiny_base(tmp_path_factory.mktemp("bases") / "tiny")

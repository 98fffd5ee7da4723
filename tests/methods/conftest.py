"""A base model that is quick to train on, and photos for it."""

import copy
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_base import make_tiny_base


@pytest.fixture(scope="session")
def _one_pipeline() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = make_tiny_base()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def pipeline(_one_pipeline: Any) -> Any:
    """A tiny Stable Diffusion of random weights, each test's own."""
    return copy.deepcopy(_one_pipeline)


@pytest.fixture
def photos() -> list[Image.Image]:
    """Three photos of 40x32."""
    return [
        Image.radial_gradient("L").resize((40, 32)).rotate(40 * i).convert("RGB") for i in (0, 1, 2)
    ]

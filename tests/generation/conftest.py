"""A base model that is quick to train on, photos for it, the same as a folder, and exact ones."""

from typing import Any

import pytest
import torch
from conceptry.models.backbone import Backbone
from conceptry.models.loading import backbone_of
from copied_bases import _loaded_once
from tiny_base import make_tiny_base, make_tiny_sdxl
from tiny_fixtures import _one_base, backbone, base, pictures, pipeline, tiny_base

__all__ = ["_loaded_once", "_one_base", "backbone", "base", "pictures", "pipeline", "tiny_base"]


@pytest.fixture(params=[make_tiny_base, make_tiny_sdxl], ids=["SD", "SDXL"])
def exact(request: pytest.FixtureRequest) -> Backbone:
    """A base model in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline: Any = request.param()
    return backbone_of(pipeline.to(torch.float64))

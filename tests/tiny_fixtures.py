"""A base model that is quick to train on, and photos for it."""

from pathlib import Path
from typing import Any

import pytest
from conceptry.models.backbone import Backbone
from conceptry.models.loading import LoadedBase, load_base
from copied_bases import own_copy
from PIL import Image
from tiny_base import write_tiny_base


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with random weights; not to be changed."""
    return write_tiny_base(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(scope="session")
def _one_base(tmp_path_factory: pytest.TempPathFactory) -> LoadedBase:
    return load_base(str(write_tiny_base(tmp_path_factory.mktemp("bases") / "tiny")))


@pytest.fixture
def base(_one_base: LoadedBase) -> LoadedBase:
    """A tiny Stable Diffusion of random weights, each test's own."""
    return own_copy(_one_base)


@pytest.fixture
def backbone(base: LoadedBase) -> Backbone:
    """It, without what is known of its files."""
    return base.backbone


@pytest.fixture
def pipeline(backbone: Backbone) -> Any:
    """Its pipeline of diffusers."""
    return backbone.pipeline


@pytest.fixture
def pictures() -> list[Image.Image]:
    """Three photos of 40x32."""
    return [
        Image.radial_gradient("L").resize((40, 32)).rotate(40 * i).convert("RGB") for i in (0, 1, 2)
    ]


def tree(backbone: Backbone) -> list[tuple[str, int]]:
    """Every module and parameter of a base model, by name and identity."""
    parts = (backbone.denoiser, backbone.text_encoders[0].network)
    modules = [(name, id(module)) for part in parts for name, module in part.named_modules()]
    return modules + [(name, id(p)) for part in parts for name, p in part.named_parameters()]

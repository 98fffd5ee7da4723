"""A quick base model, and the encoders that ship."""

from pathlib import Path

import pytest
from conceptry.evaluation.encoders import Encoders, load_encoders
from conceptry.models.loading import LoadedBase, load_base
from conceptry.registry import Registry
from copied_bases import _loaded_once
from tiny_base import write_tiny_base
from to_score import MINIATURE, write_bundle

__all__ = ["_loaded_once"]


@pytest.fixture(scope="session")
def encoders() -> Encoders:
    """CLIP, identity encoder and judge of the drawn world."""
    return load_encoders(MINIATURE)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of random weights."""
    return write_tiny_base(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(scope="session")
def base(tiny_folder: Path) -> LoadedBase:
    """It, loaded; nothing that is scored changes it."""
    return load_base(str(tiny_folder))


@pytest.fixture(scope="session")
def bundle(base: LoadedBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """rex, a dog, in two versions, and mia, a cat, in one."""
    return write_bundle(tmp_path_factory.mktemp("taught"), base)


@pytest.fixture
def taught(registry: Registry, bundle: Path) -> Registry:
    """A registry with them."""
    registry.import_bundle(bundle)
    return registry

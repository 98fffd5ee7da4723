"""Base models that are quick to train on and to draw with, and photos for them."""

from pathlib import Path

import pytest
import torch
from conceptry.models.loading import LoadedBase, load_base
from conceptry.registry import Registry
from copied_bases import _loaded_once, own_copy
from exported import Taught
from tiny_base import make_tiny_base, make_tiny_sdxl
from tiny_fixtures import _one_base, backbone, base, pictures, pipeline

__all__ = ["_loaded_once", "_one_base", "backbone", "base", "pictures", "pipeline"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny ones whose pictures depend strongly on the prompt."""
    folder = tmp_path_factory.mktemp("bases")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, made in (("SD", make_tiny_base()), ("SDXL", make_tiny_sdxl())):
            for key, parameter in made.unet.named_parameters():
                if ".attn2.to_" in key and parameter.ndim > 1:
                    parameter.data *= 5
            made.save_pretrained(folder / name)
    return {name: folder / name for name in ("SD", "SDXL")}


@pytest.fixture(params=["SD", "SDXL"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def loaded(bases: dict[str, Path]) -> dict[str, LoadedBase]:
    return {kind: load_base(str(folder)) for kind, folder in bases.items()}


@pytest.fixture
def taught(rex: Registry, loaded: dict[str, LoadedBase], kind: str, tmp_path: Path) -> Taught:
    return Taught(rex, own_copy(loaded[kind]), tmp_path)

"""Copies of base models, which are quicker to make than to load a model again."""

import io
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conceptry.models import loading
from conceptry.models.bases import Base
from conceptry.models.loading import LoadedBase, backbone_of
from diffusers import DiffusionPipeline

_KEPT = 8


def own_copy(base: LoadedBase) -> LoadedBase:
    """The same base model with weights of its own."""
    return replace(base, backbone=backbone_of(_once(base.backbone.pipeline)()))


@pytest.fixture(autouse=True)
def _loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders that were loaded before, and are as they were, are copied.

    For tests of what happens then; how they are loaded is tested in `models`.
    """
    monkeypatch.setattr(loading, "_from_folder", _from_folder)


_load = loading._from_folder
_loaded: dict[Any, tuple[Callable[[], Any], str]] = {}


def _from_folder(base: Base, folder: Path, dtype: torch.dtype) -> tuple[DiffusionPipeline, str]:
    files = [(path, path.stat()) for path in sorted(folder.rglob("*"))]
    key = (dtype, *((path, it.st_ino, it.st_size, it.st_mtime_ns) for path, it in files))
    if key not in _loaded:
        pipeline, sha256 = _load(base, folder, dtype)
        _loaded[key] = _pickled(pipeline), sha256
        for old in list(_loaded)[:-_KEPT]:
            del _loaded[old]
    copied, sha256 = _loaded[key]
    return copied(), sha256


# --- how they are copied --------------------------------------------------------------------------


@cache
def _once(pipeline: Any) -> Callable[[], Any]:
    return _pickled(pipeline)


def _pickled(pipeline: Any) -> Callable[[], Any]:
    """What makes copies of a pipeline, with the values that its tensors have by then."""
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    pickler.dump(pipeline)
    pickled = buffer.getvalue()
    return lambda: _Unpickler(pickled, pickler.tensors).load()


class _Pickler(pickle.Pickler):
    """Leaves out tensors: their numbers stand for them."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[torch.Tensor] = []
        self._numbers: dict[int, int] = {}

    def persistent_id(self, obj: object) -> int | None:
        if not isinstance(obj, torch.Tensor):
            return None
        if id(obj) not in self._numbers:
            self._numbers[id(obj)] = len(self.tensors)
            self.tensors.append(obj)
        return self._numbers[id(obj)]


class _Unpickler(pickle.Unpickler):
    """Clones tensors, each once."""

    def __init__(self, pickled: bytes, tensors: list[torch.Tensor]) -> None:
        super().__init__(io.BytesIO(pickled))
        self._clone = cache(lambda number: _cloned(tensors[number]))

    def persistent_load(self, pid: int) -> torch.Tensor:
        return self._clone(pid)


def _cloned(tensor: torch.Tensor) -> torch.Tensor:
    own = tensor.detach().clone()
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(own, requires_grad=tensor.requires_grad)
    return own

"""Where an interrupted training goes on: one safetensors file, replaced whole or not at all."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..adapters.tensor_file import write_tensors
from ..registry.documents import parse_json
from ..registry.errors import InvalidWeights, StorageError

FORMAT = "conceptry-resume 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePoint:
    """The state of a training: stages that are done, and the step that `stage` has come to.

    `learned` is everything learned so far; `optimizer` and `average` are those of `stage`.
    """

    done: tuple[str, ...] = ()
    stage: str = ""
    step: int = 0
    learned: Mapping[str, Tensor] = field(default_factory=dict)
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    average: Mapping[str, Tensor] = field(default_factory=dict)


_GROUPS = ("learned", "optimizer", "average")


def write_resume_point(path: Path, point: ResumePoint) -> None:
    """Write the file; a kill at any moment leaves the former one or this one.

    Raises `StorageError` if the disk refuses.
    """
    tensors = {
        f"{group}.{name}": tensor.detach().cpu().contiguous()
        for group in _GROUPS
        for name, tensor in getattr(point, group).items()
    }
    place = {"done": point.done, "stage": point.stage, "step": point.step}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, tensors, {"format": FORMAT, "place": json.dumps(place)})
    except OSError as error:
        raise StorageError(
            f"cannot save to {path}: {error}", hint="make room; the last saved state is still there"
        ) from error


def read_place(path: Path) -> tuple[tuple[str, ...], str, int]:
    """Which stages are done, and the stage and step that follow. Raises `InvalidWeights`."""
    with _opened(path) as (_, place):
        return tuple(place["done"]), place["stage"], place["step"]


def read_resume_point(path: Path) -> ResumePoint:
    """Read the file. Raises `InvalidWeights` if it is none."""
    groups: dict[str, dict[str, Tensor]] = {group: {} for group in _GROUPS}
    with _opened(path) as (opened, place):
        for name in opened.keys():  # noqa: SIM118 (no mapping)
            group, _, rest = name.partition(".")
            groups[group][rest] = opened.get_tensor(name)
        return ResumePoint(
            done=tuple(place["done"]), stage=place["stage"], step=place["step"], **groups
        )


def take_values(values: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
    """Copy saved tensors over those of the same names; raises `InvalidWeights` if they differ."""
    for name, value in values.items():
        if name not in into or into[name].shape != value.shape:
            raise InvalidWeights(
                f"the saved state of the training does not fit: {name}",
                hint="concept train NAME begins anew",
            )
        into[name].data.copy_(value)


def _is_place(place: object) -> TypeGuard[dict[str, Any]]:
    return (
        isinstance(place, dict)
        and isinstance(done := place.get("done"), list)
        and all(isinstance(name, str) for name in done)
        and isinstance(place.get("stage"), str)
        and type(place.get("step")) is int
        and place["step"] >= 0
    )


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The open file, and its place in the training."""
    if os.path.islink(path):
        raise InvalidWeights(f"{path} is a link, which no training left there")
    try:
        with safe_open(path, "pt") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise InvalidWeights(f"{path} is no resume point of this program")
            place = parse_json(metadata["place"])
            if not _is_place(place):
                raise InvalidWeights(f"{path} does not say how far the training had come")
            yield opened, place
    except InvalidWeights:
        raise
    except (SafetensorError, KeyError, ValueError) as error:
        raise InvalidWeights(f"{path} is no sound resume point: {error}") from error

"""Resume points: the state of a training as one safetensors file, replaced atomically."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..adapters.tensor_file import write_tensors
from ..registry.documents import parse_json
from ..registry.errors import InvalidWeights, StorageError

FORMAT = "conceptry-resume 1"
_ANEW = "concept train NAME begins anew"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePoint:
    """The state of a training: the completed stages, and how many steps of `stage` are done.

    `learned` has all trained tensors, `optimizer` and `average` (EMA) those of `stage`.
    """

    done: tuple[str, ...] = ()
    stage: str = ""
    step: int = 0
    learned: Mapping[str, Tensor] = field(default_factory=dict)
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    average: Mapping[str, Tensor] = field(default_factory=dict)


TrainingPosition = tuple[tuple[str, ...], str, int]
"""(completed stages, current stage, its completed steps)."""

_GROUPS = ("learned", "optimizer", "average")


def write_resume_point(path: Path, point: ResumePoint) -> None:
    """Write the file; a kill at any moment leaves the former one or this one whole.

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


def read_position(path: Path) -> TrainingPosition:
    """How far a training had come. Raises `InvalidWeights` for another kind of file."""
    with _opened(path) as (_, place):
        return place


def read_resume_point(path: Path) -> ResumePoint:
    """Read a resume point. Raises `InvalidWeights` for another kind of file."""
    groups: dict[str, dict[str, Tensor]] = {group: {} for group in _GROUPS}
    with _opened(path) as (opened, (done, stage, step)):
        for name in opened.keys():  # noqa: SIM118 (no mapping)
            group, _, rest = name.partition(".")
            groups[group][rest] = opened.get_tensor(name)
        return ResumePoint(done=done, stage=stage, step=step, **groups)


def copy_values(values: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
    """Copy saved tensors into those of the same names.

    Raises `InvalidWeights` for a name that only one of them has, or another shape.
    """
    for name in sorted(values.keys() | into.keys()):
        value = values.get(name)
        if value is None or name not in into or into[name].shape != value.shape:
            raise InvalidWeights(
                f"the saved state of the training does not fit: {name}",
                hint="concept train NAME starts over",
            )
        into[name].data.copy_(value)


def _parse_position(text: str) -> TrainingPosition | None:
    match parse_json(text):
        case {"done": list(done), "stage": str(stage), "step": int(step)}:
            names = tuple(name for name in done if isinstance(name, str))
            is_sound = len(names) == len(done) and not isinstance(step, bool) and step >= 0
            return (names, stage, step) if is_sound else None
        case _:
            return None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[safe_open, TrainingPosition]]:
    """The open file, and the position that it records."""
    if os.path.islink(path):
        raise InvalidWeights(f"{path} is a link, which no training left there")
    try:
        with safe_open(path, "pt") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise InvalidWeights(f"{path} is not a resume point of this program")
            place = _parse_position(metadata["place"])
            if place is None:
                raise InvalidWeights(f"{path} does not say how far the training had come")
            yield opened, place
    except InvalidWeights as error:
        raise InvalidWeights(error.message, hint=error.hint or _ANEW) from error
    except (SafetensorError, KeyError, ValueError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise InvalidWeights(f"{path} is not a sound resume point: {why}", hint=_ANEW) from error

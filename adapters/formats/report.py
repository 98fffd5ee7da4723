"""What was exported, and where it may be written. Loads no deep-learning library."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ...registry import Registry
from ...registry.errors import AlreadyExists, InvalidInput, quoted
from ...registry.names import check_line
from .options import ExportOptions

ENDING = ".safetensors"
_BESIDE = "-embedding"


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """A file that was written; `holds` is weights, embedding or pipeline.

    `autov2` and `autov3` are the hashes by which other tools know it; a folder has none.
    """

    path: str
    holds: str
    bytes: int
    sha256: str
    autov2: str | None
    autov3: str | None


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was exported; `trigger` is what prompts say.

    `kept` is the share of the change's squared norm that a format with loss keeps, else None.
    """

    concept: str
    version: int
    format: str
    trigger: str
    files: list[ExportedFile]
    kept: float | None

    def to_document(self) -> dict[str, object]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class MergedConcept:
    """A concept of a merged export, and what prompts say for it."""

    concept: str
    version: int
    trigger: str


@dataclass(frozen=True, slots=True)
class MergedReport:
    """What was exported of several concepts as one model; see `ExportReport`."""

    concepts: list[MergedConcept]
    format: str
    files: list[ExportedFile]
    kept: float | None

    def to_document(self) -> dict[str, object]:
        """As JSON."""
        return asdict(self)


def embedding_beside(path: Path) -> Path:
    """The file of the embedding that goes with a file of weights."""
    return path.with_name(f"{path.stem}{_BESIDE}{ENDING}")


def check_new_files(
    registry: Registry, paths: Sequence[Path], options: ExportOptions, command: str
) -> None:
    """Raise `InvalidInput` and `AlreadyExists` unless files may be written, the first as named."""
    path = paths[0]
    check_line(path.name, "file name")
    if path.suffix != ENDING:
        before, *rest = command.partition(" --")
        after = "".join(rest)
        raise InvalidInput(
            f"{path} does not end in {ENDING}, by which other tools know such files",
            hint=f"{before.removesuffix(quoted(path))}{quoted(path.with_suffix(ENDING))}{after}",
        )
    for each in paths:
        if os.path.isdir(each):
            raise AlreadyExists(f"{each} is a folder", hint="name another file")
        registry.location.check_new(each, overwrite=options.overwrite, command=command)

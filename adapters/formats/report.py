"""What was exported, and where it may be written. Loads no deep-learning library."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ...models.bases import find_base
from ...registry import Registry
from ...registry.errors import AlreadyExists, InvalidInput, quoted
from ...registry.names import check_line
from .options import ExportOptions, Format

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


def check_target(
    registry: Registry, labels: Sequence[str], path: Path, options: ExportOptions
) -> None:
    """Raise `InvalidInput` and `AlreadyExists` unless versions, as `rex@2`, may be written there.

    Several are written as one model. Raises `NotFound` for a base model that is not there.
    """
    if options.base is not None:
        find_base(options.base)
    command = f"concept export {' '.join(labels)} {quoted(path)} --format {options.format}"
    if options.format.name != "diffusers":
        names = [each.partition("@")[0] for each in labels]
        several = len(labels) > 1
        paths = merged_paths(path, names) if several else paths_of(path, options.format)
        check_new_files(registry, paths, options, command)
        return
    check_line(path.name, "file name")
    is_ours = os.path.isfile(path / "model_index.json") and not os.path.islink(path)
    if options.overwrite and os.path.lexists(path) and not is_ours:
        raise AlreadyExists(
            f"{path} is no diffusers folder: it is not replaced", hint="name another folder"
        )
    registry.location.check_new(path, overwrite=options.overwrite, command=command)


def paths_of(path: Path, form: Format) -> list[Path]:
    """Of the weights, and of the embedding beside them."""
    return [path] if form.name.startswith("embedding") else [path, embedding_beside(path)]


def merged_paths(path: Path, names: Sequence[str]) -> list[Path]:
    """Of the weights, and of each concept's embedding beside them."""
    return [path, *(path.with_name(f"{path.stem}-{name}{ENDING}") for name in names)]

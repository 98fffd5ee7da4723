"""Picture files in folders of the user's, and what each says of itself. Loads no weights.

What was read is remembered, so that only new files and changed ones are read again.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ..generation.provenance import read_metadata
from ..registry.errors import ConceptryError, StorageError
from ..registry.files import open_file, write_file
from ..registry.hashes import is_sha256, sha256_of
from ..registry.images import read_file
from ..registry.names import MAX_TEXT

SUFFIXES = (".png", ".webp", ".jpg", ".jpeg")
_MEMORY = "pictures.json"
_MAX_MEMORY_BYTES = 256 << 20

_Text = Annotated[str, Field(max_length=MAX_TEXT)]
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Version(BaseModel):
    sha256: _Sha256


class _Settings(BaseModel):
    regions: dict[str, object] = Field(default_factory=dict)


class _Said(BaseModel):
    model_config = ConfigDict(strict=True)

    prompt: _Text
    seed: int
    base: _Text
    versions: list[_Version] = Field(max_length=64)
    settings: _Settings = Field(default_factory=_Settings)


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A picture file: its path and hash, and, by its own account, what it was drawn from.

    `weights` are the hashes of the versions; `prompt` is empty where it says nothing.
    """

    path: Path
    sha256: str
    prompt: str = ""
    seed: int = 0
    base: str = ""
    weights: tuple[str, ...] = ()
    regions: Mapping[str, object] = field(default_factory=dict)


_Remembered = dict[str, tuple[int, int, str, _Said | None]]
"""By the hash of a path: size and time of change, hash, and what the file said."""
_FORM: TypeAdapter[_Remembered] = TypeAdapter(_Remembered)


def find_pictures(folders: Sequence[Path], root: Path, memory: Path) -> dict[str, PictureFile]:
    """The picture files in some folders and those below, by hash.

    `memory` is a folder below `root` where it is remembered. Links to folders are not followed.
    """
    before = _remembered(root, memory / _MEMORY)
    now: _Remembered = {}
    found: dict[str, PictureFile] = {}
    for path in _paths(folders, root):
        try:
            status = path.stat()
        except OSError:
            continue
        key = sha256_of(os.fsencode(path.absolute()))[:32]
        known = before.get(key)
        if known is None or known[:2] != (status.st_size, status.st_mtime_ns):
            known = (status.st_size, status.st_mtime_ns, *_read(path))
        now[key] = known
        _, _, sha256, said = known
        if said:
            weights = tuple(each.sha256 for each in said.versions)
            regions = said.settings.regions
            own = PictureFile(path, sha256, said.prompt, said.seed, said.base, weights, regions)
        else:
            own = PictureFile(path, sha256)
        if sha256:
            found.setdefault(sha256, own)
    if now != before:
        _remember(root, memory / _MEMORY, now)
    return found


def _paths(folders: Sequence[Path], root: Path) -> Iterator[Path]:
    for folder in folders:
        for place, inner, names in os.walk(folder):
            inner[:] = sorted(each for each in inner if not _is_same(Path(place, each), root))
            yield from (
                Path(place, name) for name in sorted(names) if name.lower().endswith(SUFFIXES)
            )


def _is_same(folder: Path, other: Path) -> bool:
    try:
        return folder.samefile(other)
    except OSError:
        return False


def _read(path: Path) -> tuple[str, _Said | None]:
    """The hash of a file, empty if it cannot be read, and what it says of itself."""
    try:
        sha256 = sha256_of(read_file(path))
        metadata = read_metadata(path)
    except ConceptryError:
        return "", None
    try:
        return sha256, _Said.model_validate_json(json.dumps(metadata)) if metadata else None
    except (ValidationError, ValueError):
        return sha256, None


def _remembered(root: Path, path: Path) -> _Remembered:
    try:
        with open_file(root, path) as file:
            found = _FORM.validate_json(file.read(_MAX_MEMORY_BYTES))
    except (OSError, ValueError):
        return {}
    return {key: known for key, known in found.items() if is_sha256(known[2]) or not known[2]}


def _remember(root: Path, path: Path, now: _Remembered) -> None:
    try:
        write_file(path, _FORM.dump_json(now), root=root)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error

"""Hashes that say which weights a base model has. Loads no weights, and no library that does."""

import hashlib
import json
from pathlib import Path

from ..registry.errors import InvalidWeights
from .bases import PIPELINE_FILE, Base

MANIFEST = "manifest.json"


def hash_of_base(base: Base) -> str | None:
    """Of a single file, or of a folder as `hash_of_folder`; None for what only a hub knows.

    Raises `InvalidWeights` if a shipped file is damaged.
    """
    if base.kind == "hub" or not base.is_at_hand():
        return None
    path = Path(base.source)
    return hash_of(path) if base.kind == "file" else hash_of_folder(path)


def hash_of_folder(folder: Path) -> str:
    """One hash for the weights of a diffusers folder, compared with its manifest if it has one."""
    index = json.loads((folder / PIPELINE_FILE).read_text())
    parts = [name for name, value in sorted(index.items()) if isinstance(value, list) and value[0]]
    files = [path for name in parts for path in sorted((folder / name).glob("*.safetensors"))]
    hashes = {path.relative_to(folder).as_posix(): hash_of(path) for path in files}
    _compare_with_manifest(folder, hashes)
    return hashlib.sha256("\n".join(hashes.values()).encode()).hexdigest()


def _compare_with_manifest(folder: Path, hashes: dict[str, str]) -> None:
    path = folder / MANIFEST
    if not path.exists():
        return
    promised = json.loads(path.read_text())["files"]
    for name, sha256 in hashes.items():
        _compare(folder / name, sha256, promised.get(name, {}).get("sha256"))


def check_hash(path: Path, promised: str) -> None:
    """Raise `InvalidWeights` if a shipped file is not what its record says."""
    _compare(path, hash_of(path) if path.is_file() else None, promised)


def _compare(path: Path, found: str | None, promised: str | None) -> None:
    if found != promised:
        raise InvalidWeights(
            f"{path} is damaged: its hash is not that of the manifest",
            hint="install conceptry again",
        )


def hash_of(path: Path) -> str:
    """SHA-256 of a file; the hub's cache names large files by theirs."""
    if path.is_symlink() and len(name := path.resolve().name) == 64:
        return name
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Hashes that identify base models' weights. Loads no weights, and no library that does."""

import json
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..registry.errors import InvalidWeights
from ..registry.hashes import is_sha256, sha256_of
from .bases import Base
from .folder import parts_of

MANIFEST = "manifest.json"
_TEXTS = (".json", ".txt", ".model")


def hash_of_base(base: Base) -> str | None:
    """The hash of a single file, or of a folder (`hash_of_folder`); None if it is not local.

    Raises `InvalidWeights` if a shipped file is damaged or one is missing, and `InvalidInput` if
    the folder is no base model.
    """
    if base.kind == "hub" or not base.is_at_hand():
        return None
    path = Path(base.source)
    return hash_of(path) if base.kind == "file" else hash_of_folder(path)


def hash_of_folder(folder: Path) -> str:
    """One hash for the weights of a diffusers folder, checked against its manifest if it has one.

    Only files that are loaded count.
    """
    files = [path for part in parts_of(folder).values() for path in part.files]
    hashes = {path.relative_to(folder).as_posix(): hash_of(path) for path in files}
    _compare_with_manifest(folder, hashes)
    return sha256_of("\n".join(hashes.values()).encode())


def hash_of_configuration(folder: str | Path | None) -> str:
    """One hash for what a diffusers folder says beside weights; empty without a folder.

    Its scheduler, its tokenizers, and how its parts are configured: pictures depend on them, while
    versions are matched by weights alone.
    """
    if folder is None:
        return ""
    folders = [Path(folder), *(part.folder for part in parts_of(Path(folder)).values())]
    paths = sorted(path for each in folders if each.is_dir() for path in each.iterdir())
    told = [path for path in paths if path.suffix in _TEXTS and ".index." not in path.name]
    return hash_of_all([path for path in told if path.name != MANIFEST])


def _compare_with_manifest(folder: Path, hashes: dict[str, str]) -> None:
    promised: object = None
    with suppress(OSError, ValueError, RecursionError, KeyError, TypeError):  # another's manifest
        promised = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    if not isinstance(promised, dict) or not all(isinstance(e, dict) for e in promised.values()):
        return
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
    """SHA-256 of a file. Raises `InvalidWeights` if it cannot be read.

    The hub's cache names large files by theirs, and is believed where it is ours alone.
    """
    try:
        if os.path.islink(path) and _is_named_by_hash(blob := path.resolve(strict=True)):
            return blob.name
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError(None, "it is no file")
        with path.open("rb") as file:
            return sha256_of(file)
    except (OSError, RuntimeError) as error:  # RuntimeError: a circle of links
        why = getattr(error, "strerror", None) or error
        raise InvalidWeights(
            f"{path} cannot be read: {why}", hint="get the base model's files again"
        ) from error


def hash_of_all(paths: Sequence[Path]) -> str:
    """That of a file, or one for the hashes of several. Raises what `hash_of` does."""
    hashes = [hash_of(path) for path in paths]
    return hashes[0] if len(hashes) == 1 else sha256_of("\n".join(hashes).encode())


def _is_named_by_hash(blob: Path) -> bool:
    """Whether a file is a blob of the hub's own cache, where nobody else may write."""
    if not is_sha256(blob.name):
        return False
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE).resolve()
    is_blob = blob.parent.name == "blobs" and blob.parent.parent.parent == cache
    return is_blob and all(map(_is_ours_alone, (blob, *blob.parents)))


def _is_ours_alone(path: Path) -> bool:
    """Whether only we and root can change a file, or put another in its place in a folder."""
    if not hasattr(os, "getuid"):
        return False  # a system whose modes do not say
    found = path.stat()
    is_closed = not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    is_sticky = stat.S_ISDIR(found.st_mode) and bool(found.st_mode & stat.S_ISVTX)
    return found.st_uid in (0, os.getuid()) and (is_closed or is_sticky)

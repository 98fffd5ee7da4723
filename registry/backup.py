"""Copying a registry: a backup is itself a registry, and a later one copies only what is new."""

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from .blobs import BlobStore, sync_folder
from .errors import AlreadyExists, RegistryCorrupt, StorageError
from .location import DATABASE_NAME, Location
from .records import BackupReport
from .store import Store, Use


def backup(
    store: Store, folder: Path, on_progress: Callable[[int, int], None] | None
) -> BackupReport:
    """Copy the database and every blob it needs into `folder`; see `Registry.backup`.

    The copy's database takes its name last, when all its blobs are safe.
    """
    target = Location(folder.absolute() / DATABASE_NAME)
    _check_target(target, store.location)
    unfinished = target.database.with_name(DATABASE_NAME + ".unfinished")
    with store.lock.shared(), _writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        unfinished.unlink(missing_ok=True)
        store.database.copy_to(unfinished)
        num_blobs = copied = num_bytes = 0
        damaged: list[str] = []
        total = _count(store)
        for use in _needed(store):
            num_blobs += 1
            num_bytes += use.bytes
            try:
                copied += _copy_blob(store.blobs, BlobStore(target.blobs), use)
            except RegistryCorrupt as error:
                damaged.append(error.message)
            if on_progress is not None:
                on_progress(num_blobs, total)
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        unfinished.replace(target.database)
        sync_folder(folder)
        concepts = store.database.rows("SELECT count(*) FROM concept")[0][0]
    if damaged:
        raise RegistryCorrupt(
            f"the backup in {folder} lacks {len(damaged)} of {num_blobs} files: {damaged[0]}",
            hint="concept check --read-data",
        )
    return BackupReport(str(folder), concepts, num_blobs, copied, num_bytes)


def _check_target(target: Location, source: Location) -> None:
    folder = target.database.parent
    if folder.exists() and not folder.is_dir():
        raise AlreadyExists(f"{folder} is a file", hint="name a folder for the backup")
    if target.database.resolve() == source.database.resolve():
        raise AlreadyExists(f"{folder} is the registry itself", hint="name another folder")
    if folder.exists() and not target.database.exists():
        others = [name for name in os.listdir(folder) if not name.startswith("concepts.")]
        if others:
            raise AlreadyExists(
                f"{folder} has other files in it ({others[0]})",
                hint="name an empty folder, or an earlier backup to bring up to date",
            )


@contextlib.contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise StorageError(
            f"cannot write {folder}: {error}", hint="the registry itself is unchanged"
        ) from error


def _needed(store: Store) -> Iterator[Use]:
    """Each needed blob once, a shard at a time."""
    for shard in range(256):
        yield from {use.sha256: use for use in store.uses(f"{shard:02x}")}.values()


def _count(store: Store) -> int:
    return sum(1 for _ in _needed(store))


def _copy_blob(source: BlobStore, target: BlobStore, use: Use) -> bool:
    """Copy a blob unless it is there already; hashed on the way."""
    place = target.path(use.sha256)
    if place.is_file() and place.stat().st_size == use.bytes:
        return False
    with target.stage() as staging:
        staging.write(source.chunks(use.sha256))
        staging.publish()
    return True

"""Copying a registry: a backup is itself a registry, and a later one copies only what is new."""

import contextlib
import os
import re
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from .blobs import BlobStore
from .database import Database, explained, translated
from .errors import AlreadyExists, RegistryBusy, RegistryCorrupt, StorageError
from .files import PRIVATE, sync_file, sync_folder
from .location import DATABASE_NAME, Location
from .records import BackupReport
from .running import stored_files
from .store import Store, Use


def backup(
    store: Store, folder: Path, on_progress: Callable[[int, int], None] | None
) -> BackupReport:
    """Copy the database and every blob it needs into `folder`; see `Registry.backup`.

    The copy's database takes its name last, when all its blobs are safe.
    """
    target = Location(folder.absolute() / DATABASE_NAME)
    _check_folder(store, target)
    with store.lock.shared(), _writing_to(store, target) as unfinished:
        store.database.copy_to(unfinished)
        num_blobs = copied = num_bytes = 0
        damaged: list[str] = []
        # What the copy needs, not what the registry does by now: a concept may have been removed.
        with contextlib.closing(Database(unfinished, timeout=0)) as database:
            copy = replace(store, database=database)
            total = _count(copy)
            for use in _needed(copy):
                num_blobs += 1
                num_bytes += use.bytes
                try:
                    copied += _copy_blob(store.blobs, BlobStore(target.blobs), use)
                except RegistryCorrupt as error:
                    damaged.append(error.message)
                if on_progress is not None:
                    on_progress(num_blobs, total)
            concepts = database.rows("SELECT count(*) FROM concept")[0][0]
        with unfinished.open("rb+") as file:
            sync_file(file)
        unfinished.replace(target.database)
        sync_folder(folder)
    if damaged:
        raise RegistryCorrupt(
            f"the backup in {folder} lacks {len(damaged)} of {num_blobs} files: {damaged[0]}",
            hint="concept check --read-data",
        )
    return BackupReport(str(folder), concepts, num_blobs, copied, num_bytes)


def _check_folder(store: Store, target: Location) -> None:
    """Whether a folder may be written to at all; nothing is made or changed before that."""
    folder = target.database.parent
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise AlreadyExists(f"{folder} is a file", hint="name a folder for the backup")
    for path in (target.database, target.blobs):
        if os.path.islink(path):
            raise AlreadyExists(
                f"{path} is a link: a backup never writes to what it leads to",
                hint="name another folder",
            )
    if os.path.realpath(target.database) == os.path.realpath(store.location.database):
        raise AlreadyExists(f"{folder} is the registry itself", hint="name another folder")
    store.location.check_outside(folder)
    if os.path.exists(target.database):
        _check_earlier(store, target)
    elif os.path.exists(folder):
        others = [name for name in os.listdir(folder) if not name.startswith("concepts.")]
        if others:
            raise AlreadyExists(
                f"{folder} has other files in it ({others[0]})",
                hint="name an empty folder, or an earlier backup to bring up to date",
            )
        _check_blobs(store, target)


def _check_blobs(store: Store, target: Location) -> None:
    """Where there is no database, stored files are those of a backup that did not come to its end.

    Those of a registry that lost its database would be orphans of ours.
    """
    blobs = BlobStore(target.blobs)
    for shard in blobs.shards():
        ours = {use.sha256 for use in store.uses(shard)}
        ours |= {file.path.name for file in store.blobs.files(shard)}
        if any(file.is_blob and file.path.name not in ours for file in blobs.files(shard)):
            raise _without_database(target.blobs)
    if stored_files(target) == target.runs:
        raise _without_database(target.runs)


def _without_database(folder: Path) -> AlreadyExists:
    return AlreadyExists(
        f"{folder} holds files of another registry, whose database is gone",
        hint="name another folder, or restore that database",
    )


def _check_earlier(store: Store, target: Location) -> None:
    if not _is_earlier(target.database, store):
        raise AlreadyExists(
            f"{target.database} is not an earlier backup of this registry, or has been "
            "changed since",
            hint="name another folder",
        )


_UNFINISHED = re.compile(
    rf"{re.escape(DATABASE_NAME)}(\.[0-9a-f]{{16}})?\.unfinished(-journal|-wal|-shm)?"
)
_NEVER_DELETED = (
    ("event", ("id", "at", "concept", "action")),
    ("generation", ("id", "created", "output_sha256")),
)
"""Tables that only grow, so that the last row of an earlier copy is still in ours."""


def _is_earlier(database: Path, store: Store) -> bool:
    """Whether what a database records is a beginning of what ours does."""
    try:
        # Where there is a log, only a read-only connection leaves it as it is.
        mode = "ro" if os.path.exists(f"{database}-wal") else "rw"
        uri = f"{database.as_uri()}?mode={mode}"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as reader:
            if not all(_has_last(store, reader, *table) for table in _NEVER_DELETED):
                return False
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_ERROR:  # it has no such table
            return False
        raise explained(error, database) from error
    except sqlite3.DatabaseError:
        return False
    return True


def _has_last(
    store: Store, reader: sqlite3.Connection, table: str, columns: tuple[str, ...]
) -> bool:
    """Whether our database has the last row of a table of another one."""
    names = ", ".join(columns)
    query = f"SELECT {names} FROM {table} ORDER BY id DESC LIMIT 1"  # noqa: S608
    last = reader.execute(query).fetchone()
    if last is None:
        return True
    values = ", ".join(f":{column}" for column in columns)
    same = f"SELECT 1 FROM {table} WHERE ({names}) = ({values})"  # noqa: S608
    return bool(store.database.rows(same, **dict(zip(columns, last, strict=True))))


@contextlib.contextmanager
def _writing_to(store: Store, target: Location) -> Iterator[Path]:
    """The path for an unfinished database, which is gone whatever happens.

    Meanwhile we hold the lock of the registry that the backup is, so that no other backup goes
    there at once, and nothing cleans up in it.
    """
    folder = target.database.parent
    try:
        folder.mkdir(PRIVATE, parents=True, exist_ok=True)
        with store.lock.of(target).exclusive():
            if os.path.exists(target.database):  # another backup may have come first
                _check_earlier(store, target)
                _fold_log(target.database)
            _remove_unfinished(target)
            try:
                yield target.database.with_name(
                    f"{DATABASE_NAME}.{secrets.token_hex(8)}.unfinished"
                )
            finally:
                _remove_unfinished(target)
    except RegistryBusy:
        raise RegistryBusy(
            f"{folder} is busy: another backup is being written into it",
            hint="try again when it is done",
        ) from None
    except (OSError, StorageError) as error:
        reason = error.strerror if isinstance(error, OSError) else error.message
        raise StorageError(
            f"cannot back up into {folder}/: {reason}",
            hint="free some space or name another folder",
        ) from error


def _fold_log(database: Path) -> None:
    """Write the log of an earlier backup, if somebody has used it, into it."""
    with translated(database), contextlib.closing(sqlite3.connect(database, timeout=1)) as writer:
        writer.execute("PRAGMA journal_mode = DELETE")


def _remove_unfinished(target: Location) -> None:
    """What we leave, or a backup that was killed has left. Hold the target's lock."""
    with contextlib.suppress(OSError, StorageError):
        for path in target.database.parent.iterdir():
            if _UNFINISHED.fullmatch(path.name):
                path.unlink()
        for file in BlobStore(target.blobs).own_files("tmp"):
            if file.is_temporary:
                file.path.unlink()


def _needed(store: Store) -> Iterator[Use]:
    """Each needed blob once, a shard at a time."""
    for shard in range(256):
        yield from {use.sha256: use for use in store.uses(f"{shard:02x}")}.values()


def _count(store: Store) -> int:
    return sum(1 for _ in _needed(store))


def _copy_blob(source: BlobStore, target: BlobStore, use: Use) -> bool:
    """Copy a blob unless it is there already; hashed on the way."""
    if target.holds(use.sha256, use.bytes):
        return False
    with target.stage() as staging:
        staging.write(source.chunks(use.sha256))
        staging.publish()
    return True

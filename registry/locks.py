"""One lock per registry: many writers of blobs together, or one that may delete them alone.

The operating system owns it (a SQLite lock on `concepts.blobs/lock`), so it dies with its holder:
a killed process leaves nothing that would have to be broken. So do that of a concept that is
trained, `concepts.runs/7.lock`, and that of whoever works off its queued trainings,
`concepts.runs/7.queued.lock`.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .blobs import LOCK_NAME
from .errors import RegistryBusy, StorageError
from .files import below, make_folder
from .location import Location
from .records import Concept

_PATIENCE = 1.0
"""Seconds to wait for a lock: who only asks for it holds it for a moment."""
_ASKING = _PATIENCE / 10
"""Seconds of who only asks."""
begun_here: set[str] = set()
"""The runs that this process began, or goes on with, and did not end yet."""


class RegistryLock:
    """The lock of the registry at `location`; waits at most `timeout` seconds."""

    def __init__(self, location: Location, timeout: float) -> None:
        self._location = location
        self._timeout = timeout

    def of(self, location: Location) -> "RegistryLock":
        """That of another registry, with the same time-out."""
        return RegistryLock(location, self._timeout)

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold off `gc`, `check --repair` and migrations, while blobs are written or copied.

        Raises `RegistryBusy` when one of them is at work for longer than the time-out.
        """
        with self._acquired(exclusive=False, timeout=self._timeout):
            yield

    @contextmanager
    def exclusive(self, *, wait: bool = True) -> Iterator[None]:
        """Be the only process that writes or deletes blobs.

        Raises `RegistryBusy` when others are at work for longer than the time-out, or at all
        without `wait`.
        """
        with self._acquired(exclusive=True, timeout=self._timeout if wait else 0):
            yield

    @contextmanager
    def _acquired(self, *, exclusive: bool, timeout: float) -> Iterator[None]:
        from filelock import ReadWriteLock, Timeout

        folder = self._location.blobs
        if not os.access(folder if folder.is_dir() else folder.parent, os.W_OK):
            if exclusive:
                raise StorageError(f"cannot lock {folder}: it cannot be written")
            yield  # nobody writes to a medium that takes nothing
            return
        try:
            make_folder(folder, folder)
            lock = ReadWriteLock(folder / LOCK_NAME, is_singleton=False)
            acquire = lock.acquire_write if exclusive else lock.acquire_read
            held = acquire(timeout=timeout)
        except Timeout:
            others = "adding photos or training" if exclusive else "cleaning up or repairing"
            raise RegistryBusy(
                f"the registry {self._location.database} is busy: another process is {others}",
                hint="try again when it is done",
            ) from None
        except (OSError, sqlite3.Error) as error:
            raise StorageError(f"cannot lock {self._location.blobs}: {error}") from error
        try:
            yield
        finally:
            held.lock.release()
            lock.close()


@contextmanager
def training_lock(location: Location, concept: Concept) -> Iterator[None]:
    """Be the only process that trains a concept; the lock dies with its holder.

    Raises `RegistryBusy` if another one does.
    """
    from filelock import FileLock, Timeout

    try:
        make_folder(location.runs, location.runs)
        lock = FileLock(_lock_path(location, concept.id))
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        raise RegistryBusy(
            f"{concept.name} is being trained by another process",
            hint="try again when it is done",
        ) from None
    except OSError as error:
        raise StorageError(f"cannot write into {location.runs}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def queue_lock(location: Location, concept_id: int) -> Iterator[bool]:
    """Be the only process that works off the queued trainings of a concept, if nobody does.

    Yields whether we are.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(_queue_path(location, concept_id))
    try:
        make_folder(location.runs, location.runs)
        lock.acquire(timeout=2 * _ASKING)
    except Timeout:
        yield False
        return
    except OSError as error:
        raise StorageError(f"cannot write into {location.runs}: {error.strerror}") from error
    try:
        yield True
    finally:
        lock.release()


def is_training(location: Location, concept_id: int) -> bool:
    """Whether any process trains a concept."""
    return _is_held(_lock_path(location, concept_id))


def is_queue_alive(location: Location, concept_id: int) -> bool:
    """Whether any process works off the queued trainings of a concept."""
    return _is_held(_queue_path(location, concept_id))


def is_alive(location: Location, concept_id: int, run: str) -> bool:
    """Whether a run that did not end may still do so: whether anyone trains its concept."""
    return run in begun_here or is_training(location, concept_id)


def _is_held(path: Path) -> bool:
    if not path.exists():
        return False
    from filelock import FileLock, Timeout

    try:
        with FileLock(path).acquire(timeout=_ASKING):
            return False
    except (Timeout, PermissionError):  # who may not ask has to believe the record
        return True
    except OSError:  # nobody trains on a medium that only reads
        return False


def _queue_path(location: Location, concept_id: int) -> Path:
    return below(location.runs, f"{concept_id}.queued.lock")


def _lock_path(location: Location, concept_id: int) -> Path:
    return below(location.runs, f"{concept_id}.lock")

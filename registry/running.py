"""Trainings under way: one per concept, and a folder for what only they need.

    concepts.runs/
        rex.lock            held by the process that trains rex
        1f0c92a7be44/       a run: where it goes on, previews; removed when it is done

Nothing in here is part of the registry's promises: a backup leaves it out, and a run whose folder
is lost begins again.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import NotFound, RegistryBusy, StorageError
from .location import Location
from .records import Concept, RunRecord


@contextmanager
def training_lock(location: Location, name: str) -> Iterator[None]:
    """Be the only process that trains a concept; the lock dies with its holder.

    Raises `RegistryBusy` at once if another one does.
    """
    try:
        location.runs.mkdir(parents=True, exist_ok=True)
        lock = FileLock(location.runs / f"{name}.lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise RegistryBusy(
            f"{name} is being trained by another process", hint="try again when it is done"
        ) from None
    except OSError as error:
        raise StorageError(f"cannot write into {location.runs}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def run_folder(location: Location, run: str) -> Path:
    """The folder of a run, made if need be."""
    folder = location.runs / run
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write into {location.runs}: {error.strerror}") from error
    return folder


def remove_run_folder(location: Location, run: str) -> None:
    """Remove what only a run under way needs."""
    shutil.rmtree(location.runs / run, ignore_errors=True)


def resumable_run(concept: Concept) -> RunRecord:
    """The latest run of a concept, if it did not end; see `Registry.resumable_run`."""
    latest = max(concept.runs, key=lambda run: run.started, default=None)
    if latest is None or latest.status == "done":
        raise NotFound(
            f"{concept.name} has no training to go on with", hint=f"concept train {concept.name}"
        )
    return latest

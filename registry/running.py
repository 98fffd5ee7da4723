"""Trainings under way: one per concept, and a folder for what only they need.

    concepts.runs/
        rex.lock            held by the process that trains rex
        1f0c92a7be44/       a run: where it goes on, until it is done, and its previews

Nothing in here is part of the registry's promises: a backup leaves it out, and a run whose folder
is lost begins again.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .blobs import PRIVATE, StoredFile
from .errors import NotFound, RegistryBusy, StorageError
from .location import Location
from .records import Concept, RunRecord
from .store import Store

PREVIEWS_FILE = "previews.png"
CHECKPOINT_PREFIX = "checkpoint-"


def stays(name: str) -> bool:
    """Whether a file stays in a run's folder when the run is done."""
    return name == PREVIEWS_FILE or _is_checkpoint(name)


def _is_checkpoint(name: str) -> bool:
    return name.startswith(CHECKPOINT_PREFIX) and name.endswith(".safetensors")


def checkpoints(location: Location, run: str) -> list[Path]:
    """What a run kept of its way, as adapters, in the order of their names."""
    return sorted((location.runs / run).glob(f"{CHECKPOINT_PREFIX}*.safetensors"))


@contextmanager
def training_lock(location: Location, name: str) -> Iterator[None]:
    """Be the only process that trains a concept; the lock dies with its holder.

    Raises `RegistryBusy` at once if another one does.
    """
    from filelock import FileLock, Timeout

    try:
        location.runs.mkdir(PRIVATE, parents=True, exist_ok=True)
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
        folder.mkdir(PRIVATE, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write into {location.runs}: {error.strerror}") from error
    return folder


def tidy_run_folder(location: Location, run: str) -> None:
    """Remove what only a run under way needs; its previews and checkpoints stay."""
    folder = location.runs / run
    for path in folder.iterdir():
        if not stays(path.name):
            path.unlink()
    remove_if_empty(folder)


def leftovers(store: Store, *, with_checkpoints: bool = False) -> Iterator[StoredFile]:
    """Files of runs that were removed, or that nothing goes on with any more."""
    rows = store.database.rows("SELECT uid, concept_id, status FROM run ORDER BY started, id")
    latest = {concept_id: uid for uid, concept_id, _ in rows}
    resumable = {
        uid for uid, concept, status in rows if status != "done" and latest[concept] == uid
    }
    known = {uid for uid, _, _ in rows}
    for path in store.location.runs.glob("*/*"):
        run, is_kept = path.parent.name, stays(path.name)
        is_kept &= not (with_checkpoints and _is_checkpoint(path.name))
        if run not in resumable and not (is_kept and run in known):
            with suppress(FileNotFoundError):
                status = path.stat()
                yield StoredFile(path, run, status.st_size, status.st_mtime)


def remove_if_empty(folder: Path) -> None:
    """Remove the folder of a run whose files are gone."""
    with suppress(OSError):
        folder.rmdir()


def resumable_run(concept: Concept) -> RunRecord:
    """The latest run of a concept, if it did not end; see `Registry.resumable_run`."""
    latest = max(concept.runs, key=lambda run: run.started, default=None)
    if latest is None or latest.status == "done":
        raise NotFound(
            f"{concept.name} has no training to go on with", hint=f"concept train {concept.name}"
        )
    return latest

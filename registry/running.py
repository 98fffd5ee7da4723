"""Trainings under way: one per concept, and a folder for what only they need.

    concepts.runs/
        7.lock              held by the process that trains the concept with the id 7
        1f0c92a7be44/       a run: where it goes on, until it is done, and its previews

Nothing in here is part of the registry's promises: a backup leaves it out, and a run whose folder
is lost begins again.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .blobs import StoredFile
from .errors import NotFound, RegistryBusy, StorageError
from .location import Location
from .records import Concept, RunRecord
from .store import Store

PREVIEWS_FILE = "previews.png"
CHECKPOINT_PREFIX = "checkpoint-"
_PATIENCE = 1.0
"""Seconds to wait for a lock: who only asks for it holds it for a moment."""
begun_here: set[str] = set()
"""The runs that this process began, or goes on with, and did not end yet."""


def stays(name: str) -> bool:
    """Whether a file stays in a run's folder when the run is done."""
    return name == PREVIEWS_FILE or _is_checkpoint(name)


def _is_checkpoint(name: str) -> bool:
    return name.startswith(CHECKPOINT_PREFIX) and name.endswith(".safetensors")


def checkpoints(location: Location, run: str) -> list[Path]:
    """What a run kept of its way, as adapters, in the order of their names."""
    return sorted((location.runs / run).glob(f"{CHECKPOINT_PREFIX}*.safetensors"))


@contextmanager
def training_lock(location: Location, concept: Concept) -> Iterator[None]:
    """Be the only process that trains a concept; the lock dies with its holder.

    Raises `RegistryBusy` if another one does.
    """
    from filelock import FileLock, Timeout

    try:
        location.runs.mkdir(parents=True, exist_ok=True)
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


def is_alive(location: Location, concept_id: int, run: str) -> bool:
    """Whether a run that did not end may still do so: whether anyone trains its concept."""
    path = _lock_path(location, concept_id)
    if run in begun_here or not path.exists():
        return run in begun_here
    from filelock import FileLock, Timeout

    try:
        with FileLock(path).acquire(timeout=_PATIENCE / 10):
            return False
    except (Timeout, PermissionError):  # who may not ask has to believe the record
        return True
    except OSError:  # nobody trains on a medium that only reads
        return False


def _lock_path(location: Location, concept_id: int) -> Path:
    return location.runs / f"{concept_id}.lock"


def run_folder(location: Location, run: str) -> Path:
    """The folder of a run, made if need be."""
    folder = location.runs / run
    try:
        folder.mkdir(parents=True, exist_ok=True)
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
    rows = store.database.rows("SELECT uid, concept_id, status FROM run ORDER BY id")
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
    if not concept.runs or concept.runs[-1].status == "done":
        raise NotFound(
            f"{concept.name} has no training to go on with", hint=f"concept train {concept.name}"
        )
    return concept.runs[-1]

"""Trainings under way: one per concept, and a folder for what only they need.

    concepts.runs/
        7.lock              held by the process that trains the concept with the id 7
        1f0c92a7be44/       a run: where it goes on, until it is done, and its previews
    concepts.cache/
        class-pictures/…/   00000.png
        evaluations/ab/     pictures that were scored

Nothing in here is part of the registry's promises: a backup leaves it out, and a run whose folder
is lost begins again. Links in here are never followed.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from .blobs import StoredFile
from .errors import NotFound, StorageError
from .files import below, entries, is_unfinished, make_folder, remove_file, remove_folder
from .location import Location
from .names import check_run_id, is_run_id
from .queries import began_here
from .records import Concept, RunRecord
from .store import Store

PREVIEWS_FILE = "previews.png"
CLASS_PICTURES, EVALUATIONS = CACHES = ("class-pictures", "evaluations")
CHECKPOINT_PREFIX = "checkpoint-"


def stays(name: str) -> bool:
    """Whether a file stays in a run's folder when the run is done."""
    return name == PREVIEWS_FILE or _is_checkpoint(name)


def _is_checkpoint(name: str) -> bool:
    return name.startswith(CHECKPOINT_PREFIX) and name.endswith(".safetensors")


def checkpoints(location: Location, run: str) -> list[Path]:
    """What a run kept of its way, as adapters, in the order of their names."""
    folder = below(location.runs, check_run_id(run))
    files = (each for each in _files(location, folder) if each.is_plain)
    return [each.path for each in files if _is_checkpoint(each.path.name)]


def _files(location: Location, folder: Path) -> list[StoredFile]:
    """The files of a run, by name; none, if its folder is a link."""
    if os.path.islink(folder) or os.path.islink(location.runs):
        return []
    found = entries(location.runs, folder)
    return [StoredFile.of(entry, folder, folder.name) for entry in found if not entry.is_folder]


def run_folder(location: Location, run: str) -> Path:
    """The folder of a run, made if need be."""
    try:
        return make_folder(location.runs, below(location.runs, check_run_id(run)))
    except OSError as error:
        raise StorageError(f"cannot write into {location.runs}: {error.strerror}") from error


def tidy_run_folder(location: Location, run: str) -> None:
    """Remove what only a run under way needs; its previews and checkpoints stay."""
    folder = below(location.runs, check_run_id(run))
    for file in _files(location, folder):
        if not stays(file.path.name):
            remove_file(location.runs, file.path)
    remove_folder(location.runs, folder)


def cache_folder(location: Location, *names: str) -> Path:
    """A folder of what can be made again, made if need be; raises `StorageError`."""
    try:
        return make_folder(location.cache, below(location.cache, *names))
    except OSError as error:
        raise StorageError(f"cannot write into {location.cache}: {error.strerror}") from error


def cached_files(cache: Path) -> Iterator[StoredFile]:
    """What is kept in the cache; neither what stands beside it in there, nor what links lead to."""
    for kind in () if os.path.islink(cache) else CACHES:
        for group in _folders(cache, cache / kind):
            for entry in entries(cache, group):
                if entry.is_file:
                    yield StoredFile.of(entry, group, group.name)


def _folders(root: Path, folder: Path) -> list[Path]:
    found = [] if os.path.islink(folder) else entries(root, folder)
    return [folder / entry.name for entry in found if entry.is_folder]


def leftovers(store: Store, *, with_checkpoints: bool = False) -> Iterator[StoredFile]:
    """Files of runs that were removed, or that nothing goes on with any more."""
    rows = store.database.rows("SELECT uid, concept_id, status FROM run ORDER BY id")
    latest = {concept_id: uid for uid, concept_id, _ in rows}
    resumable = {
        uid
        for uid, concept, status in rows
        if status != "done" and latest[concept] == uid and began_here(store.database, uid)
    }
    known = {uid for uid, _, _ in rows}
    runs = store.location.runs
    for folder in () if os.path.islink(runs) else _folders(runs, runs):
        for file in _files(store.location, folder) if is_run_id(folder.name) else ():
            name = file.path.name
            is_kept = stays(name) and not (with_checkpoints and _is_checkpoint(name))
            is_needed = folder.name in resumable or (is_kept and folder.name in known)
            if file.is_plain and (is_unfinished(name) or not is_needed):
                yield file


def resumable_run(store: Store, concept: Concept) -> RunRecord:
    """The latest run of a concept, if it did not end; see `Registry.resumable_run`."""
    if not concept.runs or concept.runs[-1].status == "done":
        raise NotFound(
            f"{concept.name} has no training to go on with", hint=f"concept train {concept.name}"
        )
    if not began_here(store.database, concept.runs[-1].run):
        raise NotFound(
            f"the last training of {concept.name} was imported: it cannot go on here",
            hint=f"concept train {concept.name}",
        )
    return concept.runs[-1]

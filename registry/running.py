"""Trainings under way: one per concept, and a folder for what only they need.

    concepts.runs/
        7.lock              held by the process that trains the concept with the id 7
        7.queued.lock       held by the process that works off its queued trainings
        1f0c92a7be44/       a run: where it goes on, until it is done, and its previews
    concepts.cache/
        class-pictures/…/   00000.png
        evaluations/ab/     pictures that were scored

Nothing in here is part of the registry's promises: a backup leaves it out, and a run whose folder
is lost begins again. Links in here are never followed.
"""

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from .blobs import BlobStore, StoredFile
from .errors import NotFound, StorageError
from .files import (
    Entry,
    below,
    is_unfinished,
    make_folder,
    own_entries,
    remove_file,
    remove_folder,
    tried,
)
from .hashes import is_sha256
from .location import Location
from .locks import is_alive
from .names import check_run_id, is_run_id
from .queries import began_here
from .records import Concept, RunRecord
from .store import Store

PREVIEWS_FILE = "previews.png"
RESUME_FILE = "resume.safetensors"
ADAPTER_FILE = "adapter.safetensors"
"""The file name of a version's adapter."""
CLASS_PICTURES, EVALUATIONS = CACHES = ("class-pictures", "evaluations")
CHECKPOINT_PREFIX = "checkpoint-"
_CLASS_PICTURE = re.compile(r"[0-9]{5,}\.png")


def stays(name: str) -> bool:
    """Whether a file stays in a run's folder when the run is done."""
    return name == PREVIEWS_FILE or _is_checkpoint(name)


def _is_ours(name: str) -> bool:
    """Whether a training gives this name to a file of a run."""
    return stays(name) or name in (RESUME_FILE, ADAPTER_FILE) or is_unfinished(name)


def _is_checkpoint(name: str) -> bool:
    return name.startswith(CHECKPOINT_PREFIX) and name.endswith(".safetensors")


def checkpoints(location: Location, run: str) -> list[Path]:
    """The kept checkpoints of a run, in the order of their names."""
    folder = below(location.runs, check_run_id(run))
    files = (each.path for each in _files(location, folder))
    return [path for path in files if _is_checkpoint(path.name)]


def _files(location: Location, folder: Path) -> list[StoredFile]:
    """The files of a run that a training left there, by name; none, if its folder is a link."""
    found = () if os.path.islink(location.runs) else own_entries(location.runs, folder)
    files = (StoredFile.of(entry, folder, folder.name) for entry in found if not entry.is_folder)
    return [file for file in files if file.is_plain and _is_ours(file.path.name)]


def stored_files(location: Location) -> Path | None:
    """The folder in which a registry at this place has stored files; None if it has not."""
    if BlobStore(location.blobs).has_blobs():
        return location.blobs
    has_runs = any(_files(location, folder) for folder in _run_folders(location))
    return location.runs if has_runs else None


def run_folder(location: Location, run: str) -> Path:
    """The folder of a run, created if needed."""
    try:
        return make_folder(location.runs, below(location.runs, check_run_id(run)))
    except OSError as error:
        raise StorageError(f"cannot write into {location.runs}: {error.strerror}") from error


def tidy_run_folder(location: Location, run: str) -> None:
    """Remove a run's resume point; its previews and checkpoints stay."""
    folder = below(location.runs, check_run_id(run))
    for file in _files(location, folder):
        if not stays(file.path.name):
            remove_file(location.runs, file.path)
    remove_folder(location.runs, folder)


def cache_folder(location: Location, *names: str) -> Path:
    """A folder of the cache, created if needed; raises `StorageError`."""
    try:
        return make_folder(location.cache, below(location.cache, *names))
    except OSError as error:
        raise StorageError(f"cannot write into {location.cache}: {error.strerror}") from error


def cached_files(location: Location, failed: list[str]) -> Iterator[StoredFile]:
    """What we keep in the cache; neither what stands beside it in there, nor what links lead to.

    What cannot be read is added to `failed`, in words.
    """
    cache = location.cache
    for kind in () if os.path.islink(cache) else CACHES:
        for group in _listed(cache, cache / kind, failed):
            for entry in _listed(cache, cache / kind / group.name, failed):
                if entry.is_file and _is_cached(kind, group.name, entry.name):
                    yield StoredFile.of(entry, cache / kind / group.name, group.name)


def _is_cached(kind: str, group: str, name: str) -> bool:
    """Whether we give this name to a file of the cache."""
    if is_unfinished(name):
        return True
    if kind == CLASS_PICTURES:
        return _CLASS_PICTURE.fullmatch(name) is not None
    key, _, suffix = name.partition(".")
    return is_sha256(key) and key[:2] == group and suffix in ("png", "safetensors")


def _listed(root: Path, folder: Path, failed: list[str]) -> list[Entry]:
    return tried(partial(own_entries, root, folder), failed)


def _run_folders(location: Location) -> list[Path]:
    found = () if os.path.islink(location.runs) else own_entries(location.runs, location.runs)
    return [location.runs / entry.name for entry in found if is_run_id(entry.name)]


_BEGUN_SQL = """
    SELECT json_extract(detail, '$.run') AS run, concept_id FROM event
    WHERE action = 'train' AND json_valid(detail)"""


def leftovers(
    store: Store, failed: list[str], *, with_checkpoints: bool = False, unknown: bool = False
) -> Iterator[StoredFile]:
    """Files of runs that were removed, or that nothing goes on with any more.

    Those of a concept that is being trained stay and, without `unknown`, those of runs that did not
    begin here. What cannot be read is added to `failed`, in words.
    """
    rows = store.database.rows("SELECT uid, concept_id, status FROM run ORDER BY id")
    latest = {row["concept_id"]: row["uid"] for row in rows}
    resumable = {
        row["uid"]
        for row in rows
        if row["status"] != "done"
        and latest[row["concept_id"]] == row["uid"]
        and began_here(store.database, row["uid"])
    }
    known = {row["uid"] for row in rows}
    begun = {row["run"]: row["concept_id"] for row in store.database.rows(_BEGUN_SQL)}
    for folder in tried(partial(_run_folders, store.location), failed):
        run = folder.name
        if run not in begun and not unknown:
            continue
        found = tried(partial(_files, store.location, folder), failed)
        if found and run in begun and is_alive(store.location, begun[run], run):
            continue
        for file in found:
            name = file.path.name
            is_kept = stays(name) and not (with_checkpoints and _is_checkpoint(name))
            is_needed = run in resumable or (is_kept and run in known)
            if is_unfinished(name) or not is_needed:
                yield file


_LEARNT_SQL = """
    SELECT uid, concept_id, sha256 FROM run JOIN run_image ON run_id = run.id
    WHERE status = 'running' ORDER BY run.id"""


def photos_of_trainings(store: Store) -> set[str]:
    """What trainings under way learn from, even if it was removed from its concept since."""
    alive: dict[str, bool] = {}
    found: set[str] = set()
    for row in store.database.rows(_LEARNT_SQL):
        run = row["uid"]
        if run not in alive:
            alive[run] = is_alive(store.location, row["concept_id"], run)
        if alive[run]:
            found.add(row["sha256"])
    return found


def resumable_run(store: Store, concept: Concept) -> RunRecord:
    """The latest run of a concept, if it is unfinished; see `Registry.resumable_run`."""
    if not concept.runs or concept.runs[-1].status == "done":
        raise NotFound(
            f"{concept.name} has no unfinished training", hint=f"concept train {concept.name}"
        )
    if not began_here(store.database, concept.runs[-1].run):
        raise NotFound(
            f"the last training of {concept.name} was imported: it cannot go on here",
            hint=f"concept train {concept.name}",
        )
    return concept.runs[-1]

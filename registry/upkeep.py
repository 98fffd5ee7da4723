"""Maintenance of stored files: `check` finds and repairs errors, `gc` deletes unneeded files."""

import itertools
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from .blobs import CHUNK, DEFAULT_GRACE, StoredFile
from .edits import refresh
from .errors import InvalidInput, NotFound, RegistryCorrupt, StorageError
from .files import (
    entries,
    is_file,
    make_folder,
    move_file,
    open_file,
    remove_file,
    remove_folder,
    tried,
)
from .hashes import is_sha256, sha256_of
from .queries import stale_concepts
from .records import CheckReport, GcReport, Problem
from .running import cached_files, leftovers, photos_of_trainings
from .store import Store, Use
from .tables import Concept

_SHARDS = [f"{i:02x}" for i in range(256)]
_PRIVATE = ("tmp", "damaged")
_SIZES = (
    ("image", "sha256", "bytes"),
    ("image", "mask", "mask_bytes"),
    ("artifact", "sha256", "bytes"),
)
"""The (table, column, size) of stored files."""


def check(
    store: Store,
    *,
    read_data: bool,
    repair: bool,
    look_in: Path | None,
    on_progress: Callable[[int, int], None] | None,
) -> CheckReport:
    """Compare the files that rows need with the stored ones; see `Registry.check`."""
    if look_in is not None and not os.path.isdir(look_in):
        raise NotFound(f"the folder {look_in} does not exist")
    with store.lock.exclusive() if repair else store.lock.shared():
        damage = store.database.damage()
        name = store.location.database.name
        problems = [Problem("database", name, line, is_error=True) for line in damage]
        if damage:
            return CheckReport(False, read_data, 0, 0, problems)
        scan = _Scan(store, read_data)
        if last := store.stranger():
            scan.orphans_go = False
            what = f"another database, or a later state of this one, stored files here: {last}"
            problems.append(Problem("stranger", name, what, is_error=False))
        problems += scan.run(on_progress)
        problems += _stale_search(store, repair)
        if repair:
            try:
                problems = _Repair(store, look_in).run(problems)
            except OSError as error:
                path = error.filename or store.location.blobs
                raise StorageError(f"cannot repair {path}: {error.strerror}") from error
        ok = all(problem.repaired for problem in problems if problem.is_error)
        return CheckReport(ok, read_data, scan.num_blobs, scan.num_bytes, problems)


class _Scan:
    """One walk over the blob folder, a shard at a time so that memory stays flat."""

    def __init__(self, store: Store, read_data: bool) -> None:
        self._store = store
        self._read_data = read_data
        self.orphans_go = True
        self.num_blobs = 0
        self.num_bytes = 0

    def run(self, on_progress: Callable[[int, int], None] | None) -> list[Problem]:
        problems: list[Problem] = []
        shards = sorted({*_SHARDS, *self._store.blobs.shards()} - set(_PRIVATE))
        for done, shard in enumerate(shards, 1):
            try:
                problems += self._shard(shard)
            except StorageError as error:
                problems.append(self._unreadable(self._store.blobs.folder / shard, error))
            if on_progress is not None:
                on_progress(done, len(shards))
        location = self._store.location
        strays = [*self._store.blobs.strays(), *_links(location.runs), *_links(location.cache)]
        problems += [self._note("foreign", path, "is not ours") for path in strays]
        for file in self._store.blobs.files("tmp"):
            if not file.is_temporary:
                problems.append(self._note("foreign", file.path, "is not ours"))
            elif time.time() - file.modified > DEFAULT_GRACE:
                what = "was left by an interrupted command"
                problems.append(self._note("temporary", file.path, what))
        problems += [
            self._note("aside", file.path, "was set aside by an earlier repair")
            for file in self._store.blobs.files("damaged")
        ]
        return problems

    def _shard(self, shard: str) -> Iterator[Problem]:
        needed: defaultdict[str, list[Use]] = defaultdict(list)
        if shard in _SHARDS:
            for use in self._store.uses(shard):
                needed[use.sha256].append(use)
        for file in self._store.blobs.files(shard):
            if file.is_blob:
                yield from self._blob(file, needed.pop(file.path.name, []))
            elif shard in _SHARDS and file.shard == shard and _is_misnamed(file):
                yield self._note("misnamed", file.path, "is not in the folder of its name")
            else:
                yield self._note("foreign", file.path, "is not ours")
        for sha256, uses in needed.items():
            yield self._error("missing", self._store.blobs.path(sha256), uses, "is missing")

    def _blob(self, file: StoredFile, uses: list[Use]) -> Iterator[Problem]:
        self.num_blobs += 1
        self.num_bytes += file.size
        wrong_sizes = [use.bytes for use in uses if use.bytes != file.size]
        is_whole = True
        if wrong_sizes or self._read_data:
            try:
                is_whole = _sha256_of(self._store.blobs.folder, file.path) == file.path.name
            except StorageError as error:
                yield self._unreadable(file.path, error, uses)
                return
        if wrong_sizes and not is_whole:
            what = f"has {file.size:,} bytes instead of {wrong_sizes[0]:,}"
            yield self._error("truncated", file.path, uses, what)
        elif not is_whole:
            yield self._error("damaged", file.path, uses, "does not hold the bytes of its name")
        elif wrong_sizes:
            wrong = f"{wrong_sizes[0]:,} bytes instead of {file.size:,}"
            what = f"is whole, but the database gives it {wrong}"
            yield self._error("size", file.path, uses, what)
        elif not uses:
            what = "is needed by nothing" + ("; gc will remove it" if self.orphans_go else "")
            yield self._note("orphan", file.path, what)

    def _unreadable(self, path: Path, error: StorageError, uses: Iterable[Use] = ()) -> Problem:
        relative = _relative(self._store, path)
        concepts = sorted({use.concept for use in uses})
        return Problem("unreadable", relative, error.message, is_error=True, concepts=concepts)

    def _note(self, kind: str, path: Path, what: str) -> Problem:
        relative = _relative(self._store, path)
        return Problem(kind, relative, f"{relative} {what}", is_error=False)

    def _error(self, kind: str, path: Path, uses: list[Use], what: str) -> Problem:
        relative = _relative(self._store, path)
        needed = "; ".join(f"{use.what} of {use.concept}" for use in uses[:3])
        return Problem(
            kind,
            relative,
            f"{relative} {what}" + (f" ({needed})" if needed else ""),
            is_error=bool(uses) or kind == "damaged",
            sha256=path.name,
            concepts=sorted({use.concept for use in uses}),
        )


def _is_misnamed(file: StoredFile) -> bool:
    """Whether it has the name of a blob, in capitals or in another blob's folder."""
    return file.is_plain and is_sha256(file.path.name.lower())


def _links(folder: Path) -> Iterator[Path]:
    """Links and other odd things below a folder, or itself; nothing here ever follows them."""
    if os.path.islink(folder):
        yield folder
        return
    for entry in entries(folder, folder):
        path = folder / entry.name
        if entry.is_folder:
            yield from _links(path)
        elif not entry.is_file:
            yield path


def _relative(store: Store, path: Path) -> str:
    return path.relative_to(store.location.database.parent).as_posix()


class _Repair:
    """Repairs without losing a byte; damaged files are set aside, not deleted."""

    def __init__(self, store: Store, look_in: Path | None) -> None:
        self._store = store
        self._look_in = look_in

    def run(self, problems: list[Problem]) -> list[Problem]:
        # What is damaged leaves its place before anything whole comes there.
        for kinds in (("truncated", "damaged", "size"), ("misnamed", "temporary")):
            problems = [self._mend(each) if each.kind in kinds else each for each in problems]
        unread = self._fetch_lost([problem for problem in problems if self._is_lost(problem)])
        return [
            replace(problem, repaired=True)
            if problem.sha256 and self._is_lost(problem) and self._is_whole(problem.sha256)
            else problem
            for problem in problems
        ] + unread

    def _mend(self, problem: Problem) -> Problem:
        path = self._store.location.database.parent / problem.path
        if problem.kind == "size":
            self._correct_size(path)
        elif problem.kind == "temporary":
            remove_file(self._store.blobs.folder, path)
        elif problem.kind == "misnamed":
            return replace(problem, repaired=self._put_in_place(path))
        elif not self._is_whole(path.name):
            self._set_aside(path)
            return replace(problem, repaired=not problem.concepts)
        return replace(problem, repaired=True)

    def _correct_size(self, path: Path) -> None:
        """Correct the size that rows record for an undamaged file."""
        size = os.lstat(path).st_size
        with self._store.database.write() as session:
            for table, column, of in _SIZES:
                statement = f"UPDATE {table} SET {of} = ? WHERE {column} = ?"  # noqa: S608
                session.connection().exec_driver_sql(statement, (size, path.name))

    def _put_in_place(self, path: Path) -> bool:
        """Move a file to where a blob of its bytes belongs, if it is one."""
        sha256 = _sha256_of(self._store.blobs.folder, path)
        if sha256 != path.name.lower() and not self._store.uses(sha256):
            return False
        place = self._store.blobs.path(sha256)
        if os.path.lexists(place) and not self._is_whole(sha256):
            self._set_aside(place)
        self._move(path, place)
        return True

    def _set_aside(self, path: Path) -> None:
        places = (self._store.blobs.damaged / f"{path.name}.{i}" for i in itertools.count(1))
        self._move(path, next(place for place in places if not os.path.lexists(place)))

    def _move(self, path: Path, place: Path) -> None:
        """Move an undamaged file to another place in the store."""
        make_folder(self._store.blobs.folder, place.parent)
        move_file(self._store.blobs.folder, path, place)

    def _is_lost(self, problem: Problem) -> bool:
        return problem.is_error and problem.sha256 is not None and not problem.repaired

    def _is_whole(self, sha256: str) -> bool:
        path = self._store.blobs.path(sha256)
        is_there = is_file(self._store.blobs.folder, path)
        return is_there and _sha256_of(self._store.blobs.folder, path) == sha256

    def _fetch_lost(self, problems: list[Problem]) -> list[Problem]:
        """Copy lost blobs back from any files in `look_in` that have their bytes.

        Returns notes of what could not be read.
        """
        if self._look_in is None or not problems:
            return []
        uses = (use for each in problems for use in self._store.uses(each.sha256 or ""))
        sizes = {use.sha256: use.bytes for use in uses}
        lost = set(sizes)
        unread: list[Problem] = []

        def report(error: OSError) -> None:
            what = f"cannot read {error.filename}: {error.strerror}"
            unread.append(Problem("unreadable", str(error.filename), what, is_error=False))

        likely = {*sizes, *sizes.values()}
        with self._store.blobs.stage() as staging:
            for folder, _, names in os.walk(self._look_in, onerror=report):
                for path in (Path(folder, name) for name in names):
                    try:
                        if not _holds(path, lost, likely):
                            continue
                        with path.open("rb") as file:
                            sha256 = staging.write(iter(partial(file.read, CHUNK), b""))
                    except OSError as error:
                        report(error)
                        continue
                    lost.discard(sha256)
                    if sha256 not in sizes:  # it was changed after it was hashed
                        staging.discard(sha256)
            staging.publish()
        return unread


def _holds(path: Path, hashes: set[str], likely: set[str | int]) -> bool:
    """Whether a file has one of these hashes; only those of a likely name or size are read."""
    if not path.is_file() or likely.isdisjoint((path.name, path.stat().st_size)):
        return False
    with path.open("rb") as file:
        return sha256_of(file) in hashes


def _stale_search(store: Store, repair: bool) -> list[Problem]:
    """Concepts whose search text is outdated; `repair` updates it."""
    stale = list(stale_concepts(store.database))
    if repair:
        with store.database.write() as session:
            for concept_id, _ in stale:
                refresh(session, session.get_one(Concept, concept_id))
    return [
        Problem(
            "search",
            store.location.database.name,
            f"the search text of {name} is out of date",
            is_error=True,
            concepts=[name],
            repaired=repair,
        )
        for _, name in stale
    ]


def gc(
    store: Store,
    *,
    grace: float,
    dry_run: bool,
    checkpoints: bool,
    cache_size: float,
    unknown: bool,
) -> GcReport:
    """Delete the blobs that no row needs; see `Registry.gc`."""
    for value, what in ((grace, "the grace in seconds"), (cache_size, "the size of the cache")):
        if not value >= 0:
            raise InvalidInput(f"{what} cannot be {value}")
    with store.lock.exclusive():
        if damage := store.database.damage():
            raise RegistryCorrupt(
                f"{store.location.database} is damaged ({damage[0]}): nothing was removed",
                hint="restore it from a backup",
            )
        if not unknown:
            _check_stamp(store)
        blobs, runs, cache = store.blobs.folder, store.location.runs, store.location.cache
        sweep = _Sweep(time.time() - grace if grace else math.inf, dry_run)  # clocks may be set
        orphans = _orphans(store, sweep.failed, may_lack=unknown)
        learnt = photos_of_trainings(store)
        removed = sweep.remove(blobs, (o for o in orphans if o.path.name not in learnt))
        temporary = sweep.remove(blobs, _temporary(store, sweep.failed), keep_folders=True)
        left = leftovers(store, sweep.failed, with_checkpoints=checkpoints, unknown=unknown)
        temporary += sweep.remove(runs, left)
        cached = sweep.remove(cache, _beyond(store, cache_size, sweep.failed), keep_folders=True)
        if not dry_run:
            store.stamp(over=unknown)
        return GcReport(
            removed, sweep.num_bytes, temporary, cached, sweep.kept_young, dry_run, sweep.failed
        )


def _check_stamp(store: Store) -> None:
    """Raise `RegistryCorrupt` where the stored files are those of another database."""
    if last := store.stranger():
        raise RegistryCorrupt(
            f"another database, or a later state of {store.location.database}, stored files in "
            f"{store.blobs.folder} ({last}): nothing was removed",
            hint=_restore_hint(store),
        )


def _orphans(store: Store, failed: list[str], *, may_lack: bool) -> list[StoredFile]:
    """The blobs that no row needs; what cannot be read is added to `failed`, in words.

    Unless files `may_lack`, raises `RegistryCorrupt` where one is missing: the database does not
    seem to be that of the stored files.
    """
    database, blobs = store.location.database, store.blobs
    orphans, missing, num_needed = list[StoredFile](), list[Use](), 0
    for shard in _SHARDS:
        needed = {use.sha256: use for use in store.uses(shard)}
        num_needed += len(needed)
        try:
            files = blobs.own_files(shard)
        except StorageError as error:
            failed.append(error.message)
            continue
        orphans += [file for file in files if file.is_blob and file.path.name not in needed]
        present = {file.path.name for file in files}
        missing += [use for sha256, use in needed.items() if sha256 not in present]
    if missing and not may_lack:
        raise RegistryCorrupt(
            f"{blobs.folder} lacks {len(missing):,} of {num_needed:,} files that {database} needs "
            f"({missing[0].what} of {missing[0].concept}): nothing was removed",
            hint=f"concept check --repair --from BACKUP, or {_restore_hint(store)}",
        )
    return orphans


def _restore_hint(store: Store) -> str:
    name = store.location.database.name
    return (
        f"restore what belongs together; if what {name} does not need may go: concept gc --unknown"
    )


@dataclass(slots=True)
class _Sweep:
    """Files to delete, and those that could not be deleted."""

    oldest_spared: float
    dry_run: bool
    num_bytes: int = 0
    kept_young: int = 0
    failed: list[str] = field(default_factory=list)

    def remove(self, root: Path, files: Iterable[StoredFile], *, keep_folders: bool = False) -> int:
        """Delete those that are old enough, and folders that get empty; returns how many."""
        removed = 0
        for file in files:
            if file.modified > self.oldest_spared:
                self.kept_young += 1
                continue
            try:
                _delete(root, file, self.dry_run)
            except (OSError, RegistryCorrupt) as error:
                reason = error.strerror if isinstance(error, OSError) else error.message
                self.failed.append(f"cannot delete {file.path}: {reason}")
                continue
            removed += 1
            self.num_bytes += file.size
            if not (self.dry_run or keep_folders):
                remove_folder(root, file.path.parent)
        return removed


def _temporary(store: Store, failed: list[str]) -> list[StoredFile]:
    files = tried(partial(store.blobs.own_files, "tmp"), failed)
    return [file for file in files if file.is_temporary]


def _beyond(store: Store, size: float, failed: list[str]) -> list[StoredFile]:
    """The files of the cache, oldest first, without which it would be within a size in bytes."""
    found = sorted(
        cached_files(store.location, failed), key=lambda file: file.modified, reverse=True
    )
    total, leaving = 0, list[StoredFile]()
    for file in found:
        total += file.size
        if total > size:
            leaving.append(file)
    return leaving[::-1]


def _delete(root: Path, file: StoredFile, dry_run: bool) -> None:
    if not dry_run:
        with suppress(FileNotFoundError):
            remove_file(root, file.path)


def _sha256_of(folder: Path, path: Path) -> str:
    """Of a file below a folder."""
    try:
        with open_file(folder, path) as file:
            return sha256_of(file)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error

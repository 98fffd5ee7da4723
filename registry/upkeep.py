"""Looking after the stored files: `check` finds and mends what is wrong, `gc` frees room."""

import hashlib
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from .blobs import DEFAULT_GRACE, StoredFile, is_sha256
from .edits import refresh
from .errors import NotFound, RegistryCorrupt, StorageError
from .files import entries, is_file, make_folder, move_file, open_file, remove_file, remove_folder
from .queries import stale_concepts
from .records import CheckReport, GcReport, Problem
from .running import cached_files, leftovers
from .store import Store, Use
from .tables import Concept

_SHARDS = [f"{i:02x}" for i in range(256)]
_PRIVATE = ("tmp", "damaged")


def check(
    store: Store,
    *,
    read_data: bool,
    repair: bool,
    look_in: Path | None,
    on_progress: Callable[[int, int], None] | None,
) -> CheckReport:
    """Compare what the rows need with what is stored; see `Registry.check`."""
    if look_in is not None and not os.path.isdir(look_in):
        raise NotFound(f"the folder {look_in} does not exist")
    with store.lock.exclusive() if repair else store.lock.shared():
        damage = store.database.damage()
        problems = [
            Problem("database", store.location.database.name, line, is_error=True)
            for line in damage
        ]
        if damage:
            return CheckReport(False, read_data, 0, 0, problems)
        scan = _Scan(store, read_data)
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
        self.num_blobs = 0
        self.num_bytes = 0

    def run(self, on_progress: Callable[[int, int], None] | None) -> list[Problem]:
        problems: list[Problem] = []
        shards = sorted({*_SHARDS, *self._store.blobs.shards()} - set(_PRIVATE))
        for done, shard in enumerate(shards, 1):
            problems += self._shard(shard)
            if on_progress is not None:
                on_progress(done, len(shards))
        location = self._store.location
        strays = [*self._store.blobs.strays(), *_links(location.runs), *_links(location.cache)]
        problems += [self._note("foreign", path, "is not ours") for path in strays]
        problems += [
            self._note("temporary", file.path, "was left by an interrupted command")
            for file in self._store.blobs.files("tmp")
            if time.time() - file.modified > DEFAULT_GRACE
        ]
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
            elif is_sha256(file.path.name.lower()) and file.is_plain:
                yield self._note("misnamed", file.path, "is not in the folder of its name")
            else:
                yield self._note("foreign", file.path, "is not ours")
        for sha256, uses in needed.items():
            yield self._error("missing", self._store.blobs.path(sha256), uses, "is missing")

    def _blob(self, file: StoredFile, uses: list[Use]) -> Iterator[Problem]:
        self.num_blobs += 1
        self.num_bytes += file.size
        if uses and file.size != uses[0].bytes:
            what = f"has {file.size:,} bytes instead of {uses[0].bytes:,}"
            yield self._error("truncated", file.path, uses, what)
        elif self._read_data and _sha256_of(self._store.blobs.folder, file.path) != file.path.name:
            yield self._error("damaged", file.path, uses, "does not hold the bytes of its name")
        elif not uses:
            yield self._note("orphan", file.path, "is needed by nothing; gc will remove it")

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
    """Mends what can be mended without losing a byte; damaged files are set aside, not deleted."""

    def __init__(self, store: Store, look_in: Path | None) -> None:
        self._store = store
        self._look_in = look_in

    def run(self, problems: list[Problem]) -> list[Problem]:
        mended = [self._mend(problem) for problem in problems]
        self._fetch_lost([problem for problem in mended if self._is_lost(problem)])
        return [
            replace(problem, repaired=True)
            if problem.sha256 and problem.is_error and self._is_whole(problem.sha256)
            else problem
            for problem in mended
        ]

    def _mend(self, problem: Problem) -> Problem:
        path = self._store.location.database.parent / problem.path
        if problem.kind in ("truncated", "damaged"):
            self._set_aside(path)
            return replace(problem, repaired=not problem.concepts)
        if problem.kind == "misnamed":
            self._move(path, self._store.blobs.path(_sha256_of(self._store.blobs.folder, path)))
            return replace(problem, repaired=True)
        if problem.kind == "temporary":
            remove_file(self._store.blobs.folder, path)
            return replace(problem, repaired=True)
        return problem

    def _set_aside(self, path: Path) -> None:
        damaged = self._store.blobs.damaged
        number = len(self._store.blobs.files(damaged.name)) + 1
        self._move(path, damaged / f"{path.name}.{number}")

    def _move(self, path: Path, place: Path) -> None:
        """Move a whole file to another place in the store."""
        make_folder(self._store.blobs.folder, place.parent)
        move_file(self._store.blobs.folder, path, place)

    def _is_lost(self, problem: Problem) -> bool:
        return problem.is_error and problem.sha256 is not None and not problem.repaired

    def _is_whole(self, sha256: str) -> bool:
        path = self._store.blobs.path(sha256)
        is_there = is_file(self._store.blobs.folder, path)
        return is_there and _sha256_of(self._store.blobs.folder, path) == sha256

    def _fetch_lost(self, problems: list[Problem]) -> None:
        """Copy lost blobs back from any files in `look_in` that have their bytes."""
        if self._look_in is None or not problems:
            return
        lost = {use.sha256: use.bytes for p in problems for use in self._store.uses(p.sha256 or "")}
        with self._store.blobs.stage() as staging:
            for folder, _, names in os.walk(self._look_in):
                for path in (Path(folder, name) for name in names):
                    if path.is_file() and path.stat().st_size in lost.values():
                        with path.open("rb") as file:
                            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                        if lost.pop(sha256, None) is not None:
                            staging.write(path.read_bytes())
            staging.publish()


def _stale_search(store: Store, repair: bool) -> list[Problem]:
    """Concepts whose search text is not what their rows say; with `repair` it is made anew."""
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
    store: Store, *, grace: float, dry_run: bool, checkpoints: bool, cache_size: int
) -> GcReport:
    """Delete the blobs that no row needs; see `Registry.gc`."""
    with store.lock.exclusive():
        if damage := store.database.damage():
            raise RegistryCorrupt(
                f"{store.location.database} is damaged ({damage[0]}): nothing was removed",
                hint="restore it from a backup",
            )
        oldest_spared = time.time() - grace if grace else math.inf  # clocks may be set back
        blobs, runs, cache = store.blobs.folder, store.location.runs, store.location.cache
        removed = num_bytes = kept_young = temporary = cached = 0
        for shard in _SHARDS:
            needed = {use.sha256 for use in store.uses(shard)}
            for file in store.blobs.files(shard):
                if not file.is_blob or file.path.name in needed:
                    continue
                if file.modified > oldest_spared:
                    kept_young += 1
                    continue
                _delete(blobs, file, dry_run)
                removed += 1
                num_bytes += file.size
        left = leftovers(store, with_checkpoints=checkpoints)
        for root, file in (
            *((blobs, file) for file in store.blobs.files("tmp") if file.is_plain),
            *((runs, file) for file in left),
        ):
            if file.modified <= oldest_spared:
                _delete(root, file, dry_run)
                temporary += 1
                num_bytes += file.size
                if root == runs:
                    remove_folder(runs, file.path.parent)
        for file in _beyond(cache, cache_size):
            if file.modified <= oldest_spared:
                _delete(cache, file, dry_run)
                cached += 1
                num_bytes += file.size
        return GcReport(removed, num_bytes, temporary, cached, kept_young, dry_run)


def _beyond(cache: Path, size: int) -> list[StoredFile]:
    """The files of the cache, oldest first, without which it would be within a size in bytes."""
    found = sorted(cached_files(cache), key=lambda file: file.modified, reverse=True)
    total, leaving = 0, list[StoredFile]()
    for file in found:
        total += file.size
        if total > size:
            leaving.append(file)
    return leaving[::-1]


def _delete(root: Path, file: StoredFile, dry_run: bool) -> None:
    if dry_run:
        return
    try:
        with suppress(FileNotFoundError):
            remove_file(root, file.path)
    except OSError as error:
        raise StorageError(f"cannot delete {file.path}: {error.strerror}") from error


def _sha256_of(folder: Path, path: Path) -> str:
    """Of a file below a folder."""
    try:
        with open_file(folder, path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error

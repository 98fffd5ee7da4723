"""Files of other tools, stored as they came: each becomes a concept with one version.

What made such a version is a run of the method `import`, whose configuration says what the files
are. Files that are stored already, or whose tensors are, become nothing.
"""

import hashlib
import json
import os
import secrets
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from sqlmodel import Session

from . import images
from .blobs import CHUNK, Staging
from .clock import now
from .edits import record_event
from .errors import AlreadyExists, ConceptryError, InvalidInput, InvalidWeights, NotFound
from .files import open_given
from .names import MAX_NAME, check_category, check_name, check_text, plain_file_name, plain_text
from .queries import names, search_text, to_json
from .records import IMPORT, ORIGINAL, PREVIEW
from .store import Store
from .tables import Artifact, Concept, Run, Tag, Version
from .tensors import Header, check_weights

_SYNCED_EACH = 16
"""Files that are synced one by one; more of them, together with all that the disk waits for."""
_NUM_THREADS = min(4, os.cpu_count() or 1)
"""More of them wait for one another's turn in Python, and take twice as long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """What a concept is to be made of: files with their headers, and a picture.

    `config` says what they are. A `name` that is taken gets a number, unless it `is_given`.
    """

    name: str
    is_given: bool = False
    category: str
    tags: Sequence[str] = ()
    notes: str = ""
    base: str
    config: Mapping[str, object]
    files: Sequence[tuple[Path, Header]]
    preview: Path | None = None


@dataclass(frozen=True, slots=True)
class HashedFile:
    """A file, with the SHA-256 of all of it, and of its tensors alone.

    Of one whose tensors are known the former is empty.
    """

    name: str
    bytes: int
    sha256: str
    of_tensors: str


@dataclass(frozen=True, slots=True)
class TakenIn:
    """A concept that was made, or, if `is_new` is false, the one that has the weights already."""

    concept: str
    files: list[HashedFile]
    is_new: bool = True


@dataclass(frozen=True, slots=True)
class _Received:
    original: Original
    files: list[HashedFile]
    preview: HashedFile | None = None


@dataclass(slots=True)
class _Known:
    """The versions that have some files, by the hash of a file, and by that of its tensors.

    Of tensors only those that were hashed here count: what a bundle says proves nothing.
    """

    versions: dict[str, set[int]] = field(default_factory=dict)
    concepts: dict[int, str] = field(default_factory=dict)
    num_files: Counter[int] = field(default_factory=Counter)

    @classmethod
    def of(cls, store: Store) -> "_Known":
        found = cls()
        for row in store.database.rows(_KNOWN_SQL):
            found.concepts[row["version"]] = row["concept"]
            found.num_files[row["version"]] += 1
            found.versions.setdefault(row["sha256"], set()).add(row["version"])
        for row in store.database.rows(_DESCRIBED_SQL):
            for each in hashes_of_tensors(json.loads(row["config"])).values():
                found.versions.setdefault(each, set()).add(row["version"])
        return found

    def holder(self, files: Sequence[HashedFile]) -> str | None:
        """The concept that has some files, and no other beside them."""
        return self._holder([{each.sha256, each.of_tensors} for each in files])

    def has_alone(self, of_tensors: str) -> bool:
        """Whether a concept has a file with such tensors, and no other."""
        return self._holder([{of_tensors}]) is not None

    def _holder(self, files: Sequence[set[str]]) -> str | None:
        found = [
            set[int]().union(*(self.versions.get(each, ()) for each in hashes)) for hashes in files
        ]
        whole = [each for each in set.intersection(*found) if self.num_files[each] == len(files)]
        return self.concepts[min(whole)] if whole else None

    def add(self, concept: str, files: Sequence[HashedFile]) -> None:
        version = max(self.concepts, default=0) + 1
        self.concepts[version], self.num_files[version] = concept, len(files)
        for each in files:
            for known in (each.sha256, each.of_tensors):
                self.versions.setdefault(known, set()).add(version)


_KNOWN_SQL = """
    SELECT sha256, version.id AS version, concept.name AS concept
    FROM artifact JOIN version ON version.id = version_id
        JOIN concept ON concept.id = version.concept_id
    WHERE artifact.kind = 'original'"""
_DESCRIBED_SQL = """
    SELECT config, version.id AS version
    FROM run JOIN version ON version.run_id = run.id
    WHERE method = 'import' AND json_valid(config) AND uid IN (
        SELECT json_extract(detail, '$.run') FROM event
        WHERE action = 'import' AND json_valid(detail))"""


def hashes_of_tensors(config: object) -> dict[str, str]:
    """The hash of each file's tensors, by the file's hash, in the configuration of an import."""
    found = config.get("hashes") if isinstance(config, dict) else None
    pairs = found.items() if isinstance(found, dict) else ()
    return {name: each for name, each in pairs if isinstance(each, str)}


def take_in(
    store: Store, originals: Sequence[Original], *, on_progress: Callable[[], None] = lambda: None
) -> list[TakenIn | ConceptryError]:
    """Make concepts of files: each of them, or for each that cannot be one the reason.

    `on_progress` is called once for each of them.
    """
    with store.receive(many=len(originals) > _SYNCED_EACH) as staging:
        known = _Known.of(store)

        def received(original: Original) -> _Received | ConceptryError:
            try:
                return _receive(original, staging, known)
            except (InvalidInput, NotFound) as error:
                return error
            finally:
                on_progress()

        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            found = list(pool.map(received, originals))
        outcomes: list[TakenIn | ConceptryError] = []
        new: list[_Received] = []
        taken = set(names(store.database))
        for each in found:
            outcome = _outcome(each, known, taken)
            outcomes.append(outcome)
            if isinstance(outcome, TakenIn) and outcome.is_new:
                assert isinstance(each, _Received)
                new.append(each)
                taken.add(outcome.concept)
                known.add(outcome.concept, each.files)
        _publish(staging, new)
        made = [each.concept for each in outcomes if isinstance(each, TakenIn) and each.is_new]
        if new:
            with store.database.write() as session:
                if clash := sorted({*made} & {*names(store.database)}):
                    raise AlreadyExists(f'"{clash[0]}" was taken meanwhile', hint="try it again")
                _insert(session, list(zip(made, new, strict=True)))
    return outcomes


def _outcome(
    found: _Received | ConceptryError, known: _Known, taken: set[str]
) -> TakenIn | ConceptryError:
    if isinstance(found, ConceptryError):
        return found
    if holder := known.holder(found.files):
        return TakenIn(holder, found.files, is_new=False)
    name = found.original.name
    if name in taken and found.original.is_given:
        return AlreadyExists(f'"{name}" is taken', hint=f"concept show {name}")
    return TakenIn(_free_name(name, taken), found.files)


def _free_name(name: str, taken: set[str]) -> str:
    """The name, or if it is taken, with the first number from 2 on that makes it free."""
    free, number = name, 1
    while free in taken:
        number += 1
        ending = f"-{number}"
        free = name[: MAX_NAME - len(ending)] + ending
    return free


# --- files ----------------------------------------------------------------------------------------


def _receive(original: Original, staging: Staging, known: _Known) -> _Received:
    """Hash the files, and unless they are known stage and check them."""
    check_name(original.name)
    check_category(original.category)
    check_text(original.notes, "notes")
    alone = known if len(original.files) == 1 else _Known()  # of several, all or none is needed
    files = [_receive_file(path, header, staging, alone) for path, header in original.files]
    if known.holder(files):
        return _Received(original, files)
    preview = _receive_preview(original.preview, staging) if original.preview else None
    return _Received(original, files, preview)


def _receive_file(path: Path, header: Header, staging: Staging, known: _Known) -> HashedFile:
    try:
        with open_given(path) as file:
            before = os.fstat(file.fileno())
            of_tensors = _hash_of_tensors(file, header)
            name, size = plain_file_name(path.name), before.st_size
            if known.has_alone(of_tensors):
                return HashedFile(name, size, "", of_tensors)
            file.seek(0)
            sha256 = staging.write(iter(lambda: file.read(CHUNK), b""))
            after = os.fstat(file.fileno())
    except FileNotFoundError:
        raise NotFound(f"{path} is gone") from None
    except OSError as error:
        raise InvalidWeights(f"{path} cannot be read: {error.strerror}") from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise InvalidWeights(f"{path} was changed while it was read", hint="try it again")
    check_weights(staging.path(sha256), header.tensors, name=path.name)
    return HashedFile(name, size, sha256, of_tensors)


def _hash_of_tensors(file: BinaryIO, header: Header) -> str:
    """SHA-256 of what follows a file's header."""
    digest = hashlib.sha256()
    file.seek(header.start)
    while chunk := file.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _receive_preview(path: Path, staging: Staging) -> HashedFile | None:
    """A picture; None for what is none."""
    try:
        data = images.read_file(path)
        images.check_preview(data, path.name)
    except ConceptryError:
        return None
    sha256 = staging.write(data)
    return HashedFile(plain_file_name(path.name), len(data), sha256, "")


def _publish(staging: Staging, new: Sequence[_Received]) -> None:
    """Publish what the new concepts need, and nothing else that was staged."""
    needed = {file.sha256 for each in new for file in each.files}
    needed |= {each.preview.sha256 for each in new if each.preview}
    for sha256 in staging.staged() - needed:
        staging.discard(sha256)
    staging.publish()


# --- rows -----------------------------------------------------------------------------------------


def _insert(session: Session, new: Sequence[tuple[str, _Received]]) -> None:
    """Insert concepts with a run, a version and files, a table at a time."""
    moment = now()
    concepts = [_concept(name, each.original, moment) for name, each in new]
    session.add_all(concepts)
    session.flush()
    runs = [
        _run(concept.id, each, moment) for concept, (_, each) in zip(concepts, new, strict=True)
    ]
    session.add_all(runs)
    session.flush()
    versions = [
        Version(concept_id=run.concept_id, number=1, run_id=run.id, created=moment) for run in runs
    ]
    session.add_all(versions)
    session.flush()
    for concept, run, version, (_, each) in zip(concepts, runs, versions, new, strict=True):
        tags = sorted(set(each.original.tags))
        session.add_all(Tag(concept_id=concept.id, tag=tag) for tag in tags)
        kinds = [(file, ORIGINAL) for file in each.files]
        kinds += [(each.preview, PREVIEW)] if each.preview else []
        session.add_all(_artifact(version.id, file, kind, moment) for file, kind in kinds)
        named = [file.name for file in each.files]
        record_event(session, concept, IMPORT, files=named, number=version.number, run=run.uid)


def _concept(name: str, original: Original, moment: str) -> Concept:
    notes, category = check_text(original.notes, "notes"), check_category(original.category)
    return Concept(
        name=name,
        category=category,
        notes=notes,
        created=moment,
        updated=moment,
        search=search_text(name, category, notes, sorted(set(original.tags)), []),
    )


def _run(concept_id: int, received: _Received, moment: str) -> Run:
    hashes = {file.sha256: file.of_tensors for file in received.files}
    return Run(
        uid=secrets.token_hex(6),
        concept_id=concept_id,
        method=IMPORT,
        config=to_json({**received.original.config, "hashes": hashes}),
        base=received.original.base,
        base_sha256="",
        seed=0,
        packages="{}",
        host=plain_text(socket.gethostname()),
        status="done",
        started=moment,
        finished=moment,
    )


def _artifact(version_id: int, file: HashedFile, kind: str, moment: str) -> Artifact:
    return Artifact(
        version_id=version_id,
        name=file.name,
        kind=kind,
        sha256=file.sha256,
        bytes=file.bytes,
        created=moment,
    )

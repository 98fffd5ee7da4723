"""What every operation works on: the database, the blobs and the lock of one registry.

A database may be replaced by another one, or by an older copy, and then does not know which of the
stored files are needed. So whoever stores files writes the database's latest event beside them, as
a stamp. As history only grows, a database without that event is another one, or an older state.
"""

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .blobs import BlobStore, Staging
from .database import Database
from .errors import ConceptryError
from .location import Location
from .locks import RegistryLock
from .names import printable


class Use(NamedTuple):
    """A row that needs a blob. `what` says which, for people."""

    sha256: str
    bytes: int
    concept: str
    what: str


@dataclass(frozen=True, slots=True)
class Store:
    """One open registry, in parts."""

    location: Location
    database: Database
    blobs: BlobStore
    lock: RegistryLock
    claimed: dict[int, int] = field(default_factory=dict)
    """The queued training that this process has taken, by concept."""

    @contextlib.contextmanager
    def receive(self, *, many: bool = False) -> Iterator[Staging]:
        """Add blobs, perhaps very `many`: write them to the staging, publish it, commit the rows.

        Whatever goes wrong before the commit, what came in goes out again.
        """
        staging = self.blobs.stage(many=many)
        try:
            with self.lock.shared(), staging:
                yield staging
                self.stamp()
        except BaseException:
            self._discard(staging.published)
            raise

    def uses(self, prefix: str = "") -> list[Use]:
        """The rows that need blobs whose hashes begin with `prefix`, ordered by hash."""
        rows = self.database.rows(_USES_SQL, low=prefix, high=prefix + "g")
        return [Use(**row) for row in rows]

    def stamp(self, *, over: bool = False) -> None:
        """Write the latest event beside the stored files; with `over`, replace another database's.

        If the disk refuses, the former stamp stays valid.
        """
        latest = self.database.rows(_LATEST_SQL)
        if latest and (over or self.stranger() is None):
            data = json.dumps(dict(latest[0]))
            with contextlib.suppress(ConceptryError, OSError):
                self.blobs.write_stamp(data.encode() + b"\n")

    def stranger(self) -> str | None:
        """The last event of the other database, or later state of this one, that stored files here.

        None if this database has the event, or there is no stamp.
        """
        try:
            data = self.blobs.read_stamp()
            if data is None or not data.strip(b"\0"):  # a crash may leave it empty
                return None
            stamp = json.loads(data)
            event = {name: stamp[name] for name in _EVENT}
            if self.database.rows(_KNOWN_SQL, **event):
                return None
            return printable(f"{event['action']} {event['concept']} at {event['at']}")[:200]
        except (*_UNSOUND, sqlite3.Error):
            return "something that cannot be read"

    def _discard(self, hashes: Sequence[str]) -> None:
        """Remove new blobs that no row needs; `gc` does it if another process holds the lock."""
        if not hashes:
            return
        with contextlib.suppress(ConceptryError, OSError), self.lock.exclusive(wait=False):
            for sha256 in hashes:
                if not self.uses(sha256):
                    self.blobs.remove(sha256)


_UNSOUND = (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError)
_EVENT = ("id", "at", "concept", "action")
_LATEST_SQL = "SELECT id, at, concept, action FROM event ORDER BY id DESC LIMIT 1"
_KNOWN_SQL = """
    SELECT 1 FROM event
    WHERE id = :id AND at = :at AND concept = :concept AND action = :action"""
_USES_SQL = """
    SELECT sha256, bytes, concept.name AS concept, 'photo ' || filename AS what
    FROM image JOIN concept ON concept.id = concept_id
    WHERE sha256 >= :low AND sha256 < :high
    UNION ALL
    SELECT mask, coalesce(mask_bytes, 0), concept.name, 'mask of ' || filename
    FROM image JOIN concept ON concept.id = concept_id
    WHERE mask >= :low AND mask < :high
    UNION ALL
    SELECT sha256, bytes, concept.name, 'weights ' || artifact.name
    FROM artifact
        LEFT JOIN version ON version.id = version_id
        LEFT JOIN run ON run.id = artifact.run_id
        JOIN concept ON concept.id = coalesce(version.concept_id, run.concept_id)
    WHERE sha256 >= :low AND sha256 < :high
    ORDER BY sha256"""

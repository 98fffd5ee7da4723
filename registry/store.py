"""What every operation works on: the database, the blobs and the lock of one registry."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .blobs import BlobStore, Staging
from .database import Database
from .errors import ConceptryError
from .location import Location
from .locks import RegistryLock


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

    @contextlib.contextmanager
    def receive(self) -> Iterator[Staging]:
        """Take in blobs: write them to the staging, publish it, then commit the rows.

        Whatever goes wrong before the commit, what came in goes out again.
        """
        staging = self.blobs.stage()
        try:
            with self.lock.shared(), staging:
                yield staging
        except BaseException:
            self._discard(staging.published)
            raise

    def uses(self, prefix: str = "") -> list[Use]:
        """The rows that need blobs whose hashes begin with `prefix`, ordered by hash."""
        return [Use(*row) for row in self.database.rows(_USES_SQL, low=prefix, high=prefix + "g")]

    def _discard(self, hashes: Sequence[str]) -> None:
        """Remove new blobs that no row came to need; `gc` will do it if others are at work."""
        if not hashes:
            return
        with contextlib.suppress(ConceptryError, OSError), self.lock.exclusive(wait=False):
            for sha256 in hashes:
                if not self.uses(sha256):
                    self.blobs.remove(sha256)


_USES_SQL = """
    SELECT sha256, bytes, concept.name, 'photo ' || filename
    FROM image JOIN concept ON concept.id = concept_id
    WHERE sha256 >= :low AND sha256 < :high
    UNION ALL
    SELECT mask, mask_bytes, concept.name, 'mask of ' || filename
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

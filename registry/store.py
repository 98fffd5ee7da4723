"""What every operation works on: the database, the blobs and the lock of one registry."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import bindparam, literal_column, union_all
from sqlmodel import col, func

from .blobs import BlobStore, Staging
from .database import Database
from .errors import ConceptryError
from .location import Location
from .locks import RegistryLock
from .queries import compiled, pick
from .tables import Artifact, Concept, Image, Run, Version


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


def _within(column: Any) -> tuple[Any, Any]:
    return col(column) >= bindparam("low"), col(column) < bindparam("high")


_USES_SQL = compiled(
    union_all(
        pick(
            Image.sha256,
            Image.bytes,
            Concept.name,
            literal_column("'photo '").concat(Image.filename),
        )
        .join(Concept, col(Concept.id) == col(Image.concept_id))
        .where(*_within(Image.sha256)),
        pick(
            Image.mask,
            Image.mask_bytes,
            Concept.name,
            literal_column("'mask of '").concat(Image.filename),
        )
        .join(Concept, col(Concept.id) == col(Image.concept_id))
        .where(*_within(Image.mask)),
        pick(
            Artifact.sha256,
            Artifact.bytes,
            Concept.name,
            literal_column("'weights '").concat(Artifact.name),
        )
        .outerjoin(Version, col(Version.id) == col(Artifact.version_id))
        .outerjoin(Run, col(Run.id) == col(Artifact.run_id))
        .join(
            Concept,
            col(Concept.id) == func.coalesce(col(Version.concept_id), col(Run.concept_id)),
        )
        .where(*_within(Artifact.sha256)),
    ).order_by("sha256")
)

"""Where a registry lives: `concepts.db` and, beside it, `concepts.blobs/`."""

import os
from dataclasses import dataclass
from pathlib import Path

from .errors import InvalidInput

DATABASE_NAME = "concepts.db"
ENVIRONMENT_VARIABLE = "CONCEPT_REGISTRY"


@dataclass(frozen=True, slots=True)
class Location:
    """The paths of one registry. Nothing inside it is absolute, so both can be moved together."""

    database: Path

    @property
    def blobs(self) -> Path:
        """The folder of stored files: `concepts.blobs` for `concepts.db`.

        A database that is not called `.db` never shares the folder of one that is.
        """
        return self._beside("blobs")

    @property
    def runs(self) -> Path:
        """The folder of trainings under way: `concepts.runs` for `concepts.db`."""
        return self._beside("runs")

    @property
    def cache(self) -> Path:
        """The folder of what can be made again: `concepts.cache` for `concepts.db`."""
        return self._beside("cache")

    def _beside(self, what: str) -> Path:
        if self.database.suffix == ".db":
            return self.database.with_suffix(f".{what}")
        return self.database.with_name(f"{self.database.name}-{what}")


def locate(path: str | os.PathLike[str] | None = None) -> Location:
    """Find the registry: `path`, `$CONCEPT_REGISTRY`, `./concepts.db`, the user's data folder.

    A folder stands for the `concepts.db` in it. The database need not exist yet. Where it is a
    link, the registry is where that leads to, blobs and all.
    """
    if path is None:
        path = os.environ.get(ENVIRONMENT_VARIABLE) or None
    if path is None:
        path = Path(DATABASE_NAME) if Path(DATABASE_NAME).exists() else _user_database()
    means_folder = os.fspath(path).endswith(("/", os.sep))
    path = Path(os.path.expanduser(plain_path(path)))
    if means_folder or os.path.isdir(path):
        path = path / DATABASE_NAME
    return Location(Path(os.path.realpath(path)) if os.path.islink(path) else path.absolute())


def plain_path(path: str | os.PathLike[str]) -> Path:
    """A path that a system call takes; raises `InvalidInput` for one with a NUL in it."""
    if "\0" in os.fspath(path):
        raise InvalidInput(f"{os.fspath(path)!r} is not a path")
    return Path(path)


def _user_database() -> Path:
    import platformdirs

    return Path(platformdirs.user_data_dir("conceptry", appauthor=False)) / DATABASE_NAME

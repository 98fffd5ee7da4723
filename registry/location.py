"""Where a registry lives: `concepts.db` and, beside it, `concepts.blobs/`."""

import os
from dataclasses import dataclass
from pathlib import Path

from .errors import AlreadyExists, InvalidInput, quoted

DATABASE_NAME = "concepts.db"
ENVIRONMENT_VARIABLE = "CONCEPT_REGISTRY"
FORMER = ".before-upgrade-"
"""After the name of a database, for a copy of it from before its schema was changed."""
_LOGS = ("-wal", "-shm", "-journal")


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

    def check_outside(self, path: Path) -> None:
        """Whether something may be written to a path; raises `InvalidInput` where it may not.

        Not to the database, nor into a folder of this registry, nor in place of any database.
        """
        own = [self.blobs, self.runs, self.cache, self.database]
        own += [self.database.with_name(self.database.name + suffix) for suffix in _LOGS]
        real = Path(os.path.realpath(path))
        named = Path(os.path.realpath(path.absolute().parent), path.name)  # it may be a link itself
        former = os.fspath(self.database) + FORMER
        is_former = any(os.fspath(path).startswith(former) for path in (real, named))
        parts = {real, named, *real.parents, *named.parents}
        if is_former or any(_is_same(part, each) for part in parts for each in own):
            raise InvalidInput(
                f"{path} belongs to the registry: nothing else is written there",
                hint="name another place",
            )
        if _is_database(real):
            raise InvalidInput(f"{path} is a database: nothing replaces it", hint="name another")

    def check_new(self, path: Path, *, overwrite: bool, command: str) -> None:
        """Whether a file or folder may be written to a path; `command` is that which would.

        Raises `AlreadyExists`, unless `overwrite`, and `InvalidInput`.
        """
        if os.path.lexists(path) and not overwrite:
            raise AlreadyExists(f"{path} exists", hint=f"{command} --force")
        self.check_outside(path)
        if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
            raise InvalidInput(
                f"{path} is a device, a pipe or a socket: nothing takes its place",
                hint="name a file",
            )
        if not os.path.isdir(path.absolute().parent):
            raise InvalidInput(
                f"cannot write {path}: there is no such folder",
                hint=f"mkdir -p {quoted(path.parent)}",
            )

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


def _is_same(path: Path, other: Path) -> bool:
    try:
        return path == other or path.samefile(other)
    except OSError:
        return False


def _is_database(path: Path) -> bool:
    try:
        if os.path.isfile(path):
            with path.open("rb") as file:
                return file.read(16) == b"SQLite format 3\0"
    except OSError:
        pass  # whoever writes there says why not
    return False


def _user_database() -> Path:
    import platformdirs

    return Path(platformdirs.user_data_dir("conceptry", appauthor=False)) / DATABASE_NAME

"""The connection to `concepts.db`: how it is opened, read, written and upgraded.

Reads run on one plain `sqlite3` connection, because building objects through the ORM costs twenty
times the query. Writes are SQLModel sessions, each one transaction that takes the write lock first;
the ORM is loaded for the first of them, as that takes longer than most reads.
"""

import contextlib
import os
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from . import migrations
from .errors import (
    ConceptryError,
    InvalidInput,
    RegistryBusy,
    RegistryCorrupt,
    RegistryTooNew,
    StorageError,
)
from .files import permissions, replacing
from .location import FORMER
from .names import RUN_ID_LENGTHS, findable

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine
    from sqlmodel import Session


class Database:
    """One open `concepts.db`. Not for use from several threads at once."""

    def __init__(self, path: Path, *, timeout: float) -> None:
        """Connect; `timeout` is how long a write waits for another process, in seconds."""
        self.path = path
        self._timeout = timeout
        self._no_room: BaseException | None = None
        for suffix in ("-wal", "-shm", "-journal"):
            if os.path.islink(beside := path.with_name(path.name + suffix)):
                raise RegistryCorrupt(
                    f"{beside} is a link: nothing is written to what it leads to",
                    hint="put it away, and look where it comes from",
                )
        self._mode = "mode=rwc" if _can_be_written(path) else _read_only(path)
        with translated(path):
            self.reader = self._opened()
            self.reader.row_factory = sqlite3.Row  # by the names of columns

    def _opened(self) -> sqlite3.Connection:
        """A connection that can read; also where there is no room for the log's shared memory."""
        try:
            return self._connect()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in _NO_ROOM:
                raise
            # Whoever is alone needs no memory to share. Who waits for it may wait: it is brief.
            self._no_room = explained(error, self.path)
            return self._connect("PRAGMA locking_mode = EXCLUSIVE")

    def _connect(self, first: str = "") -> sqlite3.Connection:
        uri = f"{self.path.as_uri()}?{self._mode}"
        connection = sqlite3.connect(uri, self._timeout, check_same_thread=False, uri=True)
        try:
            connection.execute(first)
            _configure(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_room(self) -> None:
        if self._no_room is not None:
            raise self._no_room

    def _check_names(self) -> None:
        """Raise `StorageError` where the file has two names: each would have a log of its own."""
        if os.path.exists(self.path) and self.path.stat().st_nlink > 1:
            raise StorageError(
                f"{self.path} is there under another name too (a hard link): what is written under "
                "one is lost under the other",
                hint=f"find the other with find / -samefile {self.path}, and remove it",
            )

    @cached_property
    def _engine(self) -> "Engine":
        from sqlalchemy import URL, event
        from sqlmodel import create_engine

        url = URL.create("sqlite", database=str(self.path))
        engine = create_engine(url, creator=self._connect)
        event.listen(engine, "begin", _begin)
        return engine

    def close(self) -> None:
        """Close every connection."""
        self.reader.close()
        if "_engine" in vars(self):
            self._engine.dispose()

    def rows(self, sql: str, **parameters: object) -> list[sqlite3.Row]:
        """Run a read and return its rows; values are `:name` in `sql`."""
        try:
            return self.reader.execute(sql, parameters).fetchall()
        except UnicodeEncodeError:
            texts = {key: findable(v) for key, v in parameters.items() if isinstance(v, str)}
            return self.rows(sql, **parameters | texts)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            if str(error).startswith("no such "):  # a table or column that we have made
                raise _corrupt(self.path, error) from error
            raise explained(error, self.path) from error

    def stream(self, sql: str) -> Iterator[sqlite3.Row]:
        """Run a read whose rows may be too many to hold."""
        with translated(self.path):
            yield from self.reader.execute(sql)

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let several reads see one and the same state."""
        self.rows("BEGIN")
        try:
            yield
        finally:
            if self.reader.in_transaction:
                self.rows("COMMIT")

    @contextlib.contextmanager
    def write(self) -> "Iterator[Session]":
        """One transaction, committed at the end or rolled back by any exception.

        Raises `RegistryBusy` if another process keeps writing for longer than the time-out, and
        `StorageError` if the disk refuses.
        """
        from sqlmodel import Session

        self._check_room()
        self._check_names()
        with translated(self.path):
            self._use_write_ahead_log()
        with (
            _translated_in_session(self.path),
            Session(self._engine, expire_on_commit=False) as session,
            session.begin(),
        ):
            session.connection()  # take the write lock before anything is read
            yield session

    @contextlib.contextmanager
    def read(self) -> "Iterator[Session]":
        """A session in which all is of one moment."""
        from sqlmodel import Session

        self._check_room()
        engine = self._engine.execution_options(reads_only=True)
        with _translated_in_session(self.path), Session(engine) as session, session.begin():
            yield session

    def is_blank(self) -> bool:
        """Whether there is no table at all: the file was just created."""
        return self.rows("SELECT count(*) FROM sqlite_master")[0][0] == 0

    def pending(self) -> bool:
        """Whether migrations have to run.

        Raises `RegistryTooNew` for a database that has been through unknown ones, and
        `RegistryCorrupt` for a SQLite file that is not a registry.
        """
        # Blankness is asked first, for another process may be creating it.
        if not (self.is_blank() or self._has_our_mark()):
            raise RegistryCorrupt(
                f"{self.path} is a SQLite database, but not a concept registry",
                hint="name another one with --registry",
            )
        with translated(self.path):
            done = migrations.applied(self.reader)
        known = {step.name for step in migrations.MIGRATIONS}
        unknown = [needs for name, needs in done if name not in known]
        if unknown:
            raise RegistryTooNew(
                f"{self.path} was written by a newer program; it needs conceptry {unknown[-1]}",
                hint=f'pip install --upgrade "conceptry>={unknown[-1]}"',
            )
        return len(done) < len(known)

    def _has_our_mark(self) -> bool:
        return self.rows("PRAGMA application_id")[0][0] == migrations.APPLICATION_ID

    def upgrade(self) -> None:
        """Bring the schema up to today's; a database with content is copied first.

        Hold the registry's exclusive lock.
        """
        with translated(self.path):
            self._use_write_ahead_log()
            if not self.is_blank():
                done = migrations.applied(self.reader)
                former = self.path.with_name(f"{self.path.name}{FORMER}{len(done)}")
                with replacing(former, self._mode_of_copies()) as unfinished:
                    self.copy_to(unfinished)
            migrations.upgrade(self.reader)

    def copy_to(self, path: Path) -> None:
        """Write a consistent copy of the database, whatever other processes do meanwhile."""
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, self._mode_of_copies()))
        with translated(path), contextlib.closing(sqlite3.connect(path)) as target:
            self.reader.backup(target)
            target.execute("PRAGMA journal_mode = DELETE")  # leave one self-contained file

    def _mode_of_copies(self) -> int:
        """Who may not read the database may not read a copy of it; its owner may write to it."""
        return permissions(self.path) | 0o600

    def _use_write_ahead_log(self) -> None:
        """Let readers go on while one writes; not yet so in a new database or a restored backup."""
        if self.rows("PRAGMA journal_mode")[0][0] != "wal":
            self.reader.execute("PRAGMA journal_mode = WAL")

    def damage(self) -> list[str]:
        """What SQLite's own checks say is wrong."""
        try:
            lines = [row[0] for row in self.reader.execute("PRAGMA integrity_check")]
            dangling = self.reader.execute("PRAGMA foreign_key_check").fetchall()
            found = [] if lines == ["ok"] else lines
            found += [f"row {row[1]} of table {row[0]} has no {row[2]}" for row in dangling]
            return found or [*self._unreadable(), *self._unfit()]
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            return [str(error)]

    def _unfit(self) -> list[str]:
        """Names that lead to files, and are none that this program gives."""
        found: list[str] = []
        for table, column, shortest, longest in _LEAD_TO_FILES:
            query = f"""
                SELECT count(*) FROM {table} WHERE {column} IS NOT NULL AND (
                    typeof({column}) != 'text' OR {column} GLOB '*[^0-9a-f]*'
                    OR length({column}) NOT BETWEEN {shortest} AND {longest}
                    OR length({column}) != length(CAST({column} AS BLOB))
                )"""  # noqa: S608
            # Text is as long as its bytes unless there is a NUL, where all else here stops.
            if count := self.reader.execute(query).fetchone()[0]:
                found.append(f"table {table}: {count} rows whose {column} is no name of a file")
        query = "SELECT count(*) FROM artifact WHERE (run_id IS NULL) = (version_id IS NULL)"
        if count := self.reader.execute(query).fetchone()[0]:
            found.append(f"table artifact: {count} rows that do not belong to one run or version")
        return found

    def _unreadable(self) -> list[str]:
        """Tables with text that cannot be read, or is not the JSON that it should be."""
        from sqlmodel import SQLModel

        from .tables import JSON_COLUMNS

        found: list[str] = []
        for table in SQLModel.metadata.sorted_tables:
            try:
                for _ in self.reader.execute(f"SELECT * FROM {table.name}"):  # noqa: S608
                    pass
            except (sqlite3.Error, UnicodeDecodeError) as error:
                found.append(f"table {table.name}: {error}")
        for table, column in JSON_COLUMNS:
            query = f"SELECT count(*) FROM {table} WHERE NOT json_valid({column})"  # noqa: S608
            if count := self.reader.execute(query).fetchone()[0]:
                found.append(f"table {table}: {count} rows whose {column} is not JSON")
        return found


def _can_be_written(path: Path) -> bool:
    """Whether a database can be, with the log beside it."""
    can_be = os.access(path, os.W_OK) or not path.exists()
    return can_be and os.access(path.parent, os.W_OK)


def _read_only(path: Path) -> str:
    """How to open what nobody can write: without a log or a lock, unless there is a log to read."""
    beside = [path.with_name(path.name + suffix) for suffix in ("-wal", "-journal")]
    has_log = any(log.exists() and log.stat().st_size for log in beside)
    return "mode=ro" if has_log else "mode=ro&immutable=1"


_OTHER_SCHEMA = re.compile("unsupported file format|(table|index) .* already exists")
"""What SQLite says of a database with other tables, or another header, than it should have."""
_NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
_LEAD_TO_FILES = (
    ("image", "sha256", 64, 64),
    ("image", "mask", 64, 64),
    ("artifact", "sha256", 64, 64),
    ("run", "uid", *RUN_ID_LENGTHS),
)
"""The (table, column, shortest, longest) of hex digits that become the names of files."""


def _configure(connection: sqlite3.Connection) -> None:
    connection.isolation_level = None  # BEGIN is ours, see _begin
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")


def _begin(connection: "Connection") -> None:
    only_reads = connection.get_execution_options().get("reads_only", False)
    connection.exec_driver_sql("BEGIN" if only_reads else "BEGIN IMMEDIATE")


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn SQLite's errors about `path` into ours; all others pass."""
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise explained(error, path) from error


@contextlib.contextmanager
def _translated_in_session(path: Path) -> Iterator[None]:
    """As `translated`, for what the ORM raises."""
    from sqlalchemy.exc import DBAPIError

    try:
        with translated(path):
            yield
    except DBAPIError as error:
        raise explained(error.orig, path) from error


def explained(error: BaseException | None, path: Path) -> BaseException:
    """Our error for one of SQLite's, or the error itself where it would be a bug of ours."""
    code = getattr(error, "sqlite_errorcode", None)
    is_text = isinstance(error, (sqlite3.OperationalError, UnicodeDecodeError))
    if (code is None and is_text) or _OTHER_SCHEMA.match(str(error)):
        return _corrupt(path, error)  # text that is not UTF-8, or a header that says no format
    for codes, make in _EXPLANATIONS:
        if code is not None and code & 0xFF in codes:
            return make(path, error)
    return error or RuntimeError(f"unknown database error at {path}")


def _busy(path: Path, _error: object) -> ConceptryError:
    return RegistryBusy(
        f"the registry {path} is busy: another process is writing", hint="try again"
    )


def _refused(path: Path, error: object) -> ConceptryError:
    return StorageError(
        f"cannot use {path}: {error}",
        hint="see that the disk has room and the folder can be written; nothing was changed",
    )


def _corrupt(path: Path, error: object) -> ConceptryError:
    return RegistryCorrupt(
        f"{path} is damaged: {error}", hint="restore it from a backup; nothing was changed"
    )


def _too_big(_path: Path, _error: object) -> ConceptryError:
    return InvalidInput("this is more text than a registry takes in one place")


_EXPLANATIONS: Sequence[tuple[tuple[int, ...], Callable[[Path, object], ConceptryError]]] = (
    ((sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED), _busy),
    ((sqlite3.SQLITE_TOOBIG,), _too_big),
    ((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB), _corrupt),
    (
        (
            sqlite3.SQLITE_FULL,
            sqlite3.SQLITE_IOERR,
            sqlite3.SQLITE_CANTOPEN,
            sqlite3.SQLITE_READONLY,
            sqlite3.SQLITE_PERM,
        ),
        _refused,
    ),
)

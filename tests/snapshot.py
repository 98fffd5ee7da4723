"""What a folder and a registry hold, to show that something changed nothing."""

import contextlib
import hashlib
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SQLITE_OWN = ("-wal", "-shm", "-journal")


def files_below(folder: Path) -> dict[str, str]:
    """Every path below `folder` with what it is; SQLite's own side files are left out."""
    return {
        path.relative_to(folder).as_posix(): _describe(path)
        for path in sorted(folder.rglob("*"))
        if not path.name.endswith(SQLITE_OWN)
    }


def rows_of(database: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table."""
    with connected(database) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return {
            table: sorted(connection.execute(f'SELECT * FROM "{table}"'), key=repr)
            for (table,) in sorted(tables.fetchall())
        }


@contextlib.contextmanager
def connected(database: Path) -> Iterator[sqlite3.Connection]:
    """A plain connection that is closed at the end."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        yield connection


def _describe(path: Path) -> str:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return f"link to {path.readlink()}"
    if not stat.S_ISREG(status.st_mode):
        return "folder" if path.is_dir() else "special"
    return f"{status.st_size} bytes {hashlib.sha256(path.read_bytes()).hexdigest()}"

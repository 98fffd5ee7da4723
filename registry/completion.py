"""Concept names for a shell's completion: quick, and silent whatever is wrong."""

import contextlib
import os
import sqlite3

from .location import locate


def concept_names(path: str | None, prefix: str) -> list[str]:
    """The names that begin with `prefix`, at most 200, from the registry that `path` leads to."""
    with contextlib.suppress(sqlite3.Error, OSError, ValueError):
        database = locate(path).database
        # Where no log is open, an immutable reader sees all and leaves no file behind.
        mode = "mode=ro" if os.path.exists(f"{database}-wal") else "immutable=1"
        connection = sqlite3.connect(f"{database.as_uri()}?{mode}", uri=True, timeout=0.2)
        with contextlib.closing(connection):
            query = "SELECT name FROM concept WHERE name >= ? AND name < ? ORDER BY name LIMIT 200"
            return [row[0] for row in connection.execute(query, (prefix, prefix + "\U0010ffff"))]
    return []

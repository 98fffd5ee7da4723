"""Concept names for a shell's completion: quick, and silent whatever is wrong."""

import contextlib
import sqlite3

from .location import locate


def concept_names(path: str | None, prefix: str) -> list[str]:
    """The names that begin with `prefix`, at most 200, from the registry that `path` leads to."""
    database = locate(path).database
    with contextlib.suppress(sqlite3.Error):
        connection = sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=0.2)
        with contextlib.closing(connection):
            query = "SELECT name FROM concept WHERE name >= ? AND name < ? ORDER BY name LIMIT 200"
            return [row[0] for row in connection.execute(query, (prefix, prefix + "\U0010ffff"))]
    return []

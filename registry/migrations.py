"""The schema's history: ordered functions that bring any past database up to today's.

To change the schema, append a function with `@migration(needs=...)`, change `tables.py` to match,
and freeze the old state as a plain SQL file under `tests/registry/schemas`. A migration that has
been released is never edited.
"""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .clock import now

APPLICATION_ID = 0x43707479
"""Marks a SQLite file as a concept registry ("Cpty")."""

MigrationFunction = Callable[[sqlite3.Connection], None]


@dataclass(frozen=True, slots=True)
class Migration:
    """A change of schema. `needs` is the first program version that understands the result."""

    name: str
    needs: str
    apply: MigrationFunction


MIGRATIONS: list[Migration] = []


def migration(*, needs: str) -> Callable[[MigrationFunction], MigrationFunction]:
    """Register a function as the next migration. It must not commit."""

    def register(function: MigrationFunction) -> MigrationFunction:
        MIGRATIONS.append(Migration(function.__name__, needs, function))
        return function

    return register


def applied(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    """The (name, needs) of the migrations that the database has been through, in order."""
    known = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'migration'"
    if connection.execute(known).fetchone() is None:
        return []
    return connection.execute("SELECT name, needs FROM migration ORDER BY position").fetchall()


def upgrade(connection: sqlite3.Connection, migrations: Sequence[Migration] | None = None) -> None:
    """Apply what is pending, each in one transaction with the record that it was applied.

    The connection must be in autocommit mode. A migration that raises leaves the database as it
    was before it.
    """
    done = {name for name, _ in applied(connection)}
    connection.execute("PRAGMA foreign_keys = OFF")  # a rebuilt table must not cascade
    try:
        for position, step in enumerate(MIGRATIONS if migrations is None else migrations, 1):
            if step.name not in done:
                _apply(connection, position, step)
    finally:
        connection.execute("PRAGMA foreign_keys = ON")


def _apply(connection: sqlite3.Connection, position: int, step: Migration) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        step.apply(connection)
        connection.execute(
            "INSERT INTO migration (name, position, needs, applied) VALUES (?, ?, ?, ?)",
            (step.name, position, step.needs, now()),
        )
        if broken := connection.execute("PRAGMA foreign_key_check").fetchone():
            raise sqlite3.IntegrityError(f"{step.name} leaves a dangling row in {broken[0]}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite has rolled back by itself where the disk was full
            connection.execute("ROLLBACK")
        raise


def run_script(connection: sqlite3.Connection, script: str) -> None:
    """Execute statements one by one; `sqlite3.executescript` would commit first."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""
    if statement.strip():
        raise ValueError(f"the last statement lacks its semicolon: {statement.strip()}")


@migration(needs="0.1.0")
def initial(connection: sqlite3.Connection) -> None:
    """The first schema."""
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    run_script(connection, _INITIAL)


_INITIAL = """
CREATE TABLE concept (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    name VARCHAR NOT NULL,
    category VARCHAR NOT NULL,
    notes VARCHAR NOT NULL,
    created VARCHAR NOT NULL,
    updated VARCHAR NOT NULL,
    search VARCHAR NOT NULL,
    UNIQUE (name)
);
CREATE INDEX ix_concept_category ON concept (category);
CREATE TABLE event (
    id INTEGER NOT NULL,
    at VARCHAR NOT NULL,
    concept_id INTEGER NOT NULL,
    concept VARCHAR NOT NULL,
    action VARCHAR NOT NULL,
    detail VARCHAR NOT NULL,
    PRIMARY KEY (id)
);
CREATE INDEX ix_event_concept ON event (concept);
CREATE INDEX ix_event_concept_id ON event (concept_id);
CREATE TABLE generation (
    id INTEGER NOT NULL,
    output_sha256 VARCHAR NOT NULL,
    prompt VARCHAR NOT NULL,
    seed INTEGER NOT NULL,
    base VARCHAR NOT NULL,
    base_sha256 VARCHAR NOT NULL,
    settings VARCHAR NOT NULL,
    created VARCHAR NOT NULL,
    PRIMARY KEY (id)
);
CREATE INDEX ix_generation_output_sha256 ON generation (output_sha256);
CREATE TABLE migration (
    name VARCHAR NOT NULL,
    position INTEGER NOT NULL,
    needs VARCHAR NOT NULL,
    applied VARCHAR NOT NULL,
    PRIMARY KEY (name)
);
CREATE TABLE image (
    id INTEGER NOT NULL,
    concept_id INTEGER NOT NULL,
    sha256 VARCHAR NOT NULL,
    bytes INTEGER NOT NULL,
    filename VARCHAR NOT NULL,
    format VARCHAR NOT NULL,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    caption VARCHAR,
    mask VARCHAR,
    mask_bytes INTEGER,
    phash VARCHAR NOT NULL,
    added VARCHAR NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (concept_id, sha256),
    FOREIGN KEY(concept_id) REFERENCES concept (id) ON DELETE CASCADE
);
CREATE INDEX ix_image_mask ON image (mask);
CREATE INDEX ix_image_sha256 ON image (sha256);
CREATE TABLE run (
    id INTEGER NOT NULL,
    uid VARCHAR NOT NULL,
    concept_id INTEGER NOT NULL,
    method VARCHAR NOT NULL,
    config VARCHAR NOT NULL,
    base VARCHAR NOT NULL,
    base_sha256 VARCHAR NOT NULL,
    seed INTEGER NOT NULL,
    packages VARCHAR NOT NULL,
    host VARCHAR NOT NULL,
    status VARCHAR NOT NULL,
    started VARCHAR NOT NULL,
    finished VARCHAR,
    error VARCHAR,
    PRIMARY KEY (id),
    UNIQUE (uid),
    FOREIGN KEY(concept_id) REFERENCES concept (id) ON DELETE CASCADE
);
CREATE INDEX ix_run_concept_id ON run (concept_id);
CREATE TABLE tag (
    concept_id INTEGER NOT NULL,
    tag VARCHAR NOT NULL,
    PRIMARY KEY (concept_id, tag),
    FOREIGN KEY(concept_id) REFERENCES concept (id) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX ix_tag_tag ON tag (tag);
CREATE TABLE metric (
    run_id INTEGER NOT NULL,
    stage VARCHAR NOT NULL,
    step INTEGER NOT NULL,
    name VARCHAR NOT NULL,
    value FLOAT NOT NULL,
    PRIMARY KEY (run_id, stage, step, name),
    FOREIGN KEY(run_id) REFERENCES run (id) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE TABLE run_image (
    run_id INTEGER NOT NULL,
    sha256 VARCHAR NOT NULL,
    PRIMARY KEY (run_id, sha256),
    FOREIGN KEY(run_id) REFERENCES run (id) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE TABLE version (
    id INTEGER NOT NULL,
    concept_id INTEGER NOT NULL,
    number INTEGER NOT NULL,
    run_id INTEGER,
    created VARCHAR NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (concept_id, number),
    FOREIGN KEY(concept_id) REFERENCES concept (id) ON DELETE CASCADE,
    FOREIGN KEY(run_id) REFERENCES run (id) ON DELETE SET NULL
);
CREATE INDEX ix_version_run_id ON version (run_id);
CREATE TABLE alias (
    concept_id INTEGER NOT NULL,
    alias VARCHAR NOT NULL,
    version_id INTEGER NOT NULL,
    PRIMARY KEY (concept_id, alias),
    FOREIGN KEY(concept_id) REFERENCES concept (id) ON DELETE CASCADE,
    FOREIGN KEY(version_id) REFERENCES version (id) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX ix_alias_version_id ON alias (version_id);
CREATE TABLE artifact (
    id INTEGER NOT NULL,
    run_id INTEGER,
    version_id INTEGER,
    name VARCHAR NOT NULL,
    kind VARCHAR NOT NULL,
    sha256 VARCHAR NOT NULL,
    bytes INTEGER NOT NULL,
    created VARCHAR NOT NULL,
    PRIMARY KEY (id),
    FOREIGN KEY(run_id) REFERENCES run (id) ON DELETE CASCADE,
    FOREIGN KEY(version_id) REFERENCES version (id) ON DELETE CASCADE
);
CREATE INDEX ix_artifact_run_id ON artifact (run_id);
CREATE INDEX ix_artifact_sha256 ON artifact (sha256);
CREATE INDEX ix_artifact_version_id ON artifact (version_id);
CREATE TABLE evaluation (
    id INTEGER NOT NULL,
    version_id INTEGER NOT NULL,
    suite VARCHAR NOT NULL,
    config VARCHAR NOT NULL,
    scores VARCHAR NOT NULL,
    created VARCHAR NOT NULL,
    PRIMARY KEY (id),
    FOREIGN KEY(version_id) REFERENCES version (id) ON DELETE CASCADE
);
CREATE INDEX ix_evaluation_version_id ON evaluation (version_id);
CREATE TABLE generation_version (
    generation_id INTEGER NOT NULL,
    version_id INTEGER NOT NULL,
    PRIMARY KEY (generation_id, version_id),
    FOREIGN KEY(generation_id) REFERENCES generation (id) ON DELETE CASCADE,
    FOREIGN KEY(version_id) REFERENCES version (id) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX ix_generation_version_version_id ON generation_version (version_id);
"""


@migration(needs="0.2.0")
def queue(connection: sqlite3.Connection) -> None:
    """Trainings that wait for their turn."""
    run_script(connection, _QUEUE)


_QUEUE = """
CREATE TABLE queue (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    concept_id INTEGER NOT NULL,
    position INTEGER NOT NULL,
    options VARCHAR NOT NULL,
    state VARCHAR NOT NULL,
    run_id INTEGER,
    error VARCHAR,
    added VARCHAR NOT NULL,
    FOREIGN KEY(concept_id) REFERENCES concept (id) ON DELETE CASCADE,
    FOREIGN KEY(run_id) REFERENCES run (id) ON DELETE SET NULL
);
CREATE INDEX ix_queue_concept_id ON queue (concept_id);
CREATE INDEX ix_queue_run_id ON queue (run_id);
"""

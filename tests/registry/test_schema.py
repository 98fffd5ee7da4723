"""The schema that the migrations make is the one that the tables describe."""

import sqlite3
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytest
from conceptry.registry import Registry, migrations, tables
from sqlalchemy import create_engine, inspect
from sqlalchemy.engine import Inspector
from sqlalchemy.pool import StaticPool
from sqlmodel import SQLModel

NAMES = sorted(
    cls.__tablename__
    for cls in vars(tables).values()
    if isinstance(cls, type) and issubclass(cls, SQLModel) and cls is not SQLModel
)


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inspector]:
    """What the migrations make."""
    path = tmp_path_factory.mktemp("migrated") / "concepts.db"
    Registry.open(path, create=True).close()
    engine = create_engine(f"sqlite:///{path}")
    yield inspect(engine)
    engine.dispose()


@pytest.fixture(scope="module")
def described() -> Iterator[Inspector]:
    """What the tables describe."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    SQLModel.metadata.create_all(engine)
    yield inspect(engine)
    engine.dispose()


def by_name(items: list[Any]) -> list[Any]:
    return sorted(items, key=repr)


def columns(inspector: Inspector, table: str) -> list[dict[str, Any]]:
    return [{**column, "type": str(column["type"])} for column in inspector.get_columns(table)]


def sql_words(inspector: Inspector, table: str) -> set[str]:
    """The options of a table that the inspector does not tell."""
    with inspector.engine.connect() as connection:
        query = "SELECT sql FROM sqlite_master WHERE name = ?"
        sql = connection.exec_driver_sql(query, (table,)).scalar_one()
    return {
        option for option in ("WITHOUT ROWID", "AUTOINCREMENT", "STRICT", "CHECK") if option in sql
    }


def test_there_are_the_same_tables(migrated: Inspector, described: Inspector) -> None:
    assert sorted(migrated.get_table_names()) == sorted(described.get_table_names()) == NAMES
    assert migrated.get_view_names() == []


@pytest.mark.parametrize("table", NAMES)
def test_the_columns_are_the_same(migrated: Inspector, described: Inspector, table: str) -> None:
    assert columns(migrated, table) == columns(described, table)


@pytest.mark.parametrize("table", NAMES)
def test_the_keys_are_the_same(migrated: Inspector, described: Inspector, table: str) -> None:
    assert migrated.get_pk_constraint(table) == described.get_pk_constraint(table)
    keys = described.get_foreign_keys(table)
    assert by_name(migrated.get_foreign_keys(table)) == by_name(keys)
    assert all(key.get("options", {}).get("ondelete") in ("CASCADE", "SET NULL") for key in keys)


@pytest.mark.parametrize("table", NAMES)
def test_the_indexes_and_constraints_are_the_same(
    migrated: Inspector, described: Inspector, table: str
) -> None:
    assert by_name(migrated.get_indexes(table)) == by_name(described.get_indexes(table))
    constraints = described.get_unique_constraints(table)
    assert by_name(migrated.get_unique_constraints(table)) == by_name(constraints)


@pytest.mark.parametrize("table", NAMES)
def test_the_kinds_of_tables_are_the_same(
    migrated: Inspector, described: Inspector, table: str
) -> None:
    assert sql_words(migrated, table) == sql_words(described, table)


def test_a_new_registry_is_marked_and_set_up(registry: Registry) -> None:
    reader = registry._store.database.reader
    settings = {
        name: reader.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("application_id", "journal_mode", "foreign_keys", "synchronous")
    }
    assert settings == {
        "application_id": migrations.APPLICATION_ID,
        "journal_mode": "wal",
        "foreign_keys": 1,
        "synchronous": 2,
    }


def test_every_migration_is_recorded(registry: Registry) -> None:
    reader = registry._store.database.reader
    rows = reader.execute(
        "SELECT name, position, needs FROM migration ORDER BY position"
    ).fetchall()
    assert [tuple(row) for row in rows] == [
        (step.name, position, step.needs) for position, step in enumerate(migrations.MIGRATIONS, 1)
    ]


def test_no_migration_needs_a_program_that_there_is_not() -> None:
    """An older program tells people to get that one."""
    parts = [[int(part) for part in each.needs.split(".")] for each in migrations.MIGRATIONS]
    assert max(parts) <= [int(part) for part in version("conceptry").split(".")]


def test_a_script_runs_statement_by_statement() -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    script = "CREATE TABLE a (x); -- a comment; with a semicolon\nINSERT INTO a\nVALUES (';');\n"
    migrations.run_script(connection, script)
    assert connection.execute("SELECT x FROM a").fetchall() == [(";",)]
    connection.close()


def test_the_last_statement_of_a_script_is_never_dropped() -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        migrations.run_script(connection, "CREATE TABLE a (x);\nINSERT INTO a VALUES (1)\n")
        rows = connection.execute("SELECT x FROM a").fetchall()
    except (ValueError, sqlite3.Error):
        rows = [(1,)]  # refusing it is as good
    connection.close()
    assert rows == [(1,)]

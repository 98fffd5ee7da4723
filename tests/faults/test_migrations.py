"""Faults 12-14: a migration that fails, registries of the past, registries of the future."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conceptry.cli.app import app
from conceptry.registry import Registry, RegistryCorrupt, RegistryTooNew, migrations
from conceptry.registry.migrations import MIGRATIONS, Migration
from drawing import draw_folder
from fake_training import draw_with, train
from snapshot import connected, files_below, rows_of
from typer.testing import CliRunner

SCHEMAS = sorted((Path(__file__).parents[1] / "registry/schemas").glob("*.sql"))
PICTURE = "4" * 64
NAMES = [step.name for step in MIGRATIONS]

Change = Callable[[sqlite3.Connection], None]
Rows = dict[str, list[dict[str, Any]]]


class Midway(Exception):
    """What a migration dies of here."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a registry that has rows in nearly all tables."""
    folder = tmp_path_factory.mktemp("made")
    photos = draw_folder(folder / "photos", 2, size=(64, 64))
    with Registry.open(folder / "registry/concepts.db", create=True) as registry:
        registry.add("rex", [photos], category="dog", tags=["pets"], caption="a dog", notes="bites")
        registry.add("mia", [photos], category="cat")
        draw_with(registry, "c" * 64, ("rex", train(registry, "rex", folder)))
    return folder


@pytest.fixture
def old(made: Path, database: Path) -> Path:
    """The database of a copy of it, closed."""
    shutil.copytree(made / "registry", database.parent)
    return database


def from_sql(script: Path, database: Path) -> Path:
    """The database that a frozen file describes."""
    database.parent.mkdir(parents=True, exist_ok=True)
    with connected(database) as connection:
        connection.executescript(f"BEGIN; {script.read_text(encoding='utf-8')} COMMIT;")
    return database


def schema_of(database: Path) -> list[tuple[str, str]]:
    with connected(database) as connection:
        query = "SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY name"
        return [(name, " ".join(sql.split())) for name, sql in connection.execute(query)]


def dump(database: Path) -> list[str]:
    with connected(database) as connection:
        return list(connection.iterdump())


def named_rows(database: Path) -> Rows:
    """Every row of every table, by column name."""
    with connected(database) as connection:
        connection.row_factory = sqlite3.Row
        tables = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table'"
        ).fetchall()
        return {
            table: [dict(row) for row in connection.execute(f"SELECT * FROM {table}")]
            for (table,) in tables
        }


def assert_kept(before: Rows, after: Rows) -> None:
    """Every row of before is there, in every column that it had."""
    for table, rows in before.items():
        columns = list(rows[0]) if rows else []
        kept = [{column: row.get(column) for column in columns} for row in after[table]]
        assert [row for row in rows if row not in kept] == [], table
        assert len(kept) == len(rows) or table == "migration"


def add_steps(monkeypatch: pytest.MonkeyPatch, **changes: Change) -> None:
    """Let the program know more migrations."""
    more = [Migration(name, "9.9.9", change) for name, change in changes.items()]
    monkeypatch.setattr(migrations, "MIGRATIONS", [*MIGRATIONS, *more])


def colour(connection: sqlite3.Connection) -> None:
    """A migration that adds a column and fills it."""
    connection.execute("ALTER TABLE concept ADD COLUMN colour VARCHAR NOT NULL DEFAULT 'grey'")
    connection.execute("UPDATE concept SET colour = colour || '!'")


def rebuild(connection: sqlite3.Connection) -> None:
    """A migration that makes a table anew, as SQLite needs for most changes of columns."""
    create = "SELECT sql FROM sqlite_master WHERE name = 'concept'"
    (sql,) = connection.execute(create).fetchone()
    connection.execute(sql.replace("CREATE TABLE concept", "CREATE TABLE concept_new", 1))
    connection.execute("INSERT INTO concept_new SELECT * FROM concept")
    connection.execute("DROP TABLE concept")
    connection.execute("ALTER TABLE concept_new RENAME TO concept")
    connection.execute("CREATE INDEX ix_concept_category ON concept (category)")


def spoil(connection: sqlite3.Connection) -> None:
    """What the failing migrations do first."""
    connection.execute("CREATE TABLE extra (x)")
    connection.execute("DROP TABLE metric")
    connection.execute("ALTER TABLE concept ADD COLUMN taste VARCHAR")
    connection.execute("UPDATE concept SET notes = 'spoilt'")
    connection.execute("DELETE FROM tag")


def raise_midway(connection: sqlite3.Connection) -> None:
    spoil(connection)
    raise Midway


def fail_in_sql(connection: sqlite3.Connection) -> None:
    spoil(connection)
    connection.execute("INSERT INTO nowhere VALUES (1)")


def break_a_rule(connection: sqlite3.Connection) -> None:
    spoil(connection)
    connection.execute("INSERT INTO concept SELECT * FROM concept")


def leave_a_dangling_row(connection: sqlite3.Connection) -> None:
    spoil(connection)
    connection.execute("DELETE FROM concept WHERE name = 'mia'")


def be_interrupted(connection: sqlite3.Connection) -> None:
    spoil(connection)
    raise KeyboardInterrupt


FAILURES = [raise_midway, fail_in_sql, break_a_rule, leave_a_dangling_row, be_interrupted]


# --- 12: a migration that raises midway ---------------------------------------------------------


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.__name__)
def test_fault_12_a_failed_migration_is_rolled_back_and_runs_again(
    old: Path, monkeypatch: pytest.MonkeyPatch, failure: Change
) -> None:
    before = dump(old)
    add_steps(monkeypatch, colour=failure)
    for _ in range(2):
        with pytest.raises((Midway, sqlite3.Error, KeyboardInterrupt)):
            Registry.open(old)
        assert dump(old) == before
    runs: list[int] = []

    def mended(connection: sqlite3.Connection) -> None:
        runs.append(1)
        colour(connection)

    add_steps(monkeypatch, colour=mended)
    for _ in range(2):
        with Registry.open(old) as registry:
            assert registry.names() == ["mia", "rex"]
    assert runs == [1]
    assert [row["colour"] for row in named_rows(old)["concept"]] == ["grey!", "grey!"]
    assert [row["name"] for row in named_rows(old)["migration"]] == [*NAMES, "colour"]


def test_fault_12_what_came_before_the_failure_stays(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_steps(monkeypatch, colour=colour, second=raise_midway)
    with pytest.raises(Midway):
        Registry.open(old)
    assert [row["name"] for row in named_rows(old)["migration"]] == [*NAMES, "colour"]
    assert "extra" not in named_rows(old)
    add_steps(monkeypatch, colour=raise_midway, second=lambda connection: None)
    with Registry.open(old):
        assert [row["position"] for row in named_rows(old)["migration"]] == [
            *range(1, len(NAMES) + 3)
        ]


def test_fault_12_the_database_is_copied_before(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = dump(old)
    with monkeypatch.context() as patch:
        add_steps(patch, colour=raise_midway)
        with pytest.raises(Midway):
            Registry.open(old)
    (copy,) = old.parent.glob("*before-upgrade*")
    assert dump(copy) == before
    old.unlink()
    copy.replace(old)
    with Registry.open(old) as registry:
        assert registry.check(read_data=True).problems == []


def test_fault_12_the_copy_is_of_the_state_before_also_where_it_succeeds(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dump(old)
    add_steps(monkeypatch, colour=colour)
    with Registry.open(old) as registry:
        registry.edit("rex", notes="changed later")
    with Registry.open(old):
        pass
    (copy,) = old.parent.glob("*before-upgrade*")
    assert dump(copy) == before


def test_fault_12_a_registry_that_is_up_to_date_is_not_copied(old: Path) -> None:
    with Registry.open(old):
        pass
    assert sorted(path.name for path in old.parent.iterdir()) == ["concepts.blobs", "concepts.db"]


def test_fault_12_foreign_keys_hold_again_after_a_failure(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = sqlite3.connect(old, isolation_level=None)
    for failure in FAILURES:
        with pytest.raises((Midway, sqlite3.Error, KeyboardInterrupt)):
            migrations.upgrade(connection, [*MIGRATIONS, Migration("colour", "9", failure)])
        assert connection.execute("PRAGMA foreign_keys").fetchone() == (1,)
        assert not connection.in_transaction
    connection.close()


# --- 13: registries of the past -----------------------------------------------------------------


def test_fault_13_every_migration_has_a_frozen_schema() -> None:
    expected = [f"{position:04}_{step.name}" for position, step in enumerate(MIGRATIONS, 1)]
    assert [path.stem for path in SCHEMAS] == expected


@pytest.fixture(params=SCHEMAS, ids=lambda path: path.stem)
def frozen(request: pytest.FixtureRequest, database: Path) -> Path:
    """The database of a registry of the past."""
    return from_sql(request.param, database)


@pytest.mark.parametrize("position", range(1, len(SCHEMAS) + 1), ids=lambda i: SCHEMAS[i - 1].stem)
def test_fault_13_a_frozen_schema_is_what_its_migrations_made(
    tmp_path: Path, position: int
) -> None:
    with connected(tmp_path / "made.db") as connection:
        migrations.upgrade(connection, MIGRATIONS[:position])
    written = from_sql(SCHEMAS[position - 1], tmp_path / "written.db")
    assert schema_of(written) == schema_of(tmp_path / "made.db")


def test_fault_13_a_frozen_schema_has_rows_in_every_table(frozen: Path) -> None:
    assert [table for table, rows in named_rows(frozen).items() if not rows] == []


def test_fault_13_an_old_registry_is_brought_up_to_date_with_all_rows(
    frozen: Path, tmp_path: Path
) -> None:
    before = named_rows(frozen)
    with Registry.open(frozen) as registry:
        assert registry.names() == ["mia", "rex"]
    with Registry.open(tmp_path / "new/concepts.db", create=True) as new:
        assert schema_of(frozen) == schema_of(new.location.database)
    assert_kept(before, named_rows(frozen))


def test_fault_13_an_old_registry_can_be_read(frozen: Path) -> None:
    with Registry.open(frozen) as registry:
        rex = registry.show("rex")
        assert (rex.category, rex.notes, rex.tags) == ("dog", "bites\nthe Postman", ["old", "pets"])
        assert [image.caption for image in rex.images] == ["Am Strand, größer", None]
        assert [run.status for run in rex.runs] == ["done", "failed"]
        assert [version.aliases for version in rex.versions] == [["best"], ["newest"]]
        assert rex.versions[0].artifacts[0].name == "token.safetensors"
        assert [event.action for event in registry.history("fido")] == ["create", "rename"]
        assert len(registry.trace(PICTURE).sources[0].images) == 2
        assert [concept.name for concept in registry.find(text="STRAND postman").concepts] == [
            "rex"
        ]
        assert {problem.kind for problem in registry.check().problems} == {"missing"}


def test_fault_13_an_old_registry_can_be_changed(frozen: Path, photos: Path) -> None:
    with Registry.open(frozen) as registry:
        registry.add("rex", [photos])
        registry.rename("rex", "max")
        registry.remove(["mia"])
        registry.add("new", [photos], category="cat")
        assert [len(registry.show(name).images) for name in registry.names()] == [5, 3]
        assert {event.concept for event in registry.history("new")} == {"new"}


@pytest.mark.parametrize("change", [colour, rebuild], ids=lambda change: change.__name__)
def test_fault_13_a_further_migration_keeps_old_rows(
    frozen: Path, monkeypatch: pytest.MonkeyPatch, change: Change
) -> None:
    before = named_rows(frozen)
    add_steps(monkeypatch, further=change)
    with Registry.open(frozen) as registry:
        assert len(registry.show("rex").images) == 2
        registry.remove(["mia"])
        foreign_keys = registry._store.database.reader.execute("PRAGMA foreign_keys")
        assert [*foreign_keys.fetchone()] == [1]
    after = named_rows(frozen)
    assert [row["concept_id"] for row in after["image"]] == [1, 1]
    for table in ("run", "metric", "version", "alias", "artifact", "generation_version"):
        assert after[table] == before[table]
    assert after["migration"][-1]["needs"] == "9.9.9"


def test_fault_13_a_rebuilt_table_takes_nothing_with_it(
    frozen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = named_rows(frozen)
    add_steps(monkeypatch, rebuild=rebuild)
    with Registry.open(frozen):
        pass
    assert_kept(before, named_rows(frozen))


# --- 14: a registry of the future ---------------------------------------------------------------


@pytest.fixture
def newer(old: Path) -> Path:
    """The database of a registry that two later programs have upgraded."""
    with connected(old) as connection:
        rows = [("one_more", 2, "7.4.0", "2030"), ("two_more", 3, "7.5.1", "2031")]
        connection.executemany("INSERT INTO migration VALUES (?, ?, ?, ?)", rows)
        connection.execute("ALTER TABLE concept ADD COLUMN flavour VARCHAR")
    return old


def test_fault_14_a_newer_registry_is_refused_and_left_alone(newer: Path) -> None:
    before = files_below(newer.parent), rows_of(newer)
    with pytest.raises(RegistryTooNew, match=r"it needs conceptry 7\.5\.1") as caught:
        Registry.open(newer)
    assert str(newer) in caught.value.message
    assert caught.value.hint == 'pip install --upgrade "conceptry>=7.5.1"'
    assert (files_below(newer.parent), rows_of(newer)) == before


def test_fault_14_it_is_refused_even_where_something_is_pending(
    newer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dump(newer)
    add_steps(monkeypatch, colour=colour)
    with pytest.raises(RegistryTooNew):
        Registry.open(newer)
    assert dump(newer) == before


@pytest.mark.parametrize(
    "command", ["list", "show rex", "check", "gc", "add rex photos", "import some.concept"]
)
def test_fault_14_the_command_line_ends_with_4_and_names_the_version(
    newer: Path, command: str
) -> None:
    Path("some.concept").touch()
    before = files_below(newer.parent)
    arguments = ["--registry", str(newer), "--json", *command.split()]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 4
    error = json.loads(result.stdout)["error"]
    assert error["code"] == "registry_too_new"
    assert "7.5.1" in error["message"]
    assert files_below(newer.parent) == before


OTHER_DATABASES = {
    "a table": "CREATE TABLE song (name)",
    "its own migrations": "CREATE TABLE migration (id INTEGER PRIMARY KEY, version TEXT)",
    "no migrations": "CREATE TABLE migration (name, position, needs, applied)",
    "alike": "CREATE TABLE migration (name, position, needs, applied);"
    "INSERT INTO migration VALUES ('0001_initial', 1, 'x', 'y')",
}


@pytest.mark.parametrize("script", OTHER_DATABASES.values(), ids=OTHER_DATABASES)
def test_fault_14_a_database_of_another_program_is_refused(database: Path, script: str) -> None:
    database.parent.mkdir()
    with connected(database) as connection:
        connection.executescript(script)
    before = files_below(database.parent)
    with pytest.raises(RegistryCorrupt, match="not a concept registry"):
        Registry.open(database, create=True)
    assert files_below(database.parent) == before

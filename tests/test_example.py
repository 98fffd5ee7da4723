"""`concepts.db.example` is what its script builds, at today's schema."""

import sqlite3
from contextlib import closing
from pathlib import Path

import example_registry
from conceptry.registry import Registry

EXAMPLE = Path(__file__).parents[1] / "concepts.db.example"


def test_the_example_is_what_the_script_builds(tmp_path: Path) -> None:
    example_registry.build(tmp_path / "new.db")
    assert _content(EXAMPLE) == _content(tmp_path / "new.db")


def test_every_table_of_the_example_has_rows() -> None:
    content = _content(EXAMPLE)
    assert [table for table, rows in content.items() if not rows] == []


def test_the_example_opens_without_being_changed(tmp_path: Path) -> None:
    before = EXAMPLE.read_bytes()
    with Registry.open(EXAMPLE) as registry:
        assert registry.names() == ["mia", "rex", "sloth"]
        assert registry.trace(example_registry.SHA256).sources[0].concept == "rex"
    assert EXAMPLE.read_bytes() == before
    assert sorted(path.name for path in EXAMPLE.parent.glob("concepts.db*")) == [EXAMPLE.name]


def _content(database: Path) -> dict[str, list[tuple[object, ...]]]:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        tables = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        ).fetchall()
        rows = {
            f"{name}: {sql}": connection.execute(f"SELECT * FROM {name}").fetchall()
            for name, sql in tables
        }
        return {key: sorted(found, key=repr) for key, found in rows.items()}

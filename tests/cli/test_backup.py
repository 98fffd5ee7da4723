"""`concept backup`."""

import contextlib
import shutil
import sqlite3
from pathlib import Path

from conceptry.registry import Registry
from drawing import draw_file
from program import Ask, Run, invoke


def test_a_backup_is_a_registry(rex: Registry, run: Run) -> None:
    result = run("backup", "copy")
    assert result.stdout.startswith("1 concept, 3 files (")
    assert result.stdout.endswith(") in copy, 3 newly copied\n")
    with Registry.open("copy") as copy:
        assert copy.show("rex") == rex.show("rex")
        assert copy.check(read_data=True).ok


def test_a_later_backup_copies_what_is_new(rex: Registry, ask: Ask, tmp_path: Path) -> None:
    ask("backup", "copy")
    rex.add("rex", [draw_file(tmp_path / "new.png", 40)])
    done = ask("backup", "copy")
    assert done == {
        "path": "copy",
        "concepts": 1,
        "blobs": 4,
        "copied": 1,
        "bytes": rex.show("rex").bytes,
    }


def test_a_folder_with_other_things_is_refused(rex: Registry, run: Run) -> None:
    result = run("backup", "photos")
    assert result.exit_code == 2
    assert "photos has other files in it" in result.stderr


def test_the_registry_itself_is_refused(rex: Registry, run: Run, database: Path) -> None:
    result = run("backup", database.parent)
    assert result.exit_code == 2
    assert "is the registry itself" in result.stderr


def test_another_registry_is_never_overwritten(rex: Registry, run: Run, photos: Path) -> None:
    with Registry.open("other/concepts.db", create=True) as other:
        other.add("mia", [photos], category="cat")
    result = run("backup", "other")
    assert result.exit_code == 2
    with Registry.open("other") as other:
        assert other.names() == ["mia"]


def test_a_backup_over_one_whose_user_was_killed_is_sound(rex: Registry, run: Run) -> None:
    run("backup", "copy")
    leave_half_a_transaction(Path("copy/concepts.db"))
    rex.edit("rex", notes="after the crash " * 500)
    assert run("backup", "copy").exit_code == 0
    assert invoke("--registry", "copy", "check").exit_code == 0
    with Registry.open("copy") as copy:
        assert copy.show("rex") == rex.show("rex")


def test_a_restored_backup_is_used_like_any_registry(rex: Registry, run: Run) -> None:
    run("backup", "copy")
    assert invoke("--registry", "copy", "edit", "rex", "--notes", "restored").exit_code == 0
    with contextlib.closing(sqlite3.connect("copy/concepts.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def leave_half_a_transaction(database: Path) -> None:
    """Leave the files as a process does that is killed in the middle of a large change."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size = 2")  # so that pages are written before the commit
        connection.execute("BEGIN IMMEDIATE")
        for i in range(300):
            connection.execute(
                "INSERT INTO event (at, concept_id, concept, action, detail) "
                "VALUES ('', 1, 'rex', 'edit', ?)",
                (f"{i}" * 1000,),
            )
        killed = [shutil.copy(path, f"{path}.killed") for path in database.parent.glob("*.db*")]
        connection.execute("ROLLBACK")
    for copy in killed:
        shutil.move(copy, copy.removesuffix(".killed"))

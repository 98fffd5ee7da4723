"""Faults of cleaning up: what deletes or replaces files takes nothing that somebody needs."""

import contextlib
import errno
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conceptry.registry import (
    AlreadyExists,
    InvalidInput,
    Registry,
    StorageError,
    files,
    upkeep,
)
from conceptry.registry.locks import begun_here
from copies import copied
from drawing import draw_file, draw_folder
from fake_training import begin, train
from forked import run_forked
from program import change_rows, invoke, make_old, stored_files
from snapshot import files_below

SMALL = (64, 64)


@pytest.fixture(scope="module")
def _old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    with Registry.open(folder / "registry/concepts.db", create=True) as registry:
        registry.add("rex", [draw_folder(folder / "photos", 3, size=SMALL)], category="dog")
        train(registry, "rex", folder)
    age(folder / "registry")
    return folder


@pytest.fixture
def rex(_old: Path, tmp_path: Path) -> Iterator[Registry]:
    """Rex, a dog with three photos and a version; everything is old."""
    with copied(_old, tmp_path) as registry:
        yield registry


def age(folder: Path) -> None:
    """Let every file below a folder look older than any grace."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and "concepts.db" not in path.name:
            make_old(path)


def blobs(registry: Registry) -> list[Path]:
    return sorted(registry.location.blobs.glob("??/*"))


def refused(registry: Registry | Path, *line: str | Path) -> str:
    """What a command says that is refused with one line, and that changes no stored file."""
    database = registry if isinstance(registry, Path) else registry.location.database
    before = files_below(database.parent)
    result = invoke("--registry", database, *line)
    assert result.exit_code == 4, result.output
    assert result.stderr.count("\n") == 1
    assert " -> " in result.stderr
    after = files_below(database.parent)
    assert {k: v for k, v in after.items() if "db" not in k and "lock" not in k} == {
        k: v for k, v in before.items() if "db" not in k and "lock" not in k
    }
    return result.stderr


# --- a database and files that do not belong together ---------------------------------------------


def blank(database: Path) -> None:
    """A valid database without a table, as after a copy without its log."""
    database.unlink()
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    assert database.stat().st_size == 4096


@pytest.mark.parametrize("line", [["list"], ["gc"], ["check"], ["add"], ["import"]])
def test_a_blank_database_beside_stored_files_is_refused(
    rex: Registry, database: Path, tmp_path: Path, line: list[str]
) -> None:
    rex.export_bundle(["rex"], tmp_path / "rex.concept")
    rex.close()
    blank(database)
    more = {
        "add": ["mia", draw_file(tmp_path / "mia.png", 9, SMALL), "--category", "cat"],
        "import": [tmp_path / "rex.concept"],
    }
    assert "has nothing in it" in refused(database, *line, *more.get(line[0], []))


def test_a_blank_database_without_files_becomes_a_registry(database: Path, photos: Path) -> None:
    database.parent.mkdir()
    database.touch()
    blank(database)
    result = invoke("--registry", database, "add", "rex", photos, "--category", "dog")
    assert result.exit_code == 0, result.stderr


def test_a_missing_database_beside_runs_alone_is_refused(rex: Registry, database: Path) -> None:
    (rex.run_folder(begin(rex, "rex")) / "resume.safetensors").write_bytes(b"x")
    rex.close()
    database.unlink()
    shutil.rmtree(rex.location.blobs)
    assert "concepts.runs holds stored files" in refused(database, "list")


def add_photo(registry: Registry, tmp_path: Path, seed: int) -> None:
    registry.add("rex", [draw_file(tmp_path / f"{seed}.png", seed, SMALL)])


def copy_database(registry: Registry, to: Path) -> None:
    registry._store.database.copy_to(to)


def put_back_an_older_database(rex: Registry, folder: Path) -> None:
    """From before a photo was added; closes the registry."""
    copy_database(rex, folder / "older.db")
    add_photo(rex, folder, 50)
    rex.close()
    shutil.copy(folder / "older.db", rex.location.database)


def test_gc_with_an_older_database_deletes_nothing(
    rex: Registry, database: Path, tmp_path: Path
) -> None:
    copy_database(rex, tmp_path / "older.db")
    add_photo(rex, tmp_path, 50)
    run = begin(rex, "rex")
    (rex.run_folder(run) / "resume.safetensors").write_bytes(b"x")
    rex.close()
    shutil.copy(tmp_path / "older.db", database)
    age(database.parent)
    for options in (["--grace", "0"], ["--dry-run"]):
        assert "a later state of" in refused(database, "gc", *options)
    note = invoke("--registry", database, "check")
    assert "note: stranger: " in note.stdout


def test_a_later_change_of_an_older_database_does_not_vouch_for_the_files(
    rex: Registry, database: Path, tmp_path: Path
) -> None:
    put_back_an_older_database(rex, tmp_path)
    with Registry.open(database) as older:
        add_photo(older, tmp_path, 51)
    age(database.parent)
    refused(database, "gc")


def test_gc_goes_on_when_told_that_unknown_files_may_go(
    rex: Registry, database: Path, tmp_path: Path
) -> None:
    put_back_an_older_database(rex, tmp_path)
    with Registry.open(database) as older:
        age(database.parent)
        assert older.gc(unknown=True).removed == 1
        add_photo(older, tmp_path, 51)
        older.edit("rex", remove_images=["51.png"])
        assert older.gc(grace=0).removed == 1
        assert older.check(read_data=True).problems == []


def test_gc_with_another_registrys_database_deletes_nothing(
    rex: Registry, database: Path, tmp_path: Path
) -> None:
    with Registry.open(tmp_path / "other.db", create=True) as other:
        other.add("mia", [draw_file(tmp_path / "mia.png", 9, SMALL)], category="cat")
        copy_database(other, tmp_path / "copy.db")
        other.remove(["mia"])
        copy_database(other, tmp_path / "empty.db")
    rex.close()
    for name in ("copy.db", "empty.db"):
        shutil.copy(tmp_path / name, database)
        refused(database, "gc", "--grace", "0")
    shutil.copy(tmp_path / "copy.db", database)
    (rex.location.blobs / "stamp").unlink()  # as older programs leave it
    assert "lacks 1 of 1 files" in refused(database, "gc", "--grace", "0")


def test_a_backup_copied_over_a_registry_does_not_vouch_for_its_files(
    rex: Registry, database: Path, tmp_path: Path
) -> None:
    rex.backup(tmp_path / "backup")
    add_photo(rex, tmp_path, 50)
    rex.close()
    shutil.copytree(tmp_path / "backup", database.parent, dirs_exist_ok=True)
    age(database.parent)
    refused(database, "gc")


@pytest.mark.parametrize("name", ["concepts.db", "other.db"])
def test_nothing_is_written_to_a_database_with_two_names(
    rex: Registry, database: Path, tmp_path: Path, name: str
) -> None:
    rex.close()
    other = database.with_name("other.db")
    os.link(database, other)
    used = database.with_name(name)
    photo = draw_file(tmp_path / "more.png", 70, SMALL)
    result = invoke("--registry", used, "add", "rex", photo)
    assert (result.exit_code, "a hard link" in result.stderr) == (4, True)
    assert invoke("--registry", used, "list").exit_code == 0
    other.unlink()
    assert invoke("--registry", database, "check").exit_code == 0
    assert invoke("--registry", database, "add", "rex", photo).exit_code == 0


def test_gc_works_in_a_backup_and_in_a_copy(rex: Registry, database: Path, tmp_path: Path) -> None:
    rex.backup(tmp_path / "backup")
    rex.close()
    shutil.copytree(database.parent, tmp_path / "copy")
    for folder in ("backup", "copy"):
        with Registry.open(tmp_path / folder) as copy:
            copy.edit("rex", remove_images=["00.png"])
            assert copy.gc(grace=0).removed == 1
            assert copy.check(read_data=True).problems == []


def test_gc_takes_what_a_killed_add_left(rex: Registry, database: Path, tmp_path: Path) -> None:
    photo = draw_file(tmp_path / "killed.png", 60, SMALL)
    prelude = """
import os, signal
from conceptry.registry import intake
intake.concept_row = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run_forked("--registry", database, "add", "rex", photo, prelude=prelude).returncode < 0
    assert rex.gc(grace=0).removed == 1
    assert rex.check(read_data=True).problems == []


@pytest.mark.parametrize("stamp", [" ", "{}", "[" * 9999, '{"id": [1]}', '{"id": 1e999}', "link"])
def test_a_stamp_that_cannot_be_read_is_a_strangers(
    rex: Registry, tmp_path: Path, stamp: str
) -> None:
    place = rex.location.blobs / "stamp"
    place.unlink()
    if stamp == "link":
        (tmp_path / "elsewhere").write_text("mine")
        place.symlink_to(tmp_path / "elsewhere")
    else:
        place.write_text(stamp)
    refused(rex, "gc")
    assert rex.gc(unknown=True).failed == []
    assert rex.gc().failed == []
    assert stamp != "link" or (tmp_path / "elsewhere").read_text() == "mine"


@pytest.mark.parametrize("left", [b"", bytes(64)], ids=["empty", "zeros"])
def test_what_a_crash_may_leave_of_a_stamp_is_no_strangers(rex: Registry, left: bytes) -> None:
    """It is not synced, as the former one is as true."""
    (rex.location.blobs / "stamp").write_bytes(left)
    assert rex.gc().failed == []
    rex.edit("rex", notes="again")
    rex.add("rex", [draw_file(rex.location.database.parent / "more.png", 8, SMALL)])
    assert b"rex" in (rex.location.blobs / "stamp").read_bytes()


def test_gc_refuses_where_a_needed_file_is_missing(rex: Registry, tmp_path: Path) -> None:
    rex.edit("rex", remove_images=["02.png"])
    photo = rex.path_of(rex.show("rex").images[0].sha256)
    photo.rename(tmp_path / "lost")
    said = refused(rex, "gc", "--grace", "0")
    assert "lacks 1 of 3 files" in said
    assert "concept check --repair --from" in said
    rex.check(repair=True, look_in=tmp_path / "photos")
    assert rex.gc(grace=0).removed == 1


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE artifact SET version_id = NULL",
        "UPDATE image SET sha256 = sha256 || char(0) || 'x'",
        "UPDATE image SET sha256 = substr(sha256, 1, 2) || char(0) || substr(sha256, 1, 61)",
        "UPDATE artifact SET sha256 = CAST(sha256 AS BLOB)",
    ],
)
def test_rows_that_hide_a_needed_file_are_damage(rex: Registry, statement: str) -> None:
    change_rows(rex.location.database, statement)
    assert "is damaged" in refused(rex, "gc", "--grace", "0", "--unknown")
    assert invoke("--registry", rex.location.database, "check").exit_code == 4


# --- files of others ------------------------------------------------------------------------------


def test_gc_takes_files_with_our_names_alone(rex: Registry, tmp_path: Path) -> None:
    location = rex.location
    run, gone = begin(rex, "rex"), "0123456789ab"
    rex.end_run(run, "failed")
    rex.end_run(begin(rex, "rex"), "interrupted")
    digits = "0" * 16
    own = [
        location.blobs / "tmp" / f"4711-{digits}",
        location.runs / run / "resume.safetensors",
        location.runs / run / f".previews.png.{digits}.unfinished",
        location.cache / "evaluations/ab" / f"{'ab' * 32}.png",
        location.cache / "evaluations/ab" / f"{'ab' * 32}.safetensors",
        location.cache / "class-pictures/0123-dog/00000.png",
    ]
    others = [
        location.blobs / "tmp/mine/holiday.jpg",
        location.blobs / "tmp" / digits / f"4711-{digits}",
        location.blobs / "tmp/notes.txt",
        location.runs / run / "notes.txt",
        location.runs / run / "sub/resume.safetensors",
        location.runs / gone / "resume.safetensors",
        location.runs / "readme.txt",
        location.cache / "evaluations/ab/mine.png",
        location.cache / "evaluations/direct.txt",
        location.cache / "class-pictures/0123-dog/notes.txt",
        location.cache / "mine/00000.png",
    ]
    for path in own + others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    age(location.database.parent)
    report = rex.gc(grace=0)
    assert (report.removed, report.temporary, report.cached) == (0, 3, 3)
    assert [path for path in own if path.exists()] == []
    assert [path for path in others if not path.exists()] == []
    problems = rex.check(repair=True).problems
    assert {each.kind for each in problems} == {"foreign"}
    assert [path for path in others if not path.exists()] == []


def test_gc_does_not_enter_another_file_system(
    rex: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    rex.remove(["rex"])
    mounted = blobs(rex)[0].parent
    status = os.lstat

    def lstat(path: Any, **options: Any) -> os.stat_result:
        found = status(path, **options)
        if path == mounted:
            return os.stat_result([*found[:2], found.st_dev + 1, *found[3:]])
        return found

    monkeypatch.setattr(files.os, "lstat", lstat)
    inside = len(list(mounted.iterdir()))
    assert rex.gc(grace=0).removed == 4 - inside
    assert len(list(mounted.iterdir())) == inside


def test_the_end_of_a_training_leaves_what_is_not_ours(rex: Registry) -> None:
    run = begin(rex, "rex")
    folder = rex.run_folder(run)
    for name in ("notes.txt", "resume.safetensors", "previews.png"):
        (folder / name).write_bytes(b"x")
    rex.tidy_run_folder(run)
    assert sorted(path.name for path in folder.iterdir()) == ["notes.txt", "previews.png"]


def test_gc_spares_what_a_training_writes(rex: Registry, database: Path) -> None:
    run = begin(rex, "rex")
    unfinished = rex.run_folder(run) / f".resume.safetensors.{'0' * 16}.unfinished"
    unfinished.write_bytes(b"half")
    age(database.parent)
    with rex.training_lock("rex"):
        assert run_forked("--registry", database, "gc", "--grace", "0").returncode == 0
        assert unfinished.exists()
        rex.remove(["rex"])
        assert run_forked("--registry", database, "gc", "--grace", "0").returncode == 0
        assert unfinished.exists()
    assert run_forked("--registry", database, "gc", "--grace", "0").returncode == 0
    assert not unfinished.parent.exists()


def test_gc_spares_the_photos_of_a_training_that_waits_for_its_turn(
    rex: Registry, database: Path
) -> None:
    run = begin(rex, "rex")
    photo = rex.path_of(rex.show("rex").images[0].sha256)
    rex.edit("rex", remove_images=["00.png"])
    with rex.training_lock("rex"):
        assert run_forked("--registry", database, "gc", "--grace", "0").returncode == 0
        assert photo.exists()
    rex.end_run(run, "interrupted")
    assert rex.gc(grace=0).removed == 1
    assert not photo.exists()


def test_gc_removes_folders_that_get_empty(rex: Registry) -> None:
    rex.remove(["rex"])
    rex.gc(grace=0)
    assert sorted(path.name for path in rex.location.blobs.iterdir() if path.is_dir()) == ["tmp"]


# --- what cannot be deleted or read ---------------------------------------------------------------


@pytest.fixture
def stubborn(rex: Registry, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that nothing needs and that cannot be deleted; the first of four."""
    rex.remove(["rex"])
    path = blobs(rex)[0]
    remove = files.remove_file

    def refuse(root: Path, file: Path) -> None:
        if file == path:
            raise PermissionError(errno.EPERM, "Operation not permitted", str(file))
        remove(root, file)

    monkeypatch.setattr(upkeep, "remove_file", refuse)
    return path


def test_gc_goes_on_past_a_file_that_cannot_be_deleted(rex: Registry, stubborn: Path) -> None:
    result = invoke("--registry", rex.location.database, "gc", "--json")
    assert result.exit_code == 4
    report = json.loads(result.stdout)
    assert report["removed"] == 3
    assert report["failed"] == [f"cannot delete {stubborn}: Operation not permitted"]
    assert blobs(rex) == [stubborn]
    result = invoke("--registry", rex.location.database, "gc")
    assert (result.exit_code, result.stdout) == (4, "removed 0 files (0 B)\n")
    assert str(stubborn) in result.stderr


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """Folders in here cannot be listed."""
    folders: set[Path] = set()
    entered = files._entered

    @contextlib.contextmanager
    def enter(root: Path, folder: Path, **options: Any) -> Iterator[int | None]:
        if folder in folders:
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        with entered(root, folder, **options) as handle:
            yield handle

    monkeypatch.setattr(files, "_entered", enter)
    return folders


@pytest.mark.parametrize("where", ["shard", "run", "runs", "group", "evaluations"])
def test_gc_goes_on_past_a_folder_that_cannot_be_read(
    rex: Registry, unreadable: set[Path], where: str
) -> None:
    run = begin(rex, "rex")
    rex.remove(["rex"])
    begun_here.discard(run)  # nobody trains it
    group = rex.cache_folder("evaluations", "ab")
    shard = blobs(rex)[0].parent
    folder = {
        "shard": shard,
        "run": rex.run_folder(run),
        "runs": rex.location.runs,
        "group": group,
        "evaluations": group.parent,
    }[where]
    inside = len(list(shard.iterdir())) if where == "shard" else 0
    unreadable.add(folder)
    result = invoke("--registry", rex.location.database, "gc", "--json", "--grace", "0")
    assert result.exit_code == 4, result.output
    report = json.loads(result.stdout)
    assert report["removed"] == 4 - inside
    assert report["failed"] == [f"cannot read {folder}: Permission denied"]


def test_check_goes_on_past_a_folder_that_cannot_be_read(
    rex: Registry, unreadable: set[Path]
) -> None:
    unreadable.add(blobs(rex)[0].parent)
    result = invoke("--registry", rex.location.database, "check", "--json")
    assert result.exit_code == 4
    assert "unreadable" in {each["kind"] for each in json.loads(result.stdout)["problems"]}


@pytest.mark.parametrize("options", [["--cache-size", "9" * 400], ["--grace", "9" * 400]])
def test_numbers_may_be_large(rex: Registry, options: list[str]) -> None:
    assert invoke("--registry", rex.location.database, "gc", *options).exit_code == 0


@pytest.mark.parametrize("number", [float("nan"), -1.0, -float("inf")])
def test_a_grace_or_a_size_that_is_none_is_refused(rex: Registry, number: float) -> None:
    rex.remove(["rex"])
    with pytest.raises(InvalidInput):
        rex.gc(grace=number)
    with pytest.raises(InvalidInput):
        rex.gc(cache_size=number)
    assert len(blobs(rex)) == 4


def test_all_that_is_too_young_is_counted(rex: Registry) -> None:
    run = begin(rex, "rex")
    rex.end_run(run, "failed")
    rex.end_run(begin(rex, "rex"), "interrupted")
    (rex.run_folder(run) / "resume.safetensors").write_bytes(b"x")
    (rex.cache_folder("class-pictures", "dog") / "00000.png").write_bytes(b"x")
    assert rex.gc().kept_young == 2


# --- repair ---------------------------------------------------------------------------------------


def in_another_shard(path: Path) -> Path:
    other = path.parent.with_name("00" if path.parent.name != "00" else "01") / path.name
    other.parent.mkdir(exist_ok=True)
    shutil.copy(path, other)
    return other


def spoil(path: Path) -> bytes:
    data = path.read_bytes()
    path.write_bytes(b"XX" + data[2:])
    return path.read_bytes()


@pytest.mark.parametrize("read_data", [True, False])
def test_a_whole_copy_heals_a_damaged_file_which_is_kept(rex: Registry, read_data: bool) -> None:
    path = rex.path_of(rex.show("rex").images[0].sha256)
    whole = path.read_bytes()
    in_another_shard(path)
    damaged = spoil(path)
    report = rex.check(read_data=read_data, repair=True)
    assert report.ok
    assert path.read_bytes() == whole
    assert [each.read_bytes() for each in (rex.location.blobs / "damaged").iterdir()] == [damaged]
    assert [each.kind for each in rex.check(read_data=True).problems] == ["aside"]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE image SET bytes = bytes + 1 WHERE filename = '01.png'",
        "UPDATE artifact SET bytes = 7",
        "UPDATE image SET mask = sha256, mask_bytes = NULL WHERE filename = '01.png'",
    ],
)
def test_a_whole_file_stays_where_only_the_row_is_wrong(rex: Registry, statement: str) -> None:
    before = stored_files(rex.location.database)
    change_rows(rex.location.database, statement)
    [problem] = rex.check().problems
    assert (problem.kind, problem.is_error) == ("size", True)
    assert rex.check(repair=True).ok
    assert rex.check(read_data=True).problems == []
    assert stored_files(rex.location.database) == before


def test_a_lost_file_is_found_in_a_backup_though_its_row_has_the_size_wrong(
    rex: Registry, tmp_path: Path
) -> None:
    rex.backup(tmp_path / "backup")
    change_rows(rex.location.database, "UPDATE image SET bytes = 7 WHERE filename = '01.png'")
    rex.path_of(rex.show("rex").images[1].sha256).unlink()
    assert rex.check(repair=True, look_in=tmp_path / "backup").ok
    assert rex.check(repair=True).ok
    assert rex.check(read_data=True).problems == []


def test_what_was_set_aside_is_never_replaced(rex: Registry) -> None:
    first, second = (rex.path_of(image.sha256) for image in rex.show("rex").images[:2])
    kept = {second: second.read_bytes()}
    for path in (first, second):
        path.write_bytes(b"damaged " + path.name.encode())
        rex.check(repair=True)
    aside = rex.location.blobs / "damaged"
    (aside / f"{first.name}.1").unlink()
    second.write_bytes(kept[second])
    second.write_bytes(b"damaged again")
    rex.check(repair=True)
    assert {each.read_bytes() for each in aside.iterdir()} == {
        b"damaged " + second.name.encode(),
        b"damaged again",
    }


@pytest.mark.parametrize("where", ["holiday", "3f/sub"])
def test_a_file_of_somebody_in_a_folder_of_somebody_stays(rex: Registry, where: str) -> None:
    path = rex.location.blobs / where / ("ab" * 32)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    [problem] = rex.check(repair=True).problems
    assert problem.kind == "foreign"
    assert path.read_bytes() == b"mine"


def test_repair_goes_on_past_a_file_that_cannot_be_read(
    rex: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = rex.path_of(rex.show("rex").images[0].sha256)
    lost.unlink()
    bad = tmp_path / "photos/0-bad.png"
    shutil.copy(tmp_path / "photos/00.png", bad)
    opened = Path.open

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == bad:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    report = rex.check(repair=True, look_in=tmp_path / "photos")
    assert report.ok
    assert [(each.kind, each.is_error) for each in report.problems] == [
        ("missing", True),
        ("unreadable", False),
    ]
    assert lost.exists()


def test_check_tells_of_a_stored_file_that_cannot_be_read(
    rex: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = blobs(rex)[1]
    opened = files._opened

    def refuse(handle: int | None, path: Path) -> int:
        if path == bad:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return opened(handle, path)

    monkeypatch.setattr(files, "_opened", refuse)
    for repair in (False, True):
        report = rex.check(read_data=True, repair=repair)
        assert [each.kind for each in report.problems] == ["unreadable"]
        assert not report.ok
    assert bad.exists()


# --- nothing of the registry is a target ----------------------------------------------------------


def own_paths(registry: Registry) -> dict[str, Path]:
    location = registry.location
    return {
        "database": location.database,
        "log": location.database.with_name("concepts.db-wal"),
        "copy": location.database.with_name("concepts.db.before-upgrade-1"),
        "blob": blobs(registry)[0],
        "shard": blobs(registry)[0].parent / "new.concept",
        "run": registry.run_folder("0123456789ab") / "x",
        "cache": registry.cache_folder("evaluations") / "x",
    }


OWN = ("database", "log", "copy", "blob", "shard", "run", "cache")


@pytest.mark.parametrize("way", ["plain", "folder link", "link"])
@pytest.mark.parametrize("which", OWN)
def test_export_replaces_nothing_of_the_registry(
    rex: Registry, tmp_path: Path, which: str, way: str
) -> None:
    path = own_paths(rex)[which]
    if way == "folder link":
        (tmp_path / "link").symlink_to(path.parent)
        path = tmp_path / "link" / path.name
    elif way == "link":
        (tmp_path / "link").symlink_to(path)
        path = tmp_path / "link"
    before = files_below(rex.location.database.parent)
    with pytest.raises(InvalidInput):
        rex.export_bundle(["rex"], path, overwrite=True)
    assert files_below(rex.location.database.parent) == before


def test_export_replaces_no_other_registrys_database(rex: Registry, tmp_path: Path) -> None:
    rex.backup(tmp_path / "backup")
    with pytest.raises(InvalidInput, match="is a database"):
        rex.export_bundle(["rex"], tmp_path / "backup/concepts.db", overwrite=True)
    with Registry.open(tmp_path / "backup") as copy:
        assert copy.names() == ["rex"]


def test_export_may_stand_beside_the_database(rex: Registry, database: Path) -> None:
    rex.export_bundle(["rex"], database.with_name("rex.concept"))


@pytest.mark.parametrize("folder", ["concepts.blobs/tmp/bk", "concepts.runs", "concepts.cache/x"])
def test_a_backup_into_the_registrys_folders_is_refused(
    rex: Registry, database: Path, folder: str
) -> None:
    before = files_below(database.parent)
    with pytest.raises(InvalidInput):
        rex.backup(database.parent / folder)
    assert files_below(database.parent) == before


def test_pictures_and_reports_do_not_go_into_the_registry(rex: Registry, tmp_path: Path) -> None:
    shard = blobs(rex)[0].parent
    before = files_below(rex.location.database.parent)
    for line in (
        ["generate", "a photo of a cat", "--steps", "1", "--out", shard],
        ["eval", "rex", "--report", shard],
        ["train", "rex", "--tensorboard", shard],
    ):
        result = invoke("--registry", rex.location.database, *line)
        assert result.exit_code == 2, result.output
        assert "belongs to the registry" in result.stderr
    assert files_below(rex.location.database.parent) == before


# --- backups --------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["blobs", "runs"])
def test_a_backup_does_not_adopt_files_without_a_database(
    rex: Registry, tmp_path: Path, what: str
) -> None:
    with Registry.open(tmp_path / "lost/concepts.db", create=True) as lost:
        lost.add("mia", [draw_file(tmp_path / "mia.png", 9, SMALL)], category="cat")
        (lost.run_folder(begin(lost, "mia")) / "resume.safetensors").write_bytes(b"x")
    for path in (tmp_path / "lost").glob("concepts.db*"):
        path.unlink()
    shutil.rmtree(tmp_path / f"lost/concepts.{'runs' if what == 'blobs' else 'blobs'}")
    before = files_below(tmp_path / "lost")
    with pytest.raises(AlreadyExists, match="whose database is gone"):
        rex.backup(tmp_path / "lost")
    assert files_below(tmp_path / "lost") == before


def test_a_first_backup_that_failed_can_be_made_again(
    rex: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(StorageError):
            rex.backup(tmp_path / "backup")
    assert not (tmp_path / "backup/concepts.db").exists()
    rex.edit("rex", remove_images=["00.png"])
    rex.backup(tmp_path / "backup")
    with Registry.open(tmp_path / "backup") as copy:
        assert copy.check(read_data=True).ok


def test_a_backup_deletes_what_backups_leave_and_nothing_else(
    rex: Registry, tmp_path: Path
) -> None:
    folder = tmp_path / "backup"
    rex.backup(folder)
    left = [
        folder / "concepts.db.unfinished",
        folder / f"concepts.db.{'0' * 16}.unfinished",
        folder / "concepts.blobs/tmp" / f"1-{'0' * 16}",
    ]
    others = [
        folder / "concepts.db.my unfinished notes",
        folder / "concepts.blobs/tmp/notes.txt",
        folder / "concepts.blobs/tmp/mine/holiday.jpg",
    ]
    for path in left + others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    rex.backup(folder)
    assert [path for path in left if path.exists()] == []
    assert [path for path in others if not path.exists()] == []

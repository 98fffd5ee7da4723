"""Copying a registry: the copy is one too, and the next copy takes only what is new."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conceptry.registry import AlreadyExists, Registry, RegistryCorrupt
from conceptry.registry.database import Database
from copies import copied
from drawing import draw_file, draw_folder, draw_masks
from fake_training import draw_with, train
from snapshot import connected, files_below, rows_of

SMALL = (64, 64)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a registry that has two concepts and all kinds of rows."""
    folder = tmp_path_factory.mktemp("made")
    photos = draw_folder(folder / "photos", 3, size=SMALL)
    masks = draw_masks(folder / "masks", 1, size=SMALL)
    with Registry.open(folder / "registry/concepts.db", create=True) as registry:
        registry.add("rex", [photos], category="dog", tags=["pets"], caption="a dog", masks=masks)
        registry.add("mia", [photos / "00.png"], category="cat")
        draw_with(registry, "c" * 64, ("rex", train(registry, "rex", folder)))
    return folder


@pytest.fixture
def pets(made: Path, tmp_path: Path) -> Iterator[Registry]:
    """The registry of a copy of it."""
    with copied(made, tmp_path) as registry:
        yield registry


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "backup"


def blobs_in(folder: Path) -> dict[str, str]:
    found = files_below(folder / "concepts.blobs")
    return {path: what for path, what in found.items() if "bytes" in what and "/" in path}


def test_a_backup_is_an_equal_registry(pets: Registry, target: Path) -> None:
    report = pets.backup(target)
    assert (report.path, report.concepts, report.blobs, report.copied) == (str(target), 2, 5, 5)
    with Registry.open(target) as copy:
        assert rows_of(copy.location.database) == rows_of(pets.location.database)
        assert copy.check(read_data=True).problems == []
        for name in pets.names():
            assert copy.show(name) == pets.show(name)
    assert blobs_in(target) == blobs_in(pets.location.database.parent)
    assert report.bytes == sum(path.stat().st_size for path in blob_files(target))


def blob_files(folder: Path) -> list[Path]:
    return [folder / "concepts.blobs" / path for path in blobs_in(folder)]


def test_a_backup_works_as_a_registry(pets: Registry, target: Path, tmp_path: Path) -> None:
    pets.backup(target)
    with Registry.open(target) as copy:
        copy.add("leo", [draw_file(tmp_path / "leo.png", 9, SMALL)], category="lion")
        copy.edit("rex", notes="changed")
        assert copy.read_photo(copy.show("rex").images[0]).size == SMALL
        copy.gc(grace=0)
        assert copy.check(read_data=True).problems == []
    assert pets.names() == ["mia", "rex"]


def test_a_restored_registry_writes_ahead_as_any_other(pets: Registry, target: Path) -> None:
    pets.backup(target)
    with Registry.open(target) as copy:
        copy.edit("rex", notes="changed")
        mode = copy._store.database.reader.execute("PRAGMA journal_mode")
        assert [*mode.fetchone()] == ["wal"]


def test_a_later_backup_takes_only_what_is_new(
    pets: Registry, target: Path, tmp_path: Path
) -> None:
    pets.backup(target)
    untouched = {path: path.stat().st_mtime_ns for path in blob_files(target)}
    pets.add("rex", [draw_file(tmp_path / "new.png", 9, SMALL)])
    pets.remove(["mia"])
    report = pets.backup(target)
    assert (report.concepts, report.blobs, report.copied) == (1, 6, 1)
    assert {path: path.stat().st_mtime_ns for path in untouched} == untouched
    with Registry.open(target) as copy:
        assert rows_of(copy.location.database) == rows_of(pets.location.database)
        assert copy.check(read_data=True).ok


def test_a_backup_without_changes_copies_nothing(pets: Registry, target: Path) -> None:
    pets.backup(target)
    assert pets.backup(target).copied == 0


def test_what_a_backup_lost_is_copied_again(pets: Registry, target: Path) -> None:
    pets.backup(target)
    first, second, *_ = blob_files(target)
    first.unlink()
    second.write_bytes(b"truncated")
    assert pets.backup(target).copied == 2
    with Registry.open(target) as copy:
        assert copy.check(read_data=True).ok


def test_an_unfinished_backup_is_finished_by_the_next(pets: Registry, target: Path) -> None:
    target.mkdir()
    (target / "concepts.db.unfinished").write_bytes(b"half of it")
    pets.backup(target)
    assert not (target / "concepts.db.unfinished").exists()
    with Registry.open(target) as copy:
        assert copy.check(read_data=True).ok


def test_a_backup_leaves_nothing_but_the_registry(pets: Registry, target: Path) -> None:
    pets.backup(target)
    assert sorted(path.name for path in target.iterdir()) == ["concepts.blobs", "concepts.db"]
    assert list((target / "concepts.blobs/tmp").iterdir()) == []


def test_an_empty_registry_can_be_backed_up(registry: Registry, target: Path) -> None:
    assert registry.backup(target).blobs == 0
    with Registry.open(target) as copy:
        assert copy.names() == []


def test_progress_is_told(pets: Registry, target: Path) -> None:
    told: list[tuple[int, int]] = []
    pets.backup(target, on_progress=lambda *now: told.append(now))
    assert told == [(i, 5) for i in range(1, 6)]


# --- what is refused ----------------------------------------------------------------------------


def refused(registry: Registry, target: Path, around: Path) -> str:
    before = files_below(around)
    with pytest.raises(AlreadyExists) as caught:
        registry.backup(target)
    assert files_below(around) == before
    assert caught.value.hint
    return caught.value.message


def test_a_folder_with_other_things_is_refused(
    pets: Registry, target: Path, tmp_path: Path
) -> None:
    draw_file(target / "holiday.png", 1, SMALL)
    assert refused(pets, target, tmp_path) == f"{target} has other files in it (holiday.png)"


def test_a_file_is_refused(pets: Registry, target: Path, tmp_path: Path) -> None:
    target.write_text("mine")
    assert refused(pets, target, tmp_path) == f"{target} is a file"


def test_the_registry_itself_is_refused(pets: Registry, tmp_path: Path) -> None:
    folder = pets.location.database.parent
    assert refused(pets, folder, tmp_path) == f"{folder} is the registry itself"
    (tmp_path / "link").symlink_to(folder)
    refused(pets, tmp_path / "link", tmp_path)


def test_another_registry_is_refused(pets: Registry, target: Path, tmp_path: Path) -> None:
    with Registry.open(target / "concepts.db", create=True) as other:
        other.add("leo", [draw_file(tmp_path / "leo.png", 9, SMALL)], category="lion")
    refused(pets, target, tmp_path)
    with Registry.open(target) as other:
        assert other.names() == ["leo"]


@pytest.mark.parametrize("script", [None, "CREATE TABLE song (x)", "CREATE TABLE event (x)"])
def test_a_database_of_another_program_is_refused(
    pets: Registry, target: Path, tmp_path: Path, script: str | None
) -> None:
    target.mkdir()
    if script is None:
        (target / "concepts.db").write_bytes(b"something of somebody")
    else:
        with connected(target / "concepts.db") as connection:
            connection.execute(script)
    refused(pets, target, tmp_path)


# --- damage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["missing", "changed", "truncated"])
def test_a_damaged_photo_is_named_and_the_rest_is_copied(
    pets: Registry, target: Path, damage: str
) -> None:
    victim = pets.path_of(pets.show("rex").images[1].sha256)
    if damage == "missing":
        victim.unlink()
    else:
        size = victim.stat().st_size - (damage == "truncated")
        victim.write_bytes(b"x" * size)
    with pytest.raises(RegistryCorrupt, match=re.escape(str(victim))) as caught:
        pets.backup(target)
    assert "lacks 1 of 5 files" in caught.value.message
    assert caught.value.hint == "concept check --read-data"
    assert len(blobs_in(target)) == 4
    with Registry.open(target) as copy:
        assert copy.names() == ["mia", "rex"]
        (problem,) = copy.check(read_data=True).problems
        assert (problem.kind, problem.sha256) == ("missing", victim.name)
    assert list((target / "concepts.blobs/tmp").iterdir()) == []


def test_damage_here_does_not_reach_an_earlier_backup(pets: Registry, target: Path) -> None:
    pets.backup(target)
    victim = pets.path_of(pets.show("rex").images[1].sha256)
    original = victim.read_bytes()
    victim.write_bytes(b"x" * len(original))
    pets.backup(target)
    with Registry.open(target) as copy:
        assert copy.check(read_data=True).ok
        assert copy.path_of(victim.name).read_bytes() == original


def test_a_log_that_a_killed_process_left_beside_a_backup_does_no_harm(
    pets: Registry, target: Path
) -> None:
    pets.backup(target)
    log = target / "concepts.db-wal"
    with Registry.open(target) as copy:
        with copy._store.database.write() as session:
            session.connection().exec_driver_sql("UPDATE concept SET notes = 'of the log'")
        left = log.read_bytes()
    log.write_bytes(left)
    pets.edit("rex", notes="changed in the registry", tag=["new"])
    pets.backup(target)
    with Registry.open(target) as copy:
        assert copy.check(read_data=True).problems == []
        assert rows_of(copy.location.database) == rows_of(pets.location.database)


@pytest.mark.parametrize("change", ["edit", "picture"])
def test_a_backup_that_was_used_since_is_not_overwritten(
    pets: Registry, target: Path, tmp_path: Path, change: str
) -> None:
    pets.backup(target)
    with Registry.open(target) as copy:
        if change == "edit":
            copy.edit("rex", notes="changed in the backup")
        else:
            draw_with(copy, "d" * 64, ("rex", 1))
        before = rows_of(copy.location.database)
    pets.edit("mia", notes="changed in the registry")
    with pytest.raises(AlreadyExists, match="has been changed since"):
        pets.backup(target)
    assert rows_of(target / "concepts.db") == before


def test_a_concept_removed_meanwhile_is_whole_in_the_backup(
    pets: Registry, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_to = Database.copy_to
    photos = len(pets.show("rex").images)

    def copy_then_remove(self: Database, path: Path) -> None:
        copy_to(self, path)
        with Registry.open(pets.location.database) as other:
            other.remove(["rex"])

    monkeypatch.setattr(Database, "copy_to", copy_then_remove)
    pets.backup(target)
    with Registry.open(target) as copy:
        assert len(copy.show("rex").images) == photos
        assert copy.check(read_data=True).ok

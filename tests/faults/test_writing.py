"""Fault 7: the disk is full, or may not be written."""

import contextlib
import errno
import json
import os
import random
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conceptry.registry import Registry, blobs, locate
from drawing import draw_folder
from forked import run_forked
from PIL import Image
from program import UNPRIVILEGED, invoke, small_disk, stored_files

SHARED_MEMORY = 32 << 10
"""The least that SQLite's write-ahead log needs on the side."""
ROOM = SHARED_MEMORY + (8 << 10)


@pytest.fixture
def rex_alone(with_rex: Path, tmp_path: Path, database: Path) -> Path:
    """A registry with rex that nobody has open."""
    shutil.copytree(with_rex, tmp_path, dirs_exist_ok=True)
    return database


def noise(path: Path, num_bytes: int) -> Path:
    """A photo that cannot be compressed, of a little more than `num_bytes`."""
    side = int((num_bytes / 3) ** 0.5) + 1
    pixels = random.Random(num_bytes).randbytes(side * side * 3)
    path.parent.mkdir(exist_ok=True)
    Image.frombytes("RGB", (side, side), pixels).save(path, compress_level=0)
    return path


def temporary_files(database: Path) -> list[Path]:
    folder = locate(database).blobs / "tmp"
    return list(folder.iterdir()) if folder.exists() else []


def rows(database: Path) -> list[str]:
    with Registry.open(database) as registry:
        return [f"{event.concept} {event.action}" for event in registry.history()]


@contextlib.contextmanager
def full_disk(max_bytes: int) -> Iterator[None]:
    """Let no file grow beyond `max_bytes`, in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def assert_refused(database: Path, max_bytes: int, *line: str | Path) -> str:
    """The command meets a full disk: exit code 4, and all is as before. Returns its message."""
    files, history = stored_files(database), rows(database)
    with full_disk(max_bytes):
        result = invoke("--registry", database, *line)
    assert (result.exit_code, result.stdout) == (4, ""), result.stderr
    assert result.stderr.startswith("error: cannot ")
    assert result.stderr.count("\n") == 1
    assert stored_files(database) == files
    assert rows(database) == history
    return result.stderr


def assert_works(database: Path, *line: str | Path) -> None:
    """The same command with room again."""
    assert invoke("--registry", database, *line).exit_code == 0
    assert invoke("--registry", database, "check", "--read-data").exit_code == 0


def test_fault_07_disk_full_in_the_middle_of_a_blob(rex_alone: Path) -> None:
    photos = [noise(Path("new/a.png"), 10_000), noise(Path("new/b.png"), 100_000)]
    line = ("add", "mia", *photos, "--category", "cat")
    message = assert_refused(rex_alone, ROOM, *line)
    assert f"cannot write {locate(rex_alone).blobs / 'tmp'}{os.sep}" in message
    assert_works(rex_alone, *line)


@pytest.mark.long
def test_fault_07_disk_full_in_a_real_process(rex_alone: Path) -> None:
    line = ("--registry", rex_alone, "add", "rex", noise(Path("new/a.png"), 100_000), "--json")
    before = stored_files(rex_alone)
    done = run_forked(*line, prelude=small_disk(ROOM))
    assert (done.returncode, done.stderr) == (4, "")
    assert json.loads(done.stdout)["error"]["code"] == "storage"
    assert stored_files(rex_alone) == before
    assert run_forked(*line).returncode == 0


def test_fault_07_disk_full_in_the_middle_of_the_commit(rex_alone: Path) -> None:
    photos = draw_folder(Path("many"), 150, size=(32, 32))
    assert max(photo.stat().st_size for photo in photos.iterdir()) < ROOM // 4
    line = ("add", "mia", photos, "--category", "cat")
    message = assert_refused(rex_alone, ROOM, *line)
    assert str(rex_alone) in message
    assert_works(rex_alone, *line)


@pytest.mark.long
def test_fault_07_disk_full_in_the_middle_of_a_checkpoint(rex_alone: Path) -> None:
    photos = draw_folder(Path("some"), 60, size=(32, 32))
    size = rex_alone.stat().st_size
    line = ("--registry", rex_alone, "add", "mia", photos, "--category", "cat")
    done = run_forked(*line, prelude=small_disk(size - 4096))
    log = rex_alone.with_name("concepts.db-wal")
    assert log.stat().st_size > 0, "the checkpoint found room after all"
    assert done.returncode == 0, "the log holds it, and it is committed"
    assert_works(rex_alone, "add", "mia", photos)
    with Registry.open(rex_alone) as registry:
        assert len(registry.show("mia").images) == 60


@pytest.mark.parametrize("max_bytes", [100, 5_000, 40_000, 100_000])
def test_fault_07_disk_full_while_the_registry_is_made(
    database: Path, photos: Path, max_bytes: int
) -> None:
    line = ("--registry", database, "add", "rex", photos, "--category", "dog")
    with full_disk(max_bytes):
        result = invoke(*line)
    assert (result.exit_code, result.stdout) == (4, "")
    assert str(database) in result.stderr
    assert not stored_files(database)
    assert_works(database, *line[2:])


@pytest.mark.parametrize("name", ["sync_file", "sync_folder"])
def test_fault_07_disk_full_at_a_sync(
    rex_alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Some file systems say that there is no room only when asked to keep what was written."""
    before = stored_files(rex_alone)
    photo = noise(Path("new/a.png"), 1000)
    with monkeypatch.context() as broken:
        broken.setattr(blobs, name, _no_room)
        result = invoke("--registry", rex_alone, "add", "rex", photo)
    assert result.exit_code == 4
    assert str(locate(rex_alone).blobs) in result.stderr
    assert "No space left on device" in result.stderr
    assert stored_files(rex_alone) == before
    assert_works(rex_alone, "add", "rex", photo)


def _no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_fault_07_disk_full_while_exporting(rex_alone: Path) -> None:
    assert_works(rex_alone, "add", "rex", noise(Path("new/a.png"), 100_000))
    Path("rex.concept").write_text("an older export")
    message = assert_refused(rex_alone, ROOM, "export", "rex", "rex.concept", "--force")
    assert "cannot write rex.concept" in message
    assert Path("rex.concept").read_text() == "an older export"
    assert not list(Path().glob(".rex*"))
    assert_works(rex_alone, "export", "rex", "rex.concept", "--force")


@pytest.mark.parametrize("max_bytes", [ROOM, 200_000], ids=["database", "blob"])
def test_fault_07_disk_full_while_backing_up(rex_alone: Path, max_bytes: int) -> None:
    assert_works(rex_alone, "add", "rex", noise(Path("new/a.png"), 300_000))
    message = assert_refused(rex_alone, max_bytes, "backup", "copy")
    assert "copy" in message
    assert not list(Path("copy").glob("concepts.db*")), "an unfinished copy takes the last room"
    assert not temporary_files(Path("copy/concepts.db"))
    assert_works(rex_alone, "backup", "copy")
    assert_works(Path("copy/concepts.db"), "list")


def test_fault_07_disk_full_while_importing(rex_alone: Path) -> None:
    photo = noise(Path("new/a.png"), 100_000)
    assert_works(rex_alone, "add", "mia", photo, "--category", "cat")
    assert_works(rex_alone, "export", "mia", "mia.concept")
    line = ("import", "mia.concept", "--as", "mo")
    assert_refused(rex_alone, ROOM, *line)
    assert_works(rex_alone, *line)


@pytest.mark.parametrize(
    "line",
    [
        ["edit", "rex", "--notes", "x" * 5000],
        ["rename", "rex", "max"],
        ["rm", "rex", "--yes"],
        ["check", "--repair"],
    ],
    ids=lambda line: line[0],
)
def test_fault_07_no_room_at_all(rex_alone: Path, line: list[str]) -> None:
    assert str(rex_alone) in assert_refused(rex_alone, 1000, *line)
    assert_works(rex_alone, *line)


@pytest.mark.parametrize("line", [["list"], ["show", "rex"], ["check"]], ids=lambda line: line[0])
def test_fault_36_no_room_at_all_to_read(rex_alone: Path, line: list[str]) -> None:
    with full_disk(0):
        result = invoke("--registry", rex_alone, *line)
    assert result.exit_code == 0, result.stderr


def test_fault_36_gc_frees_room_where_there_is_none(rex_alone: Path) -> None:
    assert_works(rex_alone, "rm", "rex", "--yes")
    with full_disk(0):
        result = invoke("--registry", rex_alone, "gc", "--grace", "0")
    assert (result.exit_code, result.stdout[:16]) == (0, "removed 3 files "), result.stderr
    assert not stored_files(rex_alone)


@pytest.fixture
def read_only(rex_alone: Path) -> Iterator[Path]:
    """A registry with rex whose folders may not be written."""
    folders = [rex_alone.parent, *(path for path in rex_alone.parent.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o500)
    yield rex_alone
    for folder in folders:
        folder.chmod(0o700)


@pytest.mark.skipif(
    sys.platform != "linux" and os.geteuid() == 0, reason="root may write everywhere"
)
@pytest.mark.parametrize(
    "line",
    [["add", "rex", "new.png"], ["edit", "rex", "--notes", "x"], ["gc", "--grace", "0"]],
    ids=lambda line: line[0],
)
def test_fault_07_a_folder_that_may_not_be_written(read_only: Path, line: list[str]) -> None:
    noise(Path("new.png"), 1000)
    before = stored_files(read_only)
    done = run_forked("--registry", read_only, *line, prelude=UNPRIVILEGED)
    assert (done.returncode, done.stdout) == (4, ""), done.stderr
    assert str(read_only.parent) in done.stderr
    assert stored_files(read_only) == before


@pytest.mark.skipif(
    sys.platform != "linux" and os.geteuid() == 0, reason="root may write everywhere"
)
@pytest.mark.parametrize(
    "line",
    [["list"], ["show", "rex"], ["history"], ["check", "--read-data"], ["export", "rex", "a"]],
    ids=lambda line: line[0],
)
@pytest.mark.parametrize("of", ["registry", "backup"])
def test_fault_36_what_cannot_be_written_can_be_read(
    read_only: Path, of: str, line: list[str]
) -> None:
    database = read_only
    if of == "backup":
        for folder in (read_only.parent, *locate(read_only).blobs.iterdir()):
            folder.chmod(0o700) if folder.is_dir() else None
        assert invoke("--registry", read_only, "backup", "copy").exit_code == 0
        database = Path("copy/concepts.db").absolute()
        for folder in (locate(database).blobs, database.parent):
            folder.chmod(0o500)
    before = sorted(database.parent.rglob("*"))
    done = run_forked("--registry", database, *line, prelude=UNPRIVILEGED)
    assert done.returncode == 0, done.stderr
    assert sorted(database.parent.rglob("*")) == before, "no log and no lock"
    if of == "backup":
        for folder in (database.parent, locate(database).blobs):
            folder.chmod(0o700)


@pytest.mark.parametrize("name", ["add", "backup", "export"])
def test_fault_07_a_file_where_a_folder_should_be(rex_alone: Path, name: str) -> None:
    Path("file").touch()
    line = {
        "add": ("--registry", "file/concepts.db", "add", "rex", "photos", "-c", "dog"),
        "backup": ("--registry", str(rex_alone), "backup", "file/copy"),
        "export": ("--registry", str(rex_alone), "export", "rex", "file/rex.concept"),
    }[name]
    result = invoke(*line)
    assert result.exit_code in (2, 4)
    assert "file/" in result.stderr

"""Faults 1 and 2: kills in the middle of `add`, and the order of syncs that makes them harmless."""

import errno
import os
from pathlib import Path

import pytest
from conceptry.adapters.formats.importing import ImportOptions, import_path
from conceptry.registry import Registry, files
from conceptry.registry.database import Database
from conceptry.registry.errors import StorageError
from drawing import draw_file
from foreign_files import write_embedding
from kill import PLANTS, run_kills
from long import quick_for
from sqlalchemy import event

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills need fork")


@pytest.mark.parametrize(
    ("kills", "at_least"), [(5, 0), pytest.param(40, 8, marks=pytest.mark.long)]
)
def test_fault_01_kills_break_no_promise(kills: int, at_least: int, tmp_path: Path) -> None:
    outcome = run_kills(kills, tmp_path)
    assert outcome.violations == []
    assert outcome.acknowledged > 0
    inside_add = outcome.runs - outcome.moments["elsewhere (opening, decoding, between two adds)"]
    assert inside_add >= at_least, outcome.moments


@pytest.mark.long
@pytest.mark.parametrize("plant", quick_for(1, PLANTS))
def test_fault_01_the_harness_sees_a_planted_wrong_order(plant: str, tmp_path: Path) -> None:
    outcome = run_kills(40, tmp_path, plant=PLANTS[plant], stop_at_first=True)
    assert outcome.violations


def test_fault_02_sync_rename_sync_folder_commit(
    registry: Registry, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, str]] = []
    _record_file_calls(calls, monkeypatch)
    engine = registry._store.database._engine
    event.listen(engine, "commit", lambda _: calls.append(("commit", "concepts.db")))

    photo = draw_file(tmp_path / "photo.png")
    added = registry.add("rex", [photo], category="dog").added[0].sha256

    blobs = database.with_suffix(".blobs")
    final = str(blobs / added[:2] / added)
    temporary = next(path for kind, path in calls if kind == "fsync" and "/tmp/" in path)
    order = [
        ("fsync", temporary),
        ("rename", f"{temporary} -> {final}"),
        ("fsync", str(blobs / added[:2])),
        ("fsync", str(blobs)),
        ("commit", "concepts.db"),
    ]
    positions = [calls.index(call) for call in order]
    assert positions == sorted(positions), calls
    after = [path.rpartition(" -> ")[2] for kind, path in calls[positions[-1] + 1 :]]
    assert str(blobs / "stamp") in after
    assert {Path(path).parent for path in after} <= {blobs / "tmp", blobs, blobs.parent}


@pytest.fixture
def embeddings(tmp_path: Path) -> Path:
    """A folder of twenty, which are stored as many."""
    folder = tmp_path / "embeddings"
    folder.mkdir()
    for number in range(20):
        write_embedding(folder / f"word-{number}.safetensors", seed=number)
    return folder


@pytest.mark.parametrize("has_call", [True, False], ids=["together", "each"])
def test_fault_02_many_files_are_synced_before_they_are_renamed_and_their_names_before_the_commit(
    registry: Registry, embeddings: Path, monkeypatch: pytest.MonkeyPatch, has_call: bool
) -> None:
    calls: list[tuple[str, str]] = []
    _record_file_calls(calls, monkeypatch)

    def sync_all(_: int) -> int:
        calls.append(("sync", "all"))
        return 0

    monkeypatch.setattr(files, "_syncfs", lambda: sync_all if has_call else None)
    event.listen(registry._store.database._engine, "commit", lambda _: calls.append(("commit", "")))
    found = import_path(registry, embeddings, ImportOptions())
    assert {each.outcome for each in found} == {"imported"}
    blobs = registry.location.blobs
    kinds = [kind for kind, path in calls if f"{blobs}/tmp" in path or kind in ("sync", "commit")]
    renames = [i for i, kind in enumerate(kinds) if kind == "rename"]
    if has_call:
        assert kinds[: renames[0]] == ["sync"]
        assert kinds[renames[0] : kinds.index("commit")] == ["rename"] * 20 + ["sync"]
    else:
        assert kinds[: renames[0]] == ["fsync"] * 20
        folders = {path for kind, path in calls if kind == "fsync"}
        assert {str(blobs), *(str(path.parent) for path in blobs.glob("??/*"))} <= folders


def test_fault_02_a_sync_that_fails_leaves_nothing(
    registry: Registry, embeddings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_syncfs", lambda: lambda _: -1)
    with pytest.raises(StorageError):
        import_path(registry, embeddings, ImportOptions())
    assert registry.names() == []
    assert [path for path in registry.location.blobs.glob("*/*") if path.is_file()] == []


def test_a_file_system_that_takes_no_advice_stores_many_files_too(
    registry: Registry, embeddings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def refuse(*_: object) -> None:
        asked.append(_)
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "posix_fadvise", refuse, raising=False)
    monkeypatch.setattr(os, "POSIX_FADV_DONTNEED", 4, raising=False)
    monkeypatch.setattr(files, "_syncfs", lambda: lambda _: 0)
    found = import_path(registry, embeddings, ImportOptions())
    assert {each.outcome for each in found} == {"imported"}
    assert len(asked) == 20


def test_fault_02_commits_are_durable(registry: Registry) -> None:
    reader = registry._store.database.reader
    settings = [
        reader.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "foreign_keys")
    ]
    assert settings == ["wal", 2, 1]
    assert isinstance(registry._store.database, Database)
    with registry._store.database.write() as session:
        written = session.connection().exec_driver_sql("PRAGMA synchronous").scalar()
    assert written == 2


def _record_file_calls(calls: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    sync, rename = os.fsync, os.replace

    def record_sync(descriptor: int) -> None:
        calls.append(("fsync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))
        sync(descriptor)

    def record_rename(old: str, new: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        folders = [Path(f"/proc/self/fd/{each}").readlink() for each in (src_dir_fd, dst_dir_fd)]
        calls.append(("rename", f"{folders[0] / old} -> {folders[1] / new}"))
        rename(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "replace", record_rename)

"""Faults 3 to 6: several processes on one registry."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import workers
from conceptry.registry import Registry, RegistryBusy
from drawing import draw_file, draw_folder


def test_fault_03_the_same_bytes_from_two_processes_are_one_blob(
    database: Path, photos: Path
) -> None:
    names = [["one"], ["two"]]
    results = workers.in_processes(
        workers.add_several, [(str(database), part, str(photos), 600.0) for part in names]
    )
    assert results == [{"one": "landed"}, {"two": "landed"}]
    with Registry.open(database) as registry:
        one, two = registry.show("one"), registry.show("two")
        assert [image.sha256 for image in one.images] == [image.sha256 for image in two.images]
        report = registry.check(read_data=True)
    assert (report.blobs, report.problems) == (3, [])


def test_fault_03_temporary_names_are_unique(registry: Registry) -> None:
    with registry._store.receive() as staging:
        for _ in range(100):
            staging.write(os.urandom(8))
        assert len({path.name for path in staging._staged.values()}) == 100


@pytest.mark.long
def test_fault_04_64_adds_from_8_processes_land_or_say_busy(database: Path, tmp_path: Path) -> None:
    photos = draw_folder(tmp_path / "small", 3, size=(64, 64))
    names = [[f"c{process}-{i}" for i in range(8)] for process in range(8)]
    results = workers.in_processes(
        workers.add_several, [(str(database), part, str(photos), 600.0) for part in names]
    )
    outcomes = {name: outcome for part in results for name, outcome in part.items()}
    assert len(outcomes) == 64
    assert set(outcomes.values()) <= {"landed", "busy"}
    with Registry.open(database) as registry:
        landed = sorted(name for name, outcome in outcomes.items() if outcome == "landed")
        assert registry.names() == landed
        assert len(landed) >= 32
        report = registry.check(read_data=True)
    assert report.problems == []


@pytest.mark.long
def test_fault_04_no_photo_is_lost_when_all_extend_one_concept(
    rex: Registry, database: Path, tmp_path: Path
) -> None:
    extra = [draw_file(tmp_path / f"extra{i}.png", 100 + i, (64, 64)) for i in range(8)]
    added = workers.in_processes(
        workers.append_photo, [(str(database), "rex", str(photo)) for photo in extra]
    )
    shown = [image.sha256 for image in rex.show("rex").images]
    assert len(shown) == 3 + 8
    assert set(added) <= set(shown)


def test_fault_04_a_writer_that_waits_in_vain_says_busy(rex: Registry, database: Path) -> None:
    with (
        Registry.open(database, timeout=0.2) as other,
        rex._store.database.write(),
        pytest.raises(RegistryBusy) as raised,
    ):
        other.rename("rex", "max")
    assert raised.value.code == "registry_busy"
    assert rex.names() == ["rex"]


def test_fault_05_gc_waits_for_an_add_and_spares_what_it_brought(
    rex: Registry, database: Path, photos: Path
) -> None:
    rex.remove(["rex"])
    with rex._store.receive() as staging:
        staging.write(b"bytes that no row needs yet")
        staging.publish()
        with Registry.open(database, timeout=0.2) as other, pytest.raises(RegistryBusy):
            other.gc(grace=0)
    assert len(list(database.with_suffix(".blobs").glob("??/*"))) == 4


def test_fault_05_a_young_blob_survives_and_an_old_one_goes(rex: Registry, database: Path) -> None:
    rex.remove(["rex"])
    blobs = sorted(database.with_suffix(".blobs").glob("??/*"))
    _age(blobs[0], 7200)
    report = rex.gc(grace=3600)
    assert (report.removed, report.kept_young) == (1, 2)
    assert sorted(database.with_suffix(".blobs").glob("??/*")) == blobs[1:]


def test_fault_05_old_temporary_files_go_and_needed_blobs_stay(
    rex: Registry, database: Path
) -> None:
    folder = database.with_suffix(".blobs")
    old, young = (folder / "tmp" / f"{i}-{'0' * 16}" for i in (1, 2))
    for path in (old, young):
        path.write_bytes(b"half a photo")
    _age(old, 7200)
    for blob in folder.glob("??/*"):
        _age(blob, 7200)
    assert rex.gc().temporary == 1
    assert (old.exists(), young.exists()) == (False, True)
    assert rex.check(read_data=True).ok


def test_fault_05_dry_run_deletes_nothing(rex: Registry, database: Path) -> None:
    rex.remove(["rex"])
    assert rex.gc(grace=0, dry_run=True).removed == 3
    assert len(list(database.with_suffix(".blobs").glob("??/*"))) == 3
    assert rex.gc(grace=0).removed == 3


@pytest.mark.parametrize("kind", ["shared", "exclusive"])
def test_fault_06_the_lock_of_a_killed_process_is_gone_with_it(
    rex: Registry, database: Path, photos: Path, kind: str
) -> None:
    with _holder(database, kind) as process:
        with Registry.open(database, timeout=0.2) as other, pytest.raises(RegistryBusy):
            other.gc(grace=0)
        workers.kill(process)
        rex.gc(grace=0)
        rex.add("mia", [photos], category="cat")


def test_fault_06_a_waiter_that_gave_up_leaves_no_lock(rex: Registry, database: Path) -> None:
    with _holder(database, "shared"):
        with Registry.open(database, timeout=0.2) as waiter, pytest.raises(RegistryBusy):
            waiter.gc(grace=0)
        with rex._store.lock.shared():
            pass
    rex.gc(grace=0)


def test_fault_06_adds_do_not_wait_for_each_other(
    rex: Registry, database: Path, photos: Path
) -> None:
    with _holder(database, "shared"):
        rex.add("mia", [photos], category="cat")
    assert rex.names() == ["mia", "rex"]


@contextmanager
def _holder(database: Path, kind: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, workers.__file__, str(database), kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def _age(path: Path, seconds: float) -> None:
    moment = time.time() - seconds
    os.utime(path, (moment, moment))

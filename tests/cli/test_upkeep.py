"""`concept check` and `concept gc`."""

import os
import shutil
from pathlib import Path

import pytest
from conceptry.registry import Registry
from drawing import draw_file
from program import Ask, Run, error_of, invoke, make_old


def test_all_is_well(rex: Registry, run: Run) -> None:
    result = run("check", "--read-data")
    assert result.exit_code == 0
    assert result.stdout.startswith("3 files (")
    assert result.stdout.endswith(") checked, all read: all is well\n")
    assert result.stderr == ""


def test_check_in_json(rex: Registry, ask: Ask) -> None:
    assert ask("check", "--read-data") == {
        "ok": True,
        "read_data": True,
        "blobs": 3,
        "bytes": rex.show("rex").bytes,
        "problems": [],
    }


def test_a_problem_is_a_line_and_exit_code_4(rex: Registry, run: Run) -> None:
    lost = rex.path_of(rex.show("rex").images[0].sha256)
    lost.unlink()
    result = run("check")
    assert result.exit_code == 4
    problem, total = result.stdout.splitlines()
    assert problem.startswith(f"ERROR: missing: concepts.blobs/{lost.parent.name}/{lost.name}")
    assert problem.endswith("is missing (photo 00.png of rex)")
    assert total.endswith("NOT WELL")
    assert "concept check --repair --from" in result.stderr


def test_a_problem_in_json_is_a_report_not_an_error(rex: Registry, run: Run, ask: Ask) -> None:
    rex.path_of(rex.show("rex").images[0].sha256).unlink()
    result = run("check", "--json")
    assert (result.exit_code, result.stderr) == (4, "")
    assert '"ok": false' in result.stdout
    assert '"kind": "missing"' in result.stdout


def test_repair_from_a_folder_of_photos(rex: Registry, run: Run) -> None:
    rex.path_of(rex.show("rex").images[0].sha256).unlink()
    result = run("check", "--repair", "--from", "photos")
    assert result.exit_code == 0
    assert result.stdout.startswith("repaired: missing: ")
    assert run("check", "--read-data").stdout.startswith("3 files")


def test_repair_looks_in_no_folder(rex: Registry, run: Run) -> None:
    result = run("check", "--repair", "--from", "nowhere")
    assert (result.exit_code, result.stderr) == (3, "error: the folder nowhere does not exist\n")


def age(registry: Registry) -> None:
    for path in registry.location.blobs.glob("??/*"):
        make_old(path, 86400)


def test_gc_spares_the_young_and_the_needed(rex: Registry, run: Run) -> None:
    rex.edit("rex", remove_images=["00.png"])
    assert run("gc").stdout == "removed 0 files (0 B); 1 too young to go\n"
    age(rex)
    assert run("gc").stdout == "removed 1 file (3.1 kB)\n"
    assert rex.check(read_data=True).ok


def test_gc_only_says_what_would_go(rex: Registry, run: Run, ask: Ask) -> None:
    rex.remove(["rex"])
    age(rex)
    assert run("gc", "--dry-run").stdout.startswith("would remove 3 files (")
    report = ask("gc", "--dry-run")
    assert (report["removed"], report["dry_run"]) == (3, True)
    assert len(list(rex.location.blobs.glob("??/*"))) == 3


@pytest.mark.parametrize(
    ("grace", "goes"), [("0", True), ("90s", True), ("30m", True), ("2h", True), ("7d", False)]
)
def test_grace_is_a_time(rex: Registry, ask: Ask, grace: str, goes: bool) -> None:
    rex.remove(["rex"])
    age(rex)
    assert ask("gc", "--grace", grace)["removed"] == (3 if goes else 0)


@pytest.mark.parametrize("grace", ["soon", "-1h", "1y", "h", ""])
def test_a_grace_that_is_no_time(rex: Registry, run: Run, grace: str) -> None:
    result = run("gc", f"--grace={grace}", "--json")
    assert (result.exit_code, error_of(result)["code"]) == (2, "usage")


def test_gc_that_may_not_delete_is_no_bug(
    rex: Registry, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    rex.remove(["rex"])

    def refuse(path: str, *, dir_fd: int | None) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "unlink", refuse)
    result = run("gc", "--grace", "0")
    assert result.exit_code == 4
    assert "concepts.blobs" in result.stderr


def test_gc_of_a_copied_database_deletes_nothing_of_the_original(
    rex: Registry, database: Path, tmp_path: Path
) -> None:
    copy = database.with_suffix(".bak")
    rex.close()
    shutil.copy(database, copy)
    invoke("--registry", database, "add", "rex", draw_file(tmp_path / "new.png", 41))
    invoke("--registry", copy, "gc", "--grace", "0")
    assert invoke("--registry", database, "check").exit_code == 0


def test_the_command_that_repairs_reads_what_the_one_that_found_it_read(
    rex: Registry, run: Run
) -> None:
    """A flipped bit is not seen without reading."""
    photo = rex.path_of(rex.show("rex").images[0].sha256)
    kept = photo.read_bytes()
    Path("kept").mkdir()
    Path("kept/1.png").write_bytes(kept)
    photo.chmod(0o600)
    photo.write_bytes(bytes([kept[0] ^ 1]) + kept[1:])
    said = run("check", "--read-data").stderr
    assert "next: concept check --read-data --repair --from BACKUP_OR_PHOTOS" in said
    run("check", "--read-data", "--repair", "--from", "kept")
    assert photo.read_bytes() == kept

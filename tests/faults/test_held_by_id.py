"""Faults 29, 30, 32, 34 and 51: order by row, things held by id, promises kept in one commit."""

import json
import os
import pty
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import workers
from conceptry.registry import InvalidInput, Registry, RegistryBusy, RegistryError
from drawing import draw_file, draw_folder
from fake_training import begin, weights_file
from forked import Forked, run_forked
from kill_commands import PLANTS, run_kills
from long import quick_for
from program import change_rows, invoke, wait_until
from safetensors.torch import load_file
from snapshot import rows_of
from tiny_base import write_tiny_base

SHORT = ["--preview-every", "0", "--set", "augmentation.crops=2"]
SHORT += [word for i in (1, 2, 3) for word in ("--set", f"stage{i}.steps=2")]
SAVE_EACH_STEP = """
from conceptry.training import loop
loop.SAVE_EVERY_SECONDS = 0
"""
# each step tells that it is done, then waits for leave
WAITS_AFTER_A_STEP = (
    SAVE_EACH_STEP
    + """
import time
from pathlib import Path
step = loop._Loop._step
def told(self, number):
    step(self, number)
    Path("in a step").touch()
    while not Path("go on").exists():
        time.sleep(0.01)
loop._Loop._step = told
"""
)
# before the row of a version, and so before what else is promised with it
DIE = """
import os, signal
from conceptry.registry import lineage
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
lineage.{} = die
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_base(tmp_path_factory.mktemp("bases") / "tiny"))


@pytest.fixture
def lines(
    tiny: str, rex: Registry, database: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, list[str]]:
    """Command lines that begin a training of rex, and go on with it."""
    monkeypatch.setenv("CONCEPT_REGISTRY", str(database))
    begin = ["train", "rex", "--base", tiny]
    return {"begin": [*begin, *SHORT], "go on": [*begin, "--resume", "--preview-every", "0"]}


# --- row 29: order by row -------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["9999-01-01T00:00:00.000Z", "1970-01-01T00:00:00.000Z"])
def test_fault_29_the_latest_run_is_that_of_the_last_row(
    rex: Registry, database: Path, moment: str
) -> None:
    first, last = begin(rex, "rex"), begin(rex, "rex")
    rex.end_run(first, "done")
    rex.end_run(last, "interrupted")
    which = first if moment > "2" else last
    change_rows(database, f"UPDATE run SET started = '{moment}' WHERE uid = '{which}'")
    assert rex.resumable_run("rex").run == last
    saved = rex.run_folder(last) / "resume.safetensors"
    saved.write_bytes(b"where it goes on")
    rex.gc(grace=0)
    assert saved.exists()


def test_fault_29_gc_without_grace_takes_files_of_the_future(rex: Registry, database: Path) -> None:
    rex.remove(["rex"])
    for path in database.with_suffix(".blobs").glob("??/*"):
        os.utime(path, (4e9, 4e9))
    assert rex.gc().removed == 0
    assert rex.gc(grace=0).removed == 3


# --- row 30: held by id ---------------------------------------------------------------------------


@pytest.mark.long
def test_fault_30_a_concept_is_renamed_while_it_trains(
    lines: dict[str, list[str]], rex: Registry
) -> None:
    with Forked(*lines["begin"], "--json", prelude=WAITS_AFTER_A_STEP) as process:
        wait_until(Path("in a step").exists, process)
        rex.rename("rex", "max")
        second = invoke("--json", "train", "max", *lines["begin"][2:])
        assert json.loads(second.stdout)["failed"][0]["code"] == "registry_busy"
        rex.add("rex", [draw_folder(Path("cats"), 1)], category="cat")  # the name is free again
        Path("go on").touch()
        out, told = process.communicate()
    assert process.returncode == 0, told
    assert [each["concept"] for each in json.loads(out)["runs"]] == ["max"]
    assert [len(rex.show(name).versions) for name in ("max", "rex")] == [1, 0]
    assert [run.status for run in rex.show("max").runs] == ["done"]


@pytest.mark.long
@pytest.mark.parametrize("method", ["sefi", "attndreambooth"])
def test_fault_30_a_renamed_training_goes_on_bit_equal(
    tiny: str, rex: Registry, database: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setenv("CONCEPT_REGISTRY", str(database))
    words = ["--base", tiny, "--method", method, "--preview-every", "0"]
    words += ["--set", "augmentation.crops=2"]
    stages = ["embedding"] if method == "sefi" else ["stage1", "stage2", "stage3"]
    words += [word for stage in stages for word in ("--set", f"{stage}.steps=4")]
    assert run_forked("train", "rex", *words).returncode == 0
    with Forked("train", "rex", *words, prelude=WAITS_AFTER_A_STEP) as process:
        wait_until(Path("in a step").exists, process)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: "stopping after this step" in process.printed(), process)
        rex.rename("rex", "max")
        Path("go on").touch()
        _, told = process.communicate()
    assert process.returncode == 130
    assert "concept train max --resume" in told
    resumed = run_forked("train", "max", "--resume", "--base", tiny, "--preview-every", "0")
    assert resumed.returncode == 0, resumed.stderr
    whole, gone_on = (
        load_file(rex.path_of(version.artifacts[0].sha256)) for version in rex.show("max").versions
    )
    assert all(whole[name].equal(gone_on[name]) for name in whole)


@pytest.mark.long
@pytest.mark.parametrize("change", quick_for(1, ["rename", "remove"]))
def test_fault_30_a_concept_is_renamed_or_removed_while_it_is_drawn(
    lines: dict[str, list[str]], tiny: str, rex: Registry, change: str
) -> None:
    assert run_forked(*lines["begin"]).returncode == 0
    waits = """
import time
from pathlib import Path
from conceptry.generation import drawing
keep = drawing.Drawing._keep
def told(*arguments):
    Path("drawn").touch()
    while not Path("go on").exists():
        time.sleep(0.01)
    return keep(*arguments)
drawing.Drawing._keep = told
"""
    words = ("generate", "a photo of <rex>", "--base", tiny, "--steps", "1", "-n", "2", "--json")
    with Forked(*words, prelude=waits) as process:
        wait_until(Path("drawn").exists, process)
        rex.rename("rex", "max") if change == "rename" else rex.remove(["rex"])
        Path("go on").touch()
        out, told = process.communicate()
    assert process.returncode == 0, told
    pictures = json.loads(out)["images"]
    sources = [rex.trace(each["sha256"]).sources for each in pictures]
    assert [len(each) for each in sources] == [1 if change == "rename" else 0] * 2
    assert len(list(Path("pictures").glob("*.png"))) == 2


def test_fault_30_no_picture_is_there_before_its_row(
    lines: dict[str, list[str]], tiny: str, rex: Registry
) -> None:
    killed = run_forked(
        "generate", "a cat", "--base", tiny, "--steps", "1", prelude=DIE.format("add_generation")
    )
    assert killed.returncode == -signal.SIGKILL
    assert list(Path("pictures").glob("[!.]*.png")) == []


def test_fault_30_what_is_known_by_id_is_found_under_any_name(
    rex: Registry, tmp_path: Path
) -> None:
    concept = rex.show("rex")
    rex.rename("rex", "max")
    rex.add("rex", [draw_file(tmp_path / "cat.png", 7)], category="cat")
    assert rex.show(concept.id).name == "max"
    rex.add_version(concept.id, {"w": weights_file(tmp_path / "w")})
    rex.set_alias(concept.id, 1, "best")
    rex.add_evaluation(concept.id, 1, suite="s", config={}, scores={})
    assert len(rex.evaluations("max")) == 1
    with rex.training_lock(concept.id), pytest.raises(RegistryBusy, match="max is being trained"):
        rex.training_lock("max").__enter__()
    rex.remove(["max"])
    with pytest.raises(LookupError, match="was removed"):
        rex.show(concept.id)


# --- row 32: two backups at once ------------------------------------------------------------------


def test_fault_32_backups_into_one_folder_at_once_leave_a_whole_one(
    rex: Registry, database: Path, tmp_path: Path
) -> None:
    for number in range(4):
        target = tmp_path / f"backup-{number}"
        arguments = [(str(database), str(target))] * 3
        assert workers.in_processes(workers.back_up, arguments) == ["done"] * 3
        assert sorted(os.listdir(target)) == ["concepts.blobs", "concepts.db"]
        assert rows_of(target / "concepts.db") == rows_of(database)
        with Registry.open(target) as copy:
            assert copy.check(read_data=True).problems == []


def test_fault_32_a_backup_waits_for_another_one(rex: Registry, database: Path) -> None:
    target = Path("backup").absolute()
    rex.backup(target)
    with (
        Registry.open(target) as copy,
        copy._store.lock.exclusive(),
        Registry.open(database, timeout=0.2) as other,
        pytest.raises(RegistryBusy) as caught,
    ):
        other.backup(target)
    assert "another backup is being written into it" in caught.value.message
    rex.backup(target)


def test_fault_32_another_registry_that_came_first_is_kept(
    rex: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It came between the look at the folder and the lock."""
    from conceptry.registry import backup

    target, check = tmp_path / "backup", backup._check_folder

    def too_early(*arguments: Any) -> None:
        check(*arguments)
        with Registry.open(target / "concepts.db", create=True) as other:
            other.add("mia", [draw_file(tmp_path / "cat.png", 3)], category="cat")

    monkeypatch.setattr(backup, "_check_folder", too_early)
    with pytest.raises(InvalidInput, match="is not an earlier backup"):
        rex.backup(target)
    with Registry.open(target) as other:
        assert other.names() == ["mia"]


def test_fault_32_a_killed_backup_leaves_the_former_one(rex: Registry, database: Path) -> None:
    target = Path("backup").absolute()
    rex.backup(target)
    before = rows_of(target / "concepts.db")
    rex.add("rex", [draw_file(Path("new.png"), 8)])
    dies = """
import os, signal
from conceptry.registry.blobs import Staging
def die(self):
    os.kill(os.getpid(), signal.SIGKILL)
Staging.publish = die
"""
    killed = run_forked("--registry", database, "backup", target, prelude=dies)
    assert killed.returncode == -signal.SIGKILL
    assert rows_of(target / "concepts.db") == before
    rex.backup(target)
    assert sorted(os.listdir(target)) == ["concepts.blobs", "concepts.db"]
    with Registry.open(target) as copy:
        assert copy.check(read_data=True).problems == []
        assert len(copy.show("rex").images) == 4


# --- row 34: one transaction ----------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("where", quick_for(1, ["_insert_version", "_end", "record_event"]))
def test_fault_34_a_version_and_the_end_of_its_run_are_one(
    lines: dict[str, list[str]], rex: Registry, where: str
) -> None:
    dies_at_the_end = f"""
import os, signal
from conceptry.registry import lineage
finish = lineage.finish_run
def dying(*arguments, **options):
    exec({DIE.format(where)!r})
    return finish(*arguments, **options)
lineage.finish_run = dying
"""
    killed = run_forked(*lines["begin"], prelude=dies_at_the_end)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert rex.show("rex").versions == []
    assert rex.show("rex").runs[0].status == "interrupted"
    assert run_forked(*lines["go on"]).returncode == 0
    (version,), (run,) = rex.show("rex").versions, rex.show("rex").runs
    assert (version.run, run.status) == (run.run, "done")
    assert run_forked(*lines["go on"]).returncode == 3
    assert len(rex.show("rex").versions) == 1


def test_fault_34_a_run_is_finished_once(rex: Registry, tmp_path: Path) -> None:
    run, files = begin(rex, "rex"), {"w": weights_file(tmp_path / "w")}
    assert rex.finish_run(run, files) == 1
    with pytest.raises(InvalidInput, match="is done already"):
        rex.finish_run(run, files)
    assert len(rex.show("rex").versions) == 1


def test_fault_34_a_version_its_scores_and_its_alias_are_one(
    rex: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conceptry.registry import lineage
    from conceptry.registry.records import Scored

    def fails(*_: object) -> None:
        raise RegistryError("the alias cannot be set")

    files = {"w": weights_file(tmp_path / "w")}
    scored = Scored(suite="s", config={}, scores={})
    with monkeypatch.context() as patched:
        patched.setattr(lineage, "_set_alias", fails)
        with pytest.raises(RegistryError):
            rex.add_version("rex", files, alias="best", evaluation=lambda _: scored)
    assert rex.show("rex").versions == []
    assert rex.add_version("rex", files, alias="best", evaluation=lambda _: scored) == 1
    assert rex.show("rex").versions[0].aliases == ["best"]
    assert len(rex.evaluations("rex")) == 1


# --- row 51: the terminal closes ------------------------------------------------------------------


@pytest.mark.long
def test_fault_51_a_training_whose_terminal_closes_is_saved(
    lines: dict[str, list[str]], rex: Registry
) -> None:
    with Forked(*lines["begin"], prelude=WAITS_AFTER_A_STEP) as process:
        wait_until(Path("in a step").exists, process)
        process.send_signal(signal.SIGHUP)
        Path("go on").touch()
        assert process.wait() == 130, process.printed()
    (run,) = rex.show("rex").runs
    assert run.status == "interrupted"
    assert (rex.run_folder(run.run) / "resume.safetensors").exists()
    assert run_forked(*lines["go on"]).returncode == 0


@pytest.mark.long
def test_fault_51_a_training_that_was_started_to_outlive_its_terminal_goes_on(
    lines: dict[str, list[str]], rex: Registry
) -> None:
    no_hang_up = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    with Forked(*lines["begin"], prelude=no_hang_up + WAITS_AFTER_A_STEP) as process:
        wait_until(Path("in a step").exists, process)
        process.send_signal(signal.SIGHUP)
        Path("go on").touch()
        assert process.wait() == 0, process.printed()
    assert rex.show("rex").runs[0].status == "done"


@pytest.mark.long
@pytest.mark.parametrize(("is_ignored", "status"), [(False, "interrupted"), (True, "done")])
def test_fault_51_nothing_can_be_written_to_a_terminal_that_is_gone(
    lines: dict[str, list[str]], rex: Registry, is_ignored: bool, status: str
) -> None:
    """Writing to it fails, whether a signal has come yet or never will."""
    ours, theirs = pty.openpty()
    prelude = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" * is_ignored
    with Forked(*lines["begin"], prelude=prelude + WAITS_AFTER_A_STEP, stderr=theirs) as process:
        os.close(theirs)
        wait_until(Path("in a step").exists, process)
        os.close(ours)
        process.send_signal(signal.SIGHUP)
        Path("go on").touch()
        assert process.wait() == (0 if is_ignored else 130)
    assert [run.status for run in rex.show("rex").runs] == [status]


@pytest.mark.long
def test_fault_51_a_dead_run_is_shown_as_interrupted(
    lines: dict[str, list[str]], rex: Registry, database: Path
) -> None:
    with Forked(*lines["begin"], prelude=WAITS_AFTER_A_STEP) as process:
        wait_until(Path("in a step").exists, process)
        assert rex.show("rex").runs[0].status == "running"
        assert "status" not in rex.history("rex")[-1].detail
        process.kill()
        process.wait()
    assert rex.show("rex").runs[0].status == "interrupted"
    assert rex.history("rex")[-1].detail["status"] == "interrupted"
    shown = json.loads(invoke("--json", "show", "rex").stdout)
    assert shown["runs"][0]["status"] == "interrupted"
    assert "interrupted" in invoke("show", "rex").stdout
    assert "status interrupted" in invoke("history", "rex").stdout
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT status FROM run").fetchone() == ("running",)
    assert run_forked(*lines["go on"]).returncode == 0
    assert rex.show("rex").runs[0].status == "done"


# --- all together ---------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("kills", [40])
def test_kills_of_every_command_break_no_promise(kills: int, tmp_path: Path) -> None:
    outcome = run_kills(kills, tmp_path / "worlds")
    assert outcome.violations == []
    assert outcome.runs == kills


@pytest.mark.long
@pytest.mark.parametrize("plant", PLANTS)
def test_the_harness_sees_a_planted_mistake(plant: str, tmp_path: Path) -> None:
    """It ends as soon as it sees it: where others take the processor, kills come at odd moments."""
    assert run_kills(1000, tmp_path / "worlds", plant=plant).violations

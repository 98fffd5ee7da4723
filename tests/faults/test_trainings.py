"""Faults 20 to 25: trainings that are killed, interrupted or fail, and prompts that cannot be."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from conceptry.registry import Registry
from conceptry.registry.files import is_unfinished
from drawing import draw_folder
from forked import Forked, run_forked
from program import error_of, run_concept, small_disk, wait_until
from tiny_base import write_tiny_base

WORDS = ["--preview-every", "0", "--set", "augmentation.crops=2"]
WORDS += [word for i in (1, 2, 3) for word in ("--set", f"stage{i}.steps=4")]
SAVE_EACH_STEP = """
from conceptry.training import loop
loop.SAVE_EVERY_SECONDS = 0
"""
# in the second stage, once two of its steps have been saved
KILL = """
import os, signal
from conceptry.training import loop
loop.SAVE_EVERY_SECONDS = 0
save, calls = loop.StageRun.save, []
def save_and_die(self, step):
    save(self, step)
    if (self.stage.name, step) == ("stage2", 2):
        os.kill(os.getpid(), signal.SIGKILL)
loop.StageRun.save = save_and_die
"""
KILL_WHILE_SAVING = """
import os, signal
from conceptry.training import loop
loop.SAVE_EVERY_SECONDS = 0
replace, calls = os.replace, []
def die_instead(path, target, **handles):
    calls.append(target) if target == "resume.safetensors" else None
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(path, target, **handles)
os.replace = die_instead
"""
# the first step waits for a second Ctrl-C
NEVER_DONE = """
import time
from pathlib import Path
from conceptry.training import loop
def step(self, number):
    Path("in a step").touch()
    while True:
        time.sleep(0.01)
loop._Loop._step = step
"""
NOT_FINITE = """
from conceptry.training import loop
loop.SAVE_EVERY_SECONDS = 0
loss, calls = loop.diffusion_loss, []
def broken(*arguments):
    calls.append(1)
    return loss(*arguments) * (float("nan") if len(calls) == 6 else 1)
loop.diffusion_loss = broken
"""


@pytest.fixture(scope="module")
def _tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_base(tmp_path_factory.mktemp("bases") / "tiny"))


@pytest.fixture
def lines(
    _tiny: str, rex: Registry, database: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, list[str]]:
    """Command lines that begin a training of rex, and go on with it."""
    monkeypatch.setenv("CONCEPT_REGISTRY", str(database))
    begin = ["train", "rex", "--base", _tiny]
    return {"begin": [*begin, *WORDS], "go on": [*begin, "--resume", "--preview-every", "0"]}


@pytest.fixture(scope="module")
def whole(_tiny: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Any]]:
    """What a training leaves that nothing stops: the hash of its weights, and all losses."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with Registry.open(folder / "concepts.db", create=True) as registry:
        registry.add("rex", [draw_folder(folder / "photos", 3)], category="dog", tags=["pets"])
        words = ["--registry", folder, "train", "rex", "--base", _tiny, *WORDS]
        done = run_forked(*words)
        assert done.returncode == 0, done.stderr
        return result_of(registry)


def result_of(registry: Registry) -> tuple[str, list[Any]]:
    (version,) = registry.show("rex").versions
    rows = registry._store.database.rows(
        "SELECT stage, step, name, value FROM metric ORDER BY stage, step, name"
    )
    return version.artifacts[0].sha256, [tuple(row) for row in rows]


@pytest.mark.long
def test_fault_20_a_killed_training_goes_on_bit_equal_in_a_new_process(
    lines: dict[str, list[str]], rex: Registry, whole: tuple[str, list[Any]]
) -> None:
    killed = run_forked(*lines["begin"], prelude=KILL)
    assert killed.returncode == -signal.SIGKILL
    assert not rex.show("rex").versions
    (run,) = rex.show("rex").runs
    first = next(row for row in rex.metrics(run.run) if row[2] == "diffusion")
    planted = (*first[:3], 99.0)
    rex.log_metrics(run.run, [planted])
    resumed = run_concept(*lines["go on"], "--json")
    assert resumed.returncode == 0, resumed.stderr
    stages = json.loads(resumed.stdout)["runs"][0]["stages"]
    assert [stage["name"] for stage in stages] == ["stage1", "stage2", "stage3"]
    assert planted in rex.metrics(run.run), "the first stage was not done again"
    rex.log_metrics(run.run, [first])
    assert result_of(rex) == whole


@pytest.mark.long
def test_fault_21_a_kill_while_saving_leaves_the_former_point(
    lines: dict[str, list[str]], rex: Registry, whole: tuple[str, list[Any]]
) -> None:
    killed = run_forked(*lines["begin"], prelude=KILL_WHILE_SAVING)
    assert killed.returncode == -signal.SIGKILL
    (run,) = rex.show("rex").runs
    unfinished, point = sorted(path.name for path in rex.run_folder(run.run).iterdir())
    assert is_unfinished(unfinished)
    assert point == "resume.safetensors"
    assert run_forked(*lines["go on"]).returncode == 0
    assert result_of(rex) == whole


@pytest.mark.long
def test_fault_21_a_lost_resume_point_begins_again(
    lines: dict[str, list[str]], rex: Registry, whole: tuple[str, list[Any]]
) -> None:
    assert run_forked(*lines["begin"], prelude=KILL).returncode == -signal.SIGKILL
    shutil.rmtree(rex.location.runs)
    assert run_forked(*lines["go on"]).returncode == 0
    assert result_of(rex) == whole


def test_fault_22_a_second_ctrl_c_ends_at_once(lines: dict[str, list[str]], rex: Registry) -> None:
    with Forked(*lines["begin"], prelude=NEVER_DONE) as process:
        wait_until(Path("in a step").exists, process)
        process.send_signal(signal.SIGINT)
        wait_until(lambda: "stopping after this step" in process.printed(), process)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate()
    assert process.returncode == 130, told
    assert "Traceback" not in told
    assert rex.show("rex").runs[0].status == "interrupted"
    assert rex.check(read_data=True).ok


@pytest.mark.long
def test_fault_23_a_loss_that_is_not_finite_ends_with_5_and_keeps_the_last_point(
    lines: dict[str, list[str]], rex: Registry, whole: tuple[str, list[Any]]
) -> None:
    failed = run_forked(*lines["begin"], prelude=NOT_FINITE)
    assert failed.returncode == 5
    assert "stage2, step 2: a loss or gradient is not finite" in failed.stderr
    (run,) = rex.show("rex").runs
    assert run.status == "failed"
    assert "not finite" in (run.error or "")
    assert run_forked(*lines["go on"]).returncode == 0
    assert result_of(rex) == whole


@pytest.mark.long
def test_fault_07_a_disk_that_is_full_while_a_training_saves(
    lines: dict[str, list[str]], rex: Registry, whole: tuple[str, list[Any]]
) -> None:
    full = SAVE_EACH_STEP + small_disk(600_000)
    failed = run_forked(*lines["begin"], prelude=full)
    assert failed.returncode == 4, failed.stderr
    assert "cannot save to" in failed.stderr
    assert rex.show("rex").runs[0].status == "failed"
    assert run_forked(*lines["go on"]).returncode == 0
    assert result_of(rex) == whole


@pytest.mark.parametrize(
    ("prompt", "exit_code", "text"),
    [
        ("a photo of <rexx>", 3, "did you mean rex?"),
        ("a photo of <rex>", 3, "concept train rex"),
        ("a photo of <rex@2>", 3, "rex"),
        ("<rex> beside <rex:0.5>", 2, "as <rex> and <rex:0.5>"),
    ],
)
def test_fault_24_a_concept_that_cannot_be_drawn_is_told_before_weights_load(
    rex: Registry, database: Path, prompt: str, exit_code: int, text: str
) -> None:
    no_weights = "import sys\nsys.modules['torch'] = None"
    done = run_concept("--registry", database, "generate", prompt, prelude=no_weights)
    assert done.returncode == exit_code, done.stderr
    assert text in done.stderr
    assert "loading" not in done.stderr


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "has no prompts"),
        (b'{"prompt": "  "}', "the prompt is empty"),
        (b'{"prompt": "a \\u0000 cat"}', "not plain text"),
        (b'{"prompt": "a \\ud800 cat"}', "not plain text"),
        (b'"a caf\xe9"', "cannot be read"),
        (b'"<>"', "names no concept"),
    ],
)
def test_fault_25_a_malformed_prompt_is_a_usage_error(
    rex: Registry, database: Path, data: bytes, text: str
) -> None:
    Path("prompts.jsonl").write_bytes(data)
    words = ("generate", "--prompts", "prompts.jsonl", "--json")
    done = run_forked("--registry", database, *words)
    assert done.returncode == 2
    assert text in error_of(done)["message"]


def test_fault_25_invalid_utf8_on_the_command_line_is_told(rex: Registry, database: Path) -> None:
    done = run_forked("--registry", database, "generate", b"a caf\xe9", "--json")
    assert done.returncode == 2
    assert "not plain text" in error_of(done)["message"]


@pytest.mark.long
def test_fault_25_a_concept_beyond_the_encoders_limit_is_never_cut(
    lines: dict[str, list[str]], rex: Registry
) -> None:
    assert run_forked(*lines["begin"]).returncode == 0
    base = lines["begin"][3]
    done = run_forked("generate", "cat " * 74 + "<rex>", "--base", base, "--json")
    assert done.returncode == 2
    assert "the text encoder reads 75" in error_of(done)["message"]
    assert not Path("pictures").exists()

"""Two processes that train one concept together, as two GPUs would."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from conceptry.adapters.file_format import read_adapter
from conceptry.registry import Registry
from conceptry.registry.errors import TrainingFailed
from conceptry.training import distributed as processes
from conceptry.training.distributed import _free_port, _wait, launch
from forked import Forked, run_forked
from PIL import Image
from program import DEADLINE, command, wait_until
from tiny_base import write_tiny_base

WORDS = ["--set", "augmentation.crops=4", "--set", "prior.weight=1", "--set", "prior.num_images=2"]
WORDS += [
    word for i in (1, 2, 3) for word in ("--set", f"stage{i}.steps=2", "--set", f"stage{i}.batch=3")
]

FAILS = "import sys; sys.exit(2)"


Start = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    return str(write_tiny_base(tmp_path / "tiny"))


@pytest.fixture(autouse=True)
def _one_thread_each(monkeypatch: pytest.MonkeyPatch, database: Path) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CONCEPT_REGISTRY", str(database))


def launched(*words: str) -> subprocess.CompletedProcess[str]:
    """Two processes that the command itself starts."""
    return subprocess.run(
        command("train", "rex", *words, "--processes", "2"),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def joined(*words: str) -> subprocess.CompletedProcess[str]:
    """Two processes that are started as `accelerate launch` does it; returns the first one."""
    shared = address() | {"OMP_NUM_THREADS": "1"}
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(
                Forked("train", "rex", *words, env=shared | {"RANK": rank, "LOCAL_RANK": rank})
            )
            for rank in ("0", "1")
        )
        out, err = first.communicate()
        second.wait()
        return subprocess.CompletedProcess([], first.wait(), out, err)


WAYS_TO_START = [joined, launched]


def address() -> dict[str, str]:
    """Where two processes meet."""
    return {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "ACCELERATE_USE_CPU": "true",
    }


def weights(registry: Registry, number: int) -> dict[str, torch.Tensor]:
    (version,) = (each for each in registry.show("rex").versions if each.number == number)
    return read_adapter(registry.path_of(version.artifacts[0].sha256))[0]


@pytest.mark.long
@pytest.mark.parametrize("start", WAYS_TO_START)
def test_two_processes_learn_what_one_learns(start: Start, rex: Registry, tiny: str) -> None:
    """All but the order of sums is the same: batches of three are split two to one."""
    words = ("--base", tiny, *WORDS, "--json")
    for done in (run_forked("train", "rex", *words), start(*words, "--keep-every", "1")):
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["runs"][0]["concept"] == "rex"
    alone, together = weights(rex, 1), weights(rex, 2)
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        torch.testing.assert_close(together[name].float(), value.float(), atol=2e-4, rtol=2e-2)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["schedule-free", "prodigy"])
def test_two_processes_have_one_optimiser(kind: str, rex: Registry, tiny: str) -> None:
    """Previews and checkpoints, which the first process makes alone, are no step apart."""
    pytest.importorskip("pytorch_optimizer")
    words = ["--base", tiny, *WORDS, "--preview-every", "1", "--keep-every", "1"]
    words += ["--set", f"optimizer={kind}", "--set", "loss.kind=huber"]
    if kind == "prodigy":
        words += [f"--set=stage{i}.learning_rate=1" for i in (1, 2, 3)]
    for done in (run_forked("train", "rex", *words), joined(*words)):
        assert done.returncode == 0, done.stderr
    alone, together = weights(rex, 1), weights(rex, 2)
    for name, value in alone.items():
        torch.testing.assert_close(together[name].float(), value.float(), atol=2e-4, rtol=2e-2)


@pytest.mark.long
@pytest.mark.parametrize("start", WAYS_TO_START)
def test_two_processes_teach_several_concepts(
    start: Start, rex: Registry, tiny: str, tmp_path: Path
) -> None:
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "mia.png")
    rex.add("mia", [tmp_path / "mia.png"], category="cat")
    words = ["mia", "--base", tiny, "--json", "--method", "sefi", "--set", "augmentation.crops=2"]
    words += ["--set", "embedding.steps=3", "--set", "embedding.batch=3"]
    for done in (run_forked("train", "rex", *words), start(*words)):
        assert done.returncode == 0, done.stderr
        assert [each["together"] for each in json.loads(done.stdout)["runs"]] == [2, 2]
    alone, together = weights(rex, 1), weights(rex, 2)
    torch.testing.assert_close(together["staged.0"], alone["staged.0"], atol=2e-4, rtol=2e-2)


@pytest.mark.long
@pytest.mark.parametrize("start", WAYS_TO_START)
def test_a_batch_that_is_too_small_is_told(start: Start, rex: Registry, tiny: str) -> None:
    done = start("--base", tiny, *WORDS, "--set", "stage3.batch=1")
    assert done.returncode == 2
    assert "--set stage3.batch=2" in done.stderr
    assert done.stderr.count("error:") == 1


@pytest.mark.long
def test_processes_part_before_python_ends() -> None:
    """A group that outlives the interpreter aborts the process, now and then."""
    script = """if True:
        import atexit
        from torch.distributed import is_initialized
        atexit.register(lambda: print("alone" if not is_initialized() else "together"))
        from conceptry.training.distributed import broadcast
        broadcast("hello"), broadcast("again")
        assert is_initialized()
    """
    shared = os.environ | address()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env=shared | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    assert [each.communicate(timeout=DEADLINE)[0] for each in started] == ["alone\n", "alone\n"]
    assert [each.returncode for each in started] == [0, 0]


def test_what_fails_in_all_is_told_by_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever ends before the other; it waits until the other one has ended."""
    monkeypatch.setattr(processes, "_GRACE_SECONDS", DEADLINE)
    with ended_by_hand() as first, subprocess.Popen([sys.executable, "-c", FAILS]) as second:

        def end_the_first() -> None:
            second.wait()
            time.sleep(3 * processes._POLL_SECONDS)
            first.communicate()

        ending = Thread(target=end_the_first)
        ending.start()
        assert _wait([first, second]) is first
        ending.join()
        assert first.returncode == second.returncode == 2


def test_a_failure_of_anothers_own_is_that_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_GRACE_SECONDS", 0.1)
    with ended_by_hand() as first, subprocess.Popen([sys.executable, "-c", FAILS]) as second:
        assert _wait([first, second]) is second


def ended_by_hand() -> subprocess.Popen[bytes]:
    """A process that fails when it is asked to end."""
    program = f"import sys; sys.stdin.read(); {FAILS}"
    return subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)


def test_a_killed_process_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = tmp_path / "python"
    killed.write_text(f"#!/bin/sh\n[ $RANK = 0 ] && exec sleep {DEADLINE}\nkill -KILL $$\n")
    killed.chmod(0o700)
    monkeypatch.setattr(processes, "_GRACE_SECONDS", 0.1)
    monkeypatch.setattr(sys, "executable", str(killed))
    with pytest.raises(TrainingFailed, match="process 1 was ended by SIGKILL"):
        launch(["train", "rex"], 2)


@pytest.mark.long
def test_ctrl_c_saves_for_all(rex: Registry, tiny: str) -> None:
    words: list[Any] = ["train", "rex", "--base", tiny, *WORDS, "--set", "stage1.steps=3000"]
    running = subprocess.Popen(
        command(*words, "--processes", "2"),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_until(lambda: _has_metrics(rex) or running.poll() is not None)
    os.killpg(running.pid, signal.SIGINT)
    _, errors = running.communicate(timeout=DEADLINE)
    assert running.returncode == 130, errors
    assert "--resume" in errors
    (run,) = rex.show("rex").runs
    assert run.status == "interrupted"


def _has_metrics(registry: Registry) -> bool:
    return bool(list(registry.location.runs.glob("*/"))) and any(
        registry._store.database.rows("SELECT 1 FROM metric LIMIT 1")
    )

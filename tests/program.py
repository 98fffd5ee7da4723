"""Runs the command, in this process or in one of its own, also under bad conditions."""

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import dropwhile
from pathlib import Path
from typing import Any, Protocol

from conceptry.cli.app import app
from conceptry.registry import locate
from typer import main, testing
from typer.testing import CliRunner, Result

_typer: Any = testing
_typer._get_command = cache(main.get_command)  # it would build all commands for every call

ROOT = Path(__file__).parent.parent
DEADLINE = 1800
"""Seconds after which a process hangs, however busy the machine is."""

_AS_FROM_A_SHELL = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
"""
"""Whoever runs the tests may ignore these signals, as `nohup` does."""
Argument = str | bytes | Path
Run = Callable[..., Result]
Ask = Callable[..., dict[str, Any]]


def invoke(*arguments: str | Path, input: str | bytes | None = None) -> Result:  # noqa: A002
    """Run `concept` in this process."""
    words = [str(argument) for argument in arguments]
    return CliRunner().invoke(app, words, input=input, prog_name="concept")


def program(prelude: str = "") -> str:
    """Python that runs `concept`; `prelude` is Python that runs before it."""
    return f"{_AS_FROM_A_SHELL}\n{prelude}\nfrom conceptry.cli import main; main()"


def command(*arguments: Argument, prelude: str = "") -> list[Argument]:
    """The words that start `concept`; `prelude` is Python that runs before it."""
    return [sys.executable, "-c", program(prelude), *arguments]


def run_concept(
    *arguments: Argument,
    prelude: str = "",
    env: Mapping[str, str] | None = None,
    input: str | bytes | None = None,  # noqa: A002
) -> subprocess.CompletedProcess[str]:
    """Run `concept` to its end, with neither terminal nor input unless given."""
    data = input.encode() if isinstance(input, str) else input
    done = subprocess.run(
        command(*arguments, prelude=prelude),
        input=data or b"",
        env={**os.environ, **(env or {})},
        capture_output=True,
        timeout=DEADLINE,
        check=False,
    )
    out, err = done.stdout.decode(), done.stderr.decode()
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)


def command_named(words: Sequence[str]) -> tuple[Any, str, list[str]]:
    """The command that words begin with, its whole name, and the words after it."""
    found: Any = main.get_command(app)
    name: list[str] = []
    words = list(dropwhile(lambda word: word.startswith("-"), words))
    while hasattr(found, "commands") and words:
        name.append(words[0])
        found, words = found.commands[words[0]], words[1:]
    return found, " ".join(name), list(words)


class Process(Protocol):
    """What runs a program."""

    def poll(self) -> int | None:
        """How it ended; None while it runs."""
        ...


def wait_until(condition: Callable[[], Any], process: Process | None = None) -> None:
    """Until something is so; fails if it never will be, as the process that does it has ended."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        has_ended = process is not None and process.poll() is not None
        assert condition() or not has_ended, "the process has ended"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def small_disk(max_bytes: int) -> str:
    """A prelude under which no file can grow beyond `max_bytes`, as on a disk that is full."""
    return f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({max_bytes},) * 2)"


UNPRIVILEGED = """
import ctypes, sys
if sys.platform == "linux":
    version_3, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(version_3, none) == 0
"""
"""A prelude under which even root is bound by the permissions of files, on Linux."""


def error_of(done: Result | subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The error in what a command printed with --json."""
    document = json.loads(done.stdout)
    assert list(document) == ["error"]
    return document["error"]


def stored_files(database: Path) -> dict[str, bytes]:
    """Every file in the blob folder with its bytes, but for the lock and the stamp."""
    folder = locate(database).blobs
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(("lock", "stamp"))
    }


def change_rows(database: Path, statement: str) -> None:
    """Change the database behind the registry's back, foreign keys or not."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute(statement)


def make_old(path: Path, seconds: float = 7200) -> None:
    """Let a file look as if it was written so long ago."""
    moment = time.time() - seconds
    os.utime(path, (moment, moment))


def run_python(program: str, *arguments: str, **env: str) -> str:
    """What a Python program prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

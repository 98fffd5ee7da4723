"""Runs `concept` in processes that are forked from one that has the large libraries loaded.

Where a test needs torch in a process of its own, this saves it the seconds of importing it; where
the start itself is tested, `program.run_concept` starts a process anew.
"""

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import IO, Self

import warm
from program import DEADLINE, Argument, program

_THREADS = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "")}
"""Before any test has changed it: those that fork first must not decide for all others."""


INTERRUPTED_AFTER_TWO = """
import os, signal
from conceptry.generation import provenance
save, calls = provenance.save_picture, []
def save_and_interrupt(*arguments, **options):
    calls.append(save(*arguments, **options))
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGINT)
    return calls[-1]
provenance.save_picture = save_and_interrupt
"""
"""A prelude: Ctrl-C once `concept generate` has written its second picture."""


class Forked:
    """A running `concept`, used as a `subprocess.Popen`; what it prints is kept in files."""

    def __init__(
        self,
        *arguments: Argument,
        prelude: str = "",
        env: Mapping[str, str] | None = None,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        start_new_session: bool = False,
    ) -> None:
        self.returncode: int | None = None
        self._out = tempfile.TemporaryFile()  # noqa: SIM115
        self._err = tempfile.TemporaryFile()  # noqa: SIM115
        with Path(os.devnull).open("rb") as nothing:
            streams = (
                nothing.fileno() if stdin is None else stdin,
                self._out.fileno() if stdout is None else stdout,
                self._err.fileno() if stderr is None else stderr,
            )
            request = {
                "program": program(prelude),
                "arguments": [os.fsencode(each).hex() for each in arguments],
                "environment": {**os.environ, **(env or {})},
                "folder": os.getcwd(),  # noqa: PTH109 (as bytes may be)
                "umask": _umask(),
                "new_session": start_new_session,
            }
            self._report = _send(request, streams)
        self.pid = int(self._report.readline())

    def send_signal(self, number: int) -> None:
        """Send it, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def poll(self) -> int | None:
        """How it ended, as `subprocess` says it: a signal is a negative number."""
        return self._status(0)

    def has_ended(self, *, within: float) -> bool:
        """Whether it ends within so many seconds."""
        return self._status(within) is not None

    def wait(self) -> int:
        """Until it has ended."""
        status = self._status(DEADLINE)
        assert status is not None, "the process hangs"
        return status

    def _status(self, seconds: float) -> int | None:
        if self.returncode is None and select.select([self._report], [], [], seconds)[0]:
            self.returncode = int(self._report.readline())
        return self.returncode

    def printed(self) -> str:
        """What it has printed to stderr so far."""
        return _content(self._err)

    def communicate(self) -> tuple[str, str]:
        """What it printed to stdout and stderr until it ended."""
        self.wait()
        return _content(self._out), _content(self._err)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """It does not go on."""
        self.kill()
        self.wait()
        for file in (self._report, self._out, self._err):
            file.close()


def run_forked(
    *arguments: Argument, prelude: str = "", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `concept` to its end, with neither terminal nor input."""
    with Forked(*arguments, prelude=prelude, env=env) as process:
        out, err = process.communicate()
        return subprocess.CompletedProcess(list(arguments), process.wait(), out, err)


def _send(request: warm.Request, streams: tuple[int, int, int]) -> IO[bytes]:
    """Have a process forked; returns where it tells its id and its end."""
    reading, writing = os.pipe()
    data = json.dumps(request).encode() + b"\n"
    sent = socket.send_fds(_server(), [data], [*streams, writing])
    _server().sendall(data[sent:])
    os.close(writing)
    return os.fdopen(reading, "rb", buffering=0)


@cache
def _server() -> socket.socket:
    """The way to the process that forks, which ends with this one."""
    ours, its = socket.socketpair()
    with its:
        process = subprocess.Popen(
            [sys.executable, warm.__file__, str(its.fileno())],
            env={name: value for name, value in {**os.environ, **_THREADS}.items() if value},
            pass_fds=[its.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _umask() -> int:
    """What it is; it can only be read by changing it."""
    now = os.umask(0o077)
    os.umask(now)
    return now


def _content(file: IO[bytes]) -> str:
    """All of a file, without moving the place where another process writes."""
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode()

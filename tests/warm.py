"""A process that has the large libraries loaded, and forks from itself the programs of tests.

Importing torch, transformers and diffusers takes longer than most of what tests start. What is
forked here is a process of its own, with the folder, environment, arguments and streams that it
was asked for. Nothing of this project is loaded, so that what a program breaks beforehand is broken
when the project is loaded. What differs from a process that is started anew: the libraries are
there, strings hash as in all others that are forked here, and the interpreter is not taken down.

Run by `forked.py`, which sends requests through a socket: lines of JSON, each with four files: the
three streams, and a pipe that takes the process's id and, once it has ended, its status.
Where the socket ends, what still runs is killed.
"""

import atexit
import gc
import json
import os
import select
import signal
import socket
import sys
import threading
import warnings
from contextlib import suppress
from typing import Any

COLD = "CONCEPTRY_TESTS_START_COLD"
"""With this in the environment nothing is loaded, and programs start as they do for users."""
_SIGNALS = (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM)

Request = dict[str, Any]


def load() -> None:
    """Import what programs spend their start on; none of it may start a thread."""
    if COLD in os.environ:
        return
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"  # it would tell of what is not installed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import accelerate
        import peft
        import PIL.Image
        import pydantic
        import rich.progress
        import sqlmodel
        import torch
        import typer
        from diffusers import StableDiffusionPipeline
        from transformers import CLIPTextModel, CLIPTokenizer

    gc.freeze()
    del accelerate, peft, PIL, pydantic, rich, sqlmodel, torch, typer
    del StableDiffusionPipeline, CLIPTextModel, CLIPTokenizer


class Server:
    """Forks a process for each request, and tells how each of them ended."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.reports: dict[int, int] = {}
        self.wakeup, self.waking = os.pipe()
        os.set_blocking(self.waking, False)
        signal.set_wakeup_fd(self.waking)
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)

    def serve(self) -> Request | None:
        """Until there are no more requests; in a process that is forked, returns the request."""
        while True:
            ready, _, _ = select.select([self.control, self.wakeup], [], [])
            if self.wakeup in ready:
                os.read(self.wakeup, 4096)
                self._report_the_ended()
            if self.control in ready:
                data, files, _, _ = socket.recv_fds(self.control, 1 << 20, 4)
                if not data:
                    break
                while not data.endswith(b"\n"):
                    data += self.control.recv(1 << 20)
                if self._fork(*files):
                    return json.loads(data)
        for child in self.reports:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        return None

    def _report_the_ended(self) -> None:
        while self.reports:
            child, status = os.waitpid(-1, os.WNOHANG)
            if not child:
                return
            report = self.reports.pop(child)
            with suppress(BrokenPipeError):
                os.write(report, f"{os.waitstatus_to_exitcode(status)}\n".encode())
            os.close(report)

    def _fork(self, *files: int) -> bool:
        """Fork; whether this is the new process."""
        *streams, report = files
        child = os.fork()
        if child:
            self.reports[child] = report
            os.write(report, f"{child}\n".encode())
        else:
            self._leave(streams, [report, *self.reports.values()])
        for each in streams:
            os.close(each)
        return not child

    def _leave(self, streams: list[int], reports: list[int]) -> None:
        """In the new process: take its own streams, and nothing of the server's."""
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        for each in (self.wakeup, self.waking, *reports):
            os.close(each)
        self.control.close()
        for number, each in enumerate(streams):
            os.dup2(each, number)


def run(request: Request) -> int:
    """Be the process that was asked for, to its end; returns its exit code."""
    if request["new_session"]:
        os.setsid()
    os.chdir(request["folder"])
    os.umask(request["umask"])
    had = os.environ.get("OMP_NUM_THREADS")
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["-c", *(os.fsdecode(bytes.fromhex(each)) for each in request["arguments"])]
    sys.path[0] = ""
    sys.stdin, sys.stdout, sys.stderr = map(_reopened, (sys.stdin, sys.stdout, sys.stderr))
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads and threads != had and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(threads))  # which torch's own start does not
    return _end(_exit_code(request["program"]))


def _reopened(stream: Any) -> Any:
    """A standard stream as Python begins with it; what it is of has become another file."""
    return open(
        stream.fileno(),
        stream.mode,
        buffering=1 if stream is sys.stderr or stream.isatty() else -1,
        encoding=stream.encoding,
        errors=stream.errors,
        closefd=False,
    )


def _exit_code(program: str) -> int:
    """Run it as `python -c` does."""
    try:
        exec(program, {"__name__": "__main__"})
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)
        return 1
    except BaseException as error:  # noqa: BLE001
        sys.excepthook(type(error), error, error.__traceback__)
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _end(code: int) -> int:
    """Wait for what still runs, and do what was put off until the end."""
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.current_thread():
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    load()
    _request = Server(socket.socket(fileno=int(sys.argv[1]))).serve()
    os._exit(run(_request) if _request else 0)

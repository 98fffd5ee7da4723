"""Data-parallel training: one process per GPU.

The main process alone uses the registry, and broadcasts what the others need. `launch` or
`accelerate launch` starts them, and sets the environment variables that say so.
"""

import atexit
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from ..registry.errors import InvalidInput, TrainingFailed

if TYPE_CHECKING:
    import torch

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 10.0


def num_processes() -> int:
    """The number of processes, this one included."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def own_device() -> str | None:
    """The GPU of this process; None where there is only one process, or no GPU."""
    import torch

    if num_processes() == 1 or not torch.cuda.is_available():
        return None
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


def is_main_process() -> bool:
    """Whether this is the process that uses the registry and prints."""
    return os.environ.get("RANK", "0") == "0"


def broadcast(message: object = None) -> Any:
    """Send the main process's message to all; returns it once everyone has it.

    All processes have to call this equally often; a single process gets its own message back.
    """
    if num_processes() == 1:
        return message
    from torch.distributed import broadcast_object_list

    holder = [message]
    broadcast_object_list(holder, device=join())
    return holder[0]


def join() -> "torch.device":
    """Connect to the other processes, once; returns the device of this one.

    The time-out is a day: they wait while the main process draws class pictures.
    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    if num_processes() > 1:
        atexit.unregister(_leave)
        atexit.register(_leave)
    use_cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
    device = PartialState(cpu=use_cpu, timeout=timedelta(hours=24)).device
    assert device is not None
    return device


def _leave() -> None:
    """Leave the others while Python still runs.

    The group's threads may hold the last reference to a message; one that lets go of it while
    the interpreter is taken down aborts the process.
    """
    from torch.distributed import destroy_process_group, is_initialized

    if is_initialized():
        destroy_process_group()


def broadcast_flag(flag: bool) -> bool:
    """The main process's flag, in all of them."""
    return bool(broadcast(flag)) if num_processes() > 1 else flag


def stop_signals() -> list[signal.Signals]:
    """The signals that stop a training, beside Ctrl-C: SIGTERM and, unless ignored, SIGHUP."""
    hang_up = getattr(signal, "SIGHUP", None)
    if hang_up is None or signal.getsignal(hang_up) is signal.SIG_IGN:
        return [signal.SIGTERM]
    return [signal.SIGTERM, hang_up]


def launch(arguments: Sequence[str], count: int) -> int:
    """Run `python -m conceptry.cli` in `count` processes; returns the first one's exit code.

    What the others print is shown only if one fails, which ends all. Ctrl-C reaches them by itself.

    Raises:
        InvalidInput: there are fewer GPUs.
        TrainingFailed: a process was killed, as by a system that is short of memory.

    """
    available = _num_gpus()
    if available and count > available:
        raise InvalidInput(
            f"there are {available} GPUs for {count} processes", hint=f"--processes {available}"
        )
    shared = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    if not available:
        shared |= {"ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", "conceptry.cli", *arguments]
    stopping = stop_signals()
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, *stopping)}
    with TemporaryFile() as kept_back:
        started: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(count):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                environment, output = os.environ | shared | own, kept_back if rank else None
                started.append(
                    subprocess.Popen(command, env=environment, stdout=output, stderr=output)
                )
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            for each in stopping:
                signal.signal(each, lambda *_: [process.terminate() for process in started])
            failed = _wait(started)
        finally:
            _end(started)
            for number, handler in before.items():
                signal.signal(number, handler)
        if failed is not started[0]:
            kept_back.seek(0)
            sys.stderr.write(kept_back.read().decode(errors="replace"))
        if failed.returncode < 0:
            name = signal.Signals(-failed.returncode).name
            raise TrainingFailed(
                f"process {started.index(failed)} was ended by {name}",
                hint="go on from what was saved: concept train NAME --resume",
            )
        return failed.returncode


def _wait(started: Sequence[subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    """Until the first has ended or another one has failed; returns which.

    One that was interrupted has not failed: the first may still be saving. What fails for the
    same cause in all of them is reported by the first.
    """
    first, *others = started
    while first.poll() is None:
        if failed := next((each for each in others if each.poll() not in (None, 0, 130)), None):
            with suppress(subprocess.TimeoutExpired):
                first.wait(_GRACE_SECONDS)
            first.terminate()
            return first if first.returncode == failed.returncode else failed
        time.sleep(_POLL_SECONDS)
    return first


def _end(started: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in started:
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

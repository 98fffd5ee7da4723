"""What the processes of the concurrency tests do.

They are forked from one that has the registry loaded, and has opened none.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conceptry.registry import Registry, RegistryBusy

DEADLINE = 1800
"""Seconds after which a process hangs, as in `program.py`, which takes long to import."""

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["conceptry.registry.registry"])


def in_processes(work: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> list[Any]:
    """Run `work` once per tuple of arguments, each in a process of its own, all at once."""
    barrier = CONTEXT.Barrier(len(arguments))
    queue = CONTEXT.Queue()
    processes = [
        CONTEXT.Process(target=_run, args=(work, queue, barrier, number, *args))
        for number, args in enumerate(arguments)
    ]
    for process in processes:
        process.start()
    results = dict(queue.get(timeout=DEADLINE) for _ in processes)
    for process in processes:
        process.join(DEADLINE)
    return [results[number] for number in range(len(arguments))]


def _run(work: Callable[..., Any], queue: Any, barrier: Any, number: int, *args: Any) -> None:
    import conceptry.registry.registry  # noqa: F401 (import before the start signal)

    barrier.wait(DEADLINE)
    try:
        result = work(*args)
    except Exception as error:  # noqa: BLE001 (shown by the test that gets it)
        result = repr(error)
    queue.put((number, result))


def add_several(database: str, names: list[str], folder: str, timeout: float) -> dict[str, str]:
    """Add one concept after another; says of each whether it landed."""
    outcomes: dict[str, str] = {}
    for name in names:
        try:
            with Registry.open(database, create=True, timeout=timeout) as registry:
                registry.add(name, [folder], category="dog")
            outcomes[name] = "landed"
        except RegistryBusy:
            outcomes[name] = "busy"
    return outcomes


def append_photo(database: str, name: str, photo: str) -> str:
    """Append one photo to a concept."""
    with Registry.open(database, timeout=DEADLINE) as registry:
        return registry.add(name, [photo]).added[0].sha256


def back_up(database: str, folder: str) -> str:
    """Copy the registry into a folder."""
    with Registry.open(database, timeout=DEADLINE) as registry:
        registry.backup(folder)
    return "done"


def hold_lock(database: str, exclusive: bool) -> None:
    """Take the registry's lock, say so, and hold it until killed."""
    with Registry.open(database) as registry:
        lock = registry._store.lock
        with lock.exclusive() if exclusive else lock.shared():
            sys.stdout.write("held\n")
            sys.stdout.flush()
            time.sleep(2 * DEADLINE)


def kill(process: Any) -> None:
    """End a process as a crash would."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    hold_lock(str(Path(sys.argv[1])), sys.argv[2] == "exclusive")

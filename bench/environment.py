"""On what a measurement was made, where it goes, and what keeps a machine busy beside it."""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("conceptry", "numpy", "pillow", "sqlalchemy", "sqlmodel", "torch")


def describe() -> dict[str, Any]:
    """Machine, versions, commit and date, to stand at the head of a result."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "system": platform.platform(),
        },
        "versions": {"python": platform.python_version()} | _versions(),
    }


def is_as_published(
    asked: argparse.ArgumentParser, options: argparse.Namespace, *, but: Collection[str] = ()
) -> bool:
    """Whether nothing was set but where it goes, and the options that `but` names.

    Only then do results take the place of the published ones.
    """
    return not [
        name
        for name, value in vars(options).items()
        if name not in {"out", *but} and _listed(value) != _listed(asked.get_default(name))
    ]


def results_file(
    asked: argparse.ArgumentParser,
    options: argparse.Namespace,
    published: Path,
    *,
    but: Collection[str] = (),
) -> Path:
    """The file of --out, else the published one; exits if that is for other options."""
    if options.out is None and not is_as_published(asked, options, but=but):
        sys.exit(f"name --out FILE: {published.name} is measured with nothing else set")
    return options.out or published


def keep_part(path: Path, name: str, found: Any, about: Mapping[str, Any]) -> None:
    """Put a part into a file of results; `measured` says of each part on what it was."""
    results = json.loads(path.read_text()) if path.exists() else {}
    results[name] = found
    results.setdefault("measured", {})[name] = dict(about)
    path.write_text(json.dumps(results, indent=1) + "\n")


def _listed(value: object) -> object:
    return list(value) if isinstance(value, list | tuple) else value


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Processes that do nothing, as fast as they can."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def _commit() -> str:
    folder = Path(__file__).parent
    answer = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.stdout.strip() or "unknown"


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

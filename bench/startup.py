"""What it takes until a command has done the least that it can do, each in a process of its own.

    python bench/startup.py                      # this working tree
    python bench/startup.py --against REVISION   # and another revision, in turns

help, list    one concept is in the registry
generate      a picture of one step
train         the first step of a training with four crops, and its version stored
instant       from a photo to a picture of its subject: add, and a picture drawn after the photo

Medians of seconds and of CPU seconds, which are the same on a busy machine. Every command is run
once before, so the files are in the system's cache, and compiled. `instant` is left out of the side
that does not know it. Writes bench/results/startup.json.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from environment import describe

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "startup.json"
SAMPLE = ROOT / "models" / "miniature" / "sample"
ROUNDS = 5

ADD = ["add", "rex", str(SAMPLE), "--category", "dog"]
WITHOUT_PREVIEWS = ["--preview-every", "0"]
ONE_STEP = ["stage1.steps=1", "stage2.steps=0", "stage3.steps=0", "augmentation.crops=4"]
FIRST_STEP = [word for each in ONE_STEP for word in ("--set", each)]
COMMANDS: Mapping[str, list[str]] = {
    "help": ["--help"],
    "list": ["list"],
    "generate": ["generate", "a photo of a dog", "--steps", "1", "-n", "1", "--seed", "0"],
    "train": [
        "train",
        "rex",
        "--preview-every",
        "0",
        *FIRST_STEP,
    ],
}

INSTANT = (
    ["add", "rex", str(SAMPLE / "00.png"), "--category", "dog"],
    ["generate", "a photo of a dog on the beach", "--reference", "rex", "-n", "1", "--seed", "0"],
)
"""Each time in a registry of its own."""
KNOWS_INSTANT = Path("generation", "references.py")
"""What sources have that can draw after a photo."""

PROGRAM = """
import sys, types
package = sys.modules["conceptry"] = types.ModuleType("conceptry")
package.__path__ = [sys.argv.pop(1)]
from conceptry.cli import main
main()
"""
"""Runs the sources of a folder, which need not be the ones that are installed."""


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """A folder with the sources of a revision, for as long as it is needed."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "sources"
        _git("worktree", "add", "--detach", str(folder), revision)
        try:
            yield folder
        finally:
            _git("worktree", "remove", "--force", str(folder))


def _git(*words: str) -> None:
    subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True)


def run(sources: Path, words: list[str], place: Path) -> tuple[float, float]:
    """Seconds and CPU seconds of a command."""
    command = [sys.executable, "-c", PROGRAM, str(sources), *words]
    env = {
        **os.environ,
        "CONCEPT_REGISTRY": str(place / "concepts.db"),
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": str(place.parent / "compiled"),
    }
    used, began = _cpu_seconds(), time.perf_counter()
    subprocess.run(command, cwd=place, env=env, check=True, capture_output=True)
    return time.perf_counter() - began, _cpu_seconds() - used


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(sides: Mapping[str, Path], rounds: int, place: Path) -> dict[str, Any]:
    """The medians of every command, side by side."""
    taken: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for side, sources in sides.items():
        (place / side).mkdir()
        run(sources, ADD, place / side)
    knows = {side: each for side, each in sides.items() if (each / KNOWS_INSTANT).exists()}
    for i in range(rounds + 1):
        for name, words in COMMANDS.items():
            for side, sources in sides.items():
                seconds = run(sources, words, place / side)
                if i > 0:
                    taken[name, side].append(seconds)
        for side, sources in knows.items():
            new = place / f"{side} {i}"
            new.mkdir()
            steps = [run(sources, words, new) for words in INSTANT]
            if i > 0:
                taken["instant", side].append((sum(s for s, _ in steps), sum(c for _, c in steps)))
    names = {**dict.fromkeys(COMMANDS, sides), "instant": knows}
    return {
        name: {side: _medians(taken[name, side]) for side in those} for name, those in names.items()
    }


def _medians(runs: list[tuple[float, float]]) -> dict[str, float]:
    seconds, cpu_seconds = map(statistics.median, zip(*runs, strict=True))
    return {"seconds": round(seconds, 2), "cpu_seconds": round(cpu_seconds, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", metavar="REVISION")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        if options.against:
            with checked_out(options.against) as other:
                sides = {options.against: other, "now": ROOT}
                results = measure(sides, options.rounds, Path(place))
        else:
            results = measure({"now": ROOT}, options.rounds, Path(place))
    load = round(os.getloadavg()[1], 1)
    result = {"environment": describe(), "load": load, "rounds": options.rounds, **results}
    print(json.dumps(result, indent=2))
    if not options.dry_run:
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

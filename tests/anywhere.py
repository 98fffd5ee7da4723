"""Runs the tests as other machines would, and writes bench/results/suite.json.

    python tests/anywhere.py                       # every condition, one after another: hours
    python tests/anywhere.py busy "no home"        # these
    python tests/anywhere.py "busy, no home"       # both at once
    python tests/anywhere.py busy --long           # of them, what make test leaves to make test-all
    python tests/anywhere.py busy -- tests/cli     # of them, these tests

Each condition is a change to the environment, to the words of pytest, or to the machine.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import warm
from environment import busy_loops, describe

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "suite.json"
NOBODY = 65534
LONG = "long and not grid and not slow"


@dataclass(frozen=True, kw_only=True)
class Condition:
    """How a machine differs. An empty value takes a variable out of the environment."""

    environment: Mapping[str, str] = field(default_factory=dict)
    words: Sequence[str] = ()
    umask: int = -1
    busy_loops: int = 0
    is_nobody: bool = False


CONDITIONS = {
    "as it is": Condition(),
    "oldest instructions": Condition(
        environment={
            "ATEN_CPU_CAPABILITY": "default",
            "ONEDNN_MAX_CPU_ISA": "SSE41",
            "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        }
    ),
    "programs start cold": Condition(environment={warm.COLD: "1"}),
    "1 thread": Condition(environment={"OMP_NUM_THREADS": "1"}),
    "2 threads": Condition(environment={"OMP_NUM_THREADS": "2"}),
    "4 threads": Condition(environment={"OMP_NUM_THREADS": "4"}),
    "another order": Condition(words=("--shuffle", "1")),
    "a third order": Condition(words=("--shuffle", "2")),
    "busy": Condition(busy_loops=4),
    "C locale": Condition(environment={"LC_ALL": "C"}),
    "ASCII alone": Condition(
        environment={"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    ),
    "no home": Condition(environment={"HOME": ""}),
    "a home that is not there": Condition(environment={"HOME": "/nonexistent/home"}),
    "dumb terminal": Condition(environment={"TERM": "dumb", "COLUMNS": "37", "NO_COLOR": "1"}),
    "colours forced": Condition(environment={"TERM": "", "COLUMNS": "0", "FORCE_COLOR": "1"}),
    "umask 077": Condition(umask=0o077),
    "umask 002": Condition(umask=0o002),
    "ordinary user": Condition(is_nobody=True),
}


def all_of(name: str) -> Condition:
    """A condition, or several with commas between them."""
    several = [CONDITIONS[each] for each in name.split(", ")]
    return Condition(
        environment={key: value for each in several for key, value in each.environment.items()},
        words=[word for each in several for word in each.words],
        umask=max(each.umask for each in several),
        busy_loops=max(each.busy_loops for each in several),
        is_nobody=any(each.is_nobody for each in several),
    )


def run(name: str, tests: Sequence[str], *, is_long: bool) -> dict[str, Any]:
    """The row of a condition."""
    condition = all_of(name)
    words = ["-m", "pytest", "-p", "no:cacheprovider", "-n", "2", "--dist", "worksteal"]
    words += ["-m", LONG] if is_long else []
    words += [*condition.words, *tests]
    started = time.monotonic()
    with busy_loops(condition.busy_loops), tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"umask": condition.umask}
        if condition.is_nobody:
            os.chown(folder, NOBODY, NOBODY)
            options |= {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        done = subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            env=_environment({**condition.environment, "TMPDIR": folder}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            **options,
        )
    if done.returncode:
        print(done.stdout[-20_000:])
    plain = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    *_, summary = re.findall(r"^.*\b(?:passed|failed|error).* in .*s", plain, re.MULTILINE)
    counts = {kind: int(count) for count, kind in re.findall(r"(\d+) ([a-z]+)", summary)}
    return {
        "condition": f"{name}: what is long" if is_long else name,
        "command": _shown(condition, words),
        "exit_code": done.returncode,
        "passed": counts.get("passed", 0),
        "failed": counts.get("failed", 0) + counts.get("errors", 0) + counts.get("error", 0),
        "skipped": counts.get("skipped", 0),
        "seconds": round(time.monotonic() - started),
    }


def _environment(changes: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in {**os.environ, **changes}.items() if value}


def _shown(condition: Condition, words: Sequence[str]) -> str:
    """As one would type it."""
    parts = [f"{name}={value}" for name, value in condition.environment.items() if value]
    unset = [name for name, value in condition.environment.items() if not value]
    parts = [*(f"-u {name}" for name in unset), *parts]
    before = f"env {' '.join(parts)} " if unset else " ".join([*parts, ""])
    before = f"umask {condition.umask:03o}; {before}" if condition.umask >= 0 else before
    before = f"setpriv --reuid {NOBODY} {before}" if condition.is_nobody else before
    after = f"  # beside {condition.busy_loops} busy loops" if condition.busy_loops else ""
    return f"{before}python {shlex.join(words)}{after}"


def _keep(row: dict[str, Any]) -> None:
    """Put a row in the place of the former one of its condition."""
    environment = describe()
    row["commit"] = environment["commit"]
    known = json.loads(RESULTS.read_text(encoding="utf-8"))["runs"] if RESULTS.exists() else []
    rows = {each["condition"]: each for each in [*known, row]}
    ordered = [rows[name] for name in sorted(rows)]
    document = json.dumps({"environment": environment, "runs": ordered}, indent=1)
    RESULTS.write_text(document + "\n", encoding="utf-8")


def main() -> None:
    """Exits with 1 if a test failed anywhere."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("conditions", nargs="*", metavar="CONDITION", help=", ".join(CONDITIONS))
    parser.add_argument("--long", action="store_true", help="what make test-all adds, alone")
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(words[:split])
    tests = words[split + 1 :]
    for name in options.conditions:
        if unknown := set(name.split(", ")) - set(CONDITIONS):
            parser.error(f"there is no condition {min(unknown)!r}")
    failed = 0
    for name in options.conditions or CONDITIONS:
        row = run(name, tests, is_long=options.long)
        failed += bool(row["exit_code"])
        print(*(f"{key} {value}" for key, value in row.items() if key != "command"), flush=True)
        if not tests:
            _keep(row)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()

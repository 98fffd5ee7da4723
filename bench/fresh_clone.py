"""What a new user waits for: README's two commands, and what CI runs, from a fresh clone.

    python bench/fresh_clone.py                  # the last commit, on a machine with nothing to do
    python bench/fresh_clone.py --busy 4         # beside four loops that do nothing, fast
    python bench/fresh_clone.py --only demo      # one of: demo, test, ci

The clone has no virtual environment; pip finds packages where it always does. `training` is the
demo's training by the registry's clock. `test` is timed once its tools are installed, as every
run but the first is. Writes bench/results/fresh-clone.json; what was not run stays as it was.
"""

import argparse
import json
import os
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from environment import busy_loops, describe

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "fresh-clone.json"


def demo(clone: Path) -> dict[str, Any]:
    """`make demo`: installing, teaching, drawing, scoring."""
    seconds = _timed(clone, "make", "demo")
    with closing(sqlite3.connect(clone / "build/demo/concepts.db")) as connection:
        query = "SELECT round((julianday(finished) - julianday(started)) * 86400, 1) FROM run"
        training = connection.execute(query).fetchone()[0]
    return {"make demo": seconds, "of it training": training}


def test(clone: Path) -> dict[str, Any]:
    """`make test`, without what is installed for it."""
    return {
        "make install": _timed(clone, "make", "install"),
        "make test": _timed(clone, "make", "test"),
    }


def ci(clone: Path) -> dict[str, Any]:
    """What CI runs: checks, all tests, and the demo, from nothing."""
    return {"bash .ci/run": _timed(clone, "bash", ".ci/run")}


PARTS: Mapping[str, Callable[[Path], dict[str, Any]]] = {"demo": demo, "test": test, "ci": ci}


def _timed(clone: Path, *words: str) -> float:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    started = time.monotonic()
    subprocess.run(words, cwd=clone, env=kept, check=True)
    return round(time.monotonic() - started, 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="loops beside it")
    parser.add_argument("--only", choices=PARTS, nargs="*", default=list(PARTS))
    options = parser.parse_args()
    beside = f"beside {options.busy} busy loops" if options.busy else "beside nothing else"
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder, busy_loops(options.busy):
            clone = Path(folder) / "conceptry"
            environment = describe()  # its commit is the one that is cloned
            subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
            seconds = PARTS[name](clone)
        print(json.dumps(seconds))
        known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        known["environment"] = environment
        known.setdefault("seconds", {}).setdefault(beside, {}).update(seconds)
        RESULTS.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Kill `add` with SIGKILL at random moments and see that the registry keeps its word.

    python tests/faults/kill.py --runs 1000

A child adds concepts one after another and acknowledges each; after a random number of them it is
killed at a random moment of what follows. Then, with nothing but `sqlite3` and `hashlib`: every
acknowledged concept is there with all its photos, every final-name blob holds the bytes of its
name, every row has its blob, and what else remains is a temporary file or an unneeded blob. Each
registry lives through 25 kills.

`--plant` puts one of two classic mistakes into the writer, to show that the harness would see them.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from conceptry.registry import Registry
from conceptry.registry.blobs import Staging
from drawing import draw_bytes

KILLS_PER_REGISTRY = 25
PHOTOS_PER_ADD = 3


@dataclass(slots=True)
class Outcome:
    """What a series of kills found. `moments` counts where in `add` the kills landed."""

    runs: int = 0
    acknowledged: int = 0
    violations: list[str] = field(default_factory=list)
    moments: Counter[str] = field(default_factory=Counter)


def run_kills(
    runs: int,
    folder: Path,
    *,
    plant: Callable[[], None] | None = None,
    seed: int = 0,
    on_kill: Callable[[Outcome], None] | None = None,
    stop_at_first: bool = False,
) -> Outcome:
    """Kill `runs` children in registries under `folder`; `plant` is called in each child first."""
    rng = random.Random(seed)
    photo = draw_bytes(seed, (96, 96))
    outcome = Outcome()
    _warm_up(folder / "warm", photo)
    pace = _Pace(rng)
    while outcome.runs < runs:
        place = folder / f"registry-{outcome.runs}"
        promised: list[str] = []
        before = inspect(place, promised)
        for _ in range(min(KILLS_PER_REGISTRY, runs - outcome.runs)):
            _kill_one(place, photo, promised, pace, outcome.runs, plant)
            outcome.runs += 1
            after = inspect(place, promised)
            outcome.moments[after.moment_since(before)] += 1
            new = sorted(after.violations - before.violations)
            outcome.violations += [f"run {outcome.runs}: {text}" for text in new]
            before = after
            if on_kill is not None:
                on_kill(outcome)
            if stop_at_first and outcome.violations:
                return outcome
        outcome.acknowledged += len(promised)
        if plant is None:
            outcome.violations += _clean_up(place)
    return outcome


def _warm_up(place: Path, photo: bytes) -> None:
    """Do once, before any fork, what every child would spend its life on: imports and caches."""
    place.mkdir(parents=True)
    (place / "photo.png").write_bytes(photo)
    with Registry.open(place, create=True) as registry:
        registry.add("warm", [place / "photo.png"], category="dog")


@dataclass(slots=True)
class _Pace:
    """Draws when to kill, in adds instead of seconds: others may take the disk at any time."""

    rng: random.Random
    add: float = 0.0
    """Seconds that the last `add` took whose begin and end were both seen."""

    def wait(self, pipe: IO[bytes]) -> list[bytes]:
        """Wait for up to three acknowledgements, then for a part of an add; returns the lines."""
        lines = [pipe.readline()]  # the child is ready
        for _ in range(self.rng.randrange(4)):
            start = time.perf_counter()
            lines.append(pipe.readline())
            self.add = time.perf_counter() - start
        time.sleep(self.rng.uniform(0, 1.5 * self.add))
        return lines[1:]


def _kill_one(
    place: Path,
    photo: bytes,
    promised: list[str],
    pace: _Pace,
    run: int,
    plant: Callable[[], None] | None,
) -> None:
    """Let a child add some concepts and kill it; extends `promised`."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _add_for_ever(place, photo, run, writer, plant)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        lines = pace.wait(pipe)
        os.kill(child, signal.SIGKILL)
        lines += pipe.readlines()
    os.waitpid(child, 0)
    promised += [line.decode().strip() for line in lines if line.endswith(b"\n")]  # others were cut


def _add_for_ever(
    place: Path, photo: bytes, run: int, acknowledge: int, plant: Callable[[], None] | None
) -> None:
    """The child. Ends by the kill; anything else is an error that the parent would see."""
    try:
        if plant is not None:
            plant()
        place.mkdir(parents=True, exist_ok=True)
        sources = place / "photos"
        sources.mkdir(exist_ok=True)
        os.write(acknowledge, b"ready\n")
        with Registry.open(place / "concepts.db", create=True) as registry:
            for number in range(1_000_000):
                name = f"c{run}-{number}"
                paths = [sources / f"{i}.png" for i in range(PHOTOS_PER_ADD)]
                for path in paths:
                    path.write_bytes(photo + os.urandom(16))  # new bytes, same picture
                registry.add(name, paths, category="dog")
                os.write(acknowledge, f"{name}\n".encode())
    except BaseException as error:  # noqa: BLE001
        os.write(acknowledge, f"ERROR {error!r}\n".encode())
    os._exit(1)


@dataclass(frozen=True, slots=True)
class State:
    """A registry's folder, looked at from outside."""

    violations: set[str]
    temporary: set[str]
    orphans: set[str]
    unacknowledged: set[str]

    def moment_since(self, before: "State") -> str:
        """Where in `add` the last kill landed."""
        if self.unacknowledged - before.unacknowledged:
            return "after the commit, before the acknowledgement"
        if self.orphans - before.orphans:
            return "after a rename, before the commit"
        if self.temporary - before.temporary:
            return "while writing temporary files"
        return "elsewhere (opening, decoding, between two adds)"


def inspect(place: Path, promised: list[str]) -> State:
    """What is there, and every broken promise."""
    violations = {line for line in promised if line.startswith("ERROR")}
    rows = _rows(place / "concepts.db")
    for name in set(promised) - violations:
        if len(rows.get(name, [])) != PHOTOS_PER_ADD:
            violations.add(f"{name} was acknowledged but has {len(rows.get(name, []))} photos")
    blobs = place / "concepts.blobs"
    stored = {path.name for path in blobs.glob("??/*")}
    for name in stored:
        if hashlib.sha256((blobs / name[:2] / name).read_bytes()).hexdigest() != name:
            violations.add(f"blob {name[:8]} does not hold the bytes of its name")
    needed = {sha256 for hashes in rows.values() for sha256 in hashes}
    violations |= {f"row without blob {sha256[:8]}" for sha256 in needed - stored}
    known = {"lock", "lock-journal", "stamp", "tmp"}
    strange = {path.name for path in blobs.glob("*") if len(path.name) != 2} - known
    return State(
        violations | {f"unexpected {name}" for name in strange},
        {path.name for path in (blobs / "tmp").glob("*")},
        stored - needed,
        set(rows) - set(promised),
    )


def _rows(database: Path) -> dict[str, list[str]]:
    """The hashes of each concept's photos; an unacknowledged concept may be missing."""
    if not database.exists():
        return {}
    connection = sqlite3.connect(database)
    try:
        query = "SELECT name, sha256 FROM concept LEFT JOIN image ON concept_id = concept.id"
        has_tables = "SELECT count(*) FROM sqlite_master WHERE name = 'image'"
        if connection.execute(has_tables).fetchone()[0] == 0:
            return {}
        rows: dict[str, list[str]] = {}
        for name, sha256 in connection.execute(query):
            rows.setdefault(name, []).append(sha256)
        return rows
    finally:
        connection.close()


def _clean_up(place: Path) -> list[str]:
    """After all its kills a registry must be whole, and `gc` must leave it bare of leftovers."""
    with Registry.open(place / "concepts.db", create=True) as registry:
        registry.gc(grace=0)
        problems = registry.check(read_data=True).problems
    return [f"after gc: {problem.message}" for problem in problems]


def row_before_blob() -> None:
    """Plant: commit the rows first and rename the blobs afterwards."""
    publish, leave = Staging.publish, Staging.__exit__

    def publish_late(self: Staging, *error: Any) -> None:
        time.sleep(0.01)
        if error[0] is None:
            publish(self)
        leave(self, *error)

    Staging.publish = lambda self: None
    Staging.__exit__ = publish_late  # pyright: ignore[reportAttributeAccessIssue]


def in_place_blob() -> None:
    """Plant: write a blob under its final name, piece by piece."""

    def write(self: Staging, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        path = self._store.path(sha256)
        path.parent.mkdir(exist_ok=True)
        with path.open("wb", buffering=0) as file:
            for piece in _pieces(data, 8):
                file.write(piece)
                time.sleep(0.002)
        return sha256

    Staging.write = write  # pyright: ignore[reportAttributeAccessIssue]


def _pieces(data: bytes, count: int) -> Iterator[bytes]:
    step = -(-len(data) // count)
    return (data[start : start + step] for start in range(0, len(data), step))


PLANTS = {"row-before-blob": row_before_blob, "in-place-blob": in_place_blob}


def main() -> None:
    """Run from the command line; exits with 1 if there was a violation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plant", choices=PLANTS, help="put a mistake in; expect violations")
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()

    def say(outcome: Outcome) -> None:
        if outcome.runs % 50 == 0:
            print(f"{outcome.runs} kills, {len(outcome.violations)} violations", flush=True)

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        plant = PLANTS[options.plant] if options.plant else None
        outcome = run_kills(options.runs, Path(folder), plant=plant, seed=options.seed, on_kill=say)
        caught = {
            name: len(
                run_kills(100, Path(folder) / name, plant=fault, seed=options.seed).violations
            )
            for name, fault in PLANTS.items()
            if plant is None
        }
    result = {
        "runs": outcome.runs,
        "violations": len(outcome.violations),
        "acknowledged adds": outcome.acknowledged,
        "where the kills landed": dict(outcome.moments.most_common()),
        "caught in 100 kills with a planted mistake": caught,
        "seconds": round(time.perf_counter() - start, 1),
    }
    print("\n".join(outcome.violations[:20]))
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(environment() | result, indent=2) + "\n")
    sys.exit(bool(outcome.violations) or not all(caught.values()))


def environment() -> dict[str, Any]:
    """The machine and the versions, for a result that is kept."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
    from environment import describe

    return describe()


if __name__ == "__main__":
    main()

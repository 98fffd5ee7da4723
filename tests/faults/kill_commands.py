"""Kill every command that writes with SIGKILL at random moments, and race it with others.

    python tests/faults/kill_commands.py --runs 1000

As `kill.py` does for `add`: here `train`, `generate`, `eval`, `export`, `import`, `backup`, `gc`,
`rename` and `check --repair`, as processes of the whole program, half of them beside another
command on the same registry. After each kill all that was confirmed is there, `check --read-data`
finds no error, nothing is there twice and what has a final name is whole. Each registry lives
through 20 kills; then its training goes on to its end, bit-equal to one that nobody disturbed, and
`gc --grace 0` leaves it bare of leftovers.

`--plant` puts one of three mistakes into the program, to show that the harness would see it.
"""

import argparse
import hashlib
import json
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from conceptry.registry import Registry
from drawing import draw_folder
from forked import Forked
from kill import environment
from tiny_base import write_tiny_base

KILLS_PER_REGISTRY = 20
OPERATIONS = (
    "train",
    "generate",
    "eval",
    "export",
    "import",
    "backup",
    "gc",
    "rename",
    "repair",
)
BESIDE = ("train", "generate", "import", "backup", "gc", "rename", "show")
METHODS = ("textual-inversion", "attndreambooth")
SHORT = {
    "textual-inversion": ["--set", "embedding.steps=6"],
    "attndreambooth": [word for i in (1, 2, 3) for word in ("--set", f"stage{i}.steps=2")],
}
SAVE_EACH_STEP = """
from conceptry.training import loop
loop.SAVE_EVERY_SECONDS = 0
"""
PLANTS = {
    "version-before-its-run-ends": (
        "train",
        """
import time
from conceptry.registry import Registry
def finish_run(self, run, files, *, kind="adapter"):
    name = next(n for n in self.names() for each in self.show(n).runs if each.run == run)
    number = self.add_version(name, files, run=run, kind=kind)
    time.sleep(0.5)
    self.end_run(run, "done")
    return number
Registry.finish_run = finish_run
""",
    ),
    "step-taken-twice": (
        "train",
        """
from dataclasses import replace
from conceptry.training import trainer
def read_resume_point(path, read=trainer.read_resume_point):
    point = read(path)
    return replace(point, step=max(0, point.step - 1))
trainer.read_resume_point = read_resume_point
""",
    ),
    "picture-before-its-row": (
        "generate",
        """
import time
from conceptry.generation import drawing
def save_picture(*arguments, record=lambda _: None, save=drawing.save_picture, **options):
    path, sha256 = save(*arguments, **options)
    time.sleep(0.5)
    record(sha256)
    return path, sha256
drawing.save_picture = save_picture
""",
    ),
}
"""Mistakes, each with the command that makes it and how it comes into the program."""


@dataclass(slots=True)
class Outcome:
    """What a series of kills found. `kills` counts by command those that came before its end."""

    kills: Counter[str] = field(default_factory=Counter)
    beside: Counter[str] = field(default_factory=Counter)
    resumed: int = 0
    versions: int = 0
    violations: list[str] = field(default_factory=list)

    @property
    def runs(self) -> int:
        """How many kills."""
        return self.kills.total()


@dataclass(slots=True)
class Promises:
    """What commands have confirmed."""

    versions: set[tuple[int, int]] = field(default_factory=set)
    pictures: set[str] = field(default_factory=set)
    imported: set[str] = field(default_factory=set)
    backed_up: int | None = None
    """The last event that is in the backup."""


class World:
    """A registry with one trained concept, a bundle of it, and what commands leave around it."""

    def __init__(self, folder: Path, base: Path, weights: dict[str, str]) -> None:
        self.folder = folder
        self.database = folder / "registry/concepts.db"
        self.pictures = folder / "pictures"
        self.backup = folder / "backup"
        self.bundle = folder / "rex.concept"
        self.exported = folder / "exported.concept"
        self.suite = folder / "one.txt"
        self.base = base
        self.weights = weights
        """Of each method the hash of what it learns where nobody disturbs it."""
        self.promises = Promises()
        self.number = 0

    @classmethod
    def made(cls, folder: Path, base: Path) -> "World":
        """A new one; every method has taught rex once."""
        world = cls(folder, base, {})
        photos = draw_folder(folder / "photos", 3, size=(64, 64))
        with Registry.open(world.database, create=True) as registry:
            registry.add("rex", [photos], category="dog")
        world.suite.write_text("a photo of a {}\n")
        for method in METHODS:
            done = run(world.words("train", method=method))
            assert done is not None, f"{method} cannot be taught"
            with Registry.open(world.database) as registry:
                world.weights[method] = registry.show(1).versions[-1].artifacts[0].sha256
        with Registry.open(world.database) as registry:
            registry.export_bundle(["rex"], world.bundle)
        return world

    def copy(self, folder: Path) -> "World":
        """One that is the same."""
        shutil.copytree(self.folder, folder)
        return World(folder, self.base, self.weights)

    @property
    def name(self) -> str:
        """What the concept is called by now."""
        return self.rows("SELECT name FROM concept WHERE id = 1")[0][0]

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """A read, past the program."""
        with closing(sqlite3.connect(self.database)) as connection:
            return connection.execute(query).fetchall()

    def words(self, operation: str, method: str = "textual-inversion") -> list[str | Path]:
        """The command line of an operation; prepares what it needs."""
        self.number += 1
        name, base = self.name, ("--base", str(self.base))
        words: list[str | Path]
        match operation:
            case "train" if self.is_resumable:
                words = ["train", name, "--resume", *base, "--preview-every", "0"]
            case "train":
                words = ["train", name, *base, "--method", method, "--preview-every", "0"]
                words += ["--set", "augmentation.crops=2", *SHORT[method]]
            case "generate":
                words = ["generate", f"a photo of <{name}@1>", *base, "--steps", "1", "-n", "2"]
                words += ["--seed", str(self.number), "--out", self.pictures]
            case "eval":
                words = ["eval", name, *base, "--suite", self.suite, "--versions", "1,2"]
                words += ["--clip", "miniature", "--dino", "none", "--steps", "1"]
                words += ["--seeds", str(1 + self.number % 3), "--mark-best"]
            case "export":
                words = ["export", name, self.exported, "--force"]
            case "import":
                words = ["import", self.bundle, "--as", f"n{self.number}"]
            case "backup":
                words = ["backup", self.backup]
            case "gc":
                words = ["gc", "--grace", "0"]
            case "rename":
                words = ["rename", name, "rex" if name == "max" else "max"]
            case "repair":
                self._misplace_a_blob()
                words = ["check", "--read-data", "--repair"]
            case _:
                words = [operation, name]
        return ["--registry", self.database, "--json", *words]

    @property
    def is_resumable(self) -> bool:
        """Whether the concept's last run did not end."""
        last = self.rows("SELECT status FROM run WHERE concept_id = 1 ORDER BY id DESC LIMIT 1")
        return bool(last) and last[0][0] != "done"

    def _misplace_a_blob(self) -> None:
        blobs = self.database.with_suffix(".blobs")
        found = sorted(path for path in blobs.glob("??/*") if path.parent.name == path.name[:2])
        path = found[self.number % len(found)]
        elsewhere = blobs / ("00" if path.parent.name != "00" else "01")
        elsewhere.mkdir(exist_ok=True)
        path.replace(elsewhere / path.name)

    def confirmed(self, operation: str, document: dict[str, Any]) -> None:
        """Take down what a command said it has done."""
        promises = self.promises
        match operation:
            case "train":
                promises.versions |= {(1, each["version"]) for each in document["runs"]}
            case "generate":
                promises.pictures |= {each["sha256"] for each in document["images"]}
            case "import":
                promises.imported |= {each["name"] for each in document["concepts"]}
            case _:
                pass

    # --- what has to be so ------------------------------------------------------------------------

    def violations(self) -> Iterator[str]:
        """Every broken promise."""
        yield from self._lost()
        yield from self._doubled()
        known = {row[0] for row in self.rows("SELECT output_sha256 FROM generation")}
        for path in self.pictures.glob("[!.]*.png"):
            if _sha256_of(path) not in known:
                yield f"the picture {path.name} has no row"
        if self.exported.exists():
            try:
                with zipfile.ZipFile(self.exported) as bundle:
                    bundle.testzip()
            except zipfile.BadZipFile as error:
                yield f"the export is broken: {error}"
        yield from _problems(self.database, "the registry")
        if self.promises.backed_up is not None:
            yield from self._backup_violations(self.promises.backed_up)

    def _lost(self) -> Iterator[str]:
        promises = self.promises
        versions = set(self.rows("SELECT concept_id, number FROM version"))
        yield from (f"version {lost} is lost" for lost in promises.versions - versions)
        names = {row[0] for row in self.rows("SELECT name FROM concept")}
        yield from (f"the import {lost} is lost" for lost in promises.imported - names)
        pictures = {row[0] for row in self.rows("SELECT output_sha256 FROM generation")}
        yield from (f"the row of {lost[:8]} is lost" for lost in promises.pictures - pictures)

    def _doubled(self) -> Iterator[str]:
        made = """SELECT uid, status, method, count(version.id), min(sha256), max(sha256)
            FROM run LEFT JOIN version ON version.run_id = run.id
            LEFT JOIN artifact ON version_id = version.id GROUP BY run.id"""
        for uid, status, method, count, lowest, highest in self.rows(made):
            if count != (status == "done"):
                yield f"the run {uid} is {status} and has {count} versions"
            if count and {lowest, highest} != {self.weights[method]}:
                yield f"the run {uid} learned something else"
        twice = """SELECT version_id, count(*) FROM evaluation
            GROUP BY version_id, suite, config HAVING count(*) > 1"""
        yield from (f"version {row[0]} was scored {row[1]} times" for row in self.rows(twice))

    def _backup_violations(self, last_event: int) -> Iterator[str]:
        if not (self.backup / "concepts.db").exists():
            yield "the former backup is gone"
            return
        with closing(sqlite3.connect(self.backup / "concepts.db")) as connection:
            if connection.execute("SELECT max(id) FROM event").fetchone()[0] < last_event:
                yield "the former backup is older than it was"
        yield from _problems(self.backup / "concepts.db", "the backup")

    def leftovers(self) -> Iterator[str]:
        """What should be gone after `gc --grace 0`."""
        with Registry.open(self.database) as registry:
            registry.gc(grace=0)
            yield from (f"left: {each.message}" for each in registry.check().problems)
            for path in registry.location.runs.glob("*/*"):
                yield f"left: {path.relative_to(self.folder)}"
            statuses = {run.status for name in registry.names() for run in registry.show(name).runs}
            yield from (f"a run is {each}" for each in statuses - {"done"})
        for path in self.database.parent.rglob("*.unfinished*"):
            yield f"left: {path.relative_to(self.folder)}"

    def last_event(self) -> int:
        """The newest line of history."""
        return self.rows("SELECT max(id) FROM event")[0][0]


def _problems(database: Path, what: str) -> Iterator[str]:
    with Registry.open(database) as registry:
        for problem in registry.check(read_data=True).problems:
            if problem.is_error:
                yield f"{what}: {problem.message}"


def _sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(words: list[str | Path]) -> dict[str, Any] | None:
    """Run a command to its end; returns its document if it succeeded."""
    with Forked(*words, prelude=SAVE_EACH_STEP) as process:
        out, _ = process.communicate()
        return json.loads(out) if process.wait() == 0 else None


def run_kills(
    runs: int,
    folder: Path,
    *,
    plant: str | None = None,
    seed: int = 0,
    on_kill: Callable[[Outcome], None] | None = None,
) -> Outcome:
    """Kill commands `runs` times, in registries under `folder`.

    With a plant only those that make its mistake, and no more once it was seen.
    """
    operations, prelude = OPERATIONS, SAVE_EACH_STEP
    if plant is not None:
        operations, prelude = (PLANTS[plant][0],), SAVE_EACH_STEP + PLANTS[plant][1]
    rng = random.Random(seed)
    outcome = Outcome()
    base = write_tiny_base(folder / "tiny")
    template = World.made(folder / "template", base)
    pace = _pace(template.copy(folder / "pace"))
    while outcome.runs < runs:
        first = outcome.runs
        world = template.copy(folder / f"world-{first}")
        while outcome.runs < min(runs, first + KILLS_PER_REGISTRY):
            operation = rng.choice(operations)
            beside = rng.choice(BESIDE) if operation != "repair" and rng.random() < 0.5 else None
            seconds = rng.uniform(0, 1.1 * pace[operation])
            method = rng.choice(METHODS)
            found = set(_kill_one(world, operation, method, beside, seconds, outcome, prelude))
            if operation == "repair":
                run(["--registry", world.database, "--json", "check", "--read-data", "--repair"])
            found |= set(world.violations())
            if found:
                what = f"kill {outcome.runs}, {operation}" + (f" beside {beside}" if beside else "")
                outcome.violations += [f"{what}: {text}" for text in sorted(found)]
                break
            if on_kill is not None:
                on_kill(outcome)
        outcome.violations += _finish(world, outcome)
        if plant is not None and outcome.violations:
            break
        shutil.rmtree(world.folder)
    return outcome


def _pace(world: World) -> dict[str, float]:
    """Seconds that each command takes."""
    pace: dict[str, float] = {}
    for operation in OPERATIONS:
        words, started = world.words(operation, "attndreambooth"), time.perf_counter()
        assert run(words) is not None, operation
        pace[operation] = time.perf_counter() - started
    return pace


def _kill_one(
    world: World,
    operation: str,
    method: str,
    beside: str | None,
    seconds: float,
    outcome: Outcome,
    prelude: str,
) -> Iterator[str]:
    """Kill a command after some seconds, while another one runs to its end beside it."""
    words = world.words(operation, method)
    event = world.last_event()
    with Forked(*words, prelude=prelude) as process:
        other = None
        if beside is not None:
            other = Forked(*world.words(beside, method), prelude=prelude)
            outcome.beside[f"{operation} beside {beside}"] += 1
        time.sleep(seconds)
        process.kill()
        out, err = process.communicate()
        if process.returncode == -signal.SIGKILL:
            outcome.kills[operation] += 1
        yield from _ended(world, operation, process.wait(), out, err, event, beside)
    if beside is not None and other is not None:
        with other:
            out, err = other.communicate()
            yield from _ended(world, beside, other.wait(), out, err, event, operation)


def _ended(
    world: World, operation: str, status: int, out: str, err: str, event: int, beside: str | None
) -> Iterator[str]:
    """Take down what a command confirmed; or say how it must not end."""
    try:
        document = json.loads(out) if out else None
    except ValueError:
        document = None  # cut by the kill
    may_end = {0, -signal.SIGKILL, 4} | ({3} if "rename" in (operation, beside) else set())
    if operation == beside == "train":
        may_end.add(3)  # the other one has ended the run that this was to go on with
    if status not in may_end:
        yield f"{operation} ended with {status}: {out} {err}"
    elif status != 4 and document is not None and "error" not in document:
        world.confirmed(operation, document)
        if operation == "backup":
            world.promises.backed_up = event


def _finish(world: World, outcome: Outcome) -> list[str]:
    """Let what was killed go on to its end; then the registry must be whole and bare."""
    if world.is_resumable:
        outcome.resumed += 1
        if run(world.words("train")) is None:
            return ["the training cannot go on"]
    outcome.versions += len(world.rows("SELECT id FROM version"))
    return [f"in the end: {text}" for text in (*world.violations(), *world.leftovers())]


def main() -> None:
    """Run from the command line; exits with 1 if there was a violation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plant", choices=PLANTS, help="put a mistake in; expect violations")
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()

    def say(outcome: Outcome) -> None:
        if outcome.runs % 20 == 0:
            print(f"{outcome.runs} kills, {len(outcome.violations)} violations", flush=True)

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        plant, seed = options.plant, options.seed
        outcome = run_kills(options.runs, Path(folder), plant=plant, seed=seed, on_kill=say)
        caught = {
            name: len(run_kills(100, Path(folder) / name, plant=name, seed=seed).violations)
            for name in PLANTS
            if plant is None
        }
    result = {
        "runs": outcome.runs,
        "violations": len(outcome.violations),
        "kills of": dict(outcome.kills.most_common()),
        "beside another command": dict(outcome.beside.most_common()),
        "registries whose training went on in the end": outcome.resumed,
        "versions, all bit-equal to undisturbed ones": outcome.versions,
        "caught in at most 100 kills with a planted mistake": caught,
        "seconds": round(time.perf_counter() - start, 1),
    }
    print("\n".join(outcome.violations[:40]))
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(environment() | result, indent=2) + "\n")
    sys.exit(bool(outcome.violations) or not all(caught.values()))


if __name__ == "__main__":
    main()

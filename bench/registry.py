"""What the registry costs, beside the least that the same work could cost.

    python bench/registry.py            # everything, about ten minutes on two cores
    python bench/registry.py reads      # one part: reads, adds, memory or startup

reads    list, search and show over 10,000 concepts of 5 images, against plain `sqlite3`
adds     1,000 photos of 1 megapixel, against a loop that copies, syncs, decodes and hashes
memory   peak memory of every read, of check --read-data and of gc, at 100 and 10,000 concepts
startup  `concept --help` against `python -c "import typer, rich"`

Both sides of a ratio run in turn in one process or one after the other; medians are reported.
Writes bench/results/registry.json.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from conceptry.registry import Registry
from conceptry.registry.clock import now
from conceptry.registry.queries import search_text
from conceptry.registry.tables import Concept, Image, Tag
from environment import describe
from PIL import Image as Pillow
from sqlmodel import insert

RESULTS = Path(__file__).parent / "results" / "registry.json"
NUM_CONCEPTS = 10_000
IMAGES_PER_CONCEPT = 5
NUM_PHOTOS = 1_000
CATEGORIES = ("dog", "cat", "doll", "face", "mug", "teddy bear")
PLACES = ("on the beach", "in the snow", "on a sofa", "under a tree", "in a kitchen")


# --- a large registry -----------------------------------------------------------------------------


def build(place: Path, num_concepts: int) -> Path:
    """Write a registry with tiny blobs, by rows, since 50,000 real photos would take an hour."""
    database = place / "concepts.db"
    with Registry.open(database, create=True) as registry:
        blobs = registry.location.blobs
        for shard in range(256):
            (blobs / f"{shard:02x}").mkdir(exist_ok=True)
        for first in range(0, num_concepts, 1000):
            numbers = range(first, min(first + 1000, num_concepts))
            with registry._store.database.write() as session:
                session.execute(insert(Concept), [_concept(number) for number in numbers])
                session.execute(insert(Tag), [_tag(number) for number in numbers])
                images = [_image(n, i, blobs) for n in numbers for i in range(IMAGES_PER_CONCEPT)]
                session.execute(insert(Image), images)
    return database


def _concept(number: int) -> dict[str, Any]:
    name, category = f"concept-{number:05}", CATEGORIES[number % len(CATEGORIES)]
    notes = f"taken {PLACES[number % 5]} by number {number}"
    captions = [_caption(number, i) for i in range(IMAGES_PER_CONCEPT)]
    return {
        "id": number + 1,
        "name": name,
        "category": category,
        "notes": notes,
        "created": now(),
        "updated": now(),
        "search": search_text(name, category, notes, [f"tag{number % 40}"], captions),
    }


def _tag(number: int) -> dict[str, Any]:
    return {"concept_id": number + 1, "tag": f"tag{number % 40}"}


def _caption(number: int, i: int) -> str:
    return f"a photo of a {CATEGORIES[number % len(CATEGORIES)]} {PLACES[(number + i) % 5]}"


def _image(number: int, i: int, blobs: Path) -> dict[str, Any]:
    data = f"photo {i} of {number}".encode()
    sha256 = hashlib.sha256(data).hexdigest()
    (blobs / sha256[:2] / sha256).write_bytes(data)
    return {
        "concept_id": number + 1,
        "sha256": sha256,
        "bytes": len(data),
        "filename": f"{i:02}.jpg",
        "format": "JPEG",
        "width": 1024,
        "height": 1024,
        "caption": _caption(number, i),
        "phash": sha256[:16],
        "added": now(),
    }


# --- reads ----------------------------------------------------------------------------------------

_SUMMARY = """
    SELECT c.name, c.category, (SELECT group_concat(tag, ' ') FROM tag WHERE concept_id = c.id),
        c.notes, (SELECT count(*) FROM image WHERE concept_id = c.id),
        (SELECT count(*) FROM version WHERE concept_id = c.id),
        (SELECT coalesce(sum(bytes + coalesce(mask_bytes, 0)), 0) FROM image
            WHERE concept_id = c.id)
        + (SELECT coalesce(sum(bytes), 0) FROM artifact a JOIN version v ON v.id = a.version_id
            WHERE v.concept_id = c.id)
        + (SELECT coalesce(sum(bytes), 0) FROM artifact a JOIN run r ON r.id = a.run_id
            WHERE r.concept_id = c.id),
        c.created, c.updated
    FROM concept c
"""
_FOUND = " WHERE c.search LIKE ? AND c.search LIKE ?"
_SHOW = (
    "SELECT id, category, (SELECT group_concat(tag, ' ') FROM tag WHERE concept_id = concept.id), "
    "notes, created, updated FROM concept WHERE name = ?",
    "SELECT sha256, filename, format, width, height, bytes, caption, mask, added, mask_bytes "
    "FROM image WHERE concept_id = ? ORDER BY id",
    "SELECT uid, method, status, base, base_sha256, seed, config, packages, host, started, "
    "finished, error FROM run WHERE concept_id = ? ORDER BY id",
    "SELECT v.id, number, (SELECT group_concat(alias, ' ') FROM alias WHERE version_id = v.id), "
    "uid, created FROM version v LEFT JOIN run ON run.id = run_id WHERE v.concept_id = ? "
    "ORDER BY number",
)


def measure_reads(folder: Path) -> dict[str, Any]:
    """Median microseconds of the facade and of plain `sqlite3`, and their ratio."""
    database = build(folder / "large", NUM_CONCEPTS)
    plain = sqlite3.connect(database)

    def plain_page(where: str = "", *words: str) -> None:
        plain.execute(f"SELECT count(*) FROM concept c{where}", words).fetchall()
        plain.execute(f"{_SUMMARY}{where} ORDER BY name LIMIT 50", words).fetchall()

    def plain_show() -> None:
        concept, *_ = plain.execute(_SHOW[0], ("concept-05000",)).fetchone()
        for query in _SHOW[1:]:
            plain.execute(query, (concept,)).fetchall()

    with Registry.open(database) as registry, contextlib.closing(plain):
        pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "list, first page": (registry.find, plain_page),
            "text search, two words": (
                lambda: registry.find(text="kitchen 0999"),
                lambda: plain_page(_FOUND, "%kitchen%", "%0999%"),
            ),
            "show": (lambda: registry.show("concept-05000"), plain_show),
        }
        return {name: _compare(*pair, runs=200) for name, pair in pairs.items()}


def _compare(
    ours: Callable[[], object], plain: Callable[[], object], *, runs: int
) -> dict[str, float]:
    """Run both in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs):
        for work, record in zip((ours, plain), times, strict=True):
            record.append(_seconds(work) * 1e6)
    ours_us, plain_us = (statistics.median(record) for record in times)
    return {
        "registry_us": round(ours_us, 1),
        "sqlite3_us": round(plain_us, 1),
        "ratio": round(ours_us / plain_us, 2),
    }


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# --- adds -----------------------------------------------------------------------------------------


def measure_adds(folder: Path, repeats: int = 3) -> dict[str, Any]:
    """Seconds for 1,000 photos, by `add` and by a plain loop, in turn."""
    photos = folder / "photos"
    total = sum(_write_photo(photos / f"{i:04}.jpg", i) for i in range(NUM_PHOTOS))
    pairs: list[tuple[float, float]] = []
    for repeat in range(repeats + 1):
        place = folder / f"adds-{repeat}"
        os.sync()
        plain = _seconds(lambda place=place: _plain_loop(photos, place / "plain"))
        os.sync()
        ours = _seconds(lambda place=place: _add_all(photos, place / "ours"))
        shutil.rmtree(place)
        if repeat:  # the first pair warms caches up
            pairs.append((ours, plain))
    return {
        "photos": NUM_PHOTOS,
        "megabytes": round(total / 1e6),
        "registry_s": [round(ours, 2) for ours, _ in pairs],
        "loop_s": [round(plain, 2) for _, plain in pairs],
        "ratio": round(statistics.median(ours / plain for ours, plain in pairs), 2),
    }


def _write_photo(path: Path, seed: int) -> int:
    """A 1-megapixel JPEG with the detail, and so the size, of a camera's."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    smooth = Pillow.fromarray(coarse).resize((1152, 896), Pillow.Resampling.BICUBIC)
    grain = rng.normal(0, 6, (896, 1152, 1))
    pixels = np.clip(np.asarray(smooth, dtype=np.float32) + grain, 0, 255)
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(pixels.astype(np.uint8)).save(path, quality=90)
    return path.stat().st_size


def _add_all(photos: Path, place: Path) -> None:
    with Registry.open(place / "concepts.db", create=True) as registry:
        added = registry.add("many", [photos], category="dog").added
    assert len(added) == NUM_PHOTOS


def _plain_loop(photos: Path, place: Path) -> None:
    import imagehash

    place.mkdir(parents=True)
    for path in sorted(photos.iterdir()):
        data = path.read_bytes()
        with (place / path.name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        hashlib.sha256(data).hexdigest()
        image = Pillow.open(io.BytesIO(data))
        image.load()
        imagehash.phash(image)


# --- memory ---------------------------------------------------------------------------------------


def measure_memory(folder: Path) -> dict[str, Any]:
    """Peak megabytes of fresh processes, at 100 and 10,000 concepts."""
    peaks: dict[str, Any] = {}
    databases = {count: build(folder / f"memory-{count}", count) for count in (100, NUM_CONCEPTS)}
    for work in _WORKS:
        peak = {count: _peak(work, database) for count, database in databases.items()}
        peaks[work] = {
            "100_concepts_mb": peak[100],
            "10000_concepts_mb": peak[NUM_CONCEPTS],
            "ratio": round(peak[NUM_CONCEPTS] / peak[100], 3),
        }
    return peaks


_WORKS: dict[str, Callable[[Registry], object]] = {
    "list": lambda registry: registry.find(),
    "search": lambda registry: registry.find(text="kitchen 0999"),
    "show": lambda registry: registry.show("concept-00050"),
    "history": lambda registry: registry.history(limit=50),
    "check --read-data": lambda registry: registry.check(read_data=True),
    "gc": lambda registry: registry.gc(grace=0),
}


def _peak(work: str, database: Path) -> float:
    command = [sys.executable, __file__, "--peak-of", work, str(database)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _print_peak(work: str, database: str) -> None:
    with Registry.open(database) as registry:
        _WORKS[work](registry)
    status = Path("/proc/self/status").read_text()  # getrusage would count the parent's peak too
    peak_kb = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    print(round(int(peak_kb) / 1024, 1))


# --- start-up -------------------------------------------------------------------------------------


def measure_startup(runs: int = 15) -> dict[str, Any]:
    """Median milliseconds of `concept --help` and of importing its two libraries, in turn."""
    concept = str(Path(sys.executable).with_name("concept"))
    commands = {
        "concept --help": [concept, "--help"],
        "import typer, rich": [sys.executable, "-c", "import typer, rich"],
        "concept list": [concept, "list"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder), 100)
        for _ in range(runs + 1):
            for name, command in commands.items():
                times[name].append(_seconds(lambda command=command: _run(command, folder)) * 1e3)
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    ratio = medians["concept --help"] / medians["import typer, rich"]
    return {f"{name} (ms)": round(value) for name, value in medians.items()} | {
        "ratio": round(ratio, 2)
    }


def _run(command: list[str], folder: str) -> None:
    subprocess.run(command, check=True, capture_output=True, cwd=folder)


# --------------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "reads": measure_reads,
    "adds": measure_adds,
    "memory": measure_memory,
    "startup": lambda _: measure_startup(),
}


@contextlib.contextmanager
def _workplace() -> Iterator[Path]:
    """A folder on a real disk; /tmp may be in memory, where syncing costs nothing."""
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as folder:
        yield Path(folder)


def main() -> None:
    """Measure the parts that are named, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART")
    parser.add_argument("--peak-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        _print_peak(*options.peak_of)
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with _workplace() as folder:
        for part in options.parts or PARTS:
            results[part] = describe() | {"results": PARTS[part](folder)}
            print(part, json.dumps(results[part]["results"], indent=2), flush=True)
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

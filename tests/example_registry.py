"""Build `concepts.db.example`: the schema with a few rows in every table, to look into.

    python tests/example_registry.py concepts.db.example

Its photos are drawn and not kept, so `concept check` would miss their files.
"""

import hashlib
import shutil
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np
from conceptry.registry import Registry
from drawing import draw_folder
from safetensors.numpy import save_file

MOMENT = "2026-01-01T12:00:00.000Z"
SHA256 = hashlib.sha256(b"example").hexdigest()
_VOLATILE = {
    "concept": ("created", "updated"),
    "image": ("added",),
    "run": ("started", "finished"),
    "version": ("created",),
    "artifact": ("created",),
    "evaluation": ("created",),
    "generation": ("created",),
    "event": ("at",),
    "migration": ("applied",),
    "queue": ("added",),
}


def build(target: Path) -> None:
    """Write the example database to `target`; equal programs write equal rows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Registry.open(folder / "concepts.db", create=True) as registry:
            _fill(registry, folder)
            registry.backup(folder / "copy")
        with closing(sqlite3.connect(folder / "copy" / "concepts.db")) as connection:
            _steady(connection)
        shutil.copyfile(folder / "copy" / "concepts.db", target)


def _fill(registry: Registry, folder: Path) -> None:
    for seed, (name, category, tags, notes) in enumerate(
        (
            ("rex", "dog", ["pets"], "a corgi, on orange paper"),
            ("mia", "cat", ["pets", "grey"], ""),
            ("sloth", "plush toy", ["toys"], "from the zoo shop"),
        )
    ):
        photos = draw_folder(folder / name, 3, seed=seed)
        (photos / "00.txt").write_text(f"a photo of a {category} on a sofa")
        registry.add(name, [photos], category=category, tags=tags, notes=notes)
    run = registry.begin_run(
        "rex",
        method="textual-inversion",
        config={"steps": 3000, "learning_rate": 0.005},
        base="miniature",
        base_sha256=SHA256,
        seed=0,
        packages={"conceptry": "0.1.0"},
    )
    registry.log_metrics(run, [("embedding", step, "loss", 1 / (1 + step)) for step in range(3)])
    weights = folder / "embedding.safetensors"
    save_file({"embedding": np.ones(8, dtype=np.float32)}, weights)
    number = registry.add_version("rex", {"embedding.safetensors": weights}, run=run)
    registry.end_run(run, "done")
    registry.set_alias("rex", number, "best")
    registry.add_evaluation("rex", number, suite="objects", config={}, scores={"clip_t": 0.3})
    registry.add_generation(
        SHA256,
        prompt="<rex> on the beach",
        seed=7,
        base="miniature",
        base_sha256=SHA256,
        settings={"steps": 50, "guidance": 7.5},
        versions=[("rex", number)],
    )
    registry.enqueue(["mia", "sloth"], {"base": "sd15", "method": "sefi", "seed": 1})


def _steady(connection: sqlite3.Connection) -> None:
    """Replace what differs from one run, and one machine, to the next."""
    for table, columns in _VOLATILE.items():
        for column in columns:
            connection.execute(f"UPDATE {table} SET {column} = ?", (MOMENT,))
    uid = connection.execute("SELECT uid FROM run").fetchone()[0]
    connection.execute("UPDATE run SET uid = 'e0a9', host = 'example'")
    connection.execute("UPDATE event SET detail = replace(detail, ?, 'e0a9')", (uid,))
    connection.commit()
    connection.execute("PRAGMA page_size = 1024")  # it is kept in the history for ever
    connection.execute("VACUUM")


if __name__ == "__main__":
    build(Path(sys.argv[1]))

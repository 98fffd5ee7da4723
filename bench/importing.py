"""What `concept import` of a folder costs, beside reading and hashing its files.

    python bench/importing.py            # a quarter of an hour on two cores, and 30 GB of disk

A folder of 2,000 files of other tools, mixed: LoRA, embeddings, files beside them, and among them a
broken file, a pickle, a ControlNet and a duplicate. LoRA take 10 MB in one folder, as those that
people have, and 0.4 MB in another, where little else is measured than what a file costs whatever
its size. Three ways to go through it run in turn, in processes of their own: reading and hashing
each (SHA-256); the same and storing it durably (written, synced, renamed); and importing. Then the
import is run again, which finds everything there. Each way is run with the files in the page cache,
`hot`, and once they were dropped from it, `cold`. Medians are reported.
Writes bench/results/importing.json.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from environment import describe
from safetensors.numpy import save_file

RESULTS = Path(__file__).parent / "results" / "importing.json"
NUM_FILES = 2_000
ODD = 4
RANKS = {"10 MB": 192, "0.4 MB": 8}
"""Of LoRA, by what a file of them takes."""
BLOCKS = [f"down_blocks_{i}_attentions_{j}" for i in range(3) for j in range(2)]
LAYERS = [
    f"lora_unet_{block}_transformer_blocks_0_attn2_to_{kind}" for block in BLOCKS for kind in "qkv"
]

HASH = """
import hashlib, sys
from pathlib import Path
for path in sorted(Path(sys.argv[1]).rglob("*")):
    if path.is_file():
        hashlib.sha256(path.read_bytes()).hexdigest()
"""
STORE = """
import hashlib, os, sys
from pathlib import Path
to = Path(sys.argv[2])
to.mkdir()
for path in sorted(Path(sys.argv[1]).rglob("*")):
    if path.is_file():
        data = path.read_bytes()
        name = hashlib.sha256(data).hexdigest()
        with (to / "new").open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        (to / "new").rename(to / name)
"""


class Numbers:
    """Normal ones, cut out of a million that were drawn once."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)
        self._pool = self._random.standard_normal(1 << 20, dtype=np.float32).astype(np.float16)

    def __call__(self, *shape: int) -> np.ndarray:
        """Some of a shape."""
        size = math.prod(shape)
        start = self._random.integers(len(self._pool) - size)
        return self._pool[start : start + size].reshape(shape).copy()


def write_folder(folder: Path, rank: int) -> None:
    """The files, of which the last few are odd."""
    folder.mkdir()
    numbers = Numbers()
    for number in range(NUM_FILES - ODD):
        path = folder / f"file-{number:04}.safetensors"
        if number % 2:
            width = (768, 1024)[number // 2 % 2]
            save_file({"emb_params": numbers(1 + number % 8, width)}, path)
        else:
            save_file(lora(numbers, rank), path, metadata={"ss_base_model_version": "sd_v1"})
            told = {"trainedWords": [f"word{number}"], "baseModel": "SD 1.5"}
            path.with_suffix(".civitai.info").write_text(json.dumps(told))
    whole = (folder / "file-0000.safetensors").read_bytes()
    (folder / "broken.safetensors").write_bytes(whole[:-100])
    (folder / "pickle.ckpt").write_bytes(b"PK\x03\x04")
    save_file({"control_model.x": numbers(2, 2)}, folder / "control.safetensors")
    (folder / "twice.safetensors").write_bytes(whole)


def lora(numbers: Numbers, rank: int) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for layer in LAYERS:
        found[f"{layer}.lora_down.weight"] = numbers(rank, 768)
        found[f"{layer}.lora_up.weight"] = numbers(640, rank)
        found[f"{layer}.alpha"] = np.array(rank, np.float16)
    return found


def drop_from_cache(folder: Path) -> None:
    """Have the next reading of a folder's files come from the disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds(*command: str) -> tuple[float, str]:
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=True, env=os.environ
    )
    return time.perf_counter() - began, done.stdout


@dataclass
class Round:
    """One run of each way, on a folder."""

    folder: Path
    place: Path
    is_cold: bool

    def times(self) -> tuple[dict[str, float], dict[str, int]]:
        """Seconds by way, and how many files came to what."""
        stored, registry = self.place / "stored", self.place / "registry"
        concept = ["-m", "conceptry.cli", "--json", "--registry", str(registry / "concepts.db")]
        found = {
            "hash": self._seconds("-c", HASH, str(self.folder))[0],
            "store": self._seconds("-c", STORE, str(self.folder), str(stored))[0],
        }
        shutil.rmtree(stored)
        found["import"], said = self._seconds(*concept, "import", str(self.folder))
        files = json.loads(said)["files"]
        found["again"] = self._seconds(*concept, "import", str(self.folder))[0]
        shutil.rmtree(registry)
        kinds = ("imported", "known", "refused")
        return found, {kind: sum(each["outcome"] == kind for each in files) for kind in kinds}

    def _seconds(self, *command: str) -> tuple[float, str]:
        os.sync()
        if self.is_cold:
            drop_from_cache(self.folder)
        return seconds(*command)


def measure(place: Path, rank: int, rounds: int) -> dict[str, Any]:
    """What each way takes for LoRA of a rank, and how that compares."""
    folder = place / "files"
    write_folder(folder, rank)
    found: dict[str, Any] = {
        "files": NUM_FILES,
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "rounds": rounds,
    }
    for name, is_cold in {"hot": False, "cold": True}.items():
        each = Round(folder, place, is_cold)
        if not is_cold:
            each.times()  # fills the cache
        runs = [each.times() for _ in range(rounds)]
        found["outcomes"] = runs[0][1]
        medians = {way: statistics.median(times[way] for times, _ in runs) for way in runs[0][0]}
        found[name] = {
            **{f"{way}_seconds": round(value, 2) for way, value in medians.items()},
            "import_to_hash": round(medians["import"] / medians["hash"], 2),
            "import_to_store": round(medians["import"] / medians["store"], 2),
            "again_to_hash": round(medians["again"] / medians["hash"], 2),
        }
    shutil.rmtree(folder)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent, prefix=".bench-") as place:
        sizes = {name: measure(Path(place), rank, arguments.rounds) for name, rank in RANKS.items()}
    result = {**describe(), "importing": sizes}
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result["importing"], indent=2))


if __name__ == "__main__":
    main()

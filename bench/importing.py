"""What `concept import` of a folder costs, beside reading and hashing its files.

    python bench/importing.py            # about a minute on two cores

A folder of 2,000 small files of other tools, mixed: LoRA of half a megabyte, embeddings, files
beside them, and among them a broken file, a pickle, a ControlNet and a duplicate. Three ways to go
through it run in turn, in processes of their own, with the files in the page cache: reading and
hashing each (SHA-256); the same and storing it durably (written, synced, renamed); and importing.
Then the import is run again, which finds everything there. Medians are reported.
Writes bench/results/importing.json.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from environment import describe
from safetensors.numpy import save_file

RESULTS = Path(__file__).parent / "results" / "importing.json"
NUM_FILES = 2_000
ODD = 4
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


def write_folder(folder: Path) -> None:
    """The files, of which the last few are odd."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(NUM_FILES - ODD):
        path = folder / f"file-{number:04}.safetensors"
        if number % 2:
            width = (768, 1024)[number // 2 % 2]
            save_file({"emb_params": numbers(random, 1 + number % 8, width)}, path)
        else:
            save_file(lora(random), path, metadata={"ss_base_model_version": "sd_v1"})
            told = {"trainedWords": [f"word{number}"], "baseModel": "SD 1.5"}
            path.with_suffix(".civitai.info").write_text(json.dumps(told))
    whole = (folder / "file-0000.safetensors").read_bytes()
    (folder / "broken.safetensors").write_bytes(whole[:-100])
    (folder / "pickle.ckpt").write_bytes(b"PK\x03\x04")
    save_file({"control_model.x": numbers(random, 2, 2)}, folder / "control.safetensors")
    (folder / "twice.safetensors").write_bytes(whole)


def lora(random: np.random.Generator) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for layer in LAYERS:
        found[f"{layer}.lora_down.weight"] = numbers(random, 8, 768)
        found[f"{layer}.lora_up.weight"] = numbers(random, 640, 8)
        found[f"{layer}.alpha"] = np.array(8.0, np.float16)
    return found


def numbers(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.standard_normal(shape, dtype=np.float32).astype(np.float16)


def seconds(*command: str) -> tuple[float, str]:
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=True, env=os.environ
    )
    return time.perf_counter() - began, done.stdout


def measure(place: Path, rounds: int) -> dict[str, Any]:
    folder = place / "files"
    write_folder(folder)
    times: dict[str, list[float]] = {"hash": [], "store": [], "import": [], "again": []}
    outcomes: dict[str, int] = {}
    for number in range(rounds + 1):  # the first fills caches
        registry = place / f"registry-{number}"
        concept = ["-m", "conceptry.cli", "--json", "--registry", str(registry / "concepts.db")]
        found = {
            "hash": seconds("-c", HASH, str(folder))[0],
            "store": seconds("-c", STORE, str(folder), str(place / f"stored-{number}"))[0],
        }
        found["import"], said = seconds(*concept, "import", str(folder))
        files = json.loads(said)["files"]
        outcomes = {
            kind: sum(each["outcome"] == kind for each in files)
            for kind in ("imported", "known", "refused")
        }
        found["again"] = seconds(*concept, "import", str(folder))[0]
        for key, took in found.items():
            times[key] += [took] if number else []
        shutil.rmtree(registry)
        shutil.rmtree(place / f"stored-{number}")
    medians = {f"{key}_seconds": round(statistics.median(each), 2) for key, each in times.items()}
    size = sum(path.stat().st_size for path in folder.iterdir())
    return {
        "files": NUM_FILES,
        "bytes": size,
        "outcomes": outcomes,
        "rounds": rounds,
        **medians,
        "import_to_hash": round(medians["import_seconds"] / medians["hash_seconds"], 2),
        "import_to_store": round(medians["import_seconds"] / medians["store_seconds"], 2),
        "again_to_hash": round(medians["again_seconds"] / medians["hash_seconds"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent, prefix=".bench-") as place:
        result = {**describe(), "importing": measure(Path(place), arguments.rounds)}
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result["importing"], indent=2))


if __name__ == "__main__":
    main()

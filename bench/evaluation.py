"""What scoring costs, on the miniature.

    python bench/evaluation.py

drawing      64 pictures of the suite `miniature`, without maps or scores
evaluating   the same, with token maps and all scores: what this takes more is the cost of scoring
again        the same once more: every picture is in the cache
told         `concept eval` as a command, the first time and when it is in the registry
memory       peak after 16 pictures, and after 128

Writes bench/results/evaluation.json.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from conceptry.evaluation.encoder_names import encoder_names_for
from conceptry.evaluation.encoders import Encoders, load_encoders
from conceptry.evaluation.evaluating import EvalSubject, Evaluator
from conceptry.evaluation.picture_cache import PictureCache
from conceptry.evaluation.plan import Plan
from conceptry.evaluation.suites import find_suite
from conceptry.generation import SamplingSettings
from conceptry.generation.sampler import draw
from conceptry.models.loading import LoadedBase, load_base
from conceptry.models.miniature.world.sample import CATEGORY, FOLDER
from conceptry.registry import Registry
from conceptry.training import train
from environment import describe
from PIL import Image

RESULTS = Path(__file__).parent / "results"
ROUNDS = 3
SHORT = ("stage1.steps=1", "stage2.steps=1", "stage3.steps=1", "augmentation.crops=5")


def evaluator(base: LoadedBase, encoders: Encoders, folder: Path, num_seeds: int) -> Evaluator:
    """The bare base model, on the sample's photos."""
    photos = [Image.open(path).convert("RGB") for path in sorted(FOLDER.glob("*.png"))]
    plan = Plan(
        chosen=(),
        suite=find_suite("miniature"),
        encoders=encoder_names_for(base.base),
        base=base.base.name,
        base_sha256=base.sha256,
        seeds=tuple(range(num_seeds)),
    )
    subject = EvalSubject(CATEGORY, photos, [None] * len(photos))
    return Evaluator(base, encoders, PictureCache(folder), plan, [subject])


def plain_seconds(base: LoadedBase) -> float:
    """Drawing alone."""
    started = time.perf_counter()
    for prompt in find_suite("miniature").prompts:
        for _ in draw(
            base, prompt.filled(CATEGORY, category=CATEGORY), range(4), SamplingSettings()
        ):
            pass
    return time.perf_counter() - started


def in_turn(base: LoadedBase, encoders: Encoders) -> dict[str, Any]:
    """Drawing, evaluating and evaluating again, in turn; medians, and medians of ratios."""
    rows: list[tuple[float, float, float]] = []
    is_same = True
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            plain = plain_seconds(base)
            started = time.perf_counter()
            first = evaluator(base, encoders, Path(folder), 4).run()
            middle = time.perf_counter()
            again = evaluator(base, encoders, Path(folder), 4).run()
            rows.append((plain, middle - started, time.perf_counter() - middle))
            is_same &= first == again
    return {
        "drawing_seconds": round(statistics.median(row[0] for row in rows), 2),
        "evaluating_seconds": round(statistics.median(row[1] for row in rows), 2),
        "again_seconds": round(statistics.median(row[2] for row in rows), 2),
        "cost_of_scoring": round(statistics.median(row[1] / row[0] - 1 for row in rows), 3),
        "same_numbers": is_same,
    }


def told(base: LoadedBase) -> dict[str, Any]:
    """The command, the first and the second time."""
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "concepts.db"
        with Registry.open(database, create=True) as registry:
            registry.add("rex", [FOLDER], category=CATEGORY)
            train(registry, "rex", base, overrides=SHORT)
        taken: list[float] = []
        printed: list[str] = []
        for _ in range(2):
            started = time.perf_counter()
            words = ["eval", "rex", "--json", "--registry", str(database)]
            done = subprocess.run(
                [sys.executable, "-m", "conceptry.cli", *words],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            taken.append(time.perf_counter() - started)
            printed.append(done.stdout)
    return {
        "first_seconds": round(taken[0], 2),
        "second_seconds": round(taken[1], 2),
        "ratio": round(taken[0] / taken[1], 1),
        "same_document": printed[0] == printed[1],
    }


def peak() -> int:
    """Bytes, of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    base = load_base()
    encoders = load_encoders(encoder_names_for(base.base))
    memory: dict[str, int] = {}
    for num_seeds in (1, 8):
        with tempfile.TemporaryDirectory() as folder:
            evaluator(base, encoders, Path(folder), num_seeds).run()
        memory[f"{16 * num_seeds}_pictures"] = peak()
    document = {
        "environment": describe(),
        "in_turn": in_turn(base, encoders),
        "told": told(base),
        "peak_memory_bytes": memory,
    }
    print(json.dumps(document, indent=1))
    (RESULTS / "evaluation.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()

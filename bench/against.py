"""The registry and a step of training, beside the same of another revision, in turns.

    python bench/against.py 2688419        # about six minutes on two cores
    python bench/against.py 2688419 registry

registry  in one process: adding a photo as a concept, and one more photo to it; then a page of the
          list, a search, and a concept, of all that were added
training  what `concept train` takes for a step of AttnDreamBooth's last stage on the miniature:
          a training of many such steps less one of few

Each side runs in processes of its own, one after the other; ratios are of medians. Writes
bench/results/against.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from environment import describe
from startup import ADD, PROGRAM, ROOT, WITHOUT_PREVIEWS, checked_out

RESULTS = Path(__file__).parent / "results" / "against.json"
ROUNDS = 5
CONCEPTS = 200
FEW, MANY = 5, 45

IN_REGISTRY = """
import json, statistics, sys, time, types
package = sys.modules["conceptry"] = types.ModuleType("conceptry")
package.__path__ = [sys.argv[1]]
from conceptry.registry import Registry

def median_ms(call, count):
    taken = []
    for i in range(count):
        begun = time.perf_counter()
        call(i)
        taken.append(time.perf_counter() - begun)
    return 1000 * statistics.median(taken)

first, second, count = sys.argv[2], sys.argv[3], int(sys.argv[4])
with Registry.open("concepts.db", create=True) as registry:
    told = {
        "add": median_ms(lambda i: registry.add(f"c{i}", [first], category="dog"), count),
        "add again": median_ms(lambda i: registry.add(f"c{i}", [second]), count),
        "list": median_ms(lambda i: registry.find(), count),
        "search": median_ms(lambda i: registry.find(text=f"c{i}"), count),
        "show": median_ms(lambda i: registry.show(f"c{i}"), count),
    }
print(json.dumps(told))
"""


def registry(sources: Path, place: Path) -> dict[str, float]:
    """Milliseconds of each call."""
    from PIL import Image

    paths = [place / f"{i}.png" for i in range(2)]
    for i, path in enumerate(paths):
        Image.effect_noise((256, 256), 50 + i).save(path)
    command = [sys.executable, "-c", IN_REGISTRY, str(sources), *map(str, paths), str(CONCEPTS)]
    done = subprocess.run(command, cwd=place, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def training(sources: Path, place: Path) -> dict[str, float]:
    """Milliseconds of a step."""
    conceptry = [sys.executable, "-c", PROGRAM, str(sources), "--registry", str(place)]
    subprocess.run([*conceptry, *ADD], check=True, capture_output=True)
    seconds: dict[int, float] = {}
    for steps in (FEW, MANY):
        settings = ["stage1.steps=0", "stage2.steps=0", f"stage3.steps={steps}"]
        words = [word for each in settings for word in ("--set", each)]
        line = [*conceptry, "--json", "train", "rex", *words, *WITHOUT_PREVIEWS]
        done = subprocess.run(line, check=True, capture_output=True, text=True)
        (run,) = json.loads(done.stdout)["runs"]
        seconds[steps] = run["seconds"]
    return {"step": 1000 * (seconds[MANY] - seconds[FEW]) / (MANY - FEW)}


PARTS: Mapping[str, Callable[[Path, Path], dict[str, float]]] = {
    "registry": registry,
    "training": training,
}


def measure(part: str, other: Path, rounds: int) -> dict[str, Any]:
    """Medians of the rounds, before and now, and their ratio."""
    found: dict[str, list[dict[str, float]]] = {"before": [], "now": []}
    for _ in range(rounds):
        for side, sources in (("before", other), ("now", ROOT)):
            with tempfile.TemporaryDirectory() as place:
                found[side].append(PARTS[part](sources, Path(place)))
    told: dict[str, Any] = {}
    for name in found["now"][0]:
        before, now = (
            statistics.median(each[name] for each in found[side]) for side in ("before", "now")
        )
        told[name] = {"before_ms": before, "now_ms": now, "ratio": now / before}
    return {name: {k: round(v, 3) for k, v in each.items()} for name, each in told.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("revision")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    options = parser.parse_args()
    with checked_out(options.revision) as other:
        results = {
            part: measure(part, other, options.rounds) for part in options.parts or list(PARTS)
        }
    result = {"environment": describe(), "before": options.revision, **results}
    print(json.dumps(result, indent=2))
    if not options.dry_run:
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

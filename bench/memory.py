"""Memory that trainings need on a GPU, counted for every method, preset and family of base models.

    python bench/memory.py                         # some minutes; nothing is loaded
    python bench/memory.py --presets 8gb --families SDXL

The count is that of `concept train --dry-run` (`conceptry.training.memory`), at the size that the
family was trained on. Writes bench/results/memory.json, or some rows of it anew; `measured` there
are the peaks on an H200 (bench/results/gpu/training_step.json), with the count of the same and the
networks that stayed on the GPU then.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import torch
from conceptry.methods.method import all_methods, find_method, read_presets
from conceptry.models.shapes import FAMILIES, usual_shapes
from conceptry.training.memory import count_memory
from environment import describe

RESULTS = Path(__file__).parent / "results" / "memory.json"
PRESETS = ("paper", "8gb", "8gb-sdxl", "12gb", "24gb")


def row(method: str, preset: str, family: str) -> dict[str, Any]:
    """Gigabytes of each stage at its peak, and the smallest card that all of it fits into."""
    settings = read_presets(find_method(method))[preset].settings
    found = count_memory(usual_shapes(family), find_method(method), settings)
    return {
        "method": method,
        "preset": preset,
        "base": family,
        "stages": {each.name: round(each.peak / 1e9, 2) for each in found.stages},
        "fits": min(found.fits, default=None),
    }


def measured() -> dict[str, Any]:
    """Peaks of AttnDreamBooth in SD 2.1's shape, batch 8 at 512 pixels, beside the count."""
    told = json.loads((RESULTS.parent / "gpu" / "training_step.json").read_text())["after"]
    method, shapes = find_method("attndreambooth"), usual_shapes("SD 2.x")
    settings = read_presets(method)["paper"].settings
    found = count_memory(shapes, method, settings, half=torch.bfloat16)
    others = {"autoencoder": [shapes.make_autoencoder()], "texts": shapes.make_text_encoders()}
    sizes = {
        name: 4 * sum(each.numel() for network in networks for each in network.parameters())
        for name, networks in others.items()
    }
    stages: dict[str, Any] = {}
    for stage in found.stages:
        if stage.name in told["ours"]:
            counted = stage.peak + sizes["autoencoder"]
            counted += sizes["texts"] if stage.name != "stage1" else 0
            peak = told["ours"][stage.name]["peak_bytes"]
            stages[stage.name] = {
                "measured": round(peak / 1e9, 2),
                "counted": round(counted / 1e9, 2),
                "counted of measured": round(counted / peak, 3),
            }
    return {"gpu": told["environment"]["gpu"], "commit": told["environment"]["commit"]} | stages


def main() -> None:
    asked = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    asked.add_argument("--methods", nargs="*", default=list(all_methods()))
    asked.add_argument("--presets", nargs="*", default=list(PRESETS))
    asked.add_argument("--families", nargs="*", default=list(FAMILIES))
    options = asked.parse_args()
    rows: list[dict[str, Any]] = []
    for method in options.methods:
        for preset, family in itertools.product(options.presets, options.families):
            known = preset in read_presets(find_method(method))
            if known and (family == "SDXL" or not preset.endswith("-sdxl")):
                rows.append(row(method, preset, family))
                print(json.dumps(rows[-1]), flush=True)
    before = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    found = {_key(each): each for each in (*before, *rows)}
    document = {"environment": describe(), "measured": measured(), "rows": list(found.values())}
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")


def _key(told: dict[str, Any]) -> tuple[str, ...]:
    return told["method"], told["preset"], told["base"]


if __name__ == "__main__":
    main()

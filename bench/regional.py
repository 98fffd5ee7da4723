"""What a picture with several subjects costs beside a plain one of the same prompt.

    python bench/regional.py                  # some minutes on two idle cores

Four pictures in a batch, drawn by the miniature with 25 steps, guidance and random changes in the
concepts' places: their sizes are what counts. For two, three and five subjects, each in a box:

words     words and nothing else: token embeddings
lora      LoRA of rank 16 of all attention projections for each, beside the layers
weights   all weights of the U-Net for each: a prediction for each at every step
auto      words whose regions are found first

Processor times are medians of rounds in which all ways take turns, as ratios to the plain picture
of the round. `megabytes` are those of the weights that are kept for the subjects. Writes
bench/results/regional.json.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from conceptry.adapters.lora_branch import LoraBranch
from conceptry.adapters.weight_delta import ChangedWeights, WeightDelta
from conceptry.generation.layout import Box
from conceptry.generation.regional_plan import PlannedPart, RegionalPlan
from conceptry.generation.regions import subject_columns
from conceptry.generation.request import SamplingSettings
from conceptry.generation.sampler import draw_batch
from conceptry.models.backbone import Backbone
from conceptry.models.loading import load_base
from environment import describe as describe_machine
from torch import Tensor

RESULT = Path(__file__).parent / "results" / "regional.json"
CATEGORIES = ("dog", "cat", "bear", "bird", "robot")
COUNTS = (2, 3, 5)
RANK = 16
SEEDS = (0, 1, 2, 3)


def change(backbone: Backbone, seed: int) -> ChangedWeights:
    """All weights of the U-Net, a little different."""
    generator = torch.Generator().manual_seed(seed)

    def some(weights: Tensor) -> Tensor:
        return 1e-4 * torch.randn(weights.shape, generator=generator)

    parameters = backbone.parameters("denoiser")
    return WeightDelta({name: some(each.data) for name, each in parameters.items()}).computed(
        backbone
    )


def lora(backbone: Backbone, seed: int) -> LoraBranch:
    """Random LoRA of all attention projections."""
    generator = torch.Generator().manual_seed(seed)
    projections = {
        name: each.shape
        for name, each in backbone.parameters("denoiser").items()
        if ".attn" in name and each.dim() == 2
    }
    factors = {
        name: (
            1e-2 * torch.randn(rows, RANK, generator=generator),
            1e-2 * torch.randn(RANK, columns, generator=generator),
        )
        for name, (rows, columns) in projections.items()
    }
    branch = LoraBranch.of(WeightDelta({}, factors), backbone)
    assert branch is not None
    return branch


def plans(backbone: Backbone, count: int) -> tuple[str, dict[str, RegionalPlan | None]]:
    """The prompt, and how it is drawn by each way."""
    subjects = CATEGORIES[:count]
    prompt = "a photo of " + " and ".join(f"a {each}" for each in subjects) + " in the snow"
    columns = subject_columns(backbone, prompt, subjects)
    boxes: list[Box] = [(i / count, 0.2, (i + 1) / count, 1.0) for i in range(count)]
    words = PlannedPart(prompt, columns)
    branches = [(i, lora(backbone, i)) for i in range(count)]
    own = [PlannedPart(prompt, columns, change(backbone, i), i) for i in range(count)]

    def plan(parts: Sequence[PlannedPart], where: Sequence[Box] | None = boxes) -> RegionalPlan:
        return RegionalPlan(subjects, parts, where, words)

    return prompt, {
        "plain": None,
        "words": plan([words]),
        "auto": plan([words], None),
        "lora": plan([PlannedPart(prompt, columns, branches=branches)]),
        "weights": plan([words, *own]),
    }


def megabytes(plan: RegionalPlan | None) -> float:
    """Of the weights that a plan keeps."""
    if plan is None:
        return 0
    tensors = [each for part in plan.parts if part.change for each in part.change.weights.values()]
    for _, branch in plan.parts[0].branches:
        tensors += [each for pair in branch.layers.values() for each in pair]
    return round(sum(each.numel() * each.element_size() for each in tensors) / 1e6, 1)


def measured(backbone: Backbone, count: int, rounds: int, steps: int) -> dict[str, Any]:
    """Ratios to the plain picture."""
    prompt, ways = plans(backbone, count)
    settings = SamplingSettings(steps=steps)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, plan in ways.items():
            began = time.process_time()
            draw_batch(backbone, [prompt] * len(SEEDS), SEEDS, settings, plan=plan)
            if number:  # the first round is to warm up
                seconds[name].append(time.process_time() - began)
    plain = seconds["plain"]
    return {
        name: {
            "ratio": round(statistics.median(a / b for a, b in zip(own, plain, strict=True)), 3),
            "seconds": round(statistics.median(own), 2),
            "megabytes": megabytes(ways[name]),
        }
        for name, own in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=25)
    options = parser.parse_args()
    backbone = load_base().backbone
    found: dict[str, Any] = {}
    for count in COUNTS:
        found[str(count)] = measured(backbone, count, options.rounds, options.steps)
        print(count, json.dumps(found[str(count)]), flush=True)
    document = {
        "environment": describe_machine(),
        "rounds": options.rounds,
        "steps": options.steps,
        "subjects": found,
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()

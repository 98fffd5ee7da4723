"""Whether the miniature draws its subjects where a layout asks for them.

    python bench/control.py                     # all parts, with the ControlNet that ships
    python bench/control.py finder              # needs no ControlNet
    python bench/control.py layouts --layout runs/layout   # a diffusers folder

finder     the box of a subject in a picture is where the judge looks for its category: the places
           around the peak of its attention that have a twentieth of the peak and hang together.
           Shown on renders, whose boxes are known
layouts    held-out prompts, each drawn from one seed with a layout of silhouettes, with one of
           boxes, and without any: the share of subjects whose box has an IoU of 0.5 or more with
           the one that was asked for. One that the judge does not see is not there
sides      the same of single subjects, which no training has seen anywhere but near the middle,
           asked for at the left and at the right in turn

Shares come with 95 % Wilson intervals. Writes bench/results/control.json.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conceptry.evaluation.judge import Judge, load_judge
from conceptry.generation.sampler import draw
from conceptry.models.bases import ControlSource, find_base, find_control
from conceptry.models.conditioning import Control
from conceptry.models.control import load_control
from conceptry.models.loading import load_base
from conceptry.models.miniature.architecture import SMALL_SIZE
from conceptry.models.miniature.world.identities import CATEGORIES
from conceptry.models.miniature.world.layouts import Box, categories_of, layout_picture
from conceptry.models.miniature.world.scenes import Scene, describe, render, sample_scene
from conceptry.models.pixels import reduced, to_pixels
from environment import describe as describe_machine
from environment import keep_part, results_file
from miniature import SETTINGS, share
from PIL import Image

RESULTS = Path(__file__).parent / "results" / "control.json"
NUM_RENDERS = 2000
NUM_PROMPTS = 100
SIDES = (0.3, 0.7)
LEVEL = 0.05
ENOUGH = 0.5


def iou(one: Box, other: Box) -> float:
    """Intersection over union of two boxes."""
    across, down = (max(0.0, min(one[i + 2], other[i + 2]) - max(one[i], other[i])) for i in (0, 1))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return across * down / (areas - across * down)


@torch.no_grad()
def find_boxes(judge: Judge, image: Image.Image) -> dict[str, Box]:
    """The box of each category that the judge sees in a picture."""
    small = reduced(image, SMALL_SIZE)
    found = judge(to_pixels([small]))
    where = found["where"][0].unflatten(-1, (16, 16)).exp()
    is_there = found["present"][0].sigmoid() > 0.5
    return {
        name: _box_around_peak(where[i].numpy()) for i, name in enumerate(CATEGORIES) if is_there[i]
    }


def _box_around_peak(places: np.ndarray) -> Box:
    """The bounding box of the places (16, 16) that hang together with the highest one."""
    is_high = places > LEVEL * places.max()
    peak = np.unravel_index(int(places.argmax()), places.shape)
    reached, waiting = {peak}, [peak]
    while waiting:
        y, x = waiting.pop()
        for place in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
            is_inside = all(0 <= at < side for at, side in zip(place, places.shape, strict=True))
            if is_inside and is_high[place] and place not in reached:
                reached.add(place)
                waiting.append(place)
    rows, columns = zip(*reached, strict=True)
    side = len(places)
    ends = (min(columns), min(rows), max(columns) + 1, max(rows) + 1)
    left, top, right, bottom = (float(end) / side for end in ends)
    return left, top, right, bottom


def finder() -> dict[str, Any]:
    """How good the finder is on renders of held-out individuals."""
    judge = load_judge()
    right: defaultdict[str, list[bool]] = defaultdict(list)
    overlaps: list[float] = []
    for seed in range(6_000_000, 6_000_000 + NUM_RENDERS):
        scene = sample_scene(seed, "held-out")
        rendered = render(scene, SMALL_SIZE)
        found = find_boxes(judge, rendered.image)
        for name, box in zip(categories_of(scene), rendered.boxes(), strict=True):
            overlap = iou(found[name], box) if name in found else 0.0
            overlaps.append(overlap)
            right["all"].append(overlap >= ENOUGH)
            right[f"of {len(scene.subjects)}"].append(overlap >= ENOUGH)
    return {
        "mean_iou": round(sum(overlaps) / len(overlaps), 3),
        **{name: share(values) for name, values in sorted(right.items())},
    }


def layouts(folder: Path | None, prompts: int) -> dict[str, Any]:
    """Draw held-out prompts with layouts and without."""
    seeds = range(7_500_000, 7_500_000 + prompts)
    return _drawn([sample_scene(seed, "held-out") for seed in seeds], folder)


def sides(folder: Path | None, prompts: int) -> dict[str, Any]:
    """Draw held-out prompts of one subject, with layouts that have it at a side and without."""
    seeds = range(7_600_000, 7_600_000 + prompts)
    scenes = [sample_scene(seed, "held-out", num_subjects=1) for seed in seeds]
    return _drawn([_at_a_side(scene, i) for i, scene in enumerate(scenes)], folder)


def _at_a_side(scene: Scene, number: int) -> Scene:
    (subject,) = scene.subjects
    return replace(scene, subjects=(replace(subject, x=SIDES[number % len(SIDES)]),))


def _drawn(scenes: Sequence[Scene], folder: Path | None) -> dict[str, Any]:
    """How many subjects of some scenes are where layouts say, and where none says it."""
    base, judge = load_base(), load_judge()
    source = find_control(find_base("miniature"), "layout")
    if folder is not None:
        source = ControlSource(str(folder), "folder", str(folder))
    loaded = load_control(source, base)
    right: dict[str, defaultdict[str, list[bool]]] = {
        way: defaultdict(list) for way in ("silhouettes", "boxes", "without")
    }
    for scene in scenes:
        asked = list(zip(categories_of(scene), render(scene, SMALL_SIZE).boxes(), strict=True))
        for way, subjects in right.items():
            control = None
            if way != "without":
                side = base.backbone.size
                picture = layout_picture(scene, side, boxes=way == "boxes")
                pixels = (to_pixels([picture]) / 2 + 0.5).to(base.backbone.device)
                control = Control(loaded.network, pixels)
            (drawn,) = draw(base, describe(scene), [scene.seed], SETTINGS, control=control)
            found = find_boxes(judge, drawn.image)
            for name, box in asked:
                is_right = name in found and iou(found[name], box) >= ENOUGH
                subjects["all"].append(is_right)
                subjects[f"of {len(scene.subjects)}"].append(is_right)
    return {
        "control_sha256": loaded.sha256,
        "base_sha256": base.sha256,
        "num_prompts": len(scenes),
        **{
            way: {name: share(values) for name, values in sorted(subjects.items())}
            for way, subjects in right.items()
        },
    }


PARTS: Mapping[str, Callable[[Path | None, int], dict[str, Any]]] = {
    "finder": lambda *_: finder(),
    "layouts": layouts,
    "sides": sides,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--layout", type=Path, help="a diffusers folder")
    parser.add_argument("--prompts", type=int, default=NUM_PROMPTS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    path = results_file(parser, options, RESULTS, but=("parts",))
    for name in options.parts or PARTS:
        found = PARTS[name](options.layout, options.prompts)
        print(name, json.dumps(found, indent=2))
        keep_part(path, name, found, describe_machine())


if __name__ == "__main__":
    main()

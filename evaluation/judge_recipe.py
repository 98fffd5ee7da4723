"""Training the judge on renders, measuring it on fresh ones, and exporting it.

python -m conceptry.evaluation.judge_recipe train --out runs/judge
python -m conceptry.evaluation.judge_recipe measure --out runs/judge
python -m conceptry.evaluation.judge_recipe ship --out runs/judge
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (everyone's name for it)

from ..models.hashes import hash_of
from ..models.miniature.architecture import SMALL_SIZE
from ..models.miniature.recipe.data import Batch, scenes_batch
from ..models.miniature.recipe.train import Context, Losses, Stage, train
from ..models.miniature.world.identities import CATEGORIES, PATTERNS
from ..models.miniature.world.places import PLACES
from ..models.miniature.world.scenes import STYLES, Scene
from .judge import COLOUR_NAMES, NOTHING, SHIPPED, WORN, Judge, Prediction, load_judge

IGNORED = -100


def targets_of(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """The ground truth of scenes in the shape of the judge's logits.

    Colour is `IGNORED` where a category is absent or the style has no colours.
    """
    shape = (len(scenes), len(CATEGORIES))
    present = torch.zeros(shape)
    colour, pattern = (torch.full(shape, IGNORED) for _ in range(2))
    for row, scene in enumerate(scenes):
        for subject in scene.subjects:
            who = subject.identity
            column = CATEGORIES.index(who.category)
            present[row, column] = 1
            pattern[row, column] = PATTERNS.index(who.pattern)
            if scene.style == "photo":
                colour[row, column] = COLOUR_NAMES.index(who.colour)
    worn = [next((s.accessory for s in scene.subjects if s.accessory), NOTHING) for scene in scenes]
    return {
        "present": present,
        "colour": colour,
        "pattern": pattern,
        "place": torch.tensor([PLACES.index(scene.place) for scene in scenes]),
        "style": torch.tensor([STYLES.index(scene.style) for scene in scenes]),
        "accessory": torch.tensor([WORN.index(name) for name in worn]),
        "count": torch.tensor([len(scene.subjects) - 1 for scene in scenes]),
    }


def _build(context: Context) -> nn.ModuleDict:
    del context
    return nn.ModuleDict({"judge": Judge()})


def _losses(
    modules: nn.ModuleDict, batch: Batch, context: Context, generator: torch.Generator
) -> Losses:
    """Cross-entropy of every output, and of each category's attention with its subject's mask."""
    del generator
    with context.autocast():
        logits = modules["judge"](context.pixels(batch.images))
    targets = {name: value.to(context.device) for name, value in targets_of(batch.scenes).items()}
    losses = {
        name: F.cross_entropy(logits[name].float().flatten(0, -2), targets[name].flatten())
        for name in targets.keys() - {"present"}
    }
    present = F.binary_cross_entropy_with_logits(logits["present"].float(), targets["present"])
    shares = _shares_of(batch).to(context.device)
    where = -(shares * logits["where"]).sum() / shares.sum()
    return {name: losses[name] for name in sorted(losses)} | {
        "present": 4 * present,
        "where": 0.2 * where,
    }


def _shares_of(batch: Batch) -> Tensor:
    """Each category's subject as a distribution over places (B, 12, 256), 0 where absent."""
    shares = torch.zeros(len(batch.scenes), len(CATEGORIES), batch.masks[0, 0].numel())
    for row, scene in enumerate(batch.scenes):
        for mask, subject in zip(batch.masks[row], scene.subjects, strict=False):
            column = CATEGORIES.index(subject.identity.category)
            shares[row, column] = mask.flatten().float()
    return shares / shares.sum(-1, keepdim=True).clamp(min=1)


STAGE = Stage(
    name="judge",
    images=400_000,
    batch=64,
    learning_rate=2e-3,
    make_batch=scenes_batch,
    offset=6,
    build=_build,
    losses=_losses,
    learns=("judge",),
    split="judge",
    size=SMALL_SIZE,
)


def measure(judge: Judge, num_scenes: int = 2000) -> dict[str, float]:
    """Share of right answers on fresh renders of held-out identities.

    `category` counts a picture as right if exactly its categories are seen; colour and pattern are
    per subject, colour only where there is any.
    """
    right: dict[str, list[bool]] = {}
    for step in range(-(-num_scenes // 100)):
        batch = scenes_batch(step, split="held-out", offset=7, batch=100, size=SMALL_SIZE)
        pictures = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in batch.images]
        for scene, seen in zip(batch.scenes, judge.classify(pictures), strict=True):
            for name, is_right in _answers(scene, seen):
                right.setdefault(name, []).append(is_right)
    return {name: round(sum(values) / len(values), 4) for name, values in sorted(right.items())}


def _answers(scene: Scene, seen: Prediction) -> list[tuple[str, bool]]:
    identities = [subject.identity for subject in scene.subjects]
    worn = next((s.accessory for s in scene.subjects if s.accessory), NOTHING)
    answers = [
        ("category", set(seen.categories) == {who.category for who in identities}),
        ("place", seen.place == scene.place),
        ("style", seen.style == scene.style),
        ("accessory", seen.accessory == worn),
        ("count", seen.num_subjects == len(identities)),
    ]
    for who in identities:
        if who.category in seen.categories:
            answers.append(("pattern", seen.patterns[who.category] == who.pattern))
            if scene.style == "photo":
                answers.append(("colour", seen.colours[who.category] == who.colour))
    return answers


def ship(folder: Path) -> None:
    """Export a trained judge into the package, in half precision, with its measured accuracy."""
    weights = load_file(folder / f"{STAGE.name}.safetensors")
    SHIPPED.parent.mkdir(exist_ok=True)
    save_file({name: value.half() for name, value in weights.items()}, SHIPPED)
    SHIPPED.chmod(0o644)
    record = {
        "sha256": hash_of(SHIPPED),
        "accuracy": measure(load_judge(SHIPPED), 4000),
        "training": json.loads((folder / f"{STAGE.name}.json").read_text()),
    }
    SHIPPED.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    shutil.copyfile(folder / f"{STAGE.name}.jsonl", SHIPPED.with_suffix(".jsonl"))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("train", "measure", "ship"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    if options.action == "train":
        train(STAGE, options.out, images=options.images, num_workers=options.workers)
    elif options.action == "ship":
        ship(options.out)
    else:
        accuracy = measure(load_judge(options.out / f"{STAGE.name}.safetensors"))
        print(json.dumps(accuracy, indent=2))  # noqa: T201


if __name__ == "__main__":
    main()

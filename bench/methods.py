"""Three methods and the plain base model, on subjects that the miniature has never seen.

    python bench/methods.py --out runs/methods          # hours on two cores; goes on where it was
    python bench/methods.py --out runs/methods --report # only the tables and the sheet, again

To choose settings, on other individuals:

    python bench/methods.py --out runs/a --split tuning --methods dreambooth --set unet.steps=300

Each of 12 individuals, one of each category, is taught from five renders by each method with its
`miniature` preset, and drawn for 16 prompts with 4 seeds. The base model gets the category's name
alone. Scores, with 95 % intervals from resampling individuals:

prompt      share of what the prompts name that the judge sees: the subject's category, place,
            accessory, colour, second subject, style
identity    cosine of the identity encoder between a picture and eight other renders of the
            individual, on prompts that leave its looks alone (no recolouring, no sketch)
recognised  share of those pictures that are nearer to the individual than to each of 20 others of
            its category (chance: 0.048)
both        harmonic mean of prompt and recognised

Writes bench/results/methods.json and, beside it, methods.png: an individual for each row, its
photos, then a picture by each method.
"""

import argparse
import json
import random
import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conceptry.evaluation.judge import load_judge
from conceptry.methods import Settings, all_methods, find_method, settings_of, train
from conceptry.methods.method import DEFAULT_METHOD
from conceptry.methods.prompts import choose
from conceptry.methods.wardrobe import dressed, spelled_out
from conceptry.models.drawing import draw
from conceptry.models.loading import LoadedBase, load_base
from conceptry.models.miniature.identities import (
    CATEGORIES,
    Identity,
    identity_seed,
    make_identity,
)
from conceptry.models.miniature.shipped import load_identity_encoder
from conceptry.models.miniature.world import render, sample_scene
from conceptry.models.pictures import contact_sheet
from conceptry.registry import Registry
from environment import describe as describe_machine
from PIL import Image
from torch import Tensor

RESULTS = Path(__file__).parent / "results"
SETTINGS = Settings(steps=25, guidance=5.0)
SEEDS = (0, 1, 2, 3)
NUM_PHOTOS, NUM_OTHERS, NUM_LOOKALIKES = 5, 8, 20
BASE = "base model"
SHOWN = (0, 4, 8, 10, 12)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt and what the judge has to see in it, besides the subject's category."""

    text: str
    place: str | None = None
    accessory: str | None = None
    colour: str | None = None
    second: str | None = None
    style: str = "photo"

    @property
    def keeps_looks(self) -> bool:
        """Whether the individual should look as it does in its photos."""
        return self.colour is None and self.style == "photo"


PROMPTS = (
    *(
        Prompt(f"a photo of a {{}} {place}", place=place)
        for place in ("on the beach", "in the snow", "in space", "in the kitchen", "in the desert")
    ),
    *(
        Prompt(f"a photo of a {{}} {worn}", accessory=worn)
        for worn in ("wearing a hat", "wearing sunglasses", "holding a balloon")
    ),
    *(
        Prompt(f"a photo of a {{}} {worn} {place}", place=place, accessory=worn)
        for worn, place in (
            ("on a skateboard", "in the city"),
            ("under an umbrella", "in the snow"),
        )
    ),
    Prompt("a photo of a red {}", colour="red"),
    Prompt("a photo of a blue {} in a meadow", place="in a meadow", colour="blue"),
    Prompt("a photo of a {} next to a mug", second="mug"),
    Prompt("a photo of a {} and a cat in the forest", place="in the forest", second="cat"),
    Prompt("a pencil sketch of a {}", style="pencil sketch"),
    Prompt("a pencil sketch of a {} in the desert", place="in the desert", style="pencil sketch"),
)


def prompts_for(category: str) -> list[Prompt]:
    """The prompts; a subject does not meet its own kind."""
    swapped = {"mug": "house", "cat": "car"}
    return [
        Prompt(
            each.text.replace(f"a {category}", f"a {swapped[category]}"),
            place=each.place,
            second=swapped[category],
        )
        if each.second == category
        else each
        for each in PROMPTS
    ]


# --- subjects -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Individual:
    """An identity with the photos it is taught from; `references` are embedded, (8, d)."""

    name: str
    identity: Identity
    photos: list[Image.Image]
    references: Tensor
    lookalikes: Tensor
    """(20, d): mean embeddings of others of its category."""


def individuals(split: str, count: int) -> Iterator[Individual]:
    """One of each category, in turn."""
    rng = random.Random(f"methods {split}")
    for i in range(count):
        category = CATEGORIES[i % len(CATEGORIES)]
        identity = make_identity(identity_seed(rng, "held-out"), category)
        others = [
            make_identity(identity_seed(rng, "held-out"), category) for _ in range(NUM_LOOKALIKES)
        ]
        albums = [_renders(other, rng, NUM_OTHERS) for other in others]
        yield Individual(
            f"{category}-{i}",
            identity,
            photos=_renders(identity, rng, NUM_PHOTOS),
            references=embed(_renders(identity, rng, NUM_OTHERS)),
            lookalikes=torch.stack([_mean(embed(album)) for album in albums]),
        )


def _renders(identity: Identity, rng: random.Random, count: int) -> list[Image.Image]:
    scenes = [
        sample_scene(
            rng.randrange(1 << 40), "held-out", identity=identity, num_subjects=1, style="photo"
        )
        for _ in range(count)
    ]
    return [render(scene).image for scene in scenes]


def embed(images: Sequence[Image.Image]) -> Tensor:
    """Unit vectors (B, d)."""
    return _encoder().embed(images)


@cache
def _encoder() -> Any:
    return load_identity_encoder()


@cache
def _judge() -> Any:
    return load_judge()


def _mean(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors.mean(0), dim=0)


# --- one individual, one method -------------------------------------------------------------------


def scored(
    base: LoadedBase, registry: Registry, who: Individual, method: str, overrides: Sequence[str]
) -> dict[str, Any]:
    """Teach, draw and score; a row for the results."""
    row: dict[str, Any] = {"individual": who.name, "method": method, "seconds": 0.0}
    row["made_by"] = _made_by(base, method, overrides)
    name, chosen = who.identity.category, []
    if method != BASE:
        trained = train(
            registry, who.name, base, method=method, preset="miniature", overrides=overrides
        )
        row |= {"seconds": trained.seconds, "stages": [s.loss for s in trained.stages]}
        name = f"<{who.name}@{trained.version}>"
        chosen = choose(registry, name)
    started = time.perf_counter()
    row["pictures"] = []
    with dressed(base, chosen) as worn:
        for number, prompt in enumerate(prompts_for(who.identity.category)):
            text = spelled_out(prompt.text.replace("{}", name), worn)
            images = [drawn.image for drawn in draw(base, text, SEEDS, SETTINGS)]
            for drawn_seed, image in zip(SEEDS, images, strict=True):
                scores = _scores(who, prompt, image)
                row["pictures"].append({"prompt": number, "seed": drawn_seed} | scores)
                if drawn_seed == 0:
                    path = registry.location.database.parent / "pictures"
                    path.mkdir(exist_ok=True)
                    image.save(path / f"{who.name}-{method.replace(' ', '-')}-{number}.png")
    row["drawing_seconds"] = round(time.perf_counter() - started, 1)
    return row


def _made_by(base: LoadedBase, method: str, overrides: Sequence[str]) -> dict[str, Any]:
    """What must not change between rows that are compared."""
    made_by: dict[str, Any] = {"base_sha256": base.sha256, "seeds": list(SEEDS)}
    if method != BASE:
        settings = settings_of(
            find_method(method), preset="miniature", base=base.base.name, overrides=tuple(overrides)
        )
        made_by["settings"] = json.loads(json.dumps(settings.to_mapping()))
    return made_by


def _scores(who: Individual, prompt: Prompt, image: Image.Image) -> dict[str, Any]:
    (seen,) = _judge().look([image])
    category = who.identity.category
    asked = {
        "category": category in seen.categories,
        "place": prompt.place is None or seen.place == prompt.place,
        "accessory": prompt.accessory is None or seen.accessory == prompt.accessory,
        "colour": prompt.colour is None or seen.colours.get(category) == prompt.colour,
        "second": prompt.second is None or prompt.second in seen.categories,
        "style": seen.style == prompt.style,
    }
    names = ["category", "style"] + [
        name for name in ("place", "accessory", "colour", "second") if getattr(prompt, name)
    ]
    scores: dict[str, Any] = {"asked": {name: asked[name] for name in names}}
    if prompt.keeps_looks:
        (embedded,) = embed([image])
        scores["identity"] = round(float((who.references @ embedded).mean()), 4)
        own = float(_mean(who.references) @ embedded)
        scores["recognised"] = own > float((who.lookalikes @ embedded).max())
    return scores


# --- tables ---------------------------------------------------------------------------------------


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Scores of each method, with intervals."""
    by_method: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_method[row["method"]].append(row)
    return {
        method: {
            "individuals": len(own),
            "seconds_median": statistics.median(row["seconds"] for row in own),
            "seconds_max": max(row["seconds"] for row in own),
            **{name: _interval(own, score) for name, score in SCORES.items()},
        }
        for method, own in by_method.items()
    }


def _all(rows: Sequence[dict[str, Any]], key: str) -> list[float]:
    return [float(one[key]) for row in rows for one in row["pictures"] if key in one]


def _asked(name: str | None) -> Callable[[Sequence[dict[str, Any]]], float]:
    def score(rows: Sequence[dict[str, Any]]) -> float:
        found = [
            statistics.mean(one["asked"].values()) if name is None else float(one["asked"][name])
            for row in rows
            for one in row["pictures"]
            if name is None or name in one["asked"]
        ]
        return statistics.mean(found)

    return score


def _identity(rows: Sequence[dict[str, Any]]) -> float:
    return statistics.mean(_all(rows, "identity"))


def _recognised(rows: Sequence[dict[str, Any]]) -> float:
    return statistics.mean(_all(rows, "recognised"))


def _both(rows: Sequence[dict[str, Any]]) -> float:
    prompt, recognised = _asked(None)(rows), _recognised(rows)
    return 2 * prompt * recognised / (prompt + recognised) if recognised else 0.0


SCORES: dict[str, Callable[[Sequence[dict[str, Any]]], float]] = {
    "prompt": _asked(None),
    "identity": _identity,
    "recognised": _recognised,
    "both": _both,
    **{
        name: _asked(name)
        for name in ("category", "place", "accessory", "colour", "second", "style")
    },
}


HEADLINES = ("prompt", "identity", "recognised", "both")


def _interval(items: Sequence[Any], score: Callable[[Sequence[Any]], float]) -> dict[str, float]:
    """Score, with the 2.5 and 97.5 % quantiles of 1,000 resamplings of individuals."""
    rng = random.Random(0)
    draws = [score(rng.choices(items, k=len(items))) for _ in range(1000)]
    low, high = np.quantile(draws, (0.025, 0.975))
    return {
        "mean": round(score(items), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
    }


def differences(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """AttnDreamBooth less each other method, on the same individuals, resampled together."""
    by_method: defaultdict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        by_method[row["method"]][row["individual"]] = row
    ours = by_method.pop(DEFAULT_METHOD, {})
    return {
        method: {name: _difference(ours, theirs, SCORES[name]) for name in HEADLINES}
        for method, theirs in by_method.items()
    }


def _difference(
    ours: dict[str, Any], theirs: dict[str, Any], score: Callable[[Sequence[dict[str, Any]]], float]
) -> dict[str, float]:

    def of(names: Sequence[str]) -> float:
        return score([ours[name] for name in names]) - score([theirs[name] for name in names])

    return _interval(sorted(ours.keys() & theirs.keys()), of)


def write_sheet(
    folder: Path, rows: Sequence[dict[str, Any]], subjects: Sequence[Individual]
) -> None:
    """For each individual: two photos, then for some prompts the first seed of each method."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines: list[tuple[list[str], list[Image.Image]]] = []
    for who in subjects:
        labels, images = ["photo", "photo"], list(who.photos[:2])
        for number in SHOWN:
            for method in methods:
                path = folder / "pictures" / f"{who.name}-{method.replace(' ', '-')}-{number}.png"
                if path.exists():
                    labels.append(method)
                    images.append(Image.open(path))
        lines.append((labels, images))
    contact_sheet(lines, side=96).save(RESULTS / "methods.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", choices=["measured", "tuning"], default="measured")
    parser.add_argument("--identities", type=int, default=len(CATEGORIES))
    parser.add_argument("--methods", nargs="*", default=[BASE, *all_methods()])
    parser.add_argument("--report", action="store_true", help="teach nothing")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="K=V")
    options = parser.parse_args()
    if options.overrides and options.split == "measured":
        sys.exit("what is measured are the presets: --set goes with --split tuning")
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "rows.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {(row["individual"], row["method"]) for row in rows}
    subjects = list(individuals(options.split, options.identities))
    base = load_base()
    for row in rows:
        if row["made_by"] != _made_by(base, row["method"], options.overrides):
            sys.exit(f"{log} holds a row of {row['method']} made otherwise: begin in a new folder")
    with Registry.open(options.out / "concepts.db", create=True) as registry:
        for who in subjects:
            _add(registry, who, options.out)
            for method in options.methods:
                if options.report or (who.name, method) in done:
                    continue
                row = scored(base, registry, who, method, options.overrides)
                rows.append(row)
                with log.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                short = {name: round(SCORES[name]([row]), 3) for name in HEADLINES}
                print(who.name, method, row["seconds"], short, flush=True)
    result = summary(rows)
    print(json.dumps(result, indent=2))
    if options.split == "measured":
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        document = {
            "environment": describe_machine(),
            "base_sha256": base.sha256,
            "settings": {
                "steps": SETTINGS.steps,
                "guidance": SETTINGS.guidance,
                "seeds": len(SEEDS),
            },
            "prompts": [prompt.text for prompt in PROMPTS],
            "peak_memory_bytes": peak,
            "methods": result,
            "differences": differences(rows),
        }
        (RESULTS / "methods.json").write_text(json.dumps(document, indent=2) + "\n")
        write_sheet(options.out, rows, subjects)


def _add(registry: Registry, who: Individual, folder: Path) -> None:
    if who.name in registry.names():
        return
    photos = folder / "photos" / who.name
    photos.mkdir(parents=True, exist_ok=True)
    for i, photo in enumerate(who.photos):
        photo.save(photos / f"{i}.png")
    registry.add(who.name, [photos], category=who.identity.category)


if __name__ == "__main__":
    main()

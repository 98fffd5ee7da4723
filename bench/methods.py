"""The laboratory: every method, and the plain base model, on subjects it has never seen.

    python bench/methods.py --out runs/methods                      # hours on two cores
    python bench/methods.py --out runs/methods --concepts 2 --methods sefi dreambooth --seeds 2

To choose settings, on other individuals:

    python bench/methods.py --out runs/a --split tuning --methods dreambooth --set unet.steps=300

Individuals, one of each category in turn, are taught from five renders by each method with its
`miniature` preset, and drawn for the suite `miniature`; the base model gets the category's name
alone. Interrupted, it goes on where it was; a second process on the same folder takes over
individuals that nobody teaches (`--teach` leaves the scoring to the first). Scores are those of
`concept eval`, and

likeness     cosine of the identity encoder between a picture and eight other renders of the
             individual, on prompts that leave its looks alone (no recolouring, no sketch)
recognised   share of those pictures that are nearer to the individual than to each of 20 others
             of its category (chance: 0.048)
both         harmonic mean of `seen` and `recognised`

Intervals are from resampling individuals. What a training takes is measured by itself, afterwards,
with all cores. Writes bench/results/methods.json and, beside it,
methods.png: an individual for each row, its photos, then a picture by each method.
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conceptry.evaluation.encoders import load_encoders
from conceptry.evaluation.evaluating import Evaluator, Subject
from conceptry.evaluation.picture_cache import PictureCache
from conceptry.evaluation.plan import BARE, Plan
from conceptry.evaluation.record import Evaluation, harmonic_mean
from conceptry.evaluation.suites import Suite, find_suite
from conceptry.evaluation.wanted import wanted_for
from conceptry.methods import all_methods, find_method, settings_of, train
from conceptry.methods.method import DEFAULT_METHOD
from conceptry.methods.prompts import choose
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
from conceptry.registry.errors import RegistryBusy
from environment import describe as describe_machine
from PIL import Image
from torch import Tensor

RESULTS = Path(__file__).parent / "results"
NUM_PHOTOS, NUM_OTHERS, NUM_LOOKALIKES = 5, 8, 20
SHOWN = (0, 4, 8, 10, 12)
HEADLINES = ("seen", "likeness", "recognised", "both")

Row = dict[str, Any]
"""An individual, a method, mean scores, and for the sheet, paths of pictures."""


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


def _mean(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors.mean(0), dim=0)


# --- teaching -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Laboratory:
    """What is compared, where, and on what."""

    registry: Registry
    base: LoadedBase
    subjects: Sequence[Individual]
    methods: Sequence[str]
    overrides: tuple[str, ...]
    seeds: tuple[int, ...]

    def teach(self) -> None:
        """Teach whoever has not been taught; another process may teach others meanwhile."""
        waiting = [(who, m) for who in self.subjects for m in self.methods if m != BARE]
        while waiting:
            left = [(who, method) for who, method in waiting if not self._taught(who, method)]
            if left == waiting:
                time.sleep(5)  # others are at all of them
            waiting = left

    def _taught(self, who: Individual, method: str) -> bool:
        """Whether it is done, now or before."""
        try:
            if self.version(who, method) is None:
                trained = train(
                    self.registry,
                    who.name,
                    self.base,
                    method=method,
                    preset="miniature",
                    overrides=self.overrides,
                )
                print(who.name, method, trained.seconds, flush=True)
        except RegistryBusy:
            return False
        return True

    def version(self, who: Individual, method: str) -> int | None:
        """The version of an individual by a method's settings, if it has been taught."""
        if method == BARE:
            return None
        settings = settings_of(
            find_method(method),
            preset="miniature",
            base=self.base.base.name,
            overrides=self.overrides,
        )
        wanted = json.loads(json.dumps(settings.to_mapping()))
        concept = self.registry.show(who.name)
        runs = {run.run: run for run in concept.runs}
        for version in concept.versions:
            run = runs.get(version.run or "")
            if run is None or run.method != method or run.base_sha256 != self.base.sha256:
                continue
            if all(run.config.get(name) == value for name, value in wanted.items()):
                return version.number
        return None

    # --- scoring ----------------------------------------------------------------------------------

    def score(self) -> Iterator[Row]:
        """A row for each individual and method."""
        suite, wanted = find_suite("miniature"), wanted_for(self.base.base)
        encoders = load_encoders(wanted)
        cache = PictureCache.of(self.registry)
        for who in self.subjects:
            for method in self.methods:
                version = self.version(who, method)
                chosen = choose(self.registry, f"<{who.name}@{version}>") if version else []
                plan = Plan(
                    chosen=tuple(chosen),
                    suite=suite,
                    wanted=wanted,
                    base=self.base.base.name,
                    base_sha256=self.base.sha256,
                    seeds=self.seeds,
                )
                subject = Subject(
                    who.identity.category,
                    who.photos,
                    [None] * len(who.photos),
                    chosen[0] if chosen else None,
                )
                evaluator = Evaluator(self.base, encoders, cache, plan, [subject])
                found = evaluator.run()
                own = _own_scores(who, suite, found, cache)
                scores = {name: score.mean for name, score in found.scores.items()} | own
                shown = [str(cache.path(found.prompts[i].pictures[0].picture)) for i in SHOWN]
                row: Row = {"individual": who.name, "method": method}
                row |= {"scores": scores, "shown": shown}
                print(who.name, method, {name: round(scores[name], 3) for name in HEADLINES})
                yield row


def _own_scores(
    who: Individual, suite: Suite, found: Evaluation, cache: PictureCache
) -> dict[str, float]:
    """Scores that need other renders of the individual, and lookalikes."""
    kept = [
        picture.picture
        for prompt, told in zip(suite.prompts, found.prompts, strict=True)
        if prompt.keeps_looks
        for picture in told.pictures
    ]
    vectors = embed([Image.open(cache.path(key)) for key in kept])
    own = vectors @ _mean(who.references)
    recognised = float((own > (vectors @ who.lookalikes.T).amax(-1)).float().mean())
    return {
        "likeness": float((vectors @ who.references.T).mean()),
        "recognised": recognised,
        "both": harmonic_mean(found.scores["seen"].mean, recognised),
    }


# --- tables ---------------------------------------------------------------------------------------


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Scores of each method, with intervals."""
    told: dict[str, Any] = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        told[method] = {
            "individuals": len(own),
            "scores": {
                name: _interval([row["scores"][name] for row in own]) for name in _names(own)
            },
        }
    return told


def _names(rows: Sequence[Row]) -> list[str]:
    return [name for name in rows[0]["scores"] if all(name in row["scores"] for row in rows)]


def differences(rows: Sequence[Row]) -> dict[str, Any]:
    """AttnDreamBooth less each other method, on the same individuals, resampled together."""
    by = {(row["individual"], row["method"]): row["scores"] for row in rows}
    ours = [who for who, method in by if method == DEFAULT_METHOD]
    others = dict.fromkeys(method for _, method in by if method != DEFAULT_METHOD)
    return {
        method: {
            name: _interval(
                [
                    by[who, DEFAULT_METHOD][name] - by[who, method][name]
                    for who in ours
                    if (who, method) in by
                ]
            )
            for name in HEADLINES
        }
        for method in others
        if ours
    }


def _interval(values: Sequence[float]) -> dict[str, float]:
    """Mean, with the 2.5 and 97.5 % quantiles of 1,000 resamplings."""
    rng = random.Random(0)
    draws = [statistics.fmean(rng.choices(values, k=len(values))) for _ in range(1000)]
    low, high = np.quantile(draws, (0.025, 0.975))
    return {
        "mean": round(statistics.fmean(values), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
    }


def write_sheet(rows: Sequence[Row], subjects: Sequence[Individual], path: Path) -> None:
    """For each individual: two photos, then for some prompts the first seed of each method."""
    lines: list[tuple[list[str], list[Image.Image]]] = []
    for who in subjects:
        own = [row for row in rows if row["individual"] == who.name]
        labels, images = ["photo", "photo"], list(who.photos[:2])
        for number in range(len(SHOWN)):
            labels += [row["method"] for row in own]
            images += [Image.open(row["shown"][number]) for row in own]
        lines.append((labels, images))
    contact_sheet(lines, side=96).save(path)


# --- what a training takes ------------------------------------------------------------------------


def cost_of(method: str) -> dict[str, float]:
    """Seconds of teaching the first individual, and the peak memory, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--out", "-", "--cost-of", method],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def tell_cost(method: str) -> None:
    """Teach the first individual in a registry that goes away again, and print what it took."""
    (who,) = individuals("measured", 1)
    base = load_base()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        with Registry.open(out / "concepts.db", create=True) as registry:
            _add(registry, who, out)
            trained = train(registry, who.name, base, method=method, preset="miniature")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": trained.seconds, "peak_memory_bytes": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", choices=["measured", "tuning"], default="measured")
    parser.add_argument("--concepts", type=int, default=len(CATEGORIES))
    parser.add_argument("--methods", nargs="*", default=["all"])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--teach", action="store_true", help="teach, and score nothing")
    parser.add_argument("--cost-of", metavar="METHOD", help="print what a training takes")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="K=V")
    options = parser.parse_args()
    if options.cost_of:
        tell_cost(options.cost_of)
        return
    if options.overrides and options.split == "measured":
        sys.exit("what is measured are the presets: --set goes with --split tuning")
    methods = [BARE, *all_methods()] if options.methods == ["all"] else options.methods
    options.out.mkdir(parents=True, exist_ok=True)
    subjects = list(individuals(options.split, options.concepts))
    base = load_base()
    with Registry.open(options.out / "concepts.db", create=True) as registry:
        for who in subjects:
            _add(registry, who, options.out)
        seeds = tuple(range(options.seeds))
        laboratory = Laboratory(registry, base, subjects, methods, tuple(options.overrides), seeds)
        laboratory.teach()
        if options.teach:
            return
        rows = list(laboratory.score())
    result = summary(rows)
    print(json.dumps(result, indent=2))
    write_sheet(rows, subjects, options.out / "methods.png")
    if options.split == "measured" and len(subjects) >= len(CATEGORIES):
        write_sheet(rows, subjects, RESULTS / "methods.png")
        document = {
            "environment": describe_machine(),
            "base_sha256": base.sha256,
            "seeds": options.seeds,
            "prompts": [prompt.text for prompt in find_suite("miniature").prompts],
            "cost": {method: cost_of(method) for method in methods if method != BARE},
            "methods": result,
            "differences": differences(rows),
            "rows": [{k: v for k, v in row.items() if k != "shown"} for row in rows],
        }
        (RESULTS / "methods.json").write_text(json.dumps(document, indent=1) + "\n")


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

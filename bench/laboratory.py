"""Individuals that no training has seen, and a registry in which methods teach them.

Shared by `methods.py`, `subject_wise.py` and `company.py`.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conceptry.evaluation.encoder_names import encoder_names_for
from conceptry.evaluation.encoders import load_encoders
from conceptry.evaluation.evaluating import EvalSubject, Evaluator, masks_of
from conceptry.evaluation.picture_cache import PictureCache
from conceptry.evaluation.plan import BASE_MODEL, Plan
from conceptry.evaluation.record import Evaluation, harmonic_mean
from conceptry.evaluation.scoring import embed_references
from conceptry.evaluation.suites import Suite, find_suite
from conceptry.generation.control_request import LAYOUT
from conceptry.generation.pictures import contact_sheet
from conceptry.generation.prompt_syntax import ChosenVersion, resolve_prompt
from conceptry.generation.request import SamplingSettings
from conceptry.methods import all_methods, find_method, resolve_settings
from conceptry.models.bases import find_control
from conceptry.models.control import hash_of_control
from conceptry.models.loading import LoadedBase, load_base
from conceptry.models.miniature.architecture import SIZE
from conceptry.models.miniature.shipped import load_identity_encoder
from conceptry.models.miniature.world.identities import (
    CATEGORIES,
    Identity,
    identity_seed,
    make_identity,
)
from conceptry.models.miniature.world.scenes import Rendered, Scene, render, sample_scene
from conceptry.models.pixels import grey_outside
from conceptry.registry import Registry
from conceptry.registry.errors import RegistryBusy
from conceptry.registry.hashes import sha256_of, sha256_of_json
from conceptry.registry.running import EVALUATIONS
from conceptry.training import train_many
from environment import describe as describe_machine
from PIL import Image
from torch import Tensor

NUM_PHOTOS, NUM_OTHERS, NUM_LOOKALIKES = 5, 8, 20

Row = dict[str, Any]
"""An individual, a way, mean scores, and for a sheet, paths of pictures."""


# --- subjects -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Recogniser:
    """How to tell an individual: unit vectors (8, d) of renders of it, (20, d) of lookalikes.

    Those of a lookalike, another one of its category, are the mean over renders.
    """

    references: Tensor
    lookalikes: Tensor

    def recognises(self, vectors: Tensor) -> Tensor:
        """Which of some vectors (B, d) are nearer to the individual than to every lookalike: (B,).

        Chance is 1 in 21.
        """
        own = vectors @ _mean(self.references)
        return own > (vectors @ self.lookalikes.T).amax(-1)


@dataclass(frozen=True, slots=True)
class Individual:
    """An identity with the photos it is taught from; `inside` is of renders cut out of grey.

    `scenes` are those of the photos.
    """

    name: str
    identity: Identity
    scenes: list[Scene]
    photos: list[Image.Image]
    whole: Recogniser
    inside: Recogniser

    @property
    def key(self) -> str:
        """Tells it, and what it is taught from, from all others."""
        hashes = [sha256_of(photo.tobytes()) for photo in self.photos]
        return f"{self.name} {sha256_of_json(hashes)[:16]}"

    def with_photos(self, count: int) -> "Individual":
        """The same with no more than the first photos."""
        return replace(self, scenes=self.scenes[:count], photos=self.photos[:count])


def individuals(split: str, count: int) -> Iterator[Individual]:
    """One of each category, in turn."""
    rng = random.Random(f"methods {split}")
    for i in range(count):
        category = CATEGORIES[i % len(CATEGORIES)]
        identity = make_identity(identity_seed(rng, "held-out"), category)
        others = [
            make_identity(identity_seed(rng, "held-out"), category) for _ in range(NUM_LOOKALIKES)
        ]
        albums = [renders_of(other, rng, NUM_OTHERS) for other in others]
        scenes = _scenes(identity, rng, NUM_PHOTOS)
        own = renders_of(identity, rng, NUM_OTHERS)
        yield Individual(
            f"{category}-{i}",
            identity,
            scenes,
            [render(scene, SIZE).image for scene in scenes],
            whole=Recogniser(_whole(own), torch.stack([_mean(_whole(album)) for album in albums])),
            inside=Recogniser(
                _inside(own), torch.stack([_mean(_inside(album)) for album in albums])
            ),
        )


def _scenes(identity: Identity, rng: random.Random, count: int) -> list[Scene]:
    return [
        sample_scene(
            rng.randrange(1 << 40), "held-out", identity=identity, num_subjects=1, style="photo"
        )
        for _ in range(count)
    ]


def renders_of(identity: Identity, rng: random.Random, count: int) -> list[Rendered]:
    """An individual in so many scenes of its own."""
    return [render(scene, SIZE) for scene in _scenes(identity, rng, count)]


def _whole(renders: Sequence[Rendered]) -> Tensor:
    return embed([each.image for each in renders])


def _inside(renders: Sequence[Rendered]) -> Tensor:
    return embed([grey_outside(each.image, each.masks[0]) for each in renders])


def embed(images: Sequence[Image.Image]) -> Tensor:
    """Unit vectors (B, d)."""
    return _encoder().embed(images)


@cache
def _encoder() -> Any:
    return load_identity_encoder()


def _mean(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors.mean(0), dim=0)


# --- ways to teach --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Way:
    """A method with a preset, and what is set otherwise.

    With an `alias`, another program has taught it: it is the version of that alias.
    """

    label: str
    method: str
    overrides: tuple[str, ...] = ()
    seed: int = 0
    alias: str = ""
    preset: str = "miniature"

    def settings(self, base: str) -> Any:
        """All of its settings."""
        method = find_method(self.method)
        return resolve_settings(method, preset=self.preset, base=base, overrides=self.overrides)


BARE_WAY = Way(BASE_MODEL, "")
"""Not taught at all: the base model, asked for the bare category."""


WEIGHTS = (0.003, Way("", "sefi").settings("miniature").loss.subject_wise)
"""Of SeFi-IDE's loss for Textual Inversion: the paper's, and that of its preset."""
WITH_LOSS = [
    Way(f"textual-inversion, λ {each:g}", "textual-inversion", (f"loss.subject_wise={each:g}",))
    for each in WEIGHTS
]


INSTANT = Way("dreamtuner, instant", "dreamtuner", preset="instant")
"""Drawn after a photo, without any training."""


def ways(names: Sequence[str], overrides: Sequence[str], photos: int = NUM_PHOTOS) -> list[Way]:
    """The ways of some names; `all` are all methods, the base model and some variants.

    Those are `INSTANT`, with one photo, and those `WITH_LOSS`, with more.
    """
    every = [BARE_WAY, *(Way(name, name, tuple(overrides)) for name in all_methods())]
    every += [INSTANT] if photos == 1 else WITH_LOSS
    if list(names) == ["all"]:
        return every
    for name in names:
        if name not in {way.label for way in every}:
            find_method(name)  # says what there is
    return [way for way in every if way.label in names]


@dataclass(frozen=True, slots=True)
class Laboratory:
    """Who is taught, where, and by what base model.

    `drawing` is open while pictures are drawn, and they are kept in a folder of their own, `kept`,
    if it is something that their names do not tell.
    """

    registry: Registry
    base: LoadedBase
    subjects: Sequence[Individual]
    seeds: tuple[int, ...] = (0, 1)
    drawing: AbstractContextManager[None] = field(default_factory=nullcontext)
    kept: str = ""

    def enter(self, folder: Path) -> None:
        """Add the photos of those who are not in the registry."""
        for who in self.subjects:
            if who.name in self.registry.names():
                kept = self.registry.show(who.name).images
                there = [Image.open(self.registry.path_of(each.sha256)) for each in kept]
                if [each.tobytes() for each in there] != [each.tobytes() for each in who.photos]:
                    sys.exit(f"{folder} has other photos of {who.name}: name another folder")
                continue
            photos = folder / "photos" / who.name
            photos.mkdir(parents=True, exist_ok=True)
            for i, photo in enumerate(who.photos):
                photo.save(photos / f"{i}.png")
            self.registry.add(who.name, [photos], category=who.identity.category)

    # --- teaching ---------------------------------------------------------------------------------

    def teach(self, way: Way) -> None:
        """Teach whoever has not been taught; another process may teach others meanwhile."""
        if way == BARE_WAY:
            return
        while waiting := [who.name for who in self.subjects if self.version(who, way) is None]:
            together = len(waiting) if find_method(way.method).keeps_base else 1
            batches = [waiting[i : i + together] for i in range(0, len(waiting), together)]
            taught = [self._taught(batch, way) for batch in batches]
            if not any(taught):
                time.sleep(5)  # others are at all of them

    def _taught(self, names: list[str], way: Way) -> bool:
        """Whether one of a batch was taught, now or meanwhile by another process."""
        people = {who.name: who for who in self.subjects}
        names = [name for name in names if self.version(people[name], way) is None]
        if not names:
            return True
        outcomes = train_many(
            self.registry,
            names,
            self.base,
            method=way.method,
            preset=way.preset,
            overrides=way.overrides,
            seed=way.seed,
        )
        for name, outcome in zip(names, outcomes, strict=True):
            if isinstance(outcome, RegistryBusy):
                continue
            if isinstance(outcome, Exception):
                raise outcome
            print(name, way.label, outcome.seconds, flush=True)
        return not all(isinstance(outcome, RegistryBusy) for outcome in outcomes)

    def version(self, who: Individual, way: Way) -> int | None:
        """The version of an individual by a way's settings, if it has been taught."""
        if way == BARE_WAY:
            return None
        concept = self.registry.show(who.name)
        if way.alias:
            found = [each for each in concept.versions if way.alias in each.aliases]
            return found[0].number if found else None
        told = way.settings(self.base.base.name).to_mapping()
        wanted = json.loads(json.dumps(told))
        runs = {run.run: run for run in concept.runs}
        for version in concept.versions:
            run = runs.get(version.run or "")
            if run is None or run.method != way.method or run.seed != way.seed:
                continue
            if run.base_sha256 != self.base.sha256:
                continue
            config = (
                find_method(way.method)
                .settings()
                .updated({name: value for name, value in run.config.items() if name in wanted})
            )
            if json.loads(json.dumps(config.to_mapping())) == wanted:
                return version.number
        return None

    def chosen(self, who: Individual, way: Way) -> ChosenVersion:
        """The version of an individual, to be drawn."""
        return resolve_prompt(self.registry, f"<{who.name}@{self.version(who, way)}>")[0]

    # --- scoring ----------------------------------------------------------------------------------

    def evaluate(
        self, suite: Suite, people: Sequence[Individual], way: Way | Sequence[Way], **settings: Any
    ) -> Evaluation:
        """Draw a suite with some individuals, by their categories if the way is `BARE_WAY`.

        `way` is that of all of them, or one for each.
        """
        names = encoder_names_for(self.base.base)
        ways = [way] * len(people) if isinstance(way, Way) else way
        pairs = zip(people, ways, strict=True)
        chosen = [self.chosen(who, own) for who, own in pairs if own != BARE_WAY]
        sampling = settings.get("settings", SamplingSettings())
        control = find_control(self.base.base, LAYOUT) if sampling.layout_control else None
        plan = Plan(
            chosen=tuple(chosen),
            suite=suite,
            encoders=names,
            base=self.base.base.name,
            base_sha256=self.base.sha256,
            seeds=self.seeds,
            control_sha256=hash_of_control(control) if control else None,
            **settings,
        )
        subjects = [
            EvalSubject(
                who.identity.category,
                who.photos,
                [None] * len(who.photos),
                chosen[i] if chosen else None,
            )
            for i, who in enumerate(people)
        ]
        references = [
            embed_references(_encoders(), each.category, each.photos, masks_of(self.base, each))
            for each in subjects
        ]
        evaluator = Evaluator(
            self.base, _encoders(), self.pictures, plan, subjects, references=references
        )
        with self.drawing:
            return evaluator.run()

    @property
    def pictures(self) -> PictureCache:
        """All that was drawn."""
        names = [EVALUATIONS, self.kept] if self.kept else [EVALUATIONS]
        return PictureCache(self.registry.location.cache, *names)

    def row(self, who: Individual, way: Way, shown: Sequence[int] = ()) -> Row:
        """Scores of one individual on the suite `miniature`, and pictures of some prompts."""
        suite = find_suite("miniature")
        found = self.evaluate(suite, [who], way)
        scores = {name: score.mean for name, score in found.scores.items()}
        scores |= self._own_scores(who, suite, found)
        return self.row_of([who], way.label, scores, found, shown)

    def row_of(
        self,
        cast: Sequence[Individual],
        label: str,
        scores: dict[str, float],
        found: Evaluation,
        shown: Sequence[int],
    ) -> Row:
        """Scores of a cast by a way, and the first seed's pictures of some prompts."""
        paths = [str(self.pictures.path(found.prompts[i].pictures[0].picture)) for i in shown]
        return {"individual": name_of(cast), "method": label, "scores": scores, "shown": paths}

    def _own_scores(self, who: Individual, suite: Suite, found: Evaluation) -> dict[str, float]:
        """Scores that need other renders of the individual, and lookalikes."""
        kept = [
            picture.picture
            for prompt, told in zip(suite.prompts, found.prompts, strict=True)
            if prompt.keeps_looks
            for picture in told.pictures
        ]
        vectors = embed([Image.open(self.pictures.path(key)) for key in kept])
        recognised = float(who.whole.recognises(vectors).float().mean())
        return {
            "likeness": float((vectors @ who.whole.references.T).mean()),
            "recognised": recognised,
            "both": harmonic_mean(found.scores["seen"].mean, recognised),
        }


def parser(about: str | None) -> argparse.ArgumentParser:
    """The options that all benches of the laboratory have."""
    made = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--out", type=Path, required=True)
    made.add_argument("--concepts", type=int, default=len(CATEGORIES))
    made.add_argument("--seeds", type=int, default=2)
    return made


@contextmanager
def opened(
    options: argparse.Namespace, split: str = "measured", photos: int = NUM_PHOTOS
) -> Iterator[Laboratory]:
    """The laboratory in the folder `--out`, which is made if need be.

    Its individuals are taught from their first `photos`; exits if it has others of them.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    subjects = [who.with_photos(photos) for who in individuals(split, options.concepts)]
    base = load_base()
    with Registry.open(options.out / "concepts.db", create=True) as registry:
        laboratory = Laboratory(registry, base, subjects, tuple(range(options.seeds)))
        laboratory.enter(options.out)
        yield laboratory


def without_pictures(rows: Sequence[Row]) -> list[Row]:
    """The rows as they are stored."""
    return [{name: value for name, value in row.items() if name != "shown"} for row in rows]


@cache
def _encoders() -> Any:
    from conceptry.models.bases import find_base

    return load_encoders(encoder_names_for(find_base("miniature")))


def save_sheet(rows: Sequence[Row], people: Sequence[Sequence[Individual]], path: Path) -> None:
    """A line for each cast: photos, then for some prompts a picture by each way."""
    lines: list[tuple[list[str], list[Image.Image]]] = []
    for cast in people:
        own = [row for row in rows if row["individual"] == name_of(cast)]
        photos = [photo for who in cast for photo in who.photos[: max(1, 3 - len(cast))]]
        labels, images = ["photo"] * len(photos), photos
        for number in range(len(own[0]["shown"])):
            labels += [row["method"] for row in own]
            images += [Image.open(row["shown"][number]) for row in own]
        lines.append((labels, images))
    sheet = contact_sheet(lines, side=96).quantize(256, kmeans=1)  # else violet becomes grey
    sheet.save(path, optimize=True)


def name_of(cast: Sequence[Individual]) -> str:
    """What a row calls those who are in its pictures."""
    return " ".join(who.name for who in cast)


def write_results(
    laboratory: Laboratory,
    rows: Sequence[Row],
    path: Path,
    *,
    key: str,
    compared: Iterable[tuple[str, str]],
    headlines: Sequence[str],
    shown: Sequence[Sequence[Individual]] | None = None,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a document of results and, beside it, a sheet of pictures; returns the document.

    Its table of ways is called `key`; it has differences in `headlines` between those that are
    `compared`, and what `about` tells. The sheet shows all individuals alone, or who is `shown`.
    """
    save_sheet(rows, shown or [[who] for who in laboratory.subjects], path.with_suffix(".png"))
    document = {
        "environment": describe_machine(),
        "base_sha256": laboratory.base.sha256,
        "seeds": len(laboratory.seeds),
        **(about or {}),
        key: summary(rows),
        "differences": differences(rows, compared, headlines),
        "rows": without_pictures(rows),
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    return document


# --- tables ---------------------------------------------------------------------------------------


def summary(rows: Sequence[Row], *, block: int = 1) -> dict[str, Any]:
    """Scores of each way, with intervals; of `block` as `interval` has it."""
    told: dict[str, Any] = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        names = [name for name in own[0]["scores"] if all(name in row["scores"] for row in own)]
        told[method] = {
            "individuals": len(own),
            "scores": {
                name: interval([row["scores"][name] for row in own], block=block) for name in names
            },
        }
    return told


def differences(
    rows: Sequence[Row],
    compared: Iterable[tuple[str, str]],
    names: Sequence[str],
    *,
    block: int = 1,
) -> list[dict[str, Any]]:
    """One way less another, on the same individuals, resampled together, of scores of both."""
    by: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        by.setdefault(row["method"], {})[row["individual"]] = row["scores"]
    return [
        {
            "of": ours,
            "less": other,
            "scores": {
                name: interval(
                    [by[ours][who][name] - by[other][who][name] for who in by[ours]], block=block
                )
                for name in names
                if all(name in by[way][who] for way in (ours, other) for who in by[ours])
            },
        }
        for ours, other in compared
        if ours in by and other in by
    ]


def interval(values: Sequence[float], *, block: int = 1) -> dict[str, float]:
    """Mean, with the 2.5 and 97.5 % quantiles of 1,000 resamplings.

    Values that stand in a ring, of which each shares an individual with the `block` - 1 after it,
    are resampled so many at a time (circular block bootstrap, Politis and Romano 1992).
    """
    rng = random.Random(0)
    ring = [*values, *values[: block - 1]]
    blocks = [ring[first : first + block] for first in range(len(values))]
    num_drawn = round(len(values) / block)
    draws = [
        statistics.fmean(chain.from_iterable(rng.choices(blocks, k=num_drawn))) for _ in range(1000)
    ]
    low, high = np.quantile(draws, (0.025, 0.975))
    return {
        "mean": round(statistics.fmean(values), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
    }

"""The results of an evaluation, as kept in the registry. Loads no weights."""

import json
import random
import statistics
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from ..registry.errors import InvalidInput
from ..registry.hashes import is_sha256

if TYPE_CHECKING:
    from pydantic import TypeAdapter

SCORING = 5
"""The version of how scores are computed; records of another version are not reused."""
REPLAY_ABOVE = 0.98
"""A picture whose `replay` is above this counts as a copy of a photo.

On synthetic scenes, photos reconstructed by the autoencoder have 0.983 at least, other scenes of
the same individual 0.82 at most.
"""
HARMONIC = "both"
DRIFT, DRIFT_BASE = "drift", "drift_base"
NUM_RESAMPLINGS = 1000


@dataclass(frozen=True, slots=True)
class Metric:
    """A score and its meaning. Values are computed in `scoring.py`."""

    name: str
    meaning: str


_OF_PICTURES = ("identity", "dino", "clip_i")
_LIKE_PHOTOS = "picture and photos, where the prompt keeps the subject's looks"
METRICS = (
    Metric(
        "both",
        "harmonic mean of the prompt score and the identity score; the best version is chosen by "
        "it",
    ),
    Metric("seen", "share of what the prompt names that the judge sees"),
    Metric(
        "clip_t", "CLIP's cosine of picture and prompt, without the token but with the category"
    ),
    Metric("identity", f"cosine of the miniature's identity encoder, {_LIKE_PHOTOS}"),
    Metric("dino", f"DINO's cosine of {_LIKE_PHOTOS}"),
    Metric("clip_i", f"CLIP's cosine of {_LIKE_PHOTOS}"),
    *(
        Metric(
            f"{name}_subject",
            f"{name.replace('_', ' ')} within the subject's region, grey elsewhere",
        )
        for name in _OF_PICTURES
    ),
    *(
        Metric(f"{name}_subjects", f"mean of {name.replace('_', ' ')} subject over all subjects")
        for name in _OF_PICTURES
    ),
    Metric(
        "recognised_subjects",
        "share of the subjects that are recognised in their own region: it is more like their "
        "photos than like those of the others in the picture",
    ),
    Metric("replay", "highest cosine with one of the photos, by DINO, else CLIP"),
    Metric("diversity", "one less CLIP's cosine, between pictures of one prompt"),
    Metric("focus", "share of the token's attention where the base model sees the category"),
    Metric(
        DRIFT,
        "identity score of pictures that name the category alone, drawn with what the version "
        "changes beside its token: how much of the subject every dog became",
    ),
    Metric(DRIFT_BASE, "the same of the base model: what drift is without the version"),
    Metric("leak", "share of the first token's attention that falls on the other subject"),
)
"""Scores in the order of tables, reports and legends."""


def metrics_of(names: Collection[str]) -> list[Metric]:
    """The metrics of these scores, in the order of `METRICS`."""
    return [metric for metric in METRICS if metric.name in names]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean, and the 2.5 and 97.5 % quantiles of its bootstrap."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PictureScores:
    """The scores of a picture, which is named by its key in the cache."""

    seed: int
    picture: str
    scores: dict[str, float]


@dataclass(frozen=True, slots=True)
class PromptScores:
    """A prompt, its pictures' scores, and their means."""

    prompt: str
    tests: str
    scores: dict[str, float]
    pictures: list[PictureScores]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The scores of a version on a suite; `made_by` has all that they depend on."""

    concept: str
    version: int
    others: list[str]
    """In suites for several concepts: the other ones, `mia@2`."""
    suite: str
    scores: dict[str, Interval]
    prompts: list[PromptScores]
    made_by: dict[str, object]
    checkpoint: str | None = None
    """The name of a checkpoint that is no version yet: `stage3-000100`."""
    concept_id: int = 0
    """0 for the base model alone."""
    drift: list[PromptScores] = field(default_factory=list)
    """Of prompts with the plain category, of which `drift` and `drift_base` are the scores."""

    @property
    def all_prompts(self) -> list[PromptScores]:
        """Those of the suite, then those that show drift."""
        return [*self.prompts, *self.drift]

    @property
    def label(self) -> str:
        """`rex@2`, `rex@stage3-000100`, or `rex@2 and mia@1`."""
        return " and ".join(self.labels)

    @property
    def drawn_with(self) -> dict[str, object]:
        """Its seeds, and the settings that it was drawn with."""
        settings = self.made_by.get("settings")
        found = settings if isinstance(settings, dict) else {}
        return {"seeds": self.made_by.get("seeds")} | found

    @property
    def labels(self) -> list[str]:
        """Of each subject: `rex@2`."""
        return [f"{self.concept}@{self.checkpoint or self.version}", *self.others]

    @property
    def chosen_by(self) -> list[str]:
        """The prompt score and the identity score that versions are chosen by."""
        return _texts(self.made_by["chosen_by"])

    @property
    def weights(self) -> list[str]:
        """The hashes of the adapters that were drawn with."""
        return _texts(self.made_by["weights"])

    @property
    def headlines(self) -> list[str]:
        """The names of the scores that versions are chosen by, and of their harmonic mean."""
        return [name for name in (*self.chosen_by, HARMONIC) if name in self.scores]

    @property
    def harmonic_mean(self) -> float:
        """Harmonic mean of the prompt and the identity score: what versions are chosen by.

        0 if one of them could not be scored.
        """
        return self.scores[HARMONIC].mean if HARMONIC in self.scores else 0.0

    def document(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: Mapping[str, object]) -> "Evaluation":
        """The opposite of `document`. Raises `InvalidInput` for one of another form."""
        try:
            found = _form().validate_json(json.dumps(document), strict=True)
            rows = (row.pictures for row in found.all_prompts)
            if not all(is_sha256(each.picture) for row in rows for each in row):
                raise ValueError("a picture is called by its hash")
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"the scores of {document.get('suite')} are not sound") from error
        return found


def _texts(value: object) -> list[str]:
    assert isinstance(value, (list, tuple))
    return [str(each) for each in value]


@cache
def _form() -> "TypeAdapter[Evaluation]":
    from pydantic import TypeAdapter

    return TypeAdapter(Evaluation)


def summary(
    prompts: Sequence[PromptScores], prompt_metric: str, identity_metric: str
) -> dict[str, Interval]:
    """Means over prompts, each prompt counted once, with intervals from resampling prompts."""
    rows = [prompt.scores for prompt in prompts]
    names = list(dict.fromkeys(name for row in rows for name in row))
    rng = random.Random(0)
    draws = [rows] + [rng.choices(rows, k=len(rows)) for _ in range(NUM_RESAMPLINGS)]
    found: defaultdict[str, list[float]] = defaultdict(list)
    for draw in draws:
        means: dict[str, float] = {}
        for name in names:
            values = [row[name] for row in draw if name in row]
            if values:
                means[name] = statistics.fmean(values)
        if prompt_metric in means and identity_metric in means:
            means[HARMONIC] = harmonic_mean(means[prompt_metric], means[identity_metric])
        for name, value in means.items():
            found[name].append(value)
    return {name: _interval(values[0], values[1:]) for name, values in found.items()}


def harmonic_mean(a: float, b: float) -> float:
    """Of two scores; 0 where one of them is not above 0."""
    return 2 * a * b / (a + b) if min(a, b) > 0 else 0.0


def _interval(mean: float, draws: Sequence[float]) -> Interval:
    ordered = sorted(draws) or [mean]
    last = len(ordered) - 1
    low, high = (ordered[round(share * last)] for share in (0.025, 0.975))
    return Interval(round(mean, 4), round(low, 4), round(high, 4))


def mean_scores(pictures: Sequence[PictureScores]) -> dict[str, float]:
    """Means of what pictures scored, over those that have the score."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for picture in pictures:
        for name, value in picture.scores.items():
            found[name].append(value)
    return {name: round(statistics.fmean(values), 4) for name, values in found.items()}


def distinct_labels(found: Sequence[Evaluation]) -> list[str]:
    """The label of each, with what it was drawn with where others of the suite have its label.

    `rex@2, guidance 3`; numbered where that is the same, too.
    """
    labels: list[str] = []
    for each in found:
        alike = [e.drawn_with for e in found if (e.label, e.suite) == (each.label, each.suite)]
        names = dict.fromkeys(name for other in alike for name in other)
        own = each.drawn_with
        differing = [
            f"{name.replace('_', ' ')} {own.get(name)}"
            for name in names
            if any(other.get(name) != own.get(name) for other in alike)
        ]
        label = ", ".join([each.label, *differing])
        earlier = sum(other == label for other in labels) if len(alike) > 1 else 0
        labels.append(f"{label} ({earlier + 1})" if earlier else label)
    return labels

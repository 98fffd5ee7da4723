"""The scores of pictures.

clip_t       cosine of CLIP's vectors of picture and prompt, the prompt without the token but with
             the category: `a photo of a dog on the beach`
clip_i       cosine of CLIP's vectors, mean over the photos; as the next two, only where the prompt
             keeps the subject's appearance
dino         the same with DINO
identity     the same with the identity encoder (miniature)
…_subject    of the three above: within the subject's region, grey elsewhere, in picture and photos
recognised…  with several concepts: whether the region is more like the photos of its subject than
             like those of the others
replay       highest cosine of the whole picture and a photo, by DINO, else CLIP
seen         share of what the prompt asks for that the judge predicts (miniature): categories,
             style and, where named, place, accessory, colour and how the first stands to the
             second (seen_place, …, seen_relation)
focus        with one concept: share of its token map that falls on its subject, and that is where
             the base model, shown the finished picture, sees the category (see `evaluating.py`); a
             map that is compact but elsewhere has none
drift        identity score of pictures of the plain category, drawn with what a version changes
             beside its token; drift_base without it (see `evaluating.py`)
leak         with several concepts: share of the first one's token map that falls on the others'
             regions, where their own maps are strong

Scores of a second concept end in `_other`, of a third in `_third`; `…_subjects` are the means of
`…_subject` over all.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from ..generation.photo_regions import as_mask
from ..generation.regions import leak, region
from ..models.pixels import grey_outside
from ..training.crops import Photos
from .encoders import Encoders, PictureEncoder
from .judge import Judge, Prediction
from .suites import SuitePrompt

SUFFIXES = ("", "_other", "_third")
PLAIN_STYLE = "photo"
"""The style of a prompt that names none."""


@dataclass(frozen=True, slots=True)
class ReferenceEmbeddings:
    """Embeddings of a subject's P photos: unit vectors (P, d) by encoder.

    `inside` are those of the photos with grey outside the mask.
    """

    category: str
    whole: Mapping[str, Tensor]
    inside: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class ObservedPicture:
    """A picture and the maps (S, 2, h, w) of its S subjects: of `all` tokens, and of `own` ones.

    `regions` (S, h, w) are those that subjects were kept in, as shares of each place, if they were.
    """

    image: Image.Image
    maps: Tensor
    regions: Tensor | None = None


def picture_encoders(encoders: Encoders) -> dict[str, PictureEncoder]:
    """The encoders that compare pictures, by the name of their score."""
    found = {"clip_i": encoders.clip, "dino": encoders.dino, "identity": encoders.identity}
    return {name: encoder for name, encoder in found.items() if encoder is not None}


def embed_references(
    encoders: Encoders,
    category: str,
    photos: Sequence[Image.Image],
    masks: Sequence[Image.Image],
) -> ReferenceEmbeddings:
    """Embed the photos of a subject; masks are white on it."""
    inside = Photos([partial(_inside, photos, i, mask) for i, mask in enumerate(masks)])
    parts = picture_encoders(encoders).items()
    return ReferenceEmbeddings(
        category,
        whole={name: encoder.embed(photos) for name, encoder in parts},
        inside={name: encoder.embed(inside) for name, encoder in parts},
    )


def _inside(photos: Sequence[Image.Image], number: int, mask: Image.Image) -> Image.Image:
    return grey_outside(photos[number], mask)


@dataclass(frozen=True, slots=True)
class Scorer:
    """Scores pictures of one subject or several."""

    encoders: Encoders
    subjects: Sequence[ReferenceEmbeddings]

    def score(
        self, prompt: SuitePrompt, pictures: Sequence[ObservedPicture]
    ) -> tuple[list[dict[str, float]], Tensor]:
        """Scores of each picture of a prompt, and CLIP's vectors of them (B, d)."""
        images = [picture.image for picture in pictures]
        rows: list[dict[str, float]] = [{} for _ in images]
        vectors = {name: e.embed(images) for name, e in picture_encoders(self.encoders).items()}
        self._text(rows, prompt, vectors["clip_i"])
        if len(self.subjects) == 1:
            self._whole(rows, prompt, vectors)
        regions = [region(picture.maps[:, 0]) for picture in pictures]
        numbers = range(len(self.subjects))
        for number, (subject, suffix) in enumerate(zip(self.subjects, SUFFIXES, strict=False)):
            if prompt.keeps_looks:
                self._inside(rows, subject, images, [r[number] for r in regions], suffix)
            if others := [each for each in numbers if each != number]:
                for row, picture, inside in zip(rows, pictures, regions, strict=True):
                    row[f"leak{suffix}"] = leak(picture.maps, inside, number, others)
        if len(self.subjects) > 1:
            self._of_all(rows)
        if self.encoders.judge is not None:
            self._judged(rows, prompt, images, self.encoders.judge)
        rounded = [{name: round(value, 4) for name, value in row.items()} for row in rows]
        return rounded, vectors["clip_i"]

    def _text(self, rows: list[dict[str, float]], prompt: SuitePrompt, vectors: Tensor) -> None:
        categories = [subject.category for subject in self.subjects]
        plain = prompt.filled(*categories, category=categories[0])
        (text,) = self.encoders.clip.embed_texts([plain])
        for row, vector in zip(rows, vectors, strict=True):
            row["clip_t"] = float(vector @ text)

    def _whole(
        self, rows: list[dict[str, float]], prompt: SuitePrompt, vectors: Mapping[str, Tensor]
    ) -> None:
        (subject,) = self.subjects
        for name, found in vectors.items():
            cosines = found @ subject.whole[name].T  # (B, P)
            for row, each in zip(rows, cosines, strict=True):
                if prompt.keeps_looks:
                    row[name] = float(each.mean())
        by = "dino" if "dino" in vectors else "clip_i"
        nearest = (vectors[by] @ subject.whole[by].T).amax(-1)
        for row, each in zip(rows, nearest, strict=True):
            row["replay"] = float(each)

    def _inside(
        self,
        rows: list[dict[str, float]],
        subject: ReferenceEmbeddings,
        images: Sequence[Image.Image],
        regions: Sequence[Tensor],
        suffix: str,
    ) -> None:
        cut = [grey_outside(image, as_mask(r)) for image, r in zip(images, regions, strict=True)]
        for name, encoder in picture_encoders(self.encoders).items():
            vectors = encoder.embed(cut)
            cosines = (vectors @ subject.inside[name].T).mean(-1)
            for row, each in zip(rows, cosines, strict=True):
                row[f"{name}_subject{suffix}"] = float(each)
            others = [
                (vectors @ other.inside[name].T).mean(-1)
                for other in self.subjects
                if other is not subject
            ]
            if others and name == self._recognising:
                is_nearest = cosines > torch.stack(others).amax(0)
                for row, each in zip(rows, is_nearest, strict=True):
                    row[f"recognised_subject{suffix}"] = float(each)

    @property
    def _recognising(self) -> str:
        """The encoder that tells subjects apart best."""
        return next(
            n for n in ("identity", "dino", "clip_i") if n in picture_encoders(self.encoders)
        )

    def _of_all(self, rows: list[dict[str, float]]) -> None:
        for row in rows:
            for name in (*picture_encoders(self.encoders), "recognised"):
                found = [row.get(f"{name}_subject{suffix}") for suffix in SUFFIXES]
                if each := [value for value in found if value is not None]:
                    row[f"{name}_subjects"] = statistics.fmean(each)

    def _judged(
        self,
        rows: list[dict[str, float]],
        prompt: SuitePrompt,
        images: Sequence[Image.Image],
        judge: Judge,
    ) -> None:
        for row, prediction in zip(rows, judge.classify(images), strict=True):
            is_seen = self._is_seen(prompt, prediction)
            row["seen"] = statistics.fmean(is_seen.values())
            row |= {f"seen_{name}": float(value) for name, value in is_seen.items()}

    def _is_seen(self, prompt: SuitePrompt, prediction: Prediction) -> dict[str, bool]:
        """For each thing that the prompt asks for, whether the judge predicts it."""
        category = self.subjects[0].category
        others = [subject.category for subject in self.subjects[1:]]
        second = prompt.second_for(category)
        found = {"category": category in prediction.categories}
        found["style"] = prediction.style == prompt.sees.get("style", PLAIN_STYLE)
        for name in ("place", "accessory"):
            if name in prompt.sees:
                found[name] = getattr(prediction, name) == prompt.sees[name]
        if "colour" in prompt.sees:
            found["colour"] = prediction.colours.get(category) == prompt.sees["colour"]
        other = next((word for word in (*others, second) if word), None)
        if "relation" in prompt.sees and other:
            found["relation"] = prediction.stands(prompt.sees["relation"], category, other)
        if second or others:
            found["second"] = all(
                word in prediction.categories for word in (second, *others) if word
            )
        return found


def diversity(vectors: Tensor) -> float | None:
    """Mean of 1 - cosine over pairs of pictures (B, d) of one prompt; None for a single one."""
    if len(vectors) < 2:
        return None
    first, second = torch.triu_indices(len(vectors), len(vectors), offset=1)
    return float(1 - (vectors[first] * vectors[second]).sum(-1).mean())

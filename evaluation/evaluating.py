"""`evaluate`: draw the prompts of a suite with versions of concepts, and score the pictures."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import count
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..adapters.file_format import acts_unnamed
from ..adapters.formats.recognising import changes_weights
from ..generation.attention_maps import MapCollector
from ..generation.controls import Controls, followed, following
from ..generation.in_regions import draw_in_regions
from ..generation.injection import InjectedConcept, expand_prompt, inject_concepts
from ..generation.layout import EARLY
from ..generation.photo_regions import category_regions, regions_of_photos
from ..generation.prompt_syntax import ChosenVersion
from ..generation.regional_plan import plan_regions
from ..generation.regions import all_columns, by_subject, share_inside, subject_columns
from ..generation.request import Request
from ..generation.sampler import draw
from ..generation.separation import separating
from ..models.loading import LoadedBase
from ..registry import Registry
from ..registry.errors import InvalidInput
from ..training.crops import Photos
from .encoders import Encoders
from .picture_cache import PictureCache
from .plan import CONTROL_FOLLOWS, Plan
from .record import (
    DRIFT,
    DRIFT_BASE,
    Evaluation,
    PictureScores,
    PromptScores,
    mean_scores,
    summary,
)
from .scoring import (
    ObservedPicture,
    ReferenceEmbeddings,
    Scorer,
    diversity,
    embed_references,
    picture_encoders,
)
from .suites import SuitePrompt

BATCH = 4
DRIFT_PROMPTS = 4
SIDE = 1024
"""Photos are reduced to no less than this on the shorter side, more than any encoder uses."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class EvalSubject:
    """A subject of the pictures: a version of a concept or, without `chosen`, a plain category."""

    category: str
    photos: Sequence[Image.Image]
    masks: Sequence[Image.Image | None]
    chosen: ChosenVersion | None = None

    @classmethod
    def of(cls, registry: Registry, chosen: ChosenVersion) -> "EvalSubject":
        """A version and its concept's photos. Raises `InvalidInput` if there are none."""
        concept = chosen.concept
        concept.check_photos()
        return cls(
            concept.category,
            Photos([partial(registry.read_photo, i, at_least=SIDE) for i in concept.images]),
            [reduced(registry.read_mask(image)) for image in concept.images],
            chosen,
        )

    @property
    def phrase(self) -> str:
        """Its text in a prompt: `<rex@2>`, or the category."""
        return self.chosen.mention.text if self.chosen else self.category


def evaluate(
    registry: Registry,
    base: LoadedBase,
    encoders: Encoders,
    plan: Plan,
    *,
    on_progress: Progress | None = None,
) -> Evaluation:
    """Run the evaluation of a plan. Pictures in the registry's cache are not drawn again.

    Raises what `inject_concepts` and `draw` raise.
    """
    subjects = [EvalSubject.of(registry, chosen) for chosen in plan.chosen]
    cache = PictureCache.of(registry)
    return Evaluator(base, encoders, cache, plan, subjects).run(on_progress)


@dataclass(slots=True)
class Evaluator:
    """One evaluation.

    If concepts are injected already, pass them as `concepts`, with the `references` of their
    subjects: those need the base model without adapters.
    """

    base: LoadedBase
    encoders: Encoders
    cache: PictureCache
    plan: Plan
    subjects: Sequence[EvalSubject]
    concepts: list[InjectedConcept] | None = None
    references: Sequence[ReferenceEmbeddings] | None = None

    def run(self, on_progress: Progress | None = None) -> Evaluation:
        """Score every picture of the suite, drawing those that are not cached.

        Then drift, if there is one subject whose version acts on prompts that do not name it, and
        focus, if there is one subject and the base model is not in the middle of a training.
        """
        drifting = self._drift_prompts()
        advance = self._counted(len(self.plan.suite.prompts) + 2 * len(drifting), on_progress)
        references = self.references or self._references()
        scorer = Scorer(self.encoders, references)
        scored: list[PromptScores] = []
        with ExitStack() as stack:
            apart = self.plan.settings.layout is not None
            concepts = _Concepts(self.base, self.subjects, stack, self.concepts, apart=apart)
            source = _PictureSource(self.base, self.cache, self.plan, self.subjects, concepts)
            for prompt in self.plan.suite.prompts:
                scored.append(self._prompt(prompt, source, scorer))
                advance()
            unnamed = _PictureSource(self.base, self.cache, self.plan, self._plain(), concepts)
            drawn: list[_Pictures] = []
            for prompt in drifting:
                drawn.append(unnamed.all_pictures(prompt))
                advance()
        if len(self.subjects) == 1 and not self.concepts:
            self._add_focus(scored)
        drift = self._drift(drifting, drawn, references[0], advance) if drawn else []
        scores = summary(scored, *self.plan.metrics) | summary(drift, *self.plan.metrics)
        return self.plan.evaluation(scored, scores, self.encoders.hashes(), drift)

    def _counted(self, num_prompts: int, on_progress: Progress | None) -> Callable[[], None]:
        """What tells, each time it is called, that the pictures of one more prompt are there."""
        seeds, done = len(self.plan.seeds), count(1)

        def advance() -> None:
            if on_progress:
                on_progress(next(done) * seeds, num_prompts * seeds)

        return advance

    def _drift_prompts(self) -> list[SuitePrompt]:
        """Some prompts that keep the subject's looks, from all over the suite; none if in vain."""
        chosen = [subject.chosen for subject in self.subjects]
        if self.concepts or len(chosen) != 1 or chosen[0] is None:
            return []
        if not _acts_unnamed(chosen[0]):
            return []
        keeping = [each for each in self.plan.suite.prompts if self._names_the_category(each)]
        number = min(DRIFT_PROMPTS, len(keeping))
        return [keeping[i * len(keeping) // number] for i in range(number)]

    def _names_the_category(self, prompt: SuitePrompt) -> bool:
        """Whether a prompt that keeps looks has the plain category as a word: dog, not dogs."""
        if not prompt.keeps_looks:
            return False
        category = self.subjects[0].category
        text = prompt.filled(category, category=category)
        try:
            subject_columns(self.base.backbone, text, [category])
        except InvalidInput:
            return False
        return True

    def _plain(self) -> list[EvalSubject]:
        """The subjects as plain categories."""
        return [replace(each, chosen=None) for each in self.subjects]

    def _drift(
        self,
        prompts: Sequence[SuitePrompt],
        drawn: "Sequence[_Pictures]",
        references: ReferenceEmbeddings,
        advance: Callable[[], None],
    ) -> list[PromptScores]:
        """How like the subject pictures of its plain category are, with its version and without."""
        name = self.plan.metrics[1]
        encoder, photos = picture_encoders(self.encoders)[name], references.whole[name]

        def likeness(pictures: _Pictures) -> list[float]:
            vectors = encoder.embed([picture.image for _, picture in pictures])
            return (vectors @ photos.T).mean(-1).tolist()

        found: list[PromptScores] = []
        with ExitStack() as stack:
            plain = self._plain()
            nobody = _Concepts(self.base, plain, stack)
            source = _PictureSource(self.base, self.cache, self.plan, plain, nobody)
            for prompt, pictures in zip(prompts, drawn, strict=True):
                rows = [
                    PictureScores(seed, key, {DRIFT: round(value, 4)})
                    for seed, (key, _), value in zip(
                        self.plan.seeds, pictures, likeness(pictures), strict=True
                    )
                ]
                without = likeness(source.all_pictures(prompt))
                advance()
                scores = mean_scores(rows) | {DRIFT_BASE: round(statistics.fmean(without), 4)}
                found.append(PromptScores(source.prompt_text(prompt), DRIFT, scores, rows))
        return found

    def _prompt(
        self, prompt: SuitePrompt, source: "_PictureSource", scorer: Scorer
    ) -> PromptScores:
        found: list[PictureScores] = []
        vectors: list[Tensor] = []
        for seeds, drawn in source.batches(prompt):
            rows, embedded = scorer.score(prompt, [picture for _, picture in drawn])
            vectors.append(embedded)
            for seed, (key, _), row in zip(seeds, drawn, rows, strict=True):
                found.append(PictureScores(seed, key, row))
        scores = mean_scores(found)
        varied = diversity(torch.cat(vectors))
        if varied is not None:
            scores["diversity"] = round(varied, 4)
        return PromptScores(source.prompt_text(prompt), prompt.tests, scores, found)

    def _add_focus(self, scored: Sequence[PromptScores]) -> None:
        """Add how much of the token's attention is where the base model sees the category.

        It is the bare base model that looks, at the finished pictures, so not while concepts are
        injected.
        """
        category = self.subjects[0].category
        for prompt in scored:
            kept = [(row, self.cache.get(row.picture, num_subjects=1)) for row in prompt.pictures]
            there = [(row, picture) for row, picture in kept if picture]
            images = [picture.image for _, picture in there]
            regions = category_regions(self.base, images, category)
            for (row, picture), inside in zip(there, regions, strict=True):
                row.scores["focus"] = round(share_inside(picture.maps[0, 1], inside), 4)
            prompt.scores.update(mean_scores(prompt.pictures))

    def _references(self) -> list[ReferenceEmbeddings]:
        return [
            embed_references(
                self.encoders,
                subject.category,
                subject.photos,
                masks_of(self.base, subject),
            )
            for subject in self.subjects
        ]


def _acts_unnamed(chosen: ChosenVersion) -> bool:
    """Whether a version changes pictures of prompts that do not name it."""
    if chosen.originals:
        return any(changes_weights(Path(each)) for each in chosen.originals)
    return acts_unnamed(Path(chosen.path))


def reduced(mask: Image.Image | None) -> Image.Image | None:
    """The mask, reduced to no less than `SIDE` on the shorter side."""
    factor = min(mask.size) // SIDE if mask else 1
    return mask.reduce(factor) if mask and factor > 1 else mask


def masks_of(base: LoadedBase, subject: EvalSubject) -> list[Image.Image]:
    """The masks of a subject's photos: from the registry, else from the base model's attention."""
    without_mask = [i for i, mask in enumerate(subject.masks) if mask is None]
    photos = (subject.photos[i] for i in without_mask)
    found = iter(regions_of_photos(base, photos, subject.category) if without_mask else [])
    return [next(found) if mask is None else mask for mask in subject.masks]


_Pictures = list[tuple[str, ObservedPicture]]
"""Pictures of a prompt, with their keys in the cache."""


class _Concepts:
    """The concepts of subjects, injected when the first picture is drawn, or before."""

    def __init__(
        self,
        base: LoadedBase,
        subjects: Sequence[EvalSubject],
        stack: ExitStack,
        injected: list[InjectedConcept] | None = None,
        *,
        apart: bool = False,
    ) -> None:
        self.chosen = [subject.chosen for subject in subjects if subject.chosen]
        self._base = base
        self._apart = apart
        self._stack = stack
        self._injected = injected

    def injected(self) -> list[InjectedConcept]:
        """They, injected."""
        if self._injected is None:
            injecting = inject_concepts(self._base, self.chosen, apart=self._apart)
            self._injected = self._stack.enter_context(injecting)
        return self._injected


class _PictureSource:
    """Pictures from the cache, or drawn while `concepts` are injected, whether named or not."""

    def __init__(
        self,
        base: LoadedBase,
        cache: PictureCache,
        plan: Plan,
        subjects: Sequence[EvalSubject],
        concepts: _Concepts,
    ) -> None:
        self._base = base
        self._cache = cache
        self._plan = plan
        self._subjects = subjects
        self._concepts = concepts
        named = [subject.chosen for subject in subjects if subject.chosen]
        self._unnamed = [each.sha256 for each in concepts.chosen if each not in named]

    def prompt_text(self, prompt: SuitePrompt) -> str:
        """The prompt with mentions of the concepts: `a photo of <rex@2>`."""
        return prompt.filled(
            *(subject.phrase for subject in self._subjects), category=self._subjects[0].category
        )

    def batches(self, prompt: SuitePrompt) -> Iterator[tuple[Sequence[int], _Pictures]]:
        """The pictures of all seeds, some at a time: (seeds, their pictures)."""
        for first in range(0, len(self._plan.seeds), BATCH):
            seeds = self._plan.seeds[first : first + BATCH]
            yield seeds, self._pictures(prompt, seeds)

    def all_pictures(self, prompt: SuitePrompt) -> _Pictures:
        """Those of all seeds."""
        return [picture for _, pictures in self.batches(prompt) for picture in pictures]

    def _pictures(self, prompt: SuitePrompt, seeds: Sequence[int]) -> _Pictures:
        keys = [self._key(prompt, seed, seeds) for seed in seeds]
        side = self._base.backbone.size
        size = self._plan.settings.size or (side, side)
        found = [self._cache.get(key, num_subjects=len(self._subjects), size=size) for key in keys]
        if None in found:
            found = [
                self._cache.put(key, picture)
                for key, picture in zip(keys, self._drawn(prompt, seeds), strict=True)
            ]
        return [(key, each) for key, each in zip(keys, found, strict=True) if each]

    def _key(self, prompt: SuitePrompt, seed: int, seeds: Sequence[int]) -> str:
        """The hash of all that makes the picture; concepts count by their weights, not names."""
        phrases = [
            f"[{subject.chosen.sha256}]" if subject.chosen else subject.category
            for subject in self._subjects
        ]
        imported = {  # of these the category is that of the concept
            subject.chosen.sha256: subject.category
            for subject in self._subjects
            if subject.chosen and subject.chosen.originals
        }
        return PictureCache.key(
            {
                "base": [self._base.sha256, self._base.configuration_sha256],
                "prompt": prompt.filled(*phrases, category=self._subjects[0].category),
                "seed": seed,
                "batch": list(seeds),
                "settings": self._plan.settings.to_mapping(),
            }
            | ({"unnamed": self._unnamed} if self._unnamed else {})
            | (
                {"control": self._plan.control_sha256, "control_follows": CONTROL_FOLLOWS}
                if self._plan.control_sha256
                else {}
            )
            | ({"imported": imported} if imported else {})
            | ({} if self._plan.settings.layout is None else {"early": EARLY})
        )

    def _drawn(self, prompt: SuitePrompt, seeds: Sequence[int]) -> Iterator[ObservedPicture]:
        injected = self._concepts.injected()
        concepts = {each.mention.text: each for each in injected}
        text = expand_prompt(self.prompt_text(prompt), injected)
        backbone, settings = self._base.backbone, self._plan.settings
        if settings.layout is not None:
            yield from self._drawn_in_regions(prompt, seeds, injected)
            return
        who = [concepts.get(subject.phrase, subject.category) for subject in self._subjects]
        columns = subject_columns(backbone, text, who)
        collector = MapCollector(all_columns(columns), layers=[backbone.localising_layers])
        drawing = draw(
            self._base,
            text,
            seeds,
            settings,
            batch=len(seeds),
            observers=[*separating(backbone, columns, settings), collector],
            names=[each.weight for each in injected],
        )
        images = [drawn.image for drawn in drawing]
        (maps,) = collector.take()
        yield from map(ObservedPicture, images, by_subject(maps, columns))  # (B, S, 2, h, w)

    def _drawn_in_regions(
        self, prompt: SuitePrompt, seeds: Sequence[int], injected: Sequence[InjectedConcept]
    ) -> Iterator[ObservedPicture]:
        """Pictures in which each subject has its region."""
        named = {each.mention.text: each.mention.name for each in injected}
        names = [named.get(subject.phrase, subject.category) for subject in self._subjects]
        plain = {each: each for each in names if each not in named.values()}
        kinds = dict(zip(names, (each.category for each in self._subjects), strict=True))
        layout, settings = self._plan.settings.layout, self._plan.settings
        assert layout is not None
        text = self.prompt_text(prompt)
        control = self._controls.of(Request(prompt=text, seeds=seeds, settings=settings), kinds)
        plan = plan_regions(self._base.backbone, text, injected, layout, plain)
        plan = followed(plan, control, injected)
        assert plan is not None
        order = [plan.subjects.index(name) for name in names]
        with following(control, injected, plan) as added:
            drawing = draw_in_regions(
                self._base, plan, injected, seeds, settings, batch=len(seeds), control=added
            )
            for seen in drawing:
                yield ObservedPicture(seen.drawn.image, seen.maps[order], seen.regions[order])

    @cached_property
    def _controls(self) -> Controls:
        return Controls(self._base, [])

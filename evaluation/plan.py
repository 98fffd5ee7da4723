"""The plan of an evaluation, and its recorded result. Loads no weights."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from ..generation.layout import EARLY, NONE, check_all_have_boxes, check_has_place
from ..generation.prompt_syntax import ChosenVersion, Mention, mention_of
from ..generation.request import SamplingSettings
from ..models.hashes import hash_of
from ..registry import Registry
from ..registry.errors import InvalidInput
from ..registry.images import READING
from ..registry.records import Concept, VersionRecord
from ..registry.running import CHECKPOINT_PREFIX
from .encoder_names import EncoderNames
from .record import SCORING, Evaluation, Interval, PromptScores
from .suites import Suite

CONTROL_FOLLOWS = "each prediction's concept"
"""Whom a ControlNet follows in pictures of several: before, it was the sum of all."""
FOUND_MASKS = "carried by self-attention"
"""How masks of photos are found that have none: before, the category's map was taken as it is."""
BASE_MODEL = "base model"
"""The name of an evaluation without a concept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to evaluate: `chosen` versions, one for each slot of the suite, on one base model.

    Without versions it is the base model alone. Raises `InvalidInput` if their number does not fit.
    """

    chosen: tuple[ChosenVersion, ...]
    suite: Suite
    encoders: EncoderNames
    base: str
    base_sha256: str
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    settings: SamplingSettings = field(default_factory=SamplingSettings)
    control_sha256: str | None = None
    """Of the ControlNet that is shown boxes, if one is."""
    configuration_sha256: str = ""
    """Of what the base model's folder says beside weights."""

    def __post_init__(self) -> None:
        asked = {
            "--layout": self.settings.layout is not None,
            "--separate": self.settings.separate,
        }
        for option in [name for name, is_on in asked.items() if is_on]:
            if self.suite.num_subjects == 1:
                raise InvalidInput(
                    f"the suite {self.suite.name} has one concept in a picture: {option} is for "
                    "several",
                    hint=f"without {option}, or with the --suite of several concepts",
                )
        if self.chosen and len(self.chosen) != self.suite.num_subjects:
            names = " and ".join(each.concept.name for each in self.chosen)
            raise InvalidInput(
                f"the suite {self.suite.name} is for {self.suite.num_subjects} concepts in a "
                f"picture, not for {names}",
                hint="--suite living"
                if self.suite.num_subjects == 1
                else f"name {self.suite.num_subjects} concepts",
            )

        for each in self.chosen:
            if not each.has_words:
                raise InvalidInput(
                    f"{each.label} has no words in prompts: no picture can be asked for it",
                    hint='concept import FILE --trigger "WORDS"',
                )
            if len(self.chosen) > 1 and self.settings.layout not in (None, NONE):
                check_has_place(each.label, each.has_words, each.is_subject)
        if isinstance(self.settings.layout, Mapping):
            check_all_have_boxes(self.settings.layout, [each.mention.name for each in self.chosen])

    @property
    def metrics(self) -> tuple[str, str]:
        """The prompt score and the identity score that versions are chosen by."""
        prompt = "seen" if self.encoders.is_miniature else "clip_t"
        identity = "dino" if self.encoders.dino else "clip_i"
        identity = "identity" if self.encoders.is_miniature else identity
        return prompt, identity + ("_subjects" if self.suite.num_subjects > 1 else "")

    def made_by(self, hashes: Mapping[str, object]) -> dict[str, object]:
        """All that the scores depend on, as JSON; `hashes` are those of the encoders."""
        made_by = {
            "scoring": SCORING,
            "reading": READING,
            "suite_sha256": self.suite.sha256,
            "base": self.base,
            "base_sha256": self.base_sha256,
            "configuration_sha256": self.configuration_sha256,
            "weights": [each.sha256 for each in self.chosen],
            "categories": [each.concept.category for each in self.chosen],
            "photos": [
                [[image.sha256, image.mask] for image in each.concept.images]
                for each in self.chosen
            ],
            "seeds": self.seeds,
            "settings": self.settings.to_mapping(),
            "encoders": hashes,
            "chosen_by": self.metrics,
        }
        images = [image for each in self.chosen for image in each.concept.images]
        if not all(image.mask for image in images):
            made_by["found_masks"] = FOUND_MASKS
        if self.control_sha256:
            made_by |= {"control_sha256": self.control_sha256, "control_follows": CONTROL_FOLLOWS}
        if self.settings.layout is not None:
            made_by["early"] = EARLY
        return json.loads(json.dumps(made_by))

    def evaluation(
        self,
        prompts: list[PromptScores],
        scores: dict[str, Interval],
        hashes: Mapping[str, object],
        drift: list[PromptScores],
    ) -> Evaluation:
        """The evaluation with these scores."""
        first, *others = self.chosen or (None,)
        return Evaluation(
            concept=first.concept.name if first else BASE_MODEL,
            version=first.version.number if first else 0,
            others=[each.label for each in others if each],
            suite=self.suite.name,
            scores=scores,
            prompts=prompts,
            made_by=self.made_by(hashes),
            checkpoint=checkpoint_of(first) if first else None,
            concept_id=first.concept.id if first else 0,
            drift=drift,
        )

    def recorded(self, registry: Registry, hashes: Mapping[str, object]) -> Evaluation | None:
        """The recorded result of the same evaluation, if there is one.

        Imported and damaged records are ignored.
        """
        first, *others = self.chosen
        if checkpoint_of(first):
            return None
        made_by = self.made_by(hashes)
        labels = [each.label for each in others]
        for record in reversed(registry.evaluations(first.concept.id)):
            same = record.version == first.version.number and record.config == made_by
            if same and not record.is_imported and record.scores.get("others") == labels:
                keys = {
                    "concept": first.concept.name,
                    "concept_id": first.concept.id,
                    "version": record.version,
                    "suite": self.suite.name,
                    "made_by": made_by,
                }
                with suppress(InvalidInput):
                    return Evaluation.from_document(record.scores | keys)
        return None


def checkpoints(
    registry: Registry, concept: Concept, run: str, *, names_run: bool = False
) -> list[ChosenVersion]:
    """The kept checkpoints of a training, to be drawn like versions.

    With `names_run` their names say which training it was: `stage3-000100 of 29ad`.
    """
    return [
        as_chosen(
            concept,
            name=path.stem.removeprefix(CHECKPOINT_PREFIX)
            + (f" of {run[:4]}" if names_run else ""),
            run=run,
            path=str(path),
            sha256=hash_of(path),
        )
        for path in registry.checkpoints(run)
    ]


def as_chosen(
    concept: Concept, *, name: str, run: str | None, path: str = "", sha256: str = ""
) -> ChosenVersion:
    """A checkpoint as version 0, as if a prompt had named it."""
    mention = Mention(mention_of(concept.name, 0), concept.name, "0", 1.0)
    version = VersionRecord(0, [name], run, concept.updated, [])
    return ChosenVersion(mention, concept, version, path, sha256)


def checkpoint_of(chosen: ChosenVersion) -> str | None:
    """The name of a checkpoint; None for a version."""
    return None if chosen.version.number else chosen.version.aliases[0]

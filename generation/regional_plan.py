"""Plans of pictures with several subjects: which predictions are blended, and by what regions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from ..adapters.lora_branch import LoraBranch
from ..adapters.weight_delta import ChangedWeights
from ..models.backbone import Backbone
from .injection import InjectedConcept
from .layout import (
    MAX_SUBJECTS,
    Box,
    check_all_have_boxes,
    check_has_place,
    no_such_box,
    too_many,
)
from .prompt_syntax import split_prompt
from .regions import SubjectColumns, all_columns_of

_BEYOND = 1 << 30
"""Of a column: after all that a text encoder reads."""


@dataclass(frozen=True, slots=True)
class PlannedPart:
    """A prediction of a picture with several subjects: its prompt, and the weights it is made with.

    `columns` are the positions of each subject's words in the prompt; `change` are the weights of
    the subject of a number, or the base model's. `branches` are LoRA of subjects by number.
    `control_change` is to a ControlNet what `change` is to the base model, and branches are in
    networks `beside` it, too. Only one that `sees_references` is drawn after any.
    """

    prompt: str
    columns: Sequence[SubjectColumns]
    change: ChangedWeights | None = None
    subject: int | None = None
    branches: Sequence[tuple[int, LoraBranch]] = ()
    control_change: ChangedWeights | None = None
    beside: Sequence[nn.Module] = ()
    sees_references: bool = True


@dataclass(frozen=True, slots=True)
class RegionalPlan:
    """The predictions of a picture with several subjects, the base model's first.

    Each subject has a box, or is where it is in `plain`, a prediction of plain categories; `alike`
    are numbers of subjects that have the same there.
    """

    subjects: Sequence[str]
    parts: Sequence[PlannedPart]
    boxes: Sequence[Box] | None
    plain: PlannedPart | None
    alike: Sequence[Sequence[int]] = ()

    @property
    def prompts(self) -> list[str]:
        """Those of all its predictions."""
        return [part.prompt for part in (*self.parts, self.plain) if part]

    def draws_after(self, part: PlannedPart, subject: str) -> bool:
        """Whether a prediction is drawn after a subject's references.

        The base model's is, unless the subject has a prediction of its own; that of plain
        categories is not, as all places would see them.
        """
        if not part.sees_references:
            return False
        apart = [self.subjects[each.subject] for each in self.parts if each.subject is not None]
        own = None if part.subject is None else self.subjects[part.subject]
        return subject == own or subject not in apart


def plan_regions(
    backbone: Backbone,
    prompt: str,
    concepts: Sequence[InjectedConcept],
    layout: Mapping[str, Box] | str,
    referenced: Mapping[str, str],
) -> RegionalPlan | None:
    """The plan of a prompt as it was written, with concepts that were injected apart.

    `layout` has a box for each subject, or is `auto`: concepts of the prompt, and those that it is
    drawn after, `referenced`, by name, whose category is a word of it; of several of a category
    each has the next such word. A box can also be that of any word, wherever it is. Words are those
    that the prompt has beside its concepts: "dog" is no word of `<rex> in the snow`. None if there
    is one subject and nothing to keep apart. Raises `InvalidInput` for boxes of nothing, and
    concepts without one, or without words.
    """
    by_name = {each.mention.name: each for each in concepts}
    base = {each.mention.text: each.apart for each in concepts}
    text = _Text.of(backbone, prompt, base)
    words = _words_of(backbone, text, {k: v for k, v in referenced.items() if k not in by_name})
    if isinstance(layout, str):
        boxes, subjects = None, _in_order(backbone, text, concepts, words)
        if len(subjects) < 2:
            return None
    else:
        subjects, boxes = list(layout), list(layout.values())
        _check_boxes(subjects, concepts)
        words |= {name: _Word(name) for name in subjects if name not in by_name | words}

    def part(
        phrases: Mapping[str, str],
        change: ChangedWeights | None = None,
        subject: int | None = None,
    ) -> PlannedPart:
        text = _Text.of(backbone, prompt, phrases)
        columns: list[SubjectColumns] = []
        for name in subjects:
            if name in by_name:
                columns.append(text.columns(backbone, by_name[name]))
            else:
                every = text.word_columns(backbone, words[name])
                columns.append(SubjectColumns(every, every))
        return PlannedPart(text.text, columns, change, subject, branches)

    branches = [
        (subjects.index(each.mention.name), each.branch) for each in concepts if each.branch
    ]
    parts = [part(base)]
    for each in concepts:
        if each.weights:
            own = base | {each.mention.text: each.phrase}
            parts.append(part(own, each.weights, subjects.index(each.mention.name)))
    if boxes is not None:
        return RegionalPlan(subjects, parts, boxes, None)
    plain = part(
        {each.mention.text: each.category if each.is_subject else each.phrase for each in concepts}
    )
    kinds = [by_name[name].category if name in by_name else words[name].text for name in subjects]
    alike = [
        [number for number, other in enumerate(kinds) if other == kind]
        for kind in dict.fromkeys(kinds)
        if kinds.count(kind) > 1
    ]
    plain = replace(plain, branches=(), sees_references=False)
    return RegionalPlan(subjects, parts, None, plain, alike)


def _in_order(
    backbone: Backbone,
    text: "_Text",
    concepts: Sequence[InjectedConcept],
    words: Mapping[str, "_Word"],
) -> list[str]:
    """The subjects of a prompt, in its order, what is beyond its end last.

    Raises `InvalidInput` for more than are kept apart.
    """
    found = {
        each.mention.name: text.columns(backbone, each).all for each in concepts if each.is_subject
    }
    found |= {name: text.word_columns(backbone, word) for name, word in words.items()}
    if len(found) > MAX_SUBJECTS:
        raise too_many(len(found))
    return sorted(found, key=lambda name: min(found[name], default=_BEYOND))


def _check_boxes(subjects: Sequence[str], concepts: Sequence[InjectedConcept]) -> None:
    """Raise `InvalidInput` for concepts without a box, and boxes of those that have no place."""
    check_all_have_boxes(subjects, [each.mention.name for each in concepts if each.is_subject])
    for each in concepts:
        if each.mention.name in subjects:
            check_has_place(each.label, bool(each.phrase), each.is_subject)


@dataclass(frozen=True, slots=True)
class _Word:
    """A word of a prompt: the one of a number among all that are the same, or all of them."""

    text: str
    number: int | None = None


def _words_of(backbone: Backbone, text: "_Text", referenced: Mapping[str, str]) -> dict[str, _Word]:
    """The word of each concept that a prompt is drawn after, if it has one for it."""
    taken: Counter[str] = Counter()
    words: dict[str, _Word] = {}
    for name, category in referenced.items():
        if taken[category] < len(text.occurrences(backbone, category)):
            words[name] = _Word(category, taken[category])
            taken[category] += 1
    return words


@dataclass(frozen=True, slots=True)
class _Text:
    """A prompt with phrases in place of mentions, and the positions of these."""

    text: str
    places: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, backbone: Backbone, prompt: str, phrases: Mapping[str, str]) -> "_Text":
        text = ""
        spans: list[tuple[str, int, int]] = []
        for piece in split_prompt(prompt):
            first = len(backbone.tokens_of(text).places)
            text += phrases.get(piece, piece)
            if piece in phrases:
                spans.append((piece, first, len(backbone.tokens_of(text).places)))
        every = backbone.tokens_of(text).places
        places: dict[str, tuple[int, ...]] = {}
        for piece, first, last in spans:
            places[piece] = (*places.get(piece, ()), *every[first:last])
        return cls(text, places)

    def columns(self, backbone: Backbone, concept: InjectedConcept) -> SubjectColumns:
        """The positions of a concept's phrase, wherever it is named.

        Those that a text encoder does not read are left out: such a prompt is refused.
        """
        ids = backbone.tokens_of(self.text).ids
        every = tuple(each for each in self.places[concept.mention.text] if each < len(ids))
        tokens = {backbone.text_encoders[0].id_of(token) for token in concept.tokens}
        own = tuple(column for column in every if ids[column] in tokens)
        return SubjectColumns(own or every, every)

    def word_columns(self, backbone: Backbone, word: _Word) -> tuple[int, ...]:
        """The positions of a word. Raises `InvalidInput` if the prompt does not have it."""
        found = self.occurrences(backbone, word.text)
        if not found:
            raise no_such_box(word.text)
        if word.number is not None:
            return found[word.number]
        return tuple(column for each in found for column in each)

    def occurrences(self, backbone: Backbone, word: str) -> list[tuple[int, ...]]:
        """Where a word of one or several tokens is, beside what concepts are called by."""
        mentioned = {column for columns in self.places.values() for column in columns}
        ids = backbone.tokens_of(self.text).ids
        own = [None if i in mentioned else each for i, each in enumerate(ids)]
        return all_columns_of(own, backbone.text_encoders[0].ids(word, whole=False))

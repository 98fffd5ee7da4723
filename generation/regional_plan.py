"""Plans of pictures with several subjects: which predictions are blended, and by what regions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..adapters.lora_branch import LoraBranch
from ..adapters.weight_delta import ChangedWeights
from ..models.backbone import Backbone
from ..registry.errors import InvalidInput
from .injection import InjectedConcept
from .layout import AUTO, MAX_SUBJECTS, Box, no_such_box
from .prompt_syntax import split_prompt
from .regions import SubjectColumns, columns_of


@dataclass(frozen=True, slots=True)
class PlannedPart:
    """A prediction of a picture with several subjects: its prompt, and the weights it is made with.

    `columns` are the positions of each subject's words in the prompt; `change` are the weights of
    the subject of a number, or the base model's. `branches` are LoRA of subjects by number.
    One that `is_plain` names categories alone.
    """

    prompt: str
    columns: Sequence[SubjectColumns]
    change: ChangedWeights | None = None
    subject: int | None = None
    branches: Sequence[tuple[int, LoraBranch]] = ()
    is_plain: bool = False


@dataclass(frozen=True, slots=True)
class RegionalPlan:
    """The predictions of a picture with several subjects, the base model's first.

    Each subject has a box, or is where it is in `plain`, a prediction of plain categories; `alike`
    are numbers of subjects that have the same there.
    """

    subjects: Sequence[str]
    parts: Sequence[PlannedPart]
    boxes: Sequence[Box] | None
    plain: PlannedPart
    alike: Sequence[Sequence[int]] = ()

    def draws_after(self, part: PlannedPart, subject: str) -> bool:
        """Whether a prediction is drawn after a subject's references.

        The base model's is, unless the subject has a prediction of its own; that of plain
        categories is not, as all places would see them.
        """
        if part.is_plain:
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
    drawn after, `referenced`, by name, whose category is a word of it. A box can also be that of
    any word. None if there is one subject and nothing to keep apart. Raises `InvalidInput` for
    boxes of nothing, and concepts without one.
    """
    names = [each.mention.name for each in concepts if each.is_subject]
    base = {each.mention.text: each.apart for each in concepts}
    words = {
        name: category
        for name, category in referenced.items()
        if name not in names and _has(backbone, _Text.of(backbone, prompt, base), category)
    }
    if layout == AUTO:
        subjects = [*names, *words]
        boxes = None
        if len(subjects) < 2:
            return None
        if len(subjects) > MAX_SUBJECTS:
            raise InvalidInput(
                f"a picture keeps {MAX_SUBJECTS} subjects apart at most, not {len(subjects)}",
                hint="--layout none, or fewer concepts and references",
            )
    else:
        assert not isinstance(layout, str)
        subjects, boxes = list(layout), list(layout.values())
        if missing := [name for name in names if name not in subjects]:
            raise InvalidInput(
                f"the layout has no box for {missing[0]}",
                hint=f'--layout "{missing[0]}=0,.3,.5,1", or --layout auto',
            )
    by_name = {each.mention.name: each for each in concepts}

    def part(
        phrases: Mapping[str, str],
        change: ChangedWeights | None = None,
        subject: int | None = None,
    ) -> PlannedPart:
        text = _Text.of(backbone, prompt, phrases)
        columns = [
            text.columns(backbone, by_name.get(name), words.get(name, name)) for name in subjects
        ]
        return PlannedPart(text.text, columns, change, subject, branches)

    branches = [
        (subjects.index(each.mention.name), each.branch) for each in concepts if each.branch
    ]
    parts = [part(base)]
    for each in concepts:
        if each.weights:
            own = base | {each.mention.text: each.phrase}
            parts.append(part(own, each.weights, subjects.index(each.mention.name)))
    plain = part(
        {each.mention.text: each.category if each.is_subject else each.phrase for each in concepts}
    )
    kinds = [by_name[name].category if name in by_name else words.get(name) for name in subjects]
    alike = [
        [number for number, other in enumerate(kinds) if other == kind]
        for kind in dict.fromkeys(kinds)
        if kind and kinds.count(kind) > 1
    ]
    return RegionalPlan(subjects, parts, boxes, replace(plain, branches=(), is_plain=True), alike)


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

    def columns(
        self, backbone: Backbone, concept: InjectedConcept | None, word: str
    ) -> SubjectColumns:
        """The positions of a concept's phrase, or of a word."""
        encoder = backbone.text_encoders[0]
        ids = backbone.tokens_of(self.text).ids
        if concept is None:
            try:
                columns = columns_of(ids, encoder.ids(word, whole=False), word)
            except InvalidInput:
                raise no_such_box(word) from None
            return SubjectColumns(columns, columns)
        every = self.places[concept.mention.text]
        tokens = {encoder.id_of(token) for token in concept.tokens}
        own = tuple(column for column in every if ids[column] in tokens)
        return SubjectColumns(own or every, every)


def _has(backbone: Backbone, text: _Text, word: str) -> bool:
    try:
        text.columns(backbone, None, word)
    except InvalidInput:
        return False
    return True

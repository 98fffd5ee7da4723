"""Regions of subjects from their attention maps, and how much attention leaks between them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters.prompt_encoding import phrase_of, token_columns
from ..models.backbone import Backbone
from ..registry.documents import shown
from ..registry.errors import InvalidInput
from .injection import InjectedConcept

_LEVEL = 0.4


@dataclass(frozen=True, slots=True)
class SubjectColumns:
    """Token positions of one subject in a prompt.

    `own` are its placeholder tokens, or its phrase's where it has none; `all` has its category's
    too. An imported concept may have neither.
    """

    own: tuple[int, ...]
    all: tuple[int, ...]


def subject_columns(
    backbone: Backbone, prompt: str, subjects: Sequence[InjectedConcept | str]
) -> list[SubjectColumns]:
    """Token positions of each subject (a concept or a plain category) in an expanded prompt.

    Raises `InvalidInput` if a category is not among its words: "dogs" is no "dog".
    """
    encoder = backbone.text_encoders[0]
    ids = backbone.tokens_of(prompt).ids
    found: list[SubjectColumns] = []
    for subject in subjects:
        if isinstance(subject, str) or not subject.tokens:
            word = subject if isinstance(subject, str) else subject.phrase
            columns = columns_of(ids, encoder.ids(word, whole=False), word)
            found.append(SubjectColumns(columns, columns))
            continue
        own = tuple(token_columns(backbone, prompt, subject.tokens))
        category: tuple[int, ...] = ()
        if subject.phrase == phrase_of(subject.tokens, subject.category, names_category=True):
            length = len(encoder.ids(subject.category, whole=False))
            category = tuple(range(own[-1] + 1, own[-1] + 1 + length))
        found.append(SubjectColumns(own, own + category))
    return found


def check_has_words(concepts: Sequence[InjectedConcept]) -> None:
    """Raise `InvalidInput` for a concept that has no words in prompts, and so no attention."""
    for each in concepts:
        if not each.phrase:
            raise InvalidInput(
                f"{each.label} has no words in prompts, whose attention could be told apart",
                hint='concept import FILE --trigger "WORDS"',
            )


def columns_of(ids: Sequence[int], parts: Sequence[int], word: str) -> tuple[int, ...]:
    """Where a word of so many parts first is in a prompt. Raises `InvalidInput` if it is not."""
    found = all_columns_of(ids, parts)
    if not found:
        raise InvalidInput(
            f"the prompt does not have {shown(word)} as a word", hint="as in: a photo of a {}"
        )
    return found[0]


def all_columns_of(ids: Sequence[int | None], parts: Sequence[int]) -> list[tuple[int, ...]]:
    """All places where a word of so many parts is in a prompt; they do not overlap."""
    found: list[tuple[int, ...]] = []
    first = 0
    while parts and first + len(parts) <= len(ids):
        last = first + len(parts)
        if list(ids[first:last]) == list(parts):
            found.append(tuple(range(first, last)))
        first = last if found and found[-1][-1] == last - 1 else first + 1
    return found


def all_columns(subjects: Sequence[SubjectColumns]) -> list[int]:
    """The token positions of all subjects, sorted."""
    return sorted({column for each in subjects for column in each.all})


def by_subject(maps: Tensor, subjects: Sequence[SubjectColumns]) -> Tensor:
    """Maps (…, T, h, w) of `all_columns` to (…, S, 2, h, w).

    For each subject, the mean over `all` of its tokens, and over its `own`.
    """
    columns = all_columns(subjects)
    return torch.stack(
        [
            torch.stack(
                [
                    maps[..., [columns.index(column) for column in chosen], :, :].mean(-3)
                    for chosen in (each.all, each.own)
                ],
                -3,
            )
            for each in subjects
        ],
        -4,
    )


def region(attention: Tensor, level: float = _LEVEL) -> Tensor:
    """Mask (…, h, w), bool: where a map is above a level, from its minimum to its maximum."""
    low, high = attention.amin((-2, -1), keepdim=True), attention.amax((-2, -1), keepdim=True)
    return (attention - low) > level * (high - low)


def share_inside(attention: Tensor, inside: Tensor) -> float:
    """The share of a map (h, w) that falls on a region (h, w)."""
    return float((attention * inside).sum() / attention.sum().clamp(min=1e-12))


def leak(maps: Tensor, regions: Tensor, of: int, on: Sequence[int]) -> float:
    """Attention leak: the share of a subject's own map that falls on others' regions.

    `maps` (S, 2, h, w) are those of `by_subject`, `regions` (S, h, w) those of the `all` maps.
    Where two subjects share a region, all their attention leaks.
    """
    return share_inside(maps[of, 1], regions[list(on)].any(0))

"""Prompts whose words have weights, and that may be longer than a text encoder reads at once.

As in A1111's web UI: (words) count 1.1 times, [words] 1 / 1.1 times, (words:1.3) 1.3 times, nested
ones multiply; a backslash makes a bracket a bracket. A longer prompt is encoded in chunks, each
with its own start and end, and BREAK begins one; their states stand one after the other. Words'
states are multiplied by their weights, and a chunk's brought back to the mean that they had.

The position of each token in these states is known here, which attention maps and regions need.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ..registry.documents import shown
from ..registry.errors import InvalidInput

_T = TypeVar("_T")
_LIGHT = 1.1
_BACK_TO_COMMA = 20
"""Tokens: a chunk ends after a comma where one is so near its end."""
_AFTER_TOKENS = 3
"""Words that are not parted from placeholder tokens before them: their category's."""
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_MARKS = re.compile(
    r"\\[\\()\[\]]|:\s*+([+-]?(?:\d++(?:\.\d++)?+|\.\d++))\s*+\)|[()\[\]]|[^\\()\[\]:]+|[:\\]"
)
_LEAST_MEAN = 1e-3
"""Of the mean of absolute values."""
_PLACEHOLDER = re.compile(r"<[^<>\s]*#\d+[^<>\s]*>")


class Encoder(Protocol):
    """The part of a `TextEncoder` that is needed here."""

    @property
    def tokenizer(self) -> Any:
        """That of the transformers library."""
        ...

    def ids(self, text: str, *, whole: bool = True) -> list[int]:
        """Token ids of a text."""
        ...


@dataclass(frozen=True, slots=True)
class WeightedText:
    """A part of a prompt and how much it counts; None for BREAK."""

    text: str | None
    weight: float = 1.0


def parse_weights(prompt: str) -> list[WeightedText]:
    """The parts of a prompt. Brackets without a partner count to its end, or are plain."""
    parts: list[tuple[str | None, float]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def multiply(first: int, weight: float) -> None:
        parts[first:] = [(text, before * weight) for text, before in parts[first:]]

    for match in _MARKS.finditer(prompt):
        mark = match[0]
        if mark.startswith("\\") and len(mark) > 1:
            parts.append((mark[1:], 1.0))
        elif mark in opened:
            opened[mark].append(len(parts))
        elif match[1] is not None and opened["("]:
            multiply(opened["("].pop(), float(match[1]))
        elif mark == ")" and opened["("]:
            multiply(opened["("].pop(), _LIGHT)
        elif mark == "]" and opened["["]:
            multiply(opened["["].pop(), 1 / _LIGHT)
        else:
            for i, text in enumerate(_BREAK.split(mark)):
                parts += [*([(None, 1.0)] if i else []), (text, 1.0)]
    for first in opened["("]:
        multiply(first, _LIGHT)
    for first in opened["["]:
        multiply(first, 1 / _LIGHT)
    return [WeightedText(text, 1.0 if text is None else weight) for text, weight in parts]


@dataclass(slots=True)
class _Chunk:
    """Words that are encoded together, with the ids and the weight of each."""

    words: list[tuple[str, list[int], float]] = field(default_factory=list)

    @property
    def length(self) -> int:
        return sum(len(ids) for _, ids, _ in self.words)

    @property
    def text(self) -> str:
        return " ".join(word for word, _, _ in self.words)

    def weights(self, length: int) -> list[float]:
        own = [weight for _, ids, weight in self.words for _ in ids]
        return [1.0, *own, *[1.0] * (length - 1 - len(own))]

    def split(self) -> "tuple[_Chunk, _Chunk]":
        """What ends with its last comma, if that is near its end, and the rest."""
        after = 0
        for number in range(len(self.words), 0, -1):
            word, ids, _ = self.words[number - 1]
            if word.endswith(","):
                return _Chunk(self.words[:number]), _Chunk(self.words[number:])
            after += len(ids)
            if after > _BACK_TO_COMMA:
                break
        return self, _Chunk()


def _chunks(encoder: Encoder, prompt: str) -> list[_Chunk]:
    """A prompt in chunks of as many tokens as the text encoder reads. Raises `InvalidInput`."""
    room = encoder.tokenizer.model_max_length - 2
    done: list[_Chunk] = []
    now = _Chunk()
    for group in _groups(parse_weights(prompt)):
        if group is None:
            done, now = [*done, now], _Chunk()
            continue
        words = [(word, encoder.ids(word, whole=False), weight) for word, weight in group]
        length = sum(len(ids) for _, ids, _ in words)
        if length > room:
            raise InvalidInput(
                f"{shown(words[0][0])} has {length} tokens; the text encoder reads {room} at once"
            )
        if now.length + length > room:
            before, now = now.split()
            done.append(before)
            if now.length + length > room:
                done, now = [*done, now], _Chunk()
        now.words += words
    return [*done, now]


def _groups(parts: Sequence[WeightedText]) -> Iterator[list[tuple[str, float]] | None]:
    """Words, which are not parted: placeholder tokens and what follows them; None for BREAK."""
    group: list[tuple[str, float]] = []
    left = 0
    for part in parts:
        if part.text is None:
            yield from ([group] if group else [])
            yield None
            group, left = [], 0
            continue
        for word in part.text.split():
            is_token = _PLACEHOLDER.search(word) is not None
            if group and not left:
                yield group
                group = []
            group.append((word, part.weight))
            left = _AFTER_TOKENS if is_token else max(0, left - 1)
    if group:
        yield group


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """The token ids of a prompt as its text states stand, and the positions of its own tokens."""

    ids: list[int]
    places: Sequence[int]


def tokens_in_chunks(encoder: Encoder, prompt: str) -> PromptTokens:
    """Those of a prompt with weights. Raises `InvalidInput` for a word that is too long."""
    length = encoder.tokenizer.model_max_length
    ids: list[int] = []
    places: list[int] = []
    for number, chunk in enumerate(_chunks(encoder, prompt)):
        own = [each for _, word, _ in chunk.words for each in word]
        places += range(number * length + 1, number * length + 1 + len(own))
        end = encoder.tokenizer.eos_token_id
        ids += [encoder.tokenizer.bos_token_id, *own, *[end] * (length - 1 - len(own))]
    return PromptTokens(ids, places)


def encode_weighted(
    encoder: Encoder,
    encode: Callable[[Sequence[str], Sequence[str] | None, bool], _T],
    prompts: Sequence[str],
    negatives: Sequence[str] | None,
    is_guided: bool,
) -> _T:
    """Text states (B, n · 77, d) of prompts with weights in up to n chunks, by a plain `encode`.

    It is an `EncodeTexts`. Pooled states are those of the first chunk, without weights.
    """
    own = [_chunks(encoder, each) for each in prompts]
    other = None if negatives is None else [_chunks(encoder, each) for each in negatives]
    count = max(len(each) for each in [*own, *(other or [])])
    length = encoder.tokenizer.model_max_length

    def texts(chunks: list[list[_Chunk]]) -> list[str]:
        return [each.text for row in chunks for each in _padded(row, count)]

    found: Any = encode(texts(own), texts(other) if other else None, is_guided)

    def weighted(states: Tensor, chunks: list[list[_Chunk]] | None) -> Tensor:
        """States (B · n, 77, d) as (B, n · 77, d)."""
        if chunks is not None:
            rows = [each.weights(length) for row in chunks for each in _padded(row, count)]
            states = _weighed(states, torch.tensor(rows).to(states))
        return states.unflatten(0, (-1, count)).flatten(1, 2)

    def first(pooled: Tensor | None) -> Tensor | None:
        return None if pooled is None else pooled.unflatten(0, (-1, count))[:, 0]

    negative = None if found.negative is None else weighted(found.negative, other)
    return replace(
        found,
        states=weighted(found.states, own),
        negative=negative,
        pooled=first(found.pooled),
        negative_pooled=first(found.negative_pooled),
    )


def _padded(chunks: list[_Chunk], count: int) -> list[_Chunk]:
    return [*chunks, *[_Chunk() for _ in range(count - len(chunks))]]


def _weighed(states: Tensor, weights: Tensor) -> Tensor:
    """States (R, 77, d) times weights (R, 77), with the means of rows that they had.

    Not where these are next to nothing, as of some text encoders: they say nothing.
    """
    heavy = states * weights[..., None]
    before, after = (each.float().mean((1, 2)) for each in (states, heavy))
    least = _LEAST_MEAN * heavy.float().abs().mean((1, 2))
    is_scaled = (weights != 1).any(1) & (torch.minimum(before.abs(), after.abs()) > least)
    ratio = torch.where(is_scaled, before / torch.where(is_scaled, after, 1.0), 1.0)
    return heavy * ratio.to(states.dtype)[:, None, None]

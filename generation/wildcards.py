"""Wildcards in prompts, written as in dynamic prompts: `{a|b}`, `{2$$a|b|c}`, `__places__`.

What is written may come from strangers: how much it stands for is known before any of it is made.
"""

import math
import os
import random
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path

from ..registry.documents import read_text, shown
from ..registry.errors import InvalidInput, NotFound

MAX_EXPANSIONS = 10_000
_MAX_SIZE = 10_000
"""Characters of a prompt, and pieces that it is made of."""
_MAX_DEPTH = 16
_MAX_PICKED = 100
"""Options of a choice of several."""
_MAX_OPTIONS = 100_000
"""Lines of a file."""
_HINT = "{a|b}, {2$$a|b|c} or __places__"
_TOKEN = re.compile(r"[{}|]|__(?P<name>[^\s_{}|](?:[^\s{}|]*?[^\s_{}|])?)__")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]|_(?!_))*")
_BOUNDS = re.compile(
    r"(?P<low>\d{0,4})(?P<dash>-?)(?P<high>\d{0,4})\$\$(?:(?P<joint>[^{}|$]*)\$\$)?"
)
_WEIGHT = re.compile(r"\s*(\d{1,6}(?:\.\d{1,6})?)::")


@dataclass(frozen=True, slots=True)
class Expansion:
    """A prompt that wildcards stand for, and what was chosen for them, in order."""

    text: str
    chosen: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pattern:
    """A text with choices in it.

    `count` is how many texts it stands for, or more than `MAX_EXPANSIONS`; `size` the most pieces
    and characters of one.
    """

    parts: tuple["str | Choice", ...]
    count: int
    size: int

    @classmethod
    def of(cls, parts: Sequence["str | Choice"]) -> "Pattern":
        """A pattern within bounds. Raises `InvalidInput`."""
        count = math.prod(1 if isinstance(each, str) else each.count for each in parts)
        size = 1 + sum(len(each) if isinstance(each, str) else each.size for each in parts)
        if size > _MAX_SIZE:
            raise InvalidInput(
                f"wildcards make a prompt of more than {_MAX_SIZE:,} characters", hint="fewer"
            )
        return cls(tuple(parts), min(count, MAX_EXPANSIONS + 1), size)

    @property
    def has_weights(self) -> bool:
        """Whether an option is to be chosen more often than another."""
        choices = [each for each in self.parts if not isinstance(each, str)]
        return any(each.has_weights for each in choices)

    def every(self) -> Iterator[Expansion]:
        """Each text once, the last choice changing first; call it if there are not too many."""
        ways = [
            [Expansion(each)] if isinstance(each, str) else list(each.every())
            for each in self.parts
        ]
        return map(_joined, product(*ways))

    def one(self, rng: random.Random) -> Expansion:
        """One of the texts."""
        parts = self.parts
        return _joined([Expansion(x) if isinstance(x, str) else x.one(rng) for x in parts])


@dataclass(frozen=True, slots=True)
class Choice:
    """`low` to `high` of some options, in their order, with `joint` between them."""

    options: tuple[Pattern, ...]
    weights: tuple[float, ...]
    low: int
    high: int
    joint: str
    count: int
    size: int
    has_weights: bool

    @classmethod
    def of(
        cls,
        options: Sequence[Pattern],
        weights: Sequence[float],
        low: int = 1,
        high: int = 1,
        joint: str = ", ",
    ) -> "Choice":
        """A choice. Raises `InvalidInput` for bounds that cannot be."""
        if not 0 <= low <= high <= len(options):
            raise InvalidInput(
                f"{{{low}-{high}$$…}} chooses among {len(options)}: from 0 to as many as there are",
                hint=_HINT,
            )
        if not sum(weights):
            raise InvalidInput("all options of a wildcard have the weight 0", hint="{2::a|b}")
        if high > 1 and len(options) > _MAX_PICKED:
            raise InvalidInput(
                f"several are chosen among {len(options):,}: at most {_MAX_PICKED}", hint=_HINT
            )
        of_size = [1, *[0] * high]  # ways to choose so many, of the options so far
        for each in options:
            for k in range(high, 0, -1):
                of_size[k] = min(of_size[k] + of_size[k - 1] * each.count, MAX_EXPANSIONS + 1)
        largest = max((each.size for each in options), default=0)
        weighted = len(set(weights)) > 1 or any(each.has_weights for each in options)
        return cls(
            tuple(options),
            tuple(weights),
            low,
            high,
            joint,
            min(sum(of_size[low:]), MAX_EXPANSIONS + 1),
            1 + high * (largest + len(joint)),
            weighted,
        )

    def every(self) -> Iterator[Expansion]:
        """Each choice once."""
        for count in range(self.low, self.high + 1):
            for several in combinations(self.options, count):
                for found in product(*(list(each.every()) for each in several)):
                    yield self._made(found)

    def one(self, rng: random.Random) -> Expansion:
        """One choice; options with larger weights more often."""
        left = [i for i, weight in enumerate(self.weights) if weight]
        picked: list[int] = []
        for _ in range(min(rng.randint(self.low, self.high), len(left))):
            (i,) = rng.choices(left, [self.weights[each] for each in left])
            left.remove(i)
            picked.append(i)
        return self._made([self.options[i].one(rng) for i in sorted(picked)])

    def _made(self, found: Sequence[Expansion]) -> Expansion:
        text = self.joint.join(each.text for each in found)
        return Expansion(text, (text,))


def names_in(pattern: Pattern, names: Collection[str]) -> frozenset[str]:
    """Those of some names that texts of a pattern have in brackets: `<rex>`, `<rex@2>`, `<rex:1>`.

    However many texts there are: none of them is made.
    """
    reader = _NameReader(names)
    reader.read(pattern, frozenset([""]))
    return frozenset(reader.found)


class _NameReader:
    """Reads all texts of a pattern at once, from left to right.

    What was read is known by its ends that may begin a name's brackets, such as `<re`, else empty.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._mentions = {f"<{name}{end}": name for name in names for end in "@:>"}
        self._after: dict[tuple[int, frozenset[str]], frozenset[str]] = {}
        self.found = set[str]()

    def read(self, pattern: Pattern, ends: frozenset[str]) -> frozenset[str]:
        """The ends after a pattern, by those before it."""
        for part in pattern.parts:
            ends = self._text(part, ends) if isinstance(part, str) else self._choice(part, ends)
        return ends

    def _text(self, text: str, ends: frozenset[str]) -> frozenset[str]:
        after = set[str]()
        for end in ends:
            read = end + text
            last = read[read.rfind("<") :] if "<" in read else ""
            if last:
                self.found.update(name for each, name in self._mentions.items() if each in read)
            after.add(last if any(each.startswith(last) for each in self._mentions) else "")
        return frozenset(after)

    def _choice(self, choice: Choice, ends: frozenset[str]) -> frozenset[str]:
        key = (id(choice), ends)
        if key not in self._after:
            of_count = [ends, *[frozenset[str]()] * choice.high]  # after so many options
            for option in choice.options:
                for k in range(choice.high, 0, -1):
                    if before := of_count[k - 1]:
                        before = self._text(choice.joint, before) if k > 1 else before
                        of_count[k] |= self.read(option, before)
            self._after[key] = frozenset[str]().union(*of_count[choice.low :])
        return self._after[key]


class Wildcards:
    """Reads wildcards; `folder` has a text file for each `__name__`, a line for each option."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._files: dict[str, Choice] = {}

    def parse(self, text: str) -> Pattern:
        """A prompt with its wildcards. Raises `InvalidInput`, and `NotFound` without a file."""
        return _Reader(self, text, ()).whole()

    def choice(self, name: str, inside: tuple[str, ...]) -> Choice:
        """The options of a file; `inside` are the names of those that it is read for."""
        if not _NAME.fullmatch(name):
            raise InvalidInput(
                f"{shown(name)} is no name of a wildcard: letters, digits, - and _",
                hint="__places__ for places.txt",
            )
        if name in inside:
            raise InvalidInput(f"the wildcard {name} stands for itself", hint=_HINT)
        if len(inside) >= _MAX_DEPTH:
            raise InvalidInput(f"wildcards are nested deeper than {_MAX_DEPTH}", hint=_HINT)
        if name not in self._files:
            self._files[name] = self._read(name, (*inside, name))
        return self._files[name]

    def _read(self, name: str, inside: tuple[str, ...]) -> Choice:
        if self._folder is None:
            raise NotFound(f"there is no wildcard {name}", hint="wildcards: FOLDER, with its file")
        path = self._folder / f"{name}.txt"
        if os.path.islink(path):
            raise InvalidInput(f"{path} is a link, which is not followed", hint="copy the file")
        lines = [line.strip() for line in read_text(path).splitlines()]
        if len(lines) > _MAX_OPTIONS:
            raise InvalidInput(f"{path} has more than {_MAX_OPTIONS:,} lines", hint="fewer")
        options, weights = list[Pattern](), list[float]()
        for number, line in enumerate(lines, 1):
            if line and not line.startswith("#"):
                weight, rest = _weighted(line)
                try:
                    options.append(_Reader(self, rest, inside).whole())
                except InvalidInput as error:
                    place = f"{path.name}, line {number}"
                    raise InvalidInput(f"{place}: {error.message}", hint=error.hint) from None
                weights.append(weight)
        if not options:
            raise InvalidInput(f"{path} has no lines to choose from", hint="an option per line")
        return Choice.of(options, weights)


class _Reader:
    """Reads one text, from left to right."""

    def __init__(self, wildcards: Wildcards, text: str, inside: tuple[str, ...]) -> None:
        self._wildcards, self._text, self._inside = wildcards, text, inside
        self._at = 0

    def whole(self) -> Pattern:
        found = self._pattern(0)
        if self._at < len(self._text):
            raise InvalidInput('a "{" is missing before "}"', hint=_HINT)
        return found

    def _pattern(self, depth: int) -> Pattern:
        """What is before the end, or inside braces before their next part."""
        parts = list[str | Choice]()
        while match := _TOKEN.search(self._text, self._at):
            mark = match[0]
            if mark == "}" or (mark == "|" and depth):
                break
            if before := self._text[self._at : match.start()]:
                parts.append(before)
            self._at = match.end()
            if mark == "{":
                parts.append(self._choice(depth + 1))
            else:
                name = match["name"]
                parts.append(self._wildcards.choice(name, self._inside) if name else mark)
        end = match.start() if match else len(self._text)
        if rest := self._text[self._at : end]:
            parts.append(rest)
        self._at = end
        return Pattern.of(parts)

    def _choice(self, depth: int) -> Choice:
        if depth > _MAX_DEPTH:
            raise InvalidInput(f"wildcards are nested deeper than {_MAX_DEPTH}", hint=_HINT)
        bounds = _BOUNDS.match(self._text, self._at)
        self._at = bounds.end() if bounds else self._at
        options, weights = list[Pattern](), list[float]()
        while True:
            weight, self._at = _weight_at(self._text, self._at)
            options.append(self._pattern(depth))
            weights.append(weight)
            if self._at >= len(self._text):
                raise InvalidInput('a "}" is missing', hint=_HINT)
            self._at += 1
            if self._text[self._at - 1] == "}":
                break
        if bounds is None:
            return Choice.of(options, weights)
        if len(options) == 1 and len(options[0].parts) == 1:  # {2$$__places__}: two of its lines
            (only,) = options[0].parts
            if isinstance(only, Choice) and (only.low, only.high) == (1, 1):
                options, weights = only.options, only.weights
        low, high = _numbers(bounds, len(options))
        joint = ", " if bounds["joint"] is None else bounds["joint"]
        return Choice.of(options, weights, low, high, joint)


def _numbers(bounds: re.Match[str], count: int) -> tuple[int, int]:
    """`2`, `1-3`, `-3` or `1-` as the least and the most."""
    low = int(bounds["low"] or 0 if bounds["dash"] else bounds["low"] or 1)
    return low, int(bounds["high"] or count) if bounds["dash"] else low


def _weight_at(text: str, at: int) -> tuple[float, int]:
    match = _WEIGHT.match(text, at)
    return (float(match[1]), match.end()) if match else (1.0, at)


def _weighted(line: str) -> tuple[float, str]:
    weight, at = _weight_at(line, 0)
    return weight, line[at:]


def _joined(found: Sequence[Expansion]) -> Expansion:
    text = "".join(each.text for each in found)
    return Expansion(text, tuple(word for each in found for word in each.chosen))

"""Prompt syntax of other tools, which has no meaning here: what to write instead."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from .prompt_syntax import MAX_STRENGTH


@dataclass(frozen=True, slots=True)
class OtherToolSyntax:
    """A piece of a prompt in another tool's syntax, and what to write instead."""

    text: str
    advice: str

    def __str__(self) -> str:
        """The warning to print."""
        return f'"{self.text}" is drawn as plain words: {self.advice}'


_Advice = Callable[[re.Match[str], frozenset[str]], str | None]
"""(match, names of all concepts) -> advice; None if the match is ordinary text."""

_QUOTED = re.compile(r'"[^"]*"|“[^“”]*”')
_MENTION = re.compile(r"<[^<>]*>")
_MOST = 50
"""Pieces of a prompt that are told: no person reads more."""
_SCRIPTS = "the scenes of a script, concept generate --prompts FILE"
_PLACES = "concept generate --prompts takes .csv, .yaml and .jsonl"


def _weight(match: re.Match[str], names: frozenset[str]) -> str | None:
    inside, weight = match["inside"].strip(), match["weight"]
    if "." not in weight and not inside[-1:].isalpha():
        return None  # (16:9), (at 12:30)
    name = inside.strip("<>()[] ").lower()
    if name in names:
        return f"write <{name}:{min(float(weight), MAX_STRENGTH):g}>"
    return "words have no weights without --prompt-weights; a concept has a strength: <NAME:0.8>"


def _always(advice: str) -> _Advice:
    return lambda _match, _names: advice


_SWITCHES = {
    ("n", "no"): "--negative",
    ("w", "h", "ar", "aspect"): "--size 768x512",
    ("d", "seed"): "--seed",
    ("l", "cfg"): "--guidance",
    ("s", "steps"): "--steps",
    ("q", "v", "niji", "stylize", "chaos", "style", "tile", "iw", "am", "g"): "",
}


def _switch(match: re.Match[str], _names: frozenset[str]) -> str:
    own = next(option for words, option in _SWITCHES.items() if match["switch"] in words)
    what = f"write {own}, outside the prompt" if own else "leave it out"
    return f"{what}, or give it a column of its own; {_PLACES}" if own else what


_KNOWN = "|".join(word for words in _SWITCHES for word in words)
_PATTERNS: Sequence[tuple[re.Pattern[str], _Advice]] = (
    (re.compile(r"\((?P<inside>[^():]++):\s*+(?P<weight>\d++(?:\.\d++)?+|\.\d++)\s*+\)"), _weight),
    (
        re.compile(
            r"\[(?:(?![\[\]])[\W\d])*+[^\W\d][^\[\]:]*+:[^\[\]]*+(?<=\d)\]"
            r"|\[[^\[\]:]*+:(?:[^\[\]:]*+:)++\s*+\d*+\.?+\d*+(?<=\d)\]"
        ),
        _always("prompts do not change on the way; write what is wanted in the end"),
    ),
    (
        re.compile(r"\[[^\[\]|]*+\|[^\[\]]*+\]"),
        _always("prompts do not change on the way; write one of them"),
    ),
    (
        re.compile(r"\(\([^()]++\)\)|\)\d++\.\d+|\)\+|\)\.(?:and|blend|swap)\("),
        _always("words have no weights without --prompt-weights; leave the brackets out"),
    ),
    (re.compile(r"\\[()]"), _always("brackets need no backslash without --prompt-weights")),
    (
        re.compile(r"(?<!\w)\w++::\s*-?\d*\.?\d*"),
        _always("words have no weights; leave the colons out"),
    ),
    (
        re.compile(r"\{[^{}|]*+\|[^{}]*+\}"),
        _always(f"choices are for {_SCRIPTS}"),
    ),
    (
        re.compile(r"\{[^{}|]*\}"),
        _always("braces mean nothing; a concept is <NAME>"),
    ),
    (
        re.compile(r"(?<!\w)__[\w/*-]{0,100}\w__(?!\w)"),
        _always(f"places are for {_SCRIPTS}"),
    ),
    (
        re.compile(r"\bembedding:\s*(?P<name>[\w./-]+)"),
        lambda match, names: (
            f"write <{match['name'].lower()}>"
            if match["name"].lower() in names
            else "a concept is <NAME>; concept list says which there are"
        ),
    ),
    (
        re.compile(rf"(?:(?<=\s)|^)--(?P<switch>{_KNOWN})(?=\s|$)(?:\s+[^\s-]\S*)?"),
        _switch,
    ),
)
_OF_WEIGHTS = [_PATTERNS[i][0] for i in (0, 3, 4)]
"""What means something in prompts with weights."""
_CAPITALS: Sequence[tuple[re.Pattern[str], str]] = (
    (
        re.compile(r"\bBREAK\b"),
        "prompts are not cut in parts without --prompt-weights; leave it out",
    ),
    (re.compile(r"\bAND\b"), "prompts are not added up; write and"),
)
_RARE = re.compile(r"\b(?:sks|ohwx)\b")


def _advised(
    prompt: str, names: frozenset[str], has_weights: bool
) -> Iterator[tuple[re.Match[str], str]]:
    for pattern, advise in _PATTERNS:
        if has_weights and pattern in _OF_WEIGHTS:
            continue
        for match in pattern.finditer(prompt):
            if advice := advise(match, names):
                yield match, advice


def find_other_tool_syntax(
    prompt: str,
    names: Iterable[str] = (),
    *,
    is_category: Callable[[str], bool] = lambda _word: False,
    has_weights: bool = False,
) -> Iterator[OtherToolSyntax]:
    """Other tools' syntax in a prompt, and concepts without brackets; `names` are all concepts'.

    A name that is also some concept's category counts as an ordinary word. With `has_weights`,
    weights and BREAK mean something.
    """
    plain = _MENTION.sub(lambda match: " " * len(match[0]), prompt)
    known = frozenset(names)
    reported: list[tuple[int, int]] = []
    for match, advice in _advised(prompt, known, has_weights):
        start, end = match.span()
        if not any(start < last and end > first for first, last in reported):
            reported.append((start, end))
            yield OtherToolSyntax(match[0].strip(), advice)
        if len(reported) == _MOST:
            return
    if plain != plain.upper():
        unquoted = _QUOTED.sub("", plain)
        for pattern, advice in _CAPITALS[1 if has_weights else 0 :]:
            if pattern.search(unquoted):
                yield OtherToolSyntax(pattern.pattern.strip("\\b"), advice)
    if match := _RARE.search(plain):
        yield OtherToolSyntax(match[0], "a concept is <NAME>; concept list says which there are")
    for match in re.finditer(r"(?<![\w<:@-])[a-z0-9][a-z0-9_-]*(?![\w>-])", plain.lower()):
        if match[0] not in known or len(match[0]) <= 2 or f"<{match[0]}" in prompt:
            continue
        is_reported = any(first <= match.start() < last for first, last in reported)
        if not is_reported and not is_category(match[0]):
            yield OtherToolSyntax(
                prompt[match.start() : match.end()], f"the concept is <{match[0]}>"
            )

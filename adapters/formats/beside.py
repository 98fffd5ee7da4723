"""What collections say of a file in files beside it: trigger words, base model, notes, a picture.

`name.civitai.info`, `name.metadata.json` and `name.json` are read within bounds; of what they say
nothing becomes a path.
"""

import html
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...registry.documents import parse_json, read_text
from ...registry.errors import ConceptryError
from ...registry.names import plain_text, printable

_DOCUMENTS = (".civitai.info", ".metadata.json", ".json")
_PICTURES = tuple(
    f"{kind}{suffix}" for kind in (".preview", "") for suffix in (".png", ".jpg", ".jpeg", ".webp")
)
_MARKUP = re.compile(r"<[^<>]*>")
_MAX_WORDS = 100
_MAX_WORD = 1_000
_MAX_NOTES = 2_000
_MAX_WEIGHT = 4
"""The highest strength in a prompt."""


@dataclass(frozen=True, slots=True)
class Beside:
    """What stands beside a file; texts are plain, and empty if nothing says it.

    `weight` is the strength that its author prefers.
    """

    trigger_words: tuple[str, ...] = ()
    base: str = ""
    weight: float | None = None
    notes: str = ""
    preview: Path | None = None
    unread: tuple[str, ...] = ()
    """Names of files that could not be read."""


def read_beside(path: Path) -> Beside:
    """What collections say of a file."""
    said: list[Mapping[str, object]] = []
    unread: list[str] = []
    for ending in _DOCUMENTS:
        document = path.with_name(path.stem + ending)
        if not is_plain_file(document):
            continue
        try:
            found = parse_json(read_text(document))
        except ConceptryError:
            unread.append(document.name)
            continue
        if isinstance(found, dict):
            said += [found, *_inner(found, "civitai"), *_inner(found, "model")]
    return Beside(
        tuple(dict.fromkeys(word for each in said for word in _trigger_words(each)))[:_MAX_WORDS],
        next((text for each in said if (text := _base(each))), ""),
        next(
            (x for each in said if (x := _weight(each.get("preferred weight"))) is not None), None
        ),
        next((text for each in said if (text := _notes(each))), ""),
        next((each for each in _pictures(path) if is_plain_file(each)), None),
        tuple(unread),
    )


def trigger_word(text: object) -> str:
    """A text as a line that can stand in a prompt; empty if it is none."""
    if not isinstance(text, str):
        return ""
    line = printable(" ".join(plain_text(text).split()))
    return line.replace("<", "").replace(">", "").strip(" ,")[:_MAX_WORD]


def is_plain_file(path: Path) -> bool:
    """Whether there is a regular file; a link is none."""
    return os.path.isfile(path) and not os.path.islink(path)


def _inner(document: Mapping[str, object], key: str) -> Iterator[Mapping[str, object]]:
    if isinstance(found := document.get(key), dict):
        yield found


def _trigger_words(document: Mapping[str, object]) -> Iterator[str]:
    words = document.get("trainedWords")
    for each in [document.get("activation text"), *(words if isinstance(words, list) else [])]:
        if word := trigger_word(each):
            yield word


def _base(document: Mapping[str, object]) -> str:
    for key in ("baseModel", "base_model", "sd version"):
        if isinstance(said := document.get(key), str) and said.strip():
            return printable(said.strip())[:60]
    return ""


def _weight(said: object) -> float | None:
    match said:
        case int() | float() if not isinstance(said, bool) and 0 < said <= _MAX_WEIGHT:
            return float(said)
        case _:
            return None


def _notes(document: Mapping[str, object]) -> str:
    for key in ("notes", "description", "modelDescription"):
        if isinstance(said := document.get(key), str) and said.strip():
            text = html.unescape(_MARKUP.sub(" ", said[: 4 * _MAX_NOTES]))
            return plain_text(" ".join(text.split())[:_MAX_NOTES])
    return ""


def _pictures(path: Path) -> list[Path]:
    return [path.with_name(path.stem + ending) for ending in _PICTURES]

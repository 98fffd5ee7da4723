"""Files of prompts, each with settings of its own: text, YAML, CSV or JSON lines."""

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from ..registry.documents import MAX_NUMBER, parse_json, parse_yaml, read_text
from ..registry.errors import InvalidInput
from ..registry.validation import Form, validated
from .request import Request, SamplingSettings

MAX_PICTURES = 10_000
_MAX_SIZE = 20  # characters
_SEPARATORS = (",", ";", "\t")

Entry = tuple[str, Mapping[str, object]]
"""Where something stands in a file, and what it says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptDefaults:
    """What holds where a prompt does not say otherwise: `n` pictures, seeds from `seed` on."""

    n: int
    seed: int
    settings: SamplingSettings


def read_prompts(path: Path, defaults: PromptDefaults) -> list[Request]:
    """The prompts of a file: `.txt`, one a line, `.yaml`, `.csv` with headings, or `.jsonl`.

    Lines of text that are empty or begin with # are left out. An entry of the others has a
    `prompt` and may have any of `n`, `seed`, `steps`, `guidance`, `negative`, `scheduler` and
    `size`. A CSV file's cells are parted as its headings are, by commas, semicolons or tabs.
    Raises `NotFound` and, naming the line, `InvalidInput`.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InvalidInput(f"{path} is not a file of prompts by its name", hint=", ".join(_READERS))
    text = read_text(path)
    try:
        entries = list(reader(text))
    except InvalidInput as error:
        raise InvalidInput(f"{path}, {error.message}") from None
    requests = [_request(f"{path}, {place}", entry, defaults) for place, entry in entries]
    if not requests:
        raise InvalidInput(f"{path} has no prompts")
    return requests


def make_request(prompt: str, defaults: PromptDefaults) -> Request:
    """A prompt as the defaults have it."""
    seeds = range(defaults.seed, defaults.seed + defaults.n)
    return Request(prompt=prompt, seeds=seeds, settings=defaults.settings)


def parse_size(text: str) -> tuple[int, int]:
    """`512` or `768x512` as (width, height). Raises `InvalidInput`."""
    width, _, height = text.lower().partition("x")
    height = height or width
    if not (width.isdecimal() and height.isdecimal() and len(text) <= _MAX_SIZE):
        raise InvalidInput(f"{text[:40]!r} is not a size", hint="512 or 768x512")
    return int(width), int(height)


def _number(value: object) -> object:
    """What a text says of a number; a truth value says nothing of one."""
    if isinstance(value, bool):
        raise PydanticCustomError("no_number", "no number")
    if isinstance(value, str) and len(value) <= MAX_NUMBER:
        for kind in (int, float):
            with suppress(ValueError):
                return kind(value)
    return value


def _size(value: object) -> object:
    with suppress(InvalidInput):
        return parse_size(str(value)) if isinstance(value, (str, int)) else value
    return value


_AS_NUMBER = BeforeValidator(_number)
_Whole = Annotated[int, Field(strict=False), _AS_NUMBER]
_Count = Annotated[int, Field(strict=False, ge=1, le=MAX_PICTURES), _AS_NUMBER]
_Number = Annotated[float, Field(strict=False, examples=["2.5, with a point"]), _AS_NUMBER]
_Size = Annotated[tuple[int, int], Field(description="512 or 768x512"), BeforeValidator(_size)]


class _Entry(Form):
    """A prompt, and what of its own it has; cells of a CSV file are texts."""

    prompt: str
    n: _Count | None = None
    seed: _Whole | None = None
    steps: _Whole | None = None
    guidance: _Number | None = None
    negative: str | None = None
    scheduler: str | None = None
    size: _Size | None = None


def _request(place: str, entry: Mapping[str, object], defaults: PromptDefaults) -> Request:
    given = {key: value for key, value in entry.items() if value not in (None, "")}
    own = validated(_Entry, given, at=place, noun="setting").model_dump(exclude_unset=True)
    prompt = own.pop("prompt")
    counts = {key: own.pop(key) for key in ("n", "seed") if key in own}
    try:
        settings = replace(defaults.settings, **own)
        return make_request(prompt, replace(defaults, settings=settings, **counts))
    except InvalidInput as error:
        raise InvalidInput(f"{place}: {error.message}", hint=error.hint) from None


# --- formats --------------------------------------------------------------------------------------


def _lines(text: str) -> Iterator[Entry]:
    for number, line in enumerate(text.splitlines(), 1):
        if (prompt := line.strip()) and not prompt.startswith("#"):
            yield f"line {number}", {"prompt": prompt}


def _json_lines(text: str) -> Iterator[Entry]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield _entry(f"line {number}", parse_json(line))
        except InvalidInput as error:
            raise InvalidInput(f"line {number} is {error.message}") from None


def _yaml(text: str) -> Iterator[Entry]:
    try:
        found = parse_yaml(text)
    except InvalidInput as error:
        raise InvalidInput(f"which is {error.message}") from None
    if not isinstance(found, list):
        raise InvalidInput("which has to be a list of prompts")
    for number, value in enumerate(found, 1):
        yield _entry(f"entry {number}", value)


def _csv(text: str) -> Iterator[Entry]:
    told, text = _told_separator(text)
    first = text.partition("\n")[0]
    separator = told or max(_SEPARATORS, key=first.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)

    def line() -> str:
        return f"line {rows.line_num + bool(told)}"

    try:
        headings = [heading.strip().lower() for heading in next(rows, [])]
        named = [heading for heading in headings if heading]
        if twice := [heading for heading in named if named.count(heading) > 1]:
            raise InvalidInput(f"{line()} has two headings {twice[0]!r}")
        for row in rows:
            if len(row) > len(headings) and any(row[len(headings) :]):
                raise InvalidInput(f"{line()} has more cells than there are headings")
            if any(cell.strip() for cell in row):
                cells = zip(headings, row, strict=False)
                yield line(), {key: cell.strip() for key, cell in cells}
    except csv.Error as error:
        raise InvalidInput(f"{line()} is not CSV: {error}") from None


def _told_separator(text: str) -> tuple[str, str]:
    """What a spreadsheet wrote ahead of its headings, `sep=;`, and the text without it."""
    first, _, rest = text.partition("\n")
    match = re.fullmatch(r'"?sep=(.)"?\s*', first, re.IGNORECASE)
    return (match[1], rest) if match else ("", text)


def _entry(place: str, value: object) -> Entry:
    return place, value if isinstance(value, Mapping) else {"prompt": value}


_READERS: dict[str, Callable[[str], Iterator[Entry]]] = {
    ".txt": _lines,
    ".yaml": _yaml,
    ".yml": _yaml,
    ".csv": _csv,
    ".tsv": _csv,
    ".jsonl": _json_lines,
}

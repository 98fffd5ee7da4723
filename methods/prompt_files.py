"""Files of prompts, each with settings of its own: text, YAML, CSV or JSON lines."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ..models.request import Request, Settings
from ..registry.errors import InvalidInput, NotFound

KEYS = ("prompt", "n", "seed", "steps", "guidance", "negative", "scheduler", "size")
MAX_PICTURES = 10_000

Entry = tuple[str, Mapping[str, Any]]
"""Where something stands in a file, and what it says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What holds where a prompt does not say otherwise: `n` pictures, seeds from `seed` on."""

    n: int
    seed: int
    settings: Settings


def read_prompts(path: Path, defaults: Defaults) -> list[Request]:
    """The prompts of a file: `.txt`, one a line, `.yaml`, `.csv` with headings, or `.jsonl`.

    Lines of text that are empty or begin with # are left out. An entry of the others has a
    `prompt` and may have any of `n`, `seed`, `steps`, `guidance`, `negative`, `scheduler` and
    `size`. Raises `NotFound` and, naming the line, `InvalidInput`.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InvalidInput(f"{path} is not a file of prompts by its name", hint=", ".join(_READERS))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise NotFound(f"{path} is no file") from None
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}") from None
    try:
        entries = list(reader(text))
    except InvalidInput as error:
        raise InvalidInput(f"{path}, {error.message}") from None
    requests = [_request(f"{path}, {place}", entry, defaults) for place, entry in entries]
    if not requests:
        raise InvalidInput(f"{path} has no prompts")
    return requests


def make_request(prompt: str, defaults: Defaults) -> Request:
    """A prompt as the defaults have it."""
    seeds = range(defaults.seed, defaults.seed + defaults.n)
    return Request(prompt=prompt, seeds=seeds, settings=defaults.settings)


def parse_size(text: str) -> tuple[int, int]:
    """`512` or `768x512` as (width, height). Raises `InvalidInput`."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and (height.isdecimal() or not height)):
        raise InvalidInput(f"{text!r} is not a size", hint="512 or 768x512")
    return int(width), int(height or width)


def _request(place: str, entry: Mapping[str, Any], defaults: Defaults) -> Request:
    given = {key: value for key, value in entry.items() if value not in (None, "")}
    try:
        if unknown := [key for key in given if key not in KEYS]:
            raise InvalidInput(f"there is no setting {unknown[0]!r}", hint=", ".join(KEYS))
        prompt = given.pop("prompt", None)
        if not isinstance(prompt, str):
            raise InvalidInput("there is no prompt")
        values = {key: _PARSERS[key](value) for key, value in given.items()}
        own = replace(defaults, **{key: values.pop(key) for key in ("n", "seed") if key in values})
        if not 1 <= own.n <= MAX_PICTURES:
            raise InvalidInput(f"n is {own.n}: 1 to {MAX_PICTURES:,}")
        return make_request(prompt, replace(own, settings=replace(own.settings, **values)))
    except InvalidInput as error:
        raise InvalidInput(f"{place}: {error.message}", hint=error.hint) from None
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{place}: {error}") from None


def _whole(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise InvalidInput(f"{value!r} is not a whole number")
    return int(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidInput(f"{value!r} is no text", hint="put it in quotes")
    return value


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "n": _whole,
    "seed": _whole,
    "steps": _whole,
    "guidance": float,
    "negative": _text,
    "scheduler": _text,
    "size": lambda value: parse_size(str(value)),
}


# --- formats --------------------------------------------------------------------------------------


def _lines(text: str) -> Iterator[Entry]:
    for number, line in enumerate(text.splitlines(), 1):
        if (prompt := line.strip()) and not prompt.startswith("#"):
            yield f"line {number}", {"prompt": prompt}


def _json_lines(text: str) -> Iterator[Entry]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield _entry(f"line {number}", json.loads(line))
        except ValueError as error:
            raise InvalidInput(f"line {number} is not JSON: {error}") from None


def _yaml(text: str) -> Iterator[Entry]:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidInput(f"which is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, list):
        raise InvalidInput("which has to be a list of prompts")
    for number, value in enumerate(found, 1):
        yield _entry(f"entry {number}", value)


def _csv(text: str) -> Iterator[Entry]:
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in rows:
            if None in row:
                raise InvalidInput(f"line {rows.line_num} has more cells than there are headings")
            yield f"line {rows.line_num}", row
    except csv.Error as error:
        raise InvalidInput(f"line {rows.line_num} is not CSV: {error}") from None


def _entry(place: str, value: Any) -> Entry:
    if isinstance(value, Mapping):
        return place, {str(key): each for key, each in value.items()}
    return place, {"prompt": value}


_READERS: dict[str, Callable[[str], Iterator[Entry]]] = {
    ".txt": _lines,
    ".yaml": _yaml,
    ".yml": _yaml,
    ".csv": _csv,
    ".jsonl": _json_lines,
}

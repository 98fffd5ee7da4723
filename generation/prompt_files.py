"""Prompt files: text, YAML, CSV or JSON lines, with settings for each prompt."""

import csv
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..models.bases import scheduler_of
from ..models.references import WEIGHT
from ..registry.documents import parse_json, parse_yaml, read_text
from ..registry.errors import ConceptryError, InvalidInput
from ..registry.validation import validated
from .control_request import ControlRequest, parse_control
from .init_request import InitRequest, parse_init
from .layout import parse_layout
from .prompt_entries import MAX_PICTURES, PromptEntry, seeds_of
from .reference_syntax import ReferenceRequest, parse_reference, with_layouts
from .request import Request, SamplingSettings
from .scripts import script_entries

_SEPARATORS = (",", ";", "\t")
_SCRIPT = "script"
"""Where the whole of a script is."""
_MAY_BE_EMPTY = ("negative", "reference", "control", "init", "inpaint")
"""Where an empty text asks for none, whatever the command line says; not in cells of tables."""
_OF_THE_HEAD = (
    *("steps", "guidance", "negative", "scheduler", "size", "reference", "layout"),
    *("layout_control", "prompt_weights", "perturbed_attention", "control", "init"),
)
"""Of a script, what can be wrong without its scenes."""

Entry = tuple[str, Mapping[str, object]]
"""(place in the file, such as `line 3`; its keys and values)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptDefaults:
    """Settings of prompts that set none: `n` pictures, with seeds from `seed` on.

    `control_scale`, `reference_weight`, `strength` and `mask` are for prompts that have a control
    picture, references, or a picture to begin with of their own.
    """

    n: int
    seed: int
    settings: SamplingSettings
    references: tuple[ReferenceRequest, ...] = ()
    control: ControlRequest | None = None
    control_scale: float = 1.0
    init: InitRequest | None = None
    strength: float | None = None
    mask: Path | None = None
    reference_weight: float = WEIGHT
    scene_n: int = 1
    scene_seed: int = 0


def read_prompts(path: Path, defaults: PromptDefaults) -> list[Request]:
    """Read a prompt file: `.txt` (a prompt per line), `.yaml`, `.csv`, `.tsv` or `.jsonl`.

    In text files empty lines and those that begin with # are skipped. Entries of other files have a
    `prompt`, and may have `n`, `seed` or `seeds`, `scene`, `steps`, `guidance`, `negative`,
    `scheduler`, `size`, `reference` (one, or a list; in a table with spaces between), `layout` (as
    `--layout`, or names and their boxes), `layout_control` and `prompt_weights` (yes or no),
    `perturbed_attention`, `control` (the path of a picture, from the file's folder on),
    `control_scale`, `reference_control` (of each reference), `init` and `inpaint` (paths too) and
    `strength`. A YAML mapping with `scenes` is a script (`script_entries`). The CSV separator
    (comma, semicolon or tab) is taken from the header. Raises `NotFound`, and `InvalidInput` that
    names the line, or for more than `MAX_PICTURES` pictures.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InvalidInput(
            f"{path} does not have the suffix of a prompt file", hint=", ".join(_READERS)
        )
    text = read_text(path)
    try:
        entries = [each for found in reader(text) for each in _prompts(found, path, defaults)]
    except ConceptryError as error:
        raise error.at(str(path), ", ") from None
    requests: list[Request] = []
    num_pictures = 0
    for place, entry, counts in entries:
        requests.append(_request(f"{path}, {place}", entry, defaults, path.parent, counts))
        num_pictures += len(requests[-1].seeds)
        if num_pictures > MAX_PICTURES:
            raise InvalidInput(
                f"{path} stands for more than {MAX_PICTURES:,} pictures",
                hint="a smaller n, or fewer prompts",
            )
    if not requests:
        raise InvalidInput(f"{path} has no prompts")
    return requests


def _prompts(
    entry: Entry, path: Path, defaults: PromptDefaults
) -> Iterable[tuple[str, Mapping[str, object], frozenset[str] | None]]:
    """The entry itself, or those that a script stands for, with what these say of their seeds."""
    place, found = entry
    if place != _SCRIPT:
        return [(place, found, None)]
    usual = range(defaults.scene_seed, defaults.scene_seed + defaults.scene_n)
    entries = [*script_entries(found, path.parent, usual=usual)]
    common = {key: value for key, value in found.items() if key in _OF_THE_HEAD}
    _request("the script", {**common, "prompt": place}, defaults, path.parent)
    return entries


def make_request(prompt: str, defaults: PromptDefaults) -> Request:
    """A request for one prompt with the defaults."""
    seeds = range(defaults.seed, defaults.seed + defaults.n)
    return Request(
        prompt=prompt,
        seeds=seeds,
        settings=defaults.settings,
        references=defaults.references,
        control=defaults.control,
        init=defaults.init,
    )


def _request(
    place: str,
    entry: Mapping[str, object],
    defaults: PromptDefaults,
    folder: Path,
    counts: frozenset[str] | None = None,
) -> Request:
    """The request of an entry. One of a script lists all seeds, and `counts` are what it says."""
    given = {
        key: value
        for key, value in entry.items()
        if value is not None and (value != "" or key in _MAY_BE_EMPTY)
    }
    own = validated(PromptEntry, given, at=place, noun="setting").model_dump(exclude_unset=True)
    said = frozenset(own) if counts is None else frozenset(own) - {"seeds"} | counts
    prompt, scene = own.pop("prompt"), own.pop("scene", "")
    first, number = defaults.seed, defaults.n
    if scene:
        first, number = defaults.scene_seed, defaults.scene_n
    usual = range(first, first + number)
    counted = {key: own.pop(key, None) for key in ("n", "seed", "seeds")}
    changed: dict[str, Any] = {}
    control, scale = own.pop("control", None), own.pop("control_scale", None)
    try:
        layouts = own.pop("reference_control", None)
        if layouts is None and "" in (control, entry.get("reference_control")):
            layouts = ""
        changed["references"] = _references(own.pop("reference", None), layouts, defaults, folder)
        if control:
            changed["control"] = parse_control(
                control, scale=defaults.control_scale if scale is None else scale, folder=folder
            )
        elif control == "":
            changed["control"] = None
        elif scale is not None:
            if defaults.control is None:
                raise InvalidInput("control_scale is for a control", hint="control: IMAGE")
            changed["control"] = replace(defaults.control, scale=scale)
        if begun := {key: own.pop(key) for key in ("init", "inpaint", "strength") if key in own}:
            changed["init"] = _init(begun, defaults, folder)
        if isinstance(layout := own.get("layout"), list):
            own["layout"] = parse_layout(layout)
        elif isinstance(layout, dict):
            own["layout"] = {name: tuple(box) for name, box in layout.items()}
        if "scheduler" in own:
            own["scheduler"] = scheduler_of(own["scheduler"])
        settings = replace(defaults.settings, **own)
        made = make_request(prompt, replace(defaults, settings=settings, **changed))
        seeds = seeds_of(**counted, usual=usual)
        return replace(made, seeds=seeds, scene=scene, place=place, said=said)
    except ConceptryError as error:
        raise error.at(place) from None


def _references(
    own: Sequence[str] | None,
    layouts: Sequence[str] | None,
    defaults: PromptDefaults,
    folder: Path,
) -> tuple[ReferenceRequest, ...]:
    """An entry's references; `layouts` are their control pictures, "" for none.

    What it does not say is the default.
    """
    photos = defaults.references
    if own is not None:
        usual = [each.control for each in photos if each.control]
        photos = tuple(parse_reference(each, default=defaults.reference_weight) for each in own)
        photos = with_layouts(photos, usual if photos and not layouts else [])
    if layouts == "":
        return tuple(replace(each, control=None) for each in photos)
    return with_layouts(photos, [folder / os.path.expanduser(each) for each in layouts or ()])


def _init(own: Mapping[str, Any], defaults: PromptDefaults, folder: Path) -> InitRequest | None:
    """What an entry's picture begins with: what it says, and for all else the default."""
    default = defaults.init
    if own.get("init") == "" or (default is None and own == {"inpaint": ""}):
        return None
    picture = own.get("init") or (str(default.picture.absolute()) if default else None)
    if picture is None:
        raise InvalidInput(f"{next(iter(own))} is for a picture with an init", hint="init: IMAGE")
    mask, usual = own.get("inpaint"), default.mask if default else defaults.mask
    if mask is None and usual:
        mask = str(usual.absolute())
    strength = own.get("strength", default.strength if default else defaults.strength)
    return parse_init(picture, strength=strength, mask=mask or None, folder=folder)


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
            yield _entry(f"line {number}", parse_json(line, has_unique_keys=True))
        except InvalidInput as error:
            raise InvalidInput(f"line {number} is {error.message}") from None


def _yaml(text: str) -> Iterator[Entry]:
    try:
        found = parse_yaml(text)
    except InvalidInput as error:
        raise InvalidInput(f"which is {error.message}") from None
    if isinstance(found, dict) and "scenes" in found:
        yield _SCRIPT, found
        return
    if not isinstance(found, list):
        raise InvalidInput("which has to be a list of prompts, or a script with scenes")
    for number, value in enumerate(found, 1):
        yield _entry(f"entry {number}", value)


def _csv(text: str) -> Iterator[Entry]:
    declared, text = _declared_separator(text)
    first = text.partition("\n")[0]
    separator = declared or max(_SEPARATORS, key=first.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)

    def line() -> str:
        return f"line {rows.line_num + bool(declared)}"

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
                yield line(), {key: cell.strip() for key, cell in cells if cell.strip()}
    except csv.Error as error:
        raise InvalidInput(f"{line()} is not CSV: {error}") from None


def _declared_separator(text: str) -> tuple[str, str]:
    """The separator that a spreadsheet declared above the header (`sep=;`), and the text below."""
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

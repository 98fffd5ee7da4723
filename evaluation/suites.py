"""Prompt suites: the prompts that are drawn and scored, and what each tests. Loads no weights.

A suite is a YAML file,

    about: what it is for
    prompts:
      - {text: "a photo of a {} on the beach", tests: place}
      - {text: "a red {}", tests: colour, looks: other}

or a text file with a prompt per line. `{}` is where the concept goes. `looks: other` marks prompts
that change the subject's appearance. `{other}` is a second concept, `{third}` a third one. In
suites for the miniature, `{second}` is the first word of `second` that is not the concept's own
category, and `sees` is what else the judge should predict: place, accessory, colour, style, and
the `relation` of the concept to the other thing in the picture.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo

from ..registry.documents import parse_yaml, read_text, shown
from ..registry.errors import InvalidInput, NotFound, suggest
from ..registry.hashes import sha256_of_json
from ..registry.validation import Form, Lines, Text, validated

SHIPPED = Path(__file__).parent / "suites"
_SLOTS, _SECOND = ("{}", "{other}", "{third}"), "{second}"
_SLOT = re.compile(r"\{[a-z]*\}")
_BRACKET = re.compile(r"<[^<>]*>|<[a-z]\S*")
MAX_PROMPTS = 10_000
_Words = Annotated[Lines, Field(examples=["[mug, house]"])]


@dataclass(frozen=True, slots=True)
class SuitePrompt:
    """A prompt with slots, and what is tested by it."""

    text: str
    tests: str = "prompt"
    keeps_looks: bool = True
    """False if the prompt asks for another colour, material or style than the photos'."""
    second: tuple[str, ...] = ()
    sees: Mapping[str, str] = field(default_factory=dict)

    def filled(self, *phrases: str, category: str) -> str:
        """The prompt with the phrases of its subjects, the first of which is of `category`."""
        text = self.text.replace(_SECOND, self.second_for(category) or "")
        for slot, phrase in zip(_SLOTS, phrases, strict=False):
            text = _with_article(text, slot, phrase)
        return text

    def second_for(self, category: str) -> str | None:
        """The category of the second thing in the picture, if there is one."""
        return next((word for word in self.second if word != category), None)


def _with_article(text: str, slot: str, phrase: str) -> str:
    """`a {}` becomes `an owl`."""
    if phrase[:1].lower() in "aeiou":
        text = re.sub(rf"\b([Aa]) {re.escape(slot)}", rf"\1n {slot}", text)
    return text.replace(slot, phrase)


@dataclass(frozen=True, slots=True)
class Suite:
    """Prompts that are drawn and scored together."""

    name: str
    about: str
    prompts: tuple[SuitePrompt, ...]
    fits: tuple[str, ...] = ()
    """Categories that it is the default for."""

    @property
    def num_subjects(self) -> int:
        """How many concepts a prompt takes, one to three."""
        return _num_subjects(self.prompts[0])

    @property
    def sha256(self) -> str:
        """The hash of its prompts."""
        return sha256_of_json([asdict(prompt) for prompt in self.prompts])


def shipped_suites() -> dict[str, Suite]:
    """The suites that come with the program, by name."""
    return {path.stem: read_suite(path) for path in sorted(SHIPPED.glob("*.yaml"))}


def find_suite(name: str) -> Suite:
    """A shipped suite, or one's own file. Raises `NotFound` and `InvalidInput`."""
    if re.fullmatch(r"[a-z-]{1,40}", name) and (SHIPPED / f"{name}.yaml").is_file():
        return read_suite(SHIPPED / f"{name}.yaml")
    if os.path.isfile(path := os.path.expanduser(name)):
        return read_suite(Path(path))
    names = [each.stem for each in sorted(SHIPPED.glob("*.yaml"))]
    hint = suggest(name, names)
    known = f"there are {', '.join(names)}; a file of your own works too"
    raise NotFound(
        f'there is no suite "{name}"', hint=known if hint.startswith("concept ") else hint
    )


def suite_for(category: str) -> Suite:
    """The shipped suite for a category: that which names it, else `objects`."""
    suites = shipped_suites()
    return next((each for each in suites.values() if category in each.fits), suites["objects"])


def read_suite(path: Path) -> Suite:
    """Read a suite file. Raises `InvalidInput` that names the file and the prompt."""
    text = read_text(path)
    if path.suffix in (".yaml", ".yml"):
        try:
            document = parse_yaml(text)
        except InvalidInput as error:
            raise InvalidInput(f"{path} cannot be read as a suite: {error.message}") from None
        return _from_entries(path, document)
    lines = [line.strip() for line in text.splitlines()]
    prompts = [{"text": line} for line in lines if line and not line.startswith("#")]
    return _from_entries(path, {"prompts": prompts})


class _Top(Form):
    about: Text = ""
    fits: _Words = ()


def _seen(word: str, info: ValidationInfo) -> str:
    """Check a word against the judge's classes."""
    from ..models.miniature.world.identities import COLOURS
    from ..models.miniature.world.scenes import ACCESSORIES, PLACES, RELATIONS, STYLES

    thing = str(info.field_name)
    words = {
        "place": PLACES,
        "accessory": ACCESSORIES,
        "colour": COLOURS,
        "style": STYLES,
        "relation": [each for each in RELATIONS if each != "and"],
    }[thing]
    if word not in words:
        known = ", ".join(words)
        raise InvalidInput(f"the judge knows no {thing} {shown(word)}", hint=known)
    return word


_Seen = Annotated[str, AfterValidator(_seen)]


class _Sees(Form):
    place: _Seen = ""
    accessory: _Seen = ""
    colour: _Seen = ""
    style: _Seen = ""
    relation: _Seen = ""


class _Entry(Form):
    text: Annotated[Text, Field(examples=['{text: "a photo of a {} on the beach"}'])]
    tests: Text = "prompt"
    looks: Literal["own", "other"] = "own"
    second: _Words = ()
    sees: _Sees = Field(default_factory=_Sees)


def _from_entries(path: Path, document: object) -> Suite:
    top = document if isinstance(document, Mapping) else {"prompts": document}
    entries = top.get("prompts")
    if not entries or not isinstance(entries, list):
        raise InvalidInput(f"{path} holds no prompts", hint="concept suites objects shows one")
    if len(entries) > MAX_PROMPTS:
        raise InvalidInput(f"{path} holds {len(entries):,} prompts; {MAX_PROMPTS:,} is the limit")
    header = validated(_Top, {k: v for k, v in top.items() if k != "prompts"}, at=str(path))
    prompts = tuple(_prompt(f"{path}, prompt {i}", entry) for i, entry in enumerate(entries, 1))
    for number, each in enumerate(prompts, 1):
        if (first := prompts.index(each) + 1) < number:
            raise InvalidInput(
                f"{path}: prompt {number} is prompt {first} again", hint="each prompt once"
            )
    if len({_num_subjects(prompt) for prompt in prompts}) > 1:
        raise InvalidInput(
            f"{path}: {{other}} or {{third}} stands in some prompts only", hint="make it two"
        )
    return Suite(path.stem, header.about, prompts, header.fits)


def _num_subjects(prompt: SuitePrompt) -> int:
    return sum(slot in prompt.text for slot in _SLOTS)


def _prompt(where: str, entry: object) -> SuitePrompt:
    given = entry if isinstance(entry, Mapping) else {"text": entry}
    checked = validated(_Entry, given, at=where)
    _check_slots(where, checked.text, checked.second)
    if checked.sees.relation and not {"{other}", _SECOND} & set(_SLOT.findall(checked.text)):
        raise InvalidInput(
            f"{where}: a relation is to {{other}} or {{second}}, and the text has neither",
            hint=f"a {{}} {checked.sees.relation} a {{other}}",
        )
    return SuitePrompt(
        text=checked.text,
        tests=checked.tests,
        keeps_looks=checked.looks == "own",
        second=checked.second,
        sees=checked.sees.model_dump(exclude_unset=True),
    )


def _check_slots(where: str, text: str, second: Sequence[str]) -> None:
    for each in (text, *second):
        if bracket := _BRACKET.search(each):
            raise InvalidInput(
                f"{where} holds {bracket.group()}: no concept is named in a suite",
                hint="{} is where the concept goes",
            )
    if any(set("{}") & set(each) for each in second):
        raise InvalidInput(f"{where}: second is plain words")
    if _SLOTS[0] not in text:
        raise InvalidInput(f'{where} has no slot: "{text}"', hint="{} is where the concept goes")
    if wrong := set(re.findall(r"{[^{}]*}", text)) - {*_SLOTS, _SECOND}:
        raise InvalidInput(
            f"{where} has an unknown slot {min(wrong)}", hint="{}, {other} or {third}"
        )
    if _SLOTS[2] in text and _SLOTS[1] not in text:
        raise InvalidInput(f"{where} has {{third}} without {{other}}")
    if (_SECOND in text) != bool(second):
        raise InvalidInput(f"{where}: {_SECOND} and second go together")

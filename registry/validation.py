"""Validation of input against types; errors are one line.

A type gives a value's range (`Field(ge=0, le=10)`) or its words (`Literal`), and for error messages
what is allowed (`Field(description=…)`) and an example (`Field(examples=…)`).
"""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any, TypeVar, get_origin, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    create_model,
)
from pydantic.json_schema import JsonSchemaValue

from .documents import shown
from .errors import InvalidInput
from .names import check_line, check_text

_KINDS = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "string": "a text",
}
_BEYOND = ("greater_than_equal", "less_than_equal")
_OF_TEXTS = ("string_pattern_mismatch", "string_too_long", "string_too_short")


class Form(BaseModel):
    """A mapping that people write: unknown keys are errors, and values are not converted."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, from_attributes=True, defer_build=True
    )


def _line(text: str, info: ValidationInfo) -> str:
    return check_line(text, f"text in {info.field_name}")


def _text(text: str, info: ValidationInfo) -> str:
    return check_text(text, str(info.field_name))


Line = Annotated[str, AfterValidator(_line)]
"""A line of plain text."""
Text = Annotated[str, AfterValidator(_text)]
"""Plain text, stripped."""
Lines = Annotated[tuple[Line, ...], Field(strict=False)]
"""A list of lines."""
_TEXTS = Annotated[Lines, Field(min_length=1)]

_Form = TypeVar("_Form", bound=BaseModel)


def validated(form: type[_Form], value: object, *, at: str = "", noun: str = "key") -> _Form:
    """The value, checked against its form. Raises `InvalidInput` with the first error.

    `at` is where the value stands, `noun` what its keys are called.
    """
    try:
        return form.model_validate(value)
    except ValidationError as error:
        refusal = _refusal(form, error, noun)
    raise InvalidInput(f"{at}: {refusal}" if at else refusal.message, hint=refusal.hint)


@cache
def form_of(kind: type) -> type[Form]:
    """The fields of a dataclass as a form in which each may be left out; so are its groups.

    What pydantic is to know of a field stands in its annotation or its metadata.
    """
    kinds = get_type_hints(kind, include_extras=True)
    described: dict[str, Any] = {}
    for each in fields(kind):
        found = kinds[each.name]
        if is_dataclass(found) and isinstance(found, type):
            found = form_of(found)
        elif get_origin(found) is tuple:
            found = Annotated[_TEXTS if found == tuple[str, ...] else found, Field(strict=False)]
        described[each.name] = (found, Field(default=None, **each.metadata))
    return create_model(kind.__name__, __base__=Form, **described)


def problem(error: ValueError) -> str:
    """What is wrong in a document that a program wrote, and where; of the document itself nothing.

    A `ValidationError` holds the whole document: keep this, and not the error.
    """
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{_path(first['loc'])}: {first['msg'].removeprefix('Value error, ')}".removeprefix(": ")


def _refusal(form: type[BaseModel], error: ValidationError, noun: str) -> InvalidInput:
    first, *others = error.errors(include_url=False)
    if first["type"] == "missing":  # it may be there misspelt
        first = next((each for each in others if each["type"] == "extra_forbidden"), first)
    loc, kind = first["loc"], first["type"]
    path, given = _path(loc), shown(first["input"])
    schema = form.model_json_schema()
    if kind == "extra_forbidden":
        known = _part(schema, loc[:-1])["properties"]
        near = _near(str(loc[-1]), list(known), _path((*loc[:-1], "")))
        return InvalidInput(f'there is no {noun} "{path}"', hint=near)
    part = _part(schema, loc)
    example: str | None = next(iter(part.get("examples", ())), None)
    if kind == "missing":
        return InvalidInput(f"there is no {path}", hint=example)
    if reason := first.get("ctx", {}).get("error"):
        return _said(reason, loc)
    if "properties" in part:
        near = _near("", list(part["properties"]), _path((*loc, "")))
        return InvalidInput(f"{path or 'it'} is a group of {noun}s, not {given}", hint=near)
    allowed = _range(part) if kind in _BEYOND else _allowed(part)
    if allowed and kind not in _OF_TEXTS:
        hint = example or ("put it in quotes" if kind == "string_type" else None)
        return InvalidInput(f"{path} is {given}: expected {allowed}", hint=hint)
    return InvalidInput(f"{path}: {first['msg']}", hint=example)


def _said(reason: ValueError, loc: Sequence[str | int]) -> InvalidInput:
    """What a validator of ours raised, with the name of the field where it does not say it."""
    name = next((part for part in reversed(loc) if isinstance(part, str)), "")
    message = str(reason) if name in str(reason) else f"{_path(loc)}: {reason}"
    return InvalidInput(message, hint=getattr(reason, "hint", None))


def _path(loc: Sequence[str | int]) -> str:
    """`stage3.steps`, `prompts[2].text`; a key is cut, for it may be as long as the file."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part[:40]}" for part in loc)
    return "".join(parts).removeprefix(".")


def _part(schema: JsonSchemaValue, loc: Sequence[str | int]) -> JsonSchemaValue:
    """The part of a JSON schema that is about a place in a value; an empty one about none."""
    found = _resolved(schema, schema)
    for part in loc:
        if isinstance(part, str):
            inner = found.get("properties", {}).get(part, {})
        else:
            each = found.get("prefixItems", ())
            inner = each[part] if part < len(each) else found.get("items", {})
        found = _resolved(inner, schema)
    return found


def _resolved(part: JsonSchemaValue, schema: JsonSchemaValue) -> JsonSchemaValue:
    """A part without references, and without the null that it may be instead."""
    while "anyOf" in part or "$ref" in part:
        name = part.get("$ref", "").rpartition("/")[2]
        inner = schema["$defs"][name] if name else part["anyOf"][0]
        part = {key: each for key, each in part.items() if key not in ("anyOf", "$ref")} | inner
    return part


def _allowed(part: JsonSchemaValue) -> str:
    """What may stand there; nothing where that is not known."""
    kind: str = part.get("type", "")
    if words := [part["const"]] if "const" in part else part.get("enum"):
        return " or ".join(map(str, words))
    if "description" in part:
        return part["description"]
    if kind == "array":
        return "a list of texts" if part.get("items", {}).get("type") == "string" else "a list"
    named = f"a multiple of {step}" if (step := part.get("multipleOf")) else _KINDS.get(kind)
    has_range = "minimum" in part or "maximum" in part
    return ", ".join(filter(None, (named, _range(part) if has_range else "")))


def _range(part: JsonSchemaValue) -> str:
    low, high = (_number(part.get(end)) for end in ("minimum", "maximum"))
    return f"{low} to {high}" if low and high else f"{low} or more" if low else f"{high} or less"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{int(value):,}" if float(value).is_integer() else f"{value:g}"


def _near(name: str, known: Sequence[str], at: str) -> str:
    near = get_close_matches(name[:100], known, n=1)
    listed = ", ".join(f"{at}{each}" for each in known)
    return f"did you mean {at}{near[0]}?" if near else f"there are {listed}"

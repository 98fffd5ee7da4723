"""What prompts of files may have of their own. Loads no library that loads weights."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from ..models.references import MAX_REFERENCES
from ..registry.documents import MAX_NUMBER
from ..registry.errors import InvalidInput
from ..registry.validation import Form, Line
from .control_request import MAX_SCALE
from .request import MAX_SEED

MAX_PICTURES = 10_000
_MAX_SIZE = 20  # characters


def parse_size(text: str) -> tuple[int, int]:
    """`512` or `768x512` as (width, height). Raises `InvalidInput`."""
    width, by, height = text.lower().partition("x")
    height = height if by else width
    if not (width.isdecimal() and height.isdecimal() and len(text) <= _MAX_SIZE):
        raise InvalidInput(f"{text[:40]!r} is not a size", hint="512 or 768x512")
    return int(width), int(height)


def _number(value: object) -> object:
    """A number from text; booleans are refused."""
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


def _words(value: object) -> object:
    return value.split() if isinstance(value, str) else value


def _numbers(value: object) -> object:
    return [_number(each) for each in value.split()] if isinstance(value, str) else value


_AS_NUMBER = BeforeValidator(_number)
_Whole = Annotated[int, Field(strict=False), _AS_NUMBER]
_Count = Annotated[int, Field(strict=False, ge=1, le=MAX_PICTURES), _AS_NUMBER]
_Seeds = Annotated[
    list[Annotated[int, Field(ge=0, le=MAX_SEED), _AS_NUMBER]],
    Field(min_length=1, max_length=MAX_PICTURES, description="[1, 2, 3]"),
    BeforeValidator(_numbers),
]
_Number = Annotated[float, Field(strict=False, examples=["2.5, with a point"]), _AS_NUMBER]
_Scale = Annotated[float, Field(strict=False, ge=0, le=MAX_SCALE), _AS_NUMBER]
_Size = Annotated[tuple[int, int], Field(description="512 or 768x512"), BeforeValidator(_size)]
_References = Annotated[
    list[str],
    Field(max_length=MAX_REFERENCES, description="rex, or [rex=2, mia:2.5]"),
    BeforeValidator(_words),
]


_Paths = Annotated[
    list[str],
    Field(max_length=MAX_REFERENCES, description="rex-pose.png, or one for each reference"),
    BeforeValidator(_words),
]

_Layout = Annotated[
    dict[str, list[float]] | list[str],
    Field(description="auto, or rex=0,.3,.5,1 for each"),
    BeforeValidator(_words),
]
_Switch = Annotated[bool, Field(strict=False, description="yes or no")]


class PromptSettings(Form):
    """What a prompt of a file may have of its own; CSV cells are text."""

    n: _Count | None = None
    seed: _Whole | None = None
    seeds: _Seeds | None = None
    steps: _Whole | None = None
    guidance: _Number | None = None
    negative: str | None = None
    scheduler: str | None = None
    size: _Size | None = None
    reference: _References | None = None
    layout: _Layout | None = None
    layout_control: _Switch | None = None
    prompt_weights: _Switch | None = None
    perturbed_attention: _Number | None = None
    control: str | None = None
    control_scale: _Scale | None = None
    reference_control: _Paths | None = None
    init: str | None = None
    inpaint: str | None = None
    strength: _Number | None = None


class PromptEntry(PromptSettings):
    """An entry of a prompt file. The name of its `scene` is that of its pictures' files."""

    prompt: str
    scene: Line | None = None


def seeds_of(
    place: str = "",
    *,
    n: int | None,
    seed: int | None,
    seeds: list[int] | None,
    usual: Sequence[int],
) -> Sequence[int]:
    """The seeds of a prompt: as listed, or `n` from `seed` on, or what is `usual` of these.

    Where the usual ones are a list, `n` alone is how many of them, from the first on. Raises
    `InvalidInput`, which names the place, if there is one.
    """
    at = f"{place}: " if place else ""
    if seeds is not None:
        if n is not None or seed is not None:
            raise InvalidInput(f"{at}seeds says them all", hint="without n and seed")
        if len(set(seeds)) < len(seeds):
            raise InvalidInput(f"{at}a seed is listed twice", hint="seeds: [1, 2, 3]")
        return seeds
    if seed is not None or isinstance(usual, range):
        first = usual[0] if seed is None else seed
        return range(first, first + (len(usual) if n is None else n))
    if n is not None and n > len(usual):
        raise InvalidInput(
            f"{at}n is {n:,}, but {len(usual):,} seeds are listed for all scenes",
            hint="seeds of its own, or a seed to count from",
        )
    return usual[:n]

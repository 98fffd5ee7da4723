"""What does not fit a form is told in one line: where, what was given, what is allowed."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest
from conceptry.registry.errors import InvalidInput
from conceptry.registry.validation import Form, Line, Lines, Text, form_of, validated
from pydantic import Field


class Inner(Form):
    word: Line = "a"


class Outer(Form):
    text: Annotated[Text, Field(examples=["text: a mug"])]
    words: Lines = ()
    number: Annotated[float, Field(ge=0.5, le=2000)] = 1
    count: Annotated[int, Field(ge=3)] = 3
    side: Annotated[int, Field(ge=8, le=64, multiple_of=8)] = 8
    pair: Annotated[tuple[int, int], Field(description="two numbers")] | None = None
    kind: Literal["one", "two", "three"] = "one"
    is_on: bool = False
    short: Annotated[str, Field(max_length=3)] = ""
    inner: Inner = Field(default_factory=Inner)


HUGE = "x" * 1_000_000


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ({}, "there is no text", "text: a mug"),
        ({"text": 3}, "text is 3: expected a text", "text: a mug"),
        ({"txt": 3, "text": ""}, 'there is no key "txt"', "did you mean text?"),
        ({"inner": {"wort": 3}}, 'there is no key "inner.wort"', "did you mean inner.word?"),
        ({"inner": {"z": 3}}, 'there is no key "inner.z"', "there are inner.word"),
        ({"inner": 3}, "inner is a group of keys, not 3", "there are inner.word"),
        ({"inner": {"word": "a\n"}}, "the text in word 'a\\n' is not a line of plain text", None),
        ({"words": ["a", 3]}, "words[1] is 3: expected a text", "put it in quotes"),
        ({"words": "a"}, "words is 'a': expected a list of texts", None),
        ({"words": [3] * 10_000}, "words[0] is 3: expected a text", "put it in quotes"),
        ({"number": 0}, "number is 0: expected 0.5 to 2,000", None),
        ({"number": True}, "number is True: expected a number, 0.5 to 2,000", None),
        ({"number": float("nan")}, "number is nan: expected 0.5 to 2,000", None),
        ({"count": 2}, "count is 2: expected 3 or more", None),
        ({"side": 9}, "side is 9: expected a multiple of 8, 8 to 64", None),
        ({"pair": 3}, "pair is 3: expected two numbers", None),
        ({"kind": "four"}, "kind is 'four': expected one or two or three", None),
        ({"is_on": "no"}, "is_on is 'no': expected true or false", None),
        ({"short": "long"}, "short: String should have at most 3 characters", None),
        ({"kind": HUGE}, f"kind is '{HUGE[:40]}': expected one or two or three", None),
    ],
)
def test_what_does_not_fit_is_told(given: dict[str, object], message: str, hint: str) -> None:
    sound = {} if "text" in given or not given else {"text": ""}
    with pytest.raises(InvalidInput) as caught:
        validated(Outer, sound | given)
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_a_long_key_is_cut() -> None:
    with pytest.raises(InvalidInput) as caught:
        validated(Outer, {"text": "", HUGE: HUGE}, at="mine.yaml", noun="setting")
    assert caught.value.message == f'mine.yaml: there is no setting "{HUGE[:40]}"'


@dataclass(frozen=True, kw_only=True)
class _Group:
    number: int = field(default=1, metadata={"ge": 1, "le": 9})


@dataclass(frozen=True, kw_only=True)
class _Fields:
    words: tuple[str, ...] = ("a",)
    group: _Group = field(default_factory=_Group)


def test_a_dataclass_is_its_own_form() -> None:
    """Whole or in parts; what it is given as a list is one of its tuples."""
    validated(form_of(_Fields), _Fields())
    validated(form_of(_Fields), {"words": ["a"], "group": {}})
    for odd, message in (
        ({"group": {"number": 0}}, "group.number is 0: expected 1 to 9"),
        ({"words": []}, "words is an empty list: expected a list of texts"),
        (_Fields(group=_Group(number=10)), "group.number is 10: expected 1 to 9"),
    ):
        with pytest.raises(InvalidInput, match=message):
            validated(form_of(_Fields), odd)

"""Layouts: where in a picture each of its subjects is. Loads no library that loads weights."""

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from ..registry.documents import shown
from ..registry.errors import InvalidInput

AUTO, NONE = "auto", "none"
MAX_SUBJECTS = 8
_MIN_SIDE = 0.05
_EXAMPLE = '--layout "rex=0,.3,.5,1"'

Share = Annotated[float, Field(ge=0, le=1)]
Box = tuple[Share, Share, Share, Share]
"""Left, top, right and bottom side, as shares of a picture's width and height from the top left."""


def _has_area(box: Box) -> Box:
    left, top, right, bottom = box
    if right - left < _MIN_SIDE or bottom - top < _MIN_SIDE:
        sides = ",".join(f"{side:g}" for side in box)
        raise InvalidInput(
            f"the box {sides} of a layout is empty: left, top, right, bottom, at least "
            f"{_MIN_SIDE:g} apart",
            hint=_EXAMPLE,
        )
    return box


Boxes = Annotated[
    dict[str, Annotated[Box, AfterValidator(_has_area)]],
    Field(min_length=1, max_length=MAX_SUBJECTS),
]


def _with_whole_boxes(layout: object) -> object:
    """Raise `InvalidInput` for what is no box, in words of layouts."""
    if not isinstance(layout, Mapping):
        return layout
    for name, box in layout.items():
        is_box = isinstance(box, (list, tuple)) and len(box) == 4 and all(map(_is_share, box))
        if not is_box:
            raise InvalidInput(
                f"{shown(box)} is no box for {shown(name)}: left, top, right and bottom, each 0 to "
                "1",
                hint=_EXAMPLE,
            )
    return {name: tuple(box) for name, box in layout.items()}


def _is_share(side: object) -> bool:
    return isinstance(side, (int, float)) and not isinstance(side, bool) and 0 <= side <= 1


Layout = Annotated[Boxes | Literal["auto", "none"], BeforeValidator(_with_whole_boxes)]
"""A box for each subject by its name, or `auto`: where it would be by itself.

With `none` all is drawn at once, and changes of weights are added up. Without a layout, requests
for several concepts are `auto`.
"""


def parse_layout(words: Sequence[str]) -> dict[str, tuple[float, ...]] | str | None:
    """`auto`, `none`, or `NAME=LEFT,TOP,RIGHT,BOTTOM` for each subject; None without words.

    A subject is a concept by its name, or a word of the prompt. Raises `InvalidInput`.
    """
    if not words:
        return None
    for kind in (AUTO, NONE):
        if kind in words:
            if len(words) > 1:
                raise InvalidInput(f"a layout is {kind}, or has boxes", hint=_EXAMPLE)
            return kind
    boxes: dict[str, tuple[float, ...]] = {}
    for word in words:
        name, equals, sides = (part.strip() for part in word.rpartition("="))
        name = name.removeprefix("<").removesuffix(">")
        if not equals or not name:
            raise InvalidInput(f"{shown(word)} is no box of a layout", hint=_EXAMPLE)
        if name in boxes:
            raise InvalidInput(f"the layout has two boxes for {name}", hint=_EXAMPLE)
        boxes[name] = _box(sides, word)
    return boxes


def settled(
    layout: Mapping[str, Sequence[float]] | str | None, num_concepts: int
) -> Mapping[str, Sequence[float]] | str | None:
    """The layout of a picture with so many concepts, whether or not one was asked for."""
    if layout is None:
        return AUTO if num_concepts > 1 else None
    return None if layout == NONE else layout


def check_boxes(
    layout: Mapping[str, object] | str | None, text: str, names: Collection[str]
) -> None:
    """Raise `InvalidInput` for a box of what is neither one of some names nor in a text.

    Whether it is a word of the prompt, only a base model's tokenizer knows.
    """
    if not isinstance(layout, Mapping):
        return
    for name in layout:
        if name not in names and name.lower() not in text.lower():
            raise no_such_box(name)


def no_such_box(name: str) -> InvalidInput:
    """The error for a box of what a prompt does not name."""
    return InvalidInput(
        f"the layout has a box for {shown(name)}, which the prompt does not name",
        hint="a concept of the prompt, or one of its words",
    )


def _box(sides: str, word: str) -> tuple[float, ...]:
    try:
        box = tuple(float(side) for side in sides.split(","))
    except ValueError:
        box = ()
    if len(box) != 4:
        raise InvalidInput(
            f"{shown(word)} has no box of four shares: left, top, right, bottom", hint=_EXAMPLE
        )
    return box

"""Layouts: where in a picture each of its subjects is. Loads no library that loads weights."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator

from ..registry.documents import shown
from ..registry.errors import InvalidInput

if TYPE_CHECKING:
    from .prompt_syntax import ChosenVersion

AUTO, NONE = "auto", "none"
EARLY = 0.35
"""The share of the noise schedule, from its noisy end, in which several see no references yet.

It settles how many subjects there are and who stands where, of which photos know nothing.
"""
MAX_SUBJECTS = 8
_MIN_SIDE, _ROUNDING = 0.05, 1e-9
_EXAMPLE = '--layout "rex=0,.3,.5,1"'

Box = tuple[float, float, float, float]
"""Left, top, right and bottom side, as shares of a picture's width and height from the top left."""


def _checked(layout: object) -> object:
    """Boxes as tuples. Raises `InvalidInput` for what is none, in words of layouts."""
    if not isinstance(layout, Mapping):
        return layout
    if not layout:
        raise InvalidInput("the layout has no box", hint=_EXAMPLE)
    if len(layout) > MAX_SUBJECTS:
        raise too_many(len(layout))
    return {name: _box(name, sides) for name, sides in layout.items()}


def _box(name: object, sides: object) -> Box:
    if not isinstance(sides, (list, tuple)) or len(sides) != 4 or not all(map(_is_share, sides)):
        what = _in_words(sides) if isinstance(sides, (list, tuple)) else shown(sides)
        raise InvalidInput(
            f"{what} is no box for {shown(name)}: left, top, right and bottom, each 0 to 1",
            hint=_EXAMPLE,
        )
    left, top, right, bottom = sides
    if min(right - left, bottom - top) < _MIN_SIDE - _ROUNDING:
        raise InvalidInput(
            f"the box {_in_words(sides)} of {shown(name)} is empty: left, top, right, bottom, at "
            f"least {_MIN_SIDE:g} apart",
            hint=_EXAMPLE,
        )
    return (left, top, right, bottom)


def _in_words(sides: Sequence[object]) -> str:
    """Numbers as they are typed; of others and of many only the kind."""
    if len(sides) > 8 or not all(isinstance(each, (int, float)) for each in sides):
        return shown(sides)
    return ",".join(f"{each:g}" for each in sides) or "nothing"


def _is_share(side: object) -> bool:
    return isinstance(side, (int, float)) and not isinstance(side, bool) and 0 <= side <= 1


def too_many(count: int) -> InvalidInput:
    """The error for more subjects than a picture keeps apart."""
    return InvalidInput(
        f"a picture keeps {MAX_SUBJECTS} subjects apart at most, not {count:,}",
        hint="--layout none, or fewer concepts and references",
    )


Layout = Annotated[dict[str, Box] | Literal["auto", "none"], BeforeValidator(_checked)]
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
        if not equals or not name or "=" in name:
            raise InvalidInput(
                f"{shown(word)} is no box of a layout", hint=f"{_EXAMPLE}, once for each subject"
            )
        if name in boxes:
            raise InvalidInput(f"the layout has two boxes for {name}", hint=_EXAMPLE)
        boxes[name] = _sides(sides, word)
    return boxes


def settled(
    layout: Mapping[str, Sequence[float]] | str | None, num_concepts: int
) -> Mapping[str, Sequence[float]] | str | None:
    """The layout of a picture with so many concepts, whether or not one was asked for."""
    if layout is None:
        return AUTO if num_concepts > 1 else None
    return None if layout == NONE else layout


def check_places(
    layout: Mapping[str, object] | str | None,
    prompt: str,
    chosen: "Sequence[ChosenVersion]",
    referenced: Mapping[str, str],
) -> None:
    """Raise `InvalidInput` for a layout that does not fit a prompt, as far as its text tells.

    That is a box of what it does not name, concepts without a box, and too many subjects; whether
    something is a word of it to a base model, only that one's tokenizer knows. `referenced` are the
    categories of concepts that it is drawn after, by name.
    """
    named = {each.mention.name: each for each in chosen}
    placed = [name for name, each in named.items() if each.is_subject]
    if not isinstance(layout, Mapping):
        if settled(layout, len(named)) == AUTO and len(placed) > MAX_SUBJECTS:
            raise too_many(len(placed))
        return
    words = plain_words(prompt)
    for name in layout:
        if name in named:
            check_has_place(named[name].label, named[name].has_words, named[name].is_subject)
        elif not has_word(words, name) and not has_word(words, referenced.get(name, name)):
            raise no_such_box(name)
    check_all_have_boxes(layout, placed)


def plain_words(prompt: str) -> str:
    """A prompt without the concepts that it names."""
    return re.sub(r"<[^<>]*>", " | ", prompt)


def has_word(text: str, word: str) -> bool:
    """Whether a text has a word, or several, as whole words, in capitals or not."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def check_all_have_boxes(layout: Collection[str], names: Sequence[str]) -> None:
    """Raise `InvalidInput` for a concept that boxes leave out."""
    if missing := [name for name in names if name not in layout]:
        raise InvalidInput(
            f"the layout has no box for {missing[0]}",
            hint=f'--layout "{missing[0]}=0,.3,.5,1", or --layout auto',
        )


def check_has_place(label: str, has_words: bool, is_subject: bool) -> None:
    """Raise `InvalidInput` for a concept that a box is for, and that changes the whole picture."""
    if not has_words:
        raise InvalidInput(
            f"{label} has no words in prompts, and so no place in a picture",
            hint='concept import FILE --trigger "WORDS"',
        )
    if not is_subject:
        name = label.partition("@")[0]
        raise InvalidInput(
            f"{label} has no place in a picture: nobody said of what it is",
            hint=f"concept edit {name} --category WORD",
        )


def no_such_box(name: str) -> InvalidInput:
    """The error for a box of what a prompt does not name."""
    own = name.partition("@")[0]
    return InvalidInput(
        f"the layout has a box for {shown(name)}, which the prompt does not name",
        hint=f'"{own}=…", without a version'
        if own != name
        else "a concept of the prompt, or one of its words",
    )


def _sides(sides: str, word: str) -> tuple[float, ...]:
    try:
        box = tuple(float(side) for side in sides.split(","))
    except ValueError:
        box = ()
    if len(box) != 4:
        raise InvalidInput(
            f"{shown(word)} has no box of four shares: left, top, right, bottom", hint=_EXAMPLE
        )
    return box

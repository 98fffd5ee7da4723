"""References as they are asked for: `rex`, `rex=PHOTO`, `rex:2.5`. Loads no weights."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from ..models.references import GUIDANCE, MAX_WEIGHT, PROMPT, SHARE, TAUGHT_SHARE, WEIGHT
from ..registry import Registry
from ..registry.documents import shown
from ..registry.errors import InvalidInput, NotFound, quoted
from ..registry.records import Concept, ImageRecord
from .control_request import ReadControl, read_control
from .prompt_syntax import mentions

_REFERENCE = re.compile(r"([a-z0-9][a-z0-9_-]*)(?:=(.+?))?(?::(\d+(?:\.\d+)?|\.\d+))?")
_DIGITS = 9
_MAX_RATIO = 4
_SHORTEST_HASH = 6
_AS_WRITTEN = "rex, rex=PHOTO, rex:2.5 or rex=PHOTO:2.5"


@dataclass(frozen=True, slots=True)
class ReferenceRequest:
    """A photo of a concept to draw after, by number, hash or file name; the first one if None.

    `weight` is ω, how much its subject counts. `control` is a control picture of the photo itself,
    for pictures that follow a ControlNet: what that says of the photo, the picture need not repeat.
    """

    name: str
    photo: str | None = None
    weight: float = WEIGHT
    control: Path | None = None


def parse_reference(text: str, *, default: float = WEIGHT) -> ReferenceRequest:
    """`rex`, `rex=2`, `rex=a1b2c3` or `rex=front.jpg`, each perhaps with a weight as `:2.5`.

    Raises `InvalidInput`.
    """
    match = _REFERENCE.fullmatch(text.strip())
    if match is None:
        raise InvalidInput(f"{shown(text)} is no reference", hint=_AS_WRITTEN)
    name, photo, weight = match.groups()
    value = default if weight is None else float(weight)
    if value > MAX_WEIGHT:
        raise InvalidInput(
            f"{shown(text)}: a reference's weight lies between 0 and {MAX_WEIGHT:g}",
            hint=f"{name}:{WEIGHT:g}",
        )
    return ReferenceRequest(name, photo, value)


def with_layouts(
    references: Sequence[ReferenceRequest], paths: Sequence[Path]
) -> tuple[ReferenceRequest, ...]:
    """References with control pictures of their own, the first of the first, and so on.

    Raises `InvalidInput` for more of these than references, and `NotFound` for one without a file.
    """
    if len(paths) > len(references):
        raise InvalidInput(
            f"control pictures of references are {', '.join(map(str, paths))}, and references "
            f"{', '.join(each.name for each in references) or 'none'}",
            hint="--reference-control is for photos that --reference names, in their order",
        )
    for path in paths:
        if not os.path.isfile(path):
            raise NotFound(f"there is no control picture {path}", hint=f"ls {quoted(path.parent)}")
    pairs = zip_longest(references, paths)
    return tuple(replace(each, control=path or each.control) for each, path in pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenReference:
    """A photo to draw after: its concept and mask, how it is described, and how much it counts.

    {} in `prompt` stands for the concept. `share` and `guidance` are p_r and ω_r. `name` is the
    concept's, or what it was when a picture was drawn that is drawn again.
    """

    concept: Concept
    name: str
    image: ImageRecord
    prompt: str
    weight: float
    share: float = SHARE
    guidance: float = GUIDANCE
    control: ReadControl | None = None


def resolve_references(
    registry: Registry, requests: Sequence[ReferenceRequest], prompt: str
) -> list[ChosenReference]:
    """The photos that references name, each described by its caption or as a photo of its concept.

    If the prompt names all of their concepts, they guide no steps by themselves. Raises
    `ConceptNotFound`, `NotFound` for a photo that is not there, and `InvalidImage`.
    """
    named = {each.name for each in mentions(prompt)} if requests else set[str]()
    concepts = [registry.show(each.name) for each in requests]
    share = TAUGHT_SHARE if all(each.name in named for each in concepts) else SHARE
    pairs = zip(concepts, requests, strict=True)
    return [replace(_resolved(concept, each), share=share) for concept, each in pairs]


def _resolved(concept: Concept, request: ReferenceRequest) -> ChosenReference:
    chosen = choose_reference(concept, find_photo(concept, request.photo), request.weight)
    control = request.control and read_control(request.control)
    where = f"the photo {chosen.image.filename} of {concept.name}"
    size = (chosen.image.width, chosen.image.height)
    check_not_narrow(size, where)
    if control:
        control.fitted(size, where, hint="a control picture of a photo has its shape: cut it")
    return replace(chosen, control=control)


def check_not_narrow(size: tuple[int, int], where: str) -> None:
    """Raise `InvalidInput` for a photo (width, height) that is too narrow to draw after."""
    if max(size) > _MAX_RATIO * min(size):
        raise InvalidInput(
            f"{where} is {size[0]}x{size[1]}, which is too narrow to draw after",
            hint="a part of it, as a photo",
        )


def described(references: Sequence[ChosenReference]) -> list[dict[str, object]]:
    """References as pictures' metadata has them."""
    return [
        {
            "concept": each.concept.name,
            "category": each.concept.category,
            "photo": each.image.sha256,
            "mask": each.image.mask,
            "prompt": each.prompt,
            "weight": each.weight,
            "share": each.share,
            "guidance": each.guidance,
            **({"control": each.control.sha256} if each.control else {}),
        }
        for each in references
    ]


def choose_reference(concept: Concept, image: ImageRecord, weight: float) -> ChosenReference:
    """A photo as a reference, described by its caption or as a photo of its concept."""
    prompt = image.caption or PROMPT
    return ChosenReference(
        concept=concept, name=concept.name, image=image, prompt=prompt, weight=weight
    )


def find_photo(concept: Concept, word: str | None = None) -> ImageRecord:
    """A photo of a concept by number, hash or file name; the first one if `word` is None.

    Raises `NotFound`, and `InvalidInput` for a name that several have.
    """
    images = concept.images
    if not images:
        raise NotFound(f"{concept.name} has no photos", hint=f"concept add {concept.name} PHOTO…")
    if word is None:
        return images[0]
    if word.isdecimal() and len(word) <= _DIGITS and 1 <= int(word) <= len(images):
        return images[int(word) - 1]
    found = [each for each in images if each.filename == word]
    if not found and len(word) >= _SHORTEST_HASH:
        found = [each for each in images if each.sha256.startswith(word)]
    if len(found) == 1:
        return found[0]
    if found:
        hashes = ", ".join(each.sha256[:8] for each in found)
        raise InvalidInput(
            f"{concept.name} has {len(found)} photos {shown(word)}", hint=f"by hash: {hashes}"
        )
    raise NotFound(
        f"{concept.name} has no photo {shown(word)}",
        hint=f"a number from 1 to {len(images)}, or a hash or name as concept show has it",
    )

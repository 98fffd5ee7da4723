"""Asking for a ControlNet: the control picture, read and fitted. Loads no library of weights."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from PIL import Image
from pydantic import Field

from ..models.miniature.world.layouts import LAYOUT_COLOURS
from ..registry.documents import shown
from ..registry.errors import InvalidInput, NotFound
from ..registry.hashes import sha256_of
from ..registry.images import read_file, read_photo, strict_decoding
from ..registry.validation import form_of, validated

MAX_SCALE = 2.0
LAYOUT = "layout"
"""The short name of a base model's ControlNet for layouts, which boxes can be drawn for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlRequest:
    """A control picture, the ControlNet that it is for, and how much that counts.

    `kind` is a short name, hub repository or folder; the base model's only ControlNet by default.
    With `transfers`, weights that concepts change in the U-Net are changed in the ControlNet's copy
    of them too. Raises `InvalidInput` for a scale that is not 0 to 2.
    """

    picture: Path
    kind: str | None = None
    scale: Annotated[float, Field(ge=0, le=MAX_SCALE)] = 1.0
    transfers: bool = True

    def __post_init__(self) -> None:
        validated(form_of(type(self)), self, noun="setting")


@dataclass(frozen=True, slots=True)
class UsedControl:
    """A picture's control, as its metadata has it: hashes of control picture and ControlNet."""

    image_sha256: str
    network: str
    network_sha256: str
    scale: float
    transfers: bool = True


def parse_control(text: str, *, scale: float = 1.0, folder: Path | None = None) -> ControlRequest:
    """`IMAGE` or `IMAGE:KIND`; a relative path begins at `folder`.

    Raises `NotFound`, and `InvalidInput` for a colon without a kind.
    """
    named, _, kind = text.rpartition(":")
    for name, of in ((text, None), (named, kind)):
        path = (folder or Path()) / os.path.expanduser(name)
        if name and of != "" and os.path.isfile(path):
            return ControlRequest(picture=path, kind=of, scale=scale)
    if named and not kind and os.path.isfile((folder or Path()) / os.path.expanduser(named)):
        raise InvalidInput(
            f"{text} names no ControlNet after the colon", hint=f"{named}, or {named}:KIND"
        )
    raise NotFound(f"there is no control picture {named or text}", hint="IMAGE or IMAGE:KIND")


@dataclass(frozen=True, slots=True, eq=False)
class ReadControl:
    """A control picture as RGB, and the SHA-256 of its file."""

    path: Path
    image: Image.Image
    sha256: str

    def fitted(
        self,
        size: tuple[int, int],
        of: str = "what is drawn",
        *,
        hint: str = "cut it, or choose another --size",
    ) -> Image.Image:
        """The picture in the size (width, height) of what it is for.

        Raises `InvalidInput` for another shape.
        """
        if self.image.size == size:
            return self.image
        (width, height), (across, down) = self.image.size, size
        if abs(width * down - height * across) > max(width, height, across, down):
            raise InvalidInput(
                f"the control picture {self.path} is {width}x{height}, which is another shape than "
                f"the {across}x{down} of {of}",
                hint=hint,
            )
        return self.image.resize(size, Image.Resampling.LANCZOS)


def read_control(path: Path) -> ReadControl:
    """A control picture from its file. Raises `InvalidImage`."""
    data = read_file(path)
    with strict_decoding():
        return ReadControl(path, read_photo(data, str(path)), sha256_of(data))


def categories_in(layout: Iterable[str], categories: Mapping[str, str]) -> list[str]:
    """The categories of a layout's subjects, for a ControlNet for layouts.

    A subject without a category is one itself, in capitals or not. Raises `InvalidInput` for one
    that such ControlNets do not know.
    """
    found = [categories.get(name, name.lower()) for name in layout]
    if unknown := [each for each in found if each not in LAYOUT_COLOURS]:
        raise InvalidInput(
            f"the ControlNet {LAYOUT} knows no {shown(unknown[0])}",
            hint=f"without --layout-control; it knows {', '.join(LAYOUT_COLOURS)}",
        )
    return found


def check_same_control(
    picture: Path, used: UsedControl | None, asked: ControlRequest | None
) -> None:
    """Raise `InvalidInput` unless a control picture is given where one was used, and the same."""
    if used is None and asked is not None:
        raise InvalidInput(f"{picture} was drawn without a control picture", hint="leave it out")
    if used is None:
        return
    if asked is None:
        raise InvalidInput(
            f"{picture} was drawn with a control picture for the ControlNet {used.network}",
            hint=f"--control IMAGE; the SHA-256 of its file begins with {used.image_sha256[:12]}",
        )
    if read_control(asked.picture).sha256 != used.image_sha256:
        raise InvalidInput(
            f"{picture} was drawn with another control picture than {asked.picture}",
            hint=f"the SHA-256 of its file begins with {used.image_sha256[:12]}",
        )

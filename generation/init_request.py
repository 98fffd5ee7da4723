"""Asking for a picture to begin with, and what of it is redrawn. Loads no library of weights."""

import io
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

from PIL import Image, ImageOps
from pydantic import Field

from ..registry.errors import InvalidInput, NotFound
from ..registry.hashes import sha256_of
from ..registry.images import read_file, read_mask, read_photo, strict_decoding
from ..registry.validation import form_of, validated

STRENGTH = 0.8
_MULTIPLE = 8
"""Of pixels, that sides have to be."""
_MAX_SIDES = 2
"""A picture without a size of its own is no longer than so many sides of the base model's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InitRequest:
    """A picture to begin with (img2img), how strongly it is changed, and a mask (inpainting).

    With `strength` 1 all steps are taken, with 0.5 the second half of them. `mask` is the file of a
    picture that is white where it is redrawn; the rest stays. Raises `InvalidInput` for a strength
    that is not 0 to 1.
    """

    picture: Path
    strength: Annotated[float, Field(gt=0, le=1)] = STRENGTH
    mask: Path | None = None

    def __post_init__(self) -> None:
        validated(form_of(type(self)), self, noun="setting")


@dataclass(frozen=True, slots=True)
class UsedInit:
    """What a picture began with, as its metadata has it: the hashes of the files."""

    image_sha256: str
    strength: float
    mask_sha256: str | None = None

    @property
    def record(self) -> dict[str, object]:
        """As metadata; of what has no mask, none is in it."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class ReadInit:
    """A picture to begin with in the size of what is drawn, and its mask, grey.

    `original` is the size (width, height) of its file.
    """

    original: tuple[int, int]
    image: Image.Image
    mask: Image.Image | None
    used: UsedInit


def parse_init(
    picture: str, *, strength: float | None = None, mask: str | None = None, folder: Path = Path()
) -> InitRequest:
    """A request; relative paths begin at `folder`. Raises `NotFound` and `InvalidInput`."""
    paths: list[Path] = []
    for what, name in (("picture to begin with", picture), ("mask", mask)):
        if name is None:
            continue
        path = folder / os.path.expanduser(name)
        if not os.path.isfile(path):
            raise NotFound(f"there is no {what} {name}", hint="--init IMAGE --inpaint MASK")
        paths.append(path)
    return InitRequest(
        picture=paths[0],
        strength=STRENGTH if strength is None else strength,
        mask=paths[1] if mask is not None else None,
    )


def check_steps(steps: int, strength: float) -> None:
    """Raise `InvalidInput` if so few of some steps are taken that nothing is drawn."""
    if int(steps * strength) < 1:
        raise InvalidInput(
            f"a strength of {strength:g} leaves none of {steps} steps to take",
            hint="a higher --strength, or more --steps",
        )


def read_init(asked: InitRequest, size: tuple[int, int] | None, side: int) -> ReadInit:
    """Read what is asked for, in a size (width, height), or if None in its own.

    That is cut to multiples of 8 pixels, and reduced if it is longer than two sides of the base
    model's pictures. Raises `InvalidImage`, and `InvalidInput` for a size of another shape.
    """
    data = read_file(asked.picture)
    with strict_decoding():
        image = read_photo(data, str(asked.picture))
    target = size or _own_size(image.size, side)
    if _differs(image.size, target):
        (width, height), (across, down) = image.size, target
        raise InvalidInput(
            f"the picture {asked.picture} to begin with is {width}x{height}, which is another "
            f"shape than the {across}x{down} of what is drawn",
            hint="cut it to that shape",
        )
    used, mask = UsedInit(sha256_of(data), asked.strength), None
    if asked.mask is not None:
        mask_data = read_file(asked.mask)
        with strict_decoding():
            grey = read_mask(mask_data, str(asked.mask), image.size)
        mask = _fitted(Image.open(io.BytesIO(grey)).convert("L"), target)
        if not hard(mask).getbbox():
            raise InvalidInput(
                f"the mask {asked.mask} redraws nothing: what is white in it vanishes when it is "
                f"reduced to {target[0]}x{target[1]}",
                hint="paint more of it, or give a larger --size",
            )
        used = replace(used, mask_sha256=sha256_of(mask_data))
    return ReadInit(image.size, _fitted(image, target), mask, used)


def hard(mask: Image.Image) -> Image.Image:
    """A grey mask in black and white: what is lighter than the middle is redrawn."""
    return mask.point([0] * 128 + [255] * 128)


def resized(asked: InitRequest, size: tuple[int, int] | None, side: int) -> str | None:
    """A line about a picture to begin with that does not keep its size. Raises as `read_init`."""
    read = read_init(asked, size, side)
    if read.image.size == read.original:
        return None
    (width, height), (across, down) = read.original, read.image.size
    return f"{asked.picture} is {width}x{height}: drawn in {across}x{down}"


def _own_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    scale = min(1.0, _MAX_SIDES * side / max(size))
    width, height = (max(_MULTIPLE, int(each * scale) // _MULTIPLE * _MULTIPLE) for each in size)
    return width, height


def _differs(size: tuple[int, int], wanted: tuple[int, int]) -> bool:
    """Whether shapes differ by more than the rounding of a side to multiples of 8."""
    (width, height), (across, down) = size, wanted
    scale = max(across / width, down / height)
    return max(width * scale - across, height * scale - down) >= _MULTIPLE * max(1.0, scale)


def _fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A picture in a size, cut at its sides where that has another shape; pixels may stay."""
    (width, height), (across, down) = image.size, size
    if 0 <= width - across < _MULTIPLE and 0 <= height - down < _MULTIPLE:
        left, top = (width - across) // 2, (height - down) // 2
        return image.crop((left, top, left + across, top + down))
    return ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def check_same_init(picture: Path, used: UsedInit | None, asked: InitRequest | None) -> None:
    """Raise `InvalidInput` unless what a picture began with is given again, and the same."""
    if used is None:
        if asked is not None:
            raise InvalidInput(f"{picture} began with no other picture", hint="leave it out")
        return
    if asked is None:
        raise InvalidInput(
            f"{picture} began with a picture, which has to be given again",
            hint=f"--init IMAGE; {_begins(used.image_sha256)}",
        )
    if (used.mask_sha256 is None) != (asked.mask is None):
        raise InvalidInput(
            f"{picture} {'redrew a part' if used.mask_sha256 else 'changed all'} of that picture",
            hint=f"--inpaint MASK; {_begins(used.mask_sha256)}"
            if used.mask_sha256
            else "without --inpaint",
        )
    pairs = ((asked.picture, used.image_sha256, "picture"), (asked.mask, used.mask_sha256, "mask"))
    for path, sha256, what in pairs:
        if path is not None and sha256 is not None and sha256_of(read_file(path)) != sha256:
            raise InvalidInput(
                f"{picture} began with another {what} than {path}", hint=_begins(sha256)
            )


def _begins(sha256: str) -> str:
    return f"the SHA-256 of its file begins with {sha256[:12]}"

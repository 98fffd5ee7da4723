"""The pictures that those of `concept generate` and `concept reproduce` begin with."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .errors import usage

if TYPE_CHECKING:
    from ..generation.init_request import InitRequest
    from ..generation.provenance import Provenance
    from ..generation.request import Request
    from ..models.loading import LoadedBase

InitOption = Annotated[
    str | None,
    typer.Option(
        "--init",
        metavar="IMAGE",
        help="Begin with a picture in place of noise, and change it (img2img).",
        show_default=False,
    ),
]
StrengthOption = Annotated[
    float | None,
    typer.Option(
        "--strength",
        metavar="X",
        min=0.001,
        max=1,
        help="How much --init is changed, the share of steps that is taken; 0.8 by default.",
        show_default=False,
    ),
]
InpaintOption = Annotated[
    str | None,
    typer.Option(
        "--inpaint",
        metavar="MASK",
        help="Redraw only the part of --init that is white in this picture (inpainting).",
        show_default=False,
    ),
]
AgainOption = Annotated[
    str | None,
    typer.Option(
        "--init",
        metavar="IMAGE",
        help="The picture that it began with, if it began with one.",
        show_default=False,
    ),
]
MaskAgainOption = Annotated[
    str | None,
    typer.Option(
        "--inpaint",
        metavar="MASK",
        help="The mask of what was redrawn, if there was one.",
        show_default=False,
    ),
]


def parse(
    picture: str | None,
    mask: str | os.PathLike[str] | None,
    strength: float | None = None,
) -> "InitRequest | None":
    """What `--init` asks for. Raises `Failure` for options without it, and `NotFound`."""
    if picture is None:
        given = {"--inpaint": mask, "--strength": strength}
        if alone := [name for name, value in given.items() if value is not None]:
            raise usage(f"{alone[0]} is for a picture to begin with", "with --init IMAGE")
        return None
    from ..generation.init_request import parse_init

    return parse_init(picture, strength=strength, mask=None if mask is None else os.fspath(mask))


def check(base: "LoadedBase", requests: "Sequence[Request]") -> list[str]:
    """Read all pictures to begin with; returns a line for each that has to be resized."""
    from ..generation.init_request import resized
    from ..generation.request import naming_place

    asked: dict[tuple[InitRequest, tuple[int, int] | None], Request] = {}
    for each in requests:
        if each.init:
            asked.setdefault((each.init, each.settings.size), each)
    lines: list[str] = []
    for (init, size), request in asked.items():
        with naming_place(request):
            line = resized(init, size, base.backbone.size)
        lines += [line] if line else []
    return lines


def again(
    picture: Path, provenance: "Provenance", init: str | None, mask: str | None
) -> "InitRequest | None":
    """What a picture began with, given again, and checked against what its file says."""
    from ..generation.init_request import check_same_init

    asked = parse(init, mask)
    check_same_init(picture, provenance.init, asked)
    return asked

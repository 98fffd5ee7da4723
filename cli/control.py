"""The control pictures of `concept generate` and `concept reproduce`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..generation.control_request import ControlRequest
    from ..generation.provenance import Provenance
    from ..generation.request import Request
    from ..models.bases import Base
    from ..models.loading import LoadedBase

ControlOption = Annotated[
    str | None,
    typer.Option(
        metavar="IMAGE[:KIND]",
        help="A picture that says where things are, and the ControlNet that it is for: a short "
        "name, hub repository or folder; the base model's only one by default.",
        show_default=False,
    ),
]
AgainOption = Annotated[
    str | None,
    typer.Option(
        metavar="IMAGE[:KIND]",
        help="The control picture, if one was used, and where its ControlNet is now.",
        show_default=False,
    ),
]
ReferencesOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--reference-control",
        metavar="IMAGE",
        help="With --control: the control picture of a --reference's photo itself; repeatable, in "
        "the order of the photos.",
        show_default=False,
    ),
]
ReferencesAgainOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--reference-control",
        metavar="IMAGE",
        help="A control picture of what it was drawn after, if none beside --control is it.",
        show_default=False,
    ),
]
ScaleOption = Annotated[
    float,
    typer.Option("--control-scale", metavar="X", min=0, max=2, help="How much --control counts."),
]


def parse(text: str | None, scale: float = 1.0) -> "ControlRequest | None":
    """What `--control` asks for. Raises `NotFound`."""
    from ..generation.control_request import parse_control

    return None if text is None else parse_control(text, scale=scale)


def find_layouts(
    picture: Path,
    provenance: "Provenance",
    given: "Sequence[Path] | None",
    control: "ControlRequest | None",
) -> list[Path]:
    """The control pictures of what a picture was drawn after. Raises as the registry's."""
    from ..generation.frames import find_layouts

    beside = control.picture if control else None
    found = find_layouts(picture, provenance.layouts, given or (), beside=beside)
    return [each.path for each in found.values()]


def check_control_kinds(base: "Base", requests: "Sequence[Request]") -> None:
    """Find the ControlNets, before anything is loaded. Raises `NotFound` and `InvalidInput`."""
    from ..generation.request import check_control_kinds

    check_control_kinds(base, requests)


def check(base: "LoadedBase", requests: "Sequence[Request]") -> list[str]:
    """Read the control pictures; returns a line for each that has to be resized."""
    from ..generation.controls import check_controls
    from ..generation.request import with_size

    side = base.backbone.size
    return check_controls(base.base, side, [with_size(each, side) for each in requests])


def again(
    picture: Path, provenance: "Provenance", text: str | None, *, is_known: bool
) -> "ControlRequest | None":
    """The control with which a picture is drawn again, checked against what its file says.

    The ControlNet that the file names is believed where the registry knows the picture, or where it
    is a short name: untrusted metadata must not make us read a folder or download a repository.
    """
    from dataclasses import replace

    from ..generation.control_request import check_same_control
    from ..registry.errors import InvalidInput, quoted

    asked = parse(text)
    check_same_control(picture, provenance.control_picture, asked)
    if asked is None or provenance.control is None or asked.kind is not None:
        return asked
    named = provenance.control.network
    if not is_known and ("/" in named or Path(named).exists()):
        raise InvalidInput(
            f"{picture} says that it was drawn with the ControlNet {named}, which this registry "
            "does not know of",
            hint=f"--control {quoted(f'{asked.picture}:{named}')}",
        )
    return replace(asked, kind=named)

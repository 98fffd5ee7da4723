"""Control pictures and ControlNets of what is drawn, and how concepts change the latter."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from ..adapters.timestep_tokens import routed
from ..models.bases import Base, find_control
from ..models.conditioning import Control
from ..models.control import LoadedControl, load_control
from ..models.loading import LoadedBase
from ..models.pixels import control_pixels
from ..models.sd import cross_attention_of
from ..registry.errors import InvalidInput
from .control_request import ControlRequest, UsedControl, read_control
from .injection import InjectedConcept
from .request import Request


@dataclass(frozen=True, slots=True)
class PreparedControl:
    """A request's control, and what its pictures' metadata says of it."""

    control: Control
    used: UsedControl

    @property
    def record(self) -> dict[str, object]:
        """As metadata; `transfers` is left out where it is on."""
        record: dict[str, object] = asdict(self.used)
        if self.used.transfers:
            del record["transfers"]
        return record


def check_controls(base: Base, size: int, requests: Sequence[Request]) -> list[str]:
    """Read all control pictures and find their ControlNets, before anything is drawn.

    `size` is the side of pictures whose request has none. Returns a line for each control picture
    that has to be resized. Raises `NotFound`, `InvalidImage` and `InvalidInput`.
    """
    notes: dict[str, None] = {}
    checked: set[tuple[Path, tuple[int, int]]] = set()
    for request in requests:
        if (asked := request.control) is None:
            _check_none_follow(request)
            continue
        find_control(base, asked.kind)
        wanted = request.settings.size or (size, size)
        if (key := (asked.picture, wanted)) in checked:
            continue
        checked.add(key)
        read = read_control(asked.picture)
        if read.fitted(wanted).size != read.image.size:
            width, height = read.image.size
            line = f"{asked.picture} is {width}x{height}: resized to {wanted[0]}x{wanted[1]}"
            notes.setdefault(line)
    return list(notes)


def _check_none_follow(request: Request) -> None:
    """Raise `InvalidInput` if a reference has a control picture, and what is drawn has none."""
    for each in request.references:
        if each.control is not None:
            raise InvalidInput(
                f"the reference {each.name} has a control picture, and what is drawn has none",
                hint="--control IMAGE as well, or without --reference-control",
            )


class Controls:
    """The ControlNets of requests, each loaded once."""

    def __init__(self, base: LoadedBase, requests: Sequence[Request]) -> None:
        self._base = base
        self._loaded: dict[str, LoadedControl] = {}
        for request in requests:
            if request.control is not None:
                source = find_control(base.base, request.control.kind)
                if source.name not in self._loaded:
                    self._loaded[source.name] = load_control(source, base)

    def of(self, request: Request) -> PreparedControl | None:
        """A request's control, if it has one. Raises as reading and fitting it do."""
        if (asked := request.control) is None:
            return None
        return self._prepared(asked, request.settings.size)

    def _prepared(self, asked: ControlRequest, size: tuple[int, int] | None) -> PreparedControl:
        backbone = self._base.backbone
        loaded = self._loaded[find_control(self._base.base, asked.kind).name]
        read = read_control(asked.picture)
        pixels = control_pixels(read.fitted(size or (backbone.size, backbone.size)))
        used = UsedControl(read.sha256, loaded.name, loaded.sha256, asked.scale, asked.transfers)
        control = Control(loaded.network, pixels.to(backbone.device), asked.scale)
        return PreparedControl(control, used)


@contextmanager
def following(
    prepared: PreparedControl | None, concepts: Sequence[InjectedConcept]
) -> Iterator[Control | None]:
    """The control, if any; inside the context its ControlNet follows injected concepts.

    It takes text states and changes of weights as the U-Net does.
    """
    if prepared is None:
        yield None
        return
    network = prepared.control.network
    changing = concepts if prepared.used.transfers else ()
    with routed(cross_attention_of(network)), transferred(network, changing):
        yield prepared.control


@contextmanager
def transferred(network: nn.Module, concepts: Sequence[InjectedConcept]) -> Iterator[None]:
    """Change a ControlNet's copy of the U-Net's encoder as concepts change the U-Net's.

    Its weights + (tuned - base), "model transfer" (DreamTuner, arXiv 2312.13691, appendix B); after
    the context they are the original tensors. Parameters that it has not are passed over.
    """
    own = dict(network.named_parameters())
    original: dict[str, torch.Tensor] = {}
    try:
        for concept in concepts:
            if (change := concept.change) is None:
                continue
            for name in change.names & own.keys():
                parameter = own[name]
                if not change.fits(name, parameter.shape):
                    continue
                original.setdefault(name, parameter.data)
                parameter.data = change.added_to(name, parameter)
        yield
    finally:
        for name, data in original.items():
            own[name].data = data

"""Control pictures and ControlNets of what is drawn, and how concepts change the latter."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from PIL import Image
from torch import nn

from ..adapters.timestep_tokens import routed
from ..models.bases import Base, find_control
from ..models.conditioning import Control
from ..models.control import LoadedControl, load_control
from ..models.loading import LoadedBase
from ..models.miniature.world.layouts import layout_picture
from ..models.pixels import control_pixels
from ..models.sd import cross_attention_of
from ..registry.hashes import sha256_of
from .control_request import LAYOUT, UsedControl, categories_in, read_control
from .injection import InjectedConcept
from .layout import Box
from .regional_plan import PlannedPart, RegionalPlan
from .request import Request, check_control_kinds, check_none_follow, naming_place


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
    check_control_kinds(base, requests)
    for request in requests:
        with naming_place(request):
            check_none_follow(request)
            if (asked := request.control) is None:
                continue
            wanted = request.settings.size or (size, size)
            if (key := (asked.picture, wanted)) in checked:
                continue
            checked.add(key)
            read = read_control(asked.picture)
            fitted = read.fitted(wanted)
        if fitted.size != read.image.size:
            width, height = read.image.size
            line = f"{asked.picture} is {width}x{height}: resized to {wanted[0]}x{wanted[1]}"
            notes.setdefault(line)
    return list(notes)


class Controls:
    """The ControlNets of requests, each loaded once."""

    def __init__(self, base: LoadedBase, requests: Sequence[Request]) -> None:
        self._base = base
        self._loaded: dict[str, LoadedControl] = {}
        for request in requests:
            if request.settings.layout_control:
                self._load(LAYOUT)
            elif request.control is not None:
                self._load(request.control.kind)

    def _load(self, kind: str | None) -> LoadedControl:
        source = find_control(self._base.base, kind)
        if source.name not in self._loaded:
            self._loaded[source.name] = load_control(source, self._base)
        return self._loaded[source.name]

    def of(
        self, request: Request, categories: Mapping[str, str] | None = None
    ) -> PreparedControl | None:
        """A request's control, if it has one. Raises as reading and fitting it do.

        `categories` are those of the concepts that a layout has boxes for, by name.
        """
        settings, asked = request.settings, request.control
        side = self._base.backbone.size
        size = settings.size or (side, side)
        if boxes := settings.shown_boxes:
            picture = boxes_picture(boxes, categories or {}, size)
            return self._prepared(picture, sha256_of(picture.tobytes()), LAYOUT)
        if asked is None:
            return None
        read = read_control(asked.picture)
        fitted = read.fitted(size)
        return self._prepared(fitted, read.sha256, asked.kind, asked.scale, asked.transfers)

    def _prepared(
        self,
        picture: Image.Image,
        sha256: str,
        kind: str | None,
        scale: float = 1.0,
        transfers: bool = True,
    ) -> PreparedControl:
        loaded = self._load(kind)
        used = UsedControl(sha256, loaded.name, loaded.sha256, scale, transfers)
        pixels = control_pixels(picture).to(self._base.backbone.device)
        return PreparedControl(Control(loaded.network, pixels, scale), used)


def boxes_picture(
    layout: Mapping[str, Box], categories: Mapping[str, str], size: tuple[int, int]
) -> Image.Image:
    """The control picture (width, height) of a layout's boxes, for a ControlNet for layouts.

    A subject without a category is one itself. Raises `InvalidInput` for one that such ControlNets
    do not know.
    """
    boxes = list(zip(categories_in(layout, categories), layout.values(), strict=True))
    square = layout_picture(boxes, max(size))
    return square if square.size == size else square.resize(size, Image.Resampling.NEAREST)


@contextmanager
def following(
    prepared: PreparedControl | None,
    concepts: Sequence[InjectedConcept],
    plan: RegionalPlan | None = None,
) -> Iterator[Control | None]:
    """The control, if any; inside the context its ControlNet follows injected concepts.

    It takes text states and changes of weights as the U-Net does. With a `plan`, those that were
    injected apart are left to its predictions: see `followed`.
    """
    if prepared is None:
        yield None
        return
    network = prepared.control.network
    changing = [each for each in concepts if plan is None or not each.is_apart]
    with (
        routed(cross_attention_of(network)),
        transferred(network, changing if prepared.used.transfers else ()),
    ):
        yield prepared.control


def followed(
    plan: RegionalPlan | None,
    prepared: PreparedControl | None,
    concepts: Sequence[InjectedConcept],
) -> RegionalPlan | None:
    """The plan, in which a ControlNet follows each prediction's own concept as the U-Net does."""
    if plan is None or prepared is None or not prepared.used.transfers:
        return plan
    network = prepared.control.network
    changes = {each.mention.name: each.change for each in concepts if each.weights}
    parts: list[PlannedPart] = []
    for part in plan.parts:
        change = None if part.subject is None else changes[plan.subjects[part.subject]]
        own = change.computed_for(network) if change else None
        parts.append(replace(part, control_change=own, beside=[network] if part.branches else []))
    return replace(plan, parts=parts)


@contextmanager
def transferred(network: nn.Module, concepts: Sequence[InjectedConcept]) -> Iterator[None]:
    """Change a ControlNet's copy of the U-Net's encoder as concepts change the U-Net's.

    Its weights + (tuned - base), "model transfer" (DreamTuner, arXiv 2312.13691, appendix B); after
    the context they are the original tensors. Parameters that it has not are passed over.
    """
    own = dict(network.named_parameters())
    original = {name: parameter.data for name, parameter in own.items()}
    try:
        for change in (each.change for each in concepts if each.change):
            for name, changed in change.computed_for(network).weights.items():
                own[name].data = changed
        yield
    finally:
        for name, data in original.items():
            own[name].data = data

"""A request for pictures: prompt, seeds and settings. Loads no library that loads weights."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, Field

from ..models.bases import Base, Layers, Scheduler, find_control, scheduler_of
from ..models.references import MAX_REFERENCES, MAX_STRENGTH
from ..registry.documents import shown
from ..registry.errors import ConceptryError, InvalidInput
from ..registry.validation import form_of, validated
from .control_request import LAYOUT, ControlRequest
from .init_request import InitRequest, check_steps, read_init
from .layout import Box, Layout, settled
from .prompt_syntax import mentions
from .reference_syntax import ReferenceRequest

SCHEDULERS = get_args(Scheduler)
MAX_SEED = (1 << 63) - 1

MAX_SIDE = 4096
"""The longest side of a picture, in pixels."""


def _known(scheduler: str) -> str:
    if scheduler not in SCHEDULERS:
        raise InvalidInput(
            f"there is no scheduler {shown(scheduler)}", hint=" or ".join(SCHEDULERS)
        )
    return scheduler


def _drawable(size: tuple[int, int]) -> tuple[int, int]:
    if not all(8 <= side <= MAX_SIDE and side % 8 == 0 for side in size):
        raise InvalidInput(
            f"size is {size[0]:d}x{size[1]:d}: width and height have to be multiples of 8, "
            f"8 to {MAX_SIDE}",
            hint="512 or 768x512",
        )
    return size


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """Settings of the sampler.

    `guidance` is the classifier-free guidance scale (Ho and Salimans 2022, eq. 6, where it is
    w + 1); `scheduler` and `size`, (width, height) in pixels, are the base model's own by default.
    `separate` keeps the attention of a prompt's concepts apart. `reference_share` and
    `reference_guidance` are p_r and ω_r of interleaved guidance (DreamTuner, eq. 4-6), for pictures
    with references: the share of steps that references guide instead of the prompt, and how
    strongly; the references' own by default. `encoder_strength` is β of the base model's subject
    encoder, which then sees the photos that references name. `layout` keeps each subject in a box,
    or in the region where it is found; with `layout_control`, the base model's ControlNet for
    layouts is shown the boxes. With `prompt_weights`, `(word:1.2)` weighs words of the prompts,
    which may be longer than the text encoder reads at once. `perturbed_attention` is the scale of
    perturbed-attention guidance (Ahn et al. 2024, eq. 14; 0 is without), by self-attention layers
    that `perturbed_layers` names. Raises `InvalidInput`.
    """

    steps: Annotated[int, Field(ge=1, le=1000)] = 25
    guidance: Annotated[float, Field(ge=0, le=100)] = 5.0
    negative: str = ""
    scheduler: Annotated[str, AfterValidator(_known)] | None = None
    size: Annotated[tuple[int, int], AfterValidator(_drawable)] | None = None
    separate: bool = False
    reference_share: Annotated[float, Field(ge=0, le=1)] | None = None
    reference_guidance: Annotated[float, Field(ge=0, le=100)] | None = None
    encoder_strength: Annotated[float, Field(ge=0, le=MAX_STRENGTH)] = 0.0
    layout: Layout | None = None
    layout_control: bool = False
    prompt_weights: bool = False
    perturbed_attention: Annotated[float, Field(ge=0, le=100)] = 0.0
    perturbed_layers: Layers = "mid"

    @classmethod
    def for_base(
        cls,
        base: Base,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        scheduler: str | None = None,
        perturbed_attention: float | None = None,
        **others: Any,
    ) -> "SamplingSettings":
        """Settings in which what is not given is as the base model's pictures are drawn.

        `scheduler` may be `own`, that of the base model itself.
        """
        usual = base.sampling
        return cls(
            steps=usual.steps if steps is None else steps,
            guidance=usual.guidance if guidance is None else guidance,
            scheduler=usual.scheduler if scheduler is None else scheduler_of(scheduler),
            perturbed_attention=(
                usual.perturbed_attention if perturbed_attention is None else perturbed_attention
            ),
            perturbed_layers=usual.perturbed_layers,
            **others,
        )

    @property
    def shown_boxes(self) -> Mapping[str, Box] | None:
        """What a ControlNet for layouts is shown, if it is."""
        layout = self.layout if self.layout_control else None
        return layout if isinstance(layout, Mapping) else None

    def to_mapping(self) -> dict[str, object]:
        """The settings as pictures and the registry keep them.

        What came later is left out when off: pictures from before it keep the same settings.
        """
        settings = asdict(self)
        is_off = {
            "separate": False,
            "reference_share": None,
            "reference_guidance": None,
            "encoder_strength": 0,
            "layout": None,
            "layout_control": False,
            "prompt_weights": False,
            "perturbed_attention": 0,
        }
        if not self.perturbed_attention:
            del settings["perturbed_layers"]
        return {
            name: value
            for name, value in settings.items()
            if name not in is_off or value != is_off[name]
        }

    def __post_init__(self) -> None:
        validated(form_of(type(self)), self, noun="setting")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt to draw once for each seed, perhaps after the subjects of references.

    `init` is a picture that it begins with. That of a `scene` names its pictures' files by it, and
    each is drawn once: see `resuming`. `place` is the file and line, or scene, that asks for it,
    and `said` are the keys there. Raises `InvalidInput` for seeds beyond 63 bits, for too many
    references, and for a strength that leaves no steps.
    """

    prompt: str
    seeds: Sequence[int]
    settings: SamplingSettings = field(default_factory=SamplingSettings)
    references: tuple[ReferenceRequest, ...] = ()
    control: ControlRequest | None = None
    init: InitRequest | None = None
    scene: str = ""
    place: str = field(default="", compare=False)
    said: frozenset[str] = field(default=frozenset(), compare=False)

    @property
    def title(self) -> str:
        """What its pictures' files are called after."""
        return self.scene or self.prompt

    def __post_init__(self) -> None:
        if self.init is not None:
            check_steps(self.settings.steps, self.init.strength)
        for seed in (min(self.seeds), max(self.seeds)):
            if not 0 <= seed <= MAX_SEED:
                raise InvalidInput(f"the seed {seed} does not fit into 63 bits", hint="--seed 0")
        if len(self.references) > MAX_REFERENCES:
            raise InvalidInput(
                f"a picture is drawn after {MAX_REFERENCES} photos at most, "
                f"not {len(self.references):,}",
                hint="leave some out",
            )


@contextmanager
def naming_place(request: Request) -> Iterator[None]:
    """Errors inside say where the request was made, if that is in a file."""
    try:
        yield
    except ConceptryError as error:
        raise error.at(request.place) if request.place else error from None


def with_layout(request: Request) -> Request:
    """The request with the layout that it is drawn with: `auto` if its prompt has several concepts.

    Unless another was asked for, or none.
    """
    layout = settled(request.settings.layout, len(mentions(request.prompt)))
    return replace(request, settings=replace(request.settings, layout=layout))


def with_size(request: Request, side: int) -> Request:
    """The request with the size of what it begins with, unless it has one, or begins with nothing.

    `side` is that of the base model's pictures. Raises what `read_init` raises.
    """
    if request.init is None:
        return request
    read = read_init(request.init, request.settings.size, side)
    return replace(request, settings=replace(request.settings, size=read.image.size))


def check_encoder(request: Request) -> None:
    """Raise `InvalidInput` if a subject encoder is asked for, but no photo for it to see."""
    if request.settings.encoder_strength and not request.references:
        raise InvalidInput(
            "a subject encoder sees the photos of references: none is named",
            hint="--reference NAME, or without --encoder-strength",
        )


def check_none_follow(request: Request) -> None:
    """Raise `InvalidInput` if a reference has a control picture, and what is drawn has none."""
    if request.control is not None or request.settings.layout_control:
        return
    for each in request.references:
        if each.control is not None:
            raise InvalidInput(
                f"the reference {each.name} has a control picture, and what is drawn has none",
                hint="--control IMAGE as well, or without --reference-control",
            )


def check_control_kinds(base: Base, requests: Sequence[Request]) -> None:
    """Find the ControlNets of requests. Raises `NotFound` and `InvalidInput`."""
    for request in requests:
        with naming_place(request):
            if request.settings.layout_control:
                _check_layout_control(base, request)
            elif request.control:
                find_control(base, request.control.kind)


def _check_layout_control(base: Base, request: Request) -> None:
    if request.settings.shown_boxes is None:
        raise InvalidInput(
            "--layout-control shows a ControlNet the boxes of a layout: there are none",
            hint='--layout "rex=0,.3,.5,1" for each subject',
        )
    if request.control is not None:
        raise InvalidInput(
            "a control picture and --layout-control do not go together",
            hint="leave one of them out",
        )
    if LAYOUT not in {each.name for each in base.controls}:
        raise InvalidInput(
            f"{base.name} has no ControlNet for layouts of boxes",
            hint="without --layout-control; the miniature has one",
        )

"""`concept generate`: draw pictures. `concept reproduce`: draw a picture again."""

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict

import typer

from ..registry.errors import quoted
from ..registry.hashes import sha256_of
from . import control as control_options
from . import frames as frame_options
from . import init as init_options
from . import script as script_options
from .arguments import (
    GuidanceOption,
    LayoutControlOption,
    LayoutOption,
    PerturbedAttentionOption,
    StepsOption,
)
from .errors import usage
from .framework import Session, session_of
from .output import count
from .places import check_layout, where_concepts_are
from .quick_start import quick_imports
from .training_options import given
from .unused import IN_FILES, CommandOptions, LookedUp, unused

if TYPE_CHECKING:
    from ..generation.drawing import Picture
    from ..generation.foreign_pictures import ForeignPicture
    from ..generation.init_request import InitRequest
    from ..generation.observing import Leak
    from ..generation.picture_texts import FileFormat
    from ..generation.prompt_files import PromptDefaults
    from ..generation.provenance import Provenance
    from ..generation.request import Request
    from ..models.bases import Base
    from ..models.loading import LoadedBase
    from ..registry import Registry
    from ..registry.records import Lineage

_OUT = Path("pictures")
_MOST_NOTES = 5
_BATCH = 4


class _Document(TypedDict):
    path: str
    seed: int
    sha256: str
    prompt: str
    maps: str | None
    leaks: list[dict[str, object]]
    is_new: bool


def generate(
    context: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="What to draw.", show_default=False)
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw all prompts of a .txt, .yaml, .csv or .jsonl file, or a script's scenes.",
            show_default=False,
        ),
    ] = None,
    base: Annotated[
        str,
        typer.Option(
            metavar="BASE",
            help="The base model: an alias, hub repository, folder or .safetensors file.",
        ),
    ] = "miniature",
    num_pictures: Annotated[
        int | None,
        typer.Option(
            "-n",
            metavar="N",
            min=1,
            max=10_000,
            help="Pictures of each prompt, or with --animate animations; 4, or 1, by default.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="SEED",
            min=0,
            help="Seed of a prompt's first picture, counted up for the others; random by default.",
            show_default=False,
        ),
    ] = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    perturbed_attention: PerturbedAttentionOption = None,
    negative: Annotated[
        str, typer.Option(metavar="TEXT", help="The negative prompt.", show_default=False)
    ] = "",
    scheduler: Annotated[
        Literal["ddim", "euler", "dpm++", "own"] | None,
        typer.Option(
            metavar="NAME",
            help="ddim, euler, dpm++ or own; by default the base model's choice (concept bases).",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WxH", help="In pixels; the base model's own by default.", show_default=False
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=256,
            help="Pictures in a batch; 4 by default. Frames are drawn one at a time.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the pictures go.")] = _OUT,
    file_format: Annotated[
        Literal["png", "webp", "jpg"],
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="png, webp or jpg; the first two keep every pixel, and all what made a picture.",
        ),
    ] = "png",
    grid: Annotated[bool, typer.Option("--grid", help="Also put all of them on a sheet.")] = False,
    maps: Annotated[
        bool, typer.Option("--maps", help="Also write heat-maps of each concept's words.")
    ] = False,
    point: Annotated[
        list[str] | None,
        typer.Option(
            "--point",
            metavar="X,Y",
            help="With --maps: where this place of a picture looks in references, as shares of "
            "width and height; repeatable. The centre by default.",
            show_default=False,
        ),
    ] = None,
    leak: Annotated[
        bool,
        typer.Option("--leak", help="Measure how much attention to a concept falls on the others."),
    ] = False,
    separate: Annotated[
        bool, typer.Option("--separate", help="Keep the concepts of a prompt apart; takes longer.")
    ] = False,
    layout: LayoutOption = None,
    layout_control: LayoutControlOption = False,
    reference: Annotated[
        list[str] | None,
        typer.Option(
            "--reference",
            metavar="NAME[=PHOTO][:W]",
            help="Draw after a photo of a concept, trained or not; repeatable. W is its weight.",
            show_default=False,
        ),
    ] = None,
    reference_share: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            min=0,
            max=1,
            help="Share of steps that references guide, not the prompt; 0.9 by default, 0 if the "
            "prompt names their concepts.",
            show_default=False,
        ),
    ] = None,
    reference_guidance: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            min=0,
            max=100,
            help="Guidance scale of references; 2.5 by default.",
            show_default=False,
        ),
    ] = None,
    encoder_strength: Annotated[
        float,
        typer.Option(
            metavar="X",
            min=0,
            max=10,
            help="How strongly the base model's subject encoder, if it has one, sees references.",
        ),
    ] = 0.0,
    init: init_options.InitOption = None,
    strength: init_options.StrengthOption = None,
    inpaint: init_options.InpaintOption = None,
    control: control_options.ControlOption = None,
    control_scale: control_options.ScaleOption = 1.0,
    reference_control: control_options.ReferencesOption = None,
    animate: frame_options.AnimateOption = False,
    controls: frame_options.ControlsOption = None,
    previous_frame: frame_options.PreviousOption = None,
    first_frame: frame_options.FirstOption = None,
    frame_rate: frame_options.RateOption = None,
    animation: frame_options.FormatOption = None,
    prompt_weights: Annotated[
        bool,
        typer.Option(
            "--prompt-weights",
            help="Let (word:1.2) weigh words, and prompts be longer than the text encoder reads.",
        ),
    ] = False,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile the denoiser's blocks: the first picture takes minutes, later ones less "
            "on a GPU.",
        ),
    ] = False,
    dry_run: script_options.DryRunOption = False,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Refuse other tools' prompt syntax: (rex:1.2), BREAK."),
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Download nothing.")] = False,
) -> None:
    """Draw pictures of a prompt; <rex> in it stands for the concept rex.

    <rex@2> is a version, <rex@best> an alias, <rex:0.8> a strength. --reference rex draws the
    subject of a photo of rex, without any training or beside it. What made a picture is kept in
    the registry and in its file, so that concept reproduce can draw it again.
    """
    session = session_of(context)
    if (prompt is None) == (prompts is None):
        raise usage("give a prompt or a file of prompts", 'concept generate "a photo of <rex>"')
    film = frame_options.parse(
        controls,
        control_scale,
        is_animated=animate,
        has_prompts=prompts is not None,
        has_control=control is not None,
        batch=batch,
        previous_frame=previous_frame,
        first_frame=first_frame,
        frame_rate=frame_rate,
        animation=animation,
    )
    from ..generation.frames import PHOTO_WEIGHT
    from ..generation.layout import parse_layout
    from ..generation.prompt_entries import parse_size
    from ..generation.prompt_files import PromptDefaults
    from ..generation.reference_syntax import parse_reference, with_layouts
    from ..generation.request import SamplingSettings
    from ..models.bases import find_base
    from ..models.references import WEIGHT

    found = find_base(base)  # report an unknown one before anything is loaded or created
    settings = SamplingSettings.for_base(
        found,
        steps=steps,
        guidance=guidance,
        perturbed_attention=perturbed_attention,
        negative=negative,
        scheduler=scheduler,
        size=None if size is None else parse_size(size),
        separate=separate,
        layout=parse_layout(layout or ()),
        layout_control=layout_control,
        reference_share=reference_share,
        reference_guidance=reference_guidance,
        encoder_strength=encoder_strength,
        prompt_weights=prompt_weights,
    )
    weight = PHOTO_WEIGHT if animate else WEIGHT
    references = with_layouts(
        [parse_reference(each, default=weight) for each in reference or ()], reference_control or ()
    )
    points = _points(point, maps=maps)
    defaults = PromptDefaults(
        n=num_pictures or (1 if animate else 4),
        seed=secrets.randbelow(1 << 32) if seed is None else seed,
        settings=settings,
        references=references,
        control=control_options.parse(control, control_scale),
        control_scale=control_scale,
        init=init_options.parse(init, inpaint, strength) if init is not None else None,
        strength=strength,
        mask=Path(os.path.expanduser(inpaint)) if inpaint is not None else None,
        reference_weight=weight,
        scene_n=num_pictures or 1,
        scene_seed=seed or 0,
    )
    requests = _requests(prompt, prompts, defaults)
    if film:
        requests = film.frames(requests, file_format, found, out)
    control_options.check_control_kinds(found, requests)
    script = script_options.script_of(prompts, requests, out, is_animated=animate, leak=leak)
    is_plain = not _most_concepts(requests) and not any(each.references for each in requests)
    looked = {"file_format": file_format, "with_maps": maps, "points": points}
    options = CommandOptions(
        leak=leak,
        points=bool(points),
        control_scale=given(context, "control_scale"),
        frames=film is not None and film.chains(requests),
        given=frozenset(key for key, name in IN_FILES.items() if given(context, name)),
    )
    if dry_run:
        script_options.show_plan(
            session,
            requests,
            found,
            out,
            is_plain=is_plain,
            frame_weights=film.weights if film else None,
            with_leaks=leak,
            check=partial(
                _check,
                session,
                base=found,
                requests=requests,
                file_format=file_format,
                strict=strict,
                options=options,
            ),
            **looked,
        )
        return
    with session.registry(create=is_plain) as registry:
        _check(session, registry, found, requests, file_format, strict=strict, options=options)
        loaded = _load(session, base, offline=offline)
        from ..generation import generating
        from ..generation.story import Story

        if compiled:
            loaded.backbone.set_compiled(True)
        for check in (init_options.check, control_options.check):
            for line in _first_of(check(loaded, requests)):
                session.output.note(line)
        story = Story(registry, loaded, script, requests, out, **looked) if script else None
        draw = film.draw if film else partial(generating.generate, batch=batch or _BATCH)
        drawing = (
            story.draw(batch=batch or _BATCH)
            if story
            else draw(registry, loaded, requests, out, with_leaks=leak, **looked)
        )
        total = story.num_left if story else sum(len(each.seeds) for each in requests)
        with film.interruptible(requests, defaults, leak=leak) if film else nullcontext():
            images, leaks, for_grid = _drawn(
                session, drawing, total, grid=grid, has_scenes=story is not None
            )
    sheet = str(generating.save_grid(for_grid, out)) if grid else None
    page = str(story.page) if story else None
    document = {
        "images": images,
        "base": loaded.base.name,
        "base_sha256": loaded.sha256,
        "grid": sheet,
        "page": page,
        "animations": film.written if film else [],
    }
    paths = [path for each in images for path in (each["path"], each["maps"]) if path]
    session.output.lines(document, [*paths, *filter(None, [sheet, page]), *document["animations"]])
    _say_what_was_drawn(session, requests, leaks, [each["is_new"] for each in images])


def _say_what_was_drawn(
    session: Session,
    requests: "list[Request]",
    leaks: "list[list[Leak]]",
    are_new: Sequence[bool],
) -> None:
    """Say how much was drawn, and was there, and its leaks."""
    drawn = sum(are_new)
    for line in _mean_leaks(leaks):
        session.output.note(line)
    there = f"; {len(are_new) - drawn:,} were there" if drawn < len(are_new) else ""
    session.output.note(f"{count(drawn, 'picture')}, {_seeds(requests)}{there}")


def _check(
    session: Session,
    registry: "Registry | None",
    base: "Base",
    requests: "list[Request]",
    file_format: "FileFormat",
    *,
    strict: bool,
    options: CommandOptions,
) -> None:
    """Find what prompts name before anything is loaded, and say what may not be meant.

    And what is asked for in vain.
    """
    from ..generation.control_request import read_control
    from ..generation.picture_texts import check_room
    from ..generation.prompt_syntax import check_negative, resolve_prompt
    from ..generation.reference_syntax import resolve_references
    from ..generation.request import check_encoder, check_none_follow, naming_place
    from ..models.native import native_of

    found: list[LookedUp] = []
    for request in requests:
        with naming_place(request):
            if registry is not None:
                chosen = resolve_prompt(registry, request.prompt)
                references = resolve_references(registry, request.references, request.prompt)
                found.append(LookedUp(request=request, chosen=chosen, references=references))
            check_layout(request, found[-1] if found else None)
            check_negative(request.settings.negative)
            check_encoder(request)
            check_none_follow(request)
            check_room(request.prompt, request.settings.negative, file_format)
    native = native_of(base)
    sized: dict[tuple[Path, tuple[int, int]], Request] = {}
    for each in requests:
        size = each.settings.size or ((native.size, native.size) if native else None)
        if each.control and size and not each.init:
            sized.setdefault((each.control.picture, size), each)
    for (picture, size), request in sized.items():
        with naming_place(request):
            read_control(picture).fitted(size)
    _warn_of_other_syntax(session, registry, requests, strict)
    for line in _first_of(where_concepts_are(found)):
        session.output.note(line)
    for line in unused(found, options) if found else ():
        session.output.warn(line)


def _load(session: Session, base: str, *, offline: bool) -> "LoadedBase":
    session.output.note(f"loading {base}")
    with quick_imports():
        from ..models.loading import load_base

        return load_base(base, offline=offline)


def _drawn(
    session: Session, drawing: "Iterator[Picture]", total: int, *, grid: bool, has_scenes: bool
) -> "tuple[list[_Document], list[list[Leak]], list[Picture]]":
    """Draw pictures: what is said of each, their leaks, and themselves if there is to be a grid."""
    images: list[_Document] = []
    for_grid: list[Picture] = []
    leaks: list[list[Leak]] = []
    done = 0
    with session.output.progress("drawing") as advance:
        for picture in drawing:
            images.append(_described(picture))
            leaks.append(picture.leaks)
            if grid:
                for_grid.append(picture)
            done += picture.is_new or not has_scenes
            if advance and picture.is_new:
                advance(done, total)
    return images, leaks, for_grid


def _points(texts: list[str] | None, *, maps: bool) -> list[tuple[float, float]]:
    """The places that maps are to show. Raises `Failure` for what is none, and without maps."""
    if texts and not maps:
        raise usage("--point is for heat-maps", "with --maps, or leave it out")
    from ..generation.provenance import check_points

    points = [_point(each) for each in texts or ()]
    check_points(points)
    return points


def _point(text: str) -> tuple[float, float]:
    """`0.5,0.3` as shares of width and height."""
    try:
        x, y = (float(each) for each in text.split(","))
    except ValueError:
        x = y = -1.0
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise usage(f"{text!r} is no point", "shares from the top left, as --point 0.5,0.3")
    return x, y


def _requests(prompt: str | None, path: Path | None, defaults: "PromptDefaults") -> "list[Request]":
    from ..generation.prompt_files import make_request, read_prompts

    requests = read_prompts(path, defaults) if path else [make_request(prompt or "", defaults)]
    if not any(each.init for each in requests):  # a file may say what to begin with
        init_options.parse(None, defaults.mask, defaults.strength)
    return requests


def _warn_of_other_syntax(
    session: Session, registry: "Registry | None", requests: "list[Request]", strict: bool
) -> None:
    """Warn of other tools' syntax in prompts, once for each piece."""
    from ..generation.other_tools import find_other_tool_syntax

    def is_category(word: str) -> bool:
        return registry is not None and registry.find(category=word, limit=1).total > 0

    names = registry.names() if registry is not None else []
    found: dict[str, str] = {}
    wanted = dict.fromkeys(
        (each.prompt, each.settings.negative, each.settings.prompt_weights) for each in requests
    )
    for prompt, negative, has_weights in wanted:
        for word in (
            *find_other_tool_syntax(
                prompt, names, is_category=is_category, has_weights=has_weights
            ),
            *find_other_tool_syntax(negative, has_weights=has_weights),
        ):
            found.setdefault(word.text.lower(), str(word))
    lines = list(found.values())
    if strict and lines:
        raise usage(lines[0], "without --strict it is drawn all the same")
    for line in _first_of(lines):
        session.output.warn(line)


def _first_of(lines: list[str]) -> list[str]:
    """The first of many lines, and how many more there are."""
    more = len(lines) - _MOST_NOTES
    return [*lines[:_MOST_NOTES], *([f"and {more} more of the kind"] if more > 0 else [])]


def _most_concepts(requests: "list[Request]") -> int:
    """How many concepts the prompt with most of them names."""
    from ..generation.prompt_syntax import mentions
    from ..generation.request import naming_place

    counts: list[int] = []
    for request in requests:
        with naming_place(request):
            counts.append(len(mentions(request.prompt)))
    return max(counts)


def _seeds(requests: "list[Request]") -> str:
    ranges = dict.fromkeys((request.seeds[0], request.seeds[-1]) for request in requests)
    if len(ranges) > 1 or not all(isinstance(each.seeds, range) for each in requests):
        return "seeds as the file says"
    ((first, last),) = ranges
    return f"seeds {first} to {last}" if last > first else f"seed {first}"


def _mean_leaks(leaks: "list[list[Leak]]") -> list[str]:
    """A line for each pair of concepts, over all pictures that have both."""
    shares: dict[tuple[str, str], list[float]] = {}
    for each in leaks:
        for one in each:
            shares.setdefault((one.of, one.on), []).append(one.share)
    return [
        f"{sum(found) / len(found):.1%} of the attention to {of} falls on {on}"
        for (of, on), found in shares.items()
    ]


def _described(picture: "Picture") -> _Document:
    return {
        "path": str(picture.path),
        "seed": picture.seed,
        "sha256": picture.sha256,
        "prompt": picture.prompt,
        "maps": str(picture.maps) if picture.maps else None,
        "leaks": [asdict(each) for each in picture.leaks],
        "is_new": picture.is_new,
    }


def reproduce(
    context: typer.Context,
    picture: Annotated[
        Path,
        typer.Argument(metavar="PICTURE", help="A picture of concept generate."),
    ],
    base: Annotated[
        str | None,
        typer.Option(
            metavar="BASE", help="Where the base model is now, if elsewhere.", show_default=False
        ),
    ] = None,
    init: init_options.AgainOption = None,
    inpaint: init_options.MaskAgainOption = None,
    control: control_options.AgainOption = None,
    reference_control: control_options.ReferencesAgainOption = None,
    frame: frame_options.AgainOption = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the picture goes.")] = _OUT,
    offline: Annotated[bool, typer.Option("--offline", help="Download nothing.")] = False,
) -> None:
    """Draw a picture again from the metadata in its file, and compare the pixels.

    On the machine and with the packages that drew it they are the same; elsewhere, or of a picture
    that was drawn with --compile, nearly so. From what A1111's web UI writes the like of a picture
    is drawn, and what was not used is said.
    """
    session = session_of(context)
    from ..generation.foreign_pictures import read_foreign_picture
    from ..generation.frames import find_frames
    from ..generation.provenance import read_provenance

    if (foreign := read_foreign_picture(picture)) is not None:
        if control or frame or reference_control:
            others = "without --control, --reference-control and --frame"
            raise usage(f"{picture} was drawn by another tool", others)
        begun = init_options.parse(init, inpaint)
        _reproduce_foreign(session, foreign, base, begun, out, offline=offline)
        return
    provenance = read_provenance(picture)
    with session.registry(create=not provenance.versions) as registry:
        _check_work(registry, picture, provenance)
        earlier = find_frames(picture, provenance.frames, frame or ())
        wanted = base or _believed_base(registry, picture, provenance.base)
        is_known = _trace(registry, picture) is not None
        begun = init_options.again(picture, provenance, init, inpaint)
        asked = control_options.again(picture, provenance, control, is_known=is_known)
        layouts = control_options.find_layouts(picture, provenance, reference_control, asked)
        session.output.note(f"drawing again: {provenance.work}")
        loaded = _load(session, wanted, offline=offline)
        from ..generation.reproducing import reproduce

        again, is_same = reproduce(
            registry,
            loaded,
            picture,
            out,
            control=asked,
            init=begun,
            frames=earlier,
            layouts=layouts,
        )
    _say_again(session, again, is_same, [])


def _reproduce_foreign(
    session: Session,
    foreign: "ForeignPicture",
    base: str | None,
    init: "InitRequest | None",
    out: Path,
    *,
    offline: bool,
) -> None:
    wanted = base or _named_base(foreign)
    with session.registry(create=True) as registry:
        loaded = _load(session, wanted, offline=offline)
        from ..generation.reproducing import reproduce_foreign

        again, is_same, unused = reproduce_foreign(registry, loaded, foreign, out, init=init)
    _say_again(session, again, is_same, unused)


def _say_again(session: Session, again: "Picture", is_same: bool, unused: list[str]) -> None:
    document = {"image": _described(again), "is_same": is_same, "unused": unused}
    session.output.lines(document, [str(again.path)])
    for line in unused:
        session.output.warn(f"not used: {line}")
    session.output.note("the same pixels" if is_same else "the pixels differ")


def _named_base(foreign: "ForeignPicture") -> str:
    """The base model that another tool's picture names, if that is an alias."""
    from ..models.bases import read_aliases
    from ..registry.errors import InvalidInput

    if foreign.model in read_aliases():
        return foreign.model
    named = f"by {foreign.model}, " if foreign.model else ""
    raise InvalidInput(
        f"{foreign.path} was drawn {named}by another tool: by which base model now?",
        hint=f"concept reproduce {quoted(foreign.path)} --base BASE",
    )


def _check_work(registry: "Registry", picture: Path, provenance: "Provenance") -> None:
    """Refuse untrusted metadata that would fill the memory, or take days."""
    from ..registry.errors import InvalidInput

    if not provenance.is_modest and _trace(registry, picture) is None:
        raise InvalidInput(
            f"{picture} says that it takes {provenance.work}: too much for a picture that this "
            "registry does not know of",
            hint="draw its prompt with concept generate, in the size and steps that you want",
        )


def _trace(registry: "Registry", picture: Path) -> "Lineage | None":
    """What the registry knows of a picture, if it does."""
    from ..registry.errors import NotFound
    from ..registry.files import open_given

    with open_given(picture) as file, suppress(NotFound):
        return registry.trace(sha256_of(file))
    return None


def _believed_base(registry: "Registry", picture: Path, named: str) -> str:
    """The base model that a picture names, if it is an alias or the registry knows the picture.

    Untrusted metadata must not make us read a folder or download a repository.
    """
    from ..models.bases import read_aliases
    from ..registry.errors import InvalidInput

    if named in read_aliases():
        return named
    if (known := _trace(registry, picture)) is not None:
        return known.base
    raise InvalidInput(
        f"{picture} says that {named} drew it, which this registry does not know of",
        hint=f"concept reproduce {quoted(picture)} --base {quoted(named)}",
    )

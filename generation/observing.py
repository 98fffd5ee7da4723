"""Pictures of a request as they are drawn, with the heat-maps and leaks that are wanted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import permutations

from PIL import Image
from torch import Tensor

from ..kernels.observation import CROSS_ATTENTION
from ..models.conditioning import Control
from ..models.loading import LoadedBase
from .attention_maps import MapCollector, heat_row, region_row, words_of
from .in_regions import draw_in_regions
from .injection import InjectedConcept, expand_prompt
from .outlines import Outlines, outlined
from .picture_texts import FileFormat
from .pictures import contact_sheet
from .reference_maps import Point, ReferenceMapCollector
from .regional_plan import RegionalPlan
from .regions import (
    SubjectColumns,
    all_columns,
    by_subject,
    check_has_words,
    leak,
    region,
    subject_columns,
)
from .request import Request
from .sampler import DrawnPicture, draw
from .separation import separating
from .starts import Start


@dataclass(frozen=True, slots=True)
class Leak:
    """The share (0 to 1) of the token map of `of` that falls on the region of `on`."""

    of: str
    on: str
    share: float


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is wanted beside pictures: heat-maps, those of points in references too, and leaks.

    And the format of the pictures' files.
    """

    maps: bool
    leaks: bool
    points: tuple[Point, ...]
    file_format: FileFormat = "png"


@dataclass(frozen=True, slots=True)
class Observed:
    """A drawn picture with its heat-maps and leaks, if requested, and its subjects' regions."""

    drawn: DrawnPicture
    heat: Image.Image | None = None
    leaks: list[Leak] = field(default_factory=list)
    regions: Outlines | None = None


def observed(
    base: LoadedBase,
    request: Request,
    concepts: Sequence[InjectedConcept],
    batch: int,
    wanted: Wanted,
    control: Control | None,
    plan: RegionalPlan | None,
    start: Start | None,
) -> Iterator[Observed]:
    """Pictures of a request, with heat-maps and leaks if requested."""
    if plan is not None:
        yield from _drawn_in_regions(base, request, concepts, batch, wanted, control, plan, start)
        return
    backbone, settings = base.backbone, request.settings
    prompt = expand_prompt(request.prompt, concepts)
    worded = [each for each in concepts if each.phrase]
    if not worded and (wanted.maps or wanted.leaks or settings.separate):
        check_has_words(concepts)
    subjects = subject_columns(backbone, prompt, worded)
    words = words_of(backbone, prompt, worded) if wanted.maps else []
    compares = wanted.leaks and len(worded) > 1
    layers = [CROSS_ATTENTION] if wanted.maps else []
    layers += [backbone.localising_layers] if compares else []
    columns = sorted({word.column for word in words} | set(all_columns(subjects)))
    collector = MapCollector(columns, layers=layers)
    looking = ReferenceMapCollector(backbone, wanted.points, settings.size) if wanted.maps else None
    observers = [collector, *([looking] if looking else [])] if layers else []
    drawing = draw(
        base,
        prompt,
        request.seeds,
        settings,
        batch=batch,
        observers=[*separating(backbone, subjects, settings), *observers],
        names=[each.weight for each in concepts],
        control=control,
        start=start,
    )
    if not layers:
        yield from map(Observed, drawing)
        return
    maps = list[Iterator[Tensor]]()
    for i, drawn in enumerate(drawing):
        if i % batch == 0:
            maps = [iter(each) for each in collector.take()]
        of_picture = [next(each) for each in maps]
        heat = None
        if looking:
            rows = [columns.index(word.column) for word in words]
            row = heat_row(drawn.image, of_picture[0][rows], words)
            heat = contact_sheet([row, *looking.rows(drawn.image)])
        leaks = _leaks(of_picture[-1], columns, subjects, worded) if compares else []
        yield Observed(drawn, heat, leaks)


def _drawn_in_regions(
    base: LoadedBase,
    request: Request,
    concepts: Sequence[InjectedConcept],
    batch: int,
    wanted: Wanted,
    control: Control | None,
    plan: RegionalPlan,
    start: Start | None,
) -> Iterator[Observed]:
    """Pictures of a request whose subjects have regions; heat-maps show these, too."""
    settings = request.settings
    looking = (
        ReferenceMapCollector(base.backbone, wanted.points, settings.size) if wanted.maps else None
    )
    drawing = draw_in_regions(
        base,
        plan,
        concepts,
        request.seeds,
        settings,
        batch=batch,
        observers=[looking] if looking else [],
        control=control,
        start=start,
    )
    for seen in drawing:
        heat = None
        if looking:
            image = seen.drawn.image
            row = region_row(image, plan.subjects, seen.maps[:, 0], seen.regions)
            heat = contact_sheet([row, *looking.rows(image)])
        leaks = _leaks_between(seen.maps, plan.subjects) if wanted.leaks else []
        yield Observed(seen.drawn, heat, leaks, outlined(plan.subjects, seen.regions))


def _leaks(
    maps: Tensor,
    columns: Sequence[int],
    subjects: Sequence[SubjectColumns],
    concepts: Sequence[InjectedConcept],
) -> list[Leak]:
    own = by_subject(maps[[columns.index(column) for column in all_columns(subjects)]], subjects)
    return _leaks_between(own, [each.mention.name for each in concepts])


def _leaks_between(own: Tensor, names: Sequence[str]) -> list[Leak]:
    """Both directions of each pair of subjects with maps (S, 2, h, w)."""
    regions = region(own[:, 0])
    return [
        Leak(names[i], names[j], round(leak(own, regions, i, [j]), 4))
        for i, j in permutations(range(len(names)), 2)
    ]

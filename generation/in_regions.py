"""Drawing several subjects, each in its region, and seeing where they came to be."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..models.conditioning import Control
from ..models.loading import LoadedBase
from .attention_maps import SubjectCollector
from .injection import InjectedConcept
from .regional_plan import RegionalPlan
from .request import SamplingSettings
from .sampler import DrawnPicture, Observer, draw
from .separation import separating


@dataclass(frozen=True, slots=True)
class DrawnInRegions:
    """A picture, its subjects' maps (S, 2, h, w) as of `by_subject`, and regions (S, h, w)."""

    drawn: DrawnPicture
    maps: Tensor
    regions: Tensor


def draw_in_regions(
    base: LoadedBase,
    plan: RegionalPlan,
    concepts: Sequence[InjectedConcept],
    seeds: Sequence[int],
    settings: SamplingSettings,
    *,
    batch: int = 4,
    observers: Sequence[Observer] = (),
    control: Control | None = None,
) -> Iterator[DrawnInRegions]:
    """Draw a plan once for each seed, with concepts that were injected apart.

    All else is as in `draw`, which says what is raised.
    """
    collector, first = SubjectCollector(), plan.parts[0]
    drawing = draw(
        base,
        first.prompt,
        seeds,
        settings,
        batch=batch,
        observers=[*separating(base.backbone, first.columns, settings), collector, *observers],
        names=[each.weight for each in concepts],
        control=control,
        plan=plan,
    )
    maps, regions = Tensor(), Tensor()
    for i, drawn in enumerate(drawing):
        if i % batch == 0:
            maps, regions = collector.take()
        yield DrawnInRegions(drawn, maps[i % batch], regions[i % batch])

"""Several subjects in a picture, each seen only from its own region.

Words: the keys of a subject's words are seen from its region. References: so are those of its
references. Changed weights: each concept that changes them has a prediction of its own, with its
weights alone and the others' categories in its prompt; they are blended by the regions,

    ε = (1 - Σ_s m_s) ε_0 + Σ_s m_s ε_s,

where ε_0 is that of the base model's weights, and m_s a subject's region times what it does not
share with the rest (after regional sampling as in Mix-of-Show, arXiv 2305.18292, section 3.3, which
has one set of weights; MultiDiffusion, arXiv 2302.08113, eq. 5, blends predictions).

In the noisiest steps ε_0 sees no references; words and changed weights count from the first on.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice, pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (everyone's name for it)

from ..adapters.adapter import injected
from ..adapters.lora_branch import LoraBranch
from ..adapters.weight_delta import ChangedWeights
from ..kernels import GroupBias
from ..models.backbone import Backbone
from ..models.conditioning import Conditioning, Control
from ..models.latents import layer_size
from .layout import EARLY
from .prediction import Guidance
from .regional_plan import PlannedPart, RegionalPlan
from .regions import SubjectColumns, all_columns, by_subject
from .starts import Beginning
from .subject_regions import box_regions, regions_of
from .token_maps import CollectedMaps

HIDDEN = 1e-3
"""The share of a region that all other places have: its logarithm hides, and is finite."""
LOOKED = 0.12
"""The share of steps of the first look that finds regions."""
SHARED = 0.1
"""How much of the base model's own prediction counts in a subject's region: light, and ground."""


@dataclass(slots=True)
class Sight:
    """Which words and references are seen from where, in the rows of a denoiser's batch.

    Branches are there in networks `beside` the denoiser, too. `masks` (B, S, h, w) are the shares
    of places that are each subject's; None where all see all.
    """

    subjects: Sequence[str]
    columns: Sequence[SubjectColumns]
    branches: Sequence[tuple[int, LoraBranch]] = ()
    beside: Sequence[nn.Module] = ()
    masks: Tensor | None = None
    _by_size: dict[int, Tensor] = field(default_factory=dict)

    def set(self, masks: Tensor | None) -> None:
        """The masks of a batch of pictures."""
        self.masks = masks
        self._by_size = {}

    @contextmanager
    def words(self, backbone: Backbone, prompted: Tensor, num_tokens: int) -> Iterator[None]:
        """Words are seen from their subjects' regions, in rows (R,) that have the prompt.

        Branches of layers count there, and in cross-attention for these words.
        """
        if self.masks is None:
            yield
            return
        numbers = torch.full((num_tokens,), -1, device=prompted.device)
        for number, columns in enumerate(self.columns):
            numbers[list(columns.all)] = number
        groups = torch.where(prompted[:, None], numbers, -1)
        with ExitStack() as stack:
            stack.enter_context(backbone.attention.see_from(lambda n: self._bias(groups, n)))
            for number, branch in self.branches:
                share = partial(self._share, number, groups)
                stack.enter_context(branch.beside(backbone, share, self.beside))
            yield

    def _share(self, number: int, groups: Tensor, shape: tuple[int, ...], is_text: bool) -> Tensor:
        """See `lora_branch.Share`; the states of references, of one row, have no branch."""
        if shape[0] != len(groups):
            return self._shares(1).new_zeros(())
        if is_text:
            return (groups == number)[..., None]
        places = shape[1] if len(shape) == 3 else shape[2] * shape[3]
        own = self._shares(places)[:, number].repeat(shape[0] // len(self._shares(places)), 1)
        return own[..., None] if len(shape) == 3 else own.view(shape[0], 1, *shape[2:])

    def of_references(
        self, subjects: Sequence[str], rows: int
    ) -> Callable[[int, int], GroupBias] | None:
        """The bias of sets of references' keys, as `FurtherKeys` takes it."""
        if self.masks is None:
            return None
        known = {name: number for number, name in enumerate(self.subjects)}
        numbers = torch.tensor([known.get(each, -1) for each in subjects], device=self.masks.device)

        def bias(num_keys: int, num_queries: int) -> GroupBias:
            groups = numbers.repeat_interleave(num_keys).expand(rows, -1)
            return self._bias(groups, num_queries)

        return bias

    def _bias(self, groups: Tensor, num_queries: int) -> GroupBias:
        values = self._shares(num_queries).clamp(min=HIDDEN).log()
        return GroupBias(groups, values.repeat(len(groups) // len(values), 1, 1), checked=True)

    def _shares(self, places: int) -> Tensor:
        """The subjects' shares (B, S, N) of the places of a layer."""
        assert self.masks is not None
        if places not in self._by_size:
            height, width = self.masks.shape[-2:]
            size = layer_size((height, width), places)
            self._by_size[places] = F.adaptive_avg_pool2d(self.masks.float(), size).flatten(2)
        return self._by_size[places]


class RegionalGuidance:
    """The blend of several predictions; see the module."""

    def __init__(
        self,
        backbone: Backbone,
        plan: RegionalPlan,
        guidance_of: Callable[[PlannedPart, Sight], Guidance],
        size: tuple[int, int],
    ) -> None:
        self._plan, self._size = plan, size

        def part_of(planned: PlannedPart) -> _Part:
            sight = Sight(plan.subjects, planned.columns, planned.branches, planned.beside)
            with injected(backbone, _changes(planned)):
                return _Part(planned, sight, guidance_of(planned, sight))

        self._whole, *self._own = map(part_of, plan.parts)
        self._plain = part_of(plan.plain) if plan.plain else None
        self._early: _Part | None = None
        base = plan.parts[0]
        seen = [each for each in backbone.references if each.weight]
        if len(plan.subjects) > 1 and any(plan.draws_after(base, each.subject) for each in seen):
            self._early = part_of(replace(base, sees_references=False))
        self._has_early_steps = False
        self.masks: Tensor | None = None
        """The subjects' regions (B, S, h, w): shares of each place of the latents."""
        self.subject_maps: Tensor | None = None
        """Those (B, S, 2, h, w) of the latest step, as `by_subject` has them."""

    @property
    def conditioning(self) -> Conditioning:
        """That of the base model's prediction."""
        return self._whole.guidance.conditioning

    @property
    def control(self) -> Control | None:
        """What a ControlNet adds, with and without the prompt."""
        return self._whole.guidance.control

    def conditional(self, count: int) -> slice:
        """The rows with the prompt in the denoiser's batch for `count` pictures."""
        return self._whole.guidance.conditional(count)

    def place(self, backbone: Backbone, beginning: Beginning, num_steps: int) -> None:
        """Know the regions of pictures with some noise: boxes, or by a first look.

        For this some steps are taken without regions and with plain categories, by DDIM, and the
        maps of these tell where each is going to be.
        """
        if self._plan.boxes is not None:
            count = len(beginning.noise)
            found = box_regions(self._plan.boxes, self._size).expand(count, -1, -1, -1)
        else:
            maps = self._plain_maps(backbone, beginning, num_steps)
            found = regions_of(maps, self._plan.alike)
        self.masks = found.to(beginning.noise.device)
        for part in (self._whole, *self._own, self._plain, self._early):
            if part:
                part.sight.set(self.masks)
        self._has_early_steps = num_steps > 1

    def _plain_maps(self, backbone: Backbone, beginning: Beginning, num_steps: int) -> Tensor:
        assert self._plain
        scheduler = backbone.sampling_scheduler("ddim")
        scheduler.set_timesteps(num_steps, device=backbone.device)
        seen: list[Tensor] = []
        latents, timesteps = beginning.begin(scheduler, num_steps)
        steps = pairwise([*timesteps, None])
        for timestep, following in islice(steps, math.ceil(LOOKED * num_steps)):
            assert timestep is not None
            predicted, maps = self._predicted(self._plain, backbone, latents, timestep)
            seen.append(maps[:, :, 0])
            latents = scheduler.step(predicted, timestep, latents, eta=0.0, return_dict=False)[0]
            latents = beginning.kept(latents.to(predicted.dtype), scheduler, following)
        return torch.stack(seen).mean(0)

    def predict(self, backbone: Backbone, latents: Tensor, timestep: Tensor) -> Tensor:
        """The noise in latents (B, C, h, w)."""
        assert self.masks is not None
        is_early = timestep >= (1 - EARLY) * backbone.num_timesteps and self._has_early_steps
        base = self._early if self._early and is_early else self._whole
        whole, maps = self._predicted(base, backbone, latents, timestep)
        blended = whole
        for part in self._own:
            subject = part.planned.subject
            assert subject is not None
            own, own_maps = self._predicted(part, backbone, latents, timestep)
            maps[:, subject] = own_maps[:, subject]
            share = (1 - SHARED) * self.masks[:, subject, None].to(own.dtype)
            blended = blended + share * (own - whole)
        self.subject_maps = maps
        return blended

    def _predicted(
        self, part: "_Part", backbone: Backbone, latents: Tensor, timestep: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A prediction, and the maps (B, S, 2, h, w) of the subjects' words in it."""
        columns = part.planned.columns
        with (
            injected(backbone, _changes(part.planned)),
            backbone.attention.observe(
                columns=all_columns(columns), want="maps", layers=backbone.localising_layers
            ) as seen,
        ):
            predicted = part.guidance.predict(backbone, latents, timestep)
        rows = part.guidance.conditional(len(latents))
        collected = CollectedMaps()
        collected.add([maps[rows] for maps in seen.maps.values()], self._size)
        return predicted, by_subject(collected.take(), columns)


@dataclass(frozen=True, slots=True)
class _Part:
    planned: PlannedPart
    sight: Sight
    guidance: Guidance


def _changes(planned: PlannedPart) -> list[ChangedWeights]:
    return [each for each in (planned.change, planned.control_change) if each]

"""Guidance: how a step's noise prediction is made from the denoiser's outputs."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property

import torch
from torch import Tensor

from ..models.backbone import Backbone
from ..models.conditioning import Conditioning, Control
from ..models.references import Reference
from ..models.seeds import seed_of
from .prediction import Guidance
from .regional import RegionalGuidance, Sight
from .regional_plan import PlannedPart, RegionalPlan
from .request import SamplingSettings
from .self_subject_attention import ReferencePass


class Unguided:
    """The denoiser's prediction as it is; with a `sight`, words are seen from their regions."""

    def __init__(
        self,
        conditioning: Conditioning,
        *,
        control: Control | None = None,
        sight: Sight | None = None,
    ) -> None:
        self.conditioning = conditioning
        self.control = control
        self._sight = sight

    def predict(self, backbone: Backbone, latents: Tensor, timestep: Tensor) -> Tensor:
        """The noise in latents (B, C, h, w)."""
        prompted = torch.ones(len(latents), dtype=torch.bool, device=latents.device)
        with _words_seen(backbone, self._sight, self.conditioning, prompted):
            return backbone.denoise(latents, timestep, self.conditioning, self.control)

    def conditional(self, count: int) -> slice:
        """All rows."""
        return slice(0, count)


class ClassifierFree:
    """Classifier-free guidance (Ho and Salimans 2022, eq. 6, where the scale is w + 1)."""

    def __init__(
        self,
        conditioning: Conditioning,
        negative: Conditioning,
        scale: float,
        *,
        control: Control | None = None,
        sight: Sight | None = None,
    ) -> None:
        self.conditioning = conditioning
        self.control = control
        self._sight = sight
        self.negative = negative
        self.scale = scale

    @cached_property
    def _both(self) -> Conditioning:
        return Conditioning.cat([self.negative, self.conditioning])

    def predict(self, backbone: Backbone, latents: Tensor, timestep: Tensor) -> Tensor:
        """ε_neg + scale · (ε_prompt - ε_neg), from one pass."""
        here = torch.arange(2 * len(latents), device=latents.device)
        with _words_seen(backbone, self._sight, self.conditioning, here >= len(latents)):
            both = backbone.denoise(torch.cat([latents] * 2), timestep, self._both, self.control)
        negative, conditional = both.chunk(2)
        return negative + self.scale * (conditional - negative)

    def conditional(self, count: int) -> slice:
        """The second half."""
        return slice(count, 2 * count)


class Interleaved:
    """Guidance by prompt and by references, taking turns (DreamTuner, arXiv 2312.13691, eq. 4-6).

    At each step and for each picture λ ~ U(0, 1) is drawn from the picture's own seed. If λ is at
    most `reference_share`, the prediction is led away from that of the same prompt without
    references, by `reference_scale`; else away from the negative prompt, by `scale`. References are
    seen a timestep ahead of the picture, with the negative prompt a timestep behind (Δ = Δ' = 1;
    the paper gives neither these nor the scales).
    """

    def __init__(
        self,
        conditioning: Conditioning,
        negative: Conditioning,
        references: ReferencePass,
        *,
        seeds: Sequence[int],
        scale: float,
        reference_share: float,
        reference_scale: float,
        control: Control | None = None,
        sight: Sight | None = None,
    ) -> None:
        self.conditioning = conditioning
        self._sight = sight
        self.control = control
        self._prompts = Conditioning.cat([negative, conditioning])
        self._references = references
        self._share = reference_share
        self._scales = (scale, reference_scale)
        self._generators = [
            torch.Generator().manual_seed(seed_of(seed, "interleaved guidance")) for seed in seeds
        ]

    def predict(self, backbone: Backbone, latents: Tensor, timestep: Tensor) -> Tensor:
        """ε_away + scale · (ε_prompt - ε_away), from one pass and one of the references."""
        count, device = len(latents), latents.device
        draws = torch.stack([torch.rand((), generator=each) for each in self._generators])
        by_reference = (draws <= self._share).to(device)
        here = torch.arange(count, device=device)
        away = here + count * by_reference
        prompts = self._prompts.pick(torch.cat([away, here + count]))
        ahead, behind = _beside(timestep, backbone.num_timesteps)
        nobody = torch.zeros_like(by_reference)
        times, rows = [ahead], [torch.cat([nobody, ~nobody])]
        if not by_reference.all():
            times, rows = [*times, behind], [*rows, torch.cat([~by_reference, nobody])]
        prompted = torch.cat([by_reference, ~nobody])
        with (
            self._references.seen_at(backbone, times, rows),
            _words_seen(backbone, self._sight, self.conditioning, prompted),
        ):
            both = backbone.denoise(torch.cat([latents] * 2), timestep, prompts, self.control)
        without, conditional = both.chunk(2)
        by_prompt, by_references = self._scales
        scale = torch.where(by_reference, by_references, by_prompt).to(both.dtype)
        return without + scale.view(-1, 1, 1, 1) * (conditional - without)

    def conditional(self, count: int) -> slice:
        """The second half."""
        return slice(count, 2 * count)


def _words_seen(
    backbone: Backbone, sight: Sight | None, conditioning: Conditioning, prompted: Tensor
) -> AbstractContextManager[None]:
    """Words are seen as a sight says, in the rows (R,) of a batch that have the prompt."""
    if sight is None:
        return nullcontext()
    return sight.words(backbone, prompted, conditioning.states.shape[1])


def _beside(timestep: Tensor, num_timesteps: int) -> tuple[Tensor, Tensor]:
    """A timestep with less noise, and one with more."""
    now = timestep.round().long()
    return (now - 1).clamp(min=0), (now + 1).clamp(max=num_timesteps - 1)


def guidance_for(
    backbone: Backbone,
    prompts: Sequence[str],
    settings: SamplingSettings,
    seeds: Sequence[int],
    width: int,
    height: int,
    *,
    control: Control | None = None,
    plan: RegionalPlan | None = None,
) -> Guidance:
    """The guidance of pictures with these seeds: interleaved if references have a weight.

    Else classifier-free guidance with a scale above 1, else none. With a `plan` it is the blend of
    its predictions, each of them guided so.
    """
    references = [each for each in backbone.references if each.weight]
    if plan is None:
        return _guided(
            backbone, prompts, references, settings, seeds, width, height, control=control
        )
    planned = plan

    def guidance_of(part: PlannedPart, sight: Sight) -> Guidance:
        own = [each for each in references if planned.draws_after(part, each.subject)]
        prompts = [part.prompt] * len(seeds)
        return _guided(
            backbone, prompts, own, settings, seeds, width, height, control=control, sight=sight
        )

    factor = backbone.latent_factor
    size = (height // factor, width // factor)
    return RegionalGuidance(backbone, plan, guidance_of, size)


def _guided(
    backbone: Backbone,
    prompts: Sequence[str],
    references: Sequence[Reference],
    settings: SamplingSettings,
    seeds: Sequence[int],
    width: int,
    height: int,
    *,
    control: Control | None,
    sight: Sight | None = None,
) -> Guidance:
    negatives = [settings.negative] * len(prompts) if settings.negative else None
    if references:
        share, scale = settings.reference_share, settings.reference_guidance
        return Interleaved(
            *backbone.encode_guided(prompts, negatives, width, height),
            ReferencePass(backbone, references, sight, control),
            seeds=seeds,
            scale=max(1.0, settings.guidance),
            reference_share=references[0].share if share is None else share,
            reference_scale=references[0].guidance if scale is None else scale,
            control=control,
            sight=sight,
        )
    if settings.guidance <= 1:
        conditioning = backbone.encode_prompts(prompts, width, height)
        return Unguided(conditioning, control=control, sight=sight)
    both = backbone.encode_guided(prompts, negatives, width, height)
    return ClassifierFree(*both, settings.guidance, control=control, sight=sight)

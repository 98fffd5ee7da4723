"""Guidance: how a step's noise prediction is made from the denoiser's outputs."""

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from ..kernels.observation import SELF_ATTENTION
from ..models.backbone import Backbone
from ..models.conditioning import Conditioning, Control
from ..models.references import Reference
from ..models.seeds import seed_of
from ..registry.errors import InvalidInput
from .prediction import Guidance
from .regional import RegionalGuidance, Sight
from .regional_plan import PlannedPart, RegionalPlan
from .request import SamplingSettings
from .self_subject_attention import ReferencePass

LAYERS = {"mid": r"mid_block\..*attn1", "all": SELF_ATTENTION}
"""Names of self-attention layers."""


@dataclass(frozen=True, slots=True)
class PerturbedAttention:
    """Perturbed-attention guidance (Ahn et al. 2024, arXiv 2403.17377, eq. 14).

    What a prediction of the prompt loses when each place attends itself alone in self-attention
    `layers` is structure; `scale` times that is added.
    """

    scale: float
    layers: str


@dataclass(frozen=True, slots=True)
class Denoising:
    """How a guidance's prompts are denoised.

    With a `sight`, words are seen from their regions. A ControlNet adds its part to all.
    """

    control: Control | None = None
    sight: Sight | None = None
    perturbed: PerturbedAttention | None = None

    def prompts(self, *parts: Conditioning) -> Conditioning:
        """Several, and the last once more where it is perturbed as well."""
        return Conditioning.cat([*parts, *([parts[-1]] if self.perturbed else [])])

    def rows(self, rows: Tensor, count: int) -> Tensor:
        """Something of each row, and of the last `count` once more, as `prompts` has them."""
        return torch.cat([rows, rows[-count:]]) if self.perturbed else rows

    def noise(
        self,
        backbone: Backbone,
        latents: Tensor,
        timestep: Tensor,
        prompts: Conditioning,
        prompted: Tensor,
        combined: Callable[..., Tensor],
    ) -> Tensor:
        """The noise in latents (B, C, h, w), each with several prompts (k · B), from one pass.

        `prompted` (k · B,) says which rows have the pictures' own prompts, which are the last;
        `combined` makes one prediction of k outputs. What `prompts` adds comes after these.
        """
        count = len(latents)
        copies = len(prompts.states) // count
        with ExitStack() as stack:
            if self.perturbed is not None:
                is_last = torch.arange(copies * count, device=latents.device) >= count * (
                    copies - 1
                )
                stack.enter_context(backbone.attention.perturb(is_last, self.perturbed.layers))
            if self.sight is not None:
                seen = self.rows(prompted, count)
                words = self.sight.words(backbone, seen, prompts.states.shape[1])
                stack.enter_context(words)
            together = torch.cat([latents] * copies) if copies > 1 else latents
            outputs = backbone.denoise(together, timestep, prompts, self.control).chunk(copies)
        if self.perturbed is None:
            return combined(*outputs)
        *outputs, perturbed = outputs
        return combined(*outputs) + self.perturbed.scale * (outputs[-1] - perturbed)


class Unguided:
    """The denoiser's prediction as it is, but for perturbed attention."""

    def __init__(self, conditioning: Conditioning, denoising: Denoising) -> None:
        self.conditioning = conditioning
        self.control = denoising.control
        self._denoising = denoising
        self._prompts = denoising.prompts(conditioning)

    def predict(self, backbone: Backbone, latents: Tensor, timestep: Tensor) -> Tensor:
        """The noise in latents (B, C, h, w)."""
        prompted = torch.ones(len(latents), dtype=torch.bool, device=latents.device)
        return self._denoising.noise(
            backbone, latents, timestep, self._prompts, prompted, lambda predicted: predicted
        )

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
        denoising: Denoising,
    ) -> None:
        self.conditioning = conditioning
        self.control = denoising.control
        self.negative = negative
        self.scale = scale
        self._denoising = denoising

    @cached_property
    def _both(self) -> Conditioning:
        return self._denoising.prompts(self.negative, self.conditioning)

    def predict(self, backbone: Backbone, latents: Tensor, timestep: Tensor) -> Tensor:
        """ε_neg + scale · (ε_prompt - ε_neg), from one pass."""
        here = torch.arange(2 * len(latents), device=latents.device)
        return self._denoising.noise(
            backbone, latents, timestep, self._both, here >= len(latents), self._led_away
        )

    def _led_away(self, negative: Tensor, conditional: Tensor) -> Tensor:
        return negative + self.scale * (conditional - negative)

    def conditional(self, count: int) -> slice:
        """The second rows."""
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
        denoising: Denoising,
        seeds: Sequence[int],
        scale: float,
        reference_share: float,
        reference_scale: float,
    ) -> None:
        self.conditioning = conditioning
        self.control = denoising.control
        self._denoising = denoising
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
        rows_of = partial(self._denoising.rows, count=count)
        prompts = self._prompts.pick(rows_of(torch.cat([away, here + count])))
        ahead, behind = _beside(timestep, backbone.num_timesteps)
        nobody = torch.zeros_like(by_reference)
        times, rows = [ahead], [rows_of(torch.cat([nobody, ~nobody]))]
        if not by_reference.all():
            times, rows = [*times, behind], [*rows, rows_of(torch.cat([~by_reference, nobody]))]
        prompted = torch.cat([by_reference, ~nobody])
        by_prompt, by_references = self._scales
        scale = torch.where(by_reference, by_references, by_prompt).view(-1, 1, 1, 1)

        def led_away(without: Tensor, conditional: Tensor) -> Tensor:
            return without + scale.to(conditional.dtype) * (conditional - without)

        with self._references.seen_at(backbone, times, rows):
            return self._denoising.noise(backbone, latents, timestep, prompts, prompted, led_away)

    def conditional(self, count: int) -> slice:
        """The second rows."""
        return slice(count, 2 * count)


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
    denoising = Denoising(control, sight, _perturbed_by(backbone, settings))
    if references:
        share, scale = settings.reference_share, settings.reference_guidance
        return Interleaved(
            *backbone.encode_guided(prompts, negatives, width, height),
            ReferencePass(backbone, references, sight, control),
            denoising=denoising,
            seeds=seeds,
            scale=max(1.0, settings.guidance),
            reference_share=references[0].share if share is None else share,
            reference_scale=references[0].guidance if scale is None else scale,
        )
    if settings.guidance <= 1:
        return Unguided(backbone.encode_prompts(prompts, width, height), denoising)
    both = backbone.encode_guided(prompts, negatives, width, height)
    return ClassifierFree(*both, settings.guidance, denoising)


def _perturbed_by(backbone: Backbone, settings: SamplingSettings) -> PerturbedAttention | None:
    """Raises `InvalidInput` if the denoiser has no such layers."""
    if not settings.perturbed_attention:
        return None
    layers = LAYERS[settings.perturbed_layers]
    if not any(re.fullmatch(layers, name) for name in backbone.attention.layers):
        raise InvalidInput(
            "the base model has no self-attention in its U-Net's middle to perturb",
            hint="without --perturbed-attention, or perturbed_layers: all in bases.yaml",
        )
    return PerturbedAttention(settings.perturbed_attention, layers)

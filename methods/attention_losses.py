"""What is minimised: the diffusion loss, and losses on attention that any method takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from ..adapters.prompt_encoding import encode_reference, token_columns
from ..kernels.observation import Observation
from ..models.backbone import Backbone, TrainingScheduler
from .settings import StageSettings, TrainingSettings

REDUCTIONS = ("sum", "mean")


def diffusion_target(
    scheduler: TrainingScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor
) -> Tensor:
    """What the U-Net is to predict, as the scheduler's `prediction_type` says.

    The noise ε (Ho et al. 2020, eq. 14), the velocity v = √ᾱ ε - √(1-ᾱ) x₀ (Salimans and Ho 2022,
    appendix D) or x₀ itself. All shapes are those of `latents`, (B, C, h, w).
    """
    kind = scheduler.config["prediction_type"]
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    if kind == "sample":
        return latents
    raise ValueError(f"prediction_type is {kind!r}: expected epsilon, v_prediction or sample")


def diffusion_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """The mean squared error of each sample (B,), in float32."""
    return (predicted.float() - target.float()).square().flatten(1).mean(1)


def moment_matching_loss(
    moments: Mapping[str, Tensor],
    *,
    mean_weight: float,
    variance_weight: float,
    reduction: str = "sum",
) -> Tensor:
    """AttnDreamBooth's cross-attention map regularisation (arXiv 2406.05000, eq. 4 and 5).

    `moments` holds for each layer (B, n + 1, 2): mean and unbiased variance of the token maps of n
    [V] tokens and, last, of the category. With λ_μ and λ_σ the weights,

        1/layers · Σ_layers Σ_batch 1/n Σ_V [ λ_μ (μ_V - μ_cat)² + λ_σ (σ²_V - σ²_cat)² ]

    Gradients flow into both columns. The batch is summed, as the official code does;
    `reduction="mean"` averages it.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}: expected 'sum' or 'mean'")
    weights = next(iter(moments.values())).new_tensor([mean_weight, variance_weight])
    layers = [
        ((own[:, :-1] - own[:, -1:]).square() * weights).sum(-1).mean(-1)  # (B,)
        for own in moments.values()
    ]
    per_sample = torch.stack(layers).mean(0)
    return per_sample.sum() if reduction == "sum" else per_sample.mean()


def subject_wise_loss(distances: Mapping[str, Tensor]) -> Tensor:
    """SeFi-IDE's subject-wise attention loss (arXiv 2402.00631, section 3.2) of each sample, (B,).

    `distances` holds for each layer (B,): how far the attention over the prompt with the token is
    from that over the prompt with the category, as `map_distance` measures it. Layers are averaged;
    that, and the squares, are our reading, as the paper leaves them open.
    """
    return torch.stack(list(distances.values())).mean(0)


# --- as the loop takes them -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reference:
    """Text states from whose attention a distance is measured, (P, 77, d): one for each prompt."""

    states: Tensor
    reduction: str = "sum"
    """Over positions and tokens."""


class AttentionLoss(Protocol):
    """A loss on the cross-attention of training prompts.

    Of each of P prompts, `columns` (P, T) are the tokens whose moments it looks at, and `reference`
    has the text states from whose attention it measures a distance; None for neither.
    """

    name: ClassVar[str]
    """What metrics call it."""

    @property
    def columns(self) -> Tensor | None:
        """(P, T)."""

    @property
    def reference(self) -> Reference | None:
        """Of each prompt."""

    def value(self, seen: Observation, share: float) -> Tensor:
        """With its weight, of samples that are this share of a step's batch."""
        ...


@dataclass(frozen=True, slots=True)
class TrainingPrompts:
    """Prompts that name a concept, on a base model, for pictures of `size` pixels."""

    backbone: Backbone
    prompts: Sequence[str]
    tokens: tuple[str, ...]
    category: str
    names_category: bool
    size: int

    def columns(self) -> Tensor:
        """(P, n + 1): of each prompt, where the n tokens and the category stand."""
        columns = [
            token_columns(self.backbone, prompt, self.tokens, self.category)
            for prompt in self.prompts
        ]
        return torch.tensor(columns, device=self.backbone.device)

    def references(self) -> Tensor:
        """(P, 77, d): each prompt with the category alone in the concept's place."""
        references = [
            encode_reference(
                self.backbone,
                prompt,
                self.tokens,
                self.category,
                self.size,
                names_category=self.names_category,
            )
            for prompt in self.prompts
        ]
        return torch.stack(references)


def attention_losses(
    taught: TrainingPrompts, settings: TrainingSettings, stage: StageSettings
) -> list[AttentionLoss]:
    """Those whose weights are not 0."""
    losses: list[AttentionLoss] = []
    if stage.mean_weight or stage.variance_weight:
        losses.append(
            MomentMatching(
                taught.columns(),
                stage.mean_weight,
                stage.variance_weight,
                settings.loss_reduction,
            )
        )
    if settings.loss.subject_wise:
        reference = Reference(taught.references(), settings.loss.subject_wise_reduction)
        losses.append(SubjectWise(reference, settings.loss.subject_wise))
    return losses


@dataclass(frozen=True, slots=True)
class MomentMatching:
    """`moment_matching_loss` with its weights."""

    name: ClassVar[str] = "attention"
    columns: Tensor
    mean_weight: float
    variance_weight: float
    reduction: str
    reference: None = None

    def value(self, seen: Observation, share: float) -> Tensor:
        """A sum over the batch, or a mean."""
        loss = moment_matching_loss(
            seen.moments,
            mean_weight=self.mean_weight,
            variance_weight=self.variance_weight,
            reduction=self.reduction,
        )
        return loss * share if self.reduction == "mean" else loss


@dataclass(frozen=True, slots=True)
class SubjectWise:
    """`subject_wise_loss` with its weight, averaged over the batch."""

    name: ClassVar[str] = "subject-wise"
    reference: Reference
    weight: float
    columns: None = None

    def value(self, seen: Observation, share: float) -> Tensor:
        """Of a batch, the mean."""
        return self.weight * subject_wise_loss(seen.distances).mean() * share

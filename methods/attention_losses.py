"""Losses on attention, which any method can use."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from ..adapters.prompt_encoding import encode_reference, token_columns
from ..kernels.observation import Observation
from ..models.backbone import Backbone
from .settings import StageSettings, TrainingSettings

REDUCTIONS = ("sum", "mean")


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

    `distances` holds for each layer (B,): the `map_distance` between attention over the prompt with
    the token and over the prompt with the category. Averaging over layers, and the squares, are our
    reading, as the paper leaves them open.
    """
    return torch.stack(list(distances.values())).mean(0)


# --- as the training loop uses them ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reference:
    """Text states (P, 77, d), one for each prompt, whose attention a loss compares with."""

    states: Tensor
    reduction: str = "sum"
    """Of the distance, over positions and tokens: `sum` or `mean`."""


class AttentionLoss(Protocol):
    """A loss on the cross-attention of training prompts.

    For P prompts, `columns` (P, T) are the tokens whose moments it uses, and `reference` the text
    states whose attention it compares with; None if it does not use them.
    """

    name: ClassVar[str]
    """Its name in metrics."""

    @property
    def columns(self) -> Tensor | None:
        """Token positions (P, T)."""

    @property
    def reference(self) -> Reference | None:
        """Text states, one for each prompt."""

    def value(self, seen: Observation, share: float) -> Tensor:
        """The weighted loss of samples that are this share (0 to 1) of a step's batch."""
        ...


@dataclass(frozen=True, slots=True)
class TrainingPrompts:
    """The P training prompts of a concept, on a base model, for pictures of `size` pixels."""

    backbone: Backbone
    prompts: Sequence[str]
    tokens: tuple[str, ...]
    category: str
    names_category: bool
    size: int

    def columns(self) -> Tensor:
        """(P, n + 1): the positions of the n tokens and, last, of the category in each prompt."""
        columns = [
            token_columns(self.backbone, prompt, self.tokens, self.category)
            for prompt in self.prompts
        ]
        return torch.tensor(columns, device=self.backbone.device)

    def references(self) -> Tensor:
        """Text states (P, 77, d) of each prompt with the category in the concept's place."""
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
    prompts: TrainingPrompts, settings: TrainingSettings, stage: StageSettings
) -> list[AttentionLoss]:
    """The attention losses whose weight in the settings is not 0."""
    losses: list[AttentionLoss] = []
    if stage.mean_weight or stage.variance_weight:
        losses.append(
            MomentMatching(
                prompts.columns(),
                stage.mean_weight,
                stage.variance_weight,
                settings.loss_reduction,
            )
        )
    if settings.loss.subject_wise:
        reference = Reference(prompts.references(), settings.loss.subject_wise_reduction)
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
        """Summed over the batch, or averaged with `reduction="mean"`."""
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
        """Averaged over the batch."""
        return self.weight * subject_wise_loss(seen.distances).mean() * share

"""A toy: a word whose attention is drawn together, by a loss of its own."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from conceptry.adapters.prompt_encoding import token_columns
from conceptry.kernels import Observation
from conceptry.methods.attention_losses import AttentionLoss, TrainingPrompts, attention_losses
from conceptry.methods.method import Method, Stage, from_category
from conceptry.methods.settings import StageSettings, TrainingSettings, setting
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class FocusedWordSettings(TrainingSettings):
    """One stage, and the weight of the loss."""

    focus: float = setting(0.1, low=0, high=100)
    word: StageSettings = field(
        default_factory=lambda: StageSettings(steps=2, learning_rate=1e-3, batch=2)
    )


@dataclass(frozen=True, slots=True)
class Focus:
    """The less a token's map varies over the picture, the higher."""

    name: ClassVar[str] = "focus"
    columns: Tensor
    weight: float
    reference: None = None

    def value(self, seen: Observation, share: float) -> Tensor:
        """The mean of -σ² over layers, samples and tokens."""
        variances = [moments[..., 1].mean() for moments in seen.moments.values()]
        return -self.weight * share * torch.stack(variances).mean()


def losses(
    prompts: TrainingPrompts, settings: FocusedWordSettings, stage: StageSettings
) -> list[AttentionLoss]:
    """This one beside those that settings ask for."""
    columns = [token_columns(prompts.backbone, each, prompts.tokens) for each in prompts.prompts]
    focus = Focus(torch.tensor(columns, device=prompts.backbone.device), settings.focus)
    return [*attention_losses(prompts, settings, stage), focus]


METHOD = Method(
    name="focused-word",
    about="learns a word that looks at one place",
    paper="none",
    settings=FocusedWordSettings,
    make_embedding=from_category,
    make_losses=losses,
    stages=(Stage("word", learns="embedding"),),
)

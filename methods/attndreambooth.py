"""AttnDreamBooth (Pang et al. 2024): trains a token, then cross-attention, then the U-Net."""

from dataclasses import dataclass, field

from .method import Method, Stage, from_category
from .settings import StageSettings, TrainingSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class AttnDreamBoothSettings(TrainingSettings):
    """The paper's schedule (section 4): rates, steps, batch and weights of the three stages."""

    stage1: StageSettings = field(
        default_factory=lambda: StageSettings(steps=60, learning_rate=1e-3, mean_weight=0.1)
    )
    stage2: StageSettings = field(
        default_factory=lambda: StageSettings(
            steps=100, learning_rate=2e-5, mean_weight=2.0, variance_weight=5.0
        )
    )
    stage3: StageSettings = field(
        default_factory=lambda: StageSettings(
            steps=500, learning_rate=2e-6, mean_weight=2.0, variance_weight=5.0
        )
    )


METHOD = Method(
    name="attndreambooth",
    about="aligns a word's attention with its category's, then learns the subject",
    paper="arXiv 2406.05000",
    settings=AttnDreamBoothSettings,
    make_embedding=from_category,
    stages=(
        Stage("stage1", learns="embedding"),
        Stage("stage2", learns="cross-attention"),
        Stage("stage3", learns="denoiser"),
    ),
)

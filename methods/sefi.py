"""SeFi-IDE (Li et al. 2024): a token whose vectors depend on the timestep, near its category."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ..adapters.limits import MAX_STAGES
from ..models.seeds import seed_of
from ..registry.errors import InvalidInput
from .method import Method, Stage
from .settings import Augmentation, Losses, StageSettings, TrainingSettings, setting

if TYPE_CHECKING:
    from ..adapters.timestep_tokens import TimestepTokens
    from ..models.backbone import Backbone


@dataclass(frozen=True, slots=True, kw_only=True)
class SefiSettings(TrainingSettings):
    """Stages and loss weight are the paper's; learning rate and steps are ours."""

    num_stages: int = setting(5, low=1, high=MAX_STAGES)
    """Stages of the timesteps, each with its own vectors (the paper tries 1 to 10)."""
    parametrisation: Literal["direct", "network"] = "direct"
    """Train the vectors, or a self-attention block that computes them (the paper's)."""
    weight_decay: float = setting(0.0, low=0, high=1)
    embedding: StageSettings = field(
        default_factory=lambda: StageSettings(steps=2000, learning_rate=5e-3, batch=1)
    )
    augmentation: Augmentation = field(
        default_factory=lambda: Augmentation(rotation_probability=0.0)
    )
    loss: Losses = field(default_factory=lambda: Losses(subject_wise=0.003))

    def __post_init__(self) -> None:
        TrainingSettings.__post_init__(self)
        if self.num_tokens != 1:
            raise InvalidInput(f"num_tokens is {self.num_tokens}: sefi learns one token")


def timestep_tokens(
    backbone: "Backbone", tokens: tuple[str, ...], category: str, settings: SefiSettings, seed: int
) -> "TimestepTokens":
    """One token with its own vectors in each stage of the timesteps."""
    from ..adapters.timestep_tokens import TimestepTokens

    return TimestepTokens.from_word(
        backbone,
        tokens[0],
        category,
        num_stages=settings.num_stages,
        parametrisation=settings.parametrisation,
        seed=seed_of(seed, "network"),
    )


METHOD = Method(
    name="sefi",
    about="learns a word with vectors for each stage of time; one photo is enough, many can meet",
    paper="arXiv 2402.00631",
    settings=SefiSettings,
    make_embedding=timestep_tokens,
    stages=(Stage("embedding", learns="embedding"),),
    names_category=False,
)

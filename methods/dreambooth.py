"""DreamBooth (Ruiz et al. 2023): a rare token, and the whole U-Net is trained."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..models.seeds import seed_of
from .method import Method, Stage
from .settings import Prior, StageSettings, TrainingSettings

if TYPE_CHECKING:
    from ..adapters.token_embedding import TokenEmbedding
    from ..models.backbone import Backbone


@dataclass(frozen=True, slots=True, kw_only=True)
class DreamBoothSettings(TrainingSettings):
    """Prior preservation with λ = 1 (eq. 2) and 200 class images, as is usual."""

    unet: StageSettings = field(
        default_factory=lambda: StageSettings(steps=800, learning_rate=5e-6, batch=1)
    )
    prior: Prior = field(default_factory=lambda: Prior(weight=1.0))


def rare_word(
    backbone: "Backbone",
    tokens: tuple[str, ...],
    category: str,
    settings: DreamBoothSettings,
    seed: int,
) -> "TokenEmbedding":
    """Tokens with random embeddings, as the paper's rare token has no meaning."""
    del category, settings
    import torch

    from ..adapters.token_embedding import TokenEmbedding

    generator = torch.Generator().manual_seed(seed_of(seed, "rare word"))
    return TokenEmbedding.rare(backbone, tokens, generator)


METHOD = Method(
    name="dreambooth",
    about="learns the subject into the U-Net, with class images to keep what it knew",
    paper="arXiv 2208.12242",
    settings=DreamBoothSettings,
    make_embedding=rare_word,
    stages=(Stage("unet", learns="denoiser"),),
)

"""DreamBooth (Ruiz et al. 2023): a rare word, and the whole U-Net learns it."""

from dataclasses import dataclass, field

from .method import Method, Stage
from .settings import Prior, StageSettings, TrainingSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class DreamBoothSettings(TrainingSettings):
    """Prior preservation with λ = 1 (eq. 2) and 200 class images, as is usual."""

    unet: StageSettings = field(
        default_factory=lambda: StageSettings(steps=800, learning_rate=5e-6, batch=1)
    )
    prior: Prior = field(default_factory=lambda: Prior(weight=1.0))


METHOD = Method(
    name="dreambooth",
    about="learns the subject into the U-Net, with class images to keep what it knew",
    paper="arXiv 2208.12242",
    settings=DreamBoothSettings,
    stages=(Stage("unet", learns="denoiser"),),
    word="rare",
)

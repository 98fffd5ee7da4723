"""DreamTuner (Hua et al. 2023): drawn after a photo, with or without any training."""

from dataclasses import dataclass, field

from .method import Method, Stage, from_category
from .settings import Prior, ReferenceSettings, StageSettings, TrainingSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class DreamTunerSettings(TrainingSettings):
    """One photo as a reference, and a fine-tuning at the paper's rate (section 4.1)."""

    unet: StageSettings = field(
        default_factory=lambda: StageSettings(steps=800, learning_rate=1e-6, batch=1)
    )
    prior: Prior = field(default_factory=lambda: Prior(weight=1.0, num_images=32))
    reference: ReferenceSettings = field(default_factory=lambda: ReferenceSettings(photos=1))


METHOD = Method(
    name="dreamtuner",
    about="draws after a photo, at once; trained, it keeps more of it",
    paper="arXiv 2312.13691",
    settings=DreamTunerSettings,
    make_embedding=from_category,
    stages=(Stage("unet", learns="denoiser"),),
)

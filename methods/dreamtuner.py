"""DreamTuner (Hua et al. 2023): drawn after a photo, with or without any training.

Certain, by the paper: a photo on white and a regular image in each step, 32 regular images drawn
after the photo without its mask, rates, steps, and what is trained: U-Net, text encoder and token.
Ours: the loss weights of 1, the wording of prompts, and that pictures attend to no reference in
training, as a photo would be its own. The subject encoder is for base models that have one.
"""

from dataclasses import dataclass, field

from .method import Method, Stage, from_category
from .settings import Augmentation, Prior, ReferenceSettings, StageSettings, TrainingSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class DreamTunerSettings(TrainingSettings):
    """One photo as a reference, and a fine-tuning at the paper's rates (section 4.1)."""

    unet: StageSettings = field(
        default_factory=lambda: StageSettings(
            steps=800,
            learning_rate=1e-6,
            text_encoder_rate=1e-6,
            embedding_rate=5e-3,
            batch=1,
        )
    )
    prior: Prior = field(
        default_factory=lambda: Prior(weight=1.0, num_images=32, after_references=True)
    )
    augmentation: Augmentation = field(
        default_factory=lambda: Augmentation(rotation_probability=0.0, white_background=True)
    )
    reference: ReferenceSettings = field(default_factory=lambda: ReferenceSettings(photos=1))


METHOD = Method(
    name="dreamtuner",
    about="draws after a photo, at once; trained, it keeps more of it",
    paper="arXiv 2312.13691",
    settings=DreamTunerSettings,
    make_embedding=from_category,
    stages=(Stage("unet", learns="denoiser"),),
)

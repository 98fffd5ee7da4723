"""Textual Inversion (Gal et al. 2022): only the embedding of a new token is trained."""

from dataclasses import dataclass, field

from .method import Method, Stage, from_category
from .settings import Augmentation, StageSettings, TrainingSettings

TEMPLATES = (
    "a photo of a {}",
    "a picture of a {}",
    "a close-up photo of a {}",
    "a good photo of a {}",
    "a cropped photo of the {}",
    "a bright photo of the {}",
    "a photo of one {}",
    "a photo of my {}",
)
"""Written for this project, modelled on those in the paper's supplement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextualInversionSettings(TrainingSettings):
    """Steps and batch are the paper's, for latent diffusion (section 4), photos as in its code.

    The rate is the paper's base rate, which its code multiplies by the batch and the GPUs, to 0.02
    on one: to leave it as it is is ours.
    """

    prompts: tuple[str, ...] = TEMPLATES
    embedding: StageSettings = field(
        default_factory=lambda: StageSettings(steps=5000, learning_rate=5e-3, batch=4)
    )
    augmentation: Augmentation = field(
        default_factory=lambda: Augmentation(rotation_probability=0.0, smallest=1.0)
    )


METHOD = Method(
    name="textual-inversion",
    about="learns a word for the subject; small and composable, likeness limited",
    paper="arXiv 2208.01618",
    settings=TextualInversionSettings,
    make_embedding=from_category,
    stages=(Stage("embedding", learns="embedding"),),
    names_category=False,
)

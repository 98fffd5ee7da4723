"""DreamBooth (Ruiz et al. 2023): a rare token, and the whole U-Net is trained.

The rare word is made of the tokenizer's own tokens, as the paper asks for (section 3.2) and all
scripts have it: with random vectors the category's word learns the subject too, class images or
not. Photos are not varied, as in those scripts; class images have timesteps of their own.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..adapters.limits import MAX_TOKENS
from ..models.seeds import seed_of
from ..registry.documents import shown
from ..registry.errors import InvalidInput
from .method import Method, Stage
from .settings import Augmentation, Prior, StageSettings, TrainingSettings

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
    augmentation: Augmentation = field(
        default_factory=lambda: Augmentation(rotation_probability=0.0, flip=False, smallest=1.0)
    )
    word: str = "sks"
    """Rare word whose tokens stand for the subject; none takes `num_tokens` random ones."""

    def check_together(self) -> None:
        """Raise `InvalidInput` for settings that contradict each other."""
        TrainingSettings.check_together(self)
        if self.word and self.num_tokens != 1:
            raise InvalidInput(
                f"num_tokens is {self.num_tokens}, but word={self.word} has tokens of its own",
                hint="--set word=, for random ones, or --set num_tokens=1",
            )


def pieces_of(backbone: "Backbone", word: str) -> list[list[int]]:
    """The tokens of a word, by each of the tokenizers."""
    return [each.ids(word, whole=False) for each in backbone.text_encoders]


def count_tokens(backbone: "Backbone", settings: DreamBoothSettings) -> int:
    """As many as the rare word has, or as the settings say. Raises `InvalidInput`."""
    if not settings.word:
        return settings.num_tokens
    counts = {len(pieces) for pieces in pieces_of(backbone, settings.word)}
    if len(counts) > 1 or not 0 < max(counts) <= MAX_TOKENS:
        raise InvalidInput(
            f"word is {shown(settings.word)}: it has {max(counts)} tokens of the base model's, "
            f"expected 1 to {MAX_TOKENS}",
            hint="--set word=sks",
        )
    return max(counts)


def rare_word(
    backbone: "Backbone",
    tokens: tuple[str, ...],
    category: str,
    settings: DreamBoothSettings,
    seed: int,
) -> "TokenEmbedding":
    """Tokens with the embeddings of the rare word, or with random ones."""
    del category
    import torch

    from ..adapters.token_embedding import TokenEmbedding

    if settings.word:
        return TokenEmbedding.from_pieces(backbone, tokens, pieces_of(backbone, settings.word))
    generator = torch.Generator().manual_seed(seed_of(seed, "rare word"))
    return TokenEmbedding.rare(backbone, tokens, generator)


METHOD = Method(
    name="dreambooth",
    about="learns the subject into the U-Net, with class images to keep what it knew",
    paper="arXiv 2208.12242",
    settings=DreamBoothSettings,
    make_embedding=rare_word,
    count_tokens=count_tokens,
    former={"word": ""},
    stages=(Stage("unet", learns="denoiser"),),
)

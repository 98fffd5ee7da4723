"""A toy: a word for the subject that begins as another word, and is learned no further."""

from dataclasses import dataclass, field

from conceptry.adapters.token_embedding import TokenEmbedding
from conceptry.methods.method import Method, Stage
from conceptry.methods.settings import StageSettings, TrainingSettings, setting
from conceptry.models.backbone import Backbone


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenWordSettings(TrainingSettings):
    """One stage, and the word to begin with."""

    begin_with: str = setting("cat")
    """The word whose vector the token begins as."""
    word: StageSettings = field(
        default_factory=lambda: StageSettings(steps=2, learning_rate=0.0, batch=1)
    )


def from_word(
    backbone: Backbone,
    tokens: tuple[str, ...],
    category: str,
    settings: FrozenWordSettings,
    seed: int,
) -> TokenEmbedding:
    """Tokens that begin as the word of the settings."""
    del category, seed
    return TokenEmbedding.from_words(backbone, tokens, settings.begin_with)


METHOD = Method(
    name="frozen-word",
    about="keeps a word as it is",
    paper="none",
    settings=FrozenWordSettings,
    make_embedding=from_word,
    stages=(Stage("word", learns="embedding"),),
)

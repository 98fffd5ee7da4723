"""A subject encoder's tokens of a concept's references, injected into the denoiser (DreamTuner)."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from ..models.backbone import Backbone
from ..models.subject_encoder import (
    STRENGTH,
    SubjectAttention,
    SubjectEncoder,
    SubjectTokens,
)
from ..registry.errors import InvalidWeights

_NAME = "subject.tokens"


@dataclass(slots=True)
class SubjectEncoding:
    """Makes every transformer block attend to tokens of references: z ← z + β·SEA(z, tokens).

    `subject` has the tokens, (1, n, d) for all rows of a batch or (B, n, d), and the strength β;
    both may be changed while it is injected. At a strength of 0 the denoiser computes what it
    computes without it. `attention` are the subject encoder's sublayers, which are not stored.
    """

    attention: SubjectAttention
    subject: SubjectTokens
    _hooks: ExitStack | None = None

    @classmethod
    def of(
        cls, encoder: SubjectEncoder, references: Sequence[Image.Image], strength: float = STRENGTH
    ) -> "SubjectEncoding":
        """One subject, seen in references without background; their tokens stand in a row."""
        tokens = encoder.encode(references).flatten(0, 1)[None]
        return cls(encoder.attention, SubjectTokens(tokens, strength))

    @classmethod
    def from_state(
        cls, attention: SubjectAttention, state: Mapping[str, Tensor], strength: float = STRENGTH
    ) -> "SubjectEncoding":
        """The inverse of `state`, with the subject encoder that made the tokens."""
        return cls(attention, SubjectTokens(state[_NAME], strength))

    def state(self) -> dict[str, Tensor]:
        """`subject.tokens` (1, n, d)."""
        return {_NAME: self.subject.tokens}

    def check(self, backbone: Backbone) -> None:
        """Raise `InvalidWeights` if tokens or sublayers do not fit this base model's denoiser."""
        tokens = self.subject.tokens
        if tokens.ndim != 3 or not tokens.shape[1] or tokens.shape[2] != self.attention.width:
            raise InvalidWeights(f"its tokens have the shape {list(tokens.shape)}")
        if not self.attention.fits(backbone.denoiser):
            raise InvalidWeights("its subject encoder is one of another base model")

    def inject(self, backbone: Backbone) -> None:
        """Insert the sublayers. Raises `RuntimeError` if they are injected already."""
        if self._hooks is not None:
            raise RuntimeError("this subject encoding is injected already")
        self._hooks = self.attention.insert(backbone.denoiser, self.subject)

    def eject(self, backbone: Backbone) -> None:
        """Remove them."""
        del backbone
        if self._hooks is not None:
            self._hooks.close()
            self._hooks = None

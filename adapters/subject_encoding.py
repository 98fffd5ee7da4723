"""A subject encoder's tokens of a concept's references, injected into the denoiser (DreamTuner)."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from ..models.backbone import Backbone
from ..models.references import MAX_STRENGTH
from ..models.subject_encoder import (
    STRENGTH,
    SubjectAttention,
    SubjectTokens,
    TokenMapper,
)
from ..models.subject_encoder_file import LoadedSubjectEncoder
from ..registry.errors import InvalidWeights

TOKENS = "subject.tokens"
"""Their name in an adapter's file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectMetadata:
    """What is not a tensor of a `SubjectEncoding`: β, and the hash of its encoder's file."""

    encoder_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    strength: Annotated[float, Field(ge=0, le=MAX_STRENGTH)]


@dataclass(frozen=True, slots=True, eq=False)
class SubjectSource:
    """What makes tokens while they are trained: ResBlocks, and features (R, C, g, g)."""

    mapper: TokenMapper
    features: Tensor


@dataclass(slots=True, eq=False)
class SubjectEncoding:
    """Makes every transformer block attend to tokens of references: z ← z + β·SEA(z, tokens).

    `subject` has the tokens, (1, n, d) for all rows of a batch or (B, n, d), and the strength β;
    both may be changed while it is injected. At a strength of 0 the denoiser computes what it
    computes without it. `attention` are the subject encoder's sublayers, which are not stored;
    `source`, if there is one, makes the tokens anew (`update`).
    """

    attention: SubjectAttention
    subject: SubjectTokens
    encoder_sha256: str = ""
    source: SubjectSource | None = None
    _hooks: ExitStack | None = None

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        loaded: LoadedSubjectEncoder,
        references: Sequence[Image.Image],
        strength: float = STRENGTH,
    ) -> "SubjectEncoding":
        """One subject, seen in references without background; their tokens stand in a row."""
        encoder = loaded.encoder
        source = SubjectSource(encoder.mapper, encoder.vision(encoder.prepare(references)))
        tokens = SubjectTokens(_in_a_row(source), strength)
        return cls(encoder.attention, tokens, loaded.sha256, source)

    @classmethod
    def from_state(
        cls,
        attention: SubjectAttention,
        state: Mapping[str, Tensor],
        described: SubjectMetadata,
        strength: float = 1.0,
    ) -> "SubjectEncoding":
        """The inverse of `state` and `describe`; `strength` multiplies β."""
        subject = SubjectTokens(state[TOKENS], described.strength * strength)
        return cls(attention, subject, described.encoder_sha256)

    def state(self) -> dict[str, Tensor]:
        """`subject.tokens` (1, n, d)."""
        return {TOKENS: self.subject.tokens.detach()}

    def describe(self) -> SubjectMetadata:
        """What goes into the adapter's metadata."""
        return SubjectMetadata(encoder_sha256=self.encoder_sha256, strength=self.subject.strength)

    def learning(self) -> dict[str, nn.Parameter]:
        """The parameters of the ResBlocks, by name; none where tokens are fixed."""
        if self.source is None:
            return {}
        return {f"subject.{name}": each for name, each in self.source.mapper.named_parameters()}

    def update(self) -> None:
        """Make the tokens anew, by ResBlocks as they are now; gradients flow into these."""
        if self.source is not None:
            self.subject.tokens = _in_a_row(self.source)

    def to(self, device: torch.device) -> None:
        """Move all of it to a device."""
        self.attention.to(device)
        self.subject.tokens = self.subject.tokens.to(device)
        if self.source is not None:
            features = self.source.features.to(device)
            self.source = SubjectSource(self.source.mapper.to(device), features)

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


def _in_a_row(source: SubjectSource) -> Tensor:
    return source.mapper(source.features).flatten(0, 1)[None]

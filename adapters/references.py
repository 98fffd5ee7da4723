"""References as an adapter: what DreamTuner draws after without any training.

A subject encoder may see them too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ..models.backbone import Backbone
from ..models.references import MAX_GUIDANCE, MAX_WEIGHT, Reference
from ..registry.errors import InvalidWeights
from ..registry.hashes import sha256_of
from .subject_encoding import SubjectEncoding

_PARTS = ("latents", "mask")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceMetadata:
    """What is not a tensor of a `Reference`; {} in its prompt stands for the concept."""

    prompt: Annotated[str, Field(min_length=1, max_length=1000)]
    weight: Annotated[float, Field(ge=0, le=MAX_WEIGHT)]
    share: Annotated[float, Field(ge=0, le=1)]
    guidance: Annotated[float, Field(ge=0, le=MAX_GUIDANCE)]


class References:
    """References that a base model draws after while they are injected.

    `encoding`, if there is one, are a subject encoder's tokens of them, injected with them.
    """

    def __init__(
        self, references: Sequence[Reference], encoding: SubjectEncoding | None = None
    ) -> None:
        self.references = list(references)
        self.encoding = encoding
        self._before: list[Reference] | None = None

    @classmethod
    def from_state(
        cls,
        state: Mapping[str, Tensor],
        described: Sequence[ReferenceMetadata],
        strength: float = 1.0,
        encoding: SubjectEncoding | None = None,
    ) -> "References":
        """The inverse of `state` and `describe`; `strength` multiplies the weights."""
        return cls(
            [
                Reference(
                    *(state[name] for name in tensor_names(i)),
                    prompt=each.prompt,
                    weight=each.weight * strength,
                    share=each.share,
                    guidance=each.guidance,
                )
                for i, each in enumerate(described)
            ],
            encoding,
        )

    def state(self) -> dict[str, Tensor]:
        """`reference.N.latents` (C, h, w), `reference.N.mask` (h, w), from 0 on, and tokens."""
        state = self.encoding.state() if self.encoding else dict[str, Tensor]()
        for i, each in enumerate(self.references):
            state |= zip(tensor_names(i), (each.latents, each.mask), strict=True)
        return state

    def describe(self) -> tuple[ReferenceMetadata, ...]:
        """What goes into the adapter's metadata."""
        return tuple(
            ReferenceMetadata(
                prompt=each.prompt,
                weight=each.weight,
                share=each.share,
                guidance=each.guidance,
            )
            for each in self.references
        )

    def in_words(self, words: str, placeholder: str = "{}") -> "References":
        """The same with a placeholder in their prompts replaced."""
        return References(
            [
                replace(each, prompt=each.prompt.replace(placeholder, words))
                for each in self.references
            ],
            self.encoding,
        )

    def of_subject(self, subject: str) -> "References":
        """The same as pictures of a subject."""
        return References(
            [replace(each, subject=subject) for each in self.references], self.encoding
        )

    def unmasked(self) -> "References":
        """The same with all of their pictures as the subject."""
        return References(
            [replace(each, mask=torch.ones_like(each.mask)) for each in self.references],
            self.encoding,
        )

    def leading(self, share: float) -> "References":
        """The same, each leading a share of the steps: p_r."""
        return References([replace(each, share=share) for each in self.references], self.encoding)

    def without_encoding(self) -> "References":
        """The same without a subject encoder's tokens."""
        return References(self.references)

    def fingerprint(self) -> str:
        """A hash of all that decides what is drawn after them; empty without references."""
        if not self.references:
            return ""
        described = "".join(str(each) for each in self.describe())
        if self.encoding:
            described += str(self.encoding.describe())
        tensors = b"".join(
            each.contiguous().cpu().view(torch.uint8).numpy().tobytes()
            for each in self.state().values()
        )
        return sha256_of(described.encode() + tensors)

    def check(self, backbone: Backbone) -> None:
        """Raise `InvalidWeights` if latents do not fit this base model."""
        for each in self.references:
            if each.latents.shape[0] != backbone.latent_channels:
                raise InvalidWeights(
                    f"its references have {each.latents.shape[0]} channels, the base model's "
                    f"latents {backbone.latent_channels}"
                )
        if self.encoding:
            self.encoding.check(backbone)

    def inject(self, backbone: Backbone) -> None:
        """Draw after them, beside others. Raises `RuntimeError` if they are injected already."""
        if self._before is not None:
            raise RuntimeError("these references are injected already")
        if self.encoding:
            self.encoding.inject(backbone)
        self._before = backbone.references
        backbone.references = [*self._before, *self.references]

    def eject(self, backbone: Backbone) -> None:
        """Draw as before."""
        if self._before is not None:
            backbone.references = self._before
            self._before = None
            if self.encoding:
                self.encoding.eject(backbone)


def tensor_names(number: int) -> tuple[str, str]:
    """The names in an adapter's file of a reference's latents and mask."""
    latents, mask = (f"reference.{number}.{part}" for part in _PARTS)
    return latents, mask

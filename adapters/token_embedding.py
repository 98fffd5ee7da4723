"""Embeddings of new tokens: what Textual Inversion trains, and other methods too."""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from transformers import AddedToken

from ..models.backbone import Backbone, TextEncoder
from ..registry.errors import InvalidWeights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ExtendedEmbedding(nn.Module):
    """An embedding with `count` more rows: ids from `first` on are looked up in `rows()`."""

    def __init__(self, base: nn.Module, rows: Callable[[], Tensor], first: int, count: int) -> None:
        super().__init__()
        self.base = base
        self.rows = rows
        self.first = first
        self.count = count

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids (…,) to vectors (…, d)."""
        new = (ids >= self.first) & (ids < self.first + self.count)
        known = self.base(torch.where(new, 0, ids))
        own = nn.functional.embedding(torch.where(new, ids - self.first, 0), self.rows().to(known))
        return torch.where(new.unsqueeze(-1), own, known)


@dataclass(slots=True)
class NewTokens:
    """Adds tokens to a base model's tokenizers and text encoders.

    `rows` are functions that return their vectors (n, d), one for each text encoder.
    """

    tokens: tuple[str, ...]
    rows: Sequence[Callable[[], Tensor]]
    _injected: "list[tuple[int, PreTrainedTokenizerBase, PreTrainedModel, nn.Module]]" = field(
        default_factory=list
    )
    _ends: list[nn.Module] = field(default_factory=list)

    def inject(self, backbone: Backbone) -> None:
        """Add the tokens to the tokenizers, and their vectors to the text encoders."""
        if self._injected:
            raise RuntimeError(f"{self.tokens[0]} is injected already")
        with ExitStack() as undo:
            undo.callback(self.eject, backbone)
            encoders = zip(backbone.text_encoders, self.rows, strict=True)
            for i, (encoder, rows) in enumerate(encoders):
                tokenizer, network = encoder.tokenizer, encoder.network
                extended = copy.deepcopy(tokenizer)
                extended.add_tokens([AddedToken(each, normalized=False) for each in self.tokens])
                first = TextEncoder(extended, network).id_of(self.tokens[0])
                base = network.get_input_embeddings()
                self._injected.append((i, tokenizer, network, base))
                network.set_input_embeddings(ExtendedEmbedding(base, rows, first, len(self.tokens)))
                backbone.set_tokenizer(i, extended)
                self._ends += _read_at_end_token(network, tokenizer)
            undo.pop_all()

    def eject(self, backbone: Backbone) -> None:
        """Restore the original tokenizers and embeddings."""
        for i, tokenizer, network, base in reversed(self._injected):
            network.set_input_embeddings(base)
            backbone.set_tokenizer(i, tokenizer)
        for module in self._ends:
            vars(module)["eos_token_id"] = _FORMER_END
        self._injected.clear()
        self._ends.clear()


def check_vectors(backbone: Backbone, shapes: Sequence[torch.Size], leading: Sequence[int]) -> None:
    """Raise `InvalidWeights` unless shapes are (*leading, d), one for each text encoder."""
    expected: list[tuple[int, ...]] = []
    for encoder in backbone.text_encoders:
        embedding = encoder.network.get_input_embeddings()
        while isinstance(embedding, ExtendedEmbedding):
            embedding = embedding.base
        expected.append((*leading, embedding.get_parameter("weight").shape[1]))
    if [tuple(shape) for shape in shapes] != expected:
        raise InvalidWeights("its vectors are not as wide as the base model's")


def mean_vectors(backbone: Backbone, words: str) -> list[Tensor]:
    """The mean (d,) of the vectors of `words`, for each text encoder."""
    means: list[Tensor] = []
    for encoder in backbone.text_encoders:
        ids = torch.tensor(encoder.ids(words, whole=False), device=encoder.network.device)
        with torch.no_grad():
            means.append(encoder.network.get_input_embeddings()(ids).float().mean(0))
    return means


@dataclass(slots=True)
class TokenEmbedding:
    """Trainable vectors (n, d) of a subject's placeholder tokens, for each text encoder.

    `tokens` are the placeholders' names, unique among the injected concepts.
    """

    stage_order: ClassVar[str] = ""
    """Empty: the vectors do not depend on the timestep."""

    tokens: tuple[str, ...]
    vectors: list[nn.Parameter]
    _injected: NewTokens | None = None

    @classmethod
    def from_words(cls, backbone: Backbone, tokens: Sequence[str], words: str) -> "TokenEmbedding":
        """Initialise every vector with the mean of the vectors of `words`."""
        means = mean_vectors(backbone, words)
        return cls(tuple(tokens), [nn.Parameter(mean.repeat(len(tokens), 1)) for mean in means])

    @classmethod
    def from_pieces(
        cls, backbone: Backbone, tokens: Sequence[str], pieces: Sequence[Sequence[int]]
    ) -> "TokenEmbedding":
        """The vectors of as many tokens of the vocabulary, by id, for each text encoder."""
        if any(len(ids) != len(tokens) for ids in pieces):
            raise ValueError(f"{len(tokens)} tokens for {pieces}")
        tables = [
            encoder.network.get_input_embeddings().get_parameter("weight").detach().float()
            for encoder in backbone.text_encoders
        ]
        vectors = [
            nn.Parameter(table[list(ids)].clone())
            for table, ids in zip(tables, pieces, strict=True)
        ]
        return cls(tuple(tokens), vectors)

    @classmethod
    def rare(
        cls, backbone: Backbone, tokens: Sequence[str], generator: torch.Generator
    ) -> "TokenEmbedding":
        """Random vectors, with the mean and standard deviation of the vocabulary's vectors."""
        vectors: list[nn.Parameter] = []
        for encoder in backbone.text_encoders:
            table = encoder.network.get_input_embeddings().get_parameter("weight").detach().float()
            noise = torch.randn((len(tokens), table.shape[1]), generator=generator)
            vectors.append(nn.Parameter(table.mean(0) + table.std(0) * noise.to(table.device)))
        return cls(tuple(tokens), vectors)

    @classmethod
    def from_state(cls, tokens: Sequence[str], state: Mapping[str, Tensor]) -> "TokenEmbedding":
        """The inverse of `state`."""
        names = sorted(name for name in state if name.startswith("token."))
        return cls(tuple(tokens), [nn.Parameter(state[name].float()) for name in names])

    def state(self) -> dict[str, Tensor]:
        """`token.0` (n, d), and `token.1` where there are two text encoders."""
        return {name: vectors.detach() for name, vectors in self.learning().items()}

    def learning(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained."""
        return {f"token.{i}": vectors for i, vectors in enumerate(self.vectors)}

    def begin_pass(self, seed: int) -> None:
        """Called before each forward pass of a training; nothing to do here."""

    def end_pass(self) -> None:
        """Called after a training's last pass."""

    def prompt_variants(self, prompt: str, *_: float) -> tuple[str, ...]:
        """The prompts to encode for a timestep: always the prompt itself."""
        return (prompt,)

    def check(self, backbone: Backbone) -> None:
        """Raise `InvalidWeights` if the vectors do not fit this base model."""
        check_vectors(backbone, [each.shape for each in self.vectors], [len(self.tokens)])

    def apply_strength(self, backbone: Backbone, category: str, strength: float) -> None:
        """Interpolate from the category's vector (strength 0) to the learned ones (strength 1)."""
        for own, start in zip(self.vectors, mean_vectors(backbone, category), strict=True):
            own.data = torch.lerp(start.to(own), own.data, strength)

    def inject(self, backbone: Backbone) -> None:
        """Add the tokens to the base model. Raises `RuntimeError` if they are already injected."""
        if self._injected:
            raise RuntimeError(f"{self.tokens[0]} is injected already")
        new = NewTokens(self.tokens, [partial(_itself, each) for each in self.vectors])
        new.inject(backbone)
        self._injected = new

    def eject(self, backbone: Backbone) -> None:
        """Remove the tokens."""
        if self._injected:
            self._injected.eject(backbone)
        self._injected = None


def _itself(vectors: Tensor) -> Tensor:
    return vectors


_FORMER_END = 2
"""`eos_token_id` in configurations from before 2023."""


def _read_at_end_token(encoder: nn.Module, tokenizer: "PreTrainedTokenizerBase") -> list[nn.Module]:
    """Make the text encoder read its pooled state at the end token; returns what was changed.

    With `_FORMER_END` transformers reads it at the highest id, which a new token would have.
    """
    found = [each for each in encoder.modules() if vars(each).get("eos_token_id") == _FORMER_END]
    for module in found:
        vars(module)["eos_token_id"] = tokenizer.eos_token_id
    return found

"""What methods learn and pipelines wear: vectors for new tokens, and changes of weights.

An adapter is put on with `inject` and taken off with `eject`, in reverse order; after that the
pipeline's modules are the very ones that it had.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AddedToken


class Adapter(Protocol):
    """Something that a pipeline can wear."""

    def inject(self, pipeline: Any) -> None:
        """Put it on. Raises `RuntimeError` if it is on already."""
        ...

    def eject(self, pipeline: Any) -> None:
        """Take it off."""
        ...


@contextmanager
def injected(pipeline: Any, adapters: Sequence[Adapter]) -> Iterator[None]:
    """Put adapters on, one after another, and take them off again whatever happens."""
    with ExitStack() as stack:
        for adapter in adapters:
            adapter.inject(pipeline)
            stack.callback(adapter.eject, pipeline)
        yield


# --- new tokens -----------------------------------------------------------------------------------


class ExtendedEmbedding(nn.Module):
    """An embedding with `count` further rows: ids from `first` on are those that `rows` gives."""

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
    """Tokens that a pipeline's tokenizers do not know.

    `rows` give their vectors (n, d), for each text encoder one.
    """

    tokens: tuple[str, ...]
    rows: Sequence[Callable[[], Tensor]]
    _injected: list[tuple[Any, Any, Any, nn.Module]] = field(default_factory=list)

    def inject(self, pipeline: Any) -> None:
        """Let the pipeline's tokenizers know the tokens, and its text encoders their vectors."""
        if self._injected:
            raise RuntimeError(f"{self.tokens[0]} is on already")
        names = ("tokenizer", "tokenizer_2")
        for name, (tokenizer, encoder), rows in zip(
            names, text_encoders(pipeline), self.rows, strict=False
        ):
            extended = copy.deepcopy(tokenizer)
            extended.add_tokens([AddedToken(each, normalized=False) for each in self.tokens])
            (first, *_) = extended.convert_tokens_to_ids(list(self.tokens))
            base = encoder.get_input_embeddings()
            encoder.set_input_embeddings(ExtendedEmbedding(base, rows, first, len(self.tokens)))
            setattr(pipeline, name, extended)
            self._injected.append((name, tokenizer, encoder, base))
            _read_at_end_token(encoder, tokenizer)

    def eject(self, pipeline: Any) -> None:
        """Give the pipeline its own tokenizers and embeddings back."""
        for name, tokenizer, encoder, base in reversed(self._injected):
            encoder.set_input_embeddings(base)
            setattr(pipeline, name, tokenizer)
        self._injected.clear()


def mean_vectors(pipeline: Any, words: str) -> list[Tensor]:
    """The mean of the vectors of some words, (d,), for each text encoder."""
    means: list[Tensor] = []
    for tokenizer, encoder in text_encoders(pipeline):
        ids = torch.tensor(tokenizer(words, add_special_tokens=False).input_ids)
        with torch.no_grad():
            means.append(encoder.get_input_embeddings()(ids.to(encoder.device)).float().mean(0))
    return means


@dataclass(slots=True)
class TokenEmbedding:
    """Vectors for the placeholder tokens of a subject, (n, d) for each text encoder.

    `tokens` are the placeholders' names; no two concepts in one pipeline may share them.
    """

    tokens: tuple[str, ...]
    vectors: list[nn.Parameter]
    _injected: NewTokens | None = None

    @classmethod
    def from_words(cls, pipeline: Any, tokens: Sequence[str], words: str) -> "TokenEmbedding":
        """Every vector starts as the mean of the vectors of some words."""
        means = mean_vectors(pipeline, words)
        return cls(tuple(tokens), [nn.Parameter(mean.repeat(len(tokens), 1)) for mean in means])

    @classmethod
    def rare(
        cls, pipeline: Any, tokens: Sequence[str], generator: torch.Generator
    ) -> "TokenEmbedding":
        """Vectors that mean nothing yet: drawn with the mean and spread of all words' vectors."""
        vectors: list[nn.Parameter] = []
        for _, encoder in text_encoders(pipeline):
            table = encoder.get_input_embeddings().weight.detach().float()
            noise = torch.randn((len(tokens), table.shape[1]), generator=generator)
            vectors.append(nn.Parameter(table.mean(0) + table.std(0) * noise.to(table.device)))
        return cls(tuple(tokens), vectors)

    @classmethod
    def from_state(cls, tokens: Sequence[str], state: Mapping[str, Tensor]) -> "TokenEmbedding":
        """From what `state` returned."""
        names = sorted(name for name in state if name.startswith("token."))
        return cls(tuple(tokens), [nn.Parameter(state[name].float()) for name in names])

    def state(self) -> dict[str, Tensor]:
        """`token.0` (n, d), and `token.1` where there are two text encoders."""
        return {name: vectors.detach() for name, vectors in self.learning().items()}

    def learning(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained."""
        return {f"token.{i}": vectors for i, vectors in enumerate(self.vectors)}

    def begin_pass(self, seed: int) -> None:
        """Called before a training's pass; vectors that are no function of others stay."""

    def end_pass(self) -> None:
        """Called after the last pass."""

    def said(self, prompt: str, *_: float) -> tuple[str, ...]:
        """The prompt as the text encoder gets it at a timestep: always as it is."""
        return (prompt,)

    def weaken(self, pipeline: Any, category: str, strength: float) -> None:
        """Move the vectors from the category's, at strength 0, to what was learned, at 1."""
        for own, start in zip(self.vectors, mean_vectors(pipeline, category), strict=True):
            own.data = torch.lerp(start.to(own), own.data, strength)

    def inject(self, pipeline: Any) -> None:
        """Let the pipeline know the tokens."""
        if self._injected:
            raise RuntimeError(f"{self.tokens[0]} is on already")
        self._injected = NewTokens(self.tokens, [partial(_itself, each) for each in self.vectors])
        self._injected.inject(pipeline)

    def eject(self, pipeline: Any) -> None:
        """Let it forget them."""
        if self._injected:
            self._injected.eject(pipeline)
        self._injected = None


def _itself(vectors: Tensor) -> Tensor:
    return vectors


def _read_at_end_token(encoder: Any, tokenizer: Any) -> None:
    """Let the pooled vector be read at the end token.

    Configurations from before 2023 (`eos_token_id: 2`) make transformers read it at the highest id,
    which a new token would be.
    """
    for module in encoder.modules():
        if getattr(module, "eos_token_id", None) == 2:
            module.eos_token_id = tokenizer.eos_token_id


def text_encoders(pipeline: Any) -> Iterator[tuple[Any, Any]]:
    """(tokenizer, text encoder) of SD 1.x and 2.x; both pairs of SDXL."""
    for ending in ("", "_2"):
        tokenizer = getattr(pipeline, f"tokenizer{ending}", None)
        if tokenizer is not None:
            yield tokenizer, getattr(pipeline, f"text_encoder{ending}")


# --- changed weights ------------------------------------------------------------------------------


@dataclass(slots=True)
class WeightDelta:
    """Changes of a U-Net's weights: whole differences, or products of two thin matrices (LoRA).

    W becomes W + strength · Δ, with Δ = `deltas[name]`, or Δ = up · down where `factors[name]` is
    (up (out, r), down (r, in)). Names are those of the U-Net's parameters.
    """

    deltas: dict[str, Tensor]
    factors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    strength: float = 1.0
    _own: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], strength: float = 1.0) -> "WeightDelta":
        """From what `state` returned."""
        deltas, factors = {}, {}
        for name, tensor in state.items():
            kind, _, parameter = name.partition(".")
            if kind == "delta":
                deltas[parameter] = tensor
            elif kind == "up":
                factors[parameter] = tensor, state[f"down.{parameter}"]
        return cls(deltas, factors, strength)

    def state(self) -> dict[str, Tensor]:
        """`delta.NAME`, or `up.NAME` and `down.NAME`."""
        state = {f"delta.{name}": tensor for name, tensor in self.deltas.items()}
        for name, (up, down) in self.factors.items():
            state |= {f"up.{name}": up, f"down.{name}": down}
        return state

    def inject(self, pipeline: Any) -> None:
        """Add the changes to the U-Net's weights; its own are kept aside."""
        if self._own:
            raise RuntimeError("these weights are changed already")
        parameters = dict(pipeline.unet.named_parameters())
        for name in (*self.deltas, *self.factors):
            parameter = parameters[name]
            self._own[name] = parameter.data
            change = self._change(name, parameter)
            parameter.data = (parameter.data.float() + self.strength * change).to(parameter.dtype)

    def _change(self, name: str, parameter: Tensor) -> Tensor:
        if name in self.deltas:
            return self.deltas[name].to(parameter.device, torch.float32)
        up, down = (part.to(parameter.device, torch.float32) for part in self.factors[name])
        return (up @ down.flatten(1)).reshape(parameter.shape)

    def eject(self, pipeline: Any) -> None:
        """Give the U-Net its own weights back, bit for bit."""
        parameters = dict(pipeline.unet.named_parameters())
        for name, own in self._own.items():
            parameters[name].data = own
        self._own.clear()

"""SeFi-IDE's semantic-fidelity tokens (arXiv 2402.00631, section 3.3): they depend on the timestep.

A timestep token has two vectors in each of S stages of the timesteps: one for the keys of
cross-attention and one for its values. So each timestep has two prompts, which differ in this token
alone: `to_k` reads the text states of the first, `to_v` those of the second. The base model is not
changed.

Text states become wider: (B, 77, 2 · d) for one stage, keys' states first, and (B, 77, I · 2 · d)
for all I stages, of which the denoiser takes those of its timestep.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import ClassVar

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from ..models.backbone import Backbone, EncodedTexts, EncodeTexts
from .adapter import Adapter
from .token_embedding import NewTokens, TokenEmbedding, check_vectors, mean_vectors

STAGE_ORDER = "stage 0 has the least noise"
ROLES = ("k", "v")


def stage_of(timestep: float, num_stages: int, num_timesteps: int) -> int:
    """The stage, 0 to S - 1, of a timestep: ⌊t · S / T⌋."""
    return min(int(timestep * num_stages / num_timesteps), num_stages - 1)


# --- where the vectors come from ------------------------------------------------------------------


class TimestepVectors(nn.Module):
    """The vectors (S, 2, d), trained directly."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.num_stages = len(vectors)
        self.vectors = nn.Parameter(vectors)

    def forward(self) -> Tensor:
        """(S, 2, d)."""
        return self.vectors


class TimestepNetwork(nn.Module):
    """A trained self-attention block that computes the vectors (S, 2, d) from a word's.

    Two attentions of 8 heads and a GEGLU layer, as in ProSpect (arXiv 2305.16225), which the paper
    builds on. Its last layer begins with zeros, so that all vectors begin as the word's.
    """

    def __init__(self, word: Tensor, num_stages: int) -> None:
        super().__init__()
        width = len(word)
        self.num_stages = num_stages
        self.register_buffer("word", word)
        self.shape = (num_stages, len(ROLES), width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.attentions = nn.ModuleList(
            Attention(width, heads=8, dim_head=64, dropout=0.1) for _ in range(2)
        )
        self.out = FeedForward(width, num_stages * len(ROLES) * width, dropout=0.1)
        for parameter in self.out.net[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self) -> Tensor:
        """(S, 2, d)."""
        states: Tensor = self.get_buffer("word")[None, None]
        for norm, attention in zip(self.norms, self.attentions, strict=False):
            states = states + attention(norm(states))
        return self.get_buffer("word") + self.out(self.norms[-1](states)).reshape(self.shape)


# --- the token ------------------------------------------------------------------------------------


@dataclass(slots=True)
class TimestepTokens:
    """A token with vectors (S, 2, d) for each text encoder; stage 0 has the least noise.

    A prompt has the token's own name. The text encoder gets one of 2 · S other names, one for each
    stage and role (`prompt_variants`). SDXL's pooled states are those of the prompt with `category`
    in the token's place.
    """

    stage_order: ClassVar[str] = STAGE_ORDER

    tokens: tuple[str]
    category: str
    sources: list[TimestepVectors | TimestepNetwork]
    _now: list[Tensor] = field(default_factory=list)
    _injected: NewTokens | None = None

    @classmethod
    def from_word(
        cls,
        backbone: Backbone,
        token: str,
        category: str,
        *,
        num_stages: int,
        parametrisation: str = "direct",
        seed: int = 0,
    ) -> "TimestepTokens":
        """Initialise all vectors with the category's; `parametrisation` is direct or network."""
        words = mean_vectors(backbone, category)
        if parametrisation == "direct":
            starts = [word.repeat(num_stages, len(ROLES), 1) for word in words]
            return cls((token,), category, [TimestepVectors(start) for start in starts])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            networks = [TimestepNetwork(word.cpu(), num_stages) for word in words]
        return cls(
            (token,),
            category,
            [each.to(word.device) for each, word in zip(networks, words, strict=True)],
        )

    @classmethod
    def from_state(cls, token: str, category: str, state: Mapping[str, Tensor]) -> "TimestepTokens":
        """The inverse of `state`."""
        names = sorted(name for name in state if name.startswith("staged."))
        return cls((token,), category, [TimestepVectors(state[name].float()) for name in names])

    @torch.no_grad()
    def state(self) -> dict[str, Tensor]:
        """`staged.0` (S, 2, d), and `staged.1` where there are two text encoders."""
        return {f"staged.{i}": self._vectors(i).detach() for i in range(len(self.sources))}

    @property
    def num_stages(self) -> int:
        """S."""
        return self.sources[0].num_stages

    def _vectors(self, encoder: int) -> Tensor:
        source = self.sources[encoder].eval()
        kind = next(source.parameters()).device.type
        with torch.autocast(kind, enabled=False):
            return source()

    def learning(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained."""
        return {
            f"staged.{i}.{name}": parameter
            for i, source in enumerate(self.sources)
            for name, parameter in source.named_parameters()
        }

    def begin_pass(self, seed: int) -> None:
        """Compute the vectors of a forward pass; dropout follows from `seed`."""
        if all(isinstance(source, TimestepVectors) for source in self.sources):
            return
        device = next(self.sources[0].parameters()).device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            self._now = [source.train()() for source in self.sources]

    def end_pass(self) -> None:
        """Discard the vectors of the last pass."""
        self._now = []

    def check(self, backbone: Backbone) -> None:
        """Raise `InvalidWeights` if the vectors do not fit this base model."""
        shapes = [self._vectors(i).shape for i in range(len(self.sources))]
        check_vectors(backbone, shapes, [self.num_stages, len(ROLES)])

    def apply_strength(self, backbone: Backbone, category: str, strength: float) -> None:
        """Interpolate from the category's vector (strength 0) to the learned ones (strength 1)."""
        for i, start in enumerate(mean_vectors(backbone, category)):
            own = self._vectors(i).detach()
            self.sources[i] = TimestepVectors(torch.lerp(start.to(own), own, strength))

    # --- in prompts -------------------------------------------------------------------------------

    def prompt_variants(self, prompt: str, timestep: float, num_timesteps: int) -> tuple[str, ...]:
        """The prompts to encode for a timestep: for keys, and for values."""
        stage = stage_of(timestep, self.num_stages, num_timesteps)
        return tuple(self.at_stage(prompt, stage, role) for role in ROLES)

    def in_words(self, prompt: str) -> str:
        """The prompt with the category in the token's place."""
        return prompt.replace(self.tokens[0], self.category)

    def at_stage(self, prompt: str, stage: int, role: str) -> str:
        """The prompt with the name of a stage and a role, k or v."""
        return prompt.replace(self.tokens[0], self._name(stage, role))

    def _name(self, stage: int, role: str) -> str:
        return f"{self.tokens[0].removesuffix('>')}.{stage}{role}>"

    def inject(self, backbone: Backbone) -> None:
        """Add the token and the names of its stages; see `TimestepRouting`.

        Raises `RuntimeError` if they are already injected.
        """
        if self._injected:
            raise RuntimeError(f"{self.tokens[0]} is injected already")
        names = [self._name(s, role) for s in range(self.num_stages) for role in ROLES]
        rows = [partial(self._rows, i) for i in range(len(self.sources))]
        new = NewTokens((*self.tokens, *names), rows)
        new.inject(backbone)
        self._injected = new

    def _rows(self, encoder: int) -> Tensor:
        """(1 + 2 · S, d); the token without a stage has the mean of all."""
        is_training = bool(self._now) and torch.is_grad_enabled()
        flat = (self._now[encoder] if is_training else self._vectors(encoder)).flatten(0, 1)
        return torch.cat([flat.mean(0, keepdim=True), flat])

    def eject(self, backbone: Backbone) -> None:
        """Remove them."""
        if self._injected:
            self._injected.eject(backbone)
        self._injected = None
        self._now = []


# --- in a base model ------------------------------------------------------------------------------


def timestep_routing(
    embeddings: Sequence[TokenEmbedding | TimestepTokens],
) -> Sequence[Adapter]:
    """The adapter that timestep tokens among these need; empty if there are none."""
    changing = [each for each in embeddings if isinstance(each, TimestepTokens)]
    return [TimestepRouting(changing)] if changing else []


@dataclass(slots=True)
class TimestepRouting:
    """Selects text states by timestep for timestep tokens, which are injected before it.

    Prompts are encoded for all stages at once; the denoiser takes the states of its timestep
    (`Conditioning.at`), `to_k` the keys' part and `to_v` the values'. If tokens have different
    numbers of stages, timesteps are divided wherever one of them changes.
    """

    tokens: Sequence[TimestepTokens]
    _undo: ExitStack | None = None
    _starts: tuple[float, ...] = ()

    @property
    def starts(self) -> list[Fraction]:
        """Where a stage of any token begins, as a share of all timesteps."""
        counts = {token.num_stages for token in self.tokens}
        return sorted({Fraction(i, count) for count in counts for i in range(count)})

    def inject(self, backbone: Backbone) -> None:
        """Encode prompts with these tokens for all stages at once, from now on."""
        if self._undo:
            raise RuntimeError("stages are injected already")
        self._starts = tuple(float(each * backbone.num_timesteps) for each in self.starts)
        with ExitStack() as undo:
            undo.enter_context(backbone.wrapped_texts(self._encode))
            undo.enter_context(routed(backbone.cross_attention()))
            self._undo = undo.pop_all()

    def eject(self, backbone: Backbone) -> None:
        """Encode prompts as before."""
        del backbone
        if self._undo:
            self._undo.close()
        self._undo = None

    def _encode(
        self,
        encode: EncodeTexts,
        prompts: Sequence[str],
        negatives: Sequence[str] | None,
        is_guided: bool,
    ) -> EncodedTexts:
        """States (B, 77, I · 2 · d) where one of the tokens is in a prompt."""
        if not any(token.tokens[0] in text for token in self.tokens for text in prompts):
            return encode(prompts, negatives, is_guided)
        variants = [(start, role) for start in self.starts for role in ROLES]

        def varied(texts: Sequence[str]) -> list[str]:
            return [self._at(text, *variant) for variant in variants for text in texts]

        found = encode(varied(prompts), varied(negatives) if negatives else None, is_guided)
        pooled, negative_pooled = found.pooled, found.negative_pooled
        if pooled is not None:
            in_words = [list(map(self._in_words, each)) for each in (prompts, negatives or [])]
            words = encode(in_words[0], in_words[1] or None, is_guided)
            pooled, negative_pooled = words.pooled, words.negative_pooled
        return EncodedTexts(
            _beside(found.states, len(variants)),
            None if found.negative is None else _beside(found.negative, len(variants)),
            pooled,
            negative_pooled,
            self._starts,
        )

    def _at(self, text: str, start: Fraction, role: str) -> str:
        for token in self.tokens:
            text = token.at_stage(text, int(start * token.num_stages), role)
        return text

    def _in_words(self, text: str) -> str:
        for token in self.tokens:
            text = token.in_words(text)
        return text


def _beside(states: Tensor, count: int) -> Tensor:
    """(I · 2 · B, 77, d) to (B, 77, I · 2 · d)."""
    return states.unflatten(0, (count, -1)).permute(1, 2, 0, 3).flatten(2)


@contextmanager
def routed(cross_attention: Iterable[tuple[nn.Module, nn.Module]]) -> Iterator[None]:
    """Inside the context `to_k` takes the keys' part of wider text states, `to_v` the values'."""
    with ExitStack() as undo:
        for projections in cross_attention:
            for part, projection in enumerate(projections):
                hook = partial(_take_part, part)
                undo.callback(projection.register_forward_pre_hook(hook).remove)
        yield


def _take_part(part: int, projection: nn.Linear, args: tuple[Tensor]) -> Tensor | None:
    """Before `to_k` and `to_v`: of states (B, 77, 2 · d) the keys' part, or the values'."""
    (states,) = args
    width = projection.in_features
    if states.shape[-1] != len(ROLES) * width:
        return None
    return states[..., part * width : (part + 1) * width]

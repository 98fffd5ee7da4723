"""From prompts to what the U-Net is conditioned on, and where in it the concept stands."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..registry.errors import InvalidInput
from .adapter import TokenEmbedding
from .timestep_tokens import TimestepTokens


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Text states (B, 77, d), and what else SDXL takes: pooled states and sizes."""

    states: Tensor
    added: dict[str, Tensor] = field(default_factory=dict)

    def pick(self, index: Tensor) -> "Conditioning":
        """The rows of an index (B,).

        By `index_select`: the gradient of `states[index]` is summed in any order, even on a CPU.
        """
        return Conditioning(
            self.states.index_select(0, index),
            {name: value.index_select(0, index) for name, value in self.added.items()},
        )

    @classmethod
    def cat(cls, parts: Sequence["Conditioning"]) -> "Conditioning":
        """One batch after another."""
        names = parts[0].added
        return cls(
            torch.cat([part.states for part in parts]),
            {name: torch.cat([part.added[name] for part in parts]) for name in names},
        )


def encode(pipeline: Any, prompts: list[str], size: int) -> Conditioning:
    """Encode prompts as the pipeline itself does; gradients flow into the embedding.

    `size` is the side of the pictures in pixels, of which SDXL is told.
    """
    device = pipeline.unet.device
    encoded = pipeline.encode_prompt(
        prompts, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    if len(encoded) == 2:
        return Conditioning(encoded[0])
    states, _, pooled, _ = encoded
    sizes = torch.tensor([size, size, 0, 0, size, size], device=device, dtype=states.dtype)
    added = {"text_embeds": pooled, "time_ids": sizes.repeat(len(prompts), 1)}
    return Conditioning(states, added)


@dataclass(frozen=True, slots=True)
class Saying:
    """A prompt that names what an embedding stands for, at a timestep."""

    embedding: TokenEmbedding | TimestepTokens
    prompt: str
    timestep: int


def encode_sayings(pipeline: Any, sayings: Sequence[Saying], size: int) -> Conditioning:
    """Encode each as its embedding has it at its timestep, equal ones once, all in one batch.

    Gradients flow into the embeddings. States are (B, 77, d), of staged tokens (B, 77, 2 · d).
    """
    total = pipeline.scheduler.config.num_train_timesteps
    said = [each.embedding.said(each.prompt, each.timestep, total) for each in sayings]
    found = _encode_once(pipeline, [text for texts in said for text in texts], size)
    if len(said[0]) == 1:
        return found
    states = found.states.unflatten(0, (len(said), -1)).transpose(1, 2).flatten(2)
    if not found.added:
        return Conditioning(states)
    words = [
        each.embedding.in_words(each.prompt)
        for each in sayings
        if isinstance(each.embedding, TimestepTokens)
    ]
    with torch.no_grad():
        return Conditioning(states, _encode_once(pipeline, words, size).added)


def _encode_once(pipeline: Any, prompts: Sequence[str], size: int) -> Conditioning:
    unique = list(dict.fromkeys(prompts))
    places = torch.tensor([unique.index(prompt) for prompt in prompts], device=pipeline.unet.device)
    return encode(pipeline, unique, size).pick(places)


@torch.no_grad()
def encode_reference(
    pipeline: Any, prompt: str, tokens: tuple[str, ...], category: str, size: int
) -> Tensor:
    """Text states (77, d) of a prompt with the category in the tokens' place.

    What the subject-wise attention loss compares with (SeFi-IDE, arXiv 2402.00631, section 3.2).
    Row j belongs to what stands at j in the prompt with the tokens: where the category has more
    words than there are tokens, its last ones stand for them, and what follows moves up.
    """
    tokenizer = pipeline.tokenizer
    words = len(tokenizer(category, add_special_tokens=False).input_ids)
    first = token_columns(pipeline, prompt, tokens)[0]
    states = encode(pipeline, [prompt.replace(" ".join(tokens), category)], size).states[0]
    own = torch.arange(len(states))
    inside = (own >= first) & (own < first + len(tokens))
    skipped = words - len(tokens)
    shifted = torch.where(own < first, own, (own + skipped).clamp(max=len(states) - 1))
    within = (first + (own - first + max(skipped, 0)).clamp(max=words - 1)).clamp(min=0)
    return states[torch.where(inside, within, shifted).to(states.device)]


def token_columns(
    pipeline: Any, prompt: str, tokens: tuple[str, ...], category: str | None = None
) -> list[int]:
    """Where in a prompt the placeholder tokens stand and, last, the first token of the category.

    Without `category` only the tokens. Raises `InvalidInput` if one of them is not in it.
    """
    tokenizer = pipeline.tokenizer
    ids: list[int] = tokenizer(prompt).input_ids
    own = [tokenizer.convert_tokens_to_ids(token) for token in tokens]
    try:
        columns = [ids.index(each) for each in own]
        if category is None:
            return columns
        first = tokenizer(category, add_special_tokens=False).input_ids[0]
        return [*columns, ids.index(first, columns[-1] + 1)]
    except ValueError:
        named = " ".join([*tokens, category or ""]).strip()
        raise InvalidInput(f'"{prompt}" does not name {named}') from None

"""From prompts to what the denoiser is conditioned on, and where in it the concept stands."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.backbone import Backbone
from ..models.conditioning import Conditioning
from ..registry.errors import InvalidInput
from .timestep_tokens import TimestepTokens
from .token_embedding import TokenEmbedding


@dataclass(frozen=True, slots=True)
class PromptAtTimestep:
    """A prompt that names what an embedding stands for, at a timestep."""

    embedding: TokenEmbedding | TimestepTokens
    prompt: str
    timestep: int


def encode_at_timesteps(
    backbone: Backbone, wanted: Sequence[PromptAtTimestep], size: int
) -> Conditioning:
    """Encode each as its embedding has it at its timestep, equal ones once, all in one batch.

    Gradients flow into the embeddings. States are (B, 77, d), of staged tokens (B, 77, 2 · d).
    """
    total = backbone.num_timesteps
    variants = [
        each.embedding.prompt_variants(each.prompt, each.timestep, total) for each in wanted
    ]
    found = _encode_once(backbone, [text for texts in variants for text in texts], size)
    if len(variants[0]) == 1:
        return found
    states = found.states.unflatten(0, (len(variants), -1)).transpose(1, 2).flatten(2)
    if not found.added:
        return Conditioning(states)
    words = [
        each.embedding.in_words(each.prompt)
        for each in wanted
        if isinstance(each.embedding, TimestepTokens)
    ]
    with torch.no_grad():
        return Conditioning(states, _encode_once(backbone, words, size).added)


def _encode_once(backbone: Backbone, prompts: Sequence[str], size: int) -> Conditioning:
    unique = list(dict.fromkeys(prompts))
    places = torch.tensor([unique.index(prompt) for prompt in prompts], device=backbone.device)
    return backbone.encode_prompts(unique, size).pick(places)


@torch.no_grad()
def encode_reference(
    backbone: Backbone, prompt: str, tokens: tuple[str, ...], category: str, size: int
) -> Tensor:
    """Text states (77, d) of a prompt with the category in the tokens' place.

    What the subject-wise attention loss compares with (SeFi-IDE, arXiv 2402.00631, section 3.2).
    Row j belongs to what stands at j in the prompt with the tokens: where the category has more
    words than there are tokens, its last ones stand for them, and what follows moves up.
    """
    words = len(backbone.text_encoders[0].ids(category, whole=False))
    first = token_columns(backbone, prompt, tokens)[0]
    in_words = prompt.replace(" ".join(tokens), category)
    states = backbone.encode_prompts([in_words], size).states[0]
    own = torch.arange(len(states))
    inside = (own >= first) & (own < first + len(tokens))
    skipped = words - len(tokens)
    shifted = torch.where(own < first, own, (own + skipped).clamp(max=len(states) - 1))
    within = (first + (own - first + max(skipped, 0)).clamp(max=words - 1)).clamp(min=0)
    return states[torch.where(inside, within, shifted).to(states.device)]


def token_columns(
    backbone: Backbone, prompt: str, tokens: tuple[str, ...], category: str | None = None
) -> list[int]:
    """Where in a prompt the placeholder tokens stand and, last, the first token of the category.

    Without `category` only the tokens. Raises `InvalidInput` if one of them is not in it.
    """
    encoder = backbone.text_encoders[0]
    ids = encoder.ids(prompt)
    own = [encoder.tokenizer.convert_tokens_to_ids(token) for token in tokens]
    try:
        columns = [ids.index(each) for each in own]
        if category is None:
            return columns
        first = encoder.ids(category, whole=False)[0]
        return [*columns, ids.index(first, columns[-1] + 1)]
    except ValueError:
        named = " ".join([*tokens, category or ""]).strip()
        raise InvalidInput(f'"{prompt}" does not name {named}') from None

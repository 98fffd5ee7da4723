"""Encoding prompts that name concepts, and the token positions of concepts in them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.backbone import Backbone
from ..models.conditioning import Conditioning
from ..registry.errors import InvalidInput
from .timestep_tokens import TimestepTokens
from .token_embedding import TokenEmbedding

_TOKEN = re.compile(r"<([^<>\s]*#\d+)>")
"""What looks like a placeholder token; nobody but the program may name one."""


def phrase_of(tokens: Sequence[str], category: str, *, names_category: bool) -> str:
    """How an expanded prompt names a concept: `[V]`, or with its category `[V] dog`."""
    return " ".join([*tokens, category] if names_category else tokens)


def class_prompt(category: str) -> str:
    """The prompt for class pictures: `a photo of a dog`."""
    return f"a photo of a {category}"


def caption_prompt(caption: str, phrase: str, category: str) -> str:
    """A caption as a prompt that names the concept once, by its phrase: `a [V] dog on a sofa`.

    The phrase takes the place of the first {}, else of the category's word where that first stands;
    a caption that has neither comes after it: `[V] dog, on a sofa`. Further {} become the category.
    """
    words = " ".join(_TOKEN.sub(r"\1", caption).split())
    if "{}" in words:
        return words.replace("{}", phrase, 1).replace("{}", category)
    word = re.compile(rf"(?<!\w){re.escape(category)}(?!\w)", re.IGNORECASE)
    if found := word.search(words):
        return words[: found.start()] + phrase + words[found.end() :]
    return f"{phrase}, {words}"


@dataclass(frozen=True, slots=True)
class PromptAtTimestep:
    """A prompt with an embedding's tokens, at a timestep."""

    embedding: TokenEmbedding | TimestepTokens
    prompt: str
    timestep: int


def encode_at_timesteps(
    backbone: Backbone, prompts: Sequence[PromptAtTimestep], size: int
) -> Conditioning:
    """Encode each prompt at its timestep, equal ones once, all in one batch.

    Gradients flow into the embeddings. States are (B, 77, d), with timestep tokens (B, 77, 2 · d).
    """
    total = backbone.num_timesteps
    variants = [
        each.embedding.prompt_variants(each.prompt, each.timestep, total) for each in prompts
    ]
    found = _encode_once(backbone, [text for texts in variants for text in texts], size)
    if len(variants[0]) == 1:
        return found
    states = found.states.unflatten(0, (len(variants), -1)).transpose(1, 2).flatten(2)
    if not found.added:
        return Conditioning(states)
    words = [
        each.embedding.in_words(each.prompt)
        for each in prompts
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
    backbone: Backbone,
    prompt: str,
    tokens: tuple[str, ...],
    category: str,
    size: int,
    *,
    names_category: bool = False,
) -> Tensor:
    """Text states (77, d) of a prompt with the category in the concept's place.

    The target of the subject-wise attention loss (SeFi-IDE, arXiv 2402.00631, section 3.2). Row j
    is aligned with token j of the prompt itself: each placeholder token gets a word of the
    category, the last ones if it has more; with `names_category` the category after the tokens gets
    its own words; then follows the rest.
    """
    num_words = len(backbone.text_encoders[0].ids(category, whole=False))
    first = token_columns(backbone, prompt, tokens)[0]
    phrase = phrase_of(tokens, category, names_category=names_category)
    states = backbone.encode_prompts([prompt.replace(phrase, category)], size).states[0]
    skipped = max(0, num_words - len(tokens))
    words = [min(skipped + i, num_words - 1) for i in range(len(tokens))]
    words += range(num_words) if names_category else ()
    rows = [*range(first), *(first + word for word in words)]
    rows += range(first + num_words, len(states))
    rows += [len(states) - 1] * (len(states) - len(rows))
    return states[rows[: len(states)]]


def token_columns(
    backbone: Backbone, prompt: str, tokens: tuple[str, ...], category: str | None = None
) -> list[int]:
    """Positions of the placeholder tokens in a prompt and, last, of the category's first token.

    Without `category` only of the tokens. Raises `InvalidInput` if the prompt lacks one of them.
    """
    encoder, ids = backbone.text_encoders[0], backbone.tokens_of(prompt).ids
    own = [encoder.id_of(token) for token in tokens]
    try:
        columns = [ids.index(each) for each in own]
        if category is None:
            return columns
        first = encoder.ids(category, whole=False)[0]
        return [*columns, ids.index(first, columns[-1] + 1)]
    except ValueError:
        named = " ".join([*tokens, category or ""]).strip()
        raise InvalidInput(f'"{prompt}" does not name {named}') from None

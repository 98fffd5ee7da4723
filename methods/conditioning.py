"""From prompts to what the U-Net is conditioned on, and where in it the concept stands."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..registry.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Text states (B, 77, d), and what else SDXL takes: pooled states and sizes."""

    states: Tensor
    added: dict[str, Tensor] = field(default_factory=dict)

    def pick(self, index: Tensor) -> "Conditioning":
        """The rows of an index (B,)."""
        return Conditioning(
            self.states[index], {name: value[index] for name, value in self.added.items()}
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


def token_columns(pipeline: Any, prompt: str, tokens: tuple[str, ...], category: str) -> list[int]:
    """Where in a prompt the placeholder tokens stand and, last, the first token of the category.

    Raises `InvalidInput` if one of them is not in it.
    """
    tokenizer = pipeline.tokenizer
    ids: list[int] = tokenizer(prompt).input_ids
    own = [tokenizer.convert_tokens_to_ids(token) for token in tokens]
    first = tokenizer(category, add_special_tokens=False).input_ids[0]
    try:
        columns = [ids.index(each) for each in own]
        return [*columns, ids.index(first, columns[-1] + 1)]
    except ValueError:
        raise InvalidInput(f'"{prompt}" does not name {" ".join(tokens)} {category}') from None

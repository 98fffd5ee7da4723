"""Attention with everything in memory, as existing code computes it: what ours is held against."""

from typing import Any

from torch import Tensor


class EagerProcessor:
    """Three matrix products; the map (B, H, N, M) is kept as `maps[name]`, if there is a name."""

    def __init__(self, maps: dict[str, Tensor], name: str | None) -> None:
        self.maps = maps
        self.name = name

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, **_: Any
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(context))
        value = attn.head_to_batch_dim(attn.to_v(context))
        weights = attn.get_attention_scores(query, key)
        if self.name:
            self.maps[self.name] = weights.unflatten(0, (-1, attn.heads))
        return attn.to_out[0](attn.batch_to_head_dim(weights @ value))

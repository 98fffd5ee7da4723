"""Watching the cross-attention of a diffusers U-Net: maps, moments, distances, layer by layer.

    with observe(unet, columns=[4, 5], want="moments") as seen:
        unet(latents, timesteps, states)
    loss = sum(m[..., 0].square().sum() for m in seen.moments.values())

Knows diffusers only by the shape of its attention modules; nothing of it is imported but types.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (everyone's name for it)

from .attention import REDUCTIONS, attend, map_distance
from .inputs import WANTS, CheckedColumns, check_columns

if TYPE_CHECKING:
    from diffusers import ModelMixin
    from diffusers.models.attention_processor import Attention

CROSS_ATTENTION = r".*attn2"
"""The names of the layers in which pictures attend to text, in every Stable Diffusion."""


@dataclass(slots=True)
class Observation:
    """What the watched layers gave, by their names in the order of the forward pass.

    Of each layer, the latest forward pass: `maps` (B, T, N) or (B, H, T, N), `moments` (B, T, 2),
    both as `attend` returns them; `distances` (B,), as `map_distance` does. `backends` are those
    that computed them.
    """

    maps: dict[str, Tensor] = field(default_factory=dict)
    moments: dict[str, Tensor] = field(default_factory=dict)
    distances: dict[str, Tensor] = field(default_factory=dict)
    backends: set[str] = field(default_factory=set)

    def part(self, rows: slice, columns: slice) -> "Observation":
        """Of some samples of the batch and some token columns."""
        return Observation(
            {name: each[rows][..., columns, :] for name, each in self.maps.items()},
            {name: each[rows, columns] for name, each in self.moments.items()},
            {name: each[rows] for name, each in self.distances.items()},
            self.backends,
        )

    def clear(self) -> None:
        """Forget what was seen."""
        for seen in (self.maps, self.moments, self.distances):
            seen.clear()


@dataclass(slots=True)
class _Asked:
    """What the watched layers are to compute."""

    columns: Tensor | Sequence[int] | CheckedColumns | None
    want: tuple[str, ...]
    per_head: bool
    reference: Tensor | None
    reduction: str

    def columns_for(self, key: Tensor) -> CheckedColumns:
        """The columns of keys (B, H, M, D), looked at in the first layer alone."""
        num_keys, known = key.shape[2], self.columns
        if not isinstance(known, CheckedColumns) or known.num_keys != num_keys:
            assert known is not None
            given = known.rows if isinstance(known, CheckedColumns) else torch.as_tensor(known)
            check_columns(given, key.shape[0], num_keys, key.device)
            known = CheckedColumns(given.to(key.device), num_keys)
            self.columns = known
        return known


Processor = Callable[..., Tensor]
"""Computes what an attention layer of diffusers does: of it, states, other states and a mask."""


class AttentionStack:
    """The attention layers of a UNet2DConditionModel, and who watches them.

    Its processors are put in once (`of`). Where nobody watches, a layer computes what it did
    before, by the processor that it had. Of those who watch a layer, the latest one sees it.
    """

    @classmethod
    def of(cls, unet: "ModelMixin") -> "AttentionStack":
        """The one of a U-Net, which is made if some of its processors are not of one."""
        first, *others = (_stack_of(each) for each in unet.attn_processors.values())
        return first if first and all(each is first for each in others) else cls(unet)

    def __init__(self, unet: "ModelMixin") -> None:
        self._observers: list[_Observer] = []
        own = {
            name.removesuffix(".processor"): each.own if isinstance(each, _Processor) else each
            for name, each in unet.attn_processors.items()
        }
        self.layers = list(own)
        self._unknown = {name: _unknown_part(unet.get_submodule(name)) for name in own}
        unet.set_attn_processor(
            {f"{name}.processor": _Processor(self, name, each) for name, each in own.items()}
        )

    def __getstate__(self) -> dict[str, object]:
        """Nobody watches a copy."""
        return {**vars(self), "_observers": []}

    @contextmanager
    def observe(
        self,
        *,
        columns: Tensor | Sequence[int] | None = None,
        want: str | Sequence[str] | None = None,
        layers: str | Callable[[str], bool] = CROSS_ATTENTION,
        per_head: bool = False,
        reference: Tensor | None = None,
        reduction: str = "sum",
    ) -> Iterator[Observation]:
        """Let layers compute what their attention looks like; see the function `observe`."""
        asked = _asked(columns, want, per_head, reference, reduction)
        fits = layers if callable(layers) else re.compile(layers).fullmatch
        watched = {name for name in self.layers if fits(name)}
        if not watched:
            raise ValueError(
                f"no attention layer fits {layers!r}: there are {', '.join(self.layers[:4])}, …"
            )
        for name in watched:
            if part := self._unknown[name]:
                raise ValueError(f"the layer {name} has {part}, which cannot be watched")
        observer = _Observer(Observation(), watched, asked)
        self._observers.append(observer)
        try:
            yield observer.seen
        finally:
            self._observers.remove(observer)

    def observer_of(self, layer: str) -> "_Observer | None":
        """Who sees a layer."""
        return next((each for each in reversed(self._observers) if layer in each.layers), None)


@contextmanager
def observe(
    unet: "ModelMixin",
    *,
    columns: Tensor | Sequence[int] | None = None,
    want: str | Sequence[str] | None = None,
    layers: str | Callable[[str], bool] = CROSS_ATTENTION,
    per_head: bool = False,
    reference: Tensor | None = None,
    reduction: str = "sum",
) -> Iterator[Observation]:
    """Let the layers of a UNet2DConditionModel compute what their attention looks like.

    - `columns` are token positions, (T,) or (B, T), of which token maps or moments are requested
      (moments, if `want` is left out).
    - `reference` are other text states, (B, M, d): of each layer, the distance of its attention map
      from that of the same queries over the reference's keys is requested; see `map_distance`, which
      `reduction` is for.
    - `layers` says which attention layers are watched, a regular expression for their whole names
      or a function of a name.

    The output of the U-Net stays what it was, up to the last bits, and gradients flow through what
    is seen. After the context the U-Net has its own processors again. With gradient checkpointing,
    call `backward` inside the context, since layers are then computed again; they are recorded
    once.

    Raises `ValueError` if nothing is asked for, no layer fits, or a layer is of a kind that cannot
    be watched.
    """
    before = dict(unet.attn_processors)
    stack = AttentionStack.of(unet)
    try:
        with stack.observe(
            columns=columns,
            want=want,
            layers=layers,
            per_head=per_head,
            reference=reference,
            reduction=reduction,
        ) as seen:
            yield seen
    finally:
        unet.set_attn_processor(before)


def _stack_of(processor: Processor) -> AttentionStack | None:
    return processor.stack if isinstance(processor, _Processor) else None


def _asked(
    columns: Tensor | Sequence[int] | None,
    want: str | Sequence[str] | None,
    per_head: bool,
    reference: Tensor | None,
    reduction: str,
) -> _Asked:
    if columns is None and reference is None:
        raise ValueError("columns and reference are both None: expected one of them")
    words: tuple[str, ...] = ()
    if columns is not None:
        words = ("moments",) if want is None else (want,) if isinstance(want, str) else tuple(want)
        if not words or any(word not in WANTS for word in words):
            raise ValueError(f"want is {want!r}: expected 'maps', 'moments' or both")
    elif want is not None:
        raise ValueError(f"want is {want!r}, but columns is None: expected token positions")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}: expected 'sum' or 'mean'")
    return _Asked(columns, words, per_head, reference, reduction)


def _unknown_part(layer: nn.Module) -> str | None:
    """Only plain attention is known: one projection each, no extra keys, no spatial norm."""
    parts = ("spatial_norm", "norm_q", "norm_k", "add_k_proj")
    return next((part for part in parts if getattr(layer, part, None) is not None), None)


class _Processor:
    """What a layer computes: by its own processor, or as whoever watches it asks."""

    def __init__(self, stack: AttentionStack, name: str, own: Processor) -> None:
        self.stack = stack
        self.name = name
        self.own = own

    def __call__(
        self,
        attn: "Attention",
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend."""
        observer = self.stack.observer_of(self.name)
        if observer is None:
            return self.own(
                attn,
                hidden_states,
                encoder_hidden_states=encoder_hidden_states,
                attention_mask=attention_mask,
            )
        return observer.attend(
            self.name, attn, hidden_states, encoder_hidden_states, attention_mask
        )


@dataclass(slots=True, eq=False)
class _Observer:
    """Computes what diffusers' AttnProcessor2_0 does, through `attend`, and keeps what is asked."""

    seen: Observation
    layers: set[str]
    asked: _Asked

    @torch.compiler.disable(recursive=True)
    def attend(
        self,
        name: str,
        attn: "Attention",
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        attention_mask: Tensor | None,
    ) -> Tensor:
        """Attend, and keep what was seen."""
        assert attn.to_k is not None
        assert attn.to_v is not None
        assert attn.to_out is not None
        residual, shape = hidden_states, hidden_states.shape
        if hidden_states.dim() == 4:
            hidden_states = hidden_states.flatten(2).mT
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.mT).mT
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        projections = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        query, key, value = (_by_head(each, attn.heads) for each in projections)
        output = self._attended(name, query, key, value, attention_mask, attn.scale)
        if self.asked.reference is not None:
            self._compare(name, attn, query, key, attention_mask)
        output = output.transpose(1, 2).flatten(2).to(query.dtype)
        output = attn.to_out[1](attn.to_out[0](output))
        if len(shape) == 4:
            output = output.mT.reshape(shape)
        if attn.residual_connection:
            output = output + residual
        return output / attn.rescale_output_factor

    def _attended(
        self,
        name: str,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float,
    ) -> Tensor:
        """The output (B, H, N, D); what is requested of the maps is kept."""
        asked, bias = self.asked, _key_bias(mask, key.shape[2])
        if not asked.want:
            rows = None if bias is None else bias[:, None, None]
            return F.scaled_dot_product_attention(query, key, value, attn_mask=rows, scale=scale)
        attended = attend(
            query,
            key,
            value,
            key_bias=bias,
            columns=asked.columns_for(key),
            want=asked.want,
            per_head=asked.per_head,
            scale=scale,
        )
        if not _in_backward():  # gradient checkpointing computes the layer again
            if attended.maps is not None:
                self.seen.maps[name] = attended.maps
            if attended.moments is not None:
                self.seen.moments[name] = attended.moments
            self.seen.backends.add(attended.backend)
        return attended.output

    def _compare(
        self, name: str, attn: "Attention", query: Tensor, key: Tensor, mask: Tensor | None
    ) -> None:
        """Keep the distance from the map that the reference's keys would give."""
        if mask is not None:
            raise ValueError("attention_mask is given: expected None where distances are requested")
        with torch.no_grad():
            states = self.asked.reference
            assert states is not None
            assert attn.to_k is not None
            states = attn.norm_encoder_hidden_states(states) if attn.norm_cross else states
            other = _by_head(attn.to_k(states), attn.heads).to(key.dtype)
        distance = map_distance(query, key, other, reduction=self.asked.reduction, scale=attn.scale)
        if not _in_backward():
            self.seen.distances[name] = distance


def _by_head(states: Tensor, heads: int) -> Tensor:
    """(B, N, H·D) to (B, H, N, D)."""
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)


def _key_bias(mask: Tensor | None, num_keys: int) -> Tensor | None:
    """A mask of keys, (B, M) or (B, 1, M) as the U-Net makes it of its own, as a bias (B, M)."""
    if mask is None:
        return None
    bias = mask.squeeze(1) if mask.dim() == 3 and mask.shape[1] == 1 else mask
    if bias.dim() != 2 or bias.shape[1] != num_keys:
        raise ValueError(
            f"attention_mask is {tuple(mask.shape)}: only masks of keys can be watched"
        )
    return bias


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1

"""Observing the attention of a diffusers U-Net: maps, moments and distances of each layer.

    with observe(unet, columns=[4, 5], want="moments") as seen:
        unet(latents, timesteps, states)
    loss = sum(m[..., 0].square().sum() for m in seen.moments.values())

A layer can also attend further keys, of states that `record` kept of another pass: `attend_also`;
and which queries see which of its keys can be told: `see_from`.

Only relies on the attributes of diffusers' attention modules; imports nothing of it but types.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (everyone's name for it)

from .attention import REDUCTIONS, attend, map_distance
from .inputs import WANTS, CheckedColumns, GroupBias, Segment, check_columns

if TYPE_CHECKING:
    from diffusers import ModelMixin
    from diffusers.models.attention_processor import Attention

CROSS_ATTENTION = r".*attn2"
SELF_ATTENTION = r".*attn1"
"""The names of the cross- and self-attention layers in Stable Diffusion."""


@dataclass(slots=True)
class Observation:
    """Results of the observed layers, by layer name in the order of the forward pass.

    For each layer, of the latest forward pass: `maps` (B, T, N) or (B, H, T, N), `moments` (B, T,
    2), both as `attend` returns them; `distances` (B,), as `map_distance` does. `backends` are
    those that computed them.
    """

    maps: dict[str, Tensor] = field(default_factory=dict)
    moments: dict[str, Tensor] = field(default_factory=dict)
    distances: dict[str, Tensor] = field(default_factory=dict)
    backends: set[str] = field(default_factory=set)

    def part(self, rows: slice, columns: slice) -> "Observation":
        """The results of some samples of the batch and some token columns."""
        return Observation(
            {name: each[rows][..., columns, :] for name, each in self.maps.items()},
            {name: each[rows, columns] for name, each in self.moments.items()},
            {name: each[rows] for name, each in self.distances.items()},
            self.backends,
        )

    def clear(self) -> None:
        """Discard all results."""
        for results in (self.maps, self.moments, self.distances):
            results.clear()


@dataclass(frozen=True, slots=True)
class FurtherKeys:
    """States that layers attend beside their own, by the layers' own projections.

    For each layer, `states` (S, M, C) are S sets of M states, shared by all samples, and `bias`
    (B, S, M) is added to the scores of their keys in each sample; -inf hides a key. `group_bias`
    tells, for M and a number of queries, which of these see which of the S · M keys. `owners` are
    what the states are of, for those who observe them.
    """

    states: Mapping[str, Tensor]
    bias: Mapping[str, Tensor]
    group_bias: Callable[[int, int], GroupBias] | None = None
    owners: Sequence[object] = ()

    def segment(self, layer: str, attn: "Attention", query: Tensor) -> Segment:
        """Keys and values (B, H, S·M, D) of a layer for its queries (B, H, N, D), and biases."""
        assert attn.to_k is not None
        assert attn.to_v is not None
        states = self.states[layer]
        together = states.flatten(0, 1)[None]
        key, value = (
            _by_head(project(together), attn.heads).expand(len(query), -1, -1, -1)
            for project in (attn.to_k, attn.to_v)
        )
        groups = self.group_bias and self.group_bias(states.shape[1], query.shape[2])
        return Segment(key, value, self.bias[layer].flatten(1), groups)


@dataclass(frozen=True, slots=True)
class FurtherMaps:
    """Where queries of layers look among further keys, of all passes since it was cleared.

    `queries` gives the indices (P,) of queries for a number of them. `maps` are, for each layer and
    pass, the owners of each `FurtherKeys` and the part of the queries' rows of A that falls on it,
    (B, P, S, M), averaged over heads.
    """

    queries: Callable[[int], Sequence[int]]
    maps: list[tuple[Sequence[object], Tensor]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class FollowedAttention:
    """The queries, keys and scales of self-attention layers, of the latest forward pass, by name.

    For each layer, queries and keys are (B, H, N, D).
    """

    layers: set[str]
    kept: dict[str, tuple[Tensor, Tensor, float]] = field(default_factory=dict)

    def carry(self, layer: str, values: Tensor) -> Tensor:
        """A · values, (B, S, N), of values (B, S, N) at the positions of a layer.

        A is averaged over heads. Nothing of its size is made, where PyTorch's attention makes
        nothing of it.
        """
        query, key, scale = self.kept[layer]
        return torch.stack(
            [
                F.scaled_dot_product_attention(
                    query, key, each[:, None, :, None].expand_as(query), scale=scale
                )[..., 0].mean(1)
                for each in values.to(query.dtype).unbind(1)
            ],
            1,
        )


@dataclass(slots=True, eq=False)
class _Recorder:
    """Keeps the input states of layers."""

    layers: set[str]
    states: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class _Perturbed:
    """The rows (B,) of a batch in which the places of some layers attend themselves alone."""

    layers: set[str]
    rows: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Sight:
    """The biases of some layers' own keys, for a number of queries."""

    layers: set[str]
    bias: Callable[[int], GroupBias]


_Item = TypeVar("_Item")


@dataclass(slots=True)
class _Request:
    """What the observed layers compute."""

    columns: Tensor | Sequence[int] | CheckedColumns | None
    want: tuple[str, ...]
    per_head: bool
    reference: Tensor | None
    reduction: str

    def columns_for(self, key: Tensor) -> CheckedColumns:
        """The columns for keys (B, H, M, D), checked in the first layer only."""
        num_keys, known = key.shape[2], self.columns
        if not isinstance(known, CheckedColumns) or known.num_keys != num_keys:
            assert known is not None
            given = known.rows if isinstance(known, CheckedColumns) else torch.as_tensor(known)
            check_columns(given, key.shape[0], num_keys, key.device)
            known = CheckedColumns(given.to(key.device), num_keys)
            self.columns = known
        return known


@dataclass(slots=True, eq=False)
class _Layer:
    """An attention layer: whether anything but its original processor is needed now.

    A compiled U-Net is specialised by what its Python reads: by this flag, not by layers' names.
    """

    name: str
    unknown_part: str | None
    in_use: bool = False


Processor = Callable[..., Tensor]
"""A diffusers attention processor: (layer, states, text states, mask) -> output."""


class AttentionStack:
    """The attention layers of a UNet2DConditionModel, their observers and their further keys.

    Its processors are installed once (`of`). A layer that has neither uses its original processor;
    of several observers of a layer, the latest one gets the results.
    """

    @classmethod
    def of(cls, unet: "ModelMixin") -> "AttentionStack":
        """The stack of a U-Net, which is created if its processors are not all of one."""
        first, *others = (_stack_of(each) for each in unet.attn_processors.values())
        return first if first and all(each is first for each in others) else cls(unet)

    def __init__(self, unet: "ModelMixin") -> None:
        own = {
            name.removesuffix(".processor"): each.own if isinstance(each, _Processor) else each
            for name, each in unet.attn_processors.items()
        }
        self.layers = {name: _Layer(name, _unknown_part(unet.get_submodule(name))) for name in own}
        unet.set_attn_processor(
            {
                f"{name}.processor": _Processor(self, self.layers[name], each)
                for name, each in own.items()
            }
        )
        self._forget_all()

    def _forget_all(self) -> None:
        self._observers: list[_Observer] = []
        self._recorders: list[_Recorder] = []
        self._followed: list[FollowedAttention] = []
        self._further: list[FurtherKeys] = []
        self._further_maps: list[FurtherMaps] = []
        self._sights: list[_Sight] = []
        self._perturbed: list[_Perturbed] = []
        self._note_layers()

    def __getstate__(self) -> dict[str, object]:
        """A copy has no observers."""
        return {"layers": self.layers}

    def __setstate__(self, state: dict[str, object]) -> None:
        """See `__getstate__`."""
        vars(self).update(state)
        self._forget_all()

    @contextmanager
    def _with(self, own: "list[_Item]", item: "_Item") -> Iterator[None]:
        """Have something in one of the lists, inside the context."""
        own.append(item)
        self._note_layers()
        try:
            yield
        finally:
            own[:] = [each for each in own if each is not item]
            self._note_layers()

    def _note_layers(self) -> None:
        """Note which layers cannot use their original processors alone."""
        used = {
            *(layer for each in self._observers for layer in each.layers),
            *(layer for each in self._recorders for layer in each.layers),
            *(layer for each in self._followed for layer in each.layers),
            *(layer for each in self._further for layer in each.states),
            *(layer for each in self._sights for layer in each.layers),
            *(layer for each in self._perturbed for layer in each.layers),
        }
        for name, layer in self.layers.items():
            layer.in_use = name in used

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
        """Observe attention layers inside the context; see the function `observe`."""
        request = _request(columns, want, per_head, reference, reduction)
        observer = _Observer(Observation(), self._fitting(layers), request)
        with self._with(self._observers, observer):
            yield observer.seen

    @contextmanager
    def unobserved(self) -> Iterator[None]:
        """Inside the context, those who observe from outside of it get nothing."""
        outer = list(self._observers)
        self._observers.clear()
        try:
            yield
        finally:
            self._observers[:] = outer

    @contextmanager
    def record(self, layers: str = SELF_ATTENTION) -> Iterator[dict[str, Tensor]]:
        """Record the input states (B, N, C) of layers, of the latest forward pass, by name."""
        recorder = _Recorder(self._fitting(layers))
        with self._with(self._recorders, recorder):
            yield recorder.states

    @contextmanager
    def follow(self, layers: str = SELF_ATTENTION) -> Iterator[FollowedAttention]:
        """Keep what tells, after a pass, where layers' attention carries maps."""
        followed = FollowedAttention(self._fitting(layers))
        with self._with(self._followed, followed):
            yield followed

    @contextmanager
    def attend_also(self, further: Sequence[FurtherKeys]) -> Iterator[None]:
        """Attend further keys inside the context, through one softmax with the layers' own.

        Raises `ValueError` if a layer cannot.
        """
        with ExitStack() as stack:
            for each in further:
                self._check(each.states)
                stack.enter_context(self._with(self._further, each))
            yield

    @contextmanager
    def see_from(
        self, bias: Callable[[int], GroupBias], layers: str = CROSS_ATTENTION
    ) -> Iterator[None]:
        """Layers' own keys are seen as a bias says, inside the context.

        `bias` gives it for a number of queries. Of several the latest counts.
        """
        with self._with(self._sights, _Sight(self._fitting(layers), bias)):
            yield

    @contextmanager
    def perturb(self, rows: Tensor, layers: str = SELF_ATTENTION) -> Iterator[None]:
        """Each place attends itself alone in self-attention layers of some `rows` (B,), bool.

        A is the identity there: the output is the values' (perturbed self-attention, Ahn et al.
        2024, arXiv 2403.17377, eq. 13). Further keys are not attended there either.
        """
        with self._with(self._perturbed, _Perturbed(self._fitting(layers), rows)):
            yield

    @contextmanager
    def observe_further(self, queries: Callable[[int], Sequence[int]]) -> Iterator[FurtherMaps]:
        """Observe where some queries of layers with further keys look among these."""
        seen = FurtherMaps(queries)
        with self._with(self._further_maps, seen):
            yield seen

    def _fitting(self, layers: str | Callable[[str], bool]) -> set[str]:
        fits = layers if callable(layers) else re.compile(layers).fullmatch
        found = {name for name in self.layers if fits(name)}
        if not found:
            some = ", ".join(list(self.layers)[:4])
            raise ValueError(f"no attention layer fits {layers!r}: there are {some}, …")
        self._check(found)
        return found

    def _check(self, layers: Iterable[str]) -> None:
        for name in layers:
            if part := self.layers[name].unknown_part:
                raise ValueError(f"the layer {name} has {part}, which cannot be watched")

    def changes(self, layer: str) -> bool:
        """Whether a layer attends other keys than its own, or sees these in another way."""
        ways = (*self._sights, *self._perturbed)
        return bool(self.further_of(layer)) or any(layer in each.layers for each in ways)

    def perturbed(self, layer: str, output: Tensor, value: Tensor) -> Tensor:
        """A layer's output (B, H, N, D), which is its values' in perturbed rows."""
        for each in self._perturbed:
            if layer in each.layers:
                output = torch.where(each.rows[:, None, None, None], value, output)
        return output

    def keep_states(self, layer: str, states: Tensor) -> None:
        """Give a layer's input states to those who record it."""
        for each in self._recorders:
            if layer in each.layers:
                each.states[layer] = states

    def keep_keys(self, layer: str, attn: "Attention", states: Tensor) -> None:
        """Give a layer's queries and keys for its input states to those who follow it."""
        if followed := [each for each in self._followed if layer in each.layers]:
            assert attn.to_k is not None
            query, key = (_by_head(each(states), attn.heads) for each in (attn.to_q, attn.to_k))
            for each in followed:
                each.kept[layer] = query, key, attn.scale

    def keep_further_maps(
        self, layer: str, query: Tensor, segments: Sequence[Segment], scale: float
    ) -> None:
        """Give those who observe it the attention of some queries to a layer's further keys.

        The first segment are the layer's own keys.
        """
        for each in self._further_maps:
            chosen = list(each.queries(query.shape[2]))
            own = query[:, :, chosen].float()
            scores = [_scores_of(own, segment, chosen, scale) for segment in segments]
            lengths = [part.shape[-1] for part in scores]
            _, *parts = torch.cat(scores, -1).softmax(-1).mean(1).split(lengths, -1)
            for further, part in zip(self.further_of(layer), parts, strict=True):
                sets = part.unflatten(-1, (len(further.states[layer]), -1))
                each.maps.append((further.owners, sets))

    def observer_of(self, layer: str) -> "_Observer | None":
        """The observer that gets a layer's results; None if there is none."""
        return next((each for each in reversed(self._observers) if layer in each.layers), None)

    def further_of(self, layer: str) -> list[FurtherKeys]:
        """Those that have further states of a layer."""
        return [each for each in self._further if layer in each.states]

    def sight_of(self, layer: str, num_queries: int) -> GroupBias | None:
        """How a layer's own keys are seen; None as ever."""
        bias = next((each.bias for each in reversed(self._sights) if layer in each.layers), None)
        return None if bias is None else bias(num_queries)


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
    """Observe the attention of a UNet2DConditionModel inside the context.

    - `columns` are token positions, (T,) or (B, T), whose maps or moments are computed; `want` is
      "maps", "moments" (the default) or both.
    - `reference` are other text states, (B, M, d): for each layer, the distance of its map from
      that over the reference's keys is computed; see `map_distance`, also for `reduction`.
    - `layers` selects the observed layers: a regular expression for whole names, or a function of a
      name.

    The U-Net's output is unchanged up to the last bits, and gradients flow through the results.
    After the context the U-Net has its original processors again. With gradient checkpointing, call
    `backward` inside the context, as layers are then computed again; they are recorded once.

    Raises `ValueError` if neither `columns` nor `reference` is given, no layer fits, or a layer
    cannot be observed.
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


def _request(
    columns: Tensor | Sequence[int] | None,
    want: str | Sequence[str] | None,
    per_head: bool,
    reference: Tensor | None,
    reduction: str,
) -> _Request:
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
    return _Request(columns, words, per_head, reference, reduction)


def _unknown_part(layer: nn.Module) -> str | None:
    """The first part that plain attention does not have; None for plain attention."""
    parts = ("spatial_norm", "norm_q", "norm_k", "add_k_proj")
    return next((part for part in parts if getattr(layer, part, None) is not None), None)


class _Processor:
    """Delegates to the layer's original processor, unless it is observed or has further keys."""

    def __init__(self, stack: AttentionStack, layer: _Layer, own: Processor) -> None:
        self.stack = stack
        self.layer = layer
        self.own = own

    def __call__(
        self,
        attn: "Attention",
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend."""
        process = self._attended if self.layer.in_use else self._plain
        return process(attn, hidden_states, encoder_hidden_states, attention_mask)

    def _plain(
        self,
        attn: "Attention",
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        attention_mask: Tensor | None,
    ) -> Tensor:
        return self.own(
            attn,
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=attention_mask,
        )

    @torch.compiler.disable(recursive=True)
    def _attended(
        self,
        attn: "Attention",
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        attention_mask: Tensor | None,
    ) -> Tensor:
        name = self.layer.name
        self.stack.keep_states(name, hidden_states)
        self.stack.keep_keys(name, attn, hidden_states)
        observer = self.stack.observer_of(name)
        if observer is None and not self.stack.changes(name):
            return self._plain(attn, hidden_states, encoder_hidden_states, attention_mask)
        return _layer_output(
            self.stack,
            name,
            observer or _UNOBSERVED,
            attn,
            hidden_states,
            encoder_hidden_states,
            attention_mask,
        )


def _layer_output(
    stack: AttentionStack,
    name: str,
    observer: "_Observer",
    attn: "Attention",
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None,
    attention_mask: Tensor | None,
) -> Tensor:
    """Compute the same as diffusers' AttnProcessor2_0, through `attend`; results are kept."""
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
    bias, sight = _key_bias(attention_mask, key.shape[2]), stack.sight_of(name, query.shape[2])
    own = Segment(key, value, bias, sight)
    extra = [each.segment(name, attn, query) for each in stack.further_of(name)]
    if extra:
        stack.keep_further_maps(name, query, [own, *extra], attn.scale)
    output = observer.attended(name, query, own, extra, attn.scale)
    output = stack.perturbed(name, output, value)
    if observer.request.reference is not None:
        observer.compare(name, attn, query, key, attention_mask)
    output = output.transpose(1, 2).flatten(2).to(query.dtype)
    output = attn.to_out[1](attn.to_out[0](output))
    if len(shape) == 4:
        output = output.mT.reshape(shape)
    if attn.residual_connection:
        output = output + residual
    return output / attn.rescale_output_factor


def _scores_of(query: Tensor, segment: Segment, queries: Sequence[int], scale: float) -> Tensor:
    """Scores (B, H, P, M) of some `queries`, whose states are (B, H, P, D)."""
    scores = query @ segment.k.float().mT * scale
    if segment.bias is not None:
        scores = scores + segment.bias[:, None, None]
    if segment.group_bias is not None:
        scores = scores + segment.group_bias.of_keys(queries)[:, None]
    return scores


@dataclass(slots=True, eq=False)
class _Observer:
    """Computes the attention of layers, and keeps the requested results."""

    seen: Observation
    layers: set[str]
    request: _Request

    def attended(
        self,
        name: str,
        query: Tensor,
        own: Segment,
        extra: Sequence[Segment],
        scale: float,
    ) -> Tensor:
        """The output (B, H, N, D); requested maps and moments are kept."""
        request, (key, value, bias, group_bias) = self.request, own
        if not request.want and not extra and group_bias is None:
            rows = None if bias is None else bias[:, None, None]
            return F.scaled_dot_product_attention(query, key, value, attn_mask=rows, scale=scale)
        attended = attend(
            query,
            key,
            value,
            key_bias=bias,
            group_bias=group_bias,
            extra=extra,
            columns=request.columns_for(key) if request.want else None,
            want=request.want or None,
            per_head=request.per_head,
            scale=scale,
        )
        if request.want and not _in_backward():  # gradient checkpointing computes it again
            if attended.maps is not None:
                self.seen.maps[name] = attended.maps
            if attended.moments is not None:
                self.seen.moments[name] = attended.moments
            self.seen.backends.add(attended.backend)
        return attended.output

    def compare(
        self, name: str, attn: "Attention", query: Tensor, key: Tensor, mask: Tensor | None
    ) -> None:
        """Keep the distance from the map over the reference's keys."""
        if mask is not None:
            raise ValueError("attention_mask is given: expected None where distances are requested")
        with torch.no_grad():
            states = self.request.reference
            assert states is not None
            assert attn.to_k is not None
            states = attn.norm_encoder_hidden_states(states) if attn.norm_cross else states
            other = _by_head(attn.to_k(states), attn.heads).to(key.dtype)
        distance = map_distance(
            query, key, other, reduction=self.request.reduction, scale=attn.scale
        )
        if not _in_backward():
            self.seen.distances[name] = distance


_UNOBSERVED = _Observer(Observation(), set(), _Request(None, (), False, None, "sum"))


def _by_head(states: Tensor, heads: int) -> Tensor:
    """(B, N, H·D) to (B, H, N, D)."""
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)


def _key_bias(mask: Tensor | None, num_keys: int) -> Tensor | None:
    """A mask of keys, (B, M) or the U-Net's own (B, 1, M), as an additive bias (B, M)."""
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

"""Attention in plain torch, some queries at a time, so that the whole matrix never exists.

For training on a CPU. A chunk of rows of A is computed in float32, used and dropped; the backward
pass computes it again. Only where all of A is no more than a chunk, it is kept. Where nothing but
the output is wanted, torch's own fused attention computes it.
"""

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (everyone's name for it)

from .inputs import (
    AttentionInputs,
    Context,
    GroupBias,
    RequestedMaps,
    Segment,
    without_autocast,
)
from .reference import maps_of, moments_of

CHUNK_BYTES = 4 << 20
"""Of one chunk of A: large enough that threads seldom wait for each other."""

GROUP_BYTES = 1 << 20
"""Of A of several samples in one chunk: where there is little to copy, fewer calls are faster."""


def attend_chunked(inputs: AttentionInputs) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """See `attend_reference`."""
    if inputs.columns is None:
        return _fused(inputs), None, None
    flat = [part for segment in inputs.segments for part in (segment.k, segment.v)]
    biases = _Biases.of(inputs.segments)
    output, maps, moments = _ChunkedAttention.apply(
        inputs.q, inputs.columns, biases, inputs.requested, inputs.scale, *flat
    )
    return output, maps, moments


def _fused(inputs: AttentionInputs) -> Tensor:
    """The output alone, (B, H, N, D); some queries at a time where biases differ between queries.

    Else the bias of keys is broadcast.
    """
    key = _joined([each.k for each in inputs.segments])
    value = _joined([each.v for each in inputs.segments])
    biases, dtype = _Biases.of(inputs.segments), inputs.q.dtype
    if biases.groups is None:
        rows = None if biases.keys is None else biases.keys.to(dtype)[:, None, None]
        return _scaled(inputs.q, key, value, rows, inputs.scale)
    row = inputs.q.shape[0] * key.shape[2] * inputs.q.element_size()  # bytes of biases of one query
    size = max(1, CHUNK_BYTES // row)
    chunks = [slice(n, n + size) for n in range(0, inputs.q.shape[2], size)]
    parts = [
        _scaled(inputs.q[:, :, each], key, value, biases.rows(each, dtype)[:, None], inputs.scale)
        for each in chunks
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _scaled(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


@dataclass(frozen=True, slots=True)
class _Biases:
    """The biases of all segments' keys: (B, M), and of groups, whose numbers are made different."""

    keys: Tensor | None
    groups: GroupBias | None

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> "_Biases":
        return cls(_joined_bias(segments), _joined_groups(segments))

    def of_samples(self, samples: slice) -> "_Biases":
        keys, groups = self.keys, self.groups
        return _Biases(
            None if keys is None else keys[samples],
            None if groups is None else GroupBias(groups.groups[samples], groups.values[samples]),
        )

    def rows(self, queries: slice, dtype: torch.dtype) -> Tensor:
        """The biases (B, n, M) of some queries; there are groups."""
        assert self.groups is not None
        rows = self.groups.of_keys(queries).to(dtype)
        return rows if self.keys is None else rows + self.keys.to(dtype)[:, None]


def _joined(segments: Sequence[Tensor]) -> Tensor:
    """Keys or values of all segments, (B, H, M, D)."""
    return segments[0] if len(segments) == 1 else torch.cat(tuple(segments), dim=2)


def _joined_bias(segments: Sequence[Segment]) -> Tensor | None:
    """The biases (B, M) of all segments' keys, zeros where a segment has none; None if none has."""
    dtypes = [each.bias.dtype for each in segments if each.bias is not None]
    if not dtypes:
        return None
    dtype = reduce(torch.promote_types, dtypes)
    parts = [
        each.k.new_zeros(each.k.shape[0], each.k.shape[2], dtype=dtype)
        if each.bias is None
        else each.bias.to(dtype)
        for each in segments
    ]
    return torch.cat(parts, dim=1)


def _joined_groups(segments: Sequence[Segment]) -> GroupBias | None:
    """The groups of all segments' keys; None if none has any."""
    groups, values, count = list[Tensor](), list[Tensor](), 0
    for each in segments:
        bias = each.group_bias
        if bias is None:
            shape = each.k.shape[0], each.k.shape[2]
            groups.append(each.k.new_full(shape, -1, dtype=torch.int64))
            continue
        own = bias.groups.long()
        groups.append(torch.where(own < 0, own, own + count))
        values.append(bias.values)
        count += bias.values.shape[1]
    if not values:
        return None
    dtype = reduce(torch.promote_types, [each.dtype for each in values])
    return GroupBias(torch.cat(groups, 1), torch.cat([each.to(dtype) for each in values], 1))


_NO_BIASES = _Biases(None, None)


class _DistanceContext(Context, Protocol):
    scale: float
    device: torch.device


class _AttentionContext(_DistanceContext, Protocol):
    biases: _Biases
    requested: RequestedMaps
    mean: Tensor | None
    num_kept: int


class _ChunkedAttention(torch.autograd.Function):
    """Forward and backward by chunks of queries."""

    @staticmethod
    def forward(
        ctx: _AttentionContext,
        q: Tensor,
        columns: Tensor | None,
        biases: _Biases,
        requested: RequestedMaps,
        scale: float,
        *flat: Tensor,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        rows = _Rows(q, flat[::2], scale, biases)
        values, index = rows.joined(flat[1::2]), rows.index_of(columns)
        output = torch.empty_like(q)
        picked = rows.q.new_empty(index.shape)
        kept: list[Tensor] = []
        keeps = rows.fit_one_chunk and any(ctx.needs_input_grad)
        for group in rows.groups():
            v, own_index = group.of(values), group.of(index)
            for chunk in group.chunks:
                weights = group.weights(chunk, None if keeps else "A")
                kept += [weights] if keeps else []
                group.put(output, chunk, _chunk_product(weights, v, "o"))
                group.put(picked, chunk, weights.gather(-1, own_index[:, chunk]))
        ctx.save_for_backward(q, columns, *flat, *kept)
        ctx.num_kept = len(kept)
        ctx.biases, ctx.requested, ctx.scale, ctx.device = biases, requested, scale, q.device
        maps = maps_of(picked, requested) if requested.maps else None
        moments = moments_of(picked) if requested.moments else None
        ctx.mean = None if moments is None else moments[..., 0].detach()
        ctx.set_materialize_grads(False)
        return output, maps, moments

    @staticmethod
    def backward(ctx: _AttentionContext, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        with without_autocast(ctx.device):  # it may be called under autocast
            return _attention_backward(ctx, *gradients)


def _attention_backward(
    ctx: _AttentionContext,
    d_output: Tensor | None,
    d_maps: Tensor | None,
    d_moments: Tensor | None,
) -> tuple[Tensor | None, ...]:
    q, columns, *flat = ctx.saved_tensors
    num_flat = len(flat) - ctx.num_kept
    flat, kept = flat[:num_flat], iter(flat[num_flat:])
    rows = _Rows(q, flat[::2], ctx.scale, ctx.biases)
    values, index = rows.joined(flat[1::2]), rows.index_of(columns)
    d_output = torch.zeros_like(rows.q) if d_output is None else d_output.to(rows.dtype)
    offset, slope = _upstream(ctx, index, d_maps, d_moments, rows.dtype)
    d_q = torch.empty_like(q)
    d_k, d_v = (rows.q.new_empty(values.shape) for _ in "kv")
    for group in rows.groups():
        v_t, own_index, d_out = group.of(values).mT, group.of(index), group.of(d_output)
        own_offset, own_slope = group.of(offset), group.of(slope)
        own_d_k, own_d_v = group.of(d_k), group.of(d_v)
        for chunk in group.chunks:
            weights = next(kept) if ctx.num_kept else group.weights(chunk)
            _add_product(own_d_v, weights.mT, d_out[:, chunk], chunk)
            d_weights = _chunk_product(d_out[:, chunk], v_t, "dA")
            if d_maps is not None or d_moments is not None:
                here = own_index[:, chunk]
                seen = weights.gather(-1, here)
                g = torch.addcmul(own_offset[:, chunk], own_slope, seen)
                d_weights.scatter_add_(-1, here, g)
            d_scores = _softmax_backward(d_weights, weights)
            group.put_gradients(chunk, d_scores, d_q, own_d_k)
    lengths = [k.shape[2] for k in flat[::2]]
    d_flat = [
        part.to(q.dtype)
        for parts in zip(d_k.split(lengths, 2), d_v.split(lengths, 2), strict=True)
        for part in parts
    ]
    return d_q, None, None, None, None, *d_flat


_SCRATCH = threading.local()


def _chunk_product(left: Tensor, right: Tensor, name: str | None, scale: float = 1.0) -> Tensor:
    """A scaled product, of the size of a chunk of A, in memory that the next one of its name gets.

    New pages from the system would cost as much as the product; without a name it gets them, and
    where memory is a GPU's, or must not be written again outside inference mode.
    """
    shape = *left.shape[:2], right.shape[2]
    num, key = math.prod(shape), f"{name} {left.dtype} {left.device}"
    is_plain = left.device.type == "cpu" and not torch.is_inference_mode_enabled()
    is_kept = name is not None and is_plain
    scratch = vars(_SCRATCH).get(key) if is_kept else None
    if scratch is None or len(scratch) < num:
        scratch = left.new_empty(num)
        if is_kept:
            vars(_SCRATCH)[key] = scratch
    return scratch[:num].view(shape).baddbmm_(left, right, beta=0, alpha=scale)


def _add_product(
    total: Tensor, left: Tensor, right: Tensor, chunk: slice, scale: float = 1.0
) -> None:
    """Add scale · left @ right to what is not yet initialised at the first chunk."""
    total.baddbmm_(left, right, beta=1 if chunk.start else 0, alpha=scale)


def _softmax_backward(d_weights: Tensor, weights: Tensor) -> Tensor:
    """A (dA - rowsum(A dA)), in one pass."""
    return torch.ops.aten._softmax_backward_data.out(
        d_weights, weights, -1, weights.dtype, grad_input=_in_place_of(d_weights)
    )


def _in_place_of(rows: Tensor) -> Tensor:
    """Where softmax and its gradient may be written: on a CPU, a row is read before that."""
    return rows if rows.is_cpu else torch.empty_like(rows)


def _upstream(
    ctx: _AttentionContext,
    index: Tensor,
    d_maps: Tensor | None,
    d_moments: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """What enters A_c from outside, as offset (B, H, N, T) + slope (B, H, 1, T) · A_c.

    See README.md, equation 3.
    """
    batch, heads, num_queries, num_columns = index.shape
    offset = slope = index.new_zeros((batch, 1, 1, num_columns), dtype=dtype)
    if d_maps is not None:
        offset = (d_maps if ctx.requested.per_head else d_maps.unsqueeze(1) / heads).mT
    if d_moments is not None:
        assert ctx.mean is not None
        count = heads * num_queries
        slope = 2 * d_moments[..., 1] / (count - 1)
        constant = d_moments[..., 0] / count - slope * ctx.mean
        slope, constant = slope[:, None, None, :], constant[:, None, None, :]
        offset = offset + constant
    return offset.expand(index.shape), slope.expand(-1, heads, -1, -1)


class _Rows:
    """Computes A for some queries over all segments.

    `scales_sums` is slower and more exact: products are scaled when they are summed.
    """

    def __init__(
        self,
        q: Tensor,
        keys: Sequence[Tensor],
        scale: float,
        biases: _Biases,
        *,
        scales_sums: bool = False,
    ) -> None:
        self.scales_sums = scales_sums
        self.dtype = torch.promote_types(q.dtype, torch.float32)
        self.q, self.k, self.scale = q.to(self.dtype), self.joined(keys), scale
        self.biases = biases

    @property
    def fit_one_chunk(self) -> bool:
        """Whether all of A does."""
        num = math.prod(self.q.shape[:3]) * self.k.shape[2]
        return num * self.q.element_size() <= CHUNK_BYTES

    def joined(self, segments: Sequence[Tensor]) -> Tensor:
        """Keys or values of all segments, (B, H, M, D)."""
        return _joined(segments).to(self.dtype)

    def index_of(self, columns: Tensor | None) -> Tensor:
        """Columns (B, T) as `gather` takes them, (B, H, N, T); T is 0 if there are none."""
        if columns is None:
            columns = torch.empty(len(self.q), 0, dtype=torch.int64, device=self.q.device)
        return columns[:, None, None, :].expand(*self.q.shape[:3], -1)

    def groups(self) -> Iterator["_Group"]:
        """One sample at a time, or several if they are small."""
        batch, heads, num_queries, _ = self.q.shape
        row = heads * self.k.shape[2] * self.q.element_size()  # bytes of A of one query
        num_chunks = math.ceil(num_queries / max(1, CHUNK_BYTES // row))
        size = math.ceil(num_queries / num_chunks)
        num_samples = max(1, GROUP_BYTES // (row * num_queries))
        for sample in range(0, batch, num_samples):
            yield _Group(self, slice(sample, sample + num_samples), size)


class _Group:
    """Some samples of the inputs as b·H matrices, and slices of their queries, chunk by chunk."""

    def __init__(self, rows: _Rows, samples: slice, size: int) -> None:
        self._samples = samples
        self._q, self._k, self._scale = self.of(rows.q), self.of(rows.k), rows.scale
        self._k_t = self._k.mT
        self._scales_sums = rows.scales_sums
        self._heads, self._dtype = rows.q.shape[1], rows.dtype
        self._biases = rows.biases.of_samples(samples)
        self.chunks = [slice(n, n + size) for n in range(0, rows.q.shape[2], size)]

    def of(self, whole: Tensor) -> Tensor:
        """The rows of these samples, (B, H, …) to (b·H, …); a view if it is one sample."""
        return whole[self._samples].flatten(0, 1)

    def put(self, whole: Tensor, chunk: slice, own: Tensor) -> None:
        """Write (b·H, n, …) of some queries into their place in (B, H, N, …)."""
        place = whole[self._samples, :, chunk]
        place.copy_(own.view(place.shape))

    def weights(self, chunk: slice, name: str | None = "A") -> Tensor:
        """A (b·H, n, M) of some queries; gone when the next one of that name, if any, is there."""
        product_scale = 1.0 if self._scales_sums else self._scale  # BLAS may scale a factor
        scores = _chunk_product(self._q[:, chunk], self._k_t, name, product_scale)
        if self._scales_sums:
            scores *= self._scale
        self._add_biases(scores, chunk)
        return torch.softmax(scores, -1, out=_in_place_of(scores))

    def _add_biases(self, scores: Tensor, chunk: slice) -> None:
        """Add biases to the scores (b·H, n, M) of some queries."""
        by_head = scores.unflatten(0, (-1, self._heads))
        if self._biases.groups is not None:
            by_head += self._biases.rows(chunk, self._dtype)[:, None]
        elif self._biases.keys is not None:
            by_head += self._biases.keys.to(self._dtype)[:, None, None]

    def put_gradients(self, chunk: slice, d_scores: Tensor, d_q: Tensor, own_d_k: Tensor) -> None:
        """Write into d_q, and add to d_k, what some queries' scores give."""
        self.put(d_q, chunk, _chunk_product(d_scores, self._k, "o", self._scale))
        _add_product(own_d_k, d_scores.mT, self._q[:, chunk], chunk, self._scale)


def map_distance_chunked(
    q: Tensor, k_a: Tensor, k_b: Tensor, weights: Tensor, scale: float
) -> Tensor:
    """See `map_distance_reference`."""
    return _ChunkedDistance.apply(q, k_a, k_b, weights, scale)


class _ChunkedDistance(torch.autograd.Function):
    """Forward and backward by chunks of queries."""

    @staticmethod
    def forward(
        ctx: _DistanceContext, q: Tensor, k_a: Tensor, k_b: Tensor, weights: Tensor, scale: float
    ) -> Tensor:
        a, b = (_Rows(q, [k], scale, _NO_BIASES, scales_sums=True) for k in (k_a, k_b))
        squares = a.q.new_zeros(*q.shape[:2], k_a.shape[2])  # over queries: (B, H, M)
        for ours, target in zip(a.groups(), b.groups(), strict=True):
            own_squares = ours.of(squares)
            for chunk in ours.chunks:
                gap = ours.weights(chunk).sub_(target.weights(chunk, "target"))
                own_squares += gap.square_().sum(1)
        ctx.save_for_backward(q, k_a, k_b, weights)
        ctx.scale, ctx.device = scale, q.device
        return (squares.sum(1) * weights).sum(1)

    @staticmethod
    def backward(ctx: _DistanceContext, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        with without_autocast(ctx.device):
            return _distance_backward(ctx, *gradients)


def _distance_backward(ctx: _DistanceContext, d_total: Tensor) -> tuple[Tensor | None, ...]:
    q, k_a, k_b, weights = ctx.saved_tensors
    a, b = (_Rows(q, [k], ctx.scale, _NO_BIASES, scales_sums=True) for k in (k_a, k_b))
    factor = (2 * d_total[:, None] * weights)[:, None, None, :].to(a.dtype)
    factor = factor.expand(-1, q.shape[1], 1, -1)
    d_q, d_k = torch.empty_like(q), a.q.new_empty(k_a.shape)
    for ours, target in zip(a.groups(), b.groups(), strict=True):
        own_factor, own_d_k = ours.of(factor), ours.of(d_k)
        for chunk in ours.chunks:
            own = ours.weights(chunk)
            other = target.weights(chunk, "target")
            d_own = torch.sub(own, other, out=other).mul_(own_factor)
            d_scores = _softmax_backward(d_own, own)
            ours.put_gradients(chunk, d_scores, d_q, own_d_k)
    return d_q, d_k.to(k_a.dtype), None, None, None

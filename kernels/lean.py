"""Attention in plain torch, some queries at a time, so that the whole matrix never exists.

For training on a CPU. A chunk of rows of A is computed in float32, used and dropped; the backward
pass computes it again.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .problem import Problem, Segment, Wanted
from .reference import maps_of, moments_of

CHUNK_BYTES = 1 << 20
"""Of one chunk of A; what is done to it then stays in a CPU's cache."""


def attend_lean(problem: Problem) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """See `attend_reference`."""
    flat = [part for segment in problem.segments for part in (segment.k, segment.v)]
    biases = [segment.bias for segment in problem.segments]
    output, maps, moments = _LeanAttention.apply(
        problem.q, problem.columns, biases, problem.wanted, problem.scale, *flat
    )
    return output, maps, moments


class _LeanAttention(torch.autograd.Function):
    """Forward and backward by chunks of queries."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        columns: Tensor | None,
        biases: list[Tensor | None],
        wanted: Wanted,
        scale: float,
        *flat: Tensor,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        rows = _Rows(q, flat, biases, columns, scale)
        output = torch.empty_like(q, memory_format=torch.contiguous_format)
        picked = rows.new_picked()
        for chunk in rows.chunks():
            seen = rows.weights(chunk) @ rows.values[chunk.samples]  # (b, H, n, D + T)
            output[chunk.queries] = seen[..., : q.shape[-1]]
            if picked is not None:
                picked[chunk.queries] = seen[..., q.shape[-1] :]
        ctx.save_for_backward(q, columns, *flat)
        ctx.biases, ctx.wanted, ctx.scale = biases, wanted, scale
        maps = moments = None
        if picked is not None and wanted.maps:
            maps = maps_of(picked, wanted)
        if picked is not None and wanted.moments:
            moments = moments_of(picked)
            ctx.mean = moments[..., 0].detach()
        ctx.set_materialize_grads(False)
        return output, maps, moments

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, d_output: Tensor | None, d_maps: Tensor | None, d_moments: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        q, columns, *flat = ctx.saved_tensors
        rows = _Rows(q, flat, ctx.biases, columns, ctx.scale)
        upstream = _Upstream(ctx, rows, d_output, d_maps, d_moments)
        d_q, d_k = torch.empty_like(rows.q), torch.zeros_like(rows.k)
        d_v = torch.zeros_like(rows.k)
        for chunk in rows.chunks():
            weights = rows.weights(chunk)
            d_seen = upstream.of(chunk, weights)
            d_v[chunk.samples] += weights.mT @ d_seen[..., : q.shape[-1]]
            d_weights = d_seen @ rows.values[chunk.samples].mT
            d_scores = _softmax_backward(d_weights, weights)
            d_q[chunk.queries] = d_scores @ rows.k[chunk.samples]
            d_k[chunk.samples] += d_scores.mT @ rows.q[chunk.queries]
        d_k *= ctx.scale
        d_flat: list[Tensor] = []
        start = 0
        for k in flat[::2]:
            here = slice(start, start := start + k.shape[2])
            d_flat += [d_k[:, :, here].to(k.dtype), d_v[:, :, here].to(k.dtype)]
        return d_q.to(q.dtype), None, None, None, None, *d_flat


def _softmax_backward(d_weights: Tensor, weights: Tensor) -> Tensor:
    """A (dA - rowsum(A dA)), in one pass."""
    return torch.ops.aten._softmax_backward_data(d_weights, weights, -1, weights.dtype)


class _Upstream:
    """What enters [o | A_c] from outside; see README.md, equation 3."""

    def __init__(
        self,
        ctx: Any,
        rows: "_Rows",
        d_output: Tensor | None,
        d_maps: Tensor | None,
        d_moments: Tensor | None,
    ) -> None:
        self._rows = rows
        self._output = d_output
        self._maps = None
        self._affine = None
        heads, num_queries = rows.q.shape[1:3]
        if d_maps is not None:
            per_head = d_maps if ctx.wanted.per_head else d_maps.unsqueeze(1) / heads
            self._maps = per_head.to(rows.dtype).transpose(-1, -2)  # (B, H or 1, N, T)
        if d_moments is not None:
            count = heads * num_queries
            slope = 2 * d_moments[..., 1] / (count - 1)
            offset = d_moments[..., 0] / count - slope * ctx.mean
            self._affine = offset[:, None, None, :], slope[:, None, None, :]

    def of(self, chunk: "_Chunk", weights: Tensor) -> Tensor:
        """(b, H, n, D + T) for a chunk of A."""
        rows = self._rows
        gradient = weights.new_empty(*weights.shape[:3], rows.values.shape[-1])
        width = rows.q.shape[-1]
        output, columns = gradient[..., :width], gradient[..., width:]
        output[:] = 0 if self._output is None else self._output[chunk.queries]
        columns[:] = 0 if self._maps is None else self._maps[chunk.queries]
        if self._affine is not None:
            offset, slope = (part[chunk.samples] for part in self._affine)
            columns += offset + slope * rows.columns_of(chunk, weights)
        return gradient


class _Chunk(NamedTuple):
    """Indices of some rows of A: into what is (B, …), and into what is (B, H, N, …)."""

    samples: slice
    queries: tuple[slice, slice, slice]


class _Rows:
    """Computes A for a chunk of queries over all segments.

    Beside the values stand one-hot vectors of the columns of interest, [v | e], so that the product
    with A is [o | A_c]: the columns cost as much as T more dimensions of v, in both directions.
    """

    def __init__(
        self,
        q: Tensor,
        flat: list[Tensor] | tuple[Tensor, ...],
        biases: list[Tensor | None],
        columns: Tensor | None,
        scale: float,
    ) -> None:
        self.dtype = torch.promote_types(q.dtype, torch.float32)
        segments = [
            Segment(k, v, bias) for k, v, bias in zip(flat[::2], flat[1::2], biases, strict=True)
        ]
        self.q = q.to(self.dtype)
        self.k = _joined([segment.k for segment in segments]).to(self.dtype) * scale
        self._columns = columns
        self.values = self._values([segment.v for segment in segments])
        self._bias = self._joined_bias(segments)

    def _values(self, segments: list[Tensor]) -> Tensor:
        joined = _joined(segments).to(self.dtype)
        if self._columns is None:
            return joined
        one_hot = joined.new_zeros(joined.shape[0], joined.shape[2], self._columns.shape[1])
        one_hot.scatter_(1, self._columns.unsqueeze(1), 1)  # (B, M, T)
        return torch.cat([joined, one_hot[:, None].expand(-1, joined.shape[1], -1, -1)], dim=-1)

    def _joined_bias(self, segments: list[Segment]) -> Tensor | None:
        if all(segment.bias is None for segment in segments):
            return None
        parts = [
            self.q.new_zeros(segment.k.shape[0], segment.k.shape[2])
            if segment.bias is None
            else segment.bias.detach().to(self.dtype)
            for segment in segments
        ]
        return torch.cat(parts, dim=1)[:, None, None, :]

    def chunks(self) -> Iterator[_Chunk]:
        """Whole samples, or else a part of one's queries, of about `CHUNK_BYTES` of A."""
        batch, heads, num_queries, _ = self.q.shape
        fitting = max(1, CHUNK_BYTES // (heads * self.k.shape[2] * self.q.element_size()))
        size = math.ceil(num_queries / math.ceil(num_queries / fitting))
        num_samples = max(1, fitting // num_queries)
        for sample in range(0, batch, num_samples):
            samples = slice(sample, sample + num_samples)
            for first in range(0, num_queries, size):
                yield _Chunk(samples, (samples, slice(None), slice(first, first + size)))

    def weights(self, chunk: _Chunk) -> Tensor:
        """A (b, H, n, M) of a chunk."""
        scores = self.q[chunk.queries] @ self.k[chunk.samples].mT
        if self._bias is not None:
            scores += self._bias[chunk.samples]
        return scores.softmax(-1)

    def new_picked(self) -> Tensor | None:
        """Room for the columns of interest (B, H, N, T)."""
        if self._columns is None:
            return None
        return self.q.new_empty(*self.q.shape[:3], self._columns.shape[1])

    def columns_of(self, chunk: _Chunk, weights: Tensor) -> Tensor:
        """(b, H, n, T) of a chunk of A."""
        assert self._columns is not None
        index = self._columns[chunk.samples, None, None, :]
        return weights.gather(-1, index.expand(*weights.shape[:3], -1))


def _joined(segments: list[Tensor]) -> Tensor:
    return segments[0] if len(segments) == 1 else torch.cat(segments, dim=2)


def map_distance_lean(q: Tensor, k_a: Tensor, k_b: Tensor, weights: Tensor, scale: float) -> Tensor:
    """See `map_distance_reference`."""
    return _LeanDistance.apply(q, k_a, k_b, weights, scale)


class _LeanDistance(torch.autograd.Function):
    """Forward and backward by chunks of queries."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k_a: Tensor, k_b: Tensor, weights: Tensor, scale: float
    ) -> Tensor:
        ours, target = (_Rows(q, [k, k], [None], None, scale) for k in (k_a, k_b))
        total = ours.q.new_zeros(q.shape[0])
        for chunk in ours.chunks():
            gap = ours.weights(chunk) - target.weights(chunk)
            squares = gap.square_() * weights[chunk.samples, None, None, :]
            total[chunk.samples] += squares.sum((1, 2, 3))
        ctx.save_for_backward(q, k_a, k_b, weights)
        ctx.scale = scale
        return total

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, d_total: Tensor
    ) -> tuple[Tensor | None, ...]:
        q, k_a, k_b, weights = ctx.saved_tensors
        ours, target = (_Rows(q, [k, k], [None], None, ctx.scale) for k in (k_a, k_b))
        factor = (2 * d_total[:, None] * weights)[:, None, None, :].to(ours.dtype)
        d_q, d_k = torch.zeros_like(ours.q), torch.zeros_like(ours.k)
        for chunk in ours.chunks():
            own = ours.weights(chunk)
            d_own = (own - target.weights(chunk)) * factor[chunk.samples]
            d_scores = _softmax_backward(d_own, own)
            d_q[chunk.queries] = d_scores @ ours.k[chunk.samples]
            d_k[chunk.samples] += d_scores.mT @ ours.q[chunk.queries]
        return d_q.to(q.dtype), (d_k * ctx.scale).to(k_a.dtype), None, None, None

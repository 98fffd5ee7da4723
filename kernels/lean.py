"""Attention in plain torch, some queries at a time, so that the whole matrix never exists.

For training on a CPU. A chunk of rows of A is computed in float32, used and dropped; the backward
pass computes it again.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .problem import Problem, Segment, Wanted
from .reference import maps_of, moments_of

CHUNK_BYTES = 4 << 20
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
            weights = rows.weights(chunk)  # (B, H, n, M)
            output[:, :, chunk] = (weights @ rows.v).to(q.dtype)
            if picked is not None:
                picked[:, :, chunk] = weights.gather(-1, rows.index(weights))
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
        d_q = torch.zeros_like(rows.q)
        d_k, d_v = torch.zeros_like(rows.k), torch.zeros_like(rows.v)
        upstream = _Upstream(ctx, rows, d_maps, d_moments)
        for chunk in rows.chunks():
            weights = rows.weights(chunk)
            if d_output is not None:
                d_out = d_output[:, :, chunk].to(rows.dtype)
                d_v += weights.mT @ d_out
                d_weights = d_out @ rows.v.mT
            else:
                d_weights = torch.zeros_like(weights)
            if upstream.exists:
                index = rows.index(weights)
                gradient = upstream.of(chunk, weights.gather(-1, index))
                d_weights.scatter_add_(-1, index, gradient)
            inner = (weights * d_weights).sum(-1, keepdim=True)
            d_scores = d_weights.sub_(inner).mul_(weights).mul_(ctx.scale)
            d_q[:, :, chunk] = d_scores @ rows.k
            d_k += d_scores.mT @ rows.q[:, :, chunk]
        d_flat: list[Tensor] = []
        start = 0
        for k in flat[::2]:
            here = slice(start, start := start + k.shape[2])
            d_flat += [d_k[:, :, here].to(k.dtype), d_v[:, :, here].to(k.dtype)]
        return d_q.to(q.dtype), None, None, None, None, *d_flat


class _Upstream:
    """The gradient that enters A through its columns; see README.md, equation 3."""

    def __init__(
        self, ctx: Any, rows: "_Rows", d_maps: Tensor | None, d_moments: Tensor | None
    ) -> None:
        self.exists = d_maps is not None or d_moments is not None
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

    def of(self, chunk: slice, picked: Tensor) -> Tensor:
        """For columns `picked` (B, H, n, T) of a chunk of A."""
        gradient = torch.zeros_like(picked)
        if self._maps is not None:
            gradient += self._maps[:, :, chunk]
        if self._affine is not None:
            offset, slope = self._affine
            gradient += offset + slope * picked
        return gradient


class _Rows:
    """Computes A for a chunk of queries over all segments."""

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
        self.k = torch.cat([segment.k for segment in segments], dim=2).to(self.dtype)
        self.v = torch.cat([segment.v for segment in segments], dim=2).to(self.dtype)
        self._bias = self._joined_bias(segments)
        self._columns = columns
        self._scale = scale

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

    def chunks(self) -> Iterator[slice]:
        """Slices of queries, so many that a chunk of A has `CHUNK_BYTES`."""
        batch, heads, num_queries, _ = self.q.shape
        row_bytes = batch * heads * self.k.shape[2] * self.q.element_size()
        size = max(1, CHUNK_BYTES // row_bytes)
        return (slice(first, first + size) for first in range(0, num_queries, size))

    def weights(self, chunk: slice) -> Tensor:
        """A (B, H, n, M) for a slice of queries."""
        scores = (self.q[:, :, chunk] * self._scale) @ self.k.mT
        if self._bias is not None:
            scores += self._bias
        return scores.softmax(-1)

    def new_picked(self) -> Tensor | None:
        """Room for the columns of interest (B, H, N, T)."""
        if self._columns is None:
            return None
        return self.q.new_empty(*self.q.shape[:3], self._columns.shape[1])

    def index(self, weights: Tensor) -> Tensor:
        """The columns' indices, as `gather` takes them."""
        assert self._columns is not None
        return self._columns[:, None, None, :].expand(*weights.shape[:3], -1)


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
            total += (gap.square_() * weights[:, None, None, :]).sum((1, 2, 3))
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
            d_own = (own - target.weights(chunk)) * factor
            d_scores = own * (d_own - (own * d_own).sum(-1, keepdim=True)) * ctx.scale
            d_q[:, :, chunk] = d_scores @ ours.k
            d_k += d_scores.mT @ ours.q[:, :, chunk]
        return d_q.to(q.dtype), d_k.to(k_a.dtype), None, None, None

"""The squared distance of two attention maps that share their queries, in Triton.

Two sweeps over the keys: the first finds both softmax sums, the second the squares. Nothing but
three numbers per query is kept for the backward pass.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# (what Triton does to a function is beyond its types)

from typing import Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor

from .inputs import Context
from .triton_attention import backward_blocks, split_queries
from .triton_common import (
    LOG2_E,
    cast,
    dot,
    load_rows,
    load_state,
    padded_width,
    rows_with_unit_stride,
    scores,
    state_of,
    store_rows,
    strides,
)

# --- kernels --------------------------------------------------------------------------------------


@triton.jit
def _softmax_sum(
    q, K, k_m, M, scale,
    D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """The largest score of each query, and Σ 2^(score - largest), over all keys: [BN] each."""
    top = tl.full([BN], float("-inf"), tl.float32)
    total = tl.zeros([BN], tl.float32)
    for start in range(0, M, BM):
        cols = start + tl.arange(0, BM)
        s = scores(q, load_rows(K, cols, M, k_m, D, BD), K, cols, M, scale, False)
        higher = tl.maximum(top, tl.max(s, 1))
        total = total * tl.exp2(top - higher) + tl.sum(tl.exp2(s - higher[:, None]), 1)
        top = higher
    return top, total


@triton.jit
def _gap(q, k_a, k_b, WEIGHTS, level_a, inverse_a, level_b, inverse_b, cols, M, scale):
    """A_a, weight · (A_a - A_b) and A_a - A_b, for a block: [BN, BM] each."""
    s_a = scores(q, k_a, WEIGHTS, cols, M, scale, False)
    s_b = scores(q, k_b, WEIGHTS, cols, M, scale, False)
    a = tl.exp2(s_a - level_a[:, None]) * inverse_a[:, None]
    b = tl.exp2(s_b - level_b[:, None]) * inverse_b[:, None]
    weight = tl.load(WEIGHTS + cols, cols < M, other=0.0)
    return a, (a - b) * weight[None, :], a - b


@triton.jit
def _forward(
    Q, K_A, K_B, WEIGHTS, TOP_A, TOTAL_A, TOP_B, TOTAL_B, INNER, PARTS,
    q_b, q_h, q_n, a_b, a_h, a_m, b_b, b_h, b_m,
    H, N, M, scale,
    D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """The distance of BN queries, and per query Σ A_a · weight · (A_a - A_b)."""
    block = tl.program_id(0)
    bh = tl.program_id(1).to(tl.int64)
    b, h = bh // H, bh % H
    rows = block * BN + tl.arange(0, BN)
    valid = rows < N
    K_A += b * a_b + h * a_h
    K_B += b * b_b + h * b_h
    q = load_rows(Q + b * q_b + h * q_h, rows, N, q_n, D, BD)
    top_a, total_a = _softmax_sum(q, K_A, a_m, M, scale, D, BD, BN, BM)
    top_b, total_b = _softmax_sum(q, K_B, b_m, M, scale, D, BD, BN, BM)
    level_a, inverse_a = state_of(top_a, total_a, q.dtype)
    level_b, inverse_b = state_of(top_b, total_b, q.dtype)
    inner = tl.zeros([BN], tl.float32)
    squares = tl.zeros([BN], tl.float32)
    for start in range(0, M, BM):
        cols = start + tl.arange(0, BM)
        k_a = load_rows(K_A, cols, M, a_m, D, BD)
        k_b = load_rows(K_B, cols, M, b_m, D, BD)
        a, weighted, gap = _gap(
            q, k_a, k_b, WEIGHTS + b * M, level_a, inverse_a, level_b, inverse_b, cols, M, scale
        )
        inner += tl.sum(a * weighted, 1)
        squares += tl.sum(gap * weighted, 1)
    tl.store(TOP_A + bh * N + rows, top_a, valid)
    tl.store(TOTAL_A + bh * N + rows, total_a, valid)
    tl.store(TOP_B + bh * N + rows, top_b, valid)
    tl.store(TOTAL_B + bh * N + rows, total_b, valid)
    tl.store(INNER + bh * N + rows, inner, valid)
    part = tl.sum(tl.where(valid, squares, 0.0), 0)
    tl.store(PARTS + bh * tl.num_programs(0) + block, part)


@triton.jit
def _backward_q(
    Q, K_A, K_B, WEIGHTS, TOP_A, TOTAL_A, TOP_B, TOTAL_B, INNER, FACTOR, D_Q,
    q_b, q_h, q_n, a_b, a_h, a_m, b_b, b_h, b_m,
    H, N, M, scale,
    D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """dQ of BN queries: dS = factor · A_a (weight · (A_a - A_b) - inner)."""
    bh = tl.program_id(1).to(tl.int64)
    b, h = bh // H, bh % H
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    valid = rows < N
    q = load_rows(Q + b * q_b + h * q_h, rows, N, q_n, D, BD)
    level_a, inverse_a = load_state(TOP_A, TOTAL_A, bh * N + rows, valid, q.dtype)
    level_b, inverse_b = load_state(TOP_B, TOTAL_B, bh * N + rows, valid, q.dtype)
    inner = tl.load(INNER + bh * N + rows, valid, other=0.0)
    factor = tl.load(FACTOR + b)
    acc = tl.zeros([BN, BD], tl.float32)
    for start in range(0, M, BM):
        cols = start + tl.arange(0, BM)
        k_a = load_rows(K_A + b * a_b + h * a_h, cols, M, a_m, D, BD)
        k_b = load_rows(K_B + b * b_b + h * b_h, cols, M, b_m, D, BD)
        a, weighted, _ = _gap(
            q, k_a, k_b, WEIGHTS + b * M, level_a, inverse_a, level_b, inverse_b, cols, M, scale
        )
        ds = a * (weighted - inner[:, None])
        acc += dot(cast(ds, k_a.dtype), k_a)
    d_q = cast(acc * factor, D_Q.dtype.element_ty)
    store_rows(D_Q + bh * N * D, rows, N, D, d_q, D, BD)


@triton.jit
def _backward_k(
    Q, K_A, K_B, WEIGHTS, TOP_A, TOTAL_A, TOP_B, TOTAL_B, INNER, FACTOR, D_K,
    q_b, q_h, q_n, a_b, a_h, a_m, b_b, b_h, b_m,
    H, N, M, scale, rows_per_split,
    D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """dK_a of BM keys from a share of the queries; the shares are summed afterwards."""
    bh = tl.program_id(1).to(tl.int64)
    share = tl.program_id(2)
    b, h = bh // H, bh % H
    cols = tl.program_id(0) * BM + tl.arange(0, BM)
    k_a = load_rows(K_A + b * a_b + h * a_h, cols, M, a_m, D, BD)
    k_b = load_rows(K_B + b * b_b + h * b_h, cols, M, b_m, D, BD)
    factor = tl.load(FACTOR + b)
    acc = tl.zeros([BM, BD], tl.float32)
    first = share * rows_per_split
    for begin in range(first, tl.minimum(first + rows_per_split, N), BN):
        rows = begin + tl.arange(0, BN)
        valid = rows < N
        q = load_rows(Q + b * q_b + h * q_h, rows, N, q_n, D, BD)
        level_a, inverse_a = load_state(TOP_A, TOTAL_A, bh * N + rows, valid, q.dtype)
        level_b, inverse_b = load_state(TOP_B, TOTAL_B, bh * N + rows, valid, q.dtype)
        inner = tl.load(INNER + bh * N + rows, valid, other=0.0)
        a, weighted, _ = _gap(
            q, k_a, k_b, WEIGHTS + b * M, level_a, inverse_a, level_b, inverse_b, cols, M, scale
        )
        ds = a * (weighted - inner[:, None])
        acc += dot(cast(tl.trans(ds), q.dtype), q)
    whole = (share * tl.num_programs(1) + bh) * M * D
    d_k = cast(acc * factor, D_K.dtype.element_ty)
    store_rows(D_K + whole, cols, M, D, d_k, D, BD)


# --- autograd -------------------------------------------------------------------------------------


class _DistanceContext(Context, Protocol):
    scale: float


class _TritonDistance(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _DistanceContext, q: Tensor, k_a: Tensor, k_b: Tensor, weights: Tensor, scale: float
    ) -> Tensor:
        q, k_a, k_b = map(rows_with_unit_stride, (q, k_a, k_b))
        batch, heads, num_queries, _ = q.shape
        blocks = backward_blocks(q.shape[3], q.dtype)
        grid = triton.cdiv(num_queries, blocks.queries), batch * heads
        per_row = [q.new_empty(batch * heads, num_queries, dtype=torch.float32) for _ in range(5)]
        parts = q.new_empty(batch, heads * grid[0], dtype=torch.float32)
        _forward[grid](
            q, k_a, k_b, weights, *per_row, parts, *strides(q, k_a, k_b),
            heads, num_queries, k_a.shape[2], scale * LOG2_E.value, **_options(q),
        )  # fmt: skip
        ctx.save_for_backward(q, k_a, k_b, weights, *per_row)
        ctx.scale = scale
        return parts.sum(1)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: _DistanceContext, d_total: Tensor
    ) -> tuple[Tensor | None, ...]:
        q, k_a, k_b, weights, *per_row = ctx.saved_tensors
        batch, heads, num_queries, _ = q.shape
        num_keys, rows = k_a.shape[2], batch * heads
        blocks = backward_blocks(q.shape[3], q.dtype)
        factor = (2 * ctx.scale * d_total).float().contiguous()
        inputs = (q, k_a, k_b, weights, *per_row, factor)
        sizes = (*strides(q, k_a, k_b), heads, num_queries, num_keys, ctx.scale * LOG2_E.value)
        d_q = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        _backward_q[triton.cdiv(num_queries, blocks.queries), rows](
            *inputs, d_q, *sizes, **_options(q)
        )
        key_blocks = triton.cdiv(num_keys, blocks.keys)
        splits, per_split = split_queries(num_queries, key_blocks * rows, blocks.queries)
        d_k = q.new_empty((splits, *k_a.shape), dtype=torch.float32)
        _backward_k[key_blocks, rows, splits](*inputs, d_k, *sizes, per_split, **_options(q))
        return d_q, d_k.sum(0).to(k_a.dtype), None, None, None


def _options(q: Tensor) -> dict[str, int]:
    width = q.shape[3]
    blocks = backward_blocks(width, q.dtype)
    return {"D": width, "BD": padded_width(width), **blocks.options()}


# --- the function ---------------------------------------------------------------------------------


def map_distance_triton(
    q: Tensor, k_a: Tensor, k_b: Tensor, weights: Tensor, scale: float
) -> Tensor:
    """See `map_distance_reference`; for float32, float16 and bfloat16."""
    return _TritonDistance.apply(q, k_a, k_b, weights, scale)

"""Attention with token maps and moments in Triton: the matrix lives in registers only.

After FlashAttention-2 (Dao 2023, algorithms 1 and 2); what columns add is derived in README.md.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# (what Triton does to a function is beyond its types)

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor

from .inputs import AttentionInputs, Context, GroupBias, RequestedMaps, Segment
from .triton_common import (
    LOG2_E,
    cast,
    dot,
    load_rows,
    load_state,
    padded_width,
    rows_with_unit_stride,
    scores,
    store_rows,
    strides,
    with_group_bias,
)

TARGET_PROGRAMS = 512
"""The backward pass splits the queries until about so many programs run: several on each SM."""


# --- kernels --------------------------------------------------------------------------------------
# BN queries and BM keys at a time; D the width of a head, BD the power of two above it.
# Scores are kept times log2(e), since exp2 is what the hardware has.


@triton.jit
def _column(
    q, K, BIAS, GROUPS, VALUES, level, inverse, c, stride, rows, N, scale,
    D: tl.constexpr, BD: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_GROUPS: tl.constexpr,
):  # fmt: skip
    """A[:, c] for a block of queries: [BN]."""
    dims = tl.arange(0, BD)
    k = tl.load(K + c * stride + dims, dims < D, other=0.0).to(tl.float32)
    s = tl.sum(q.to(tl.float32) * k[None, :], 1) * scale
    if HAS_BIAS:
        s += tl.load(BIAS + c) * LOG2_E
    if HAS_GROUPS:
        g = tl.load(GROUPS + c)
        own = tl.load(VALUES + tl.maximum(g, 0) * N + rows, rows < N, other=0.0)
        s += tl.where(g >= 0, own * LOG2_E, 0.0)
    return tl.exp2(s - level) * inverse


@triton.jit
def _forward(
    Q, K, V, BIAS, GROUPS, VALUES, OUT, ACC, TOP, TOTAL, COLUMNS, MAPS, PARTS,
    q_b, q_h, q_n, k_b, k_h, k_m, v_b, v_h, v_m,
    H, N, M, G, T, scale,
    D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_GROUPS: tl.constexpr, IS_FIRST: tl.constexpr, IS_LAST: tl.constexpr,
    WANT_MAPS: tl.constexpr, WANT_MOMENTS: tl.constexpr,
):  # fmt: skip
    """Output of BN queries, one segment of keys after another.

    The running softmax is carried from segment to segment in ACC, TOP and TOTAL; the last one
    normalises and reads off the columns.
    """
    block = tl.program_id(0)
    bh = tl.program_id(1).to(tl.int64)
    b, h = bh // H, bh % H
    rows = block * BN + tl.arange(0, BN)
    valid = rows < N
    state = bh * N + rows  # where a row's state is
    K += b * k_b + h * k_h
    V += b * v_b + h * v_h
    BIAS += b * M
    GROUPS += b * M
    VALUES += b * G * N
    q = load_rows(Q + b * q_b + h * q_h, rows, N, q_n, D, BD)  # [BN, BD]
    if IS_FIRST:
        top = tl.full([BN], float("-inf"), tl.float32)
        total = tl.zeros([BN], tl.float32)
        acc = tl.zeros([BN, BD], tl.float32)
    else:
        top = tl.load(TOP + state, valid, other=0.0)
        total = tl.load(TOTAL + state, valid, other=1.0)
        acc = load_rows(ACC + bh * N * D, rows, N, D, D, BD)
    for start in range(0, M, BM):
        cols = start + tl.arange(0, BM)
        k = load_rows(K, cols, M, k_m, D, BD)  # [BM, BD]
        s = scores(q, k, BIAS, cols, M, scale, HAS_BIAS)  # [BN, BM]
        if HAS_GROUPS:
            s = with_group_bias(s, GROUPS, VALUES, G, cols, M, rows, N)
        higher = tl.maximum(top, tl.max(s, 1))
        level = tl.where(higher == float("-inf"), 0.0, higher)  # no key yet: exp2(-inf), not NaN
        p = tl.exp2(s - level[:, None])
        shrink = tl.exp2(top - level)
        total = total * shrink + tl.sum(p, 1)
        v = load_rows(V, cols, M, v_m, D, BD)  # [BM, BD]
        acc = acc * shrink[:, None] + dot(cast(p, v.dtype), v)
        top = higher
    tl.store(TOP + state, top, valid)
    tl.store(TOTAL + state, total, valid)
    if not IS_LAST:
        store_rows(ACC + bh * N * D, rows, N, D, acc, D, BD)
    else:
        out = acc / total[:, None]
        store_rows(OUT + bh * N * D, rows, N, D, cast(out, OUT.dtype.element_ty), D, BD)
        if WANT_MAPS or WANT_MOMENTS:
            count = tl.minimum(N - block * BN, BN).to(tl.float32)
            for t in range(T):
                c = tl.load(COLUMNS + b * T + t)
                p = _column(
                    q, K, BIAS, GROUPS, VALUES, top, 1 / total, c, k_m, rows, N, scale,
                    D, BD, HAS_BIAS, HAS_GROUPS,
                )  # [BN]  # fmt: skip
                if WANT_MAPS:
                    tl.store(MAPS + (bh * T + t) * N + rows, p, valid)
                if WANT_MOMENTS:
                    mean = tl.sum(tl.where(valid, p, 0.0), 0) / count
                    gap = tl.where(valid, p - mean, 0.0)
                    part = PARTS + ((bh * tl.num_programs(0) + block) * T + t) * 2
                    tl.store(part, mean)
                    tl.store(part + 1, tl.sum(gap * gap, 0))


@triton.jit
def _upstream(
    p, D_MAPS, OFFSET, SLOPE, b, h, t, rows, N, T, map_b, map_h,
    USES_MAPS: tl.constexpr, USES_MOMENTS: tl.constexpr,
):  # fmt: skip
    """The gradient that enters A[rows, column t]; README.md, equation 3."""
    g = tl.zeros_like(p)
    if USES_MAPS:
        g += tl.load(D_MAPS + b * map_b + h * map_h + t * N + rows, rows < N, other=0.0)
    if USES_MOMENTS:
        g += tl.load(OFFSET + b * T + t) + tl.load(SLOPE + b * T + t) * p
    return g


@triton.jit
def _with_columns(
    p, dp, cols, q, K, BIAS, GROUPS, VALUES, level, inverse, k_m, scale,
    COLUMNS, D_MAPS, OFFSET, SLOPE, b, h, rows, N, T, start, map_b, map_h,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_GROUPS: tl.constexpr,
    USES_MAPS: tl.constexpr, USES_MOMENTS: tl.constexpr,
):  # fmt: skip
    """Add to dp [BN, BM] what enters through the columns that lie in this block of keys.

    In float32, p becomes there what δ was computed with: where A is nearly 1, dp - δ is a small
    rest, which the rounding of products that were summed in another order would swamp.
    """
    for t in range(T):
        c = tl.load(COLUMNS + b * T + t)
        if (c >= start) & (c < start + BM):
            here = (cols == c)[None, :]
            if q.dtype == tl.float32:
                own = _column(
                    q, K, BIAS, GROUPS, VALUES, level, inverse, c, k_m, rows, N, scale,
                    D, BD, HAS_BIAS, HAS_GROUPS,
                )  # fmt: skip
                p = tl.where(here, own[:, None], p)
            else:
                own = tl.sum(tl.where(here, p, 0.0), 1)
            g = _upstream(
                own, D_MAPS, OFFSET, SLOPE, b, h, t, rows, N, T, map_b, map_h,
                USES_MAPS, USES_MOMENTS,
            )  # fmt: skip
            dp += tl.where(here, g[:, None], 0.0)
    return p, dp


@triton.jit
def _backward_q(
    Q, K, V, BIAS, GROUPS, VALUES, OUT, D_OUT, TOP, TOTAL, DELTA, D_Q,
    COLUMNS, D_MAPS, OFFSET, SLOPE,
    q_b, q_h, q_n, k_b, k_h, k_m, v_b, v_h, v_m, map_b, map_h,
    H, N, M, G, T, scale, plain_scale,
    D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_GROUPS: tl.constexpr, IS_FIRST: tl.constexpr,
    USES_MAPS: tl.constexpr, USES_MOMENTS: tl.constexpr,
):  # fmt: skip
    """dQ of BN queries from one segment; the first also computes δ (README.md, equation 4)."""
    block = tl.program_id(0)
    bh = tl.program_id(1).to(tl.int64)
    b, h = bh // H, bh % H
    rows = block * BN + tl.arange(0, BN)
    valid = rows < N
    K += b * k_b + h * k_h
    V += b * v_b + h * v_h
    BIAS += b * M
    GROUPS += b * M
    VALUES += b * G * N
    q = load_rows(Q + b * q_b + h * q_h, rows, N, q_n, D, BD)
    d_out = load_rows(D_OUT + bh * N * D, rows, N, D, D, BD)
    level, inverse = load_state(TOP, TOTAL, bh * N + rows, valid, q.dtype)
    if IS_FIRST:
        out = load_rows(OUT + bh * N * D, rows, N, D, D, BD)
        delta = tl.sum(out.to(tl.float32) * d_out.to(tl.float32), 1)
        if USES_MAPS or USES_MOMENTS:
            for t in range(T):
                c = tl.load(COLUMNS + b * T + t)
                p = _column(
                    q, K, BIAS, GROUPS, VALUES, level, inverse, c, k_m, rows, N, scale,
                    D, BD, HAS_BIAS, HAS_GROUPS,
                )  # fmt: skip
                delta += p * _upstream(
                    p, D_MAPS, OFFSET, SLOPE, b, h, t, rows, N, T, map_b, map_h,
                    USES_MAPS, USES_MOMENTS,
                )  # fmt: skip
        tl.store(DELTA + bh * N + rows, delta, valid)
        acc = tl.zeros([BN, BD], tl.float32)
    else:
        delta = tl.load(DELTA + bh * N + rows, valid, other=0.0)
        acc = load_rows(D_Q + bh * N * D, rows, N, D, D, BD).to(tl.float32)
    for start in range(0, M, BM):
        cols = start + tl.arange(0, BM)
        k = load_rows(K, cols, M, k_m, D, BD)
        s = scores(q, k, BIAS, cols, M, scale, HAS_BIAS)  # [BN, BM]
        if HAS_GROUPS:
            s = with_group_bias(s, GROUPS, VALUES, G, cols, M, rows, N)
        p = tl.exp2(s - level[:, None]) * inverse[:, None]
        v = load_rows(V, cols, M, v_m, D, BD)
        dp = dot(d_out, tl.trans(v))
        if IS_FIRST and (USES_MAPS or USES_MOMENTS):
            p, dp = _with_columns(
                p, dp, cols, q, K, BIAS, GROUPS, VALUES, level, inverse, k_m, scale,
                COLUMNS, D_MAPS, OFFSET, SLOPE, b, h, rows, N, T, start, map_b, map_h,
                D, BD, BM, HAS_BIAS, HAS_GROUPS, USES_MAPS, USES_MOMENTS,
            )  # fmt: skip
        ds = p * (dp - delta[:, None]) * plain_scale
        acc += dot(cast(ds, k.dtype), k)
    store_rows(D_Q + bh * N * D, rows, N, D, cast(acc, D_Q.dtype.element_ty), D, BD)


@triton.jit
def _backward_kv(
    Q, K, V, BIAS, GROUPS, VALUES, D_OUT, TOP, TOTAL, DELTA, D_K, D_V,
    COLUMNS, D_MAPS, OFFSET, SLOPE,
    q_b, q_h, q_n, k_b, k_h, k_m, v_b, v_h, v_m, map_b, map_h,
    H, N, M, G, T, rows_per_split, scale, plain_scale,
    D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_GROUPS: tl.constexpr,
    USES_MAPS: tl.constexpr, USES_MOMENTS: tl.constexpr,
):  # fmt: skip
    """dK and dV of BM keys from a share of the queries; the shares are summed afterwards."""
    start = tl.program_id(0) * BM
    bh = tl.program_id(1).to(tl.int64)
    share = tl.program_id(2)
    b, h = bh // H, bh % H
    cols = start + tl.arange(0, BM)
    Q += b * q_b + h * q_h
    BIAS += b * M
    GROUPS += b * M
    VALUES += b * G * N
    K += b * k_b + h * k_h
    k = load_rows(K, cols, M, k_m, D, BD)
    v = load_rows(V + b * v_b + h * v_h, cols, M, v_m, D, BD)
    d_k = tl.zeros([BM, BD], tl.float32)
    d_v = tl.zeros([BM, BD], tl.float32)
    first = share * rows_per_split
    for begin in range(first, tl.minimum(first + rows_per_split, N), BN):
        rows = begin + tl.arange(0, BN)
        valid = rows < N
        q = load_rows(Q, rows, N, q_n, D, BD)
        d_out = load_rows(D_OUT + bh * N * D, rows, N, D, D, BD)
        level, inverse = load_state(TOP, TOTAL, bh * N + rows, valid, q.dtype)
        delta = tl.load(DELTA + bh * N + rows, valid, other=0.0)
        s = scores(q, k, BIAS, cols, M, scale, HAS_BIAS)  # [BN, BM]
        if HAS_GROUPS:
            s = with_group_bias(s, GROUPS, VALUES, G, cols, M, rows, N)
        p = tl.exp2(s - level[:, None]) * inverse[:, None]
        d_v += dot(cast(tl.trans(p), d_out.dtype), d_out)
        dp = dot(d_out, tl.trans(v))
        if USES_MAPS or USES_MOMENTS:
            p, dp = _with_columns(
                p, dp, cols, q, K, BIAS, GROUPS, VALUES, level, inverse, k_m, scale,
                COLUMNS, D_MAPS, OFFSET, SLOPE, b, h, rows, N, T, start, map_b, map_h,
                D, BD, BM, HAS_BIAS, HAS_GROUPS, USES_MAPS, USES_MOMENTS,
            )  # fmt: skip
        ds = p * (dp - delta[:, None]) * plain_scale
        d_k += dot(cast(tl.trans(ds), q.dtype), q)
    whole = (share * tl.num_programs(1) + bh) * M * D
    store_rows(D_K + whole, cols, M, D, cast(d_k, D_K.dtype.element_ty), D, BD)
    store_rows(D_V + whole, cols, M, D, cast(d_v, D_V.dtype.element_ty), D, BD)


# --- launchers ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Blocks:
    """The block sizes of a kernel: queries, keys, warps and pipeline stages."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int

    def options(self) -> dict[str, int]:
        """As the kernel's arguments."""
        return {
            "BN": self.queries,
            "BM": self.keys,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
        }


def forward_blocks(width: int, dtype: torch.dtype, *, groups: bool = False) -> Blocks:
    """Large enough to keep tensor cores busy, small enough that no register spills.

    Those that `bench/kernel_resources.py` found; biases of `groups` want some registers more.
    """
    wide = padded_width(width)
    if dtype == torch.float32:
        return Blocks(32, 32, 4, 1 if wide > 128 else 2)  # two stages take more than sm_86 has
    if wide <= 64:
        return Blocks(128, 64, 8, 3)
    if wide <= 128:
        return Blocks(128, 32, 8, 2)
    return Blocks(64, 32, 8, 2) if groups else Blocks(32, 32, 4, 2)


def backward_blocks(
    width: int, dtype: torch.dtype, *, groups: bool = False, columns: bool = False
) -> Blocks:
    """Smaller than forward, as twice as much is kept in registers; `columns` have gradients."""
    wide = padded_width(width)
    if dtype == torch.float32:
        return Blocks(16, 16, 4, 1) if wide > 64 else Blocks(32, 32, 4, 1)
    if wide <= 64:
        return Blocks(64, 32, 8 if groups and columns else 4, 2)
    if wide <= 128:
        return Blocks(32 if groups else 64, 32, 8, 1)
    return Blocks(16, 32, 8, 1)


Biases = tuple[Tensor | None, GroupBias | None]
"""Of a segment: of its keys, and of groups of them."""


class _Inputs:
    """What all launches of one call share."""

    def __init__(
        self,
        q: Tensor,
        flat: tuple[Tensor, ...],
        biases: Sequence[Biases],
        columns: Tensor | None,
        scale: float,
    ) -> None:
        self.q = q
        self.segments = [
            Segment(k, v, *own) for k, v, own in zip(flat[::2], flat[1::2], biases, strict=True)
        ]
        self.batch, self.heads, self.num_queries, self.width = q.shape
        self.columns = columns
        self.num_columns = 0 if columns is None else columns.shape[1]
        self.scale = scale
        self.nothing = q.new_empty(1, dtype=torch.float32)

    @property
    def rows(self) -> int:
        """Batch times heads."""
        return self.batch * self.heads

    @property
    def has_groups(self) -> bool:
        """Whether any segment has groups of keys."""
        return any(each.group_bias is not None for each in self.segments)

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Uninitialised memory for a result."""
        return self.q.new_empty(shape, dtype=dtype)

    def biases(self, segment: Segment) -> tuple[list[Tensor], int, dict[str, bool]]:
        """BIAS, GROUPS and VALUES as the kernels take them, the number of groups, and which are."""
        bias, groups = segment.bias, segment.group_bias
        pointers = [self.nothing if bias is None else bias.float().contiguous()]
        if groups is None:
            pointers += [self.nothing.int(), self.nothing]
        else:
            pointers += [groups.groups.int().contiguous(), groups.values.float().contiguous()]
        count = 0 if groups is None else groups.values.shape[1]
        return pointers, count, {"HAS_BIAS": bias is not None, "HAS_GROUPS": groups is not None}

    def widths(self) -> dict[str, int]:
        """The kernels' D and BD."""
        return {"D": self.width, "BD": padded_width(self.width)}


def _launch_forward(
    inputs: _Inputs, requested: RequestedMaps
) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor, Tensor]:
    """Output, largest score and softmax sum (B·H, N), per-head maps, and moments by block.

    The first segment comes last: it holds the columns, and only then the softmax is complete.
    """
    blocks = forward_blocks(inputs.width, inputs.q.dtype, groups=inputs.has_groups)
    rows, n, width, t = inputs.rows, inputs.num_queries, inputs.width, inputs.num_columns
    num_blocks = triton.cdiv(n, blocks.queries)
    output = inputs.new(*inputs.q.shape, dtype=inputs.q.dtype)
    top, total = (inputs.new(rows, n) for _ in range(2))
    acc = inputs.new(rows, n, width) if len(inputs.segments) > 1 else inputs.nothing
    maps = inputs.new(rows, t, n) if requested.maps else inputs.nothing
    parts = inputs.new(rows, num_blocks, t, 2) if requested.moments else inputs.nothing
    order = inputs.segments[1:] + inputs.segments[:1]
    for number, segment in enumerate(order):
        k, v = segment.k, segment.v
        is_last = number == len(order) - 1
        pointers, num_groups, has = inputs.biases(segment)
        _forward[num_blocks, rows](
            inputs.q, k, v, *pointers, output, acc, top, total,
            inputs.nothing if inputs.columns is None else inputs.columns, maps, parts,
            *strides(inputs.q, k, v),
            inputs.heads, n, k.shape[2], num_groups, t, inputs.scale * LOG2_E.value,
            **inputs.widths(), **blocks.options(), **has,
            IS_FIRST=number == 0, IS_LAST=is_last,
            WANT_MAPS=requested.maps and is_last, WANT_MOMENTS=requested.moments and is_last,
        )  # fmt: skip
    return output, (top, total), maps, parts


@dataclass(frozen=True, slots=True)
class _ColumnGradients:
    """What enters through the columns: of maps, and of moments as offset + slope · A."""

    maps: Tensor | None = None
    offset: Tensor | None = None
    slope: Tensor | None = None

    def arguments(self, nothing: Tensor) -> list[Tensor]:
        return [nothing if part is None else part for part in (self.maps, self.offset, self.slope)]

    def strides(self) -> list[int]:
        """From sample to sample and head to head; averaged maps have none between heads."""
        return [0, 0] if self.maps is None else list(self.maps.stride()[:2])

    def uses(self) -> dict[str, bool]:
        return {"USES_MAPS": self.maps is not None, "USES_MOMENTS": self.offset is not None}


def _launch_backward(
    inputs: _Inputs,
    output: Tensor,
    state: tuple[Tensor, Tensor],
    d_output: Tensor,
    gradients: _ColumnGradients,
) -> tuple[Tensor, list[Tensor]]:
    """dQ, and dK, dV of each segment."""
    blocks = backward_blocks(
        inputs.width,
        inputs.q.dtype,
        groups=inputs.has_groups,
        columns=any(gradients.uses().values()),
    )
    q, n, rows = inputs.q, inputs.num_queries, inputs.rows
    single = len(inputs.segments) == 1
    d_q = inputs.new(*q.shape, dtype=q.dtype if single else torch.float32)
    delta = inputs.new(rows, n)
    columns = inputs.nothing if inputs.columns is None else inputs.columns
    d_flat: list[Tensor] = []
    for number, segment in enumerate(inputs.segments):
        k, v = segment.k, segment.v
        pointers, num_groups, has = inputs.biases(segment)
        uses = gradients if number == 0 else _ColumnGradients()
        shared = (columns, *uses.arguments(inputs.nothing), *strides(q, k, v), *uses.strides())
        sizes = (inputs.heads, n, k.shape[2], num_groups, inputs.num_columns)
        scales = (inputs.scale * LOG2_E.value, inputs.scale)
        options: dict[str, int | bool] = {
            **inputs.widths(),
            **blocks.options(),
            **uses.uses(),
            **has,
        }
        _backward_q[triton.cdiv(n, blocks.queries), rows](
            q, k, v, *pointers, output, d_output, *state, delta, d_q,
            *shared, *sizes, *scales, IS_FIRST=number == 0, **options,
        )  # fmt: skip
        key_blocks = triton.cdiv(k.shape[2], blocks.keys)
        splits, rows_per_split = split_queries(n, key_blocks * rows, blocks.queries)
        dtype = k.dtype if splits == 1 else torch.float32
        d_k, d_v = (inputs.new(splits, *k.shape, dtype=dtype) for _ in range(2))
        _backward_kv[key_blocks, rows, splits](
            q, k, v, *pointers, d_output, *state, delta, d_k, d_v,
            *shared, *sizes, rows_per_split, *scales, **options,
        )  # fmt: skip
        d_flat += [part[0] if splits == 1 else part.sum(0).to(k.dtype) for part in (d_k, d_v)]
    return d_q.to(q.dtype), d_flat


def split_queries(num_queries: int, programs: int, block: int) -> tuple[int, int]:
    """Into how many shares, of how many queries, so that a few keys still fill the GPU."""
    blocks = triton.cdiv(num_queries, block)
    splits = max(1, min(blocks, TARGET_PROGRAMS // programs))
    per_split = triton.cdiv(blocks, splits) * block
    return triton.cdiv(num_queries, per_split), per_split


# --- autograd -------------------------------------------------------------------------------------


class _AttentionContext(Context, Protocol):
    biases: Sequence[Biases]
    requested: RequestedMaps
    scale: float


class _TritonAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _AttentionContext,
        q: Tensor,
        columns: Tensor | None,
        biases: Sequence[Biases],
        requested: RequestedMaps,
        scale: float,
        *flat: Tensor,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        q = rows_with_unit_stride(q)
        flat = tuple(rows_with_unit_stride(part) for part in flat)
        inputs = _Inputs(q, flat, biases, columns, scale)
        output, state, per_head, parts = _launch_forward(inputs, requested)
        maps = moments = mean = None
        if requested.maps:
            per_head = per_head.unflatten(0, (inputs.batch, inputs.heads))
            maps = per_head if requested.per_head else per_head.mean(1)
        if requested.moments:
            moments = _joined_moments(inputs, parts)
            mean = moments[..., 0]
        ctx.save_for_backward(q, columns, output, *state, mean, *flat)
        ctx.biases, ctx.requested, ctx.scale = biases, requested, scale
        ctx.set_materialize_grads(False)
        return output, maps, moments

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: _AttentionContext,
        d_output: Tensor | None,
        d_maps: Tensor | None,
        d_moments: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        q, columns, output, top, total, mean, *flat = ctx.saved_tensors
        inputs = _Inputs(q, tuple(flat), ctx.biases, columns, ctx.scale)
        d_output = torch.zeros_like(output) if d_output is None else d_output.contiguous()
        gradients = _column_gradients_of(inputs, ctx.requested, mean, d_maps, d_moments)
        d_q, d_flat = _launch_backward(inputs, output, (top, total), d_output, gradients)
        return d_q, None, None, None, None, *d_flat


def _joined_moments(inputs: _Inputs, parts: Tensor) -> Tensor:
    """Moments of all from those of blocks (Chan et al. 1979, eq. 2.1), (B, T, 2)."""
    blocks = forward_blocks(inputs.width, inputs.q.dtype, groups=inputs.has_groups)
    counts = _block_counts(inputs.num_queries, blocks.queries, inputs.heads, parts.device)
    per_sample = parts.unflatten(0, (inputs.batch, inputs.heads)).flatten(1, 2)
    means, squares = per_sample.unbind(-1)  # (B, H · blocks, T)
    whole = inputs.heads * inputs.num_queries
    mean = (means * counts).sum(1) / whole
    spread = squares + counts * (means - mean[:, None]).square()
    return torch.stack([mean, spread.sum(1) / (whole - 1)], dim=-1)


@lru_cache(maxsize=64)
def _block_counts(num_queries: int, block: int, heads: int, device: torch.device) -> Tensor:
    """How many queries are in each block of each head, (H · blocks, 1)."""
    starts = torch.arange(0, num_queries, block, device=device)
    counts = (num_queries - starts).clamp(max=block).to(torch.float32)
    return counts.repeat(heads)[:, None]


def _column_gradients_of(
    inputs: _Inputs,
    requested: RequestedMaps,
    mean: Tensor | None,
    d_maps: Tensor | None,
    d_moments: Tensor | None,
) -> _ColumnGradients:
    maps = offset = slope = None
    if d_maps is not None:
        maps = d_maps.float()
        if requested.per_head:
            maps = maps.contiguous()
        else:
            shape = (-1, inputs.heads, -1, -1)
            maps = (maps / inputs.heads).contiguous().unsqueeze(1).expand(shape)
    if d_moments is not None:
        assert mean is not None
        count = inputs.heads * inputs.num_queries
        slope = (2 * d_moments[..., 1] / (count - 1)).contiguous()
        offset = (d_moments[..., 0] / count - slope * mean).contiguous()
    return _ColumnGradients(maps, offset, slope)


# --- the function ---------------------------------------------------------------------------------


def attend_triton(inputs: AttentionInputs) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """See `attend_reference`; for float32, float16 and bfloat16."""
    flat = [part for segment in inputs.segments for part in (segment.k, segment.v)]
    biases = [(segment.bias, segment.group_bias) for segment in inputs.segments]
    return _TritonAttention.apply(
        inputs.q, inputs.columns, biases, inputs.requested, inputs.scale, *flat
    )

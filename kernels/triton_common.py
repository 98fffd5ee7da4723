"""What the Triton kernels share: loads, products, casts and scores."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# (what Triton does to a function is beyond its types)

import math
import os

import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
LOG2_E = tl.constexpr(math.log2(math.e))


@triton.jit
def dot(a, b):
    """A product in float32. Triton's interpreter takes bfloat16 for integers: it gets float32."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def cast(x, dtype: tl.constexpr):
    """Float32 to another dtype, to the nearest. Triton's interpreter would cut bfloat16 off."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
        x = bits.to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def load_rows(pointer, rows, num_rows, stride, D: tl.constexpr, BD: tl.constexpr):
    """Rows of a matrix with D columns, 0 beyond both: [rows, BD]."""
    dims = tl.arange(0, BD)
    inside = (rows < num_rows)[:, None] & (dims < D)[None, :]
    return tl.load(pointer + rows.to(tl.int64)[:, None] * stride + dims[None, :], inside, other=0.0)


@triton.jit
def store_rows(pointer, rows, num_rows, stride, values, D: tl.constexpr, BD: tl.constexpr):
    """Write rows of a matrix with D columns."""
    dims = tl.arange(0, BD)
    inside = (rows < num_rows)[:, None] & (dims < D)[None, :]
    tl.store(pointer + rows.to(tl.int64)[:, None] * stride + dims[None, :], values, inside)


@triton.jit
def scores(q, k, BIAS, cols, num_keys, scale, HAS_BIAS: tl.constexpr):
    """Scores times log2(e), -inf beyond the last key: [BN, BM]."""
    s = dot(q, tl.trans(k)) * scale
    if HAS_BIAS:
        s += tl.load(BIAS + cols, cols < num_keys, other=0.0)[None, :] * LOG2_E
    return tl.where((cols < num_keys)[None, :], s, float("-inf"))


@triton.jit
def with_group_bias(s, GROUPS, VALUES, G, cols, num_keys, rows, num_rows):
    """Scores with the biases of queries towards groups of keys: [BN, BM]."""
    groups = tl.load(GROUPS + cols, cols < num_keys, other=-1)  # [BM]
    for g in range(G):
        bias = tl.load(VALUES + g * num_rows + rows, rows < num_rows, other=0.0)  # [BN]
        s += tl.where((groups == g)[None, :], bias[:, None] * LOG2_E, 0.0)
    return s


@triton.jit
def state_of(top, total, dtype: tl.constexpr):
    """The softmax state: A = exp2(s - level) · inverse; [BN] each.

    Half precision bears the rounding of the logarithm, and needs a register less.
    """
    if dtype == tl.float32:
        return top, 1 / total
    return top + tl.log2(total), tl.full(top.shape, 1.0, tl.float32)


@triton.jit
def load_state(TOP, TOTAL, state, valid, dtype: tl.constexpr):
    """`state_of` what was stored of each query; A is 0 beyond the last one."""
    top = tl.load(TOP + state, valid, other=float("inf"))
    total = tl.load(TOTAL + state, valid, other=1.0)
    return state_of(top, total, dtype)


def padded_width(width: int) -> int:
    """The power of two that a head's width is padded to: what `tl.dot` takes, 16 at least."""
    return max(16, triton.next_power_of_2(width))


def rows_with_unit_stride(tensor: Tensor) -> Tensor:
    """The kernels step through a head's width one by one; other strides are as they are."""
    return tensor if tensor.stride(3) == 1 or tensor.shape[3] == 1 else tensor.contiguous()


def strides(*tensors: Tensor) -> list[int]:
    """The strides of samples, heads and rows of each tensor."""
    return [stride for tensor in tensors for stride in tensor.stride()[:3]]

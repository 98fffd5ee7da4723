"""`attend` and `map_distance`, the public functions, and the choice among three backends."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from .chunked import attend_chunked, map_distance_chunked
from .inputs import (
    AttentionInputs,
    CheckedColumns,
    ExtraKeys,
    GroupBias,
    check_columns,
    check_inputs,
    check_keys,
    check_queries,
    check_scale,
    without_autocast,
)
from .reference import Results, attend_reference, map_distance_reference

ENVIRONMENT_VARIABLE = "CONCEPTRY_ATTENTION"
BACKENDS = ("reference", "torch", "triton")
_WIDE_FLOAT32_BYTES = 70_000
"""Shared memory for float32 heads wider than 128, as `bench/kernel_resources.py` counts it."""
REDUCTIONS = ("sum", "mean")


@dataclass(frozen=True, slots=True)
class AttentionResult:
    """The result of `attend`: output (B, H, N, D) in the queries' dtype; the rest float32 or None.

    `maps` is (B, T, N), or (B, H, T, N) with `per_head`; `moments` (B, T, 2) holds mean and
    unbiased variance; `backend` is the one that computed them.
    """

    output: Tensor
    maps: Tensor | None
    moments: Tensor | None
    backend: str


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    key_bias: Tensor | None = None,
    group_bias: GroupBias | None = None,
    extra: Sequence[ExtraKeys] | None = None,
    columns: Tensor | Sequence[int] | CheckedColumns | None = None,
    want: str | Sequence[str] | None = None,
    per_head: bool = False,
    scale: float | None = None,
) -> AttentionResult:
    """Scaled dot-product attention that also returns columns of its matrix, or their moments.

    A = softmax(scale · q kᵀ + bias), output = A v (Vaswani et al. 2017, eq. 1). A *token map* is
    the column A[..., j] of key j. On a GPU nothing of the size of A is ever written, forward or
    backward; the torch backend works on 4 MB of it at a time, and keeps it if that is all.

    - `q` are queries (B, H, N, D), `k` and `v` keys and values (B, H, M, D), which may come from
      different contexts.
    - `key_bias` (B, M) is added to the scores of each key; -inf hides a key.
    - `group_bias` adds to the scores of groups of keys what depends on the query: (B, G, N) numbers
      in place of an (N, M) mask.
    - `extra` are further segments, each (k, v, bias) or a `Segment`, attended together with the
      first; a bias may be None.
    - `columns`, (T,) or (B, T), are indices of keys of the first segment.
    - `want` is "maps", "moments" or both. Maps are averaged over heads, unless `per_head`; moments
      are the mean and the unbiased variance over heads and positions.
    - `scale` multiplies the scores; 1/√D if left out.

    Products are those of the tensors' own dtype, summed in float32 at least, under autocast too.
    Gradients flow to q, k and v of every segment from output, maps and moments. The same inputs
    give the same bits on the same machine. Raises `ValueError` that names the wrong argument.
    """
    inputs = check_inputs(
        q,
        k,
        v,
        key_bias=key_bias,
        group_bias=group_bias,
        extra=extra,
        columns=columns,
        want=want,
        per_head=per_head,
        scale=scale,
    )
    backend = choose_backend(inputs.q)
    with without_autocast(q.device), torch.cuda.device_of(q):  # where Triton launches
        output, maps, moments = _implementation(backend)(inputs)
    return AttentionResult(output, _single(maps), _single(moments), backend)


def map_distance(
    q: Tensor,
    k_a: Tensor,
    k_b: Tensor,
    *,
    reduction: str = "sum",
    columns: Tensor | Sequence[int] | None = None,
    scale: float | None = None,
) -> Tensor:
    """The squared distance of two attention maps that share their queries: (B,) float32.

    Σ (softmax(scale · q k_aᵀ) - softmax(scale · q k_bᵀ))², averaged over heads and summed over
    positions and keys, or averaged over these too with `reduction="mean"` (SeFi-IDE's subject-wise
    attention loss, arXiv 2402.00631, section 3.2). `columns`, (T,) or (B, T), restricts it to some
    keys. The map of k_b is a target: gradients flow to q and k_a, through the map of k_a.

    Shapes are q (B, H, N, D) and k_a, k_b (B, H, M, D). Raises `ValueError` that names the wrong
    argument.
    """
    check_queries(q)
    check_keys(q, k_a, "k_a")
    check_keys(q, k_b, "k_b", k_a.shape[2])
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}: expected 'sum' or 'mean'")
    batch, heads, num_queries, width = q.shape
    weights = torch.ones(batch, k_a.shape[2], device=q.device)
    if columns is not None:
        chosen = check_columns(columns, batch, k_a.shape[2], q.device)
        weights = torch.zeros_like(weights).scatter_(1, chosen, 1.0)
    backend = choose_backend(q)
    with without_autocast(q.device), torch.cuda.device_of(q):
        distance = _distance(backend)(q, k_a, k_b.detach(), weights, check_scale(scale, width))
    counted = heads if reduction == "sum" else heads * num_queries * weights.sum(1)
    return _float32(distance / counted)


def choose_backend(q: Tensor) -> str:
    """Triton on a GPU, torch elsewhere; $CONCEPTRY_ATTENTION forces one of the three.

    Raises `ValueError` if the forced one cannot run on these tensors.
    """
    forced = os.environ.get(ENVIRONMENT_VARIABLE)
    if not forced:
        return "triton" if q.is_cuda and _triton_obstacle(q) is None else "torch"
    if forced not in BACKENDS:
        names = ", ".join(BACKENDS)
        raise ValueError(f"${ENVIRONMENT_VARIABLE} is {forced!r}: expected one of {names}")
    if forced == "triton" and (obstacle := _triton_obstacle(q)):
        raise ValueError(f"${ENVIRONMENT_VARIABLE} asks for triton, but {obstacle}")
    return forced


def _triton_obstacle(q: Tensor) -> str | None:
    """Why Triton cannot run on these tensors; None if it can."""
    if find_spec("triton") is None:
        return "the package triton is not installed"
    if q.dtype == torch.float64:
        return "its kernels are for float32, float16 and bfloat16"
    if not q.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the tensors are on {q.device} (TRITON_INTERPRET=1 runs it on a CPU, slowly)"
    if q.is_cuda and q.dtype == torch.float32 and q.shape[-1] > 128:
        there = torch.cuda.get_device_properties(q.device).shared_memory_per_block_optin
        if there < _WIDE_FLOAT32_BYTES:  # before Ampere
            return f"float32 heads of {q.shape[-1]} need more shared memory than this GPU has"
    return None


def _implementation(backend: str) -> Callable[[AttentionInputs], Results]:
    if backend == "triton":
        from .triton_attention import attend_triton

        return attend_triton
    return attend_chunked if backend == "torch" else attend_reference


def _distance(backend: str) -> Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]:
    if backend == "triton":
        from .triton_distance import map_distance_triton

        return map_distance_triton
    return map_distance_chunked if backend == "torch" else map_distance_reference


def _single(value: Tensor | None) -> Tensor | None:
    return None if value is None else _float32(value)


def _float32(value: Tensor) -> Tensor:
    """As float32; float64 stays, as it is the reference for tests."""
    return value if value.dtype == torch.float64 else value.float()

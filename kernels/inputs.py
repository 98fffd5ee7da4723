"""The arguments of the kernels, checked before anything runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MAX_HEAD_WIDTH = 256
WANTS = ("maps", "moments")


@dataclass(frozen=True, slots=True)
class Segment:
    """Keys (B, H, M, D), values (B, H, M, D) and an additive bias (B, M) or None."""

    k: Tensor
    v: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True, slots=True)
class RequestedMaps:
    """The requested results beside the output: maps, moments, both or none."""

    maps: bool = False
    moments: bool = False
    per_head: bool = False


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """Queries (B, H, N, D), key segments, and columns (B, T) of the first one, int64."""

    q: Tensor
    segments: tuple[Segment, ...]
    columns: Tensor | None
    requested: RequestedMaps
    scale: float


@dataclass(frozen=True, slots=True)
class CheckedColumns:
    """Key indices (T,) or (B, T) that were checked to be below `num_keys`.

    Reading indices from a GPU waits for all pending work, so they are checked once for all layers.
    """

    rows: Tensor
    num_keys: int


class Context(Protocol):
    """The autograd context between a forward pass and its backward pass."""

    saved_tensors: tuple[Tensor, ...]  # and None, where that was saved
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Set `saved_tensors`."""

    def set_materialize_grads(self, value: bool) -> None:
        """Whether missing gradients are passed as zeros instead of None."""


def check_inputs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    key_bias: Tensor | None,
    extra: Sequence[tuple[Tensor, Tensor, Tensor | None]] | None,
    columns: Tensor | Sequence[int] | CheckedColumns | None,
    want: str | Sequence[str] | None,
    per_head: bool,
    scale: float | None,
) -> AttentionInputs:
    """Check the arguments of `attend`; raises `ValueError` that names the wrong one."""
    check_queries(q)
    segments = [Segment(k, v, key_bias), *(Segment(*parts) for parts in extra or ())]
    for number, segment in enumerate(segments):
        _check_segment(q, segment, "" if number == 0 else f"extra[{number - 1}] ")
    _check_that_keys_are_left(q, segments)
    requested = _parse_want(want, per_head)
    if (columns is None) == (requested.maps or requested.moments):
        raise ValueError(
            f"columns and want belong together: columns is {_described(columns)}, want is {want!r}"
        )
    checked = None if columns is None else check_columns(columns, q.shape[0], k.shape[2], q.device)
    if requested.moments and q.shape[1] * q.shape[2] < 2:
        raise ValueError("want='moments' needs two values at least: q has one head and one query")
    return AttentionInputs(q, tuple(segments), checked, requested, check_scale(scale, q.shape[3]))


def check_queries(q: Tensor) -> None:
    """Raise `ValueError` unless q is (B, H, N, D), not empty, of a supported dtype and width."""
    if not isinstance(q, Tensor) or q.dim() != 4:
        raise ValueError(f"q has to be (B, H, N, D), not {_described(q)}")
    if q.dtype not in DTYPES:
        names = ", ".join(_dtype_name(dtype) for dtype in DTYPES)
        raise ValueError(f"q is {_dtype_name(q.dtype)}: expected {names}")
    if 0 in q.shape:
        raise ValueError(f"q is empty: {tuple(q.shape)}")
    if q.shape[3] > MAX_HEAD_WIDTH:
        raise ValueError(f"q has heads of width {q.shape[3]}: at most {MAX_HEAD_WIDTH}")


def check_keys(q: Tensor, keys: Tensor, name: str, num_keys: int | None = None) -> None:
    """Raise `ValueError` unless keys or values are (B, H, M, D) and fit the queries."""
    batch, heads, _, width = q.shape
    expected = f"({batch}, {heads}, {'M' if num_keys is None else num_keys}, {width})"
    fits = isinstance(keys, Tensor) and keys.dim() == 4
    fits = fits and (keys.shape[0], keys.shape[1], keys.shape[3]) == (batch, heads, width)
    if not fits or keys.shape[2] == 0 or num_keys not in (None, keys.shape[2]):
        raise ValueError(f"{name} has to be {expected}, not {_described(keys)}")
    if keys.dtype != q.dtype:
        raise ValueError(f"{name} is {_dtype_name(keys.dtype)}, q is {_dtype_name(q.dtype)}")
    if keys.device != q.device:
        raise ValueError(f"{name} is on {keys.device}, q is on {q.device}")


def _check_segment(q: Tensor, segment: Segment, where: str) -> None:
    check_keys(q, segment.k, f"{where}k")
    check_keys(q, segment.v, f"{where}v", segment.k.shape[2])
    bias, name = segment.bias, f"{where}bias" if where else "key_bias"
    if bias is None:
        return
    if not isinstance(bias, Tensor) or bias.shape != (q.shape[0], segment.k.shape[2]):
        expected = f"({q.shape[0]}, {segment.k.shape[2]})"
        raise ValueError(f"{name} has to be (B, M) = {expected}, not {_described(bias)}")
    if not bias.is_floating_point():
        raise ValueError(f"{name} is {_dtype_name(bias.dtype)}: expected an additive float bias")
    if bias.device != q.device:
        raise ValueError(f"{name} is on {bias.device}, q is on {q.device}")
    if bias.requires_grad:
        raise ValueError(f"{name} requires a gradient, which is not computed: detach it")


def _check_that_keys_are_left(q: Tensor, segments: Sequence[Segment]) -> None:
    """Raise `ValueError` if a sample's biases are all -inf: softmax would be 0/0."""
    biases = [segment.bias for segment in segments if segment.bias is not None]
    if len(biases) < len(segments):
        return
    highest = torch.stack([bias.detach().float().amax(-1) for bias in biases]).amax(0)
    if not bool((highest > -math.inf).all()):
        sample = int((highest == -math.inf).nonzero()[0])
        raise ValueError(f"key_bias leaves no key in sample {sample} of {q.shape[0]}: all are -inf")


def check_columns(
    columns: Tensor | Sequence[int] | CheckedColumns,
    batch: int,
    num_keys: int,
    device: torch.device,
) -> Tensor:
    """Key indices as (B, T) int64 on `device`. Raises `ValueError` if they are out of range."""
    is_checked = isinstance(columns, CheckedColumns) and columns.num_keys == num_keys
    given = columns.rows if isinstance(columns, CheckedColumns) else torch.as_tensor(columns)
    if given.dim() not in (1, 2) or given.shape[-1] == 0 or given.is_floating_point():
        raise ValueError(f"columns have to be integers (T,) or (B, T), not {_described(given)}")
    if given.dim() == 2 and given.shape[0] != batch:
        raise ValueError(f"columns have {given.shape[0]} rows for a batch of {batch}")
    if not is_checked:
        low, high = int(given.min()), int(given.max())
        if low < 0 or high >= num_keys:
            wrong = low if low < 0 else high
            raise ValueError(f"columns hold {wrong}, out of the range of {num_keys} keys")
    rows = given if given.dim() == 2 else given.expand(batch, -1)
    return rows.to(device=device, dtype=torch.int64).contiguous()


def check_scale(scale: float | None, width: int) -> float:
    """The scale of the scores, 1/√D unless given."""
    if scale is None:
        return width**-0.5
    if not math.isfinite(scale):
        raise ValueError(f"scale is {scale}: expected a finite number")
    return float(scale)


def without_autocast(device: torch.device) -> torch.autocast:
    """A context in which products on a device are of their factors' own dtype."""
    return torch.autocast(device.type, enabled=False)


def _parse_want(want: str | Sequence[str] | None, per_head: bool) -> RequestedMaps:
    words = [] if want is None else [want] if isinstance(want, str) else list(want)
    if wrong := [word for word in words if word not in WANTS]:
        raise ValueError(f"want holds {wrong[0]!r}: expected 'maps', 'moments', both or None")
    if per_head and "maps" not in words:
        raise ValueError("per_head is for want='maps'")
    return RequestedMaps("maps" in words, "moments" in words, per_head)


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{_dtype_name(value.dtype)} {tuple(value.shape)}"
    return "None" if value is None else type(value).__name__


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

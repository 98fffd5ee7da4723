"""The arguments of the kernels, checked before anything runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MAX_HEAD_WIDTH = 256
WANTS = ("maps", "moments")


@dataclass(frozen=True, slots=True)
class GroupBias:
    """Biases of queries towards groups of keys: which queries see a word, or a reference.

    `groups` (B, M) are integers: the group of each key, or -1 of a key in none. `values` (B, G, N)
    are added to the scores of the keys of each group, by query; -inf hides them from it. `checked`
    says that each query is known to see a key: finding out waits for all pending work of a GPU.
    """

    groups: Tensor
    values: Tensor
    checked: bool = False

    def of_keys(self, queries: slice | Sequence[int] = slice(None)) -> Tensor:
        """The biases (B, n, M) of some queries towards each key."""
        none = torch.zeros_like(self.values[:, :1, queries])
        values = torch.cat([none, self.values[:, :, queries]], 1).mT  # (B, n, 1 + G)
        index = (self.groups.long() + 1)[:, None].expand(-1, values.shape[1], -1)
        return values.gather(-1, index)


class Segment(NamedTuple):
    """Keys (B, H, M, D), values (B, H, M, D), a bias (B, M) of keys, and one of groups, or None."""

    k: Tensor
    v: Tensor
    bias: Tensor | None = None
    group_bias: GroupBias | None = None


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


ExtraKeys = Segment | tuple[Tensor, Tensor, Tensor | None]
"""A further segment, or its keys, values and bias."""


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
    group_bias: GroupBias | None,
    extra: Sequence[ExtraKeys] | None,
    columns: Tensor | Sequence[int] | CheckedColumns | None,
    want: str | Sequence[str] | None,
    per_head: bool,
    scale: float | None,
) -> AttentionInputs:
    """Check the arguments of `attend`; raises `ValueError` that names the wrong one."""
    check_queries(q)
    further = [each if isinstance(each, Segment) else Segment(*each) for each in extra or ()]
    segments = [Segment(k, v, key_bias, group_bias), *further]
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
    batch, num_keys = q.shape[0], segment.k.shape[2]
    if segment.bias is not None:
        name = f"{where}bias" if where else "key_bias"
        _check_bias(q, segment.bias, name, "(B, M)", (batch, num_keys))
    if segment.group_bias is not None:
        _check_groups(q, segment.group_bias, f"{where}group_bias", num_keys)


def _check_groups(q: Tensor, bias: GroupBias, name: str, num_keys: int) -> None:
    groups, values = bias.groups, bias.values
    count = max(1, values.shape[1]) if isinstance(values, Tensor) and values.dim() == 3 else 1
    _check_bias(q, values, f"{name}.values", "(B, G, N)", (q.shape[0], count, q.shape[2]))
    if not isinstance(groups, Tensor) or groups.shape != (q.shape[0], num_keys):
        expected = f"({q.shape[0]}, {num_keys})"
        raise ValueError(f"{name}.groups have to be (B, M) = {expected}, not {_described(groups)}")
    if groups.is_floating_point():
        raise ValueError(f"{name}.groups are {_dtype_name(groups.dtype)}: expected integers")
    if groups.device != q.device:
        raise ValueError(f"{name}.groups are on {groups.device}, q is on {q.device}")
    if not bias.checked:
        low, high = int(groups.min()), int(groups.max())
        if low < -1 or high >= count:
            wrong = low if low < -1 else high
            raise ValueError(f"{name}.groups hold {wrong}: there are {count}, from 0 on, or -1")


def _check_bias(q: Tensor, bias: Tensor, name: str, letters: str, shape: tuple[int, ...]) -> None:
    if not isinstance(bias, Tensor) or bias.shape != shape:
        raise ValueError(f"{name} has to be {letters} = {shape}, not {_described(bias)}")
    if not bias.is_floating_point():
        raise ValueError(f"{name} is {_dtype_name(bias.dtype)}: expected an additive float bias")
    if bias.device != q.device:
        raise ValueError(f"{name} is on {bias.device}, q is on {q.device}")
    if bias.requires_grad:
        raise ValueError(f"{name} requires a gradient, which is not computed: detach it")


def _check_that_keys_are_left(q: Tensor, segments: Sequence[Segment]) -> None:
    """Raise `ValueError` if a query's biases are all -inf: softmax would be 0/0."""
    if any(segment.bias is None and segment.group_bias is None for segment in segments):
        return
    if any(segment.group_bias and segment.group_bias.checked for segment in segments):
        return
    highest = torch.stack([_highest_bias(q, segment) for segment in segments]).amax(0)  # (B, N)
    if not bool((highest > -math.inf).all()):
        sample, query = (int(each) for each in (highest == -math.inf).nonzero()[0])
        name = "key_bias" if segments[0].group_bias is None else "key_bias and group_bias"
        where = f"sample {sample} of {q.shape[0]}"
        where += f", query {query}" if any(each.group_bias for each in segments) else ""
        raise ValueError(f"{name} leaves no key in {where}: all are -inf")


def _highest_bias(q: Tensor, segment: Segment) -> Tensor:
    """The highest bias of a segment's keys for each query, (B, N); a group at a time."""
    batch, num_keys = q.shape[0], segment.k.shape[2]
    bias = segment.bias
    own = q.new_zeros(batch, num_keys) if bias is None else bias.detach()
    own = own.float()[:, None]  # (B, 1, M)
    if segment.group_bias is None:
        return own.amax(-1).expand(-1, q.shape[2])
    groups, values = segment.group_bias.groups[:, None], segment.group_bias.values.float()
    numbers = torch.arange(-1, values.shape[1], device=q.device)[:, None]
    of_group = torch.where(groups == numbers, own, -math.inf).amax(-1)  # (B, 1 + G)
    none = torch.zeros_like(values[:, :1])
    return (of_group[..., None] + torch.cat([none, values], 1)).amax(1)


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

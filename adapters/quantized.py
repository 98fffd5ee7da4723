"""Differences of weights, or their factors, in few bits: whole numbers and a scale for each row.

1 bit is the sign, with the mean absolute value as scale, which is nearest by squared error
(BitDelta, arXiv 2402.10193, eq. 2, with a scale for each row instead of one for each matrix).
With 4 bits the few largest numbers of a row are cut off where that brings the rest nearer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Kind = Literal["sign", "int4", "fp8", "int8"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SCALE = "scale"
DTYPES: Mapping[Kind, torch.dtype] = {
    "sign": torch.uint8,
    "int4": torch.uint8,
    "fp8": torch.float8_e4m3fn,
    "int8": torch.int8,
}
_LARGEST = {"int4": 7.0, "fp8": 448.0, "int8": 127.0}
_BITS: Mapping[Kind, int] = {"sign": 1, "int4": 4}
"""Of numbers of which several are in a byte."""
_MIDDLE = 8
"""What 0 is as a number of 4 bits."""
_CUTS = tuple(step / 20 for step in range(8, 21))
"""Of the largest number of a row, where those of 4 bits may end."""


@dataclass(frozen=True, slots=True)
class Quantized:
    """A difference of a weight (out, …), as `adapters.weight_delta.Difference` has it.

    `values` are (out, …), or of signs (⌈out / 8⌉, …) and of 4 bits (⌈out / 2⌉, …), the lowest bits
    first; `scale` is (out,).
    """

    kind: Kind
    values: Tensor
    scale: Tensor

    @classmethod
    def of(cls, delta: Tensor, kind: Kind) -> "Quantized":
        """The nearest to a difference of two or more dimensions; a row of zeros stays one."""
        whole = delta.float()
        rows = whole.flatten(1).abs()
        if kind == "sign":
            return cls(kind, _packed(whole > 0, 1), rows.mean(1).bfloat16())
        scale = _scale_of_int4(whole) if kind == "int4" else _scale(rows, kind)
        numbers = _divided(whole, scale, kind)
        if kind == "int4":
            return cls(kind, _packed(numbers + _MIDDLE, 4), scale)
        return cls(kind, numbers.to(DTYPES[kind]), scale)

    @property
    def shape(self) -> torch.Size:
        """Of the weight."""
        return torch.Size((len(self.scale), *self.values.shape[1:]))

    @property
    def is_sound(self) -> bool:
        """Whether values and scale have dtypes and shapes that belong together."""
        has_dtype = self.values.dtype == DTYPES[self.kind]
        return has_dtype and belong_together(self.kind, self.values.shape, self.scale.shape)

    def to(self, device: torch.device, dtype: torch.dtype, /) -> Tensor:
        """The difference itself."""
        values = self.values.to(device)
        if self.kind == "sign":
            numbers = _unpacked(values, len(self.scale), 1) * 2 - 1
        elif self.kind == "int4":
            numbers = _unpacked(values, len(self.scale), 4) - _MIDDLE
        else:
            numbers = values.float()
        scale = self.scale.to(device, torch.float32)
        return (numbers * _over_rows(scale, numbers)).to(dtype)

    def state(self, name: str) -> dict[str, Tensor]:
        """`sign.NAME`, `int4.NAME`, `fp8.NAME` or `int8.NAME`, and `scale.NAME`."""
        return {f"{self.kind}.{name}": self.values, f"{SCALE}.{name}": self.scale}


def belong_together(kind: Kind, values: Sequence[int], scale: Sequence[int]) -> bool:
    """Whether values and scales of some shapes can be those of a `Quantized`."""
    if len(values) < 2 or 0 in values or len(scale) != 1:
        return False
    return values[0] == -(-scale[0] * _BITS.get(kind, 8) // 8)


def _over_rows(numbers: Tensor, like: Tensor) -> Tensor:
    """A number for each row (out,) of a tensor (out, …), to multiply it by."""
    return numbers.reshape(-1, *(1,) * (like.ndim - 1))


def _scale(rows: Tensor, kind: Kind) -> Tensor:
    """That with which the largest number of each row is the largest there is."""
    return (rows.amax(1) / _LARGEST[kind]).bfloat16()


def _divided(whole: Tensor, scale: Tensor, kind: Kind) -> Tensor:
    """The numbers of a kind that are nearest to rows over their scales."""
    divisor = _over_rows(torch.where(scale > 0, scale.float(), 1.0), whole)
    numbers = (whole / divisor).clamp(-_LARGEST[kind], _LARGEST[kind])
    return numbers if kind == "fp8" else numbers.round()


def _scale_of_int4(whole: Tensor) -> Tensor:
    """For each row the scale of `_CUTS` with the least squared error."""
    widest = _scale(whole.flatten(1).abs(), "int4").float()
    found, least = widest.bfloat16(), torch.full_like(widest, torch.inf)
    for cut in _CUTS:
        scale = (widest * cut).bfloat16()
        rounded = _divided(whole, scale, "int4") * _over_rows(scale.float(), whole)
        error = (rounded - whole).flatten(1).square().sum(1)
        found = torch.where(error < least, scale, found)
        least = torch.minimum(error, least)
    return found


def _packed(numbers: Tensor, bits: int) -> Tensor:
    """Numbers of so many bits (out, …) as bytes (⌈out · bits / 8⌉, …)."""
    each = 8 // bits
    missing = -len(numbers) % each
    padded = torch.cat([numbers, numbers.new_zeros(missing, *numbers.shape[1:])])
    grouped = padded.reshape(-1, each, *numbers.shape[1:]).to(torch.uint8)
    return (grouped << _places(bits, grouped)).sum(1, dtype=torch.uint8)


def _unpacked(values: Tensor, rows: int, bits: int) -> Tensor:
    """The inverse of `_packed`."""
    found = (values[:, None] >> _places(bits, values[:, None])) & (1 << bits) - 1
    return found.flatten(0, 1)[:rows].float()


def _places(bits: int, grouped: Tensor) -> Tensor:
    """Where in a byte each of its numbers begins, along the second dimension."""
    places = torch.arange(0, 8, bits, device=grouped.device, dtype=torch.uint8)
    return places.reshape(1, -1, *(1,) * (grouped.ndim - 2))

"""Whole differences of weights in few bits: a number of 1 or 8 bits, and a scale for each row.

1 bit is the sign, with the mean absolute value as scale, which is nearest by squared error
(BitDelta, arXiv 2402.10193, eq. 2, with a scale for each row instead of one for each matrix).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Kind = Literal["sign", "fp8", "int8"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SCALE = "scale"
DTYPES: Mapping[Kind, torch.dtype] = {
    "sign": torch.uint8,
    "fp8": torch.float8_e4m3fn,
    "int8": torch.int8,
}
_LARGEST = {"fp8": 448.0, "int8": 127.0}
_BITS = 8


@dataclass(frozen=True, slots=True)
class Quantized:
    """A difference of a weight (out, …), as `adapters.weight_delta.Difference` has it.

    `values` are (out, …), or of signs (⌈out / 8⌉, …), the lowest bit first; `scale` is (out,).
    """

    kind: Kind
    values: Tensor
    scale: Tensor

    @classmethod
    def of(cls, delta: Tensor, kind: Kind) -> "Quantized":
        """The nearest to a difference of two or more dimensions; a row of zeros stays one."""
        whole = delta.float()
        rows = whole.flatten(1).abs()
        over = (-1, *(1,) * (whole.ndim - 1))
        if kind == "sign":
            return cls(kind, _packed(whole > 0), rows.mean(1).bfloat16())
        scale = (rows.amax(1) / _LARGEST[kind]).bfloat16()
        divisor = torch.where(scale > 0, scale.float(), 1.0).reshape(over)
        numbers = (whole / divisor).clamp(-_LARGEST[kind], _LARGEST[kind])
        values = numbers.round() if kind == "int8" else numbers
        return cls(kind, values.to(DTYPES[kind]), scale)

    @property
    def shape(self) -> torch.Size:
        """Of the weight."""
        return torch.Size((len(self.scale), *self.values.shape[1:]))

    @property
    def is_sound(self) -> bool:
        """Whether values and scale have dtypes and shapes that belong together."""
        count = len(self.values) if self.values.ndim > 1 else -1
        rows = -(-len(self.scale) // _BITS) if self.kind == "sign" and self.scale.ndim else None
        return (
            self.values.dtype == DTYPES[self.kind]
            and self.scale.ndim == 1
            and count == (len(self.scale) if rows is None else rows)
        )

    def to(self, device: torch.device, dtype: torch.dtype, /) -> Tensor:
        """The difference itself."""
        values = self.values.to(device)
        numbers = _unpacked(values, len(self.scale)) if self.kind == "sign" else values.float()
        scale = self.scale.to(device, torch.float32).reshape(-1, *(1,) * (values.ndim - 1))
        return (numbers * scale).to(dtype)

    def state(self, name: str) -> dict[str, Tensor]:
        """`sign.NAME`, `fp8.NAME` or `int8.NAME`, and `scale.NAME`."""
        return {f"{self.kind}.{name}": self.values, f"{SCALE}.{name}": self.scale}


def _packed(bits: Tensor) -> Tensor:
    """Bits (out, …) as bytes (⌈out / 8⌉, …)."""
    missing = -len(bits) % _BITS
    padded = torch.cat([bits, bits.new_zeros(missing, *bits.shape[1:])])
    grouped = padded.reshape(-1, _BITS, *bits.shape[1:]).to(torch.uint8)
    weights = (1 << torch.arange(_BITS)).to(torch.uint8).reshape(1, -1, *(1,) * (bits.ndim - 1))
    return (grouped * weights).sum(1, dtype=torch.uint8)


def _unpacked(values: Tensor, rows: int) -> Tensor:
    """The inverse of `_packed`: 1 for a bit, -1 for none."""
    places = torch.arange(_BITS, device=values.device, dtype=torch.uint8)
    places = places.reshape(1, -1, *(1,) * (values.ndim - 1))
    bits = (values[:, None] >> places) & 1
    return bits.flatten(0, 1)[:rows].float() * 2 - 1

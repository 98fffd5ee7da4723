"""Changes of weights that other tools store as products, multiplied out when they are added.

LoHa is a Hadamard product of two matrices of low rank, LoKr a Kronecker product (LyCORIS, arXiv
2309.14859, sections 3.2 and 3.3). A kernel's may have a core tensor (Tucker decomposition).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ...registry.errors import InvalidWeights
from ..limits import MAX_RANK


@dataclass(frozen=True, slots=True)
class Product:
    """The parts of a change of a weight with `shape`, by the names of `recognising`, and its scale.

    It is asked for its shape and converted, as a tensor is, and so takes no memory before.
    """

    parts: Mapping[str, Tensor]
    shape: torch.Size
    scale: float = 1.0

    def to(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The whole difference."""
        parts = {name: each.to(device, torch.float32) for name, each in self.parts.items()}
        whole = _hadamard(parts) if "w1_a" in parts else _kronecker(parts)
        return (self.scale * whole).reshape(self.shape).to(dtype)


def check_product(parts: Mapping[str, Tensor], size: int) -> None:
    """Raise `InvalidWeights` unless parts multiply out to so many numbers, and no more on the way.

    Factors of low rank are matrices, and those of a core have its ranks.
    """
    if "w1_a" in parts:
        sizes = [_pair_size(parts, each) for each in ("1", "2")]
        fits = sizes == [size, size]
    else:
        fits = _factor_size(parts, "kw1") * _factor_size(parts, "kw2") == size
    if not fits:
        raise InvalidWeights("its factors do not multiply out to a weight's shape")


def rank_of(parts: Mapping[str, Tensor]) -> int | None:
    """The rank by which alpha is divided; None if nothing is of low rank, and alpha counts not."""
    for name in ("down", "w1_b", "kw2_b", "kw1_b"):
        if name in parts:
            return len(parts[name])
    return None


def with_core(up: Tensor, mid: Tensor, down: Tensor, inputs: int) -> Tensor:
    """The factor `down` (r, in, k, k) of a LoRA with a core: 1x1, then kxk, then 1x1.

    `up` is (out, r), `mid` (r, q, k, k), `down` (q, in); `inputs` is in · k · k. Raises
    `InvalidWeights` unless they fit.
    """
    fits = mid.ndim == 4 and (up.shape[1], len(down)) == mid.shape[:2] and len(mid) <= MAX_RANK
    if not fits or down.flatten(1).shape[1] * prod(mid.shape[2:]) != inputs:
        raise InvalidWeights("its core does not fit a weight's shape")
    return torch.einsum("r q k l, q i -> r i k l", mid, down.flatten(1))


def _hadamard(parts: Mapping[str, Tensor]) -> Tensor:
    first, second = (
        _pair(parts, f"w{each}_a", f"w{each}_b", f"t{each}").flatten(1) for each in ("1", "2")
    )
    return first * second


def _kronecker(parts: Mapping[str, Tensor]) -> Tensor:
    first, second = (
        parts[name] if name in parts else _pair(parts, f"{name}_a", f"{name}_b", f"kt{name[-1]}")
        for name in ("kw1", "kw2")
    )
    first = first.reshape(*first.shape, *(1,) * (second.ndim - first.ndim))
    return torch.kron(first, second.contiguous())


def _pair(parts: Mapping[str, Tensor], left: str, right: str, core: str) -> Tensor:
    """The product of two matrices, or with a core (r, q, k, k) a kernel (out, in, k, k).

    Then `left` is (r, out) and `right` (q, in).
    """
    if core in parts:
        return torch.einsum("i j k l, i p, j r -> p r k l", parts[core], parts[left], parts[right])
    return parts[left] @ parts[right].flatten(1)


def _pair_size(parts: Mapping[str, Tensor], number: str, prefix: str = "") -> int:
    """How many numbers a pair multiplies out to; 0 if it does not."""
    left, right = parts[f"{prefix}w{number}_a"].shape, parts[f"{prefix}w{number}_b"].shape
    core = parts.get(f"{prefix}t{number}")
    if len(left) != 2 or len(right) < 2 or max(right[0], min(left)) > MAX_RANK:
        return 0
    if core is None:
        return left[0] * prod(right[1:]) if left[1] == right[0] else 0
    fits = core.ndim == 4 and len(right) == 2 and core.shape[:2] == (left[0], right[0])
    return left[1] * right[1] * prod(core.shape[2:]) if fits else 0


def _factor_size(parts: Mapping[str, Tensor], name: str) -> int:
    if name in parts:
        return parts[name].numel() if parts[name].ndim in (2, 4) else 0
    return _pair_size(parts, name[-1], "k")

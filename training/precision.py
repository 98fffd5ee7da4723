"""In which numbers a training computes, and in which it keeps what it learns."""

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn


def make_accelerator(mixed_precision: str) -> Accelerator:
    """An accelerator of `no`, `bf16`, or `auto`: bf16 on a GPU that has it, else `no`.

    Accelerate has one precision for a whole process; a script may train twice.
    """
    AcceleratorState._reset_state()
    return Accelerator(mixed_precision=_best() if mixed_precision == "auto" else mixed_precision)


def _best() -> str:
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported(False) else "no"


def dtype_of(network: nn.Module) -> torch.dtype:
    """The type of a network's floating-point parameters."""
    return next(each.dtype for each in network.parameters() if each.is_floating_point())


def cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Bring all parameters to one type; diffusers' own `to` warns without a cause."""
    nn.Module.to(module, dtype=dtype)

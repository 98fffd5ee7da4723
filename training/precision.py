"""Numeric precision: mixed precision for computing, float32 for what is trained."""

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn


def make_accelerator(mixed_precision: str) -> Accelerator:
    """An accelerator with `no`, `bf16` or `auto` (bf16 on a GPU that has it, else `no`).

    Accelerate keeps one precision per process; it is reset, as a script may train twice.
    """
    AcceleratorState._reset_state()
    chosen = best_precision() if mixed_precision == "auto" else mixed_precision
    return Accelerator(mixed_precision=chosen)


def best_precision() -> str:
    """What `auto` stands for on this machine."""
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported(False) else "no"


def dtype_of(network: nn.Module) -> torch.dtype:
    """The dtype of a network's floating-point parameters."""
    return next(each.dtype for each in network.parameters() if each.is_floating_point())


def cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Convert all parameters to one dtype; diffusers' own `to` warns without a cause."""
    nn.Module.to(module, dtype=dtype)

"""Numeric precision: mixed precision for computing, float32 for what is trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from .distributed import num_processes


def make_accelerator(mixed_precision: str, device: torch.device) -> Accelerator:
    """An accelerator with `no`, `bf16` or `auto` (bf16 on a GPU that has it, else `no`).

    Accelerate keeps one precision and one device per process; they are reset, as a script may train
    twice. `device` is where the base model is.
    """
    is_alone = num_processes() == 1
    AcceleratorState._reset_state(reset_partial_state=is_alone)
    chosen = best_precision(device) if mixed_precision == "auto" else mixed_precision
    return Accelerator(mixed_precision=chosen, cpu=is_alone and device.type == "cpu")


def best_precision(device: torch.device) -> str:
    """What `auto` stands for on a device."""
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(False) else "no"


@contextmanager
def autocast_within(network: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """Inside the context a network runs in mixed precision, and nothing else does."""
    forward = network.forward

    def mixed(*arguments: Any, **options: Any) -> Any:
        with accelerator.autocast():
            return forward(*arguments, **options)

    network.forward = mixed
    try:
        yield
    finally:
        del network.forward  # that of its class shows again


def dtype_of(network: nn.Module) -> torch.dtype:
    """The dtype of a network's floating-point parameters."""
    return next(each.dtype for each in network.parameters() if each.is_floating_point())


def cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Convert all parameters to one dtype; diffusers' own `to` warns without a cause."""
    nn.Module.to(module, dtype=dtype)

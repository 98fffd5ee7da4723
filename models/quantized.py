"""Linear layers whose frozen weights are held in 8 or 4 bits, and whole only while they compute.

8bit is a signed byte for each weight and a scale for each output; 4bit is NF4 in blocks of 64
(QLoRA, arXiv 2305.14314, section 3), by functions of bitsandbytes. Its layers are not used: that of
8 bits keeps its inputs, whatever gradient checkpointing does, and that of 4 bits has no gradient
once it has drawn on a CPU with bf16.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (everyone's name for it)

Bits = Literal["8bit", "4bit"]
_BLOCK = 64
"""Weights that share a scale in 4 bits."""


def quantize(network: nn.Module, bits: Bits) -> dict[str, nn.Linear]:
    """Replace a network's linear layers by quantised ones; returns those that were there, by name.

    Their weights are moved to main memory, one after another. Convolutions stay as they are.
    """
    found = {name: each for name, each in network.named_modules() if type(each) is nn.Linear}
    for name, layer in found.items():
        network.set_submodule(name, QuantizedLinear(layer, bits))
        if not layer.weight.is_meta:
            layer.weight.data = layer.weight.data.cpu()
    return found


class QuantizedLinear(nn.Linear):
    """A linear layer (..., in) -> (..., out) with a frozen, quantised weight.

    `weight` is int8 (out, in), or uint8 (out · in / 2, 1) with two weights in a byte; `scales` are
    float32, (out, 1) or one for each block. Gradients pass to the input.
    """

    scales: Tensor

    def __init__(self, layer: nn.Linear, bits: Bits) -> None:
        nn.Module.__init__(self)  # no other weight is made
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bits: Bits = bits
        codes, scales = (_to_int8 if bits == "8bit" else _to_nf4)(layer.weight.detach())
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("scales", scales)
        self.bias = layer.bias

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name that it has in torch)
        """In autocast's type, else in the input's."""
        dtype = _autocast_type(input.device.type) or input.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return _Product.apply(input.to(dtype), bias, self)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight (out, in)."""
        if self.bits == "8bit":
            return self.weight.to(dtype) * self.scales.to(dtype)
        shape = torch.Size((self.out_features, self.in_features))
        return _from_nf4(self.weight, self.scales, shape, dtype)


class _Product(torch.autograd.Function):
    """x Wᵀ + b, for which nothing but the quantised weight is kept."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, bias: Tensor | None, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(states, layer.dequantized(states.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return gradient @ ctx.layer.dequantized(gradient.dtype), None, None


def _autocast_type(device: str) -> torch.dtype | None:
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


def _to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Signed bytes, and the scales that make them weights: absmax / 127 of each output."""
    whole = weight.float()
    scales = whole.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return (whole / scales).round().to(torch.int8), scales


def _to_nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Two weights in a byte, and the absmax of each block."""
    if weight.is_meta:  # shapes are known without the package
        count = weight.numel()
        return (
            weight.new_empty((-(-count // 2), 1), dtype=torch.uint8),
            weight.new_empty(-(-count // _BLOCK), dtype=torch.float32),
        )
    quantized = _functions().quantize_4bit(weight.contiguous(), blocksize=_BLOCK, quant_type="nf4")
    return quantized[0], quantized[1].absmax


def _from_nf4(codes: Tensor, scales: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    if codes.is_meta:
        return codes.new_empty(shape, dtype=dtype)
    functions = _functions()
    state = functions.QuantState(scales, shape, blocksize=_BLOCK, quant_type="nf4", dtype=dtype)
    return functions.dequantize_4bit(codes, state)


def _functions() -> Any:
    from bitsandbytes import functional

    return functional

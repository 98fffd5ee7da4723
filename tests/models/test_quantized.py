"""Linear layers in 8 and 4 bits: their weights, their gradients, and their own ones again."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from conceptry.models.loading import LoadedBase
from conceptry.models.quantized import QuantizedLinear, quantize
from conceptry.training.memory import Live
from tiny_fixtures import tree
from torch import nn
from torch.utils.checkpoint import checkpoint

BITS: Any = ["8bit", "4bit"]
ERRORS = {"8bit": 0.01, "4bit": 0.12}
"""Relative error of normal weights."""


def skip_where_missing(bits: str) -> None:
    if bits == "4bit":
        pytest.importorskip("bitsandbytes")


def layers(sizes: tuple[int, ...] = (7, 70, 33)) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(*each) for each in pairwise(sizes)))


@pytest.mark.parametrize("bits", BITS)
def test_weights_are_nearly_what_they_were(bits: Any) -> None:
    skip_where_missing(bits)
    layer = nn.Linear(130, 70)
    with torch.no_grad():
        layer.weight.normal_()
        layer.weight[3] = 0
    found = QuantizedLinear(layer, bits).dequantized(torch.float32)
    assert found.shape == layer.weight.shape
    assert found[3].abs().max() == 0
    assert (found - layer.weight).norm() < ERRORS[bits] * layer.weight.norm()


def test_a_byte_is_off_by_half_a_step_of_its_row_at_most() -> None:
    layer = nn.Linear(64, 9)
    found = QuantizedLinear(layer, "8bit").dequantized(torch.float32)
    steps = layer.weight.abs().amax(1, keepdim=True) / 127
    assert ((found - layer.weight).abs() <= steps / 2 + 1e-7).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_and_gradients_are_those_of_its_weights(bits: Any, dtype: torch.dtype) -> None:
    skip_where_missing(bits)
    layer = nn.Linear(20, 30).to(dtype)
    few = QuantizedLinear(layer, bits)
    whole = nn.Linear(20, 30).to(dtype)
    with torch.no_grad():
        whole.weight.copy_(few.dequantized(dtype))
        whole.bias.copy_(layer.bias)
    states = torch.randn(2, 5, 20, dtype=dtype, requires_grad=True)
    upstream = torch.randn(2, 5, 30, dtype=dtype)
    expected = torch.autograd.grad(whole(states), states, upstream)[0]
    found = torch.autograd.grad(few(states), states, upstream)[0]
    assert few(states).equal(whole(states))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("bits", BITS)
def test_autocast_is_followed(bits: Any) -> None:
    skip_where_missing(bits)
    few = QuantizedLinear(nn.Linear(20, 30), bits)
    with torch.autocast("cpu", torch.bfloat16):
        assert few(torch.randn(2, 20)).dtype == torch.bfloat16
    assert few(torch.randn(2, 20)).dtype == torch.float32


@pytest.mark.parametrize("bits", BITS)
def test_it_is_as_small_as_its_bits_say_and_as_small_as_is_counted(bits: Any) -> None:
    skip_where_missing(bits)
    layer = nn.Linear(256, 512, bias=False)
    few, counted = (QuantizedLinear(each, bits) for each in (layer, layer.to("meta")))
    sizes = [(each.weight.nbytes, each.scales.nbytes) for each in (few, counted)]
    assert sizes[0] == sizes[1]
    assert sum(sizes[0]) / layer.weight.nbytes == pytest.approx(int(bits[0]) / 32, rel=0.13)


@pytest.mark.parametrize("bits", BITS)
def test_checkpointed_layers_keep_their_inputs_alone(bits: Any) -> None:
    skip_where_missing(bits)
    held: list[int] = []
    for make in (lambda: layers((64,) * 9), lambda: few_of(layers((64,) * 9), bits)):
        states = torch.randn(512, 64, requires_grad=True)
        blocks = make().requires_grad_(False)
        with Live() as live:
            for i in range(0, 8, 4):
                states = checkpoint(blocks[i : i + 4], states, use_reentrant=False)
            held.append(live.bytes)
        assert isinstance(states, torch.Tensor)
        states.sum().backward()
    assert held[1] <= held[0]


def few_of(network: nn.Sequential, bits: Any) -> nn.Sequential:
    quantize(network, bits)
    return network


@pytest.mark.parametrize("bits", BITS)
def test_a_base_model_is_the_same_afterwards(bits: Any, base: LoadedBase) -> None:
    skip_where_missing(bits)
    backbone = base.backbone
    before = tree(backbone)
    backbone.quantize(bits)
    backbone.quantize(bits)  # does nothing more
    kinds = {type(each) for each in backbone.denoiser.modules()}
    assert QuantizedLinear in kinds
    assert nn.Linear not in kinds
    assert nn.Conv2d in kinds
    assert backbone.non_finite_parameter() is None
    backbone.unquantize()
    backbone.unquantize()
    assert tree(backbone) == before

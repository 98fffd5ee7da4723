"""The losses are those of the papers."""

from typing import Any

import pytest
import torch
from conceptry.kernels import attend
from conceptry.methods.attention_losses import moment_matching_loss
from torch import Tensor

MEAN_WEIGHT, VARIANCE_WEIGHT = 2.0, 5.0


def as_the_paper_has_it(layers: list[Tensor], own: list[int], category: int) -> Tensor:
    """Equations 4 and 5, from whole matrices (B, H, N, T), sample by sample."""
    total = torch.zeros((), dtype=torch.float64)
    for weights in layers:
        for sample in weights:
            for token in own:
                mine, its = sample[..., token].flatten(), sample[..., category].flatten()
                total = total + MEAN_WEIGHT * (mine.mean() - its.mean()) ** 2 / len(own)
                gap = mine.var(unbiased=True) - its.var(unbiased=True)
                total = total + VARIANCE_WEIGHT * gap**2 / len(own)
    return total / len(layers)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("num_tokens", [1, 3])
def test_moment_matching_is_the_papers_formula(batch: int, num_tokens: int) -> None:
    generator = torch.Generator().manual_seed(batch + num_tokens)

    def states(length: int) -> Tensor:
        shape = (batch, 2, length, 8)
        values = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
        return values.requires_grad_(True)

    layers = [(states(n), states(11), states(11)) for n in (16, 9)]
    own, category = list(range(4, 4 + num_tokens)), 4 + num_tokens
    expected = as_the_paper_has_it(
        [(q @ k.mT * 8**-0.5).softmax(-1) for q, k, _ in layers], own, category
    )
    moments = {
        str(i): attend(q, k, v, columns=[*own, category], want="moments").moments
        for i, (q, k, v) in enumerate(layers)
    }
    loss = moment_matching_loss(
        moments,  # pyright: ignore[reportArgumentType]
        mean_weight=MEAN_WEIGHT,
        variance_weight=VARIANCE_WEIGHT,
    )
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    leaves = [leaf for q, k, _ in layers for leaf in (q, k)]
    ours, theirs = torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves)
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-6, atol=1e-12)


def test_the_mean_is_the_sum_by_the_batch() -> None:
    moments = {"a": torch.rand(4, 3, 2), "b": torch.rand(4, 3, 2)}
    weights: dict[str, Any] = {"mean_weight": 1.0, "variance_weight": 1.0}
    whole = moment_matching_loss(moments, **weights)
    assert moment_matching_loss(moments, reduction="mean", **weights) == pytest.approx(whole / 4)
    with pytest.raises(ValueError, match="reduction is 'max'"):
        moment_matching_loss(moments, reduction="max", **weights)

"""Muon: momentum whose matrices are made orthogonal, for layers that are matrices.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon. `torch.optim.Muon` takes neither
convolutions nor rates of learning that a CUDA graph may change.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_LIKE_ADAMW = 0.2
"""What a step of AdamW is in the root mean square of its rate (Liu et al. 2025, section 2.2)."""


class Muon(torch.optim.Optimizer):
    """Of parameters (out, in, …), each seen as a matrix (out, in · …).

    A step is as large as one of AdamW at the same rate, so that both can follow one schedule. Each
    group has its `lr`, a scalar tensor.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take a step with the gradients that are there."""
        del closure
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group["lr"])

    def _step(self, parameter: nn.Parameter, gradient: Tensor, rate: Tensor) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        matrix = gradient.lerp(state["momentum"], MOMENTUM).flatten(1)
        update = orthogonal(matrix) * (_LIKE_ADAMW * max(matrix.shape) ** 0.5)
        parameter.sub_(update.reshape(parameter.shape) * rate)


def orthogonal(matrix: Tensor) -> Tensor:
    """Of a matrix (m, n), nearly the U Vᵀ of its singular value decomposition, in its dtype.

    Five steps of a Newton-Schulz iteration, after which singular values are in 0.7..1.2.
    """
    a, b, c = _QUINTIC
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    found = wide.bfloat16()
    found = found / (found.norm() + 1e-7)
    for _ in range(_ITERATIONS):
        gram = found @ found.mT
        found = a * found + (b * gram + c * gram @ gram) @ found
    return (found if wide is matrix else found.mT).to(matrix.dtype)

"""Random attention problems, and attention as plain torch computes it in the same dtype."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from conceptry.kernels import GroupBias, Segment
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """A problem by its sizes. `extra` are the lengths of further segments.

    `groups` is the number of groups of keys in the first segment, and in every other further one.
    """

    dtype: str = "float32"
    batch: int = 2
    heads: int = 2
    queries: int = 17
    keys: int = 77
    width: int = 40
    bias: bool = False
    groups: int = 0
    extra: tuple[int, ...] = ()
    columns: str = "some"
    per_head: bool = False

    def __str__(self) -> str:
        words = [self.dtype, f"n{self.queries}", f"m{self.keys}", f"d{self.width}"]
        words += ["bias"] * self.bias + [f"groups{self.groups}"] * (self.groups > 0)
        words += [f"extra{n}" for n in self.extra]
        words += [f"columns-{self.columns}"] * (self.columns != "some")
        return "-".join(words + ["per_head"] * self.per_head)

    def with_dtype(self, dtype: str) -> "Case":
        return replace(self, dtype=dtype)


@dataclass
class Inputs:
    """Tensors of a case in float64, whose values its dtype can hold."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    groups: GroupBias | None
    extra: list[Segment]
    columns: Tensor
    per_head: bool

    def leaves(self) -> list[Tensor]:
        return [self.q, self.k, self.v, *(part for each in self.extra for part in each[:2])]

    def to(self, dtype: torch.dtype) -> "Inputs":
        def leaf(tensor: Tensor) -> Tensor:
            return tensor.detach().to(dtype).requires_grad_(True)

        extra = [each._replace(k=leaf(each.k), v=leaf(each.v)) for each in self.extra]
        return replace(self, q=leaf(self.q), k=leaf(self.k), v=leaf(self.v), extra=extra)

    def arguments(self) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]:
        """As `attend` takes them."""
        options = {"key_bias": self.bias, "group_bias": self.groups, "extra": self.extra}
        options |= {"columns": self.columns, "per_head": self.per_head}
        return (self.q, self.k, self.v), options


def make(case: Case, seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    dtype = DTYPES[case.dtype]

    def normal(*shape: int) -> Tensor:
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        return value.to(dtype).double().to(DEVICE)

    def bias(length: int) -> Tensor:
        value = torch.randn(case.batch, length, generator=generator)
        value[:, 1::5] = float("-inf")
        return value.to(DEVICE)

    def groups(length: int) -> GroupBias | None:
        """The first key, which no other bias hides, is in no group."""
        if not case.groups:
            return None
        numbers = torch.randint(-1, case.groups, (case.batch, length), generator=generator)
        numbers[:, 0] = -1
        values = torch.randn(case.batch, case.groups, case.queries, generator=generator)
        values[:, :, ::3] = float("-inf")
        return GroupBias(numbers.to(DEVICE), values.to(DEVICE))

    b, h, d = case.batch, case.heads, case.width
    return Inputs(
        q=normal(b, h, case.queries, d),
        k=normal(b, h, case.keys, d),
        v=normal(b, h, case.keys, d),
        bias=bias(case.keys) if case.bias else None,
        groups=groups(case.keys),
        extra=[
            Segment(
                normal(b, h, n, d),
                normal(b, h, n, d),
                bias(n) if i % 2 == 0 else None,
                groups(n) if i % 2 else None,
            )
            for i, n in enumerate(case.extra)
        ],
        columns=_columns(case, generator),
        per_head=case.per_head,
    )


def _columns(case: Case, generator: torch.Generator) -> Tensor:
    last = case.keys - 1
    if case.columns == "all":
        return torch.arange(case.keys)
    if case.columns == "per-sample":
        return torch.randint(0, case.keys, (case.batch, 3), generator=generator)
    if case.columns == "edges":
        return torch.tensor([0, last])
    if case.columns == "repeated":
        return torch.tensor([last, 0, last, last])
    return torch.randint(0, case.keys, (2,), generator=generator)


def plain_attention(inputs: Inputs) -> list[Tensor]:
    """Output and maps with the whole matrix in memory, in the inputs' dtype; moments of those.

    Moments are at least float32: in float16 their gradients would overflow.
    """
    q, segments = inputs.q, [(inputs.k, inputs.v, inputs.bias, inputs.groups), *inputs.extra]
    scores = []
    for k, _, bias, groups in segments:
        score = q @ k.mT * q.shape[-1] ** -0.5
        score = score if bias is None else score + bias[:, None, None, :].to(q.dtype)
        scores.append(score if groups is None else score + mask_of(groups)[:, None].to(q.dtype))
    weights = torch.cat(scores, -1).softmax(-1)
    output = weights @ torch.cat([v for _, v, *_ in segments], dim=2)
    rows = inputs.columns.to(q.device)
    rows = rows if rows.dim() == 2 else rows.expand(q.shape[0], -1)
    columns = weights.gather(-1, rows[:, None, None, :].expand(*weights.shape[:3], -1))
    maps = columns.mT if inputs.per_head else columns.mT.mean(1)
    values = columns.permute(0, 3, 1, 2).flatten(2)
    values = values.to(torch.promote_types(q.dtype, torch.float32))
    return [output, maps, torch.stack([values.mean(-1), values.var(-1)], -1)]


def mask_of(bias: GroupBias) -> Tensor:
    """The whole mask (B, N, M) that a group bias stands for."""
    return torch.stack(
        [
            torch.stack(
                [
                    torch.zeros_like(values[0]) if group < 0 else values[group]
                    for group in groups.tolist()
                ],
                -1,
            )
            for groups, values in zip(bias.groups, bias.values, strict=True)
        ]
    )


Answers = tuple[list[Tensor], list[Tensor], list[Tensor]]
"""Results and gradients: ours, torch's in the same dtype, and the truth."""


def mean_norms(case: Case, answers: Callable[[Case, int], Answers]) -> Tensor:
    """Of our errors, torch's errors, and the true values, (R, 3), each the root of a mean square.

    The mean is over so many seeds that there are 32 rows of A: the errors of few are chance.
    """
    rows = case.batch * case.heads * case.queries
    squares = [
        [
            [float(part.square().sum()) for part in (got - true, theirs - true, true)]
            for got, theirs, true in zip(*answers(case, seed), strict=True)
        ]
        for seed in range(math.ceil(32 / rows))
    ]
    return torch.tensor(squares, dtype=torch.float64).mean(0).sqrt()


def cut_less_finely(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other blocks where there are thousands of queries or keys: still several, but few.

    The interpreter's time goes with the number of blocks, and a map of 4096 by 4096 has 16,384 of
    32 by 32. Sizes up to 1024 by 111 keep the blocks that a GPU gets.
    """
    if DEVICE != "cpu" or max(case.queries, case.keys) <= 1024:
        return
    from conceptry.kernels import triton_attention, triton_distance

    if case.queries * case.keys > 128 * 1024:
        larger = {side: 512 for side in ("queries", "keys") if getattr(case, side) >= 1024}
    else:
        larger = {"queries": 16, "keys": 64} if case.keys > 1024 else {"queries": 64}
    for module in (triton_attention, triton_distance):
        for name in {"forward_blocks", "backward_blocks"} & set(vars(module)):
            usual = vars(module)[name]

            def blocks(width: int, dtype: torch.dtype, usual: Any = usual, **options: bool) -> Any:
                return replace(usual(width, dtype, **options), **larger)

            monkeypatch.setattr(module, name, blocks)

"""The squared distance of two maps against the same in float64, every backend."""

import os
from typing import Any

import pytest
import torch
from conceptry.kernels import chunked, map_distance
from long import quick_for
from problems import DEVICE, DTYPES, Answers, Case, cut_less_finely, mean_norms
from torch import Tensor

CASES = [
    *(Case(dtype=dtype) for dtype in ("float16", "bfloat16")),
    *(Case(width=width, queries=33) for width in (32, 160)),
    *(Case(queries=n, keys=m) for n, m in ((17, 1), (65, 111))),
]
MORE = [
    *(Case(width=width, queries=33) for width in (64, 80)),
    *(Case(queries=n, keys=m) for n in (1, 17, 65) for m in (1, 5, 77, 111)),
]
GRID = [
    Case(dtype=dtype, batch=1, queries=n, keys=m, width=width)
    for dtype in DTYPES
    for width in (32, 40, 64, 80, 160)
    for n in (1, 63, 1024, 4096)
    for m in (1, 64, 77, 4096)
]


@pytest.fixture(params=["torch", "triton"], autouse=True)
def _backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "triton":
        pytest.importorskip("triton")
    monkeypatch.setenv("CONCEPTRY_ATTENTION", request.param)


def tensors(case: Case, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(case.batch, case.heads, n, case.width) for n in (case.queries, case.keys, case.keys)]
    q, k_a, gap = (torch.randn(shape, generator=generator) for shape in shapes)
    rounded = [part.to(DTYPES[case.dtype]) for part in (q, k_a, k_a + 0.3 * gap)]
    return [part.double().to(DEVICE) for part in rounded]


def plain(q: Tensor, k_a: Tensor, k_b: Tensor, columns: list[int] | None, mean: bool) -> Tensor:
    scale = q.shape[-1] ** -0.5
    a = (q @ k_a.mT * scale).softmax(-1)
    target = (q.detach() @ k_b.detach().mT * scale).softmax(-1)
    squares = (a - target).square()
    squares = squares if columns is None else squares[..., columns]
    return squares.mean((1, 2, 3)) if mean else squares.sum((2, 3)).mean(1)


def with_gradients(result: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    upstream = torch.linspace(1, 2, len(result), dtype=result.dtype, device=result.device)
    gradients = torch.autograd.grad(result, leaves, upstream)
    return [tensor.detach().double() for tensor in (result, *gradients)]


def check(case: Case, columns: list[int] | None = None, reduction: str = "sum") -> None:
    dtype = DTYPES[case.dtype]

    def run(function: Any, dtype: torch.dtype, seed: int) -> list[Tensor]:
        q, k_a, k_b = (part.to(dtype).requires_grad_(True) for part in tensors(case, seed))
        return with_gradients(function(q, k_a, k_b), [q, k_a])

    def theirs(q: Tensor, k_a: Tensor, k_b: Tensor) -> Tensor:
        return plain(q, k_a, k_b, columns, reduction == "mean")

    def ours(q: Tensor, k_a: Tensor, k_b: Tensor) -> Tensor:
        return map_distance(q, k_a, k_b, columns=columns, reduction=reduction)

    def answers(_: Case, seed: int) -> Answers:
        return run(ours, dtype, seed), run(theirs, dtype, seed), run(theirs, torch.float64, seed)

    floor = 16 * torch.finfo(dtype).eps  # the difference of nearly equal maps loses digits
    for error, plain_error, size in mean_norms(case, answers).tolist():
        assert error <= max(2 * plain_error, floor * size)


@pytest.mark.parametrize("case", quick_for(len(CASES), CASES + MORE), ids=str)
def test_agrees_with_float64(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("chunk", [1, 4096, 65536])
def test_chunks_of_any_size(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "CHUNK_BYTES", chunk)
    check(Case(batch=3))


@pytest.mark.grid
@pytest.mark.parametrize("case", GRID, ids=str)
def test_agrees_with_float64_on_the_whole_grid(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.environ["CONCEPTRY_ATTENTION"] == "triton":
        cut_less_finely(case, monkeypatch)
    check(case)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_some_columns(reduction: str) -> None:
    check(Case(), columns=[0, 3, 76], reduction=reduction)


def test_equal_keys_are_at_no_distance() -> None:
    q, k, _ = (part.float().requires_grad_(True) for part in tensors(Case()))
    distance = map_distance(q, k, k.detach())
    tiny = 16 * torch.finfo(torch.float32).eps  # a GPU may round the two maps differently
    assert distance.max() <= q.shape[2] * tiny**2
    gradients = torch.autograd.grad(distance.sum(), [q, k])
    assert all(gradient.abs().max() <= 16 * tiny for gradient in gradients)


def test_autocast_changes_nothing() -> None:
    q, k_a, k_b = (part.float().requires_grad_(True) for part in tensors(Case()))
    plain = with_gradients(map_distance(q, k_a, k_b), [q, k_a])
    with torch.autocast(DEVICE, torch.bfloat16):
        cast = with_gradients(map_distance(q, k_a, k_b), [q, k_a])
    assert all(one.equal(two) for one, two in zip(plain, cast, strict=True))


def test_the_target_gets_no_gradient() -> None:
    q, k_a, k_b = (part.float().requires_grad_(True) for part in tensors(Case()))
    map_distance(q, k_a, k_b).sum().backward()
    assert k_a.grad is not None
    assert k_b.grad is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k_a": torch.zeros(1, 2, 3, 9)}, "k_a has to be"),
        ({"k_b": torch.zeros(1, 2, 4, 8)}, r"k_b has to be \(1, 2, 3, 8\)"),
        ({"reduction": "max"}, "reduction is 'max'"),
        ({"columns": [3]}, "columns hold 3"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    k = torch.zeros(1, 2, 3, 8)
    given: dict[str, Any] = {"q": torch.zeros(1, 2, 5, 8), "k_a": k, "k_b": k, **arguments}
    with pytest.raises(ValueError, match=message):
        map_distance(given.pop("q"), given.pop("k_a"), given.pop("k_b"), **given)

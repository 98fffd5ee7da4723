"""Attention with token maps against the same in float64, forward and backward, every backend."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conceptry.kernels import GroupBias, attend, chunked
from conceptry.kernels.attention import BACKENDS, choose_backend
from long import quick_for
from problems import (
    DEVICE,
    DTYPES,
    Answers,
    Case,
    Inputs,
    cut_less_finely,
    make,
    mean_norms,
    plain_attention,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WANT = ("maps", "moments")
WIDTHS = (32, 40, 64, 80, 160)
FAST = ("torch", "triton")

QUICK = [
    Case(queries=63, keys=111, batch=1),
    Case(width=WIDTHS[-1], queries=33),
    Case(columns="repeated"),
    Case(groups=3, bias=True, extra=(20, 33), queries=65),
    Case(per_head=True, heads=5, batch=1, columns="per-sample"),
    Case(groups=1, keys=5, batch=1, columns="all"),
    Case(heads=1, batch=1, queries=2),
]
"""Of each kind of input one."""
SMALL = [
    Case(queries=1, keys=1),
    *(Case(queries=63, keys=m, batch=1) for m in (5, 64)),
    *(Case(width=width, queries=33) for width in WIDTHS[:-1]),
    *(Case(columns=columns) for columns in ("all", "per-sample", "edges")),
    Case(bias=True),
    Case(per_head=True),
    Case(groups=2, extra=(33, 64, 1), columns="per-sample"),
    Case(extra=(64,)),
    Case(extra=(20, 1, 33), bias=True, queries=65),
]
MORE = [
    *(Case(queries=1, keys=m) for m in (5, 64, 77, 111)),
    *(Case(queries=63, keys=m, batch=1) for m in (1, 77)),
    *(Case(queries=17, keys=m) for m in (1, 5, 64, 77, 111)),
    *(Case(queries=111, keys=m, batch=1) for m in (1, 5, 64, 77, 111)),
]
HALF = [
    Case(dtype=dtype, bias=True, groups=groups, extra=(33, 20), columns="repeated")
    for dtype in ("float16", "bfloat16")
    for groups in (2, 0)
] + [
    Case(dtype=dtype, queries=65, width=width)
    for dtype in ("float16", "bfloat16")
    for width in WIDTHS
]
FULL = [
    Case(dtype=dtype, batch=1, heads=2, queries=n, keys=m, width=width)
    for dtype in DTYPES
    for width in WIDTHS
    for n in (1, 17, 63, 64, 111, 1024, 4096)
    for m in (1, 5, 64, 77, 111, 4096)
]


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Every result is NaN until it is written, and whatever is not deterministic fails."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory  # pyright: ignore[reportAttributeAccessIssue]
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=FAST)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    return forced(request.param, monkeypatch)


def forced(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    if name == "triton":
        pytest.importorskip("triton")
    monkeypatch.setenv("CONCEPTRY_ATTENTION", name)
    return name


def ours(inputs: Inputs) -> list[Tensor]:
    tensors, options = inputs.arguments()
    attended = attend(*tensors, want=WANT, **options)
    assert attended.backend == os.environ["CONCEPTRY_ATTENTION"]
    assert attended.output.dtype == inputs.q.dtype
    assert attended.maps is not None
    assert attended.moments is not None
    return [attended.output, attended.maps, attended.moments]


def with_gradients(results: list[Tensor], inputs: Inputs, seed: int = 1) -> list[Tensor]:
    """Results, and the gradients that random upstream gradients on all of them give."""
    generator = torch.Generator().manual_seed(seed)
    upstream = [torch.randn(result.shape, generator=generator) for result in results]
    # moments are thousand times smaller than outputs: let their gradients count as much
    upstream[2] *= results[0].numel() / max(1, results[2].numel())
    gradients = torch.autograd.grad(
        results,
        inputs.leaves(),
        [up.to(result.device, result.dtype) for up, result in zip(upstream, results, strict=True)],
    )
    return [tensor.detach().double() for tensor in (*results, *gradients)]


def check(case: Case, answers: Callable[[Case, int], Answers] | None = None) -> None:
    """At most twice the error of torch in the same dtype."""
    names = ["output", "maps", "moments", "dq", "dk", "dv", *["extra"] * 9]
    norms = mean_norms(case, answers or plain_answers)
    sizes = norms[:, 2]
    sizes[sizes == 0] = 64 * sizes[3:].max()  # of a single key: large terms that cancel
    floor = 4 * torch.finfo(DTYPES[case.dtype]).eps
    for name, (error, theirs, size) in zip(names, norms.tolist(), strict=False):
        assert error <= max(2 * theirs, floor * size), (
            f"{name}: {error / size:.1e} of {2 * theirs / size:.1e}"
        )


def plain_answers(case: Case, seed: int) -> Answers:
    inputs = make(case, seed)
    exact, rounded = inputs.to(torch.float64), inputs.to(DTYPES[case.dtype])
    return (
        with_gradients(ours(rounded), rounded),
        with_gradients(plain_attention(rounded), rounded),
        with_gradients(plain_attention(exact), exact),
    )


@pytest.mark.parametrize(
    "case", quick_for(len(QUICK), QUICK + SMALL + MORE) + quick_for(1, HALF), ids=str
)
def test_agrees_with_float64(case: Case, backend: str) -> None:
    check(case)


@pytest.mark.parametrize("chunk", [1, 4096, 65536])
@pytest.mark.parametrize(
    "case",
    [Case(batch=3), Case(bias=True, extra=(20, 33)), Case(bias=True, groups=2, extra=(20, 33))],
    ids=str,
)
def test_chunks_of_any_size(case: Case, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From one query at a time to several samples."""
    forced("torch", monkeypatch)
    monkeypatch.setattr(chunked, "CHUNK_BYTES", chunk)
    check(case)


@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_a_backward_pass_may_be_repeated(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether or not A was kept, and after others have used the memory of chunks."""
    forced("torch", monkeypatch)
    monkeypatch.setattr(chunked, "CHUNK_BYTES", chunk)
    inputs, others = (make(Case(), seed).to(torch.float32) for seed in (0, 1))
    results = ours(inputs)
    upstream = [torch.ones_like(result) for result in results]
    first = torch.autograd.grad(results, inputs.leaves(), upstream, retain_graph=True)
    with_gradients(ours(others), others)
    second = torch.autograd.grad(results, inputs.leaves(), upstream)
    assert all(one.equal(two) for one, two in zip(first, second, strict=True))


@pytest.mark.grid
@pytest.mark.parametrize("case", FULL, ids=str)
def test_agrees_with_float64_on_the_whole_grid(
    case: Case, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "triton":
        cut_less_finely(case, monkeypatch)
    check(case)


@pytest.mark.parametrize(
    "case",
    [Case(), Case(bias=True, extra=(20,), per_head=True), Case(bias=True, groups=2, extra=(9, 20))],
    ids=str,
)
def test_the_reference_is_plain_attention(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    forced("reference", monkeypatch)
    inputs = make(case).to(torch.float64)
    for got, true in zip(
        with_gradients(ours(inputs), inputs),
        with_gradients(plain_attention(inputs), inputs),
        strict=True,
    ):
        assert torch.allclose(got, true, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", quick_for(1, DTYPES))
def test_all_maps_sum_to_one(dtype: str, backend: str) -> None:
    case = Case(dtype=dtype, columns="all", queries=65, bias=True)
    tensors, options = make(case).to(DTYPES[dtype]).arguments()
    maps = attend(*tensors, want="maps", **options).maps
    assert maps is not None
    assert maps.dtype == torch.float32
    assert torch.allclose(maps.sum(1), torch.ones_like(maps[:, 0]), atol=1e-5)


def test_gradients_by_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    forced("torch", monkeypatch)
    case = Case(queries=5, keys=7, width=3, extra=(4,), bias=True, groups=2)
    inputs = make(case).to(torch.float64)

    def run(q: Tensor, k: Tensor, v: Tensor, k2: Tensor, v2: Tensor) -> tuple[Tensor, ...]:
        extra = [(k2, v2, inputs.extra[0][2])]
        biases = {"key_bias": inputs.bias, "group_bias": inputs.groups}
        attended = attend(q, k, v, **biases, extra=extra, columns=[0, 6, 6], want=WANT)
        assert attended.maps is not None
        assert attended.moments is not None
        return attended.output, attended.maps, attended.moments

    assert torch.autograd.gradcheck(run, inputs.leaves())


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 2)], ids=str)
def test_any_result_may_go_unused(used: tuple[int, ...], backend: str) -> None:
    inputs = make(Case()).to(torch.float32)
    exact = inputs.to(torch.float64)
    found, truth = (
        torch.autograd.grad(
            torch.stack([results[i].double().sin().sum() * 50**i for i in used]).sum(),
            given.leaves(),
            allow_unused=True,
        )
        for results, given in ((ours(inputs), inputs), (plain_attention(exact), exact))
    )
    for got, true in zip(found, truth, strict=True):
        if true is None:
            assert got is None or not got.any()
        else:
            assert float((got.double() - true).norm()) < 1e-4 * float(true.norm())


@pytest.mark.parametrize("layout", ["heads-last", "every-other"])
def test_strided_inputs_are_taken_as_they_are(backend: str, layout: str) -> None:
    """Projections give (B, N, H, D), seen as (B, H, N, D)."""

    def laid_out(part: Tensor) -> Tensor:
        if layout == "heads-last":
            return part.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_(True)
        return torch.stack([part, part], -1).detach()[..., 0].requires_grad_(True)

    def answers(case: Case, seed: int) -> Answers:
        inputs = make(case, seed)
        plain, exact = inputs.to(torch.float32), inputs.to(torch.float64)
        q, k, v = (laid_out(part) for part in plain.leaves())
        assert not q.is_contiguous()
        strided = replace(plain, q=q, k=k, v=v)
        return (
            with_gradients(ours(strided), strided),
            with_gradients(plain_attention(plain), plain),
            with_gradients(plain_attention(exact), exact),
        )

    check(Case(queries=33, width=32), answers)


def test_a_word_is_seen_from_where_its_group_says(backend: str) -> None:
    """Its map is zero elsewhere, and sums to one with the others' everywhere."""
    case = Case(queries=64, keys=6, columns="all")
    tensors, options = make(case).to(torch.float32).arguments()
    values = torch.zeros(2, 1, 64, device=DEVICE)
    values[:, :, 32:] = -torch.inf
    groups = torch.tensor([[-1, -1, 0, 0, -1, -1]] * 2, device=DEVICE)
    options |= {"group_bias": GroupBias(groups, values)}
    maps = attend(*tensors, want="maps", **options).maps
    assert maps is not None
    assert (maps[:, 2:4, :32] > 0).all()
    assert not maps[:, 2:4, 32:].any()
    assert torch.allclose(maps.sum(1), torch.ones_like(maps[:, 0]), atol=1e-5)


def test_the_same_inputs_give_the_same_bits(backend: str) -> None:
    case = Case(queries=65, extra=(40,), columns="repeated")
    first, second = (
        with_gradients(ours(given), given) for given in [make(case).to(torch.float32)] * 2
    )
    assert all(one.equal(two) for one, two in zip(first, second, strict=True))


def test_autocast_changes_nothing(backend: str) -> None:
    inputs = make(Case()).to(torch.float32)
    plain = with_gradients(ours(inputs), inputs)
    with torch.autocast(DEVICE, torch.bfloat16):
        cast = with_gradients(ours(inputs), inputs)
    assert all(one.equal(two) for one, two in zip(plain, cast, strict=True))


def test_nothing_is_asked_nothing_is_given(backend: str) -> None:
    inputs = make(Case()).to(torch.float32)
    attended = attend(inputs.q, inputs.k, inputs.v)
    assert attended.maps is None
    assert attended.moments is None
    expected = torch.nn.functional.scaled_dot_product_attention(inputs.q, inputs.k, inputs.v)
    assert torch.allclose(attended.output, expected, atol=1e-5)


def test_scale(backend: str) -> None:
    inputs = make(Case()).to(torch.float32)
    sharp = attend(inputs.q, inputs.k, inputs.v, scale=1.0).output
    expected = torch.nn.functional.scaled_dot_product_attention(
        inputs.q, inputs.k, inputs.v, scale=1.0
    )
    assert torch.allclose(sharp, expected, atol=1e-5)


def test_a_segment_of_repeated_keys_weighs_as_much_as_its_bias_says(backend: str) -> None:
    """log k on each key equals k copies of it (DreamTuner's reference weight)."""
    inputs = make(Case(keys=9)).to(torch.float32)
    k, v = inputs.k.detach(), inputs.v.detach()
    bias = torch.full((2, 9), 3.0, device=DEVICE).log()
    weighted = attend(inputs.q, k, v, extra=[(k, v, bias)]).output
    copied = attend(inputs.q, k, v, extra=[(k.repeat(1, 1, 3, 1), v.repeat(1, 1, 3, 1), None)])
    assert torch.allclose(weighted, copied.output, atol=1e-5)


class _Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                self.numel = max(
                    self.numel, tensor.untyped_storage().size() // tensor.element_size()
                )
        return result


def test_the_whole_matrix_is_never_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    forced("torch", monkeypatch)
    inputs = make(Case(batch=1, heads=4, queries=2048, keys=2048, width=8)).to(torch.float32)
    with _Largest() as largest:
        with_gradients(ours(inputs), inputs)
    assert largest.numel * 4 <= 4 << 20 < 4 * 4 * 2048 * 2048


def test_a_mask_of_queries_and_keys_is_never_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    forced("torch", monkeypatch)
    inputs = make(Case(batch=1, heads=1, queries=4096, keys=2048, width=8, groups=3))
    tensors, options = inputs.to(torch.float32).arguments()
    attend(*tensors, group_bias=options["group_bias"])  # of which torch's own may keep some
    with _Largest() as largest:
        attend(*tensors, group_bias=options["group_bias"])
    assert largest.numel * 8 <= 8 << 20 < 4 * 4096 * 2048


# --- what is refused ------------------------------------------------------------------------------

Q = torch.zeros(2, 3, 8, 32)
K = torch.zeros(2, 3, 5, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"q": torch.zeros(2, 8, 96)}, r"q has to be \(B, H, N, D\), not float32 \(2, 8, 96\)"),
        ({"q": Q[:, :, :0]}, "q is empty"),
        ({"q": Q.int()}, "q is int32: expected float32, float16"),
        ({"q": torch.zeros(2, 3, 8, 320)}, "q has heads of width 320: at most 256"),
        (
            {"k": torch.zeros(2, 3, 5, 16)},
            r"k has to be \(2, 3, M, 32\), not float32 \(2, 3, 5, 16",
        ),
        ({"k": torch.zeros(1, 3, 5, 32)}, "k has to be"),
        ({"v": torch.zeros(2, 3, 6, 32)}, r"v has to be \(2, 3, 5, 32\)"),
        ({"k": K.half()}, "k is float16, q is float32"),
        ({"v": K.to("meta")}, "v is on meta, q is on cpu"),
        ({"key_bias": torch.zeros(2, 6)}, r"key_bias has to be \(B, M\) = \(2, 5\)"),
        ({"key_bias": torch.zeros(2, 5).int()}, "key_bias is int32"),
        ({"key_bias": torch.zeros(2, 5, requires_grad=True)}, "key_bias requires a gradient"),
        ({"key_bias": torch.tensor([[0.0] * 5, [-torch.inf] * 5])}, "no key in sample 1 of 2"),
        (
            {"group_bias": GroupBias(torch.zeros(2, 5).long(), torch.zeros(2, 1, 5))},
            r"group_bias.values has to be \(B, G, N\) = \(2, 1, 8\), not float32 \(2, 1, 5\)",
        ),
        (
            {"group_bias": GroupBias(torch.zeros(2, 4).long(), torch.zeros(2, 1, 8))},
            r"group_bias.groups have to be \(B, M\) = \(2, 5\)",
        ),
        ({"group_bias": GroupBias(torch.zeros(2, 5), torch.zeros(2, 1, 8))}, "expected integers"),
        (
            {"group_bias": GroupBias(torch.full((2, 5), 1), torch.zeros(2, 1, 8))},
            "groups hold 1: there are 1, from 0 on, or -1",
        ),
        (
            {"group_bias": GroupBias(torch.zeros(2, 5).long(), torch.full((2, 1, 8), -torch.inf))},
            "leaves no key in sample 0 of 2, query 0: all are -inf",
        ),
        ({"extra": [(K, K[:, :, :4], None)]}, r"extra\[0\] v has to be"),
        ({"extra": [(K, K, torch.zeros(2, 3))]}, r"extra\[0\] bias has to be"),
        ({"columns": [5], "want": "maps"}, "columns hold 5, out of the range of 5 keys"),
        ({"columns": [-1], "want": "maps"}, "columns hold -1, out of the range"),
        ({"columns": [], "want": "maps"}, r"columns have to be integers \(T,\) or \(B, T\)"),
        ({"columns": [0.5], "want": "maps"}, "columns have to be integers"),
        ({"columns": torch.zeros(3, 1).long(), "want": "maps"}, "3 rows for a batch of 2"),
        ({"columns": [0]}, "columns and want belong together"),
        ({"want": "maps"}, "columns and want belong together"),
        ({"columns": [0], "want": "everything"}, "want holds 'everything'"),
        ({"columns": [0], "want": "moments", "per_head": True}, "per_head is for want='maps'"),
        ({"scale": float("nan")}, "scale is nan"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"q": Q, "k": K, "v": K, **arguments}
    with pytest.raises(ValueError, match=message):
        attend(given.pop("q"), given.pop("k"), given.pop("v"), **given)


def test_moments_of_one_value_are_refused() -> None:
    one = torch.zeros(1, 1, 1, 8)
    with pytest.raises(ValueError, match="two values at least"):
        attend(one, one, one, columns=[0], want="moments")


def test_hidden_keys_in_one_segment_are_fine_if_another_has_some(backend: str) -> None:
    inputs = make(Case(keys=5)).to(torch.float32)
    k, v = inputs.k.detach(), inputs.v.detach()
    hidden = torch.full((2, 5), -torch.inf, device=DEVICE)
    attended = attend(
        inputs.q, k, v, key_bias=hidden, extra=[(k, v, None)], columns=[1], want="maps"
    )
    assert torch.allclose(attended.output, attend(inputs.q, k, v).output, atol=1e-5)
    assert not attended.maps.any()  # pyright: ignore[reportOptionalMemberAccess]


# --- which backend --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_can_be_forced(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forced(name, monkeypatch)
    assert choose_backend(Q.to(DEVICE)) == name


def test_without_a_wish_a_cpu_takes_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONCEPTRY_ATTENTION", raising=False)
    assert choose_backend(Q) == "torch"
    assert choose_backend(Q.to(DEVICE)) == ("torch" if DEVICE == "cpu" else "triton")


def test_a_backend_that_cannot_run_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONCEPTRY_ATTENTION", "magic")
    with pytest.raises(ValueError, match="'magic': expected one of reference, torch, triton"):
        attend(Q, K, K)
    pytest.importorskip("triton")
    monkeypatch.setenv("CONCEPTRY_ATTENTION", "triton")
    with pytest.raises(ValueError, match="for float32, float16 and bfloat16"):
        attend(Q.double(), K.double(), K.double())
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="asks for triton, but the tensors are on cpu"):
        attend(Q, K, K)


def test_what_does_not_fit_into_a_gpus_shared_memory_is_computed_by_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A T4 has 64 KB; float32 heads of SD 1.x's deepest layers want 68."""
    pytest.importorskip("triton")
    queries: Any = SimpleNamespace(is_cuda=True, device="cuda:0", dtype=torch.float32)
    monkeypatch.delenv("CONCEPTRY_ATTENTION", raising=False)
    for kilobytes, width, expected in (
        (64, 160, "torch"),
        (64, 80, "triton"),
        (99, 160, "triton"),
    ):
        there = SimpleNamespace(shared_memory_per_block_optin=1024 * kilobytes)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, there=there: there)
        queries.shape = (1, 8, 64, width)
        assert choose_backend(queries) == expected

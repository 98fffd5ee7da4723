"""What token maps cost: attention with and without them, side by side.

    python bench/attention.py                      # every shape, on the GPU if there is one
    python bench/attention.py --only "SD 1.5" --batch 1

For each layer shape of SD 1.5, 2.1 and SDXL (cross-attention over 77 tokens) and each batch size,
forward and forward+backward:

eager       probabilities materialised in float32, as the AttnDreamBooth code does it
sdpa        torch's fused attention, no maps: the least that a step costs anyhow
two-pass    sdpa, and the columns once more from the keys of interest and a log-sum-exp pass
moments     ours, want="moments" of two columns
maps        ours, want="maps" of two columns

Ratios are to sdpa, medians of runs in turn, as many as fit into --seconds; of a whole model, each
shape counts as often as there are layers of it. Memory is the peak above what was there before: on
a GPU as torch counts it, on a CPU the largest tensor. Writes bench/results/attention-DEVICE.json.
"""

import argparse
import itertools
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from conceptry.kernels import attend
from environment import describe
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (everyone's name for it)
from torch.utils._python_dispatch import TorchDispatchMode

RESULTS = Path(__file__).parent / "results"
NUM_TOKENS = 77
COLUMNS = [5, 6]
MIN_ROUNDS = 7
SHAPES = {
    "SD 1.5": {(8, 4096, 40): 5, (8, 1024, 80): 5, (8, 256, 160): 5, (8, 64, 160): 1},
    "SD 2.1": {(5, 4096, 64): 5, (10, 1024, 64): 5, (20, 256, 64): 5, (20, 64, 64): 1},
    "SDXL": {(10, 4096, 64): 10, (20, 1024, 64): 60},
}
"""Number of layers by (heads, positions, width of a head) at 512 pixels; SDXL at 1024."""

Step = Callable[[Tensor, Tensor, Tensor], list[Tensor]]


def eager(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    weights = (q.float() @ k.float().mT * q.shape[-1] ** -0.5).softmax(-1)
    columns = weights[..., COLUMNS].permute(0, 3, 1, 2).flatten(2)
    return [weights.to(v.dtype) @ v, columns.mean(-1), columns.var(-1)]


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    return [F.scaled_dot_product_attention(q, k, v)]


def two_pass(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    scores = q.float() @ k.float().mT * q.shape[-1] ** -0.5
    columns = (scores[..., COLUMNS] - scores.logsumexp(-1, keepdim=True)).exp()
    columns = columns.permute(0, 3, 1, 2).flatten(2)
    return [F.scaled_dot_product_attention(q, k, v), columns.mean(-1), columns.var(-1)]


def moments(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    attended = attend(q, k, v, columns=COLUMNS, want="moments")
    assert attended.moments is not None
    return [attended.output, attended.moments]


def maps(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    attended = attend(q, k, v, columns=COLUMNS, want="maps")
    assert attended.maps is not None
    return [attended.output, attended.maps]


STEPS: dict[str, Step] = {
    "eager": eager,
    "sdpa": sdpa,
    "two-pass": two_pass,
    "moments": moments,
    "maps": maps,
}


class _Largest(TorchDispatchMode):
    """Remembers the bytes of the largest tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


class Bench:
    """Runs the steps of one shape in turn."""

    def __init__(
        self, shape: tuple[int, int, int], batch: int, device: str, dtype: torch.dtype
    ) -> None:
        heads, positions, width = shape
        generator = torch.Generator().manual_seed(0)

        def states(length: int) -> Tensor:
            """As a projection leaves them: (B, N, H, D), seen as (B, H, N, D)."""
            values = torch.randn(batch, length, heads, width, generator=generator)
            return values.to(device, dtype).transpose(1, 2).requires_grad_(True)

        self.leaves = [states(length) for length in (positions, NUM_TOKENS, NUM_TOKENS)]
        self.device = device

    def run(self, step: Step, *, backward: bool) -> None:
        """One step."""
        results = step(*self.leaves)
        if backward:
            torch.autograd.grad(results, self.leaves, [torch.ones_like(part) for part in results])

    def seconds(self, step: Step, *, backward: bool) -> float:
        """Seconds of one step; on a GPU the mean of ten."""
        if self.device == "cpu":
            started = time.perf_counter()
            self.run(step, backward=backward)
            return time.perf_counter() - started
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(10):
            self.run(step, backward=backward)
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 10_000

    def peak_bytes(self, step: Step) -> int:
        """Memory above what was there, forward and backward."""
        if self.device == "cpu":
            with _Largest() as largest:
                self.run(step, backward=True)
            return largest.bytes
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.run(step, backward=True)
        return torch.cuda.max_memory_allocated() - before

    def measure(self, seconds: float) -> dict[str, Any]:
        """Times, ratios and memory of all steps; forward, and then with backward, for so long."""
        told: dict[str, Any] = {name: {} for name in STEPS}
        for what, backward in (("forward", False), ("forward_backward", True)):
            times: dict[str, list[float]] = {name: [] for name in STEPS}
            order = random.Random(0)
            for step in STEPS.values():
                self.seconds(step, backward=backward)  # warms up
            end = time.perf_counter() + seconds
            while time.perf_counter() < end or len(times["sdpa"]) < MIN_ROUNDS:
                for name in order.sample(list(STEPS), len(STEPS)):  # each leaves caches to the next
                    times[name].append(self.seconds(STEPS[name], backward=backward))
            for name, values in times.items():
                ratios = [a / b for a, b in zip(values, times["sdpa"], strict=True)]
                told[name][f"{what}_ms"] = round(1000 * statistics.median(values), 3)
                told[name][f"{what}_ratio"] = round(statistics.median(ratios), 3)
        for name, step in STEPS.items():
            told[name]["peak_bytes"] = self.peak_bytes(step)
        return told


def sums(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each model and batch size, times of all its layers together, to sdpa's."""
    told: dict[str, dict[str, float]] = {}
    for model, batch in dict.fromkeys((row["model"], row["batch"]) for row in rows):
        own = [row for row in rows if (row["model"], row["batch"]) == (model, batch)]
        total = {
            name: sum(row["layers"] * row["steps"][name]["forward_backward_ms"] for row in own)
            for name in STEPS
        }
        told[f"{model}, batch {batch}"] = {
            name: round(value / total["sdpa"], 3) for name, value in total.items()
        }
    return told


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=SHAPES)
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if device == "cuda" else torch.float32
    rows: list[dict[str, Any]] = []
    models = [options.only] if options.only else list(SHAPES)
    for model in models:
        for batch, (shape, layers) in itertools.product(options.batch, SHAPES[model].items()):
            measured = Bench(shape, batch, device, dtype).measure(options.seconds)
            heads, positions, width = shape
            row = {"model": model, "batch": batch, "heads": heads}
            row |= {"positions": positions, "width": width, "layers": layers}
            rows.append(row | {"steps": measured})
            ratios = {name: told["forward_backward_ratio"] for name, told in measured.items()}
            print(*row.values(), ratios, flush=True)
    document: dict[str, Any] = {"environment": describe(), "dtype": str(dtype)}
    document |= {"forward_backward_ratios": sums(rows), "rows": rows}
    if device == "cuda":
        document["gpu"] = torch.cuda.get_device_name()
    if options.only is None:
        path = RESULTS / f"attention-{device}.json"
        path.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()

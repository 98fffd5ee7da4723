"""Seconds and memory of a training step of AttnDreamBooth, beside the same step done the usual way.

    python bench/train_step.py                # SD 2.1-base's shape at 512 px on CUDA, else the
                                              # miniature; writes bench/results/train-step.json
    python bench/train_step.py --steps 5 --dry-run

`ours` is `concept train`: bfloat16 where it may be (on CUDA), and attention that gives moments
without writing a map. `eager float32` is the same loop in float32 with every attention map in
memory, self-attention included, and the moments taken from the maps of all 77 tokens: what
existing code does. `eager` is that in our precision, so that the two gains can be told apart.
Weights are random in SD 2.1's shape. Medians over steps after three that warm up; the peak is of
CUDA memory in those steps.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from conceptry.methods import stage_run
from conceptry.methods.engine import Subject, Training
from conceptry.methods.hooks import StepReport
from conceptry.methods.method import find_method, settings_of
from conceptry.models.loading import load_base
from environment import describe
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from eager_attention import EagerProcessor
from full_size import make_full_size

RESULTS = Path(__file__).parent / "results" / "train-step.json"
WARM_UP = 3
PAPER_STEPS = {"stage1": 60, "stage2": 100, "stage3": 500}


# --- the usual way --------------------------------------------------------------------------------


class _Maps:
    """The maps of the cross-attention layers, whole."""

    def __init__(self, columns: Tensor) -> None:
        self.columns = columns
        self.whole: dict[str, Tensor] = {}

    @property
    def moments(self) -> dict[str, Tensor]:
        """(B, T, 2) of each layer, as `observe` gives them."""
        return {name: self._moments(maps) for name, maps in self.whole.items()}

    def _moments(self, maps: Tensor) -> Tensor:
        batch, heads, places, _ = maps.shape
        index = self.columns[:, None, None].expand(batch, heads, places, -1)
        columns = maps.gather(-1, index).permute(0, 3, 1, 2).flatten(2)
        return torch.stack([columns.mean(-1), columns.var(-1)], -1)


@contextmanager
def _materialised(unet: Any, *, columns: Tensor, **_: Any) -> Iterator[_Maps]:
    """What `observe` does, at full cost."""
    own, maps = unet.attn_processors, _Maps(columns)
    eager = {
        name: EagerProcessor(
            maps.whole, name.removesuffix(".processor") if "attn2" in name else None
        )
        for name in own
    }
    unet.set_attn_processor(eager)
    try:
        yield maps
    finally:
        unet.set_attn_processor(own)


@contextmanager
def _usual_way() -> Iterator[None]:
    ours = stage_run.observe
    stage_run.observe = _materialised
    try:
        yield
    finally:
        stage_run.observe = ours


# --- measuring ------------------------------------------------------------------------------------


def measured(pipeline: Any, words: list[str], steps: int) -> dict[str, dict[str, Any]]:
    """Seconds of a step and peak memory of each stage."""
    method = find_method("attndreambooth")
    words = words + [f"{stage.name}.steps={steps + WARM_UP}" for stage in method.stages]
    settings = settings_of(method, base="", preset="paper", overrides=tuple(words))
    photos = [Image.radial_gradient("L").convert("RGB").rotate(30 * i) for i in range(4)]
    subject = Subject(photos=photos, category="dog", tokens=("<v>",))
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    peaks: dict[str, int] = {}

    def on_step(report: StepReport) -> None:
        seconds[report.stage].append(report.seconds)
        if torch.cuda.is_available():
            if report.step == WARM_UP:
                torch.cuda.reset_peak_memory_stats()
            peaks[report.stage] = torch.cuda.max_memory_allocated()

    with tempfile.TemporaryDirectory() as folder:
        training = Training(pipeline, method, settings, subject, seed=0)
        training.hooks.on_step = on_step
        training.run(Path(folder) / "resume.safetensors")
    return {
        stage: {
            "seconds": round(statistics.median(times[WARM_UP:]), 4),
            "peak_bytes": peaks.get(stage),
        }
        for stage, times in seconds.items()
    }


def _ratios(other: dict[str, Any], ours: dict[str, Any]) -> dict[str, float]:
    return {stage: round(other[stage]["seconds"] / ours[stage]["seconds"], 2) for stage in ours}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    pipeline = make_full_size("SD 2.1") if on_gpu else load_base().pipeline
    words = ["augmentation.crops=8", *(f"stage{i}.batch=8" for i in (1, 2, 3))]
    ours = measured(pipeline, words, options.steps)
    with _usual_way():
        eager = measured(pipeline, words, options.steps)
        eager_float32 = measured(pipeline, [*words, "mixed_precision=no"], options.steps)
    result = {
        "environment": describe(),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "shape": "SD 2.1-base, 512 px" if on_gpu else "the miniature, 64 px",
        "batch": 8,
        "ours": ours,
        "eager": eager,
        "eager float32": eager_float32,
        "times_faster_than_eager": _ratios(eager, ours),
        "times_faster_than_eager_float32": _ratios(eager_float32, ours),
        "seconds_for_660_steps": round(
            sum(ours[stage]["seconds"] * count for stage, count in PAPER_STEPS.items()), 1
        ),
    }
    print(json.dumps(result, indent=2))
    if not options.dry_run:
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

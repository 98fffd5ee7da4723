"""Seconds and memory of a training step of AttnDreamBooth, beside the same step done the usual way.

    python bench/train_step.py                # SD 2.1-base's shape at 512 px on CUDA, else the
                                              # miniature at 256 px; writes
                                              # bench/results/train-step.json
    python bench/train_step.py --steps 5 --dry-run

`ours` is `concept train`: bfloat16 where it may be (on CUDA), and attention that gives moments
without writing a map. `eager` is the same loop in the same precision with every attention map in
memory, self-attention included, and the moments taken from the maps of all 77 tokens; on CUDA,
`eager float32` is that in float32: what existing code does. Weights are random in SD 2.1's shape.
All ways take turns; seconds are medians over steps after three that warm up; the peak is of CUDA
memory in those steps, or without CUDA, of the process (Linux).
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from conceptry.methods.method import find_method, resolve_settings
from conceptry.models.backbone import Backbone
from conceptry.models.loading import backbone_of, load_base
from conceptry.training.callbacks import StepReport
from conceptry.training.trainer import run_one
from conceptry.training.training import Subject, Training
from environment import describe
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from eager_attention import EagerProcessor
from full_size import make_full_size

RESULTS = Path(__file__).parent / "results" / "train-step.json"
CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
WARM_UP, ROUNDS = 3, 2
PAPER_STEPS = {"stage1": 60, "stage2": 100, "stage3": 500}


# --- the usual way --------------------------------------------------------------------------------


class _Maps:
    """The maps of the cross-attention layers, whole."""

    def __init__(self, columns: Tensor) -> None:
        self.columns = columns
        self.whole: dict[str, Tensor] = {}

    @property
    def moments(self) -> dict[str, Tensor]:
        """(B, T, 2) of each layer, as `AttentionStack.observe` gives them."""
        return {name: self._moments(maps) for name, maps in self.whole.items()}

    def _moments(self, maps: Tensor) -> Tensor:
        batch, heads, places, _ = maps.shape
        index = self.columns[:, None, None].expand(batch, heads, places, -1)
        columns = maps.gather(-1, index).permute(0, 3, 1, 2).flatten(2)
        return torch.stack([columns.mean(-1), columns.var(-1)], -1)


@contextmanager
def _materialised(unet: Any, *, columns: Tensor, **_: Any) -> Iterator[_Maps]:
    """What `AttentionStack.observe` does, at full cost."""
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
def usual_way(backbone: Backbone) -> Iterator[None]:
    usual = partial(_materialised, backbone.denoiser)
    with patch.object(backbone.attention, "observe", usual):
        yield


# --- measuring ------------------------------------------------------------------------------------


@dataclass(slots=True)
class Measured:
    """What the steps of a stage took."""

    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    def to_mapping(self) -> dict[str, Any]:
        """The median, and the peak."""
        seconds = round(statistics.median(self.seconds), 4)
        return {"seconds": seconds, "peak_bytes": self.peak_bytes or None}


def reset_peak() -> None:
    """From here on, `peak` tells the most that is in use."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif CLEAR_REFS.exists():
        CLEAR_REFS.write_text("5")


def peak() -> int:
    """Bytes, of CUDA memory or of the process; 0 where that is not known."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if not CLEAR_REFS.exists():
        return 0
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def measure(
    backbone: Backbone,
    words: list[str],
    steps: int,
    told: dict[str, Measured],
    *,
    preset: str = "paper",
    stages: Sequence[str] = tuple(PAPER_STEPS),
) -> None:
    """Train once, and add what the steps of each stage took, from one step's end to the next's."""
    method = find_method("attndreambooth")
    counts = {stage.name: steps + WARM_UP if stage.name in stages else 0 for stage in method.stages}
    words = words + [f"{name}.steps={count}" for name, count in counts.items()]
    settings = resolve_settings(method, base="", preset=preset, overrides=tuple(words))
    photos = [Image.radial_gradient("L").convert("RGB").rotate(30 * i) for i in range(4)]
    subject = Subject(photos=photos, category="dog", tokens=("<v>",))
    since = 0.0

    def on_step(report: StepReport) -> None:
        nonlocal since
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        stage = told[report.stage]
        if report.step == WARM_UP:
            reset_peak()
        elif report.step > WARM_UP:
            stage.seconds.append(now - since)
            stage.peak_bytes = max(stage.peak_bytes, peak())
        since = now

    with tempfile.TemporaryDirectory() as folder:
        training = Training(backbone, method, settings, subject, seed=0)
        training.hooks.on_step = on_step
        run_one(training, Path(folder) / "resume.safetensors")


def _ratios(other: dict[str, Measured], ours: dict[str, Measured]) -> dict[str, Any]:
    """How many times ours the other takes, in seconds and in memory."""
    told: dict[str, Any] = {}
    for stage, mine in ours.items():
        theirs = other[stage]
        told[stage] = {
            "seconds": round(statistics.median(theirs.seconds) / statistics.median(mine.seconds), 2)
        }
        if mine.peak_bytes and theirs.peak_bytes:
            told[stage]["peak"] = round(theirs.peak_bytes / mine.peak_bytes, 2)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    backbone = (
        backbone_of(make_full_size("SD 2.1", torch.float16)) if on_gpu else load_base().backbone
    )
    batch, size = (8, 512) if on_gpu else (2, 256)
    words = [f"resolution={size}", "augmentation.crops=8"]
    words += [f"stage{i}.batch={batch}" for i in (1, 2, 3)]
    ways: dict[str, defaultdict[str, Measured]] = {
        way: defaultdict(Measured)
        for way in ("ours", "eager", *(("eager float32",) if on_gpu else ()))
    }
    for _ in range(ROUNDS):
        for way, told in ways.items():
            precision = ["mixed_precision=no"] if way == "eager float32" else []
            with nullcontext() if way == "ours" else usual_way(backbone):
                measure(backbone, words + precision, options.steps, told)
    ours = ways.pop("ours")
    result = {
        "environment": describe(),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "shape": f"{'SD 2.1-base' if on_gpu else 'the miniature'}, {size} px",
        "batch": batch,
        "ours": {stage: each.to_mapping() for stage, each in ours.items()},
        **{
            way: {stage: each.to_mapping() for stage, each in told.items()}
            for way, told in ways.items()
        },
        "times_ours": {way: _ratios(told, ours) for way, told in ways.items()},
    }
    if on_gpu:
        of_all = (statistics.median(ours[stage].seconds) * n for stage, n in PAPER_STEPS.items())
        result["seconds_for_660_steps"] = round(sum(of_all), 1)
    print(json.dumps(result, indent=2))
    if not options.dry_run:
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""What channels_last, bfloat16 and torch's compiler bring, beside the program as it is.

    python bench/speed.py                     # the miniature; some minutes
    python bench/speed.py --rounds 5 --dry-run

`drawing` is four pictures in a batch, 25 steps with guidance; `training` a forward and a backward
pass of the U-Net, batch 8, with the moments of two words' maps. Each way has a base model of its
own, and all take turns:

channels_last   networks and latents in the layout that convolutions like best
bfloat16        autocast; in `drawing`, of text encoders and decoder too
compiled        as by --compile: ResBlocks and feed-forward layers; `first` is their first pass

`ratio` is the median of each way's seconds divided by the plain ones' of the same round: of
processor time on a CPU, which other programs do not disturb, else of the clock. `levels` is how far
pictures are from the plain ones, of 255: mean, 99th percentile and most; `gradients` the relative
distance of all gradients. Writes bench/results/speed.json.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from conceptry.generation.request import SamplingSettings
from conceptry.generation.sampler import draw_batch
from conceptry.models.backbone import Backbone
from conceptry.models.loading import load_base
from environment import describe

RESULT = Path(__file__).parent / "results" / "speed.json"
Way = Literal["plain", "channels_last", "bfloat16", "compiled"]
WAYS: tuple[Way, ...] = ("plain", "channels_last", "bfloat16", "compiled")
PROMPTS = ["a photo of a dog on the beach"] * 4
BATCH = 8


class Candidate:
    """A base model in one of the ways."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self.backbone: Backbone = load_base().backbone
        self.clock = time.perf_counter if torch.cuda.is_available() else time.process_time
        self.pictures = np.zeros(0)
        self.gradients = torch.zeros(0)
        if way == "channels_last":
            for network in self.backbone.networks.values():
                network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if way == "compiled":
            self.backbone.set_compiled(True)

    def timed(self, work: Callable[[], None]) -> float:
        """Seconds that some work takes."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        started = self.clock()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self.clock() - started

    def drawing(self) -> None:
        """Four pictures."""
        settings = SamplingSettings(steps=25, guidance=5.0)
        with self._precision():
            drawn = draw_batch(self.backbone, PROMPTS, range(len(PROMPTS)), settings)
        self.pictures = np.stack([np.asarray(each, dtype=np.float32) for each in drawn])

    def training(self) -> None:
        """A forward and a backward pass."""
        backbone = self.backbone
        side = backbone.size // backbone.latent_factor
        shape = (BATCH, backbone.latent_channels, side, side)
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        if self.way == "channels_last":
            latents = latents.to(memory_format=torch.channels_last)
        with torch.no_grad():
            conditioning = backbone.encode_prompts(PROMPTS * 2, backbone.size)
        device = backbone.device
        timesteps = torch.full((BATCH,), 500, device=device)
        columns = torch.tensor([[4, 5]] * BATCH, device=device)
        backbone.denoiser.zero_grad()
        backbone.denoiser.requires_grad_(True)
        with self._precision(), backbone.attention.observe(columns=columns) as seen:
            predicted = backbone.denoise(latents.to(device), timesteps, conditioning)
        moments = torch.stack([each.float().sum() for each in seen.moments.values()]).sum()
        (predicted.float().square().mean() + moments).backward()
        grads = [each.grad for each in backbone.denoiser.parameters()]
        self.gradients = torch.cat([each.flatten().cpu() for each in grads if each is not None])

    def _precision(self) -> AbstractContextManager[object]:
        if self.way == "bfloat16":
            return torch.autocast(self.backbone.device.type, torch.bfloat16)
        return nullcontext()


def measured(candidates: list[Candidate], work: str, rounds: int) -> dict[str, dict[str, Any]]:
    """Seconds and ratios of each way; the first pass of each is not among them."""
    told: dict[str, dict[str, Any]] = {}
    for each in candidates:
        told[each.way] = {"first": round(each.timed(getattr(each, work)), 2)}
    seconds: dict[str, list[float]] = {each.way: [] for each in candidates}
    for _ in range(rounds):
        for each in candidates:
            seconds[each.way].append(each.timed(getattr(each, work)))
    for way, values in seconds.items():
        ratios = [own / plain for own, plain in zip(values, seconds["plain"], strict=True)]
        told[way]["seconds"] = round(statistics.median(values), 3)
        told[way]["ratio"] = round(statistics.median(ratios), 3)
    return told


def levels(plain: Candidate, other: Candidate) -> dict[str, float]:
    """How far pictures are from the plain ones."""
    apart = np.abs(other.pictures - plain.pictures)
    found = {"mean": apart.mean(), "p99": np.percentile(apart, 99), "most": apart.max()}
    return {name: round(float(value), 2) for name, value in found.items()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dry-run", action="store_true", help="write no file")
    options = parser.parse_args()
    candidates = [Candidate(way) for way in WAYS]
    result: dict[str, Any] = describe() | {
        "device": candidates[0].backbone.device.type,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
    for work in ("drawing", "training"):
        result[work] = measured(candidates, work, options.rounds)
        print(json.dumps(result[work], indent=1), flush=True)
    plain = candidates[0]
    for each in candidates[1:]:
        apart = (each.gradients - plain.gradients).norm() / plain.gradients.norm()
        result["drawing"][each.way]["levels"] = levels(plain, each)
        result["training"][each.way]["gradients"] = float(f"{float(apart):.2g}")
    if not options.dry_run:
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

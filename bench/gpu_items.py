"""The items of `on_gpu.py`, in the order in which they run.

kernels        attention with moments and maps beside torch's own, and twice bit-equal
training_step  AttnDreamBooth at full size: ours, maps in memory, and those in float32
generation     seconds of a picture through ours and through plain diffusers
correctness    a sample of the kernels' grid, against float64 (tests/kernels, in processes)
miniature      its autoencoder and its U-Net, by the recipe, for as long as there is time
memory         the peak of a training with the preset for small GPUs
laboratory     every method on many individuals, for as long as there is time
"""

import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attention
import torch
import train_step
from conceptry.evaluation.judge import load_judge
from conceptry.generation.pictures import contact_sheet
from conceptry.generation.request import SamplingSettings
from conceptry.generation.sampler import draw_batch
from conceptry.methods.method import find_method, read_presets
from conceptry.models.backbone import Backbone
from conceptry.models.loading import backbone_of, load_base
from conceptry.models.miniature.recipe import export, train
from conceptry.models.miniature.world.scenes import describe, sample_scene
from conceptry.models.shapes import usual_shapes
from conceptry.registry import Registry
from conceptry.training.memory import count_memory
from environment import describe as describe_machine
from full_size import make_full_size
from laboratory import Laboratory, individuals, summary, ways, without_pictures

ROOT = Path(__file__).parent.parent
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PROMPTS = (
    "a photo of a red teapot in the snow",
    "a photo of a blue spotted cat on the beach",
    "a photo of a green robot holding a balloon in the city",
    "a photo of a yellow dog wearing sunglasses in the forest",
    "a photo of a brown bear on a skateboard in space",
    "a photo of a pink bird next to a white house in the desert",
    "a photo of a doll, a dog and a robot in a meadow",
)


@dataclass(slots=True)
class Report:
    """A result that is on the disk as soon as it is known."""

    path: Path

    def get(self, key: str) -> Any:
        """What is known, or None."""
        return self._known().get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep a result."""
        known = self._known() | {key: value}
        unfinished = self.path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(known, indent=1) + "\n")
        unfinished.replace(self.path)

    def _known(self) -> dict[str, Any]:
        return json.loads(self.path.read_text()) if self.path.exists() else {}


class Time:
    """What is left of an item's time."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()


@dataclass(frozen=True, slots=True)
class Item:
    """Something to measure, in at most a share of all the time."""

    name: str
    share: float
    measure: Callable[[Report, Time, bool], bool]
    """Whether all of it is known; else a later run goes on with it."""


def _machine(report: Report) -> None:
    gpu = torch.cuda.get_device_name() if DEVICE == "cuda" else None
    report.put("environment", describe_machine() | {"gpu": gpu})


# --- kernels --------------------------------------------------------------------------------------


def correctness(report: Report, left: Time, is_tiny: bool) -> bool:
    """Every nth id of the grid, and all that are not of the grid, by pytest in processes."""
    _machine(report)
    every = 97 if is_tiny else 13
    xml = report.path.with_suffix(".xml")
    xml.unlink(missing_ok=True)
    words = [sys.executable, "-m", "pytest", "tests/kernels/test_attention.py"]
    words += ["tests/kernels/test_distance.py", "-m", "grid or not grid", "-p", "sampled_grid"]
    words += ["-n", "2" if is_tiny else "12", "-o", "filterwarnings=", f"--junitxml={xml}", "-rf"]
    paths = os.pathsep.join([str(ROOT / "bench"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "CONCEPTRY_EVERY": str(every)}
    output = ""
    try:
        done = subprocess.run(
            words,
            cwd=ROOT,
            env=environment,
            timeout=left.left,
            capture_output=True,
            text=True,
            check=False,
        )
        output = done.stdout
    except subprocess.TimeoutExpired as error:  # its processes may be long in ending
        output = (error.stdout or b"").decode(errors="replace")
        if not xml.exists():
            report.put("output", output[-6000:])
            raise
    suite = ET.parse(xml).getroot()[0]
    failed = [case for case in suite if case.find("failure") is not None]
    report.put("failed", [f"{case.get('classname')}::{case.get('name')}" for case in failed])
    report.put("output", output[-6000:] if failed else None)
    report.put("counts", {key: suite.get(key) for key in ("tests", "failures", "errors", "time")})
    report.put("every", every)
    return True


def kernels(report: Report, left: Time, is_tiny: bool) -> bool:
    """Rows of `bench/attention.py`, as many as there is time for; the largest first."""
    _machine(report)
    shapes = {"tiny": {(2, 64, 16): 1}} if is_tiny else attention.SHAPES
    dtype = torch.float16 if DEVICE == "cuda" else torch.float32
    report.put("dtype", str(dtype))
    report.put("twice_bit_equal", _is_repeatable(dtype))
    rows: list[dict[str, Any]] = report.get("rows") or []
    known = {(row["model"], row["batch"], row["positions"], row["width"]) for row in rows}
    for batch, model in itertools.product((8, 1), shapes):
        for shape, layers in shapes[model].items():
            heads, positions, width = shape
            if (model, batch, positions, width) in known:
                continue
            if left.left < 5:
                return False
            row: dict[str, Any] = {"model": model, "batch": batch, "heads": heads}
            row |= {"positions": positions, "width": width, "layers": layers}
            row["steps"] = attention.Bench(shape, batch, DEVICE, dtype).measure(0.15)
            rows.append(row)
            report.put("rows", rows)
            report.put("forward_backward_ratios", attention.sums(rows))
    return True


def _is_repeatable(dtype: torch.dtype) -> bool:
    bench = attention.Bench((8, 1024 if DEVICE == "cuda" else 64, 40), 2, DEVICE, dtype)

    def once() -> list[torch.Tensor]:
        results = attention.moments(*bench.leaves)
        upstream = [torch.ones_like(part) for part in results]
        return [*results, *torch.autograd.grad(results, bench.leaves, upstream)]

    return all(one.equal(two) for one, two in zip(once(), once(), strict=True))


# --- full size ------------------------------------------------------------------------------------


def _full_size(name: str, dtype: torch.dtype = torch.bfloat16) -> Backbone:
    with torch.device(DEVICE):
        return backbone_of(make_full_size(name, dtype))


def training_step(report: Report, left: Time, is_tiny: bool) -> bool:
    """Ours first: what a cut leaves out is the usual way."""
    _machine(report)
    report.put("shape", "the miniature, 64 px" if is_tiny else "SD 2.1-base, 512 px, batch 8")
    as_loaded = torch.float16  # as `load_base` has it on a GPU
    backbone = load_base().backbone if is_tiny else _full_size("SD 2.1", as_loaded)
    words = [f"resolution={64 if is_tiny else 512}", "augmentation.crops=8"]
    words += [f"stage{i}.batch={2 if is_tiny else 8}" for i in (1, 2, 3)]
    ways = ("ours", "eager", "eager float32")
    for way in ways:
        if report.get(way) or left.left < 10:
            continue
        told: defaultdict[str, Any] = defaultdict(train_step.Measured)
        precision = ["mixed_precision=no"] if way == "eager float32" else []
        try:
            with nullcontext() if way == "ours" else train_step.usual_way(backbone):
                train_step.measure(backbone, words + precision, 2 if is_tiny else 8, told)
        except torch.cuda.OutOfMemoryError as error:
            report.put(way, {"out_of_memory": str(error)[:200]})
            continue
        report.put(way, {stage: each.to_mapping() for stage, each in told.items()})
    steps = train_step.PAPER_STEPS if not is_tiny else {}
    ours = report.get("ours")
    of_all = sum(ours[stage]["seconds"] * count for stage, count in steps.items())
    report.put("seconds_for_660_steps", round(of_all, 1))
    if DEVICE == "cuda" and left.left > 15:
        report.put("profile_of_stage3", _profile(backbone, words))
    is_profiled = DEVICE == "cpu" or report.get("profile_of_stage3") is not None
    return is_profiled and all(report.get(way) for way in ways)


def _profile(backbone: Backbone, words: list[str]) -> str:
    """Where the time of some steps of the last stage goes."""
    told: defaultdict[str, Any] = defaultdict(train_step.Measured)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as seen:
        train_step.measure(backbone, words, 1, told, stages=("stage3",))
    table = seen.key_averages().table(sort_by="self_cuda_time_total", row_limit=30)
    return "\n".join(line[:60] + line[-160:] for line in table.splitlines())


def generation(report: Report, left: Time, is_tiny: bool) -> bool:
    """Pictures of SD 2.1-base's shape, 512 px, 50 steps, guidance 7.5, one and four at a time."""
    _machine(report)
    backbone = load_base().backbone if is_tiny else _full_size("SD 2.1")
    pipeline: Any = backbone.pipeline.to(DEVICE)
    pipeline.set_progress_bar_config(disable=True)
    steps = 2 if is_tiny else 50

    def ours(count: int) -> None:
        draw_batch(
            backbone, ["a dog"] * count, range(count), SamplingSettings(steps=steps, guidance=7.5)
        )

    def plain(count: int) -> None:
        pipeline(["a dog"] * count, num_inference_steps=steps, guidance_scale=7.5)

    for count in (1, 4):
        for name, way in (("ours", ours), ("diffusers", plain)):
            if report.get(f"{name}, {count} at a time"):
                continue
            if left.left < 10:
                return False
            taken = [_seconds_of(way, count) for _ in range(3)]
            report.put(f"{name}, {count} at a time", round(min(taken), 3))
    return True


def _seconds_of(way: Callable[[int], None], count: int) -> float:
    started = time.perf_counter()
    way(count)
    return time.perf_counter() - started


def memory(report: Report, left: Time, is_tiny: bool) -> bool:
    """Peaks of AttnDreamBooth, batch and size as the preset has them, beside what is counted."""
    _machine(report)
    if is_tiny or DEVICE == "cpu":
        return True
    for name, size in (("SD 1.5", 512), ("SD 2.1", 512), ("SDXL", 1024)):
        for preset in ("8gb", *(["8gb-sdxl"] if name == "SDXL" else []), "12gb", "24gb"):
            label = f"{name}, {preset}"
            if report.get(label):
                continue
            if left.left < 15:
                return False
            told: defaultdict[str, Any] = defaultdict(train_step.Measured)
            words = [f"resolution={size}", "augmentation.crops=8"]
            train_step.measure(_full_size(name), words, 1, told, preset=preset)
            measured = {stage: each.to_mapping() for stage, each in told.items()}
            report.put(label, {"measured": measured, "counted": _counted(name, preset)})
            torch.cuda.empty_cache()
    return True


def _counted(name: str, preset: str) -> dict[str, int]:
    """What `concept train --dry-run` counts, in bytes."""
    method = find_method("attndreambooth")
    family = name if name == "SDXL" else f"{name[:4]}.x"
    found = count_memory(usual_shapes(family), method, read_presets(method)[preset].settings)
    return {each.name: each.peak for each in found.stages}


# --- the miniature --------------------------------------------------------------------------------


def miniature(report: Report, left: Time, is_tiny: bool) -> bool:
    """Autoencoder, sharp decoder and U-Net by the recipe; then its pictures, and the judge's word.

    The weights end up in `miniature-weights` beside the report, ready to ship.
    """
    _machine(report)
    folder = report.path.with_name("miniature-run")
    start = folder / "start" / "unet.safetensors"
    if not start.exists():
        export.restore(folder)
        start.parent.mkdir()
        shutil.move(folder / "unet.safetensors", start)
        for name in ("vae", "decoder"):
            (folder / f"{name}.safetensors").unlink()
    workers = 1 if is_tiny else max(1, (os.cpu_count() or 2) - 1)
    to_show = min(25, 0.2 * left.left)
    for stage, share in (("vae", 0.2), ("decoder", 0.3), ("unet", 1.0)):
        if (folder / f"{stage}.safetensors").exists():
            continue
        spare = max(2.0, share * (left.left - to_show) - (0 if is_tiny else 7))
        train.train(
            stage if not is_tiny else _small(stage),
            folder,
            seconds=spare,
            num_workers=workers,
            start=start if stage == "unet" else None,
        )
        lines = (folder / f"{stage}.jsonl").read_text().splitlines() if not is_tiny else ["{}"]
        report.put(stage, [json.loads(line) for line in lines[:: max(1, len(lines) // 12)]])
        report.put(f"{stage} last", json.loads(lines[-1]))
    weights = report.path.with_name("miniature-weights")
    export.export(folder, weights)
    report.put("judged", _judged(weights, report, 2 if is_tiny else 192))
    return True


def _small(stage: str) -> Any:
    import dataclasses

    return dataclasses.replace(train.STAGES[stage], batch=4)


def _judged(weights: Path, report: Report, count: int) -> dict[str, float]:
    """A sheet of pictures, and shares of what prompts of held-out scenes name that is seen."""
    from diffusers import StableDiffusionPipeline

    pipeline: Any = StableDiffusionPipeline.from_pretrained(weights).to(DEVICE)
    backbone = backbone_of(pipeline)
    settings = SamplingSettings(steps=25, guidance=5.0)
    rows = []
    for prompt in PROMPTS[:1] if count < 9 else PROMPTS:
        images = draw_batch(backbone, [prompt] * 8, range(8), settings)
        rows.append((prompt, images))
    contact_sheet(rows, side=128).save(report.path.with_name("miniature-drawn.png"))
    judge, right = load_judge(), defaultdict(list)
    scenes = [sample_scene(seed, "held-out") for seed in range(7_000_000, 7_000_000 + count)]
    for first in range(0, count, 64):
        some = scenes[first : first + 64]
        prompts = [describe(scene) for scene in some]
        images = draw_batch(backbone, prompts, [scene.seed for scene in some], settings)
        for scene, prompt, seen in zip(some, prompts, judge.classify(images), strict=True):
            kinds = {subject.identity.category for subject in scene.subjects}
            right[f"all of {len(kinds)}"].append(kinds <= set(seen.categories))
            if scene.place in prompt:
                right["place"].append(seen.place == scene.place)
            for subject in scene.subjects:
                if f"{subject.identity.colour} {subject.identity.category}" in prompt:
                    found = seen.colours.get(subject.identity.category)
                    right["colour"].append(found == subject.identity.colour)
                if subject.accessory and subject.accessory in prompt:
                    right["accessory"].append(seen.accessory == subject.accessory)
    return {name: round(statistics.mean(values), 3) for name, values in sorted(right.items())}


# --- the laboratory -------------------------------------------------------------------------------


def laboratory(report: Report, left: Time, is_tiny: bool) -> bool:
    """Individual by individual, every way of `methods.py`; the registry stays beside the report."""
    _machine(report)
    folder = report.path.with_name("laboratory-run")
    folder.mkdir(exist_ok=True)
    some, short = ["textual-inversion"], ["embedding.steps=2", "augmentation.crops=2"]
    chosen = ways(some, short) if is_tiny else ways(["all"], [])
    base, seeds = load_base(), (0,) if is_tiny else (0, 1, 2, 3)
    rows: list[dict[str, Any]] = report.get("rows") or []
    longest = 0.0
    with Registry.open(folder / "concepts.db", create=True) as registry:
        for who in individuals("measured", 1 if is_tiny else 36):
            one = Laboratory(registry, base, [who], seeds)
            one.enter(folder)
            known = {row["method"] for row in rows if row["individual"] == who.name}
            for way in (way for way in chosen if way.label not in known):
                if left.left < longest:
                    return False
                started = time.monotonic()
                one.teach(way)
                rows += without_pictures([one.row(who, way)])
                report.put("rows", rows)
                report.put("summary", summary(rows))
                longest = max(longest, time.monotonic() - started)
    return True


ITEMS = (
    Item("kernels", 0.2, kernels),
    Item("training_step", 0.22, training_step),
    Item("generation", 0.1, generation),
    Item("correctness", 0.15, correctness),
    Item("miniature", 0.8, miniature),
    Item("memory", 0.2, memory),
    Item("laboratory", 0.8, laboratory),
)

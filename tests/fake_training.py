"""Trainings that did not happen, for tests of what the registry keeps of them."""

from pathlib import Path

import numpy as np
from conceptry.registry import Registry
from safetensors.numpy import save_file

BASE_SHA256 = "b" * 64


def weights_file(path: Path, seed: int = 0, size: int = 8) -> Path:
    """A small, sound safetensors file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    save_file({"token": values}, path)
    return path


def begin(registry: Registry, name: str, *, seed: int = 1) -> str:
    """A run that goes on."""
    return registry.begin_run(
        name,
        method="textual-inversion",
        config={"steps": 100, "rates": [0.5, 1e-05], "note": "größer"},
        base="miniature",
        base_sha256=BASE_SHA256,
        seed=seed,
        packages={"torch": "2.9", "diffusers": "0.42"},
    )


def train(registry: Registry, name: str, folder: Path, *, seed: int = 1) -> int:
    """A run with metrics that ended in a version with an alias and scores; returns its number."""
    run = begin(registry, name, seed=seed)
    registry.log_metrics(run, [("one", step, "loss", 1.0 / step) for step in (1, 2, 3)])
    registry.end_run(run, "done")
    weights = weights_file(folder / f"{name}-{seed}.safetensors", seed)
    number = registry.add_version(name, {"token.safetensors": weights}, run=run)
    registry.set_alias(name, number, "best")
    registry.add_evaluation(
        name, number, suite="live", config={"prompts": 2}, scores={"clip_i": 0.75, "parts": [1, 2]}
    )
    return number


def draw_with(registry: Registry, output_sha256: str, *versions: tuple[str, int]) -> None:
    """The record of a picture."""
    registry.add_generation(
        output_sha256,
        prompt="a photo of <rex> on a sofa",
        seed=7,
        base="miniature",
        base_sha256=BASE_SHA256,
        settings={"steps": 20, "guidance": 7.5},
        versions=versions,
    )

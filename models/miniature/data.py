"""Training batches, rendered ahead by worker processes.

Batch k of a stage is the same in every run: its scenes follow from the stage's name and k alone.
"""

import multiprocessing
import random
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import PIL.Image

from .identities import CATEGORIES, identity_seed, make_identity
from .world import Rendered, Scene, describe, render, sample_scene

MAX_SUBJECTS = 3
MASK_SIZE = 16
AHEAD = 6
"""Batches that each worker has ready or under way."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures (B, 3, size, size) as uint8, their sentences and their scenes.

    `masks` (B, 3, 16, 16), uint8, are those of up to three subjects, 0 where there is none;
    `foregrounds` (B, 16, 16) have what subjects wear, hold or sit on as well.
    """

    images: np.ndarray
    masks: np.ndarray
    foregrounds: np.ndarray
    captions: list[str]
    scenes: list[Scene]


def scenes_batch(step: int, *, split: str, offset: int, batch: int, size: int) -> Batch:
    """Batch `step` of random scenes; stages differ in `offset`, so that none repeats another's."""
    first = offset * 1_000_000_000 + step * batch
    return _rendered([sample_scene(first + i, split) for i in range(batch)], size)


def pairs_batch(step: int, *, split: str, offset: int, batch: int, size: int) -> Batch:
    """Batch `step` of identities in two scenes each: pictures 2i and 2i+1 show one identity.

    A quarter of the batch is of one category, so that telling categories apart does not suffice.
    """
    rng = random.Random(f"pairs {offset} {step}")
    category = rng.choice(CATEGORIES)
    scenes: list[Scene] = []
    for i in range(batch // 2):
        chosen = category if i % 4 == 0 else None
        identity = make_identity(identity_seed(rng, split), chosen)
        for _ in range(2):
            alone = rng.random() < 0.8
            scenes.append(
                sample_scene(
                    rng.randrange(1 << 40),
                    split,
                    identity=identity,
                    num_subjects=1 if alone else 2,
                    style="photo",
                )
            )
    return _rendered(scenes, size)


def _rendered(scenes: list[Scene], size: int) -> Batch:
    pictures: list[Rendered] = [render(scene, size) for scene in scenes]
    images = np.stack([np.asarray(picture.image) for picture in pictures]).transpose(0, 3, 1, 2)
    masks = np.zeros((len(scenes), MAX_SUBJECTS, MASK_SIZE, MASK_SIZE), dtype=np.uint8)
    for row, picture in zip(masks, pictures, strict=True):
        for i, mask in enumerate(picture.masks):
            row[i] = _small(mask)
    foregrounds = np.stack([_small(picture.foreground) for picture in pictures])
    return Batch(images, masks, foregrounds, [describe(scene) for scene in scenes], scenes)


def _small(mask: PIL.Image.Image) -> np.ndarray:
    return np.asarray(mask.resize((MASK_SIZE, MASK_SIZE), PIL.Image.Resampling.BOX))


def prefetched(
    make: Callable[[int], Batch] | partial[Batch], steps: range, num_workers: int
) -> Iterator[Batch]:
    """Yield `make(step)` for each step, in order, made by worker processes ahead of time."""
    if num_workers == 0:
        yield from map(make, steps)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        coming = deque(pool.submit(make, step) for step in steps[: AHEAD * num_workers])
        for step in steps:
            batch = coming.popleft().result()
            following = step + AHEAD * num_workers
            if following < steps.stop:
                coming.append(pool.submit(make, following))
            yield batch

"""Training batches, rendered ahead by worker processes.

Batch k of a stage is the same in every run: its scenes follow from the stage's name and k alone.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ....registry.errors import ConceptryError
from ..world.identities import CATEGORIES, identity_seed, make_identity
from ..world.layouts import random_layout
from ..world.scenes import MAX_SUBJECTS, Rendered, Scene, describe, face_mask, render, sample_scene

MASK_SIZE = 16
AHEAD = 6
"""Batches that each worker has ready or under way."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures (B, 3, size, size) as uint8, their sentences and their scenes.

    `masks` (B, 3, 16, 16), uint8, are those of up to three subjects, 0 where there is none;
    `foregrounds` (B, 16, 16) have what subjects wear, hold or sit on as well, `faces` (B, 16, 16)
    say where faces are. `layouts` (B, size, size), uint8, are rows of `layouts.PALETTE`, and
    `references` (B, 3, 64, 64) each first subject on white, where a stage asks for them.
    """

    images: Tensor
    masks: Tensor
    foregrounds: Tensor
    faces: Tensor
    captions: list[str]
    scenes: list[Scene]
    layouts: Tensor | None = None
    references: Tensor | None = None


def scenes_batch(
    step: int,
    *,
    split: str,
    offset: int,
    batch: int,
    size: int,
    crowds: Sequence[float] | None = None,
    with_layouts: bool = False,
) -> Batch:
    """Batch `step` of random scenes; stages differ in `offset`, so that none repeats another's.

    `crowds` are the shares of scenes with one, two and three subjects, if not the world's own.
    """
    first = offset * 1_000_000_000 + step * batch
    scenes: list[Scene] = []
    for seed in range(first, first + batch):
        count = None
        if crowds is not None:
            (count,) = random.Random(f"crowd {seed}").choices((1, 2, 3), crowds)
        scenes.append(sample_scene(seed, split, num_subjects=count))
    return batch_of(scenes, size, with_layouts=with_layouts)


layouts_batch = partial(scenes_batch, with_layouts=True)
"""The same with layouts."""


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
    return batch_of(scenes, size)


def batch_of(scenes: list[Scene], size: int, *, with_layouts: bool = False) -> Batch:
    """The pictures, masks and sentences of scenes."""
    pictures: list[Rendered] = [render(scene, size) for scene in scenes]
    images = np.stack([np.asarray(picture.image) for picture in pictures]).transpose(0, 3, 1, 2)
    masks = np.zeros((len(scenes), MAX_SUBJECTS, MASK_SIZE, MASK_SIZE), dtype=np.uint8)
    for row, picture in zip(masks, pictures, strict=True):
        for i, mask in enumerate(picture.masks):
            row[i] = _small(mask)
    foregrounds = np.stack([_small(picture.foreground) for picture in pictures])
    layouts = None
    if with_layouts:
        drawn = [random_layout(*each) for each in zip(scenes, pictures, strict=True)]
        layouts = torch.from_numpy(np.stack(drawn))
    return Batch(
        torch.from_numpy(images.copy()),
        torch.from_numpy(masks),
        torch.from_numpy(foregrounds),
        torch.from_numpy(np.stack([_small(face_mask(scene, size)) for scene in scenes])),
        [describe(scene) for scene in scenes],
        scenes,
        layouts,
    )


def _small(mask: PIL.Image.Image) -> np.ndarray:
    return np.asarray(mask.resize((MASK_SIZE, MASK_SIZE), PIL.Image.Resampling.BOX))


class _Batches(Dataset[Batch | ConceptryError]):
    def __init__(self, make: Callable[[int], Batch], steps: range) -> None:
        self._make, self._steps = make, steps

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, index: int) -> Batch | ConceptryError:
        try:
            return self._make(self._steps[index])
        except ConceptryError as error:  # a loader would put a traceback into its message
            return error


def prefetched(make: Callable[[int], Batch], steps: range, num_workers: int) -> Iterator[Batch]:
    """Yield `make(step)` for each step, in order, made by worker processes ahead of time.

    Raises a `ConceptryError` that a worker met.
    """
    loader = DataLoader(
        _Batches(make, steps),
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        prefetch_factor=AHEAD if num_workers else None,
        multiprocessing_context="spawn" if num_workers else None,
    )
    for made in loader:
        if isinstance(made, ConceptryError):
            raise made
        yield made


def _as_it_is(batch: object) -> object:
    return batch

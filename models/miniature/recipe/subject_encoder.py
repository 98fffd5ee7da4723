"""Scenes and references of their first subjects, from which the subject encoder learns.

DreamTuner's references are the pictures themselves, without background (certain). A renderer can
also show the same individual in another scene, from which no layout can be copied.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from ...pixels import on_white, reduced
from ..architecture import SMALL_SIZE
from ..world.scenes import Scene, render, sample_scene
from .data import Batch, batch_of

REFERENCES = ("same", "other")
"""A reference is cut out of the scene itself, or out of another one of the same individual."""


def subjects_batch(
    step: int,
    *,
    split: str,
    offset: int,
    batch: int,
    size: int,
    crowds: Sequence[float],
    references: str,
    control: bool,
) -> Batch:
    """Batch `step` of scenes in colour, with references, and layouts for a ControlNet."""
    first = offset * 1_000_000_000 + step * batch
    scenes: list[Scene] = []
    for seed in range(first, first + batch):
        (count,) = random.Random(f"crowd {seed}").choices((1, 2, 3), crowds)
        scenes.append(sample_scene(seed, split, num_subjects=count, style="photo"))
    found = batch_of(scenes, size, with_layouts=control)
    others = [_scene_of_reference(scene, split, references) for scene in scenes]
    pictures = np.stack([np.asarray(reference_in(scene, size)) for scene in others])
    return replace(found, references=torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy()))


def _scene_of_reference(scene: Scene, split: str, references: str) -> Scene:
    if references == "same":
        return scene
    seed = random.Random(f"reference {scene.seed}").randrange(1 << 40)
    identity = scene.subjects[0].identity
    return sample_scene(seed, split, identity=identity, num_subjects=1, style="photo")


def reference_in(scene: Scene, size: int) -> Image.Image:
    """The first subject of a scene that is rendered at a size, on white, 64x64."""
    rendered = render(scene, size)
    return reduced(on_white(rendered.image, rendered.masks[0]), SMALL_SIZE)

"""Batches of crops that are not square, and what SDXL is told of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conceptry.methods.method import find_method, resolve_settings
from conceptry.models.backbone import Backbone
from conceptry.models.loading import backbone_of
from conceptry.training.callbacks import StepReport
from conceptry.training.crops import bucket_of
from conceptry.training.trainer import run_one
from conceptry.training.training import Subject, Training
from drawing import draw
from long import quick_for
from tiny_base import make_tiny_sdxl

SIZES = [(40, 32), (60, 20), (41, 33)]
WORDS = (
    *("augmentation.buckets=true", "augmentation.crops=9", "augmentation.rotation_probability=0"),
    *("unet.steps=12", "unet.batch=3", "prior.weight=1"),
)


def seen_by_unet(backbone: Backbone, path: Path, words: tuple[str, ...] = WORDS) -> list[Any]:
    """(latents, time ids) of each call of the denoiser in a training with class pictures."""
    calls: list[Any] = []

    def look(_: Any, args: Any, options: Any) -> None:
        added = options.get("added_cond_kwargs") or {}
        calls.append((args[0].detach().clone(), added.get("time_ids")))

    method = find_method("dreambooth")
    settings = resolve_settings(method, base="tiny", overrides=words)
    photos = [draw(i, size) for i, size in enumerate(SIZES)]
    subject = Subject(
        photos=photos,
        category="dog",
        tokens=("<v>", "<w>"),
        sizes=[(10 * width, 10 * height) for width, height in SIZES],
        class_pictures=[draw(9, (24, 24))],
        captions=["a dog on a chair", None, "a dog"],
    )
    training = Training(backbone, method, settings, subject, seed=3)
    seen: list[StepReport] = []
    training.hooks.on_step = seen.append
    hook = backbone.denoiser.register_forward_pre_hook(look, with_kwargs=True)
    try:
        run_one(training, path / "resume.safetensors")
    finally:
        hook.remove()
    assert len(seen) == 12
    return calls


def test_a_batch_has_one_shape_and_class_pictures_are_square(
    backbone: Backbone, tmp_path: Path
) -> None:
    calls = seen_by_unet(backbone, tmp_path, (*WORDS, "captions.share=1"))
    own = [tuple(latents.shape) for latents, _ in calls[::2]]
    factor = backbone.latent_factor
    shapes = {bucket_of(size, 16, 2) for size in SIZES}
    assert len(shapes) == 2
    assert set(own) == {(3, 4, height // factor, width // factor) for width, height in shapes}
    assert {tuple(latents.shape) for latents, _ in calls[1::2]} == {(3, 4, 8, 8)}


@pytest.mark.parametrize("buckets", quick_for(1, ["false", "true"]))
def test_sdxl_is_told_of_sizes_and_corners(tmp_path: Path, buckets: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = backbone_of(make_tiny_sdxl())
    words = (*WORDS, f"augmentation.buckets={buckets}", "augmentation.smallest=1")
    calls = seen_by_unet(backbone, tmp_path, words)
    for latents, told in calls[::2]:
        height, width = (side * backbone.latent_factor for side in latents.shape[2:])
        originals = {(10 * size[1], 10 * size[0]) for size in SIZES}
        assert {tuple(row[:2].int().tolist()) for row in told} <= originals
        assert told[:, 4:].eq(torch.tensor([height, width])).all()
        assert told[:, 2:4].min(1).values.eq(0).all(), "at an edge, as the crops are whole"
    corners = torch.cat([told[:, 2:4] for _, told in calls[::2]])
    assert (corners > 0).any() or buckets == "true", "squares leave out a part"
    for _, told in calls[1::2]:
        assert told.eq(torch.tensor([24, 24, 0, 0, 16, 16])).all(), "they are made smaller, whole"

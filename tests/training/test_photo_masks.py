"""Masks of photos in a training: their weights, and the loss that they weigh."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conceptry.generation.photo_regions import regions_of_photos
from conceptry.generation.prompt_syntax import resolve_prompt
from conceptry.methods.diffusion_loss import diffusion_loss
from conceptry.methods.settings import Augmentation, Losses
from conceptry.models.loading import LoadedBase
from conceptry.registry import Registry
from conceptry.registry.errors import InvalidInput, TrainingInterrupted
from conceptry.training.callbacks import Hooks, StepReport
from conceptry.training.crops import Photos, varied_crops
from conceptry.training.latents import loss_weights
from conceptry.training.photo_masks import masks_for_training
from conceptry.training.runs import resume, train, train_many
from drawing import draw, draw_folder, draw_masks
from long import quick_for
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

SHORT = ("augmentation.crops=4", *(f"stage{i}.steps=2" for i in (1, 2, 3)))
STORED = (*SHORT, "mask.use=stored")


def half_white(size: tuple[int, int] = (8, 8)) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


def test_weights_by_hand() -> None:
    """Half a crop inside: 1 and 0.1 average 0.55. A latent on the edge has its share of both."""
    (weights,) = loss_weights([half_white()], 2, 0.1)
    assert weights.shape == (1, 4, 4)
    inside, outside = 1 / 0.55, 0.1 / 0.55
    torch.testing.assert_close(weights[0, 0], torch.tensor([inside] * 2 + [outside] * 2))
    mask = Image.new("L", (8, 8))
    mask.paste(255, (0, 0, 3, 8))
    (weights,) = loss_weights([mask], 2, 0.0)
    torch.testing.assert_close(weights[0, 0] / weights[0, 0, 0], torch.tensor([1.0, 0.5, 0.0, 0.0]))


@pytest.mark.parametrize("background", [0.0, 0.1, 1.0])
def test_the_weights_of_each_crop_average_1(background: float) -> None:
    masks = [draw(i, (32, 32), "L") for i in range(3)]
    means = loss_weights(masks, 4, background).mean((1, 2, 3))
    torch.testing.assert_close(means, torch.ones(3))


def test_a_crop_that_shows_only_background_counts_as_a_whole_or_not_at_all() -> None:
    black = Image.new("L", (8, 8))
    assert loss_weights([black], 2, 0.1).allclose(torch.ones(1))
    assert not loss_weights([black], 2, 0.0).any()


@pytest.mark.parametrize("size", [(40, 32), (300, 200), (90, 400)])
def test_masks_are_cut_where_their_photos_are(size: tuple[int, int]) -> None:
    """A photo that is its own mask gives equal crops of both."""
    mask = draw(3, size, "L")
    settings = Augmentation(crops=12)
    photos = varied_crops([mask.convert("RGB")], 16, settings, seed=5)
    masks = varied_crops([mask], 16, settings, seed=5)
    for photo, own in zip(photos, masks, strict=True):
        assert np.array_equal(np.asarray(photo.image)[..., 0], np.asarray(own.image))
        assert photo.corner == own.corner


@pytest.mark.parametrize("kind", ["l2", "huber"])
def test_the_loss_is_weighted_by_position(kind: Any) -> None:
    scheduler: Any = type("Scheduler", (), {"alphas_cumprod": torch.tensor([0.9, 0.5])})
    predicted, target = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    timesteps, settings = torch.arange(2), Losses(kind=kind)

    def loss(weights: Tensor | None) -> Tensor:
        return diffusion_loss(predicted, target, timesteps, scheduler, settings, weights)

    plain = loss(None)
    torch.testing.assert_close(loss(torch.ones(2, 1, 3, 3)), plain)
    weights = torch.zeros(2, 1, 3, 3)
    weights[:, :, 1] = 3
    row = diffusion_loss(predicted[:, :, 1:2], target[:, :, 1:2], timesteps, scheduler, settings)
    torch.testing.assert_close(loss(weights), row)


# --- whole trainings ------------------------------------------------------------------------------


@pytest.fixture
def masked(rex: Registry, photos: Path) -> Registry:
    """A rex whose first two photos have masks, and the third has none."""
    photos_of_rex = sorted(photos.iterdir())
    rex.add("rex", photos_of_rex[:2], masks=draw_masks(photos.parent / "masks", 2))
    return rex


def masks_of(registry: Registry, base: LoadedBase, use: Any, side: int = 64) -> list[Image.Image]:
    concept = registry.show("rex")
    photos = Photos([lambda i=i: registry.read_photo(i, at_least=side) for i in concept.images])
    return list(masks_for_training(registry, base, concept, photos, use))


def test_masks_are_as_large_as_photos_are_read(masked: Registry, base: LoadedBase) -> None:
    concept = masked.show("rex")
    found = masks_of(masked, base, "stored")
    assert [each.size for each in found] == [
        masked.read_photo(image, at_least=64).size for image in concept.images
    ]
    own = masked.read_mask(concept.images[0])
    assert own is not None
    assert np.array_equal(np.asarray(found[0]), np.asarray(own.resize(found[0].size, 2)))
    assert found[2].getextrema() == (255, 255), "without a mask all of it is subject"
    assert masks_of(masked, base, "none") == []


def test_auto_finds_those_that_are_not_stored(masked: Registry, base: LoadedBase) -> None:
    stored, auto = (masks_of(masked, base, use) for use in ("stored", "auto"))
    assert [a.tobytes() == b.tobytes() for a, b in zip(stored, auto, strict=True)] == [
        True,
        True,
        False,
    ]
    photo = masked.read_photo(masked.show("rex").images[2], at_least=64)
    (region,) = regions_of_photos(base, [photo], "dog")
    assert auto[2].tobytes() == region.resize(photo.size, 2).tobytes()


def learned(registry: Registry, number: int) -> dict[str, Tensor]:
    return load_file(resolve_prompt(registry, f"<rex@{number}>")[0].path)


def losses_of(registry: Registry, base: LoadedBase, *overrides: str, **more: Any) -> list[float]:
    found: list[float] = []

    def note(report: StepReport) -> None:
        found.append(report.losses["diffusion"])

    train(registry, "rex", base, overrides=(*SHORT, *overrides), hooks=Hooks(on_step=note), **more)
    return found


def test_only_what_is_masked_changes_a_training(masked: Registry, base: LoadedBase) -> None:
    plain = losses_of(masked, base)
    whole = losses_of(masked, base, "mask.use=stored", "mask.background=1")
    assert whole == pytest.approx(plain, rel=1e-5)
    own = losses_of(masked, base, "mask.use=stored", "mask.background=0")
    assert own != pytest.approx(plain, rel=1e-3)


@pytest.mark.long
def test_masks_and_other_losses_go_together(masked: Registry, base: LoadedBase) -> None:
    seen: list[set[str]] = []
    train(
        masked,
        "rex",
        base,
        overrides=(*STORED, "prior.weight=1", "prior.num_images=2", "loss.subject_wise=0.1"),
        hooks=Hooks(on_step=lambda report: seen.append(set(report.losses))),
    )
    assert {"diffusion", "prior", "subject-wise"} <= seen[-1]


@pytest.mark.parametrize("use", ["stored", "auto"])
@pytest.mark.parametrize("steps", quick_for(1, [1, 4]))
@pytest.mark.long
def test_a_run_goes_on_with_the_masks_that_it_began_with(
    use: str, steps: int, masked: Registry, base: LoadedBase, tmp_path: Path
) -> None:
    overrides = (*SHORT, f"mask.use={use}", "gradient_accumulation=2")
    train(masked, "rex", base, overrides=overrides)
    calls = iter(range(1, 100))
    stopping = Hooks(should_stop=lambda: next(calls) >= steps)
    with pytest.raises(TrainingInterrupted):
        train(masked, "rex", base, overrides=overrides, hooks=stopping)
    photo = sorted((tmp_path / "photos").iterdir())[1:2]
    Image.new("L", (512, 512), 255).save(tmp_path / "masks/01.png")
    masked.add("rex", photo, masks=tmp_path / "masks")
    resume(masked, "rex", base)
    whole, gone_on = learned(masked, 1), learned(masked, 2)
    assert all(whole[name].equal(gone_on[name]) for name in whole)


def test_masks_that_are_gone_are_told(masked: Registry, base: LoadedBase, tmp_path: Path) -> None:
    with pytest.raises(TrainingInterrupted):
        train(masked, "rex", base, overrides=STORED, hooks=Hooks(should_stop=lambda: True))
    Image.new("L", (512, 512), 255).save(tmp_path / "masks/01.png")
    masked.add("rex", sorted((tmp_path / "photos").iterdir())[1:2], masks=tmp_path / "masks")
    masked.gc(grace=0)
    with pytest.raises(InvalidInput, match="1 of the masks that the run of rex began with"):
        resume(masked, "rex", base)


def test_in_a_batch_each_has_its_own_masks(masked: Registry, base: LoadedBase) -> None:
    """mia has none; each learns what it learns alone."""
    masked.add("mia", [draw_folder(Path("cats"), 2)], category="cat")
    overrides = ("augmentation.crops=2", "embedding.steps=3", "mask.use=stored")
    together = train_many(masked, ["rex", "mia"], base, method="sefi", overrides=overrides)
    alone = train(masked, "rex", base, method="sefi", overrides=overrides)
    assert [type(each).__name__ for each in together] == ["Trained", "Trained"]
    both, one = learned(masked, 1), learned(masked, alone.version)
    for name, value in one.items():
        torch.testing.assert_close(both[name], value, rtol=1e-3, atol=1e-4)

"""Zero terminal SNR (Lin et al. 2023), for base models whose scheduler says so."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conceptry.generation.request import SamplingSettings
from conceptry.generation.sampler import draw, draw_batch
from conceptry.models.backbone import Backbone
from conceptry.models.loading import backbone_of, load_base
from conceptry.models.sd import SCHEDULERS
from conceptry.registry.errors import InvalidInput
from diffusers import DDIMScheduler, HeunDiscreteScheduler, PNDMScheduler
from tiny_base import make_tiny_base, make_tiny_sdxl, write_tiny_base

ZERO = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
NAMES = [None, *SCHEDULERS]


def with_zero_snr(make: Any = make_tiny_base, kind: Any = DDIMScheduler) -> Backbone:
    """A base model that predicts velocity; `leading`, as its own scheduler is."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = make()
    config = dict(pipeline.scheduler.config) | ZERO | {"timestep_spacing": "leading"}
    del config["_use_default_values"]
    pipeline.scheduler = kind.from_config(config)
    return backbone_of(pipeline)


def rescaled(betas: torch.Tensor) -> torch.Tensor:
    """The paper's algorithm 1, in float64: ᾱ of each timestep."""
    roots = (1 - betas.double()).cumprod(0).sqrt()
    roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    return roots.square()


@pytest.mark.parametrize("kind", [DDIMScheduler, PNDMScheduler], ids=lambda kind: kind.__name__)
def test_training_ends_in_noise_alone(kind: Any) -> None:
    scheduler: Any = with_zero_snr(kind=kind).training_scheduler()
    assert scheduler.config["prediction_type"] == "v_prediction"
    assert scheduler.alphas_cumprod[-1] == 0
    plain: Any = backbone_of(make_tiny_base()).training_scheduler()
    assert plain.alphas_cumprod[-1] > 0.004
    expected = rescaled(plain.betas)
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), expected, rtol=1e-4, atol=1e-6)
    noise, last = torch.randn(1, 4, 2, 2), torch.tensor([999])
    assert scheduler.add_noise(torch.ones_like(noise), noise, last).equal(noise)


@pytest.mark.parametrize(
    "own", [DDIMScheduler, PNDMScheduler, HeunDiscreteScheduler], ids=lambda kind: kind.__name__
)
@pytest.mark.parametrize("name", NAMES)
def test_drawing_begins_at_the_last_timestep(name: str | None, own: Any) -> None:
    scheduler: Any = with_zero_snr(kind=own).sampling_scheduler(name)
    scheduler.set_timesteps(20)
    assert scheduler.timesteps.tolist() == [999 - 50 * i for i in range(20)]
    if isinstance(scheduler, DDIMScheduler):
        assert scheduler.alphas_cumprod[-1] == 0
        assert not scheduler.config["clip_sample"]
    else:  # theirs would divide by 0
        assert scheduler.alphas_cumprod[-1] == 2**-24


def test_other_base_models_are_drawn_as_before() -> None:
    scheduler: Any = backbone_of(make_tiny_base()).sampling_scheduler(None)
    scheduler.set_timesteps(20)
    assert scheduler.timesteps[0] == 951
    assert scheduler.alphas_cumprod[-1] > 0.004


@pytest.mark.parametrize("name", NAMES)
def test_the_first_step_takes_the_picture_that_velocity_says(name: str | None) -> None:
    """At ᾱ = 0 the prediction is -x₀: noise alone says nothing of the picture."""
    scheduler: Any = with_zero_snr().sampling_scheduler(name)
    scheduler.set_timesteps(20)
    generator = torch.Generator().manual_seed(0)
    noise, velocity = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(2))
    latents = noise * scheduler.init_noise_sigma
    first, second = scheduler.timesteps[:2]
    scheduler.scale_model_input(latents, first)
    following = scheduler.step(velocity, first, latents, return_dict=False)[0]
    alpha = rescaled(make_tiny_base().scheduler.betas)[int(second)]
    expected = alpha.sqrt() * -velocity + (1 - alpha).sqrt() * noise
    if name == "euler":  # its latents are x₀ with noise, not scaled to a variance of 1
        following = following * alpha.sqrt()
    torch.testing.assert_close(following.double(), expected.double(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", [make_tiny_base, make_tiny_sdxl], ids=["SD", "SDXL"])
def test_pictures_are_those_of_diffusers(make: Any, name: str | None) -> None:
    """Guided; in its own call the scheduler has to be told to be trailing."""
    backbone = with_zero_snr(make)
    settings = SamplingSettings(steps=4, guidance=5.0, scheduler=name)
    (found,) = draw_batch(backbone, ["a red cat"], [3], settings)
    pipeline: Any = backbone.pipeline
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = SCHEDULERS[name or "ddim"].from_config(
        pipeline.scheduler.config, timestep_spacing="trailing"
    )
    expected = pipeline(
        "a red cat",
        num_inference_steps=4,
        guidance_scale=5.0,
        generator=[torch.Generator().manual_seed(3)],
    ).images[0]
    assert found.tobytes() == expected.tobytes()
    assert np.asarray(found).std() > 0


def test_noise_prediction_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_base(tmp_path / "tiny")
    path = folder / "scheduler" / "scheduler_config.json"
    text = path.read_text()
    path.write_text(
        text.replace('"rescale_betas_zero_snr": false', '"rescale_betas_zero_snr": true')
    )
    with pytest.raises(InvalidInput, match="predicts noise, which says nothing") as error:
        load_base(str(folder))
    assert "v_prediction" in str(error.value.hint)
    path.write_text(path.read_text().replace('"epsilon"', '"v_prediction"'))
    base = load_base(str(folder))
    (picture,) = draw(base, "a dog", [1], SamplingSettings(steps=2))
    assert np.isfinite(np.asarray(picture.image)).all()

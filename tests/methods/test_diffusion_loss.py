"""The diffusion loss: its targets, kinds and weights are those of the papers."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conceptry.methods.diffusion_loss import (
    diffusion_loss,
    diffusion_target,
    huber_threshold,
    min_snr_weight,
    pseudo_huber,
    signal_to_noise,
)
from conceptry.methods.settings import Losses
from conceptry.models.miniature.architecture import make_scheduler
from diffusers import DDPMScheduler
from torch import Tensor

KINDS = ["epsilon", "v_prediction", "sample"]


def scheduler_of(kind: str, **options: Any) -> Any:
    return DDPMScheduler.from_config(make_scheduler().config, prediction_type=kind, **options)


def by_hand(kind: str = "epsilon") -> Any:
    """Four timesteps whose SNR is 9, 1, 1/4 and, at last, 0."""
    alphas = torch.tensor([0.9, 0.5, 0.2, 0.0], dtype=torch.float64)
    return SimpleNamespace(alphas_cumprod=alphas, config={"prediction_type": kind})


ALL = torch.arange(4)


def exactly(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_targets_lead_back_to_the_picture(kind: str) -> None:
    """From the noisy latents and the target, x0 can be computed: which target it is matters."""
    scheduler: Any = DDPMScheduler.from_config(make_scheduler().config, prediction_type=kind)
    latents, noise = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    timesteps = torch.tensor([10, 700])
    noisy = scheduler.add_noise(latents, noise, timesteps)
    target = diffusion_target(scheduler, latents, noise, timesteps)
    alpha = scheduler.alphas_cumprod[timesteps][:, None, None, None]
    back = {
        "epsilon": (noisy - (1 - alpha).sqrt() * target) / alpha.sqrt(),
        "v_prediction": alpha.sqrt() * noisy - (1 - alpha).sqrt() * target,
        "sample": target,
    }[kind]
    torch.testing.assert_close(back, latents, rtol=1e-3, atol=1e-3)


def test_by_default_it_is_the_mean_squared_error() -> None:
    predicted, target = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    errors = diffusion_loss(predicted, target, ALL[:2], by_hand(), Losses())
    for each, one, other in zip(errors, predicted, target, strict=True):
        torch.testing.assert_close(each, torch.nn.functional.mse_loss(one, other))


def test_the_signal_to_noise_ratio() -> None:
    torch.testing.assert_close(signal_to_noise(by_hand(), ALL), exactly([9, 1, 0.25, 0]))


@pytest.mark.parametrize(
    ("kind", "weights"),
    [
        ("epsilon", [5 / 9, 1, 1, 1]),
        ("v_prediction", [5 / 10, 1 / 2, 0.25 / 1.25, 0]),
        ("sample", [5, 1, 0.25, 0]),
    ],
)
def test_min_snr_weights(kind: str, weights: list[float]) -> None:
    """Hang et al. 2023 with γ = 5: min(SNR, γ) by what a target's error is of that in x₀."""
    torch.testing.assert_close(min_snr_weight(by_hand(kind), ALL, 5.0), exactly(weights))


def test_min_snr_weighs_the_same_error_alike_whatever_is_predicted() -> None:
    """One picture that is guessed wrong, said as noise, as velocity and as the picture."""
    shape = (4, 4, 3, 3)
    generator = torch.Generator().manual_seed(0)
    latents, noise, wrong = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    timesteps = torch.tensor([3, 200, 600, 990])
    found = {}
    for kind in KINDS:
        scheduler = scheduler_of(kind)
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
        alpha = scheduler.alphas_cumprod[timesteps][:, None, None, None]
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        its_noise = (noisy - alpha.sqrt() * wrong) / (1 - alpha).sqrt()
        target = diffusion_target(scheduler, latents, noise, timesteps)
        predicted = diffusion_target(scheduler, wrong, its_noise, timesteps)
        errors = (predicted - target).square().flatten(1).mean(1)
        found[kind] = errors * min_snr_weight(scheduler, timesteps, 5.0)
    for kind in KINDS:
        torch.testing.assert_close(found[kind], found["sample"])


@pytest.mark.parametrize(
    ("difference", "threshold", "value"),
    [(3.0, 4.0, 8.0), (-3.0, 4.0, 8.0), (0.0, 0.1, 0.0), (12.0, 5.0, 80.0)],
)
def test_pseudo_huber_by_hand(difference: float, threshold: float, value: float) -> None:
    """2c (√(d² + c²) - c), of triangles with whole sides."""
    d = exactly([difference]).reshape(1, 1, 1, 1).requires_grad_(True)
    found = pseudo_huber(d, exactly([threshold]))
    torch.testing.assert_close(found, exactly([value]).reshape(1, 1, 1, 1))
    (slope,) = torch.autograd.grad(found.sum(), d)
    expected = 2 * threshold * difference / (difference**2 + threshold**2) ** 0.5
    torch.testing.assert_close(slope, torch.full_like(slope, expected))


@pytest.mark.parametrize(
    ("schedule", "thresholds"),
    [
        ("constant", [0.1] * 4),
        ("exponential", [1, 0.1**0.25, 0.1**0.5, 0.1**0.75]),
        ("snr", [0.9 / (1 + 1 / 3) ** 2 + 0.1, 0.9 / 4 + 0.1, 0.9 / 9 + 0.1, 0.1]),
    ],
)
def test_thresholds_of_huber(schedule: Any, thresholds: list[float]) -> None:
    found = huber_threshold(by_hand(), ALL, Losses(huber_schedule=schedule, huber_c=0.1))
    torch.testing.assert_close(found.double(), exactly(thresholds))


def test_kind_and_weight_are_both_in_the_loss() -> None:
    """At SNR 9 the weight is 5/9, at SNR 1 it is 1."""
    difference = torch.tensor([0.3, 1.2]).reshape(2, 1, 1, 1).expand(2, 4, 3, 3)
    settings = Losses(kind="huber", huber_schedule="constant", huber_c=0.5, min_snr_gamma=5)
    found = diffusion_loss(difference, torch.zeros(2, 4, 3, 3), ALL[:2], by_hand(), settings)
    values = [2 * 0.5 * ((d**2 + 0.25) ** 0.5 - 0.5) for d in (0.3, 1.2)]
    torch.testing.assert_close(found.double(), exactly([values[0] * 5 / 9, values[1]]))


@pytest.mark.parametrize("schedule", ["constant", "exponential", "snr"])
@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_at_zero_terminal_snr_all_is_finite(kind: str, schedule: Any) -> None:
    scheduler = scheduler_of(kind, rescale_betas_zero_snr=True)
    assert scheduler.alphas_cumprod[-1] == 0
    latents, noise, timesteps = torch.randn(1, 4, 3, 3), torch.randn(1, 4, 3, 3), ALL[-1:] * 333
    assert scheduler.add_noise(latents, noise, timesteps).equal(noise)
    predicted = torch.zeros_like(latents, requires_grad=True)
    target = diffusion_target(scheduler, latents, noise, timesteps)
    settings = Losses(kind="huber", huber_schedule=schedule, min_snr_gamma=5)
    loss = diffusion_loss(predicted, target, timesteps, scheduler, settings).sum()
    (gradient,) = torch.autograd.grad(loss, predicted)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()

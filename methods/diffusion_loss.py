"""The diffusion loss: its target, its kind, and its weight by timestep."""

import torch
from torch import Tensor

from ..models.backbone import TrainingScheduler
from .settings import Losses


def diffusion_target(
    scheduler: TrainingScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor
) -> Tensor:
    """The target of the U-Net's prediction, by the scheduler's `prediction_type`.

    The noise ε (Ho et al. 2020, eq. 14), the velocity v = √ᾱ ε - √(1-ᾱ) x₀ (Salimans and Ho 2022,
    appendix D) or x₀ itself. All shapes are those of `latents`, (B, C, h, w).
    """
    kind = scheduler.config["prediction_type"]
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    if kind == "sample":
        return latents
    raise _unknown(kind)


def diffusion_loss(
    predicted: Tensor,
    target: Tensor,
    timesteps: Tensor,
    scheduler: TrainingScheduler,
    settings: Losses,
    weights: Tensor | None = None,
) -> Tensor:
    """The weighted error of each sample (B,), in float32: the mean over a latent's values.

    `weights` (B, 1, h, w) are those of a latent's positions.
    """
    difference = predicted.float() - target.float()
    if settings.kind == "huber":
        values = pseudo_huber(difference, huber_threshold(scheduler, timesteps, settings))
    else:
        values = difference.square()
    if weights is not None:
        values = values * weights
    errors = values.flatten(1).mean(1)
    if settings.min_snr_gamma:
        errors = errors * min_snr_weight(scheduler, timesteps, settings.min_snr_gamma)
    return errors


def pseudo_huber(difference: Tensor, threshold: Tensor) -> Tensor:
    """2c (√(d² + c²) - c): d² where d is small, 2c |d| where it is large.

    As sd-scripts has it. `difference` is (B, C, h, w), the threshold c (B,).
    """
    c = threshold[:, None, None, None]
    return 2 * c * ((difference.square() + c.square()).sqrt() - c)


def huber_threshold(scheduler: TrainingScheduler, timesteps: Tensor, settings: Losses) -> Tensor:
    """The threshold of `pseudo_huber` at timesteps (B,), (B,).

    With c the setting `huber_c`, T the number of timesteps and σ² = (1-ᾱ)/ᾱ: c itself, c^(t/T), or
    (1-c)/(1+σ)² + c, as sd-scripts has it.
    """
    c = settings.huber_c
    if settings.huber_schedule == "constant":
        return torch.full(timesteps.shape, c, device=timesteps.device)
    if settings.huber_schedule == "exponential":
        return c ** (timesteps / len(scheduler.alphas_cumprod))
    sigma = signal_to_noise(scheduler, timesteps).rsqrt()
    return (1 - c) / (1 + sigma).square() + c


def min_snr_weight(scheduler: TrainingScheduler, timesteps: Tensor, gamma: float) -> Tensor:
    """The weight min(SNR, γ) of an error in x₀ (Hang et al. 2023, section 3.4) at timesteps, (B,).

    An error in ε is √SNR of that in x₀, and one in v √(SNR + 1) of it: the weight is divided by the
    square. It is finite where the SNR is 0.
    """
    snr = signal_to_noise(scheduler, timesteps)
    kind = scheduler.config["prediction_type"]
    if kind == "epsilon":
        return (gamma / snr).clamp(max=1)
    if kind == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    if kind == "sample":
        return snr.clamp(max=gamma)
    raise _unknown(kind)


def signal_to_noise(scheduler: TrainingScheduler, timesteps: Tensor) -> Tensor:
    """The signal-to-noise ratio ᾱ/(1-ᾱ) at timesteps (B,), (B,); 0 at zero terminal SNR."""
    alphas = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    return alphas / (1 - alphas)


def _unknown(kind: object) -> ValueError:
    return ValueError(f"prediction_type is {kind!r}: expected epsilon, v_prediction or sample")

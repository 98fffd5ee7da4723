"""What a minibatch is made of: its timesteps, and the noise in it."""

import math
from typing import Any

import pytest
import torch
from conceptry.methods.settings import Noise
from conceptry.training.latents import LatentPool
from conceptry.training.sources import Minibatch, SampleSource, sample_timesteps


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def timesteps(size: int = 4000, **settings: Any) -> torch.Tensor:
    return sample_timesteps(size, 1000, Noise(**settings), seeded())


def test_by_default_all_timesteps_are_equally_likely() -> None:
    assert timesteps().equal(torch.randint(1000, (4000,), generator=seeded()))


@pytest.mark.parametrize("density", ["uniform", "logit-normal"])
@pytest.mark.parametrize(
    ("lowest", "highest", "first", "last"),
    [(0.2, 0.57, 200, 569), (0.0, 0.004, 0, 3), (0.9999, 1.0, 999, 999), (0.5, 0.50001, 500, 500)],
)
def test_a_range_is_kept_and_filled(
    density: str, lowest: float, highest: float, first: int, last: int
) -> None:
    found = timesteps(density=density, lowest=lowest, highest=highest, logit_std=3.0)
    assert (found.min(), found.max()) == (first, last)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 0.6), (-2.0, 3.0)])
def test_logit_normal_by_hand(mean: float, std: float) -> None:
    """A share of the range is 1 / (1 + exp(-x)), of a normal x of that mean and deviation."""
    normal = torch.randn(4000, generator=seeded(), dtype=torch.float64).tolist()
    shares = [1 / (1 + math.exp(-(mean + std * x))) for x in normal]
    found = timesteps(density="logit-normal", logit_mean=mean, logit_std=std, lowest=0.1)
    assert found.tolist() == [100 + min(int(900 * share), 899) for share in shares]
    below = (found < 100 + 900 / (1 + math.exp(-mean))).double().mean()
    assert below == pytest.approx(0.5, abs=0.03), "half are below the median"


def test_the_last_timestep_is_the_last_at_any_mean() -> None:
    assert timesteps(density="logit-normal", logit_mean=10, logit_std=10).max() == 999


def minibatch(offset: float) -> Minibatch:
    pool = LatentPool(torch.zeros(3, 4, 5, 5), torch.ones(3, 4, 5, 5))
    sources = [SampleSource("diffusion", [pool], ["a"]), SampleSource("prior", [pool], ["b"])]
    return Minibatch.sample(sources, 6, 1000, Noise(offset=offset), seeded())


def test_an_offset_is_the_same_all_over_a_channel() -> None:
    plain, shifted = minibatch(0.0).samples[0], minibatch(0.25).samples[0]
    assert plain.latents.equal(shifted.latents)
    assert plain.prompts.equal(shifted.prompts)
    generator = seeded()
    for shape in ((1,), (3,), (1000,)):  # prompts, pictures, timesteps
        torch.randint(shape[0], (6,), generator=generator)
        if shape == (3,):
            torch.randn(6, 4, 5, 5, generator=generator)  # of the posterior
    noise = torch.randn(6, 4, 5, 5, generator=generator)
    offset = torch.randn(6, 4, 1, 1, generator=generator)
    assert plain.noise.equal(noise)
    assert shifted.noise.equal(noise + 0.25 * offset)


def test_class_pictures_have_timesteps_of_their_own() -> None:
    """With those of the photos, they would be held to what they were only where these are."""
    subject, prior = minibatch(0.0).samples
    assert not subject.timesteps.equal(prior.timesteps)
    part = minibatch(0.0).rows(torch.tensor([4, 1]))
    for own, whole in zip(part.samples, (subject, prior), strict=True):
        assert own.timesteps.equal(whole.timesteps[[4, 1]])


def test_class_pictures_have_an_offset_of_their_own() -> None:
    plain, shifted = minibatch(0.0), minibatch(0.5)
    subject, prior = (each.noise.mean((2, 3)) for each in shifted.samples)
    assert not torch.allclose(subject, prior)
    assert prior.std() > plain.samples[1].noise.mean((2, 3)).std()

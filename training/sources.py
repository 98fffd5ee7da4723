"""Where training samples come from: pools of encoded pictures, each with prompts and a weight."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..methods.settings import Noise
from .latents import LatentPool


@dataclass(frozen=True, slots=True)
class SampleSource:
    """Encoded pictures and their prompts; a step takes equally many samples of each source.

    `name` is the metric of its diffusion loss, which is multiplied by `weight`. The first source of
    a training is the subject: only its prompts may name trained tokens, and attention losses use it
    alone.
    """

    name: str
    pool: LatentPool
    prompts: Sequence[str]
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples of one source: indices of prompts (B,), latents and noise (B, C, h, w)."""

    prompts: Tensor
    latents: Tensor
    noise: Tensor


@dataclass(frozen=True, slots=True)
class Minibatch:
    """Samples of each source, all at the same timesteps (B,)."""

    timesteps: Tensor
    samples: tuple[Samples, ...]

    @classmethod
    def sample(
        cls,
        sources: Sequence[SampleSource],
        size: int,
        num_timesteps: int,
        settings: Noise,
        generator: torch.Generator,
    ) -> "Minibatch":
        """Sample a whole batch of `size`; independent of the number of processes and parts."""
        subject, *others = sources
        device = subject.pool.mean.device

        def index(length: int) -> Tensor:
            return torch.randint(length, (size,), generator=generator).to(device)

        def noise(pool: LatentPool) -> Tensor:
            return torch.randn((size, *pool.mean.shape[1:]), generator=generator).to(device)

        def latents(pool: LatentPool) -> Tensor:
            return pool.sample(index(len(pool)), noise(pool))

        def added(pool: LatentPool) -> Tensor:
            plain = noise(pool)
            return plain + _offset(plain, settings.offset, generator) if settings.offset else plain

        prompts, first = index(len(subject.prompts)), latents(subject.pool)
        timesteps = sample_timesteps(size, num_timesteps, settings, generator).to(device)
        samples = [Samples(prompts, first, added(subject.pool))]
        for source in others:
            is_one = len(source.prompts) == 1
            prompts = torch.zeros_like(prompts) if is_one else index(len(source.prompts))
            samples.append(Samples(prompts, latents(source.pool), added(source.pool)))
        return cls(timesteps, tuple(samples))

    def rows(self, index: Tensor) -> "Minibatch":
        """The samples at `index`."""
        index = index.to(self.timesteps.device)
        return Minibatch(
            self.timesteps[index],
            tuple(
                Samples(each.prompts[index], each.latents[index], each.noise[index])
                for each in self.samples
            ),
        )

    def __len__(self) -> int:
        return len(self.timesteps)


def sample_timesteps(
    size: int, num_timesteps: int, settings: Noise, generator: torch.Generator
) -> Tensor:
    """Timesteps (size,) of the density and the range of the settings."""
    first = min(round(settings.lowest * num_timesteps), num_timesteps - 1)
    count = max(round(settings.highest * num_timesteps) - first, 1)
    if settings.density == "uniform":
        return first + torch.randint(count, (size,), generator=generator)
    normal = torch.randn(size, generator=generator, dtype=torch.float64)
    share = torch.sigmoid(settings.logit_mean + settings.logit_std * normal)
    return first + (share * count).long().clamp(max=count - 1)


def _offset(noise: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Noise offset (Guttenberg 2023): normal, the same all over a channel; (B, C, 1, 1)."""
    return scale * torch.randn((*noise.shape[:2], 1, 1), generator=generator).to(noise.device)

"""Where training samples come from: pools of encoded pictures, each with prompts and a weight."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..methods.settings import Noise
from .latents import LatentPool


@dataclass(frozen=True, slots=True)
class Captions:
    """The last prompts of a source, from number `first` on: those of single pictures.

    A picture has its own prompt with probability `share`, or, `dropout` of these times, the prompt
    `first`. `of_pictures` (P,) are the numbers of their own prompts, -1 where there is none.
    """

    first: int
    of_pictures: Tensor
    share: float
    dropout: float

    def put_in(self, prompts: Tensor, pictures: Tensor, generator: torch.Generator) -> Tensor:
        """Prompts (B,) of `pictures` (B,), some replaced with captions."""
        chance = torch.rand(len(prompts), generator=generator).to(prompts.device)
        own = self.of_pictures[pictures]
        has_caption = (own >= 0) & (chance < self.share)
        own = torch.where(chance < self.share * self.dropout, self.first, own)
        return torch.where(has_caption, own, prompts)


@dataclass(frozen=True, slots=True)
class SampleSource:
    """Encoded pictures and their prompts; a step takes equally many samples of each source.

    `name` is the metric of its diffusion loss, which is multiplied by `weight`. The first source of
    a training is the subject: only its prompts may name trained tokens, attention losses use it
    alone, and it alone may have captions.
    """

    name: str
    pool: LatentPool
    prompts: Sequence[str]
    weight: float = 1.0
    captions: Captions | None = None

    @property
    def num_shared(self) -> int:
        """The number of prompts that any picture may have."""
        return self.captions.first if self.captions else len(self.prompts)


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples of one source: indices of prompts (B,), latents and noise (B, C, h, w).

    `weights` (B, 1, h, w) are those of the pool.
    """

    prompts: Tensor
    latents: Tensor
    noise: Tensor
    weights: Tensor | None = None

    def rows(self, index: Tensor) -> "Samples":
        """The samples at `index`."""
        weights = None if self.weights is None else self.weights[index]
        return Samples(self.prompts[index], self.latents[index], self.noise[index], weights)


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

        def added(pool: LatentPool) -> Tensor:
            plain = noise(pool)
            return plain + _offset(plain, settings.offset, generator) if settings.offset else plain

        prompts, pictures = index(subject.num_shared), index(len(subject.pool))
        first = subject.pool.sample(pictures, noise(subject.pool))
        timesteps = sample_timesteps(size, num_timesteps, settings, generator).to(device)
        weights = subject.pool.weights
        weights = None if weights is None else weights[pictures]
        samples = [Samples(prompts, first, added(subject.pool), weights)]
        for source in others:
            is_one = len(source.prompts) == 1
            prompts = torch.zeros_like(prompts) if is_one else index(len(source.prompts))
            latents = source.pool.sample(index(len(source.pool)), noise(source.pool))
            samples.append(Samples(prompts, latents, added(source.pool)))
        if captions := subject.captions:
            prompts = captions.put_in(samples[0].prompts, pictures, generator)
            samples[0] = replace(samples[0], prompts=prompts)
        return cls(timesteps, tuple(samples))

    def rows(self, index: Tensor) -> "Minibatch":
        """The samples at `index`."""
        index = index.to(self.timesteps.device)
        return Minibatch(self.timesteps[index], tuple(each.rows(index) for each in self.samples))

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

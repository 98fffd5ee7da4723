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
    `first`.
    """

    first: int
    share: float
    dropout: float

    def put_in(self, prompts: Tensor, own: Tensor, generator: torch.Generator) -> Tensor:
        """Prompts (B,) of pictures, some replaced with their own ones (B,), -1 for none."""
        chance = torch.rand(len(prompts), generator=generator).to(prompts.device)
        has_caption = (own >= 0) & (chance < self.share)
        own = torch.where(chance < self.share * self.dropout, self.first, own)
        return torch.where(has_caption, own, prompts)


@dataclass(frozen=True, slots=True)
class SampleSource:
    """Encoded pictures and their prompts; a step takes equally many samples of each source.

    There is a pool for each size of pictures, and a batch is of one pool. `name` is the metric of
    its diffusion loss, which is multiplied by `weight`. The first source of a training is the
    subject: only its prompts may name trained tokens, attention losses use it alone, and it alone
    may have captions.
    """

    name: str
    pools: Sequence[LatentPool]
    prompts: Sequence[str]
    weight: float = 1.0
    captions: Captions | None = None

    @property
    def num_shared(self) -> int:
        """The number of prompts that any picture may have."""
        return self.captions.first if self.captions else len(self.prompts)

    def pool_of_batch(self, generator: torch.Generator) -> LatentPool:
        """A pool, each picture of all as often."""
        if len(self.pools) == 1:
            return self.pools[0]
        ends = torch.tensor([len(pool) for pool in self.pools]).cumsum(0)
        picture = torch.randint(int(ends[-1]), (1,), generator=generator)
        return self.pools[int(torch.bucketize(picture, ends, right=True))]


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples of one source: indices of prompts (B,), latents and noise (B, C, h, w), timesteps.

    `weights` (B, 1, h, w) and `sizes` (B, 6) are those of the pool.
    """

    prompts: Tensor
    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    weights: Tensor | None = None
    sizes: Tensor | None = None

    def rows(self, index: Tensor) -> "Samples":
        """The samples at `index`."""
        return Samples(
            self.prompts[index],
            self.latents[index],
            self.noise[index],
            self.timesteps[index],
            _at(self.weights, index),
            _at(self.sizes, index),
        )


@dataclass(frozen=True, slots=True)
class Minibatch:
    """As many samples of each source, each at timesteps of its own."""

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
        pool = subject.pool_of_batch(generator)
        device = pool.mean.device

        def index(length: int) -> Tensor:
            return torch.randint(length, (size,), generator=generator).to(device)

        def times() -> Tensor:
            return sample_timesteps(size, num_timesteps, settings, generator).to(device)

        def noise(pool: LatentPool) -> Tensor:
            return torch.randn((size, *pool.mean.shape[1:]), generator=generator).to(device)

        def added(pool: LatentPool) -> Tensor:
            plain = noise(pool)
            return plain + _offset(plain, settings.offset, generator) if settings.offset else plain

        prompts, pictures = index(subject.num_shared), index(len(pool))
        first, timesteps = pool.sample(pictures, noise(pool)), times()
        weights, sizes = (_at(each, pictures) for each in (pool.weights, pool.sizes))
        samples = [Samples(prompts, first, added(pool), timesteps, weights, sizes)]
        for source in others:
            own = source.pool_of_batch(generator)
            is_one = len(source.prompts) == 1
            prompts = torch.zeros_like(prompts) if is_one else index(len(source.prompts))
            chosen = index(len(own))
            latents, sizes = own.sample(chosen, noise(own)), _at(own.sizes, chosen)
            samples.append(Samples(prompts, latents, added(own), times(), sizes=sizes))
        if subject.captions and pool.captions is not None:
            captions = pool.captions[pictures]
            prompts = subject.captions.put_in(samples[0].prompts, captions, generator)
            samples[0] = replace(samples[0], prompts=prompts)
        return cls(tuple(samples))

    def rows(self, index: Tensor) -> "Minibatch":
        """The samples at `index`."""
        index = index.to(self.samples[0].prompts.device)
        return Minibatch(tuple(each.rows(index) for each in self.samples))

    def __len__(self) -> int:
        return len(self.samples[0].prompts)


def _at(values: Tensor | None, index: Tensor) -> Tensor | None:
    return None if values is None else values[index]


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

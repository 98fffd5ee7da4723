"""Where training samples come from: pools of encoded pictures, each with prompts and a weight."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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

        prompts, first = index(len(subject.prompts)), latents(subject.pool)
        timesteps = index(num_timesteps)
        samples = [Samples(prompts, first, noise(subject.pool))]
        for source in others:
            is_one = len(source.prompts) == 1
            prompts = torch.zeros_like(prompts) if is_one else index(len(source.prompts))
            samples.append(Samples(prompts, latents(source.pool), noise(source.pool)))
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

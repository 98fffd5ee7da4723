"""The conditioning of a denoiser: text states, what a family adds to them, and a ControlNet."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import ControlNetModel

SIZES = "time_ids"
"""SDXL's name for a picture's sizes in what is `added`."""


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Text states (B, 77, d), and `added` ones of a family: SDXL's pooled states and sizes.

    With timestep tokens states are (B, 77, I · d) for I spans of timesteps, of which each sample
    takes the one of its timestep (`at`). `starts` are the timesteps at which spans begin.
    """

    states: Tensor
    added: dict[str, Tensor] = field(default_factory=dict)
    starts: tuple[float, ...] = ()

    def pick(self, index: Tensor) -> "Conditioning":
        """The rows at `index` (B,).

        By `index_select`: the gradient of `states[index]` is summed in any order, even on a CPU.
        """
        return Conditioning(
            self.states.index_select(0, index),
            {name: value.index_select(0, index) for name, value in self.added.items()},
            self.starts,
        )

    def with_sizes(self, sizes: Tensor) -> "Conditioning":
        """The same for pictures of other sizes (B, 6), where the family is told of them."""
        if SIZES not in self.added:
            return self
        added = self.added | {SIZES: sizes.to(self.added[SIZES])}
        return Conditioning(self.states, added, self.starts)

    @classmethod
    def cat(cls, parts: Sequence["Conditioning"]) -> "Conditioning":
        """Concatenate batches; all have the same spans."""
        names = parts[0].added
        return cls(
            torch.cat([part.states for part in parts]),
            {name: torch.cat([part.added[name] for part in parts]) for name in names},
            parts[0].starts,
        )

    def at(self, timesteps: Tensor) -> "Conditioning":
        """The states of each sample at its timestep; `timesteps` are (B,) or one."""
        if not self.starts:
            return self
        by_span = self.states.unflatten(-1, (len(self.starts), -1))  # (B, 77, I, d)
        starts = torch.tensor(self.starts, device=self.states.device)
        times = torch.as_tensor(timesteps, dtype=torch.float32, device=self.states.device)
        span = torch.bucketize(times, starts, right=True) - 1
        rows = torch.arange(len(by_span), device=self.states.device)
        return Conditioning(by_span[rows, :, span.expand(len(by_span))], self.added)


@dataclass(frozen=True, slots=True)
class Control:
    """What a ControlNet adds to the denoiser: control pixels (B, 3, H, W) in 0..1, and the scale.

    Pixels are those of a batch's pictures, or one row for all of them. For a batch that holds the
    pictures several times, as in guidance, they are repeated.
    """

    network: "ControlNetModel"
    pixels: Tensor
    scale: float = 1.0

    def rows(self, count: int) -> Tensor:
        """Pixels (count, 3, H, W)."""
        return self.pixels.repeat(count // len(self.pixels), 1, 1, 1)

"""Callbacks of a training, and what they get."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from ..adapters.references import References
from ..adapters.timestep_tokens import TimestepTokens
from ..adapters.token_embedding import TokenEmbedding
from ..adapters.weight_delta import WeightDelta


@dataclass(frozen=True, slots=True)
class StepReport:
    """A training step, counted from 1: its losses, each times its weight, and its seconds."""

    stage: str
    step: int
    num_steps: int
    losses: dict[str, float]
    seconds: float


@dataclass(frozen=True, slots=True)
class LearnedAdapters:
    """The result of a training: token vectors, the denoiser's changes and references, if any."""

    embedding: TokenEmbedding | TimestepTokens | None
    weights: WeightDelta | None
    references: References

    def state(self) -> dict[str, Tensor]:
        """All tensors, as they are stored."""
        parts = (self.embedding, self.weights, self.references)
        return {name: each for part in parts if part for name, each in part.state().items()}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is learned after a step of the last stage; injected while the callback runs.

    `phrase` names the concept in a prompt, `[V] dog`.
    """

    stage: str
    step: int
    learned: LearnedAdapters
    phrase: str

    @property
    def name(self) -> str:
        """`stage3-000100`."""
        return f"{self.stage}-{self.step:06}"


def ignore(*_: object) -> None:
    """Ignore a report."""


def never() -> bool:
    """Answer no."""
    return False


@dataclass(slots=True)
class Hooks:
    """Callbacks of a training: reports of its progress, and questions whether to stop."""

    on_step: Callable[[StepReport], None] = ignore
    on_saved: Callable[[Path], None] = ignore
    """Gets the path of a resume point that was written."""
    should_stop: Callable[[], bool] = never
    """Asked after each step; true saves a resume point and raises `TrainingInterrupted`."""
    on_class_picture: Callable[[int, int], None] = ignore
    """Gets (done, total) while class pictures are drawn."""
    on_preview: Callable[[str, int, list[Image.Image]], None] = ignore
    """Gets (stage, step, pictures), every `preview_every` steps and after a stage."""
    preview_every: int = 0
    """0: no previews."""
    on_skipped: Callable[[str], None] = ignore
    """Gets a line about what was left out, as a preview that does not fit into memory."""
    on_checkpoint: Callable[[Checkpoint], None] = ignore
    """Gets what is learned so far every `checkpoint_every` steps of the last stage."""
    checkpoint_every: int = 0
    """0: no checkpoints."""
    should_finish: Callable[[], bool] = never
    """Asked after each checkpoint; true ends the training as if all steps were done."""

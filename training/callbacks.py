"""What a training tells while it runs, and asks."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from ..adapters.timestep_tokens import TimestepTokens
from ..adapters.token_embedding import TokenEmbedding
from ..adapters.weight_delta import WeightDelta


@dataclass(frozen=True, slots=True)
class StepReport:
    """What happened in a step: its losses, each with its weight."""

    stage: str
    step: int
    num_steps: int
    losses: dict[str, float]
    seconds: float


@dataclass(frozen=True, slots=True)
class Learned:
    """What a training leaves: the tokens' vectors and, where it learnt, the denoiser's changes."""

    embedding: TokenEmbedding | TimestepTokens
    weights: WeightDelta | None

    def state(self) -> dict[str, Tensor]:
        """All tensors, as they are stored."""
        return self.embedding.state() | (self.weights.state() if self.weights else {})


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is learned after a step of the last stage; it is injected meanwhile.

    `phrase` is the concept in a prompt, `[V] dog`.
    """

    stage: str
    step: int
    learned: Learned
    phrase: str

    @property
    def name(self) -> str:
        """`stage3-000100`."""
        return f"{self.stage}-{self.step:06}"


def _nothing(*_: object) -> None:
    """Told to nobody."""


def _no() -> bool:
    return False


@dataclass(slots=True)
class Hooks:
    """What a training tells while it runs, and asks."""

    on_step: Callable[[StepReport], None] = _nothing
    on_saved: Callable[[Path], None] = _nothing
    should_stop: Callable[[], bool] = _no
    on_class_picture: Callable[[int, int], None] = _nothing
    """Gets how many class pictures are drawn, and of how many."""
    on_preview: Callable[[str, int, list[Image.Image]], None] = _nothing
    """Gets stage, step and a strip of pictures, every `preview_every` steps and after a stage."""
    preview_every: int = 0
    """0 draws none."""
    on_checkpoint: Callable[[Checkpoint], None] = _nothing
    """Gets what is learned so far every `checkpoint_every` steps of the last stage."""
    checkpoint_every: int = 0
    """0 makes none."""
    is_enough: Callable[[], bool] = _no
    """Asked after each checkpoint; the training then ends as if all steps were done."""

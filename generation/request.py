"""What to draw: a prompt, seeds and settings. Loads no weights, and no library that does."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..registry.errors import InvalidInput

SCHEDULERS = ("ddim", "euler", "dpm++")
MAX_SEED = (1 << 63) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What besides prompt and seed decides how a picture looks.

    `size` is (width, height) in pixels, the base model's own by default; `guidance` is the
    classifier-free guidance scale (Ho and Salimans 2022, eq. 6, where it is w + 1). `separate`
    keeps the concepts of a prompt apart while they are drawn.
    """

    steps: int = 25
    guidance: float = 5.0
    negative: str = ""
    scheduler: str | None = None
    size: tuple[int, int] | None = None
    separate: bool = False

    def to_mapping(self) -> dict[str, Any]:
        """By name, as pictures and records tell them; what is new and off is left out.

        So pictures from before it existed are known by the same settings.
        """
        told = asdict(self)
        if not self.separate:
            del told["separate"]
        return told

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 1000:
            raise InvalidInput(f"{self.steps} steps are not between 1 and 1000")
        if not 0 <= self.guidance <= 100:
            raise InvalidInput(f"a guidance of {self.guidance:g} is not between 0 and 100")
        if self.scheduler is not None and self.scheduler not in SCHEDULERS:
            raise InvalidInput(
                f'there is no scheduler "{self.scheduler}"', hint=" or ".join(SCHEDULERS)
            )
        if self.size and any(side % 8 or not 8 <= side <= 4096 for side in self.size):
            raise InvalidInput("width and height have to be multiples of 8, up to 4096")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt to draw, once for each seed."""

    prompt: str
    seeds: Sequence[int]
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        for seed in (min(self.seeds), max(self.seeds)):
            if not 0 <= seed <= MAX_SEED:
                raise InvalidInput(f"the seed {seed} does not fit into 63 bits", hint="--seed 0")

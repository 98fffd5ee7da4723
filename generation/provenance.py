"""What a picture's file says of its making."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..registry.errors import InvalidImage, InvalidInput
from .pictures import read_metadata
from .request import MAX_SEED, Settings

MAX_BATCH = 256
"""Pictures that are drawn at once, at most."""
MAX_CONCEPTS = 64
MAX_PIXELS_AT_ONCE = 1 << 26
"""64 pictures of 1024 x 1024: more are not drawn at once on a stranger's word."""
MAX_PIXEL_STEPS = 1 << 34
"""Pixels times steps: 64 pictures of 1024 x 1024 in 256 steps."""

_Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a picture's file says made it."""

    base: str
    base_sha256: str
    prompt: str
    seed: int
    batch_seeds: tuple[int, ...]
    with_maps: bool
    with_leaks: bool
    settings: Settings
    versions: Mapping[str, tuple[int, str]]
    """Of each concept: the version's number and the hash of its weights."""

    @property
    def work(self) -> str:
        """What it takes to draw it again, for people."""
        count, size = len(self.batch_seeds), self.settings.size
        pictures = "a picture" if count == 1 else f"{count} pictures at once"
        sides = f", {size[0]}x{size[1]}" if size else ""
        return f"{pictures}{sides}, in {self.settings.steps} steps"

    @property
    def is_modest(self) -> bool:
        """Whether that is no more than is done on a stranger's word."""
        width, height = self.settings.size or (1024, 1024)
        pixels = len(self.batch_seeds) * width * height
        return pixels <= MAX_PIXELS_AT_ONCE and pixels * self.settings.steps <= MAX_PIXEL_STEPS


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _SettingsPart(_Part):
    model_config = ConfigDict(extra="forbid")

    steps: int
    guidance: float
    negative: str
    scheduler: str | None
    size: tuple[int, int] | None
    separate: bool = False
    batch_seeds: list[_Seed] = Field(min_length=1, max_length=MAX_BATCH)
    maps: bool = False
    leaks: bool = False


class _VersionPart(_Part):
    concept: str
    version: Annotated[int, Field(ge=1, le=MAX_SEED)]
    sha256: _Sha256


class _Told(_Part):
    base: str
    base_sha256: str
    prompt: str
    seed: _Seed
    settings: _SettingsPart
    versions: list[_VersionPart] = Field(max_length=MAX_CONCEPTS)


def read_provenance(path: Path) -> Provenance:
    """What made a picture. Raises `NotFound` and `InvalidImage`."""
    told = read_metadata(path)
    if isinstance(told, dict) and "maps_of" in told:
        raise InvalidImage(f"{path} is a sheet of heat-maps", hint="name the picture beside it")
    if not isinstance(told, dict) or "settings" not in told:
        raise InvalidImage(f"{path} does not say what made it", hint="a picture of ours does")
    try:
        made = _made(_Told.model_validate_json(json.dumps(told)))
        with Image.open(path) as picture:
            if made.settings.size not in (None, picture.size):
                raise InvalidInput("it has another size")
        return made
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        problem = f"{where}: {first['msg']}"
    except InvalidInput as error:
        problem = error.message
    raise InvalidImage(f"what {path} says of its making is damaged: {problem}") from None


def _made(told: _Told) -> Provenance:
    drawn = told.settings.model_dump()
    batch_seeds = tuple(drawn.pop("batch_seeds"))
    with_maps, with_leaks = drawn.pop("maps"), drawn.pop("leaks")
    if told.seed not in batch_seeds:
        raise InvalidInput("its seed is not in its batch")
    return Provenance(
        base=told.base,
        base_sha256=told.base_sha256,
        prompt=told.prompt,
        seed=told.seed,
        batch_seeds=batch_seeds,
        with_maps=with_maps,
        with_leaks=with_leaks,
        settings=Settings(**drawn),
        versions={each.concept: (each.version, each.sha256) for each in told.versions},
    )

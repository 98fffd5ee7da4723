"""What a picture's file says of its making."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..models.pictures import read_metadata
from ..models.request import Settings
from ..registry.errors import InvalidImage, NotFound


@dataclass(frozen=True, slots=True)
class Made:
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


def read_made(path: Path) -> Made:
    """What made a picture. Raises `NotFound` and `InvalidImage`."""
    try:
        told = read_metadata(path)
    except FileNotFoundError:
        raise NotFound(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise InvalidImage(f"{path} cannot be read as a picture: {error}") from None
    if isinstance(told, dict) and "maps_of" in told:
        raise InvalidImage(f"{path} is a sheet of heat-maps", hint="name the picture beside it")
    if not isinstance(told, dict) or "settings" not in told:
        raise InvalidImage(f"{path} does not say what made it", hint="a picture of ours does")
    try:
        settings = dict(told["settings"])
        batch_seeds = tuple(settings.pop("batch_seeds"))
        with_maps = bool(settings.pop("maps", False))
        with_leaks = bool(settings.pop("leaks", False))
        if settings["size"]:
            settings["size"] = tuple(settings["size"])
        if told["seed"] not in batch_seeds:
            raise ValueError("its seed is not in its batch")
        versions = {each["concept"]: (each["version"], each["sha256"]) for each in told["versions"]}
        return Made(
            str(told["base"]),
            str(told["base_sha256"]),
            str(told["prompt"]),
            int(told["seed"]),
            batch_seeds,
            with_maps,
            with_leaks,
            Settings(**settings),
            versions,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidImage(f"what {path} says of its making is damaged: {error}") from None

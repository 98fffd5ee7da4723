"""The formats of `concept export`, and its options. Loads nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ...registry.errors import InvalidInput
from ..limits import MAX_RANK

FormatName = Literal[
    "bundle",
    "original",
    "embedding",
    "embedding-mean",
    "lora-kohya",
    "lora-diffusers",
    "diff",
    "svd",
    "checkpoint",
    "diffusers",
]
MERGING: tuple[FormatName, ...] = ("diff", "svd", "checkpoint", "diffusers")
"""Formats that hold several concepts, merged."""
FORMATS: tuple[FormatName, ...] = get_args(FormatName)


@dataclass(frozen=True, slots=True)
class Format:
    """A format; `rank` is that of `svd:RANK`."""

    name: FormatName
    rank: int = 0

    def __str__(self) -> str:
        """As it is written."""
        return f"{self.name}:{self.rank}" if self.rank else self.name


def parse_format(text: str) -> Format:
    """The format that a text names. Raises `InvalidInput`."""
    name, has_rank, rank = text.partition(":")
    if name == "svd":
        is_number = rank.isascii() and rank.isdigit() and len(rank) <= len(str(MAX_RANK))
        if not is_number or not 1 <= int(rank) <= MAX_RANK:
            raise InvalidInput(
                f'"{text[:60]}" is no format: svd needs a rank of 1 to {MAX_RANK}',
                hint="--format svd:64",
            )
        return Format("svd", int(rank))
    for known in FORMATS:
        if name == known and not has_rank:
            return Format(known)
    shown = ", ".join(f"{each}:RANK" if each == "svd" else each for each in FORMATS)
    raise InvalidInput(f'there is no format "{text[:60]}"', hint=f"--format {shown}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """How to export.

    `base` is the base model for formats that contain one, else that of the training; `half` writes
    those in float16; `thumbnail` is a picture to put into files.
    """

    format: Format
    base: str | None = None
    half: bool = False
    thumbnail: Path | None = None
    overwrite: bool = False

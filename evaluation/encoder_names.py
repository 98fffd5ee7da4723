"""The names and hashes of an evaluation's encoders. Loads no weights."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from ..models import bases
from ..models.bases import HUB_ID, Base
from ..models.hashes import MANIFEST
from ..registry.errors import InvalidInput, NotFound

SHIPPED = "miniature"
"""The name of the encoders that ship with the program."""
CLIP = "openai/clip-vit-base-patch32"
DINO = "facebook/dino-vits16"
_FILES = {"clip": "clip.safetensors", "identity": "identity.safetensors"}


@dataclass(frozen=True, slots=True)
class EncoderNames:
    """The encoders of an evaluation: hub ids, folders or `miniature`; `dino` may be None.

    Judge and identity encoder are only used on the miniature (`is_miniature`).
    """

    clip: str
    dino: str | None
    is_miniature: bool

    def known_hashes(self) -> dict[str, dict[str, str]] | None:
        """`Encoders.hashes` without loading anything; None if not all encoders are shipped ones."""
        if self.clip != SHIPPED or self.dino is not None:
            return None
        kinds = ("clip", "identity", "judge") if self.is_miniature else ("clip",)
        return {kind: shipped_hash(kind) for kind in kinds}


def encoder_names_for(
    base: Base, *, clip: str | None = None, dino: str | None = None
) -> EncoderNames:
    """The encoders for a base model: the shipped ones on the miniature, else `CLIP` and `DINO`.

    `clip` and `dino` override them; `none` omits DINO. Raises `InvalidInput` for an empty name.
    """
    for option, name in (("--clip", clip), ("--dino", dino)):
        if name is not None and not name.strip():
            raise InvalidInput(f"{option} names no encoder", hint=f"{option} ID, or leave it out")
    if clip == "none":
        raise InvalidInput("a CLIP scores all pictures", hint="--clip ID, or leave it out")
    if dino == SHIPPED:
        raise InvalidInput("no DINO ships with the program", hint="--dino ID, or --dino none")
    is_miniature = Path(base.source) == bases.SHIPPED
    chosen = dino or ("none" if is_miniature else DINO)
    return EncoderNames(
        clip=clip or (SHIPPED if is_miniature else CLIP),
        dino=None if chosen == "none" else chosen,
        is_miniature=is_miniature,
    )


def check_there(names: EncoderNames) -> None:
    """Raise `NotFound` for an encoder that is neither a folder nor could be a hub repository."""
    for option, name in (("--clip", names.clip), ("--dino", names.dino)):
        if name in (None, SHIPPED) or os.path.isdir(name) or HUB_ID.fullmatch(name):
            continue
        raise NotFound(f"there is no encoder {name}", hint=f"{option} FOLDER, or OWNER/NAME")


def shipped_hash(kind: str) -> dict[str, str]:
    """Name and hash of a shipped encoder, from its manifest; loading compares them."""
    if kind == "judge":
        record = json.loads((Path(__file__).parent / "weights" / "judge.json").read_text())
        return {"name": SHIPPED, "sha256": record["sha256"]}
    manifest = json.loads((bases.SHIPPED / MANIFEST).read_text())
    return {"name": SHIPPED, "sha256": manifest["files"][_FILES[kind]]["sha256"]}

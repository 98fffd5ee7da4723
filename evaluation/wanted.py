"""Which encoders an evaluation uses. Loads no weights."""

import json
from dataclasses import dataclass
from pathlib import Path

from ..models import bases
from ..models.bases import Base
from ..models.hashes import MANIFEST

SHIPPED = "miniature"
"""The word for what ships with the program."""
CLIP = "openai/clip-vit-base-patch32"
DINO = "facebook/dino-vits16"
_FILES = {"clip": "clip.safetensors", "identity": "identity.safetensors"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Encoders by name. The judge and the identity encoder know the drawn world alone."""

    clip: str
    dino: str | None
    is_drawn_world: bool

    def known_hashes(self) -> dict[str, dict[str, str]] | None:
        """As `Encoders.hashes`, without loading anything; None where that cannot be."""
        if self.clip != SHIPPED or self.dino is not None:
            return None
        kinds = ("clip", "identity", "judge") if self.is_drawn_world else ("clip",)
        return {kind: shipped_hash(kind) for kind in kinds}


def wanted_for(base: Base, *, clip: str | None = None, dino: str | None = None) -> Wanted:
    """What fits a base model: on the miniature the shipped ones, else the field's usual ones.

    `clip` and `dino` name others; `none` for DINO leaves it out.
    """
    is_drawn_world = Path(base.source) == bases.SHIPPED
    chosen = dino or ("none" if is_drawn_world else DINO)
    return Wanted(
        clip=clip or (SHIPPED if is_drawn_world else CLIP),
        dino=None if chosen == "none" else chosen,
        is_drawn_world=is_drawn_world,
    )


def shipped_hash(kind: str) -> dict[str, str]:
    """Name and hash of a shipped encoder, as its record says; loading compares them."""
    if kind == "judge":
        record = json.loads((Path(__file__).parent / "weights" / "judge.json").read_text())
        return {"name": SHIPPED, "sha256": record["sha256"]}
    manifest = json.loads((bases.SHIPPED / MANIFEST).read_text())
    return {"name": SHIPPED, "sha256": manifest["files"][_FILES[kind]]["sha256"]}

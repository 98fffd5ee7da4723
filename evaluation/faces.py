"""Whether an animal of the miniature's world has its face: two eyes, and a nose or snout.

A small head on the judge's features, see `faces_recipe.py`. A blurred face, one with an eye too few
or too many, and one out of joint are none.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (everyone's name for it)

from ..models.hashes import check_hash
from ..models.miniature.architecture import SMALL_SIZE
from ..models.miniature.trunk import Trunk
from ..models.pixels import reduced, to_pixels
from .judge import Judge, load_judge

SHIPPED = Path(__file__).parent / "weights" / "faces.safetensors"
FACED = ("cat", "dog", "bear")
"""The categories whose faces are known."""
WIDTH = 64


class FaceHead(nn.Module):
    """Two convolutions, and attention pooling of what they say of each place."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(Trunk.WIDTH, WIDTH, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.SiLU(),
        )
        self.where = nn.Conv2d(WIDTH, 1, 1)
        self.what = nn.Conv2d(WIDTH, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B,) for the judge's features of places (B, 96, 16, 16)."""
        features = self.features(features)
        weights = F.softmax(self.where(features).flatten(1), -1)
        return (self.what(features).flatten(1) * weights).sum(-1)


class FaceFinder:
    """The judge's trunk with the head."""

    def __init__(self, judge: Judge, head: FaceHead) -> None:
        self._judge, self._head = judge.eval(), head.eval()

    @torch.no_grad()
    def has_face(self, images: Sequence[Image.Image]) -> list[bool]:
        """Whether each picture of an animal shows its face; pictures are scaled to 64x64."""
        small = [reduced(each, SMALL_SIZE) for each in images]
        features, _ = self._judge.trunk(to_pixels(small))
        return [bool(each > 0) for each in self._head(features)]


def load_faces(path: Path = SHIPPED) -> FaceFinder:
    """The one that ships, or one from another weights file.

    Raises `InvalidWeights` if the one that ships is not what it was.
    """
    if path == SHIPPED:
        check_hash(path, json.loads(path.with_suffix(".json").read_text())["sha256"])
    head = FaceHead()
    weights = load_file(path)
    head.load_state_dict(
        {
            name.removeprefix("head."): value.float()
            for name, value in weights.items()
            if name.startswith("head.")
        }
    )
    return FaceFinder(load_judge(), head)

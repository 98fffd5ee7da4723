"""The judge: a classifier of what a picture of the miniature shows.

It is trained on renders of individuals that the base model never sees, and on no generated picture;
see `judge_recipe.py`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from ..models.hashes import check_hash
from ..models.miniature.architecture import SMALL_SIZE
from ..models.miniature.trunk import Gaze, Trunk
from ..models.miniature.world.identities import CATEGORIES, COLOURS, PATTERNS
from ..models.miniature.world.places import ACCESSORIES, PLACES
from ..models.miniature.world.scenes import MAX_SUBJECTS, STYLES
from ..models.pixels import reduced, to_pixels

SHIPPED = Path(__file__).parent / "weights" / "judge.safetensors"
COLOUR_NAMES = tuple(COLOURS)
NOTHING = "nothing"
WORN = (NOTHING, *ACCESSORIES)
APART = 0.15
"""How far the middles of two things are from each other at least, as a share of the picture.

Figures that stand by each other in renders are 0.4 apart, on each other 0.3.
"""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the judge predicts for a picture.

    `categories` are those present, `colours` and `patterns` those of each of them, and `where`
    their middles (x, y), as shares of width and height from the upper left; `confidence` is the
    probability of every category.
    """

    categories: tuple[str, ...]
    colours: dict[str, str]
    patterns: dict[str, str]
    num_subjects: int
    place: str
    style: str
    accessory: str
    confidence: dict[str, float]
    where: dict[str, tuple[float, float]]

    def stands(self, relation: str, first: str, second: str) -> bool:
        """Whether a category stands to another as a relation says, by their middles.

        `next to`, `to the left of` or `on top of`; False unless both are there.
        """
        if first not in self.where or second not in self.where:
            return False
        (x, y), (other_x, other_y) = self.where[first], self.where[second]
        right, down = other_x - x, other_y - y
        is_level = abs(right) > max(APART, abs(down))
        if relation == "on top of":
            return down > max(APART, abs(right))
        return is_level and (relation == "next to" or right > 0)


class Judge(nn.Module):
    """A small convolutional classifier.

    Each category and accessory has its own attention pooling, so that colours and patterns are a
    subject's own; place, style and number of subjects are the whole picture's.
    """

    def __init__(self) -> None:
        super().__init__()
        width, whole = Trunk.WIDTH, Trunk.WHOLE
        self.trunk = Trunk()
        self.subjects = Gaze(len(CATEGORIES))
        self.kinds = nn.Parameter(torch.randn(len(CATEGORIES), width) / 10)
        self.present = nn.Linear(width, 1)
        self.colour = nn.Linear(width, len(COLOUR_NAMES))
        self.pattern = nn.Sequential(nn.Linear(width, width), nn.SiLU())
        self.pattern.append(nn.Linear(width, len(PATTERNS)))
        self.worn = Gaze(len(ACCESSORIES))
        self.worn_kinds = nn.Parameter(torch.randn(len(ACCESSORIES), width) / 10)
        self.nothing = nn.Linear(whole, 1)
        self.place = nn.Linear(whole, len(PLACES))
        self.style = nn.Linear(whole, len(STYLES))
        self.count = nn.Linear(whole, MAX_SUBJECTS)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Logits for pictures (B, 3, 64, 64) in -1..1.

        `present` (B, 12), `colour` (B, 12, 11), `pattern` (B, 12, 4) and `where` (B, 12, 256), log
        probabilities over 16x16 places, are per category; `place`, `style`, `accessory` and
        `count` (B, ·) of the picture.
        """
        features, whole = self.trunk(pixels)
        subjects, where = self.subjects(features)
        worn, _ = self.worn(features)
        worn = torch.einsum("bkc,kc->bk", worn, self.worn_kinds)
        kinds = torch.einsum("bkc,kc->bk", subjects, self.kinds)
        return {
            "present": kinds + self.present(subjects).squeeze(-1),
            "colour": self.colour(subjects),
            "pattern": self.pattern(subjects),
            "where": where,
            "place": self.place(whole),
            "style": self.style(whole),
            "accessory": torch.cat([self.nothing(whole), worn], dim=-1),
            "count": self.count(whole),
        }

    @torch.no_grad()
    def classify(self, images: Sequence[Image.Image]) -> list[Prediction]:
        """Classify pictures, which are scaled to 64x64."""
        pixels = to_pixels([reduced(image, SMALL_SIZE) for image in images])
        pixels = pixels.to(self.kinds.device)
        logits = {name: value.float().cpu() for name, value in self(pixels).items()}
        return [
            _prediction({name: value[i] for name, value in logits.items()})
            for i in range(len(images))
        ]


def _prediction(logits: dict[str, Tensor]) -> Prediction:
    belief = logits["present"].sigmoid()
    chosen = [i for i in range(len(CATEGORIES)) if belief[i] > 0.5] or [int(belief.argmax())]
    return Prediction(
        categories=tuple(CATEGORIES[i] for i in chosen),
        colours={CATEGORIES[i]: COLOUR_NAMES[int(logits["colour"][i].argmax())] for i in chosen},
        patterns={CATEGORIES[i]: PATTERNS[int(logits["pattern"][i].argmax())] for i in chosen},
        num_subjects=int(logits["count"].argmax()) + 1,
        place=PLACES[int(logits["place"].argmax())],
        style=STYLES[int(logits["style"].argmax())],
        accessory=WORN[int(logits["accessory"].argmax())],
        confidence={name: float(belief[i]) for i, name in enumerate(CATEGORIES)},
        where={CATEGORIES[i]: _middle(logits["where"][i]) for i in chosen},
    )


def _middle(where: Tensor) -> tuple[float, float]:
    """The mean place (x, y), 0..1, of log probabilities over square places, row by row."""
    side = round(len(where) ** 0.5)
    shares = where.exp().view(side, side)
    places = (torch.arange(side) + 0.5) / side
    return float(shares.sum(0) @ places), float(shares.sum(1) @ places)


def load_judge(path: Path | None = None) -> Judge:
    """The judge that ships, or one from another weights file.

    Raises `InvalidWeights` if the one that ships is not what it was.
    """
    if path is None:
        path = SHIPPED
        promised = json.loads(path.with_suffix(".json").read_text())["sha256"]
        check_hash(path, promised)
    judge = Judge()
    weights = load_file(path)
    judge.load_state_dict(
        {name.removeprefix("judge."): value.float() for name, value in weights.items()}
    )
    return judge.eval()

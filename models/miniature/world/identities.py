"""Subjects of synthetic scenes: categories, and the identities in them.

An identity is all that stays the same about a subject from scene to scene. Those with an even seed
are for training the base model; of the odd ones every other is for the judge, and the rest are held
out from both, for personal concepts.
"""

import colorsys
import random
from dataclasses import dataclass

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (205, 38, 38),
    "orange": (240, 130, 20),
    "yellow": (246, 214, 40),
    "green": (60, 150, 55),
    "blue": (40, 90, 205),
    "purple": (130, 55, 170),
    "pink": (244, 130, 180),
    "brown": (120, 72, 35),
    "black": (38, 38, 42),
    "white": (244, 244, 240),
    "gray": (140, 142, 146),
}
PATTERNS = ("plain", "striped", "spotted", "checked")
LIVING = ("cat", "dog", "bear", "bird", "doll", "robot")
THINGS = ("mug", "teapot", "car", "house", "chair", "backpack")
CATEGORIES = LIVING + THINGS


@dataclass(frozen=True, slots=True)
class Identity:
    """One individual.

    `colour` and `second` are names; `body`, `accent` and `mark` are the exact shades. `build`
    holds four numbers in 0..1 that shift proportions, each category in its own way.
    """

    seed: int
    category: str
    colour: str
    second: str
    body: Colour
    accent: Colour
    mark: Colour
    pattern: str
    pattern_scale: float
    pattern_angle: int
    has_patch: bool
    ears: int
    eyes: int
    eye_colour: Colour
    build: tuple[float, float, float, float]


SPLITS = {"taught": 0, "judge": 1, "held-out": 3}


def identity_seed(rng: random.Random, split: str) -> int:
    """The seed of some identity of a split."""
    if split == "taught":
        return 2 * rng.randrange(1 << 30)
    return 4 * rng.randrange(1 << 29) + SPLITS[split]


def split_of(seed: int) -> str:
    """Whom an identity is for: taught, judge or held-out."""
    return "taught" if seed % 2 == 0 else "judge" if seed % 4 == 1 else "held-out"


def make_identity(seed: int, category: str | None = None) -> Identity:
    """The identity of a seed, the same on every machine; `category` fixes what it is."""
    rng = random.Random(f"identity {seed}")
    drawn = rng.choice(CATEGORIES)
    colour, second, mark = rng.sample(list(COLOURS), 3)
    if rng.random() < 0.15:
        second = rng.choice(("white", "black", "yellow"))
        second = "white" if second == colour else second
    return Identity(
        seed=seed,
        category=category or drawn,
        colour=colour,
        second=second,
        body=_shade(rng, colour),
        accent=_shade(rng, second),
        mark=_shade(rng, mark),
        pattern=rng.choice(("plain", "plain", "striped", "spotted", "checked")),
        pattern_scale=rng.uniform(0.09, 0.17),
        pattern_angle=rng.choice((0, 1)),
        has_patch=rng.random() < 0.5,
        ears=rng.randrange(3),
        eyes=rng.randrange(3),
        eye_colour=rng.choice(((30, 30, 30), (40, 110, 190), (50, 140, 60), (150, 90, 20))),
        build=(rng.random(), rng.random(), rng.random(), rng.random()),
    )


def _shade(rng: random.Random, name: str) -> Colour:
    """An individual shade of a named colour, near enough to keep the name."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(part / 255 for part in COLOURS[name]))
    hue = (hue + rng.uniform(-0.012, 0.012)) % 1
    if saturation > 0.2:
        saturation = min(1.0, max(0.0, saturation + rng.uniform(-0.10, 0.08)))
    value = min(1.0, max(0.0, value + rng.uniform(-0.06, 0.05)))
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)

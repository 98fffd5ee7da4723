"""The places where subjects stand, and accessories."""

import random
from collections.abc import Callable

from PIL import Image, ImageDraw

from .figures import Pen, head_of
from .identities import COLOURS, Colour, Identity


class Backdrop:
    """A whole picture in coordinates of 0..1, drawn without outlines."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.image = Image.new("RGB", (size, size))
        self._draw = ImageDraw.Draw(self.image)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Colour) -> None:
        """A rectangle."""
        self._draw.rectangle([part * self.size for part in (x0, y0, x1, y1)], fill=fill)

    def oval(self, x: float, y: float, rx: float, ry: float, fill: Colour) -> None:
        """An ellipse around (x, y)."""
        where = [part * self.size for part in (x - rx, y - ry, x + rx, y + ry)]
        self._draw.ellipse(where, fill=fill)

    def shape(self, points: list[tuple[float, float]], fill: Colour) -> None:
        """A polygon."""
        self._draw.polygon([part * self.size for point in points for part in point], fill=fill)

    def line(self, points: list[tuple[float, float]], width: float, fill: Colour) -> None:
        """A thick line."""
        scaled = [(x * self.size, y * self.size) for x, y in points]
        self._draw.line(scaled, fill=fill, width=max(1, round(width * self.size)))


def draw_place(place: str, size: int, rng: random.Random) -> Image.Image:
    """A picture (size, size) of an empty place; `rng` moves its details about."""
    backdrop = Backdrop(size)
    _PLACES[place](backdrop, rng)
    return backdrop.image


def _beach(on: Backdrop, rng: random.Random) -> None:
    on.box(0, 0, 1, 1, (150, 215, 245))
    on.oval(rng.uniform(0.1, 0.9), 0.12, 0.09, 0.09, (255, 235, 120))
    sea = rng.uniform(0.40, 0.50)
    on.box(0, sea, 1, 0.70, (40, 150, 200))
    for _ in range(5):
        x, y = rng.random(), rng.uniform(sea + 0.03, 0.62)
        on.line([(x, y), (x + 0.12, y)], 0.012, (220, 245, 250))
    on.box(0, 0.66, 1, 1, (240, 215, 150))
    for _ in range(8):
        on.oval(rng.random(), rng.uniform(0.72, 0.98), 0.010, 0.007, (205, 175, 110))


def _snow(on: Backdrop, rng: random.Random) -> None:
    on.box(0, 0, 1, 1, (185, 205, 225))
    for x in (rng.uniform(0.05, 0.2), rng.uniform(0.75, 0.95)):
        _pine(on, x, 0.62, rng.uniform(0.30, 0.45), (70, 105, 100))
    on.oval(rng.uniform(0.2, 0.8), 0.95, 0.9, 0.38, (248, 250, 255))
    on.box(0, 0.78, 1, 1, (248, 250, 255))
    for _ in range(26):
        on.oval(rng.random(), rng.random() * 0.75, 0.012, 0.012, (255, 255, 255))


def _pine(on: Backdrop, x: float, foot: float, height: float, fill: Colour) -> None:
    on.box(x - 0.015, foot - 0.05, x + 0.015, foot + 0.05, (90, 60, 40))
    for level in range(3):
        top = foot - height + level * height * 0.27
        wide = 0.06 + 0.035 * level
        on.shape([(x, top), (x + wide, top + height * 0.42), (x - wide, top + height * 0.42)], fill)


def _forest(on: Backdrop, rng: random.Random) -> None:
    on.box(0, 0, 1, 1, (95, 140, 95))
    for x in [rng.uniform(-0.02, 0.08) + 0.155 * i for i in range(7)]:
        on.box(x - 0.03, 0, x + 0.03, 0.78, (85, 58, 38))
    for _ in range(9):
        on.oval(rng.random(), rng.uniform(0.0, 0.14), 0.16, 0.10, (35, rng.randrange(85, 115), 45))
    on.box(0, 0.74, 1, 1, (70, 85, 45))
    for _ in range(8):
        on.oval(rng.random(), rng.uniform(0.8, 0.98), 0.02, 0.010, (110, 80, 40))


def _desert(on: Backdrop, rng: random.Random) -> None:
    on.box(0, 0, 1, 1, (250, 200, 140))
    on.oval(rng.uniform(0.15, 0.85), 0.16, 0.10, 0.10, (255, 120, 70))
    on.oval(rng.uniform(0.0, 0.4), 0.78, 0.6, 0.22, (225, 160, 90))
    on.oval(rng.uniform(0.6, 1.0), 0.84, 0.6, 0.24, (210, 140, 75))
    on.box(0, 0.82, 1, 1, (225, 160, 90))
    for x in (rng.uniform(0.05, 0.18), rng.uniform(0.84, 0.95)):
        on.box(x - 0.02, 0.48, x + 0.02, 0.80, (50, 115, 65))
        on.line([(x - 0.07, 0.54), (x - 0.07, 0.63), (x, 0.63)], 0.028, (50, 115, 65))
        on.line([(x + 0.07, 0.50), (x + 0.07, 0.59), (x, 0.59)], 0.028, (50, 115, 65))


def _city(on: Backdrop, rng: random.Random) -> None:
    on.box(0, 0, 1, 1, (200, 205, 215))
    x = -rng.uniform(0, 0.1)
    while x < 1:
        wide, top = rng.uniform(0.14, 0.22), rng.uniform(0.06, 0.32)
        shade = rng.randrange(95, 140)
        on.box(x, top, x + wide, 0.78, (shade, shade - 5, shade + 12))
        for row in range(7):
            for column in range(3):
                wx, wy = x + wide * (0.18 + 0.27 * column), top + 0.04 + 0.085 * row
                if wy < 0.72:
                    on.box(wx, wy, wx + wide * 0.15, wy + 0.04, (250, 235, 150))
        x += wide + 0.015
    on.box(0, 0.76, 1, 1, (75, 75, 80))
    for i in range(5):
        on.box(0.05 + 0.22 * i, 0.87, 0.16 + 0.22 * i, 0.895, (240, 240, 240))


def _kitchen(on: Backdrop, rng: random.Random) -> None:
    on.box(0, 0, 1, 1, (250, 243, 225))
    for i in range(9):
        on.line([(i / 8, 0.30), (i / 8, 0.62)], 0.008, (205, 215, 210))
        on.line([(0, 0.30 + i * 0.08), (1, 0.30 + i * 0.08)], 0.008, (205, 215, 210))
    for i in range(4):
        x = i * 0.26 + rng.uniform(-0.02, 0)
        on.box(x, 0, x + 0.24, 0.24, (165, 200, 190))
        on.oval(x + 0.21, 0.20, 0.012, 0.012, (90, 90, 90))
    on.box(0, 0.66, 1, 0.73, (150, 105, 70))
    on.box(0, 0.73, 1, 1, (190, 145, 100))


def _meadow(on: Backdrop, rng: random.Random) -> None:
    on.box(0, 0, 1, 1, (135, 200, 250))
    for _ in range(2):
        x, y = rng.random(), rng.uniform(0.08, 0.22)
        for dx in (-0.07, 0, 0.07):
            on.oval(x + dx, y, 0.07, 0.045, (255, 255, 255))
    on.oval(rng.random(), 0.95, 0.8, 0.42, (110, 190, 80))
    on.box(0, 0.70, 1, 1, (120, 200, 85))
    for _ in range(16):
        x, y = rng.random(), rng.uniform(0.72, 0.97)
        petal = rng.choice(((250, 90, 110), (255, 240, 90), (255, 255, 255), (190, 110, 220)))
        on.oval(x, y, 0.017, 0.017, petal)


def _water(on: Backdrop, rng: random.Random) -> None:
    for i in range(6):
        on.box(0, i / 6, 1, (i + 1) / 6, (15, 120 - 14 * i, 185 - 14 * i))
    for _ in range(12):
        r = rng.uniform(0.010, 0.028)
        on.oval(rng.random(), rng.random() * 0.8, r, r, (150, 215, 240))
    on.box(0, 0.86, 1, 1, (200, 180, 120))
    for x in [rng.random() for _ in range(5)]:
        bend = rng.uniform(-0.05, 0.05)
        on.line([(x, 0.95), (x + bend, 0.75), (x, 0.58)], 0.025, (40, 150, 90))


def _stage(on: Backdrop, rng: random.Random) -> None:
    on.box(0, 0, 1, 1, (60, 15, 30))
    for i in range(7):
        x = i / 6.5
        on.box(x - 0.035, 0, x + 0.035, 0.78, (150, 25, 45))
    beam = rng.uniform(0.3, 0.7)
    on.shape([(beam - 0.05, 0), (beam + 0.05, 0), (0.85, 0.8), (0.15, 0.8)], (225, 150, 120))
    on.box(0, 0.76, 1, 1, (120, 75, 45))
    for i in range(6):
        on.line([(i / 5, 0.76), (i / 5 + 0.06, 1)], 0.008, (85, 50, 30))


def _space(on: Backdrop, rng: random.Random) -> None:
    on.box(0, 0, 1, 1, (18, 16, 48))
    for _ in range(34):
        r = rng.uniform(0.004, 0.011)
        on.oval(rng.random(), rng.random(), r, r, (250, 245, 210))
    x, y = rng.choice(((0.14, 0.18), (0.86, 0.18)))
    on.oval(x, y, 0.11, 0.11, (215, 130, 90))
    on.line([(x - 0.17, y + 0.05), (x + 0.17, y - 0.05)], 0.022, (240, 200, 150))
    on.oval(0.5, 1.15, 0.95, 0.36, (150, 150, 162))
    for _ in range(4):
        on.oval(rng.uniform(0.1, 0.9), rng.uniform(0.88, 0.98), 0.05, 0.015, (120, 120, 132))


def _nowhere(on: Backdrop, rng: random.Random) -> None:
    shade = rng.randrange(248, 256)
    on.box(0, 0, 1, 1, (shade, shade, shade))


_PLACES: dict[str, Callable[[Backdrop, random.Random], None]] = {
    "on the beach": _beach,
    "in the snow": _snow,
    "in the forest": _forest,
    "in the desert": _desert,
    "in the city": _city,
    "in the kitchen": _kitchen,
    "in a meadow": _meadow,
    "under water": _water,
    "on a stage": _stage,
    "in space": _space,
    "on a white background": _nowhere,
}
PLACES = tuple(_PLACES)

# --- accessories ----------------------------------------------------------------------------------


def draw_accessory(
    accessory: str, who: Identity, side: int, rng: random.Random
) -> tuple[Image.Image, bool]:
    """An accessory on a square of twice `side` with the subject's square in its middle, RGBA.

    Also says whether it belongs behind the subject.
    """
    pen = _Around(side)
    behind = _ACCESSORIES[accessory](pen, who, rng)
    return pen.image, behind


class _Around(Pen):
    """A pen whose 0..1 is the subject's square, and which can draw half of it further each way."""

    def __init__(self, side: int) -> None:
        super().__init__(2 * side)

    def _at(self, x: float, y: float) -> tuple[float, float]:
        return 0.25 + x / 2, 0.25 + y / 2

    def oval(self, x: float, y: float, rx: float, ry: float, fill: Colour | None = None) -> None:
        super().oval(*self._at(x, y), rx / 2, ry / 2, fill)

    def box(
        self, x0: float, y0: float, x1: float, y1: float, fill: Colour | None = None, r: float = 0.0
    ) -> None:
        super().box(*self._at(x0, y0), *self._at(x1, y1), fill, r / 2)

    def shape(self, points, fill: Colour | None = None) -> None:
        super().shape([self._at(x, y) for x, y in points], fill)

    def line(self, points, width: float, fill: Colour = (34, 30, 34)) -> None:
        super().line([self._at(x, y) for x, y in points], width / 2, fill)


def _vivid(rng: random.Random, who: Identity) -> Colour:
    names = [
        name for name in ("red", "yellow", "green", "blue", "purple", "pink") if name != who.colour
    ]
    return COLOURS[rng.choice(names)]


def _hat(pen: Pen, who: Identity, rng: random.Random) -> bool:
    x, y, half = head_of(who)
    colour = _vivid(rng, who)
    pen.box(x - half * 0.62, y - 0.22, x + half * 0.62, y + 0.04, colour)
    pen.box(x - half * 0.62, y - 0.05, x + half * 0.62, y + 0.02, (245, 245, 240))
    pen.box(x - half * 1.15, y + 0.01, x + half * 1.15, y + 0.065, colour, r=0.02)
    return False


def _glasses(pen: Pen, who: Identity, _: random.Random) -> bool:
    x, y, half = head_of(who)
    y += {"bird": 0.15, "doll": 0.24, "robot": 0.16}.get(who.category, 0.20)
    for side in (-1, 1):
        pen.oval(x + side * half * 0.52, y, half * 0.44, 0.085, (25, 25, 30))
        pen.line(
            [(x + side * half * 0.65, y - 0.03), (x + side * half * 0.45, y + 0.02)],
            0.02,
            (200, 210, 220),
        )
    pen.line([(x - half * 0.2, y - 0.02), (x + half * 0.2, y - 0.02)], 0.035, (25, 25, 30))
    return False


def _scarf(pen: Pen, who: Identity, rng: random.Random) -> bool:
    x, _, half = head_of(who)
    y = {"bird": 0.50, "doll": 0.50, "robot": 0.48, "bear": 0.54, "cat": 0.55, "dog": 0.58}.get(
        who.category, 0.62
    )
    x = x - 0.05 if who.category == "bird" else x
    colour = _vivid(rng, who)
    half = max(half, 0.20)
    pen.box(x - half * 0.95, y - 0.05, x + half * 0.95, y + 0.05, colour, r=0.05)
    pen.box(x + half * 0.25, y, x + half * 0.68, y + 0.24, colour, r=0.02)
    pen.line([(x + half * 0.25, y + 0.17), (x + half * 0.68, y + 0.17)], 0.035, (250, 250, 245))
    return False


def _balloon(pen: Pen, who: Identity, rng: random.Random) -> bool:
    side = rng.choice((-1, 1))
    x, y = 0.5 + side * 0.56, 0.02
    pen.line([(0.5 + side * 0.28, 0.62), (x, y + 0.2)], 0.018)
    colour = _vivid(rng, who)
    pen.oval(x, y, 0.17, 0.21, colour)
    pen.shape([(x, y + 0.19), (x - 0.04, y + 0.25), (x + 0.04, y + 0.25)], colour)
    pen.oval(x - 0.06, y - 0.08, 0.03, 0.04, (250, 250, 250))
    return True


def _umbrella(pen: Pen, who: Identity, rng: random.Random) -> bool:
    colour, x = _vivid(rng, who), 0.5
    pen.line([(0.80, -0.18), (0.80, 0.62)], 0.03)
    dome = [
        (x - 0.62, -0.04),
        (x - 0.50, -0.22),
        (x - 0.25, -0.36),
        (x, -0.40),
        (x + 0.25, -0.36),
        (x + 0.50, -0.22),
        (x + 0.62, -0.04),
    ]
    pen.shape(dome, colour)
    for i in (0.2, -0.2):
        pen.line([(x, -0.40), (x + i, -0.04)], 0.015)
    return True


def _skateboard(pen: Pen, who: Identity, rng: random.Random) -> bool:
    colour = _vivid(rng, who)
    for x in (0.2, 0.8):
        pen.oval(x, 1.06, 0.06, 0.06, (45, 45, 50))
    pen.box(-0.05, 0.94, 1.05, 1.02, colour, r=0.05)
    return False


_ACCESSORIES: dict[str, Callable[[Pen, Identity, random.Random], bool]] = {
    "wearing a hat": _hat,
    "wearing sunglasses": _glasses,
    "wearing a scarf": _scarf,
    "holding a balloon": _balloon,
    "under an umbrella": _umbrella,
    "on a skateboard": _skateboard,
}
ACCESSORIES = tuple(_ACCESSORIES)

"""Drawing identities and places with Pillow, in coordinates of 0..1 on a square."""

from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw

from .identities import Colour, Identity

Point = tuple[float, float]
INK: Colour = (34, 30, 34)
SKIN: Colour = (240, 200, 165)


class Pen:
    """Draws filled, outlined shapes on a transparent square of `side` pixels."""

    def __init__(self, side: int, texture: Image.Image | None = None) -> None:
        self.side = side
        self.image = Image.new("RGBA", (side, side))
        self._draw = ImageDraw.Draw(self.image)
        self._texture = texture
        self._line = max(1, round(side * 0.014))

    def oval(self, x: float, y: float, rx: float, ry: float, fill: Colour | None = None) -> None:
        """An ellipse around (x, y); without `fill` it shows the body's texture."""
        self._shape("ellipse", [x - rx, y - ry, x + rx, y + ry], fill)

    def box(
        self, x0: float, y0: float, x1: float, y1: float, fill: Colour | None = None, r: float = 0.0
    ) -> None:
        """A rectangle, its corners rounded by `r`."""
        self._shape("rounded_rectangle", [x0, y0, x1, y1], fill, radius=r * self.side)

    def shape(self, points: Sequence[Point], fill: Colour | None = None) -> None:
        """A polygon."""
        self._shape("polygon", [part for point in points for part in point], fill)

    def line(self, points: Sequence[Point], width: float, fill: Colour = INK) -> None:
        """A thick line with round joints."""
        scaled = [(x * self.side, y * self.side) for x, y in points]
        self._draw.line(
            scaled, fill=(*fill, 255), width=max(1, round(width * self.side)), joint="curve"
        )

    def arc(
        self,
        x: float,
        y: float,
        r: float,
        start: float,
        end: float,
        width: float,
        fill: Colour = INK,
    ) -> None:
        """A piece of a circle, in degrees clockwise from three o'clock."""
        where = [part * self.side for part in (x - r, y - r, x + r, y + r)]
        self._draw.arc(where, start, end, fill=(*fill, 255), width=max(1, round(width * self.side)))

    def _shape(
        self, kind: str, parts: Sequence[float], fill: Colour | None, **extra: float
    ) -> None:
        where = [part * self.side for part in parts]
        if fill is None and self._texture is not None:
            stencil = Image.new("L", self.image.size)
            getattr(ImageDraw.Draw(stencil), kind)(where, fill=255, **extra)
            self.image.paste(self._texture, (0, 0), stencil)
            getattr(self._draw, kind)(where, outline=(*INK, 255), width=self._line, **extra)
        else:
            colour = (*(fill or INK), 255)
            getattr(self._draw, kind)(
                where, fill=colour, outline=(*INK, 255), width=self._line, **extra
            )


def texture(identity: Identity, side: int) -> Image.Image:
    """The coat or surface of an identity: its body colour with its pattern."""
    image = Image.new("RGB", (side, side), identity.body)
    draw = ImageDraw.Draw(image)
    step = max(4, round(identity.pattern_scale * side))
    if identity.pattern == "striped":
        for start in range(-side, 2 * side, step):
            if identity.pattern_angle:
                box = [start, 0, start + step * 0.38, side]
            else:
                box = [0, start, side, start + step * 0.38]
            draw.rectangle(box, fill=identity.accent)
    elif identity.pattern == "spotted":
        for row, y in enumerate(range(0, side, step)):
            for x in range((row % 2) * step // 2, side, step):
                r = step * 0.30
                draw.ellipse([x - r, y - r, x + r, y + r], fill=identity.accent)
    elif identity.pattern == "checked":
        for start in range(0, side, step):
            end = start + step * 0.2
            draw.rectangle([start, 0, end, side], fill=identity.accent)
            draw.rectangle([0, start, side, end], fill=identity.accent)
    return image


def draw_subject(identity: Identity, side: int) -> Image.Image:
    """An identity alone on a transparent square of `side` pixels, standing at its foot; RGBA."""
    pen = Pen(side, texture(identity, side))
    _DRAWERS[identity.category](pen, identity)
    return pen.image


def head_of(identity: Identity) -> tuple[float, float, float]:
    """Where a hat would sit: (x, y) of the middle of the head's top edge, and half its width."""
    return _HEADS[identity.category]


_HEADS = {
    "cat": (0.5, 0.12, 0.24),
    "dog": (0.5, 0.12, 0.24),
    "bear": (0.5, 0.10, 0.25),
    "bird": (0.62, 0.15, 0.16),
    "doll": (0.5, 0.08, 0.20),
    "robot": (0.5, 0.10, 0.22),
    "mug": (0.44, 0.20, 0.26),
    "teapot": (0.5, 0.22, 0.18),
    "car": (0.5, 0.34, 0.22),
    "house": (0.5, 0.12, 0.16),
    "chair": (0.38, 0.08, 0.20),
    "backpack": (0.5, 0.14, 0.22),
}


def face_of(identity: Identity) -> tuple[float, float, float, float] | None:
    """Where eyes, nose and mouth are: left, top, right, bottom. Things have no face."""
    return _FACES.get(identity.category)


_FACES = {
    "cat": (0.30, 0.18, 0.70, 0.56),
    "dog": (0.30, 0.18, 0.70, 0.56),
    "bear": (0.30, 0.18, 0.70, 0.56),
    "bird": (0.52, 0.20, 0.95, 0.45),
    "doll": (0.30, 0.18, 0.70, 0.50),
    "robot": (0.25, 0.10, 0.75, 0.50),
}


def _eyes(pen: Pen, who: Identity, x: float, y: float, gap: float, size: float) -> None:
    size *= (0.8, 1.0, 1.3)[who.eyes]
    for side in (-1, 1):
        pen.oval(x + side * gap, y, size * 1.25, size * 1.4, (250, 250, 250))
        pen.oval(x + side * gap, y + size * 0.15, size * 0.75, size * 0.9, who.eye_colour)


def _legs(pen: Pen, xs: Sequence[float], top: float, width: float) -> None:
    for x in xs:
        pen.box(x - width, top, x + width, 0.97, r=0.04)


def _cat(pen: Pen, who: Identity) -> None:
    wide = 0.20 + 0.08 * who.build[0]
    pen.line(
        [(0.5 + wide * 0.8, 0.85), (0.86, 0.72), (0.88, 0.48 + 0.1 * who.build[1])], 0.07, who.body
    )
    pen.oval(0.5, 0.74, wide, 0.24)
    if who.has_patch:
        pen.oval(0.5, 0.78, wide * 0.5, 0.15, who.mark)
    _legs(pen, (0.5 - wide * 0.6, 0.5 + wide * 0.6), 0.84, 0.055)
    height = 0.14 + 0.12 * who.build[2]
    for side in (-1, 1):
        x = 0.5 + side * 0.17
        tip = (x + side * (0.02, 0.07, 0.12)[who.ears], 0.22 - height)
        pen.shape([(x - 0.10, 0.26), tip, (x + 0.10, 0.30)])
        pen.shape([(x - 0.04, 0.25), (tip[0], tip[1] + 0.06), (x + 0.05, 0.27)], who.mark)
    pen.oval(0.5, 0.36, 0.25, 0.21)
    _eyes(pen, who, 0.5, 0.33, 0.11, 0.045)
    pen.shape([(0.47, 0.41), (0.53, 0.41), (0.5, 0.44)], (235, 130, 140))
    for side in (-1, 1):
        for y in (0.43, 0.47):
            pen.line([(0.5 + side * 0.09, 0.44), (0.5 + side * 0.29, y)], 0.010)


def _dog(pen: Pen, who: Identity) -> None:
    wide = 0.22 + 0.07 * who.build[0]
    pen.line([(0.5 - wide * 0.8, 0.80), (0.15, 0.62), (0.13, 0.56)], 0.07, who.body)
    pen.oval(0.5, 0.74, wide, 0.23)
    _legs(pen, (0.5 - wide * 0.6, 0.5 + wide * 0.6), 0.82, 0.065)
    pen.oval(0.5, 0.36, 0.24, 0.23)
    if who.has_patch:
        pen.oval(0.40, 0.32, 0.11, 0.12, who.mark)
    length = 0.16 + 0.16 * who.build[1]
    for side in (-1, 1):
        x = 0.5 + side * 0.25
        if who.ears == 0:
            pen.oval(x, 0.30 + length * 0.6, 0.075, length * 0.8, who.accent)
        elif who.ears == 1:
            pen.shape(
                [(x - side * 0.12, 0.20), (x + side * 0.06, 0.02), (x + side * 0.02, 0.32)],
                who.accent,
            )
        else:
            pen.shape(
                [(x - side * 0.10, 0.16), (x + side * 0.14, 0.20), (x + side * 0.10, 0.38)],
                who.accent,
            )
    _eyes(pen, who, 0.5, 0.30, 0.10, 0.04)
    snout = 0.10 + 0.05 * who.build[2]
    pen.oval(0.5, 0.46, snout, 0.09, (248, 238, 222))
    pen.oval(0.5, 0.42, 0.05, 0.035, INK)
    pen.shape([(0.47, 0.52), (0.53, 0.52), (0.5, 0.60)], (235, 100, 110))


def _bear(pen: Pen, who: Identity) -> None:
    wide = 0.26 + 0.07 * who.build[0]
    for side in (-1, 1):
        pen.oval(0.5 + side * (wide + 0.02), 0.66, 0.09, 0.14)
        pen.oval(0.5 + side * wide * 0.62, 0.90, 0.12, 0.08)
    pen.oval(0.5, 0.70, wide, 0.24)
    pen.oval(0.5, 0.72, wide * 0.55, 0.15, who.mark if who.has_patch else (245, 230, 205))
    size = 0.07 + 0.04 * who.build[1]
    for side in (-1, 1):
        pen.oval(0.5 + side * (0.19, 0.22, 0.16)[who.ears], 0.17, size, size)
        pen.oval(
            0.5 + side * (0.19, 0.22, 0.16)[who.ears], 0.18, size * 0.5, size * 0.5, who.accent
        )
    pen.oval(0.5, 0.33, 0.25, 0.22)
    _eyes(pen, who, 0.5, 0.29, 0.10, 0.035)
    pen.oval(0.5, 0.42, 0.11 + 0.03 * who.build[2], 0.085, (245, 230, 205))
    pen.oval(0.5, 0.39, 0.045, 0.03, INK)


def _bird(pen: Pen, who: Identity) -> None:
    for x in (0.42, 0.54):
        pen.line([(x, 0.80), (x, 0.95)], 0.025, (230, 140, 30))
        pen.line([(x - 0.06, 0.96), (x + 0.07, 0.96)], 0.025, (230, 140, 30))
    length = 0.08 + 0.10 * who.build[0]
    pen.shape([(0.26, 0.60), (0.18 - length, 0.44), (0.13 - length / 2, 0.68)], who.accent)
    pen.oval(0.47, 0.62, 0.28, 0.21)
    if who.has_patch:
        pen.oval(0.56, 0.68, 0.15, 0.13, who.mark)
    pen.oval(0.38, 0.60, 0.15 + 0.04 * who.build[1], 0.10, who.accent)
    pen.oval(0.63, 0.33, 0.18, 0.17)
    for i in range((0, 2, 3)[who.ears]):
        pen.line([(0.60, 0.18), (0.50 + 0.07 * i, 0.04)], 0.035, who.mark)
    beak = 0.10 + 0.08 * who.build[2]
    pen.shape([(0.78, 0.29), (0.80 + beak, 0.35), (0.78, 0.40)], (245, 150, 30))
    size = (0.030, 0.038, 0.048)[who.eyes]
    pen.oval(0.67, 0.30, size * 1.5, size * 1.5, (250, 250, 250))
    pen.oval(0.68, 0.30, size * 0.9, size * 0.9, who.eye_colour)


def _doll(pen: Pen, who: Identity) -> None:
    for side in (-1, 1):
        pen.box(0.5 + side * 0.09 - 0.05, 0.82, 0.5 + side * 0.09 + 0.05, 0.97, SKIN, r=0.03)
        pen.line(
            [(0.5 + side * 0.12, 0.54), (0.5 + side * 0.30, 0.66 - 0.12 * who.build[2])], 0.07, SKIN
        )
    flare = 0.22 + 0.10 * who.build[0]
    pen.shape([(0.40, 0.48), (0.60, 0.48), (0.5 + flare, 0.88), (0.5 - flare, 0.88)])
    if who.has_patch:
        pen.box(0.40, 0.60, 0.60, 0.66, who.mark)
    hair = 0.06 + 0.20 * who.build[1]
    pen.oval(0.5, 0.27, 0.24, 0.21, who.accent)
    for side in (-1, 1):
        if who.ears == 0:
            pen.box(
                0.5 + side * 0.19 - 0.06,
                0.28,
                0.5 + side * 0.19 + 0.06,
                0.34 + hair,
                who.accent,
                r=0.05,
            )
        elif who.ears == 1:
            pen.oval(0.5 + side * 0.27, 0.22, 0.085, 0.085, who.accent)
    pen.oval(0.5, 0.32, 0.19, 0.18, SKIN)
    pen.shape([(0.31, 0.27), (0.5, 0.13), (0.69, 0.27), (0.5, 0.21)], who.accent)
    _eyes(pen, who, 0.5, 0.32, 0.08, 0.030)
    pen.arc(0.5, 0.38, 0.06, 20, 160, 0.018, (190, 50, 60))


def _robot(pen: Pen, who: Identity) -> None:
    steel = (165, 170, 178)
    wide = 0.20 + 0.06 * who.build[0]
    for side in (-1, 1):
        pen.box(0.5 + side * 0.11 - 0.055, 0.80, 0.5 + side * 0.11 + 0.055, 0.97, steel)
        pen.line([(0.5 + side * wide, 0.56), (0.5 + side * (wide + 0.12), 0.72)], 0.06, steel)
        pen.oval(0.5 + side * (wide + 0.12), 0.74, 0.055, 0.055, who.accent)
    pen.box(0.5 - wide, 0.48, 0.5 + wide, 0.84, r=0.03)
    pen.box(0.5 - wide * 0.5, 0.56, 0.5 + wide * 0.5, 0.70, who.mark if who.has_patch else steel)
    pen.line([(0.5, 0.16), (0.5, 0.04)], 0.025)
    top = (0.04, 0.055, 0.03)[who.ears]
    pen.oval(0.5, 0.05, top, top, who.mark)
    head = 0.18 + 0.06 * who.build[1]
    pen.box(0.5 - head, 0.15, 0.5 + head, 0.46, r=0.04 + 0.06 * who.build[2])
    pen.box(0.5 - head * 0.8, 0.20, 0.5 + head * 0.8, 0.34, (60, 64, 74), r=0.03)
    for side in (-1, 1):
        size = (0.035, 0.045, 0.055)[who.eyes]
        pen.oval(0.5 + side * 0.08, 0.27, size, size, (250, 240, 150))
    pen.line([(0.42, 0.40), (0.58, 0.40)], 0.025)


def _mug(pen: Pen, who: Identity) -> None:
    tall = 0.22 + 0.12 * who.build[0]
    right = 0.62 + 0.06 * who.build[1]
    loop = 0.11 + 0.05 * who.build[2]
    pen.arc(right + 0.02, 0.95 - tall * 1.1, loop + 0.02, -95, 95, 0.10)
    pen.arc(right + 0.02, 0.95 - tall * 1.1, loop, -95, 95, 0.06, who.accent)
    pen.box(0.2, 0.95 - 2.1 * tall, right, 0.95, r=0.05)
    pen.oval((0.2 + right) / 2, 0.95 - 2.1 * tall, (right - 0.2) / 2, 0.06, (90, 55, 30))
    if who.has_patch:
        _emblem(pen, who, (0.2 + right) / 2, 0.95 - tall)


def _emblem(pen: Pen, who: Identity, x: float, y: float) -> None:
    size = 0.10
    if who.ears == 0:
        pen.oval(x, y, size, size, who.mark)
    elif who.ears == 1:
        pen.shape(
            [
                (x, y - size * 1.2),
                (x + size * 1.1, y + size * 0.8),
                (x - size * 1.1, y + size * 0.8),
            ],
            who.mark,
        )
    else:
        pen.shape(
            [
                (x, y + size * 1.2),
                (x + size * 1.2, y - size * 0.3),
                (x + size * 0.6, y - size),
                (x, y - size * 0.4),
                (x - size * 0.6, y - size),
                (x - size * 1.2, y - size * 0.3),
            ],
            who.mark,
        )


def _teapot(pen: Pen, who: Identity) -> None:
    wide, tall = 0.24 + 0.05 * who.build[0], 0.22 + 0.05 * who.build[1]
    middle = 0.94 - tall
    pen.line(
        [(0.5 + wide * 0.7, middle + 0.06), (0.80, middle - 0.02), (0.90, middle - tall * 0.9)],
        0.10,
    )
    pen.line(
        [(0.5 + wide * 0.7, middle + 0.06), (0.80, middle - 0.02), (0.90, middle - tall * 0.9)],
        0.07,
        who.body,
    )
    pen.arc(0.5 - wide - 0.02, middle, 0.15, 80, 280, 0.09)
    pen.arc(0.5 - wide - 0.02, middle, 0.135, 80, 280, 0.055, who.accent)
    pen.oval(0.5, middle, wide, tall)
    if who.has_patch:
        _emblem(pen, who, 0.5, middle)
    pen.oval(0.5, middle - tall, wide * 0.6, 0.05, who.accent)
    knob = 0.035 + 0.03 * who.build[2]
    pen.oval(0.5, middle - tall - 0.06, knob, knob, who.mark)


def _car(pen: Pen, who: Identity) -> None:
    left, right = 0.30 - 0.08 * who.build[0], 0.70 + 0.08 * who.build[1]
    roof = 0.36 + 0.08 * who.build[2]
    pen.shape(
        [(left - 0.08, 0.62), (left + 0.06, roof), (right - 0.06, roof), (right + 0.10, 0.62)]
    )
    for x0, x1 in ((left + 0.05, 0.48), (0.52, right - 0.02)):
        pen.box(x0, roof + 0.05, x1, 0.60, (190, 225, 245))
    pen.box(0.04, 0.60, 0.96, 0.84, r=0.07)
    if who.has_patch:
        pen.box(0.06, 0.70, 0.94, 0.75, who.mark)
    pen.oval(0.92, 0.68, 0.035, 0.04, (255, 245, 160))
    size = (0.10, 0.115, 0.13)[who.eyes]
    for x in (0.25, 0.75):
        pen.oval(x, 0.97 - size, size, size, (45, 45, 50))
        pen.oval(
            x, 0.97 - size, size * 0.5, size * 0.5, who.accent if who.ears else (200, 200, 205)
        )


def _house(pen: Pen, who: Identity) -> None:
    wide = 0.28 + 0.10 * who.build[0]
    eaves = 0.46 + 0.06 * who.build[1]
    pen.box(0.5 + wide * 0.4, 0.16, 0.5 + wide * 0.4 + 0.09, 0.40, (150, 80, 65))
    pen.box(0.5 - wide, eaves, 0.5 + wide, 0.96)
    peak = 0.10 + 0.08 * who.build[2]
    if who.ears == 2:
        roof = [
            (0.5 - wide - 0.07, eaves),
            (0.5 - wide * 0.5, peak),
            (0.5 + wide * 0.5, peak),
            (0.5 + wide + 0.07, eaves),
        ]
    else:
        roof = [(0.5 - wide - 0.07, eaves), (0.5, peak), (0.5 + wide + 0.07, eaves)]
    pen.shape(roof, who.accent)
    door = 0.5 if who.ears == 0 else 0.5 - wide * 0.45
    pen.box(door - 0.075, 0.70, door + 0.075, 0.96, who.mark)
    for x in (0.5 - wide * 0.62, 0.5 + wide * 0.62) if who.ears == 0 else (0.5 + wide * 0.4,):
        size = (0.06, 0.075, 0.085)[who.eyes]
        pen.box(x - size, 0.60, x + size, 0.60 + 2 * size, (255, 240, 150))
        pen.line([(x, 0.60), (x, 0.60 + 2 * size)], 0.018)


def _chair(pen: Pen, who: Identity) -> None:
    wood = who.accent
    for x in (0.24, 0.70):
        pen.box(x, 0.60, x + 0.07, 0.97, wood)
    pen.box(0.20, 0.62, 0.28, 0.97, wood)
    back = 0.08 + 0.12 * who.build[0]
    width = 0.58 + 0.12 * who.build[1]
    if who.ears == 0:
        pen.box(0.20, back, width, 0.60, r=0.04)
    elif who.ears == 1:
        pen.box(0.20, back, width, 0.60, r=0.18)
    else:
        for x in (0.20, 0.20 + (width - 0.28) / 2, width - 0.08):
            pen.box(x, back, x + 0.08, 0.60)
        pen.box(0.18, back, width + 0.02, back + 0.12)
    if who.has_patch and who.ears < 2:
        pen.box(0.27, back + 0.08, width - 0.07, back + 0.26, who.mark, r=0.03)
    pen.shape([(0.20, 0.56), (0.62 + 0.1 * who.build[1], 0.56), (0.82, 0.68), (0.26, 0.68)])
    pen.box(0.26, 0.66, 0.82, 0.72, r=0.02)


def _backpack(pen: Pen, who: Identity) -> None:
    wide = 0.24 + 0.07 * who.build[0]
    pen.arc(0.5, 0.18, 0.10, 180, 360, 0.05, who.accent)
    for side in (-1, 1):
        pen.box(
            0.5 + side * (wide + 0.03) - 0.05,
            0.44,
            0.5 + side * (wide + 0.03) + 0.05,
            0.84,
            who.accent,
            r=0.05,
        )
    pen.box(
        0.5 - wide, 0.16 + 0.08 * who.build[1], 0.5 + wide, 0.95, r=(0.10, 0.20, 0.05)[who.ears]
    )
    pocket = 0.62 - 0.06 * who.build[2]
    pen.box(0.5 - wide * 0.72, pocket, 0.5 + wide * 0.72, 0.90, who.accent, r=0.05)
    pen.line([(0.5 - wide * 0.8, 0.50), (0.5 + wide * 0.8, 0.50)], 0.025)
    if who.has_patch:
        pen.oval(0.5, 0.37, 0.09, 0.09, who.mark)
    pen.box(0.46, pocket + 0.03, 0.54, pocket + 0.08, (235, 205, 90))


_DRAWERS: dict[str, Callable[[Pen, Identity], None]] = {
    "cat": _cat,
    "dog": _dog,
    "bear": _bear,
    "bird": _bird,
    "doll": _doll,
    "robot": _robot,
    "mug": _mug,
    "teapot": _teapot,
    "car": _car,
    "house": _house,
    "chair": _chair,
    "backpack": _backpack,
}

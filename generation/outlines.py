"""Outlines of regions: closed polygons, small enough to be kept with a picture."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

LEVEL = 0.5
"""A place is within an outline where at least so much of it is in the region."""
MAX_POLYGONS = 16
MAX_POINTS = 128
"""Of a polygon."""
_TOLERANCE = 0.004
"""How far a simpler outline may be off, as a share of the picture's sides."""

Point = tuple[float, float]
"""Shares of a picture's width and height, from the top left."""
Polygon = Sequence[Point]
_Edge = tuple[str, int, int]


def outlined(names: Sequence[str], regions: "Tensor") -> dict[str, list[list[Point]]]:
    """The outlines of subjects' regions (S, h, w) by the subjects' names."""
    return {name: outlines(each) for name, each in zip(names, regions, strict=True)}


def outlines(region: "Tensor") -> list[list[Point]]:
    """Polygons around where a region (h, w) of shares from 0 to 1 is at least a half.

    By marching squares (Lorensen and Cline 1987, in the plane), between the places' centres; then
    points that hardly matter are left out (Douglas and Peucker 1973). Holes are polygons too. The
    longest `MAX_POLYGONS` are kept.
    """
    shares = np.pad(region.detach().float().cpu().numpy(), 1)
    loops = sorted(_loops(_segments(shares)), key=len, reverse=True)[:MAX_POLYGONS]
    height, width = region.shape
    found: list[list[Point]] = []
    for loop in loops:
        points = [_crossing(shares, edge) for edge in loop]
        placed = [(_share(x - 0.5, width), _share(y - 0.5, height)) for x, y in points]
        found.append(_few(_simple(placed)))
    return [polygon for polygon in found if len(polygon) > 2]


def _segments(shares: np.ndarray) -> dict[_Edge, _Edge]:
    """From where the outline enters each square of four places to where it leaves it."""
    inside = shares >= LEVEL
    counts = inside[:-1, :-1] * 1 + inside[:-1, 1:] + inside[1:, 1:] + inside[1:, :-1]
    found: dict[_Edge, _Edge] = {}
    for row, column in np.argwhere((counts > 0) & (counts < 4)).tolist():
        corners = [(row, column), (row, column + 1), (row + 1, column + 1), (row + 1, column)]
        edges = [("h", row, column), ("v", row, column + 1), ("h", row + 1, column)]
        edges.append(("v", row, column))
        within = [bool(inside[each]) for each in corners]
        turns = [(edges[i], within[i]) for i in range(4) if within[i] != within[(i + 1) % 4]]
        if not turns[0][1]:
            turns = [*turns[1:], turns[0]]
        if len(turns) == 4 and shares[row : row + 2, column : column + 2].mean() < LEVEL:
            turns = [turns[0], turns[3], turns[2], turns[1]]  # the two corners do not meet
        for (start, _), (end, _) in zip(turns[::2], turns[1::2], strict=True):
            found[start] = end
    return found


def _loops(following: dict[_Edge, _Edge]) -> Iterator[list[_Edge]]:
    while following:
        start, edge = following.popitem()
        loop = [start]
        while edge != start:
            loop.append(edge)
            edge = following.pop(edge)
        yield loop


def _crossing(shares: np.ndarray, edge: _Edge) -> Point:
    """Where an edge between two places is at the level; (x, y) in places."""
    kind, row, column = edge
    down, right = (0, 1) if kind == "h" else (1, 0)
    first, second = float(shares[row, column]), float(shares[row + down, column + right])
    part = (LEVEL - first) / (second - first)
    return column + right * part, row + down * part


def _share(place: float, length: int) -> float:
    return round(min(max(place / length, 0.0), 1.0), 3)


def _simple(loop: Sequence[Point]) -> list[Point]:
    """A closed loop without the points that are near the line between their neighbours."""
    far = max(range(len(loop)), key=lambda i: _squared(loop[0], loop[i]))
    halves = [[*loop[: far + 1]], [*loop[far:], loop[0]]]
    return [point for half in halves for point in _kept(half)[:-1]]


def _kept(line: Sequence[Point]) -> list[Point]:
    keep = {0, len(line) - 1}
    waiting = [(0, len(line) - 1)]
    while waiting:
        first, last = waiting.pop()
        between = range(first + 1, last)
        if not between:
            continue
        middle = max(between, key=lambda i: _offset(line[i], line[first], line[last]))
        if _offset(line[middle], line[first], line[last]) > _TOLERANCE:
            keep.add(middle)
            waiting += [(first, middle), (middle, last)]
    return [line[i] for i in sorted(keep)]


def _offset(point: Point, start: Point, end: Point) -> float:
    """The distance of a point from the line through two others, or from them if they are one."""
    length = _squared(start, end) ** 0.5
    if length == 0:
        return _squared(point, start) ** 0.5
    (x, y), (x0, y0), (x1, y1) = point, start, end
    return abs((x1 - x0) * (y0 - y) - (x0 - x) * (y1 - y0)) / length


def _squared(a: Point, b: Point) -> float:
    return (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2


def _few(polygon: list[Point]) -> list[Point]:
    step = -(-len(polygon) // MAX_POINTS)
    return polygon[::step] if step else polygon


def area(polygon: Polygon) -> float:
    """The area of a polygon, as a share of the picture's (the shoelace formula)."""
    pairs = pairwise([*polygon, *polygon[:1]])
    return abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairs)) / 2


def as_path(polygons: Sequence[Polygon], size: tuple[float, float] = (100, 100)) -> str:
    """The data of an SVG path around all of them, where a picture is of that width and height."""
    width, height = size
    drawn = ("L".join(f"{x * width:.5g} {y * height:.5g}" for x, y in each) for each in polygons)
    return "".join(f"M{each}Z" for each in drawn)


Outlines = Mapping[str, Sequence[Polygon]]
"""The polygons of each subject of a picture, by its name."""

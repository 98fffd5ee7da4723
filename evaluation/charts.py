"""Charts as SVG text, in the page's own colours: no library, no script."""

import html
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import astuple

from ..registry.names import printable
from .record import Evaluation, distinct_labels

COLOURS = ("#2f6fde", "#d1582b", "#2c8f5b", "#8b4fc4", "#b58a12", "#c43b76", "#3a9ea5", "#6b6b6b")
_WIDTH, _HEIGHT, _EDGE = 520, 320, 44
_POINTS = 120
DASHES = ("none", "7 3", "2 3")
"""Of outlines, beside their colours."""
_HIGHEST = 1e15
"""Larger numbers are left out: axes and means have to be finite."""


def escape(text: str) -> str:
    """A text element."""
    return html.escape(printable(text))


def scatter(found: Sequence[Evaluation]) -> str:
    """Identity against prompt score, a point with its intervals and label for each evaluation."""
    axes = [each.chosen_by for each in found]
    points = [
        (label, each.scores[x], each.scores[y])
        for label, each, (x, y) in zip(distinct_labels(found), found, axes, strict=True)
        if x in each.scores and y in each.scores
    ]
    points = [(label, x, y) for label, x, y in points if _is_drawn(*astuple(x), *astuple(y))]
    if not points:
        return ""
    across = _Axis.over([value for _, x, _ in points for value in (x.low, x.high)])
    up = _Axis.over([value for _, _, y in points for value in (y.low, y.high)])
    parts = [_frame(across, up, axes[0][0], axes[0][1])]
    for i, (label, x, y) in enumerate(points):
        colour = COLOURS[i % len(COLOURS)]
        left, right, middle = across.x(x.low), across.x(x.high), across.x(x.mean)
        low, high, height = up.y(y.low), up.y(y.high), up.y(y.mean)
        near_edge = middle > _WIDTH * 0.7
        parts += [
            f'<g stroke="{colour}" stroke-width="1.5" opacity=".6">'
            f'<path d="M{left} {height}H{right}M{middle} {low}V{high}"/></g>',
            f'<circle cx="{middle}" cy="{height}" r="5" fill="{colour}"/>',
            f'<text x="{middle + (-9 if near_edge else 9):.1f}" y="{height - 7:.1f}" '
            f'text-anchor="{"end" if near_edge else "start"}">{escape(label)}</text>',
        ]
    return _svg("identity against prompt score", parts)


def curves(metrics: Sequence[tuple[str, int, str, float]]) -> str:
    """Losses (stage, step, name, value) over all stages, each step the mean of its neighbours."""
    metrics = [row for row in metrics if _is_drawn(row[1], row[3])]
    lengths: dict[str, int] = {}
    for stage, step, *_ in metrics:
        lengths[stage] = max(lengths.get(stage, 0), step)
    starts, total = {}, 0
    for stage, length in lengths.items():
        starts[stage] = total
        total += length
    series: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
    for stage, step, name, value in metrics:
        series[name].append((starts[stage] + step, value))
    smooth = {name: _smoothed(sorted(values)) for name, values in series.items()}
    across = _Axis(0, max(total, 1), 0)
    up = _Axis.over([0.0, *(value for values in smooth.values() for _, value in values)])
    parts = [_frame(across, up, "step", "loss")]
    for stage, start in starts.items():
        x = across.x(start)
        parts.append(f'<path class="stage" d="M{x} {_EDGE / 2}V{_HEIGHT - _EDGE}"/>')
        parts.append(f'<text class="small" x="{x + 4}" y="{_EDGE / 2 + 8}">{escape(stage)}</text>')
    for i, (name, values) in enumerate(smooth.items()):
        colour = COLOURS[i % len(COLOURS)]
        line = "L".join(f"{across.x(step)} {up.y(value)}" for step, value in values)
        parts.append(f'<path fill="none" stroke="{colour}" stroke-width="1.5" d="M{line}"/>')
        y = _EDGE / 2 + 24 + 15 * i
        parts.append(
            f'<text class="small" fill="{colour}" x="{_WIDTH - 12}" y="{y}" text-anchor="end">'
            f"{escape(name)}</text>"
        )
    return _svg("losses", parts)


def _is_drawn(*values: float) -> bool:
    return all(abs(value) <= _HIGHEST for value in values)


def _smoothed(values: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Means of neighbours, at most `_POINTS` of them."""
    size = max(1, -(-len(values) // _POINTS))
    chunks = [values[first : first + size] for first in range(0, len(values), size)]
    return [
        (chunk[len(chunk) // 2][0], statistics.fmean(value for _, value in chunk))
        for chunk in chunks
    ]


class _Axis:
    """Scales from values to pixels."""

    def __init__(self, low: float, high: float, margin: float = 0.06) -> None:
        room = (high - low) * margin or (0.0 if high > low else 0.05)
        self.low, self.high = low - room, high + room

    @classmethod
    def over(cls, values: Sequence[float]) -> "_Axis":
        """The axis that has all values."""
        return cls(min(values), max(values))

    def x(self, value: float) -> float:
        """Pixels from the left."""
        share = (value - self.low) / (self.high - self.low)
        return round(_EDGE + share * (_WIDTH - _EDGE - 12), 1)

    def y(self, value: float) -> float:
        """Pixels from the top."""
        share = (value - self.low) / (self.high - self.low)
        return round(_HEIGHT - _EDGE - share * (_HEIGHT - 1.5 * _EDGE), 1)

    def ticks(self) -> list[float]:
        """Five values to write beside it."""
        return [self.low + (self.high - self.low) * i / 4 for i in range(5)]


def _frame(across: _Axis, up: _Axis, below: str, beside: str) -> str:
    bottom, right = _HEIGHT - _EDGE, _WIDTH - 12
    lines = [f'<path class="axis" d="M{_EDGE} {_EDGE / 2}V{bottom}H{right}"/>']
    places = 2 if across.high < 10 else 0
    lines += [
        f'<text class="small" x="{across.x(value)}" y="{bottom + 15}" '
        f'text-anchor="middle">{_tick(value, places)}</text>'
        for value in across.ticks()
    ]
    lines += [
        f'<text class="small" x="{_EDGE - 5}" y="{up.y(value) + 4}" '
        f'text-anchor="end">{_tick(value)}</text>'
        for value in up.ticks()
    ]
    lines.append(
        f'<text x="{(_EDGE + right) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">'
        f"{escape(below)}</text>"
    )
    lines.append(f'<text x="4" y="12">{escape(beside)}</text>')
    return "".join(lines)


def _tick(value: float, places: int = 2) -> str:
    return f"{value:.{places}f}" if abs(value) < 1e5 else f"{value:.0e}"


def _svg(title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )

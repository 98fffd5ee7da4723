"""Fronts: what a method keeps of an individual against what it costs, over the steps of a training.

    python bench/fronts.py --out runs/fronts --split tuning --concepts 3 --methods dreambooth
    python bench/fronts.py --out runs/fronts --more "prior=attndreambooth:prior.weight=1"

Individuals of bench/methods.py are taught by each method's `miniature` preset with twice the steps
in its last stage, and drawn at quarters of the preset's steps: so methods can be compared where
they keep equally much (`at equal identity`) and where they have taken equally long (`at equal
seconds`), and not at one point each. `--more` adds a method with other settings under a name of its
own.
Values between two points are on the straight line between them, the first of which is the base
model's; after some seconds a method has what its last point by then had. An individual of which a
method never keeps as much is left out of that mean, and counted; `differences` are of individuals
of whom both methods have it.

Scores are those of bench/methods.py; `drift` is what every member of the category became. With all
individuals of the split `measured`, writes bench/results/fronts.json and fronts.svg; else the same
into --out. Interrupted, it goes on where it was.
"""

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import combinations
from pathlib import Path
from typing import Any

from conceptry.methods import all_methods
from conceptry.methods.method import active_stages, find_method
from conceptry.registry.hashes import sha256_of_json
from conceptry.registry.running import ADAPTER_FILE
from conceptry.training import Hooks, train
from environment import describe as describe_machine
from environment import is_as_published
from laboratory import BARE_WAY, Individual, Laboratory, Way, interval, opened, parser

RESULTS = Path(__file__).parent / "results"
QUARTERS = (1, 2, 3, 4, 6, 8)
"""Of the preset's steps in the last stage, at which pictures are drawn."""
IDENTITIES = (0.4, 0.5, 0.6, 0.7, 0.8)
SECONDS = (30, 60, 90, 120)
KEPT = ("seen", "likeness", "recognised", "drift")
_COLOURS = ("#d1582b", "#2f6fde", "#2c8f5b", "#8b4fc4", "#b58a12", "#c43b76", "#3a9ea5", "#6b6b6b")
_WIDTH, _HEIGHT, _EDGE = 560, 300, 48


@dataclass(frozen=True, slots=True)
class Point:
    """What a training had come to after some seconds of its own."""

    step: int
    seconds: float
    scores: dict[str, float]


Front = Sequence[Point]
"""The points of one training, in order."""


def crossing(front: Front, axis: str, level: float, name: str) -> float | None:
    """A score where another first reaches a level; None if it never does, or has it from the start.

    With `seconds` for an axis, what there is after so many: the last point by then; None if there
    is none yet.
    """

    def value(point: Point, of: str) -> float | None:
        return point.seconds if of == "seconds" else point.scores.get(of)

    if axis == "seconds":
        done = [point for point in front if point.seconds <= level and point.step]
        return value(done[-1], name) if done else None
    before: Point | None = None
    for point in front:
        high = value(point, axis)
        if high is not None and high >= level:
            if before is None:
                return value(point, name) if high == level else None
            ends = [value(each, of) for of in (axis, name) for each in (before, point)]
            if None in ends:
                return None
            low, high, first, last = (end or 0.0 for end in ends)
            return first + (level - low) / (high - low) * (last - first)
        before = point
    return None


# --- teaching -------------------------------------------------------------------------------------


def last_stage(way: Way) -> tuple[str, int]:
    """The stage whose steps are varied, and how many the preset has."""
    *_, (stage, own) = active_stages(find_method(way.method), way.settings("miniature"))
    return stage.name, own.steps


def teach(laboratory: Laboratory, who: Individual, way: Way, place: Path) -> Iterator[Way]:
    """The ways to draw an individual after each of `QUARTERS`; teaches it if need be."""
    stage, steps = last_stage(way)
    every = steps // 4
    points = [quarter * every for quarter in QUARTERS]
    label = _label_of(laboratory, way)
    ways = {point: replace(way, alias=f"front-{label}-{point}") for point in points}
    told = place / f"{label}.json"
    if not told.exists():
        taken: dict[int, float] = {}
        total, began = 0.0, time.monotonic()

        def on_step(report: Any) -> None:
            nonlocal total
            total = total + report.seconds if total else time.monotonic() - began
            if report.stage == stage:
                taken[report.step] = total

        done = train(
            laboratory.registry,
            who.name,
            laboratory.base,
            method=way.method,
            preset="miniature",
            overrides=(*way.overrides, f"{stage}.steps={points[-1]}"),
            hooks=Hooks(on_step=on_step, checkpoint_every=every),
        )
        registry = laboratory.registry
        for path in registry.checkpoints(done.run):
            step = int(path.stem.rpartition("-")[2])
            if step in ways:
                registry.add_version(
                    who.name, {ADAPTER_FILE: path}, run=done.run, alias=ways[step].alias
                )
        registry.set_alias(who.name, done.version, ways[points[-1]].alias)
        place.mkdir(parents=True, exist_ok=True)
        told.write_text(json.dumps({str(point): taken[point] for point in points}))
        print(who.name, way.label, round(total, 1), flush=True)
    yield from ways.values()


def front_of(laboratory: Laboratory, who: Individual, way: Way, place: Path) -> list[Point]:
    """The front of one training, with the base model at its start."""
    found = [Point(0, 0.0, laboratory.row(who, BARE_WAY)["scores"])]
    for each in teach(laboratory, who, way, place):
        step = int(each.alias.rpartition("-")[2])
        told = place / f"{_label_of(laboratory, way)}.json"
        seconds = json.loads(told.read_text())[str(step)]
        scores = laboratory.row(who, each)["scores"]
        found.append(Point(step, seconds, scores))
        shown = {name: round(scores[name], 3) for name in ("identity", *KEPT) if name in scores}
        print(who.name, way.label, step, shown, flush=True)
    return found


def _label_of(laboratory: Laboratory, way: Way) -> str:
    """A way's label, and a hash of its settings: after a change it is taught anew."""
    told = [way.settings(laboratory.base.base.name).to_mapping(), laboratory.base.sha256]
    plain = "".join(letter if letter.isalnum() else "-" for letter in way.label)
    return f"{plain}-{sha256_of_json(told)[:8]}"


# --- comparing ------------------------------------------------------------------------------------


def compared(fronts: dict[str, list[Front]]) -> dict[str, Any]:
    """Means over individuals, with intervals, at each step, equal identity and equal seconds."""
    return {
        label: {
            "points": [_mean_point(points) for points in zip(*own, strict=True)],
            "at equal identity": _at(own, "identity", IDENTITIES),
            "at equal seconds": _at(own, "seconds", SECONDS),
        }
        for label, own in fronts.items()
    }


def paired(fronts: dict[str, list[Front]]) -> list[dict[str, Any]]:
    """Differences of methods at equal identity and seconds, of individuals of whom both have it."""
    told: list[dict[str, Any]] = []
    for (one, ours), (other, theirs) in combinations(fronts.items(), 2):
        for axis, levels in (("identity", IDENTITIES), ("seconds", SECONDS)):
            for level in levels:
                scores: dict[str, Any] = {}
                for name in ("identity", *KEPT, "seconds"):
                    pairs = [
                        (crossing(a, axis, level, name), crossing(b, axis, level, name))
                        for a, b in zip(ours, theirs, strict=True)
                    ]
                    apart = [a - b for a, b in pairs if a is not None and b is not None]
                    if apart and name != axis:
                        scores[name] = interval(apart) | {"individuals": len(apart)}
                told.append({"of": one, "less": other, "at": {axis: level}, "scores": scores})
    return told


def _mean_point(points: Sequence[Point]) -> dict[str, Any]:
    names = [name for name in points[0].scores if all(name in each.scores for each in points)]
    return {
        "step": points[0].step,
        "seconds": round(statistics.fmean(point.seconds for point in points), 1),
        "scores": {name: interval([point.scores[name] for point in points]) for name in names},
    }


def _at(fronts: Sequence[Front], axis: str, levels: Sequence[float]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    names = [name for name in ("identity", *KEPT) if name in fronts[0][-1].scores]
    for level in levels:
        values = {
            name: [
                found for each in fronts if (found := crossing(each, axis, level, name)) is not None
            ]
            for name in (*names, "seconds")
        }
        reached = len(values["seconds"])
        scores = {name: interval(own) for name, own in values.items() if own and name != axis}
        told[f"{level:g}"] = {"individuals": reached, "scores": scores}
    return told


def write_chart(result: dict[str, Any], path: Path) -> None:
    """`seen` and `drift` against identity: a line for each method, a dot for each point."""
    panels = [("seen", "what prompts ask for is seen"), ("drift", "drift of the category")]
    parts: list[str] = []
    for number, (name, title) in enumerate(panels):
        parts += _panel(result, name, title, number * _HEIGHT)
    parts += [f'<text x="{_WIDTH - _EDGE}" y="{2 * _HEIGHT - 6}" text-anchor="end">identity</text>']
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {2 * _HEIGHT}" '
        f'font-family="sans-serif" font-size="13"><rect width="100%" height="100%" fill="#fff"/>'
        f"{''.join(parts)}</svg>\n"
    )


def _panel(result: dict[str, Any], name: str, title: str, top: int) -> Iterator[str]:
    def x(value: float) -> float:
        return round(_EDGE + value * (_WIDTH - 2 * _EDGE), 1)

    def y(value: float) -> float:
        return round(top + _HEIGHT - _EDGE - value * (_HEIGHT - 2 * _EDGE), 1)

    yield f'<text x="{_EDGE}" y="{top + 20}" font-weight="bold">{title}</text>'
    for share in (0, 0.25, 0.5, 0.75, 1):
        yield f'<path d="M{x(0)} {y(share)}H{x(1)}" stroke="#ddd"/>'
        yield f'<text x="{x(0) - 6}" y="{y(share) + 4}" text-anchor="end">{share:g}</text>'
        yield f'<text x="{x(share)}" y="{y(0) + 18}" text-anchor="middle">{share:g}</text>'
    for number, (label, told) in enumerate(result.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        scores = [point["scores"] for point in told["points"] if name in point["scores"]]
        places = [(x(each["identity"]["mean"]), y(each[name]["mean"])) for each in scores]
        line = " ".join(f"{left},{height}" for left, height in places)
        yield f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>'
        for left, height in places:
            yield f'<circle cx="{left}" cy="{height}" r="3.5" fill="{colour}"/>'
        beside = top + 38 + 15 * number
        yield f'<text x="{x(0) + 8}" y="{beside}" fill="{colour}">{escape(label)}</text>'


def ways_of(methods: Sequence[str], more: Sequence[str]) -> list[Way]:
    """Methods by name, and `NAME=METHOD:SETTING=VALUE,…`."""
    found = [Way(name, name) for name in methods]
    for each in more:
        label, _, rest = each.partition("=")
        method, _, settings = rest.partition(":")
        found.append(Way(label, method, tuple(settings.split(",")) if settings else ()))
    return found


def main() -> None:
    asked = parser(__doc__)
    asked.add_argument("--split", choices=["measured", "tuning"], default="measured")
    asked.add_argument("--methods", nargs="*", default=list(all_methods()))
    asked.add_argument("--more", nargs="*", default=[], metavar="NAME=METHOD:SETTINGS")
    options = asked.parse_args()
    ways = ways_of(options.methods, options.more)
    with opened(options, options.split) as laboratory:
        fronts: dict[str, list[Front]] = {way.label: [] for way in ways}
        for who in laboratory.subjects:
            for way in ways:
                front = front_of(laboratory, who, way, options.out / "fronts" / who.name)
                fronts[way.label].append(front)
        result = compared(fronts)
        place = RESULTS if is_as_published(asked, options) else options.out
        document = {
            "environment": describe_machine(),
            "base_sha256": laboratory.base.sha256,
            "seeds": options.seeds,
            "individuals": [who.name for who in laboratory.subjects],
            "methods": result,
            "differences": paired(fronts),
        }
    (place / "fronts.json").write_text(json.dumps(document, indent=1) + "\n")
    write_chart(result, place / "fronts.svg")


if __name__ == "__main__":
    main()

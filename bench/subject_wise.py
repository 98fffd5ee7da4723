"""SeFi-IDE's λ: what the subject-wise attention loss does to prompts, attention and identity.

    python bench/subject_wise.py --out runs/methods   # the folder of bench/methods.py, or a new one

The individuals of bench/methods.py are taught by SeFi-IDE's `miniature` preset with each λ, all of
one λ in one batch, and drawn for the suite `miniature`. Interrupted, it goes on where it was.
Scores are those of bench/methods.py, and `concept eval`'s focus.

Intervals are from resampling individuals. Writes
bench/results/subject-wise.json, and subject-wise.svg and .png: the scores over λ, and for some
individuals a picture by each λ.
"""

from html import escape
from pathlib import Path
from typing import Any

from conceptry.evaluation.suites import find_suite
from environment import is_as_published
from laboratory import (
    Individual,
    Laboratory,
    Row,
    Way,
    opened,
    parser,
    summary,
    write_results,
)

RESULTS = Path(__file__).parent / "results"
WEIGHTS = (0.0, 1e-4, 1e-3, 3e-3, 1e-2, 5e-2)
SHOWN = (0, 8, 12)
SCORES = {"seen": "#2f6fde", "focus": "#2c8f5b", "recognised": "#d1582b", "both": "#6b6b6b"}
DIFFERENCES = ("seen", "focus", "likeness", "recognised")
_WIDTH, _HEIGHT, _EDGE = 560, 340, 48


def way_of(weight: float) -> Way:
    """SeFi-IDE with a λ."""
    return Way(f"{weight:g}", "sefi", (f"loss.subject_wise={weight:g}",))


def row_of(laboratory: Laboratory, who: Individual, way: Way) -> Row:
    """Scores of one individual by one λ."""
    row = laboratory.row(who, way, SHOWN)
    found = laboratory.evaluate(find_suite("miniature"), [who], way)
    row["scores"]["focus"] = found.scores["focus"].mean
    return row


def write_chart(result: dict[str, Any], path: Path) -> None:
    """Each score over λ, with its interval; λ are spaced evenly."""
    labels = list(result)
    step = (_WIDTH - 2 * _EDGE) / max(1, len(labels) - 1)

    def y(value: float) -> float:
        return round(_HEIGHT - _EDGE - value * (_HEIGHT - 2 * _EDGE), 1)

    parts = [
        f'<path d="M{_EDGE} {y(share)}H{_WIDTH - _EDGE}" stroke="#ddd"/>'
        f'<text x="{_EDGE - 6}" y="{y(share) + 4}" text-anchor="end">{share:g}</text>'
        for share in (0, 0.25, 0.5, 0.75, 1)
    ]
    parts += [
        f'<text x="{_EDGE + i * step:.1f}" y="{_HEIGHT - _EDGE + 20}" text-anchor="middle">'
        f"{escape(label)}</text>"
        for i, label in enumerate(labels)
    ]
    for number, (name, colour) in enumerate(SCORES.items()):
        found = [result[label]["scores"][name] for label in labels]
        xs = [_EDGE + i * step + 3 * (number - 1.5) for i in range(len(labels))]
        line = " ".join(f"{x:.1f},{y(each['mean'])}" for x, each in zip(xs, found, strict=True))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<path d="M{x:.1f} {y(each["low"])}V{y(each["high"])}" stroke="{colour}"/>'
            for x, each in zip(xs, found, strict=True)
        ]
        parts.append(
            f'<text x="{_EDGE + number * 110}" y="{_EDGE - 22}" fill="{colour}">{name}</text>'
        )
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 8}" text-anchor="middle">λ</text>')
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'font-family="sans-serif" font-size="13"><rect width="100%" height="100%" fill="#fff"/>'
        f"{''.join(parts)}</svg>\n"
    )


def main() -> None:
    asked = parser(__doc__)
    asked.add_argument("--weights", type=float, nargs="*", default=list(WEIGHTS))
    options = asked.parse_args()
    with opened(options) as laboratory:
        subjects = laboratory.subjects
        rows: list[Row] = []
        for weight in options.weights:
            way = way_of(weight)
            laboratory.teach(way)
            rows += [row_of(laboratory, who, way) for who in subjects]
            told = summary(rows)[way.label]["scores"]
            print(way.label, {name: told[name]["mean"] for name in SCORES}, flush=True)
        without, *weighed = (way_of(weight).label for weight in options.weights)
        home = RESULTS if is_as_published(asked, options) else options.out
        document = write_results(
            laboratory,
            rows,
            home / "subject-wise.json",
            key="by_weight",
            compared=[(each, without) for each in weighed],
            headlines=DIFFERENCES,
            shown=[[who] for who in subjects[:4]],
            about={"settings": way_of(0.0).settings("miniature").to_mapping()},
        )
        write_chart(document["by_weight"], home / "subject-wise.svg")


if __name__ == "__main__":
    main()

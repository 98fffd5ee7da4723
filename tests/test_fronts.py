"""Where a front reaches a level, as bench/fronts.py has it."""

import json
import re
import sys
from pathlib import Path

import pytest
from program import ROOT

sys.path.insert(0, str(ROOT / "bench"))
try:
    from fronts import Point, compared, crossing, paired, ways_of, write_chart
finally:
    sys.path.remove(str(ROOT / "bench"))

FRONT = [
    Point(10, 5.0, {"identity": 0.2, "seen": 1.0, "drift": 0.0}),
    Point(20, 10.0, {"identity": 0.6, "seen": 0.8, "drift": 0.2}),
    Point(40, 20.0, {"identity": 0.5, "seen": 0.7, "drift": 0.6}),
]


@pytest.mark.parametrize(
    ("axis", "level", "name", "expected"),
    [
        ("identity", 0.4, "seen", 0.9),
        ("identity", 0.4, "seconds", 7.5),
        ("identity", 0.6, "drift", 0.2),
        ("identity", 0.1, "seen", None),
        ("identity", 0.2, "seen", 1.0),
        ("identity", 0.7, "seen", None),
        ("seconds", 15, "drift", 0.2),
        ("seconds", 21, "drift", 0.6),
        ("seconds", 4, "drift", None),
    ],
)
def test_values_are_on_the_line_where_a_level_is_first_reached(
    axis: str, level: float, name: str, expected: float | None
) -> None:
    found = crossing(FRONT, axis, level, name)
    assert found == (None if expected is None else pytest.approx(expected))


def test_individuals_that_never_keep_as_much_are_counted(tmp_path: Path) -> None:
    weak = [Point(each.step, each.seconds, each.scores | {"identity": 0.1}) for each in FRONT]
    result = compared({"one": [FRONT, weak], "other <": [weak, weak]})
    at_half = result["one"]["at equal identity"]["0.5"]
    assert at_half["individuals"] == 1
    assert at_half["scores"]["seen"]["mean"] == pytest.approx(0.85)
    assert result["other <"]["at equal identity"]["0.5"] == {"individuals": 0, "scores": {}}
    assert result["one"]["points"][0]["scores"]["identity"]["mean"] == pytest.approx(0.15)
    json.dumps(result, allow_nan=False)
    write_chart(result, tmp_path / "fronts.svg")
    text = (tmp_path / "fronts.svg").read_text(encoding="utf-8")
    assert len(re.findall("<circle", text)) == 12
    assert "other &lt;" in text


def test_methods_are_compared_on_individuals_of_whom_both_have_it() -> None:
    weak = [Point(each.step, each.seconds, each.scores | {"identity": 0.1}) for each in FRONT]
    better = [Point(each.step, each.seconds, each.scores | {"seen": 1.0}) for each in FRONT]
    told = paired({"one": [FRONT, FRONT], "other": [better, weak]})
    (at_half,) = [each for each in told if each["at"] == {"identity": 0.5}]
    assert at_half["scores"]["seen"]["individuals"] == 1
    assert at_half["scores"]["seen"]["mean"] == pytest.approx(-0.15)
    (late,) = [each for each in told if each["at"] == {"seconds": 30}]
    assert late["scores"]["seen"]["individuals"] == 2
    (early,) = [each for each in told if each["at"] == {"identity": 0.8}]
    assert early["scores"] == {}


def test_ways_by_name_and_with_settings() -> None:
    plain, other = ways_of(["sefi"], ["prior=attndreambooth:prior.weight=1,rank=2"])
    assert (plain.label, plain.method, plain.overrides) == ("sefi", "sefi", ())
    assert other.label == "prior"
    assert other.overrides == ("prior.weight=1", "rank=2")

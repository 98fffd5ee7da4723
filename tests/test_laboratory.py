"""What benches teach from, measure with, and publish."""

import argparse
import json
import sys
from pathlib import Path

import pytest
from conceptry.models.loading import load_base
from PIL import Image
from program import ROOT

sys.path.insert(0, str(ROOT / "bench"))
try:
    from environment import is_as_published, keep_part, results_file
    from laboratory import differences, embed, individuals, interval, parser
finally:
    sys.path.remove(str(ROOT / "bench"))


@pytest.mark.long
def test_photos_are_as_large_as_pictures_and_known_at_any_size() -> None:
    (who,) = individuals("tuning", 1)
    side = load_base().backbone.size
    assert {photo.size for photo in who.photos} == {(side, side)}
    enlarged = [each.resize((512, 512), Image.Resampling.BICUBIC) for each in who.photos]
    for photos in (who.photos, enlarged):
        vectors = embed(photos)
        assert who.whole.recognises(vectors).float().mean() >= 0.8
        assert (vectors @ who.whole.references.T).mean() > 0.7


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], True),
        (["--methods", "a", "b"], True),
        (["--photos", "1"], True),
        (["--methods", "a"], False),
        (["--seeds", "1"], False),
        (["--concepts", "2"], False),
    ],
    ids=str,
)
def test_only_what_is_measured_as_it_is_by_itself_is_published(
    words: list[str], expected: bool
) -> None:
    asked = parser("")
    asked.add_argument("--methods", nargs="*", default=("a", "b"))
    asked.add_argument("--photos", type=int, default=5)
    options = asked.parse_args(["--out", "anywhere", *words])
    assert is_as_published(asked, options, but=("photos",)) is expected


def test_other_results_need_a_file_of_their_own(tmp_path: Path) -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("--out", type=Path)
    asked.add_argument("--prompts", type=int, default=100)
    published, own = tmp_path / "control.json", tmp_path / "own.json"
    assert results_file(asked, asked.parse_args([]), published) == published
    some = ["--prompts", "5"]
    assert results_file(asked, asked.parse_args([*some, "--out", str(own)]), published) == own
    with pytest.raises(SystemExit, match=r"--out FILE: control\.json"):
        results_file(asked, asked.parse_args(some), published)


def test_each_part_says_on_what_it_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "masks.json"
    keep_part(path, "found", {"iou": 0.6}, {"base_sha256": "old"})
    keep_part(path, "hat", {"unasked": 0.1}, {"base_sha256": "new"})
    assert json.loads(path.read_text()) == {
        "found": {"iou": 0.6},
        "hat": {"unasked": 0.1},
        "measured": {"found": {"base_sha256": "old"}, "hat": {"base_sha256": "new"}},
    }


def test_differences_are_of_scores_that_both_have() -> None:
    rows = [
        {"individual": who, "method": way, "scores": scores}
        for who in ("cat", "dog")
        for way, scores in (("boxes", {"seen": 0.9}), ("at once", {"seen": 0.8, "leak": 0.3}))
    ]
    (found,) = differences(rows, [("boxes", "at once")], ("seen", "leak"))
    assert found["scores"] == {"seen": {"mean": 0.1, "low": 0.1, "high": 0.1}}


def test_intervals_know_of_neighbours_that_share_something() -> None:
    """Of values that come in equal pairs, half as many are independent."""
    alike = [each for each in (0.1, 0.9, 0.4, 0.7, 0.2, 0.6) for _ in range(2)]
    apart, together = (interval(alike, block=block) for block in (1, 2))
    assert apart["mean"] == together["mean"]
    widths = [each["high"] - each["low"] for each in (apart, together)]
    assert 1.1 < widths[1] / widths[0] < 1.5

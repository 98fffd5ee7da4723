"""The report is one page that needs nothing else."""

import copy
import csv
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conceptry.evaluation.charts import curves, scatter
from conceptry.evaluation.encoders import Encoders
from conceptry.evaluation.evaluating import evaluate
from conceptry.evaluation.picture_cache import PictureCache
from conceptry.evaluation.record import Evaluation, Interval, distinct_labels
from conceptry.evaluation.report import _best, _rows, _scatters, _Shown, write_report
from conceptry.models.loading import LoadedBase
from conceptry.registry import Registry
from conceptry.registry.errors import StorageError
from copies import copied
from long import quick_for
from PIL import Image
from program import DEADLINE
from to_score import TOGETHER, plan_of

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
NEW_BROWSER = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]


@pytest.fixture(scope="module")
def scored(
    bundle: Path,
    base: LoadedBase,
    encoders: Encoders,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, list[Evaluation]]:
    """A registry in which both versions of rex have been scored."""
    folder = tmp_path_factory.mktemp("scored")
    with Registry.open(folder / "registry/concepts.db", create=True) as registry:
        registry.import_bundle(bundle)
        plans = [plan_of(registry, base, name) for name in ("<rex@1>", "<rex@2>")]
        return folder, [evaluate(registry, base, encoders, plan) for plan in plans]


@pytest.fixture
def taught(scored: tuple[Path, list[Evaluation]], tmp_path: Path) -> Iterator[Registry]:
    with copied(scored[0], tmp_path) as registry:
        yield registry


@pytest.fixture
def found(scored: tuple[Path, list[Evaluation]]) -> list[Evaluation]:
    return copy.deepcopy(scored[1])


class _Page(HTMLParser):
    """Counts what is on a page, and what it asks the network for."""

    VOID = frozenset(("meta", "img", "br", "link", "input"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in self.VOID and tag != "path":
            self.open.append(tag)
        self.sources += [given["src"] or ""] if "src" in given else []
        self.ids += [given["id"] or ""] if "id" in given else []
        self.links += [given["href"] or ""] if "href" in given else []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_it_holds_every_picture_and_asks_no_network(
    taught: Registry, found: list[Evaluation], tmp_path: Path
) -> None:
    path = write_report(taught, found, tmp_path / "report")
    text = path.read_text(encoding="utf-8")
    page = _Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert all(source.startswith("data:image/") for source in page.sources)
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert "<script" not in text
    assert "http" not in text.replace("http-equiv", "")
    rows = [row for each in found for row in (*each.prompts, *each.drift)]
    pictures = [one for row in rows for one in row.pictures]
    num_photos, num_worst = len(taught.show("rex").images), 12
    assert len(page.sources) == 2 * len(pictures) + num_worst + num_photos
    for each in found:
        assert f"{each.scores['seen'].mean:.3f}" in text


def test_pictures_of_the_plain_category_are_not_among_the_worst(
    taught: Registry, found: list[Evaluation], tmp_path: Path
) -> None:
    each = next(one for one in found if one.drift)
    first = replace(each.prompts[0], pictures=each.prompts[0].pictures[:1])
    text = write_report(taught, [replace(each, prompts=[first])], tmp_path / "report").read_text()
    sources = _Page(text).sources
    num_drift = sum(len(row.pictures) for row in each.drift)
    num_worst, num_photos = 1, len(taught.show("rex").images)
    assert len(sources) == 2 * (1 + num_drift) + num_worst + num_photos


def test_it_shows_the_photos_of_both_concepts(
    taught: Registry, base: LoadedBase, encoders: Encoders, tmp_path: Path
) -> None:
    found = evaluate(taught, base, encoders, plan_of(taught, base, "<rex> <mia>", TOGETHER))
    text = write_report(taught, [found], tmp_path / "report").read_text(encoding="utf-8")
    assert "Photos of rex" in text
    assert "Photos of mia" in text


def test_one_version_drawn_in_two_ways_has_two_columns(
    taught: Registry, found: list[Evaluation], tmp_path: Path
) -> None:
    one = found[0]
    made_by: Any = copy.deepcopy(one.made_by)
    made_by["settings"]["guidance"] = 1.5
    other = replace(one, made_by=made_by)
    assert distinct_labels([one, one]) == [one.label, f"{one.label} (2)"]
    labels = distinct_labels([one, other])
    assert labels[1] == f"{one.label}, guidance 1.5"
    text = write_report(taught, [one, other], tmp_path / "report").read_text(encoding="utf-8")
    assert all(text.count(f"<b>{label}</b>") >= len(one.all_prompts) for label in labels)


def test_the_numbers_are_beside_it(
    taught: Registry, found: list[Evaluation], tmp_path: Path
) -> None:
    folder = write_report(taught, found, tmp_path / "report").parent
    documents = json.loads((folder / "scores.json").read_text())
    assert [Evaluation.from_document(each) for each in documents] == found
    with (folder / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    mine = [row for row in rows if row["version"] == "rex@1" and row["score"] == "seen"]
    assert len(mine) == 10
    assert {path.name for path in folder.iterdir()} == {
        "report.html",
        "scores.csv",
        "scores.json",
    }


def test_pictures_that_are_gone_leave_a_gap(
    taught: Registry, found: list[Evaluation], tmp_path: Path
) -> None:
    shutil.rmtree(taught.location.cache / "evaluations")
    text = write_report(taught, found, tmp_path / "report").read_text(encoding="utf-8")
    assert "no longer there" in text


def test_a_folder_that_cannot_be_written_is_told(
    taught: Registry, found: list[Evaluation], tmp_path: Path
) -> None:
    (tmp_path / "report").write_text("a file")
    with pytest.raises(StorageError, match="cannot write into"):
        write_report(taught, found, tmp_path / "report")


def test_names_are_escaped_and_numbers_are_in_the_frame(found: list[Evaluation]) -> None:
    drawing = scatter(found)
    for name in ("cx", "cy"):
        for value in re.findall(rf'{name}="([\d.]+)"', drawing):
            assert 0 < float(value) < 520
    assert "rex@1" in drawing
    assert scatter([]) == ""
    drawing = curves([("<a>", step, "x&y", 1 / step) for step in range(1, 500)])
    assert "&lt;a&gt;" in drawing
    assert "x&amp;y" in drawing
    assert drawing.count("L") < 130


WITHOUT_BOUNDS = [math.inf, -math.inf, 1e308, -1e308, sys.float_info.max]


@pytest.mark.parametrize("value", WITHOUT_BOUNDS)
@pytest.mark.parametrize("step", [1, -(2**63), 2**63 - 1])
def test_losses_without_bounds_are_left_out_of_charts(value: float, step: int) -> None:
    plain = [("one", i, "loss", 1 / i) for i in range(1, 500)]
    huge = [("one", step, "loss", value), ("one", 3, "other", value)]
    assert curves([*plain, *huge]) == curves(plain)
    assert "inf" not in curves(huge) + curves([("one", step, "loss", 0.5), *huge])


def test_scores_without_bounds_are_left_out_of_charts(found: list[Evaluation]) -> None:
    first, *others = found
    for value in WITHOUT_BOUNDS:
        odd = Interval(value, value, value)
        ruined = replace(first, scores=dict.fromkeys(first.scores, odd))
        assert scatter([ruined, *others]) == scatter(others)
        assert scatter([ruined]) == ""


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium: apt install chromium")
@pytest.mark.parametrize("size", quick_for(1, ["390,1600", "1200,1600"]))
def test_a_browser_shows_it(
    taught: Registry, found: list[Evaluation], tmp_path: Path, size: str
) -> None:
    """Pictures are drawn, and a phone does not have to scroll sideways."""
    path = write_report(taught, found, tmp_path / "report")
    probe = path.with_name("probe.html")
    width, _ = size.split(",")
    measure = (
        "<script>onload = () => document.title = document.documentElement.scrollWidth + ' ' + "
        "[...document.images].filter(i => i.complete && i.naturalWidth).length</script></body>"
    )
    text = path.read_text(encoding="utf-8").replace('loading="lazy"', "")
    probe.write_text(text.replace("</body>", measure), encoding="utf-8")
    shot = tmp_path / "shot.png"
    shown = subprocess.run(
        [
            str(BROWSER),
            *NEW_BROWSER,
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={size}",
            f"--screenshot={shot}",
            "--virtual-time-budget=2000",
            "--dump-dom",
            probe.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=True,
    )
    title = re.search(r"<title>(\d+) (\d+)</title>", shown.stdout)
    assert title, shown.stderr[-2000:]
    pictures = len(re.findall('<img[^>]* src="data', text))
    assert int(title[2]) == pictures
    assert int(title[1]) <= max(int(width), 500), "headless windows are 500 wide at least"
    with Image.open(shot) as image:
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 100


BOXES = {"rex": (0.0, 0.0, 0.5, 1.0), "mia": (0.5, 0.0, 1.0, 1.0)}


@pytest.mark.parametrize("layout", quick_for(1, [BOXES, None]), ids=["in-boxes", "by-attention"])
def test_regions_are_drawn_over_pictures_of_several(
    taught: Registry,
    base: LoadedBase,
    encoders: Encoders,
    tmp_path: Path,
    layout: dict[str, tuple[float, ...]] | None,
) -> None:
    plan = plan_of(taught, base, "<rex> <mia>", TOGETHER)
    plan = replace(plan, settings=replace(plan.settings, layout=layout))
    found = evaluate(taught, base, encoders, plan)
    text = write_report(taught, [found], tmp_path / "report").read_text(encoding="utf-8")
    assert _Page(text).open == []
    drawn = re.findall(r'<svg class="regions".*?</svg>', text)
    assert len(drawn) == 2 * 5, "each picture, and the worst once more"
    assert all('<path d="M' in each for each in drawn)
    told = found.prompts[0].pictures
    assert {one.scores["recognised_subject"] for one in told} <= {0.0, 1.0}
    assert "recognised_subjects" in found.scores
    assert text.count(": recognised") + text.count(": not recognised") == 2 * 2 * len(told)
    kept = [PictureCache.of(taught).get(one.picture, num_subjects=2) for one in told]
    assert [each is not None and each.regions is not None for each in kept] == [bool(layout)] * 5


def test_a_single_concept_has_no_outlines(
    taught: Registry, found: list[Evaluation], tmp_path: Path
) -> None:
    text = write_report(taught, found, tmp_path / "report").read_text(encoding="utf-8")
    assert 'class="regions"' not in text
    assert "Who is where" not in text


def test_only_what_can_be_compared_is_called_the_best(found: list[Evaluation]) -> None:
    one, two = found
    two = replace(two, scores=two.scores | {"both": one.scores["both"]})
    low = replace(one.scores["both"], mean=-1.0)
    assert _best([one, replace(one, scores=one.scores | {"both": low})]) == [True, False]
    elsewhere = replace(two, made_by=two.made_by | {"base_sha256": "0" * 64})
    assert _best([one, elsewhere]) == [False, False]
    assert _best([one, replace(two, concept="mia")]) == [False, False]
    others = replace(two, made_by=two.made_by | {"chosen_by": ["seen", "identity"]})
    assert len(_scatters([one, others])) <= 2
    assert len(_scatters([one, two])) == 1


def test_pictures_of_other_words_are_in_rows_of_their_own(found: list[Evaluation]) -> None:
    one, two = found
    worded = [replace(each, prompt=f"{each.prompt} and a car") for each in two.prompts]
    shown = [[_nothing(each) for each in _pictures(every)] for every in (one, two)]
    same = _rows([one, two], ["1", "2"], shown)
    apart = _rows([one, replace(two, prompts=worded)], ["1", "2"], shown)
    assert len(apart) == len(same) + len(worded)


def _pictures(found: Evaluation) -> list[Any]:
    return [picture for prompt in found.all_prompts for picture in prompt.pictures]


def _nothing(picture: Any) -> Any:
    return _Shown("", "", "", picture.seed, "", "", [], 0.0, is_copy=False, size=(1, 1), regions=[])

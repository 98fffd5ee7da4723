"""`concept eval` and `concept suites`."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conceptry.models.loading import load_base
from conceptry.registry import Registry
from program import Ask, Run, error_of, run_concept
from tiny_base import write_tiny_base
from to_score import write_bundle

QUICK = ("--steps", "1", "--clip", "miniature", "--dino", "none")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("taught")
    return write_bundle(folder, load_base(str(write_tiny_base(folder / "tiny"))))


@pytest.fixture
def taught(bundle: Path, database: Path) -> Iterator[Registry]:
    """rex has two versions, and there is a suite of two prompts."""
    Path("mine.txt").write_text("a photo of a {} on the beach\na photo of a {} in the snow\n")
    shutil.copytree(bundle.parent / "concepts.blobs", database.parent / "concepts.blobs")
    shutil.copy(bundle.parent / "concepts.db", database)
    with Registry.open(database, timeout=600) as opened:
        yield opened


def test_people_get_a_table(taught: Registry, run: Run) -> None:
    done = run("eval", "rex", "--suite", "mine.txt", "--versions", "all", "--mark-best", *QUICK)
    assert done.exit_code == 0, done.output
    assert "rex@1" in done.stdout
    assert "clip-t" in done.stdout
    assert "both: harmonic mean of clip_t and clip_i" in done.stdout
    assert "best of rex is version" in done.stderr
    (best,) = [v for v in taught.show("rex").versions if v.aliases]
    assert best.aliases == ["best"]


@pytest.mark.long
def test_the_second_time_no_weights_are_loaded(taught: Registry, ask: Ask) -> None:
    words = ("eval", "rex", "--suite", "mine.txt", *QUICK)
    first = ask(*words)
    prelude = "import sys; sys.modules['torch'] = None"
    database = str(taught.location.database)
    done = run_concept(*words, "--json", "--registry", database, prelude=prelude)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == first


def test_a_report_is_written(taught: Registry, ask: Ask) -> None:
    document = ask("eval", "rex", "--suite", "mine.txt", "--report", "told", *QUICK)
    assert document["report"] == "told/report.html"
    assert "on the beach" in Path("told/report.html").read_text(encoding="utf-8")


def test_a_picture_like_a_photo_is_told(
    taught: Registry, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conceptry.evaluation import record

    monkeypatch.setattr(record, "REPLAY_ABOVE", -1.0)
    done = run("eval", "rex", "--suite", "mine.txt", "--seeds", "1", *QUICK)
    assert "rex@2: 2 pictures close to a photo" in done.stdout


@pytest.mark.parametrize(
    ("words", "exit_code", "message"),
    [
        (["eval"], 2, "Missing argument"),
        (["eval", "nobody"], 3, "no concept is named"),
        (["eval", "rex", "--versions", "7"], 3, "has no version 7"),
        (["eval", "rex", "--suite", "odd"], 3, 'there is no suite "odd"'),
        (["eval", "rex", "--suite", "empty.yaml"], 2, "holds no prompts"),
        (["eval", "rex", "--suite", "slotless.txt"], 2, "prompt 2 has no slot"),
        (["eval", "rex", "--suite", "multi-subject"], 2, "2 concepts in a picture"),
        (["eval", "rex", "--mark-best"], 2, "--mark-best compares versions"),
        (["eval", "rex@2"], 2, "versions are chosen for all names at once"),
        (["eval", "rex", "--clip", "no/body", "--offline"], 3, "no/body is not on this machine"),
        (["eval", "rex", "--base", "nobody"], 3, "there is no base model"),
        (["eval", "rex", "--base", ""], 3, 'there is no base model ""'),
        (["eval", "rex", "--clip", ""], 2, "--clip names no encoder"),
        (["eval", "rex", "--dino", " "], 2, "--dino names no encoder"),
        (["eval", "rex", "--separate"], 2, "--separate is for several"),
        (["eval", "rex", "--layout", "rex=0,0,1,1"], 2, "--layout is for several"),
        (["suites", "odd"], 3, 'there is no suite "odd"'),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_words_get_a_line_and_leave_nothing(
    taught: Registry, run: Run, words: list[Any], exit_code: int, message: str
) -> None:
    Path("empty.yaml").write_text("about: nothing\n")
    Path("slotless.txt").write_text("a {}\na dog\n")
    done = run("--json", *words)
    assert done.exit_code == exit_code
    assert message in error_of(done)["message"]
    assert taught.evaluations("rex") == []


def test_a_version_in_a_name_is_told_how_to_be_chosen(taught: Registry, run: Run) -> None:
    for words, typed in (
        (["rex@2"], "rex --versions 2"),
        (["rex@"], "rex --versions all"),
        (["rex@;ls"], "rex --versions ';ls'"),
        (["rex@1", "mia", "rex@best"], "rex mia --versions 1,best"),
    ):
        done = run("--json", "eval", *words)
        assert error_of(done)["hint"] == f"concept eval {typed}"


def test_what_does_not_go_together_is_told_before_weights_are_loaded(
    taught: Registry, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = "conceptry.evaluation.running._loaded"
    monkeypatch.setattr(load, lambda *_: pytest.fail("weights were loaded"))
    done = run("eval", "rex", "--separate", "--clip", "openai/clip-vit-base-patch32")
    assert done.exit_code == 2, done.output


def test_an_untrained_concept_says_so(rex: Registry, run: Run) -> None:
    error = error_of(run("--json", "eval", "rex"))
    assert (error["code"], error["message"]) == ("not_found", "rex has not been trained")
    assert error["hint"] == "concept train rex"


def test_suites_are_listed_and_shown(run: Run, ask: Ask) -> None:
    names = [suite["name"] for suite in ask("suites")["suites"]]
    assert {"objects", "living", "styles", "multi-subject", "hard"} <= set(names)
    assert {"miniature", "miniature-pairs", "miniature-triples"} <= set(names)
    assert "a yellow raincoat" in run("suites", "living").stdout

"""`concept list` and `concept show`."""

from pathlib import Path

import pytest
from conceptry.registry import Registry
from drawing import draw_file
from program import Ask, Run


@pytest.fixture
def three(rex: Registry, tmp_path: Path) -> Registry:
    """A registry with rex (3 photos), the cat mia (1) and the teddy bear bo (2)."""
    shelf = [draw_file(tmp_path / f"shelf{i}.png", 30 + i) for i in range(2)]
    rex.add("mia", shelf[:1], category="cat", tags=["pets", "old"], caption="on the Beach")
    rex.add("bo", shelf, category="teddy bear", notes="100 % plush")
    return rex


def names(document: dict[str, list[dict[str, str]]]) -> list[str]:
    return [concept["name"] for concept in document["concepts"]]


def test_a_table_with_a_row_for_each_concept(three: Registry, run: Run) -> None:
    result = run("list")
    heading, _, *rows = result.stdout.splitlines()
    assert heading.split() == [
        *("name", "category", "photos", "versions", "size", "tags", "updated", "(UTC)")
    ]
    assert [row.split()[0] for row in rows] == ["bo", "mia", "rex"]
    assert "teddy bear" in rows[0]
    assert "old pets" in rows[1]
    assert result.stderr == "3 concepts\n"


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (["beach"], ["mia"]),
        (["BEACH", "cat"], ["mia"]),
        (["beach", "dog"], []),
        (["100 %"], ["bo"]),
        (["%"], ["bo"]),
        (["--tag", "pets"], ["mia", "rex"]),
        (["--tag", "pets", "--tag", "old"], ["mia"]),
        (["--category", "teddy bear"], ["bo"]),
        (["--sort", "images"], ["mia", "bo", "rex"]),
        (["--sort", "images", "--reverse"], ["rex", "bo", "mia"]),
        (["--sort", "created"], ["rex", "mia", "bo"]),
        (["--limit", "2"], ["bo", "mia"]),
        (["--limit", "2", "--page", "2"], ["rex"]),
        (["--limit", "0"], ["bo", "mia", "rex"]),
    ],
    ids=" ".join,
)
def test_filters_sorting_and_pages(
    three: Registry, ask: Ask, filters: list[str], found: list[str]
) -> None:
    assert names(ask("list", *filters)) == found


def test_pages_are_counted(three: Registry, run: Run, ask: Ask) -> None:
    page = ask("list", "--limit", "2", "--page", "2")
    assert (page["total"], page["page"], page["pages"]) == (3, 2, 2)
    assert run("list", "--limit", "2").stderr == "3 concepts, page 1 of 2\n"


def test_a_page_after_the_last_says_so(three: Registry, run: Run, ask: Ask) -> None:
    assert ask("list", "--page", "9")["concepts"] == []
    assert run("list", "--page", "9").stderr == "3 concepts, page 9 of 1\n"


def test_numbers_of_a_summary(three: Registry, ask: Ask) -> None:
    [rex] = ask("list", "--category", "dog")["concepts"]
    shown = ask("show", "rex")
    assert (rex["images"], rex["versions"], rex["bytes"]) == (3, 0, shown["bytes"])
    assert rex["bytes"] == sum(image["bytes"] for image in shown["images"])


def test_show_has_photos_versions_and_trainings(trained: Registry, run: Run) -> None:
    text = run("show", "rex").stdout
    assert text.startswith("rex, a dog: 3 photos, 1 version, ")
    assert "tags: pets" in text
    for word in ("00.png", "512x512", "best", "textual-inversion", "done", "miniature"):
        assert word in text


def test_show_in_json_is_what_python_sees(trained: Registry, ask: Ask) -> None:
    shown, rex = ask("show", "rex"), trained.show("rex")
    assert shown["images"][0]["sha256"] == rex.images[0].sha256
    assert shown["versions"][0]["aliases"] == ["best"]
    assert shown["versions"][0]["run"] == shown["runs"][0]["run"] == rex.runs[0].run
    assert shown["runs"][0]["config"] == {"steps": 10}


def test_show_keeps_long_captions_whole_in_a_pipe(rex: Registry, run: Run) -> None:
    caption = " ".join(f"word{i}" for i in range(100))
    rex.edit("rex", captions={"00.png": caption})
    text = run("show", "rex").stdout
    assert all(word in text for word in caption.split())


def test_show_suggests_names_that_are_near(three: Registry, run: Run) -> None:
    result = run("show", "rx")
    assert result.exit_code == 3
    assert result.stderr == 'error: no concept is named "rx" -> did you mean rex?\n'

"""Finding, showing and remembering concepts."""

import contextlib
import dataclasses
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from conceptry.registry import ConceptNotFound, InvalidInput, Registry
from conceptry.registry.queries import SORTS
from copies import copied
from drawing import draw_file, draw_folder
from fake_training import train, weights_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from snapshot import connected

SMALL = (64, 64)


PETS: Mapping[str, Mapping[str, Any]] = {
    "rex": {
        "category": "dog",
        "tags": ["pets", "old"],
        "notes": "bites the Postman",
        "caption": "Am Strand",
    },
    "mia": {"category": "cat", "tags": ["pets"], "notes": "100% cat, snake_case, back\\slash"},
    "bello": {"category": "dog", "tags": ["old"], "notes": "Großer Hund ÉTÉ"},
    "bear": {"category": "teddy bear", "tags": ["toys"], "notes": "the 1000 faces of bear"},
}


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return draw_file(tmp_path / "photo.png", size=SMALL)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a registry that has four concepts to look for."""
    folder = tmp_path_factory.mktemp("made")
    photo = draw_file(folder / "photo.png", size=SMALL)
    with Registry.open(folder / "registry/concepts.db", create=True) as registry:
        for name, facts in PETS.items():
            registry.add(name, [photo], **facts)
    return folder


@pytest.fixture
def pets(made: Path, tmp_path: Path) -> Iterator[Registry]:
    """The registry of a copy of it."""
    with copied(made, tmp_path) as registry:
        yield registry


def names(registry: Registry, **how: Any) -> list[str]:
    return [concept.name for concept in registry.find(**how).concepts]


# --- text ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["bear", "bello", "mia", "rex"]),
        ("  \t ", ["bear", "bello", "mia", "rex"]),
        ("rex", ["rex"]),
        ("ell", ["bello"]),
        ("teddy", ["bear"]),
        ("toys", ["bear"]),
        ("bites", ["rex"]),
        ("strand", ["rex"]),
        ("POSTMAN", ["rex"]),
        ("nothing like it", []),
    ],
    ids=["all", "blank", "name", "part", "category", "tag", "notes", "caption", "case", "none"],
)
def test_text_is_found_anywhere(pets: Registry, text: str, expected: list[str]) -> None:
    assert names(pets, text=text) == expected


@pytest.mark.parametrize("text", ["dog old", "old dog", " OLD   d", "strand postman"])
def test_every_word_must_be_there_in_any_order(pets: Registry, text: str) -> None:
    assert "rex" in names(pets, text=text)
    assert "mia" not in names(pets, text=text)


def test_words_may_be_in_different_places(pets: Registry) -> None:
    assert names(pets, text="pets strand bites rex") == ["rex"]
    assert names(pets, text="pets strand bites mia") == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("100%", ["mia"]),
        ("%", ["mia"]),
        ("1%0", []),
        ("snake_case", ["mia"]),
        ("_", ["mia"]),
        ("snake-case", []),
        ("n_ke", []),
        ("back\\slash", ["mia"]),
        ("\\", ["mia"]),
        ("\\%", []),
        ("'", []),
        ('"', []),
        ("' OR 1=1 --", []),
        ("*", []),
        (":word0", []),
    ],
)
def test_special_characters_stand_for_themselves(
    pets: Registry, text: str, expected: list[str]
) -> None:
    assert names(pets, text=text) == expected


@pytest.mark.parametrize(
    "text", ["großer", "GROSSER", "GROẞER", "été", "ÉTÉ", "e\u0301te\u0301", "ｇｒｏ"]
)
def test_letters_are_compared_without_case_and_form(pets: Registry, text: str) -> None:
    assert names(pets, text=text) == ["bello"]


@pytest.mark.parametrize(
    "text",
    ["a " * 2000, "a" * 60_000, "\udcff", "re\0x"],
    ids=["2,000 words", "60,000 letters", "surrogate", "nul"],
)
def test_a_text_that_nobody_would_write_finds_nothing_or_is_refused(
    pets: Registry, text: str
) -> None:
    with contextlib.suppress(InvalidInput):
        assert pets.find(text=text).concepts == []


# Letters whose case or form is treacherous, and all that LIKE and SQL could take for syntax.
TRICKY = "aAbß%_\\'\"*?[]- \nİıſKKée\N{COMBINING ACUTE ACCENT}ﬁ"
NOTES = [
    "a%b", "a_b", "a\\b", "aab", "\\%", "\\\\", "%%", "__", "A'B", 'a"b', "[a]", "a*b?", "aß",
    "ASS", "İab", "ıa", "ſa", "Ka", "ka", "éa", "e\N{COMBINING ACUTE ACCENT}a", "ﬁa", "fia",
    "ba\nab", "a- b",
]  # fmt: skip


@pytest.fixture(scope="module")
def tricky(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("tricky")
    photo = draw_file(folder / "photo.png", size=(16, 16))
    with Registry.open(folder / "concepts.db", create=True) as registry:
        for i, notes in enumerate(NOTES):
            registry.add(f"0{i:03}", [photo], category="0", notes=notes)
        yield registry


def naively_found(text: str) -> list[str]:
    def level(text: str) -> str:
        return unicodedata.normalize("NFKC", text).casefold()

    wanted = level(text).split()
    searched = {f"0{i:03}": level(f"0{i:03}\n0\n{notes}") for i, notes in enumerate(NOTES)}
    return [name for name, content in searched.items() if all(word in content for word in wanted)]


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text(TRICKY, max_size=4) | st.sampled_from(NOTES))
def test_any_text_finds_what_a_plain_comparison_finds(tricky: Registry, text: str) -> None:
    assert names(tricky, text=text) == naively_found(text)


# --- the search text follows the rows -----------------------------------------------------------


def test_a_search_follows_edits(pets: Registry) -> None:
    pets.edit("rex", notes="barks", category="wolf", tag=["wild"], untag=["old"])
    assert (
        names(pets, text="bites")
        == names(pets, text="rex old")
        == names(pets, text="rex dog")
        == []
    )
    assert names(pets, text="barks wolf wild strand") == ["rex"]


def test_a_search_follows_captions(pets: Registry) -> None:
    pets.edit("rex", captions={"photo.png": "In den Bergen"})
    assert names(pets, text="strand") == []
    assert names(pets, text="bergen") == ["rex"]
    pets.edit("rex", captions={"photo.png": ""})
    assert names(pets, text="bergen") == []


def test_a_search_follows_a_removed_photo(pets: Registry) -> None:
    pets.edit("rex", remove_images=["photo.png"])
    assert names(pets, text="strand") == []


def test_a_search_follows_a_new_name(pets: Registry) -> None:
    pets.rename("rex", "max")
    assert names(pets, text="rex") == []
    assert names(pets, text="max strand") == ["max"]


def test_a_search_follows_photos_that_are_added(pets: Registry, tmp_path: Path) -> None:
    pets.add("rex", [draw_file(tmp_path / "b.png", 5, SMALL)], caption="beim Baden", tags=["wet"])
    assert names(pets, text="strand baden wet") == ["rex"]


def test_a_removed_concept_is_not_found(pets: Registry) -> None:
    pets.remove(["rex"])
    assert names(pets, text="bites") == []
    assert "rex" not in names(pets)


def test_check_finds_a_search_text_that_is_out_of_date(pets: Registry) -> None:
    assert pets.check().ok
    with connected(pets.location.database) as connection:
        connection.execute("UPDATE concept SET notes = 'changed by hand' WHERE name = 'rex'")
    report = pets.check()
    assert [(problem.kind, problem.concepts) for problem in report.problems] == [
        ("search", ["rex"])
    ]
    assert pets.check(repair=True).ok
    assert names(pets, text="changed hand") == ["rex"]


# --- tags, category -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"tags": ["pets"]}, ["mia", "rex"]),
        ({"tags": ["pets", "old"]}, ["rex"]),
        ({"tags": ["old", "old"]}, ["bello", "rex"]),
        ({"tags": ["pet"]}, []),
        ({"tags": ["pets", "gone"]}, []),
        ({"category": "dog"}, ["bello", "rex"]),
        ({"category": "teddy bear"}, ["bear"]),
        ({"category": "teddy"}, []),
        ({"category": "dog", "tags": ["pets"], "text": "strand"}, ["rex"]),
        ({"category": "cat", "tags": ["old"]}, []),
    ],
)
def test_tags_and_category_narrow(pets: Registry, how: dict[str, Any], expected: list[str]) -> None:
    assert names(pets, **how) == expected


# --- order and pages ----------------------------------------------------------------------------

FACTS: Mapping[str, tuple[str, str, int]] = {
    # name: created, updated, photos
    "a": ("2026-01-03", "2026-02-01", 2),
    "b": ("2026-01-01", "2026-02-01", 1),
    "c": ("2026-01-02", "2026-02-03", 2),
    "d": ("2026-01-02", "2026-02-02", 3),
    "e": ("2026-01-01", "2026-02-03", 1),
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Five concepts that differ in all that can be sorted by, with ties."""
    folder = tmp_path_factory.mktemp("library")
    photos = sorted(draw_folder(folder / "photos", 3, size=SMALL).iterdir())
    with Registry.open(folder / "concepts.db", create=True) as registry:
        for name in "ecadb":
            registry.add(name, photos[: FACTS[name][2]], category="dog")
        for name in "cce":
            train(registry, name, folder, seed=ord(name))
        with connected(registry.location.database) as connection:
            for name, (created, updated, _) in FACTS.items():
                dates = (created, updated, name)
                connection.execute(
                    "UPDATE concept SET created = ?, updated = ? WHERE name = ?", dates
                )
        yield registry


@pytest.mark.parametrize("descending", [False, True], ids=["up", "down"])
@pytest.mark.parametrize("sort", SORTS)
def test_every_order_works_both_ways_and_ties_go_by_name(
    library: Registry, sort: str, descending: bool
) -> None:
    found = library.find(sort=sort, descending=descending).concepts
    expected = sorted(found, key=lambda concept: concept.name)
    expected.sort(key=lambda concept: getattr(concept, sort), reverse=descending)
    assert [concept.name for concept in found] == [concept.name for concept in expected]


def test_the_orders_differ(library: Registry) -> None:
    assert {sort: "".join(names(library, sort=sort)) for sort in SORTS[:5]} == {
        "name": "abcde",
        "created": "becda",
        "updated": "abdce",
        "images": "beacd",
        "versions": "abdec",
    }


def test_an_unknown_order_is_refused(library: Registry) -> None:
    with pytest.raises(InvalidInput, match="cannot sort by 'weight'") as caught:
        library.find(sort="weight")
    assert caught.value.hint == "sort by name, created, updated, images, versions, bytes, size"


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 50])
def test_pages_hold_everything_once(library: Registry, limit: int) -> None:
    first = library.find(limit=limit, sort="images")
    found = [names(library, limit=limit, sort="images", page=i + 1) for i in range(first.pages)]
    assert [name for page in found for name in page] == list("beacd")
    assert all(len(page) == limit for page in found[:-1])
    assert (first.total, first.page, first.pages) == (5, 1, -(-5 // limit))


def test_a_page_beyond_the_last_is_empty_and_tells_the_total(library: Registry) -> None:
    page = library.find(limit=2, page=9)
    assert (page.concepts, page.total, page.page, page.pages) == ([], 5, 9, 3)


def test_a_page_far_beyond_the_last_is_empty_too(library: Registry) -> None:
    assert library.find(limit=50, page=2**62).concepts == []


def test_a_limit_of_0_is_all(library: Registry) -> None:
    page = library.find(limit=0)
    assert (len(page.concepts), page.total, page.pages) == (5, 5, 1)


def test_the_total_counts_what_fits(pets: Registry) -> None:
    page = pets.find(tags=["pets"], limit=1)
    assert (len(page.concepts), page.total, page.pages) == (1, 2, 2)


def test_an_empty_registry_has_one_empty_page(registry: Registry) -> None:
    page = registry.find()
    assert (page.concepts, page.total, page.page, page.pages) == ([], 0, 1, 1)


@pytest.mark.parametrize("how", [{"page": 0}, {"page": -1}, {"limit": -1}])
def test_pages_count_from_1(library: Registry, how: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="pages count from 1"):
        library.find(**how)


def test_a_summary_agrees_with_the_concept(library: Registry) -> None:
    for summary in library.find().concepts:
        concept = library.show(summary.name)
        expected = dataclasses.asdict(summary)
        expected |= {"images": concept.images, "versions": concept.versions}
        assert {key: getattr(concept, key) for key in expected} == expected
        assert (summary.images, summary.versions) == (len(concept.images), len(concept.versions))


def test_bytes_count_photos_masks_and_weights(pets: Registry, tmp_path: Path) -> None:
    before = pets.show("rex").bytes
    train(pets, "rex", tmp_path)
    concept = pets.show("rex")
    (artifact,) = concept.versions[0].artifacts
    assert concept.bytes == before + artifact.bytes
    assert before == concept.images[0].bytes
    assert artifact.bytes == pets.path_of(artifact.sha256).stat().st_size


def test_what_versions_share_counts_once(pets: Registry, tmp_path: Path) -> None:
    before = pets.show("rex").bytes
    weights = weights_file(tmp_path / "shared.safetensors", 1)
    for name in ("adapter.safetensors", "again.safetensors"):
        pets.add_version("rex", {name: weights})
    assert len(pets.show("rex").versions) == 2
    assert pets.show("rex").bytes == before + weights.stat().st_size
    assert pets.find(text="rex").concepts[0].bytes == pets.show("rex").bytes


def test_what_trainings_keep_counts_on_disk(pets: Registry, tmp_path: Path) -> None:
    train(pets, "bear", tmp_path)
    (run,) = pets.show("bear").runs
    folder = pets.run_folder(run.run)
    (folder / "checkpoint-000100.safetensors").write_bytes(bytes(1 << 20))
    (folder / "previews.png").symlink_to(tmp_path)
    bear = pets.show("bear")
    assert bear.size == bear.bytes + (1 << 20)
    (listed,) = pets.find(text="bear").concepts
    assert listed.size == bear.size
    assert names(pets, sort="size", descending=True)[0] == "bear"
    (pets.location.runs / "not a run").mkdir()
    assert pets.find(sort="size", text="bear").concepts == [listed]


# --- show ---------------------------------------------------------------------------------------


def test_an_unknown_concept_comes_with_near_names(pets: Registry) -> None:
    with pytest.raises(ConceptNotFound, match='no concept is named "belo"') as caught:
        pets.show("belo")
    assert caught.value.hint == "did you mean bello or bear?"


@pytest.mark.parametrize("name", ["xyz", "", "Rex Rex", "%", "\udcff", "\0"])
def test_an_unknown_concept_without_near_names_points_to_the_list(
    pets: Registry, name: str
) -> None:
    with pytest.raises(ConceptNotFound) as caught:
        pets.show(name)
    assert caught.value.hint == "concept list"


def test_names_are_sorted(pets: Registry) -> None:
    assert pets.names() == ["bear", "bello", "mia", "rex"]


def test_tags_are_sorted(registry: Registry, photo: Path) -> None:
    registry.add("rex", [photo], category="dog", tags=["c", "a"])
    registry.edit("rex", tag=["b"])
    assert registry.show("rex").tags == ["a", "b", "c"]
    assert registry.find().concepts[0].tags == ["a", "b", "c"]


def test_photos_are_in_the_order_in_which_they_came(registry: Registry, tmp_path: Path) -> None:
    paths = [
        draw_file(tmp_path / name, i, SMALL) for i, name in enumerate(("z.png", "a.png", "m.png"))
    ]
    registry.add("rex", paths[:2], category="dog")
    registry.add("rex", paths[2:])
    assert [image.filename for image in registry.show("rex").images] == ["z.png", "a.png", "m.png"]


# --- history ------------------------------------------------------------------------------------


def actions(registry: Registry, name: str | None = None, limit: int = 0) -> list[tuple[str, str]]:
    return [(event.concept, event.action) for event in registry.history(name, limit=limit)]


def test_history_tells_what_was_done_oldest_first(pets: Registry) -> None:
    pets.edit("rex", notes="new")
    assert actions(pets, "rex") == [("rex", "create"), ("rex", "add"), ("rex", "edit")]
    assert len(actions(pets)) == 9
    assert [event.at for event in pets.history()] == sorted(event.at for event in pets.history())


def test_history_outlives_a_concept(pets: Registry) -> None:
    (image,) = pets.show("rex").images
    pets.remove(["rex"])
    assert actions(pets, "rex") == [("rex", "create"), ("rex", "add"), ("rex", "remove")]
    assert pets.history("rex")[-1].detail == {"images": [image.sha256]}


def test_history_knows_a_concept_by_all_its_names(pets: Registry) -> None:
    pets.rename("rex", "max")
    pets.edit("max", tag=["new"])
    expected = [("rex", "create"), ("rex", "add"), ("max", "rename"), ("max", "edit")]
    assert actions(pets, "rex") == actions(pets, "max") == expected
    assert pets.history("max")[2].detail == {"was": "rex"}


def test_history_keeps_two_concepts_of_one_name_in_order(pets: Registry, photo: Path) -> None:
    pets.remove(["rex"])
    pets.add("rex", [photo], category="car")
    expected = ["create", "add", "remove", "create", "add"]
    assert [action for _, action in actions(pets, "rex")] == expected
    assert "rex" not in [name for name, _ in actions(pets, "mia")]


@pytest.mark.parametrize(
    ("limit", "expected"), [(1, ["remove"]), (2, ["add", "remove"]), (9, None)]
)
def test_a_limit_keeps_the_last_events(
    pets: Registry, limit: int, expected: Sequence[str] | None
) -> None:
    pets.remove(["rex"])
    found = [action for _, action in actions(pets, "rex", limit)]
    assert found == (expected or ["create", "add", "remove"])


def test_the_history_of_an_unknown_concept_is_an_error(pets: Registry) -> None:
    with pytest.raises(ConceptNotFound) as caught:
        pets.history("belo")
    assert caught.value.hint == "did you mean bello or bear?"

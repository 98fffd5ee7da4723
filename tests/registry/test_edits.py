"""Changing, renaming and removing concepts."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conceptry.registry import AlreadyExists, ConceptNotFound, InvalidInput, NotFound, Registry
from copies import copied
from drawing import draw_file, draw_folder
from fake_training import draw_with, train
from snapshot import files_below, rows_of

SMALL = (64, 64)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a registry that has one concept, mia, a cat with three small photos."""
    folder = tmp_path_factory.mktemp("made")
    photos = draw_folder(folder / "small", 3, size=SMALL)
    with Registry.open(folder / "registry/concepts.db", create=True) as registry:
        registry.add("mia", [photos], category="cat", tags=["pets"], notes="purrs")
    return folder


@pytest.fixture
def mia(made: Path, tmp_path: Path) -> Iterator[Registry]:
    """The registry of a copy of it."""
    with copied(made, tmp_path) as registry:
        yield registry


def captions(registry: Registry) -> list[str | None]:
    return [image.caption for image in registry.show("mia").images]


# --- edit ---------------------------------------------------------------------------------------


def test_an_edit_changes_what_is_given_and_keeps_the_rest(mia: Registry) -> None:
    before = mia.show("mia")
    after = mia.edit("mia", notes=" hisses ")
    assert after == dataclasses.replace(before, notes="hisses", updated=after.updated)
    after = mia.edit("mia", category=" big  cat")
    assert (after.category, after.notes) == ("big cat", "hisses")
    assert after == mia.show("mia")


def test_notes_can_be_emptied(mia: Registry) -> None:
    assert mia.edit("mia", notes="").notes == ""


def test_tags_come_and_go(mia: Registry) -> None:
    assert mia.edit("mia", tag=["old", "pets", "old"]).tags == ["old", "pets"]
    assert mia.edit("mia", untag=["pets", "never-there"]).tags == ["old"]
    assert mia.edit("mia", tag=["a"], untag=["a", "old"]).tags == ["a"]


def test_captions_are_set_by_file_name_hash_or_its_beginning(mia: Registry) -> None:
    first, second, third = mia.show("mia").images
    mia.edit(
        "mia",
        captions={first.filename: "one", second.sha256: "two", third.sha256[:6].upper(): " three "},
    )
    assert captions(mia) == ["one", "two", "three"]


def test_an_empty_caption_is_none(mia: Registry) -> None:
    mia.edit("mia", captions={"00.png": "a cat"})
    mia.edit("mia", captions={"00.png": "  "})
    assert captions(mia) == [None, None, None]


def test_photos_are_removed_and_their_files_kept(mia: Registry) -> None:
    first, second, third = mia.show("mia").images
    after = mia.edit("mia", remove_images=[first.filename, third.sha256[:4]])
    assert after.images == [second]
    assert mia.path_of(first.sha256).exists()
    assert mia.history("mia")[-1].detail == {"removed_images": [first.sha256, third.sha256]}


def test_a_photo_named_twice_is_removed_once(mia: Registry) -> None:
    first = mia.show("mia").images[0]
    mia.edit("mia", remove_images=[first.filename, first.sha256])
    assert mia.history("mia")[-1].detail == {"removed_images": [first.sha256]}


def test_a_removed_photo_can_be_added_again(mia: Registry, tmp_path: Path) -> None:
    mia.edit("mia", remove_images=["00.png"])
    assert len(mia.add("mia", [tmp_path / "small/00.png"]).added) == 1


@pytest.mark.parametrize("image", ["03.png", "abc", "ffff" * 16, "", "00"])
def test_an_unknown_photo_is_named(mia: Registry, image: str) -> None:
    with pytest.raises(NotFound, match=f'"mia" has no photo "{image}"') as caught:
        mia.edit("mia", captions={image: "a cat"})
    assert caught.value.hint == "concept show mia"


def test_three_digits_of_a_hash_are_too_few(mia: Registry) -> None:
    with pytest.raises(NotFound):
        mia.edit("mia", remove_images=[mia.show("mia").images[0].sha256[:3]])


def test_a_name_that_two_photos_bear_is_ambiguous(mia: Registry, tmp_path: Path) -> None:
    mia.add("mia", [draw_file(tmp_path / "other/00.png", 99, SMALL)])
    with pytest.raises(InvalidInput, match=r'"00\.png" fits 2 photos; name one by its hash'):
        mia.edit("mia", remove_images=["00.png"])
    assert len(mia.show("mia").images) == 4


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"category": "a, b"}, InvalidInput),
        ({"tag": ["Bad Tag"]}, InvalidInput),
        ({"captions": {"00.png": "a\0b"}}, InvalidInput),
        ({"captions": {"00.png": "fine", "gone.png": "lost"}}, NotFound),
        ({"remove_images": ["00.png", "gone.png"]}, NotFound),
    ],
    ids=["category", "tag", "caption", "captioned photo", "removed photo"],
)
def test_an_edit_is_all_or_nothing(
    mia: Registry, change: dict[str, Any], error: type[Exception]
) -> None:
    before = rows_of(mia.location.database)
    with pytest.raises(error):
        mia.edit("mia", **{"notes": "changed", "tag": ["new"], **change})
    assert rows_of(mia.location.database) == before


def test_bad_notes_are_refused(mia: Registry) -> None:
    with pytest.raises(InvalidInput, match="the notes is not plain text"):
        mia.edit("mia", notes="a\x1b[0m")


def test_an_edit_is_in_the_history(mia: Registry) -> None:
    (sha256, *_) = (image.sha256 for image in mia.show("mia").images)
    mia.edit("mia", tag=["b"])
    mia.edit("mia", notes="n", category="lion", tag=["a"], untag=["b"], captions={"00.png": "c"})
    event = mia.history("mia")[-1]
    assert event.action == "edit"
    assert event.detail == {
        "category": "lion",
        "notes": "n",
        "tag": ["a"],
        "untag": ["b"],
        "captions": {sha256: "c"},
    }


def test_only_what_an_edit_changed_is_in_the_history(mia: Registry) -> None:
    mia.edit("mia", tag=["old"])
    before = mia.show("mia"), mia.history("mia")
    mia.edit("mia", tag=["old"], untag=["never-there"])
    assert (mia.show("mia"), mia.history("mia")) == before
    mia.edit("mia", tag=["old", "new"], untag=["never-there"])
    assert mia.history("mia")[-1].detail == {"tag": ["new"], "untag": []}


def test_an_unknown_concept_is_not_edited(mia: Registry) -> None:
    with pytest.raises(ConceptNotFound, match="mio") as caught:
        mia.edit("mio", notes="x")
    assert caught.value.hint == "did you mean mia?"


# --- rename -------------------------------------------------------------------------------------


def test_a_new_name_changes_nothing_else(mia: Registry, tmp_path: Path) -> None:
    train(mia, "mia", tmp_path)
    before = mia.show("mia")
    after = mia.rename("mia", "leo")
    assert after == dataclasses.replace(before, name="leo", updated=after.updated)
    assert mia.names() == ["leo"]


def test_a_taken_name_is_refused(mia: Registry, tmp_path: Path) -> None:
    mia.add("leo", [tmp_path / "small"], category="cat")
    before = rows_of(mia.location.database)
    with pytest.raises(AlreadyExists, match='"leo" is taken'):
        mia.rename("mia", "leo")
    assert rows_of(mia.location.database) == before


def test_a_concepts_own_name_does_not_lead_to_its_removal(mia: Registry) -> None:
    with pytest.raises(AlreadyExists) as caught:
        mia.rename("mia", "mia")
    assert "concept rm mia" not in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["Leo", "", "../leo", "a" * 65])
def test_a_bad_name_is_refused(mia: Registry, name: str) -> None:
    with pytest.raises(InvalidInput):
        mia.rename("mia", name)
    assert mia.names() == ["mia"]


def test_an_unknown_concept_is_not_renamed(mia: Registry) -> None:
    with pytest.raises(ConceptNotFound):
        mia.rename("mio", "leo")


# --- remove -------------------------------------------------------------------------------------


def test_removing_leaves_only_history_and_files(mia: Registry, tmp_path: Path) -> None:
    number = train(mia, "mia", tmp_path)
    draw_with(mia, "c" * 64, ("mia", number))
    files = files_below(mia.location.blobs)
    mia.remove(["mia"])
    rows = rows_of(mia.location.database)
    kept = {table for table, found in rows.items() if found}
    assert kept == {"event", "generation", "migration", "sqlite_sequence"}
    assert files_below(mia.location.blobs) == files
    assert mia.check(read_data=True).ok


def test_removing_one_leaves_the_other(mia: Registry, tmp_path: Path) -> None:
    mia.add("leo", [tmp_path / "small"], category="cat", tags=["pets"])
    train(mia, "leo", tmp_path)
    before = mia.show("leo")
    mia.remove(["mia"])
    assert mia.show("leo") == before
    assert mia.check(read_data=True).ok


def test_all_are_removed_or_none(mia: Registry, tmp_path: Path) -> None:
    mia.add("leo", [tmp_path / "small"], category="cat")
    before = rows_of(mia.location.database)
    with pytest.raises(ConceptNotFound, match="mio"):
        mia.remove(["mia", "mio", "leo"])
    assert rows_of(mia.location.database) == before
    mia.remove(["mia", "leo", "mia"])
    assert mia.names() == []


def test_a_removed_version_leaves_history_and_what_others_are_made_of(
    mia: Registry, tmp_path: Path
) -> None:
    first, second = (train(mia, "mia", tmp_path, seed=seed) for seed in (1, 2))
    for picture in (first, second):
        draw_with(mia, str(picture) * 64, ("mia", picture))
    mia.set_alias("mia", second, "best")
    mia.add_evaluation("mia", second, suite="quick", config={}, scores={})
    kept = mia.show("mia")
    removed = kept.versions[1]
    assert mia.remove(["mia@best"]) == ["mia@2"]
    left = mia.show("mia")
    assert (left.versions, left.runs) == (kept.versions[:1], kept.runs[:1])
    assert {each.version for each in mia.evaluations("mia")} == {first}
    assert mia.trace("1" * 64).sources
    assert mia.trace("2" * 64).sources == []
    event = mia.history("mia")[-1]
    assert (event.action, event.detail["number"]) == ("remove version", 2)
    assert event.detail["sha256"] == [each.sha256 for each in removed.artifacts]
    assert mia.check(read_data=True).ok
    assert mia.gc(grace=0).removed == len(removed.artifacts)


def test_a_number_is_not_given_again(mia: Registry, tmp_path: Path) -> None:
    for seed in (1, 2):
        train(mia, "mia", tmp_path, seed=seed)
    mia.remove(["mia@2", "mia@1"])
    assert mia.show("mia").versions == []
    assert train(mia, "mia", tmp_path, seed=3) == 3


def test_a_training_of_two_versions_stays_with_one(mia: Registry, tmp_path: Path) -> None:
    number = train(mia, "mia", tmp_path)
    made = mia.show("mia").versions[0]
    files = {each.name: mia.path_of(each.sha256) for each in made.artifacts}
    mia.add_version("mia", files, run=made.run, origin={"compressed_from": number})
    mia.remove([f"mia@{number}"])
    (left,) = mia.show("mia").versions
    assert [left.run] == [run.run for run in mia.show("mia").runs]
    mia.remove([f"mia@{left.number}"])
    assert mia.show("mia").runs == []


@pytest.mark.parametrize("word", ["2", "0", "worst", "", "1@1", "\ud800"])
def test_all_versions_are_removed_or_none(mia: Registry, tmp_path: Path, word: str) -> None:
    train(mia, "mia", tmp_path)
    before = rows_of(mia.location.database)
    with pytest.raises(NotFound, match="mia"):
        mia.remove(["mia@1", f"mia@{word}"])
    assert rows_of(mia.location.database) == before


def test_a_removed_name_is_free(mia: Registry, tmp_path: Path) -> None:
    mia.remove(["mia"])
    done = mia.add("mia", [tmp_path / "small"], category="dog")
    assert (done.concept.category, done.concept.notes, done.concept.tags) == ("dog", "", [])


def test_an_id_is_never_used_twice(mia: Registry, tmp_path: Path) -> None:
    mia.remove(["mia"])
    mia.add("leo", [tmp_path / "small"], category="cat")
    assert {event.concept for event in mia.history("leo")} == {"leo"}

"""Adding photos: what is stored, what is told, and that it is all or nothing."""

import dataclasses
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conceptry.registry import InvalidImage, InvalidInput, NotFound, Registry
from conceptry.registry.blobs import Staging
from conceptry.registry.records import AddReport
from copies import copied
from drawing import draw, draw_bytes, draw_file, draw_folder
from PIL import Image, ImageFilter
from snapshot import files_below, rows_of

SMALL = (96, 64)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a registry that has one concept, mia, a cat with three small photos."""
    folder = tmp_path_factory.mktemp("made")
    photos = draw_folder(folder / "small", 3, size=SMALL)
    with Registry.open(folder / "registry/concepts.db", create=True) as registry:
        registry.add("mia", [photos], category="cat")
    return folder


@pytest.fixture
def mia(made: Path, tmp_path: Path) -> Iterator[Registry]:
    """The registry of a copy of it."""
    with copied(made, tmp_path) as registry:
        yield registry


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """The folder of its photos."""
    return draw_folder(tmp_path / "small", 3, size=SMALL)


def cut_out(path: Path, seed: int = 0) -> Path:
    """A photo whose left half is transparent."""
    photo = draw(seed, SMALL)
    alpha = np.full(SMALL[::-1], 255, np.uint8)
    alpha[:, : SMALL[0] // 2] = 0
    photo.putalpha(Image.fromarray(alpha))
    path.parent.mkdir(parents=True, exist_ok=True)
    photo.save(path)
    return path


def mask_file(path: Path, box: tuple[int, int, int, int] = (10, 10, 50, 50)) -> Path:
    mask = Image.new("L", SMALL)
    mask.paste(255, box)
    path.parent.mkdir(parents=True, exist_ok=True)
    mask.save(path)
    return path


def num_blobs(registry: Registry) -> int:
    return registry.check(read_data=True).blobs


def warned(added: AddReport) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for warning in added.warnings:
        found.setdefault(Path(warning.path).name, []).append(warning.code)
    return found


# --- what is stored -----------------------------------------------------------------------------


def test_a_new_concept_is_created(registry: Registry, photos: Path) -> None:
    done = registry.add("rex", [photos], category="dog", tags=["pets", "old"], notes=" he bites ")
    assert (done.concept.name, done.concept.category) == ("rex", "dog")
    assert (done.concept.tags, done.concept.notes) == (["old", "pets"], "he bites")
    assert [image.path for image in done.added] == [str(photos / f"0{i}.png") for i in range(3)]
    assert (done.duplicates, done.warnings) == ([], [])
    assert done.concept == registry.show("rex")


def test_a_photo_is_described(registry: Registry, tmp_path: Path) -> None:
    path = draw_file(tmp_path / "größe 1.jpg", size=SMALL)
    image = registry.add("rex", [path], category="dog").concept.images[0]
    assert (image.filename, image.format) == ("größe 1.jpg", "JPEG")
    assert (image.width, image.height) == SMALL
    assert (image.bytes, image.caption, image.mask) == (path.stat().st_size, None, None)


def test_the_bytes_are_stored_as_they_are(mia: Registry, small: Path) -> None:
    for image in mia.show("mia").images:
        original = (small / image.filename).read_bytes()
        assert image.sha256 == hashlib.sha256(original).hexdigest()
        assert mia.path_of(image.sha256).read_bytes() == original


def test_a_turned_photo_is_recorded_and_read_upright(registry: Registry, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    draw(1, SMALL).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=exif)
    (image,) = registry.add("rex", [tmp_path / "a.png"], category="dog").concept.images
    assert (image.width, image.height) == SMALL
    assert registry.read_photo(image).tobytes() == draw(1, SMALL).tobytes()


def test_an_alpha_channel_becomes_the_mask(registry: Registry, tmp_path: Path) -> None:
    (image,) = registry.add("rex", [cut_out(tmp_path / "a.png")], category="dog").concept.images
    mask = registry.read_mask(image)
    assert mask is not None
    assert (mask.mode, mask.size) == ("L", SMALL)
    assert [mask.getpixel((0, 0)), mask.getpixel((95, 0))] == [0, 255]


def test_a_mask_file_goes_before_the_alpha_channel(registry: Registry, tmp_path: Path) -> None:
    mask_file(tmp_path / "masks/a.png")
    photo = cut_out(tmp_path / "a.png")
    done = registry.add("rex", [photo], category="dog", masks=tmp_path / "masks")
    mask = registry.read_mask(done.concept.images[0])
    assert mask is not None
    assert mask.getbbox() == (10, 10, 50, 50)


def test_a_photo_without_a_mask_has_none(mia: Registry) -> None:
    assert mia.read_mask(mia.show("mia").images[0]) is None


def test_captions_are_stored(registry: Registry, small: Path) -> None:
    (small / "01.txt").write_text("on the sofa")
    done = registry.add("rex", [small], category="dog", caption="a dog")
    assert [image.caption for image in done.concept.images] == ["a dog", "on the sofa", "a dog"]


def test_a_file_name_that_cannot_be_shown_is_made_printable(
    registry: Registry, tmp_path: Path
) -> None:
    path = draw_file(tmp_path / "a\x1b[31m\n.png", size=SMALL)
    (image,) = registry.add("rex", [path], category="dog").concept.images
    assert image.filename == "a\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}.png"


def test_progress_is_told(registry: Registry, small: Path) -> None:
    told: list[tuple[int, int]] = []
    registry.add("rex", [small], category="dog", on_progress=lambda *now: told.append(now))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_adding_is_in_the_history(mia: Registry) -> None:
    create, add = mia.history("mia")
    assert (create.action, create.detail) == ("create", {"category": "cat"})
    images = [image.sha256 for image in mia.show("mia").images]
    assert (add.action, add.detail) == ("add", {"images": images})


# --- appending ----------------------------------------------------------------------------------


def test_adding_again_appends(mia: Registry, tmp_path: Path) -> None:
    done = mia.add("mia", [draw_file(tmp_path / "new.png", 77, SMALL)])
    assert [image.filename for image in done.concept.images] == [
        "00.png",
        "01.png",
        "02.png",
        "new.png",
    ]
    assert [Path(image.path).name for image in done.added] == ["new.png"]


def test_adding_again_keeps_notes_and_adds_tags(registry: Registry, small: Path) -> None:
    registry.add("rex", [small], category="dog", notes="first", tags=["a", "b"])
    done = registry.add("rex", [small], tags=["b", "c"])
    assert (done.concept.notes, done.concept.tags) == ("first", ["a", "b", "c"])
    assert registry.add("rex", [small], notes="second").concept.notes == "second"


def test_a_new_concept_needs_a_category(registry: Registry, small: Path) -> None:
    with pytest.raises(InvalidInput, match='"rex" is new: say in a word what it is') as caught:
        registry.add("rex", [small])
    assert caught.value.hint == "concept add rex PHOTO… --category dog"


@pytest.mark.parametrize("category", [None, "cat", "  cat "])
def test_an_old_concept_needs_none(mia: Registry, small: Path, category: str | None) -> None:
    assert mia.add("mia", [small], category=category).concept.category == "cat"


def test_an_old_concept_keeps_its_category(mia: Registry, small: Path) -> None:
    with pytest.raises(InvalidInput, match='"mia" is a cat, not a dog') as caught:
        mia.add("mia", [small], category="dog")
    assert caught.value.hint == "concept edit mia --category dog"
    assert mia.show("mia").category == "cat"


# --- photos that are there already --------------------------------------------------------------


def test_an_exact_duplicate_is_not_stored_again(mia: Registry, small: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.png"
    copy.write_bytes((small / "01.png").read_bytes())
    done = mia.add("mia", [copy])
    (duplicate,) = done.duplicates
    assert (done.added, len(done.concept.images)) == ([], 3)
    assert (duplicate.exact, duplicate.distance, duplicate.updated) == (True, 0, [])
    assert (duplicate.path, duplicate.of_filename) == (str(copy), "01.png")
    assert duplicate.sha256 == duplicate.of == done.concept.images[1].sha256


def test_two_files_with_the_same_bytes_become_one_photo(registry: Registry, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        draw_file(tmp_path / name, 1, SMALL)
    (tmp_path / "b.txt").write_text("a dog")
    done = registry.add("rex", [tmp_path / "a.png", tmp_path / "b.png"], category="dog")
    (image,) = done.concept.images
    assert (image.filename, image.caption) == ("a.png", "a dog")
    assert [duplicate.of_filename for duplicate in done.duplicates] == ["a.png"]


def test_a_photo_in_two_concepts_is_stored_once(mia: Registry, small: Path) -> None:
    done = mia.add("leo", [small], category="cat")
    assert (len(done.added), done.duplicates) == (3, [])
    assert num_blobs(mia) == 3


def test_an_exact_duplicate_takes_over_a_new_caption(mia: Registry, small: Path) -> None:
    (small / "01.txt").write_text("on the sofa")
    done = mia.add("mia", [small])
    assert [image.caption for image in done.concept.images] == [None, "on the sofa", None]
    assert [duplicate.updated for duplicate in done.duplicates] == [[], ["caption"], []]
    assert [concept.name for concept in mia.find(text="sofa").concepts] == ["mia"]


def test_an_exact_duplicate_takes_over_a_new_mask(
    mia: Registry, small: Path, tmp_path: Path
) -> None:
    for box in ((0, 0, 40, 40), (5, 5, 20, 20)):
        mask_file(tmp_path / "masks/02.png", box)
        done = mia.add("mia", [small], masks=tmp_path / "masks")
        assert [duplicate.updated for duplicate in done.duplicates] == [[], [], ["mask"]]
        mask = mia.read_mask(done.concept.images[2])
        assert mask is not None
        assert mask.getbbox() == box
    assert mia.check(read_data=True).ok


def test_what_is_not_given_again_is_kept(registry: Registry, small: Path, tmp_path: Path) -> None:
    mask_file(tmp_path / "masks/00.png")
    before = registry.add(
        "rex", [small], category="dog", caption="a dog", masks=tmp_path / "masks"
    ).concept
    after = registry.add("rex", [small])
    assert after.concept.images == before.images
    assert [duplicate.updated for duplicate in after.duplicates] == [[], [], []]


def test_a_mask_file_is_not_lost_to_the_alpha_channel(registry: Registry, tmp_path: Path) -> None:
    mask_file(tmp_path / "masks/a.png")
    photo = cut_out(tmp_path / "a.png")
    before = registry.add("rex", [photo], category="dog", masks=tmp_path / "masks").concept
    assert registry.add("rex", [photo]).concept.images == before.images


@pytest.mark.parametrize("change", [{"tags": ["new"]}, {"notes": "new"}, {"caption": "new"}])
def test_what_a_duplicate_changes_is_in_the_history(
    mia: Registry, small: Path, change: dict[str, Any]
) -> None:
    before = len(mia.history("mia"))
    mia.add("mia", [small], **change)
    assert len(mia.history("mia")) == before + 1


def test_a_near_duplicate_is_added_and_named(registry: Registry, tmp_path: Path) -> None:
    original = draw_file(tmp_path / "original.png", 1)
    other = draw_file(tmp_path / "other.png", 2)
    registry.add("rex", [other, original], category="dog")
    draw(1).resize((300, 300)).save(tmp_path / "resized.jpg")
    done = registry.add("rex", [tmp_path / "resized.jpg"])
    (double,) = done.duplicates
    assert len(done.added) == 1
    assert (double.exact, double.of_filename, double.updated) == (False, "original.png", [])
    assert double.sha256 == done.added[0].sha256 != double.of
    assert 0 <= double.distance <= 10


def test_near_duplicates_are_found_among_the_photos_of_one_call(
    registry: Registry, tmp_path: Path
) -> None:
    draw(1).save(tmp_path / "a.png")
    draw(1).save(tmp_path / "b.jpg")
    done = registry.add("rex", [tmp_path / "a.png", tmp_path / "b.jpg"], category="dog")
    assert [(Path(d.path).name, d.of_filename) for d in done.duplicates] == [("b.jpg", "a.png")]


def test_near_duplicates_in_other_concepts_do_not_count(mia: Registry, tmp_path: Path) -> None:
    draw(0, SMALL).save(tmp_path / "same.bmp")
    assert mia.add("leo", [tmp_path / "same.bmp"], category="cat").duplicates == []


# --- warnings -----------------------------------------------------------------------------------


def test_small_blurred_and_moving_photos_are_warned_of(registry: Registry, tmp_path: Path) -> None:
    draw(1).save(tmp_path / "fine.png")
    draw(2, (511, 800)).save(tmp_path / "small.png")
    draw(3).filter(ImageFilter.GaussianBlur(6)).save(tmp_path / "blurred.png")
    draw(4).save(tmp_path / "moving.png", save_all=True, append_images=[draw(5)])
    done = registry.add("rex", sorted(tmp_path.glob("*.png")), category="dog")
    assert warned(done) == {
        "small.png": ["small"],
        "blurred.png": ["blurred"],
        "moving.png": ["frames"],
    }
    assert len(done.added) == 4
    messages = " ".join(warning.message for warning in done.warnings)
    assert "511x800 is below 512 pixels" in messages
    assert "has 2 frames; the first is used" in messages


# --- all or nothing -----------------------------------------------------------------------------


def spoil(folder: Path, how: str) -> dict[str, Any]:
    """Make 01.png, or what belongs to it, unusable; returns what else `add` is given."""
    photo = folder / "01.png"
    masks = folder.parent / "masks"
    if how == "text":
        photo.write_text("not a photo")
    elif how == "truncated":
        photo.write_bytes(photo.read_bytes()[:-200])
    elif how == "empty":
        photo.write_bytes(b"")
    elif how == "transparent":
        Image.new("RGBA", SMALL).save(photo)
    elif how == "caption":
        photo.with_suffix(".txt").write_bytes(b"\xff")
    elif how == "black mask":
        mask_file(masks / "01.png", (0, 0, 0, 0))
    elif how == "wide mask":
        draw_file(masks / "01.png", size=(100, 20))
    return {"masks": masks} if masks.exists() else {}


@pytest.mark.parametrize("new", [True, False], ids=["new", "old"])
@pytest.mark.parametrize(
    "how", ["text", "truncated", "empty", "transparent", "caption", "black mask", "wide mask"]
)
def test_one_bad_file_among_good_ones_leaves_nothing(
    mia: Registry, tmp_path: Path, how: str, new: bool
) -> None:
    folder = draw_folder(tmp_path / "more", 3, seed=9, size=SMALL)
    options = spoil(folder, how)
    before = files_below(tmp_path), rows_of(mia.location.database)
    with pytest.raises(InvalidInput, match=r"01\."):
        mia.add("leo" if new else "mia", [folder], category="cat", tags=["t"], notes="n", **options)
    assert (files_below(tmp_path), rows_of(mia.location.database)) == before


@pytest.mark.parametrize(
    "change",
    [
        {"name": "Bad Name"},
        {"category": "a, b"},
        {"tags": ["ok", "Bad Tag"]},
        {"notes": "a\0b"},
        {"caption": "a\0b"},
    ],
    ids=["name", "category", "tag", "notes", "caption"],
)
def test_a_bad_word_leaves_nothing(mia: Registry, tmp_path: Path, change: dict[str, Any]) -> None:
    folder = draw_folder(tmp_path / "more", 1, seed=9, size=SMALL)
    before = files_below(tmp_path), rows_of(mia.location.database)
    with pytest.raises(InvalidInput):
        mia.add(**{"name": "leo", "paths": [folder], "category": "cat", **change})
    assert (files_below(tmp_path), rows_of(mia.location.database)) == before


def test_a_missing_path_leaves_nothing(mia: Registry, small: Path, tmp_path: Path) -> None:
    before = files_below(tmp_path), rows_of(mia.location.database)
    with pytest.raises(NotFound, match=re.escape("gone.png does not exist")):
        mia.add("leo", [small, "gone.png"], category="cat")
    assert (files_below(tmp_path), rows_of(mia.location.database)) == before


def test_a_failure_after_the_files_are_stored_removes_them(
    mia: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = draw_folder(tmp_path / "more", 2, seed=9, size=SMALL)
    before = files_below(tmp_path / "registry/concepts.blobs"), rows_of(mia.location.database)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the last moment")

    monkeypatch.setattr("conceptry.registry.intake.refresh", fail)
    with pytest.raises(RuntimeError, match="the last moment"):
        mia.add("mia", [folder])
    blobs = files_below(tmp_path / "registry/concepts.blobs")
    assert {path for path, what in blobs.items() if what != "folder"} == {
        path for path, what in before[0].items() if what != "folder"
    }
    assert rows_of(mia.location.database) == before[1]


def test_a_photo_that_fails_is_kept_where_another_concept_needs_it(
    mia: Registry, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conceptry.registry.intake.set_tags", lambda *_, **__: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        mia.add("leo", [small], category="cat")
    assert mia.check(read_data=True).ok


def test_a_file_that_another_process_came_to_need_meanwhile_is_kept(
    mia: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = draw_folder(tmp_path / "more", 2, seed=9, size=SMALL)
    publish = Staging.publish

    def publish_and_fail(staging: Staging) -> None:
        publish(staging)
        monkeypatch.setattr(Staging, "publish", publish)
        with Registry.open(mia.location.database) as other:
            other.add("leo", [folder / "00.png"], category="cat")
        raise RuntimeError("after publishing")

    monkeypatch.setattr(Staging, "publish", publish_and_fail)
    with pytest.raises(RuntimeError, match="after publishing"):
        mia.add("mia", [folder])
    assert len(mia.show("leo").images) == 1
    assert mia.check(read_data=True).problems == []


def test_all_bad_files_are_reported_together(registry: Registry, tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "photos", 7, size=SMALL)
    for i in range(1, 7):
        (folder / f"{i:02}.png").write_text("not a photo")
    with pytest.raises(InvalidImage) as caught:
        registry.add("rex", [folder], category="dog")
    message = caught.value.message
    assert message.startswith("6 of 7 files cannot be used: ")
    assert [name in message for name in ("01.png", "04.png", "05.png")] == [True, True, False]
    assert message.endswith(" and 2 more")
    assert caught.value.hint == "leave out or replace it; nothing was added"


def test_the_same_photos_make_the_same_rows(registry: Registry, small: Path) -> None:
    first = registry.add("one", [small], category="cat").concept
    second = registry.add("two", [small], category="cat").concept
    assert [dataclasses.replace(image, added="") for image in first.images] == [
        dataclasses.replace(image, added="") for image in second.images
    ]


def test_a_photo_without_pixels_to_spare_is_added(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "dot.png").write_bytes(draw_bytes(1, (8, 8)))
    assert len(registry.add("dot", [tmp_path / "dot.png"], category="dot").added) == 1

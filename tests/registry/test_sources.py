"""From the paths a user names to photos with captions and masks."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from conceptry.registry import InvalidInput, NotFound
from conceptry.registry.sources import collect, passed_over

LONG = "x" * 300


def touch(*paths: str) -> None:
    """Empty files under the current folder; nothing here decodes them."""
    for path in paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()


def found(*paths: str) -> list[str]:
    return [str(source.path) for source in collect(paths)]


def caption_of(text: bytes | None, default: str | None = None) -> str | None:
    touch("photos/a.png")
    if text is not None:
        Path("photos/a.txt").write_bytes(text)
    (source,) = collect(["photos/a.png"], caption=default)
    return source.caption


def masks_of(*paths: str) -> dict[str, str | None]:
    return {
        source.path.name: source.mask.name if source.mask else None
        for source in collect(paths, masks="masks")
    }


# --- files, folders, patterns -------------------------------------------------------------------


def test_a_folder_stands_for_the_photos_in_it_by_name() -> None:
    touch("photos/b.png", "photos/a.JPG", "photos/c.webp")
    assert found("photos") == ["photos/a.JPG", "photos/b.png", "photos/c.webp"]


def test_other_files_in_a_folder_are_passed_over() -> None:
    touch(
        "photos/a.png", "photos/a.txt", "photos/.hidden.png", "photos/._a.png", "photos/movie.mp4"
    )
    touch("photos/below/b.png")
    Path("photos/folder.png").mkdir()
    assert found("photos") == ["photos/a.png"]


@pytest.mark.parametrize(
    "suffix", ["jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "avif", "heic", "heif"]
)
def test_photos_are_known_by_their_suffix(suffix: str) -> None:
    touch(f"photos/a.{suffix}")
    assert found("photos") == [f"photos/a.{suffix}"]


def test_a_file_that_is_named_is_taken_whatever_it_is_called() -> None:
    touch("photos/a", "photos/.b.png")
    assert found("photos/a", "photos/.b.png") == ["photos/a", "photos/.b.png"]


def test_the_order_is_that_of_the_paths() -> None:
    touch("two/a.png", "one/b.png", "z.png")
    assert found("z.png", "two", "one") == ["z.png", "two/a.png", "one/b.png"]


def test_a_photo_is_found_once() -> None:
    touch("photos/a.png", "photos/b.png")
    assert found("photos/b.png", "photos", "./photos/a.png", "photos/*") == [
        "photos/b.png",
        "photos/a.png",
    ]


def test_a_pattern_is_expanded() -> None:
    touch("photos/a1.png", "photos/a2.jpg", "photos/b1.png", "photos/a3.txt", "photos/.a4.png")
    assert found("photos/a*") == ["photos/a1.png", "photos/a2.jpg"]
    assert found("photos/?1.png") == ["photos/a1.png", "photos/b1.png"]
    assert found("photos/[b-z]*") == ["photos/b1.png"]


def test_two_stars_descend() -> None:
    touch("photos/a.png", "photos/x/b.png", "photos/x/y/c.png", "photos/.git/d.png")
    assert found("photos/**") == ["photos/a.png", "photos/x/b.png", "photos/x/y/c.png"]
    assert found("photos/**/c.png") == ["photos/x/y/c.png"]


def test_a_file_whose_name_looks_like_a_pattern_is_taken_literally() -> None:
    touch("photos/a[1].png", "photos/a1.png")
    assert found("photos/a[1].png") == ["photos/a[1].png"]


def test_a_home_folder_is_expanded() -> None:
    home = Path.home()
    touch(f"{home}/photos/a.png")
    assert found("~/photos") == found("~/photos/*.png") == [f"{home}/photos/a.png"]


def test_a_file_whose_name_begins_with_a_tilde_is_found() -> None:
    touch("~a.png")
    assert found("~a.png") == ["~a.png"]


def test_a_link_to_a_photo_is_followed() -> None:
    touch("elsewhere/a.png")
    Path("photos").mkdir()
    Path("photos/link.png").symlink_to("../elsewhere/a.png")
    assert found("photos") == ["photos/link.png"]


@pytest.mark.parametrize(
    "path", ["gone.png", "gone/a.png", "~nobody-of-this-name/a.png", "a\0b.png", f"{LONG}.png"],
    ids=["file", "folder", "home", "nul", "long"],
)  # fmt: skip
def test_a_path_that_does_not_exist_is_named(path: str) -> None:
    with pytest.raises(NotFound) as caught:
        found(path)
    assert caught.value.message == f"{path} does not exist"
    assert caught.value.hint


def test_a_link_that_leads_nowhere_does_not_exist() -> None:
    Path("a.png").symlink_to("gone.png")
    with pytest.raises(NotFound, match=r"a\.png does not exist"):
        found("a.png")


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("photos/beech.png", "did you mean photos/beach.png?"),
        ("photoz", "did you mean photos?"),
        ("photoz/beach.png", "did you mean photos?"),
        ("photos/zebra.gif", "ls photos"),
    ],
)
def test_a_path_that_does_not_exist_comes_with_a_hint(path: str, hint: str) -> None:
    touch("photos/beach.png")
    with pytest.raises(NotFound) as caught:
        found(path)
    assert caught.value.hint == hint


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    touch("photos/a.txt")
    with pytest.raises(NotFound, match=r'no photo matches "photos/\*"'):
        found("photos/*")


def test_a_folder_without_a_photo_is_an_error() -> None:
    touch("photos/a.txt")
    with pytest.raises(InvalidInput, match="there is no photo in the folder photos"):
        found("photos")


def test_naming_nothing_is_an_error() -> None:
    with pytest.raises(InvalidInput, match="no photos were named"):
        found()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_refused_and_not_waited_for() -> None:
    os.mkfifo("pipe.png")
    with pytest.raises(InvalidInput, match=r"pipe\.png is not a regular file"):
        found("pipe.png")


# --- captions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        (b"a dog", "a dog"),
        (b"  a dog\r\non a sofa\n", "a dog\non a sofa"),
        (b"\xef\xbb\xbfa dog", "a dog"),
        ("größer 犬".encode(), "größer 犬"),
        (b"", None),
        (b" \n", None),
        (b"\xef\xbb\xbf", None),
    ],
    ids=["plain", "lines", "bom", "unicode", "empty", "blank", "only-bom"],
)
def test_the_text_file_beside_a_photo_is_its_caption(text: bytes, caption: str | None) -> None:
    assert caption_of(text) == caption


def test_a_caption_file_goes_before_the_general_caption() -> None:
    assert caption_of(b"mine", default="all") == "mine"


@pytest.mark.parametrize("text", [None, b"", b"  "], ids=["none", "empty", "blank"])
def test_the_general_caption_is_for_photos_without_their_own(text: bytes | None) -> None:
    assert caption_of(text, default="  all ") == "all"


def test_each_photo_has_its_own_caption() -> None:
    touch("photos/a.png", "photos/b.png", "photos/c.png")
    Path("photos/a.txt").write_text("one")
    Path("photos/b.txt").write_text("two")
    assert [source.caption for source in collect(["photos"])] == ["one", "two", None]


def test_a_folder_called_like_a_caption_is_passed_over() -> None:
    touch("photos/a.png")
    Path("photos/a.txt").mkdir()
    assert [source.caption for source in collect(["photos"])] == [None]


@pytest.mark.parametrize(
    "text", [b"\xff\xfea\0", b"caf\xe9", b"a\0b", b"a\x1b[31m", b"x" * 10_001],
    ids=["utf16", "latin1", "nul", "escape", "long"],
)  # fmt: skip
def test_a_caption_file_that_is_no_text_is_named(text: bytes) -> None:
    with pytest.raises(InvalidInput, match=r"photos/a\.txt"):
        caption_of(text)


def test_a_general_caption_that_is_no_text_is_refused() -> None:
    with pytest.raises(InvalidInput, match="the caption is not plain text"):
        caption_of(None, default="a\0b")


# --- masks --------------------------------------------------------------------------------------


def test_a_mask_belongs_to_the_photo_of_its_name() -> None:
    touch("photos/a.jpg", "photos/b.png", "masks/a.png", "masks/b.webp")
    assert masks_of("photos") == {"a.jpg": "a.png", "b.png": "b.webp"}


def test_a_photo_may_have_no_mask_and_a_mask_no_photo() -> None:
    touch("photos/a.jpg", "photos/b.jpg", "masks/a.png", "masks/z.png")
    assert masks_of("photos") == {"a.jpg": "a.png", "b.jpg": None}


def test_without_a_mask_folder_no_photo_has_a_mask() -> None:
    touch("photos/a.jpg", "masks/a.png")
    assert collect(["photos"])[0].mask is None


def test_a_mask_that_fits_two_photos_is_an_error() -> None:
    touch("one/a.jpg", "two/a.jpg", "masks/a.png")
    with pytest.raises(InvalidInput, match=r"the mask masks/a\.png fits more than one photo"):
        masks_of("one", "two")


def test_a_photo_with_two_masks_is_an_error() -> None:
    touch("photos/a.jpg", "masks/a.png", "masks/a.webp")
    with pytest.raises(InvalidInput, match=r"masks/a\.webp fits .* or one photo has two"):
        masks_of("photos")


def test_masks_that_fit_no_photo_are_an_error() -> None:
    touch("photos/a.jpg", "masks/a_mask.png")
    with pytest.raises(InvalidInput, match="no mask in masks bears the name of a photo") as caught:
        masks_of("photos")
    assert caught.value.hint == "the mask of 01.jpg is called 01.png"


@pytest.mark.parametrize("files", [[], ["masks"]], ids=["nothing", "a file"])
def test_a_mask_folder_that_is_none_is_an_error(files: Sequence[str]) -> None:
    touch("photos/a.jpg", *files)
    with pytest.raises(NotFound, match="masks"):
        masks_of("photos")


def test_a_mask_folder_without_pictures_is_an_error() -> None:
    touch("photos/a.jpg", "masks/readme.md")
    with pytest.raises(InvalidInput, match="in the folder masks"):
        masks_of("photos")


def test_a_home_folder_is_expanded_in_masks_too() -> None:
    touch("photos/a.jpg", f"{Path.home()}/masks/a.png")
    (source,) = collect(["photos"], masks="~/masks")
    assert source.mask == Path.home() / "masks/a.png"


# --- faults, rows 46 and 49: names that other tools give ------------------------------------------


def told_of(*paths: str, masks: str | None = None) -> list[str]:
    return [
        f"{each.code}: {each.path} {each.message}"
        for each in passed_over(paths, collect(paths, masks=masks), masks=masks)
    ]


@pytest.mark.parametrize("name", ["a-masklabel.png", "a.jpg.png", "a.png", "a.webp"])
def test_row_46_a_mask_is_known_by_the_names_that_tools_give(name: str) -> None:
    touch("photos/a.jpg", "photos/b.jpg", f"masks/{name}")
    assert masks_of("photos") == {"a.jpg": name, "b.jpg": None}


def test_row_46_a_mask_label_beside_its_photo_is_its_mask_and_no_photo() -> None:
    touch("photos/a.jpg", "photos/a-masklabel.png", "photos/b-masklabel.png")
    found = {each.path.name: each.mask and each.mask.name for each in collect(["photos"])}
    assert found == {"a.jpg": "a-masklabel.png", "b-masklabel.png": None}


def test_a_mask_label_is_found_beside_a_photo_that_is_named() -> None:
    touch("photos/a.jpg", "photos/a-masklabel.png", "photos/b.jpg", "photos/b-masklabel.png")
    for named in ("photos/a.jpg", "photos/a*.jpg"):
        (found,) = collect([named])
        assert found.mask == Path("photos/a-masklabel.png")
    (told,) = collect(["photos/b-masklabel.png"])
    assert (told.path.name, told.mask) == ("b-masklabel.png", None), "named, it is a photo"


def test_row_46_masks_may_lie_among_the_photos() -> None:
    touch("masks/a.jpg", "masks/a.jpg.png", "masks/b.jpg", "masks/b-masklabel.png", "masks/c.jpg")
    assert masks_of("masks") == {
        "a.jpg": "a.jpg.png",
        "b.jpg": "b-masklabel.png",
        "c.jpg": None,
    }


def test_row_46_masks_that_fit_no_photo_are_told() -> None:
    touch("photos/a.jpg", "masks/a.png", *(f"masks/{i}.png" for i in range(6)))
    assert told_of("photos", masks="masks") == [
        "unused_masks: masks 0.png, 1.png, 2.png, 3.png and 2 more fit no photo"
    ]


@pytest.mark.parametrize("name", ["a.TXT", "a.caption", "a.CAPTION", "a.Txt", "a.png.txt"])
def test_row_49_captions_have_other_suffixes_too(name: str) -> None:
    touch("photos/a.png")
    Path("photos", name).write_text("a dog")
    assert collect(["photos"])[0].caption == "a dog"
    assert collect(["photos/a.png", f"photos/{name}"])[0].caption == "a dog"


def test_row_49_captions_come_from_metadata_jsonl() -> None:
    touch("photos/a.png", "photos/b.png", "photos/c.png")
    Path("photos/b.txt").write_text("its own")
    Path("photos/metadata.jsonl").write_bytes(
        b'\xef\xbb\xbf{"file_name": "a.png", "text": "a dog"}\r\n\r\n'
        b'{"file_name": "b.png", "text": "not this"}\n{"file_name": "gone.png", "x": 1}\n'
        b'{"file_name": "c.png", "text": "a dog, \xe2\x80\xa8asleep"}\n'
    )
    found = [each.caption for each in collect(["photos"])]
    assert found[:2] == ["a dog", "its own"]
    assert (found[2] or "").split() == ["a", "dog,", "asleep"], "only line feeds end a line"


def test_captions_that_no_photo_takes_are_told() -> None:
    touch("photos/00.png", "photos/01.png", "photos/00.png.txt", "photos/01.txt")
    touch("photos/README.txt", "photos/LICENSE.txt", "photos/._00.txt")
    Path("photos/metadata.jsonl").write_text('{"file_name": "01.png", "text": "a dog"}\n')
    assert told_of("photos") == []
    touch("photos/1.txt", "photos/A.caption", "photos/metadata.csv")
    Path("photos/metadata.jsonl").write_text(
        '{"file_name": "1.png", "text": "a dog"}\n\n{"file_name": "01.png", "captoin": "a dog"}\n'
    )
    assert told_of("photos") == [
        "unused_captions: photos has captions that no photo takes: 1.txt, A.caption, "
        "line 1 of metadata.jsonl, line 3 of metadata.jsonl and 1 more"
    ]
    assert told_of("photos/00.png") == []


@pytest.mark.parametrize("line", ["[" * 100_000, "{", "1" * 10_000, "null", '"a"', "[1]"])
def test_row_49_metadata_that_is_none_is_named(line: str) -> None:
    touch("photos/a.png")
    Path("photos/metadata.jsonl").write_text(f"{{}}\n{line}\n")
    with pytest.raises(InvalidInput, match=r"line 2 of photos/metadata\.jsonl is not"):
        collect(["photos"])


def test_row_49_captions_among_files_that_are_named_are_no_photos() -> None:
    touch("photos/a.png", "photos/metadata.jsonl")
    Path("photos/a.txt").write_text("a dog")
    assert found("photos/a.png", "photos/a.txt", "photos/metadata.jsonl") == ["photos/a.png"]
    assert found("photos/a.txt") == ["photos/a.txt"]


def test_row_49_files_that_are_left_out_are_told_in_one_line() -> None:
    touch("photos/a.png", "photos/a.txt", "photos/.b.gif", "photos/Thumbs.db", "photos/notes.md")
    assert told_of("photos") == []
    touch("photos/b.gif")
    assert told_of("photos") == ["left_out: photos a file is left out, as no photo: b.gif"]
    touch("photos/c.jxl", "photos/d.dng", "photos/e.mp4", "photos/f")
    assert told_of("photos") == [
        "left_out: photos 5 files are left out, as no photo: b.gif, c.jxl, d.dng, e.mp4 and 1 more"
    ]
    assert told_of("photos/a.png", "photos/*") == []


def test_row_49_photos_that_lie_one_deeper_get_a_hint() -> None:
    touch("photos/10_sks dog/a.png", "photos/x.gif", "photos/empty/a.txt")
    with pytest.raises(InvalidInput, match=r"no photo in the folder photos: x\.gif") as caught:
        collect(["photos"])
    assert caught.value.hint == "its folders have some: concept add NAME 'photos/10_sks dog'"
    touch("photos/b.png")
    assert told_of("photos")[1:] == ["left_out: photos has more photos, left out, in 10_sks dog/"]

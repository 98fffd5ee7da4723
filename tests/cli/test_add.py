"""`concept add`."""

import os
from pathlib import Path

import pytest
from conceptry.registry import Registry
from drawing import draw, draw_bytes, draw_file, draw_folder
from program import Ask, Run, invoke, run_concept


def names(ask: Ask) -> list[str]:
    return [image["filename"] for image in ask("show", "rex")["images"]]


def test_a_folder_makes_a_concept(run: Run, ask: Ask, photos: Path) -> None:
    result = run("add", "rex", photos, "--category", "dog", "--tag", "pets", "--notes", "old boy")
    assert result.exit_code == 0
    assert result.stdout == "rex (dog): 3 photos added, 3 in all\n"
    rex = ask("show", "rex")
    assert (rex["category"], rex["tags"], rex["notes"]) == ("dog", ["pets"], "old boy")
    assert [image["filename"] for image in rex["images"]] == ["00.png", "01.png", "02.png"]
    assert ask("check", "--read-data")["blobs"] == 3


def test_in_json(ask: Ask, photos: Path) -> None:
    done = ask("add", "rex", "photos", "--category", "dog")
    assert [image["path"] for image in done["added"]] == [
        "photos/00.png",
        "photos/01.png",
        "photos/02.png",
    ]
    assert [image["sha256"] for image in done["added"]] == [
        image["sha256"] for image in done["images"]
    ]
    assert (done["name"], done["duplicates"], done["warnings"]) == ("rex", [], [])


def test_files_folders_and_patterns_together(ask: Ask, tmp_path: Path, photos: Path) -> None:
    draw_file(tmp_path / "one.png", 50)
    draw_folder(tmp_path / "more", 2, seed=6)
    ask("add", "rex", "one.png", "more", "photos/0[12].png", "--category", "dog")
    assert names(ask) == ["one.png", "00.png", "01.png", "01.png", "02.png"]


def test_a_second_add_appends(rex: Registry, run: Run, tmp_path: Path) -> None:
    result = run("add", "rex", draw_file(tmp_path / "new.png", 60), "--tag", "old")
    assert result.stdout == "rex (dog): 1 photo added, 4 in all\n"
    assert rex.show("rex").tags == ["old", "pets"]


def test_captions_come_from_the_option_and_from_files(ask: Ask, photos: Path) -> None:
    (photos / "01.txt").write_text("rex on the beach\n")
    ask("add", "rex", photos, "--category", "dog", "--caption", "a dog")
    captions = [image["caption"] for image in ask("show", "rex")["images"]]
    assert captions == ["a dog", "rex on the beach", "a dog"]


def test_masks_come_from_their_folder(ask: Ask, tmp_path: Path, photos: Path) -> None:
    mask = tmp_path / "masks" / "01.png"
    mask.parent.mkdir()
    draw(1, mode="L").save(mask)
    ask("add", "rex", photos, "--category", "dog", "--masks", "masks")
    assert [bool(image["mask"]) for image in ask("show", "rex")["images"]] == [False, True, False]


@pytest.mark.parametrize("separator", ["\n", "\0"], ids=["lines", "nul"])
def test_a_list_on_stdin(ask: Ask, photos: Path, separator: str) -> None:
    listed = separator.join([str(photos / "00.png"), "", str(photos / "02.png"), ""])
    ask("add", "rex", "-", "--category", "dog", input=listed)
    assert names(ask) == ["00.png", "02.png"]


def test_a_list_with_nul_may_hold_names_with_line_breaks(ask: Ask, tmp_path: Path) -> None:
    draw_file(tmp_path / "two\nlines.png")
    ask("add", "rex", "-", "--category", "dog", input="two\nlines.png\0")
    assert names(ask) == ["two\N{REPLACEMENT CHARACTER}lines.png"]


def test_an_empty_list_on_stdin_is_wrong_usage(run: Run) -> None:
    result = run("add", "rex", "-", "--category", "dog", input="\n")
    assert result.exit_code == 2
    assert "no photos" in result.stderr


def test_a_listed_name_need_not_be_utf8(run: Run, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / name).write_bytes(draw_bytes())
    strict = {"PYTHONIOENCODING": "utf-8:strict"}  # as in an ordinary UTF-8 locale
    done = run_concept("add", "rex", "-", "-c", "dog", input=b"caf\xe9.png\n", env=strict)
    assert (done.returncode, done.stdout) == (0, "rex (dog): 1 photo added, 1 in all\n")


def test_a_name_may_begin_with_a_tilde(ask: Ask, tmp_path: Path) -> None:
    draw_file(tmp_path / "~draft.png")
    ask("add", "rex", "~draft.png", "--category", "dog")
    assert names(ask) == ["~draft.png"]


def test_the_same_photo_again_is_noted_and_kept_once(rex: Registry, run: Run) -> None:
    result = run("add", "rex", "photos/00.png")
    assert result.stdout == "rex (dog): 0 photos added, 3 in all\n"
    assert result.stderr == "photos/00.png is there already, as 00.png\n"


def test_the_same_photo_may_bring_a_caption(rex: Registry, ask: Ask) -> None:
    done = ask("add", "rex", "photos/00.png", "--caption", "rex asleep")
    [double] = done["duplicates"]
    assert (double["exact"], double["updated"]) == (True, ["caption"])
    assert done["images"][0]["caption"] == "rex asleep"


def test_a_near_duplicate_is_added_with_a_warning(rex: Registry, run: Run, tmp_path: Path) -> None:
    draw(0).save(tmp_path / "again.jpg", quality=60)
    result = run("add", "rex", "again.jpg")
    assert result.stdout == "rex (dog): 1 photo added, 4 in all\n"
    assert result.stderr.startswith("warning: again.jpg looks like 00.png (")


def test_a_small_photo_is_added_with_a_warning(rex: Registry, run: Run, tmp_path: Path) -> None:
    draw_file(tmp_path / "tiny.png", 70, (300, 200))
    result = run("add", "rex", "tiny.png")
    assert result.exit_code == 0
    assert result.stderr == "warning: tiny.png 300x200 is below 512 pixels\n"


def test_one_bad_photo_and_nothing_is_added(rex: Registry, run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(draw_bytes(80)[:500])
    result = run("add", "rex", draw_file(tmp_path / "good.png", 81), "bad.png")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: bad.png is damaged")
    assert len(rex.show("rex").images) == 3


def test_a_new_concept_needs_a_category(run: Run, photos: Path) -> None:
    result = run("add", "rex", photos)
    assert result.exit_code == 2
    assert result.stderr.startswith('error: "rex" is new: say in a word what it is -> concept add')


@pytest.mark.parametrize("name", ["Rex", "rex the dog", "-rex", "<rex>", "réx", "r" * 65])
def test_a_name_that_cannot_stand_in_a_prompt_is_refused(run: Run, photos: Path, name: str) -> None:
    result = run("add", "-c", "dog", "--", name, photos)
    assert result.exit_code == 2
    assert "is not a concept name" in result.stderr


def test_a_path_that_does_not_exist_suggests_one_that_does(run: Run, photos: Path) -> None:
    result = run("add", "rex", "photoz", "-c", "dog")
    assert result.exit_code == 3
    assert result.stderr == "error: photoz does not exist -> did you mean photos?\n"


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("~nobody-of-this-name/00.png", id="no-such-user"),
        pytest.param("x" * 5000, id="too-long"),
        pytest.param("photos/00.png/x", id="below-a-file"),
    ],
)
def test_a_path_that_cannot_exist_is_no_bug(run: Run, photos: Path, path: str) -> None:
    assert run("add", "rex", path, "-c", "dog").exit_code == 3


def test_a_message_names_the_path_as_it_is(run: Run) -> None:
    assert "two  spaces.jpg does not exist" in run("add", "rex", "two  spaces.jpg").stderr


def test_the_registry_is_made_where_it_is_wanted(photos: Path, tmp_path: Path) -> None:
    result = invoke("--registry", "deep/down/mine.db", "add", "rex", photos, "-c", "dog")
    assert result.exit_code == 0
    assert (tmp_path / "deep/down/mine.db").is_file()
    assert (tmp_path / "deep/down/mine.blobs").is_dir()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_row_49_a_list_on_stdin_may_come_from_windows(
    ask: Ask, photos: Path, encoding: str
) -> None:
    listed = f"{photos / '00.png'}\r\n\r\n{photos / '02.png'}\r\n".encode(encoding)
    ask("add", "rex", "-", "--category", "dog", input=listed)
    assert names(ask) == ["00.png", "02.png"]


def test_row_54_what_trainings_do_not_use_by_default_is_told(run: Run, photos: Path) -> None:
    assert run("add", "rex", photos / "00.png", "-c", "dog").stderr == ""
    done = run("add", "rex", photos / "01.png", "--caption", "a dog")
    assert done.stderr == "captions are kept; trainings use them with --set captions.share=0.5\n"
    mask = photos.parent / "masks/02.png"
    mask.parent.mkdir()
    draw(1, mode="1").save(mask)
    done = run("add", "rex", photos / "02.png", "--caption", "a dog", "--masks", mask.parent)
    both = "--set captions.share=0.5 --set mask.use=stored"
    assert done.stderr == f"captions and masks are kept; trainings use them with {both}\n"


def test_row_46_photos_that_got_no_mask_are_told(run: Run, photos: Path) -> None:
    mask = photos.parent / "masks/02.png"
    mask.parent.mkdir()
    draw(1, mode="1").save(mask)
    done = run("add", "rex", photos, "-c", "dog", "--masks", mask.parent)
    told = f"warning: {mask.parent} has no mask for 2 of 3 photos (00.png, 01.png)\n"
    assert done.stderr.startswith(told)


def test_rows_44_and_45_doubtful_photos_are_added_with_a_warning(run: Run, tmp_path: Path) -> None:
    draw(1).save(tmp_path / "odd.png", icc_profile=b"junk")
    draw(2).point([value // 16 for value in range(256)] * 3).save(tmp_path / "night.png")
    done = run("add", "rex", "odd.png", "night.png", "-c", "dog")
    assert done.exit_code == 0
    assert done.stderr.splitlines() == [
        "warning: odd.png its colour profile cannot be used; its colours are taken for sRGB",
        "warning: night.png is very dark (99 % of it is below 14 of 255)",
    ]


def test_row_43_one_of_many_that_cannot_be_read_has_a_clear_line(run: Run, photos: Path) -> None:
    draw(1).save(photos / "09.gif")
    (photos / "09.gif").rename(photos / "09.png")
    done = run("add", "rex", photos, "-c", "dog")
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert "09.png is not a photo in a known format" in done.stderr
    assert "it is a GIF -> leave out or replace it; nothing was added" in done.stderr

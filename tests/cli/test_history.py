"""`concept history` and `concept path`."""

from pathlib import Path

from conceptry.registry import Registry
from program import Ask, Run


def test_history_has_a_line_for_each_event(rex: Registry, run: Run) -> None:
    rex.edit("rex", tag=["old"], captions={"00.png": "on\na sofa"})
    rex.rename("rex", "max")
    rex.remove(["max"])
    lines = run("history").stdout.splitlines()
    assert [line.split()[2:4] for line in lines] == [
        ["rex", "create"],
        ["rex", "add"],
        ["rex", "edit"],
        ["max", "rename"],
        ["max", "remove"],
    ]
    assert lines[1].endswith("add  3 photos, tag pets")
    assert lines[3].endswith("rename  was rex")


def test_history_of_one_concept_outlives_it(rex: Registry, ask: Ask, photos: Path) -> None:
    rex.add("mia", [photos], category="cat")
    rex.remove(["rex"])
    actions = [event["action"] for event in ask("history", "rex")["events"]]
    assert actions == ["create", "add", "remove"]


def test_history_can_be_cut_to_the_last(rex: Registry, ask: Ask) -> None:
    [event] = ask("history", "--limit", "1")["events"]
    assert (event["concept"], event["action"]) == ("rex", "add")
    assert len(event["detail"]["images"]) == 3


def test_history_of_a_name_never_used(rex: Registry, run: Run) -> None:
    assert run("history", "rx").exit_code == 3


def test_path_of_the_registry(rex: Registry, run: Run, ask: Ask, database: Path) -> None:
    assert run("path").stdout == f"{database}\n"
    blobs = str(database.with_name("concepts.blobs"))
    assert ask("path") == {"registry": str(database), "blobs": blobs, "exists": True}


def test_path_of_a_registry_that_is_not_there(run: Run, ask: Ask, database: Path) -> None:
    assert ask("path")["exists"] is False
    assert not database.parent.exists()


def test_path_of_photos(rex: Registry, run: Run, ask: Ask, photos: Path) -> None:
    stored = [Path(line) for line in run("path", "rex").stdout.splitlines()]
    assert [path.read_bytes() for path in stored] == [
        photo.read_bytes() for photo in sorted(photos.iterdir())
    ]
    assert ask("path", "rex") == {
        "name": "rex",
        "images": [{"filename": f"{i:02}.png", "path": str(path)} for i, path in enumerate(stored)],
        "previews": [],
    }


def test_where_there_are_no_photos_it_is_said(rex: Registry, run: Run) -> None:
    rex.edit("rex", remove_images=[image.sha256 for image in rex.show("rex").images])
    told = run("path", "rex")
    assert (told.exit_code, told.stdout) == (0, "")
    assert "rex has no photos: concept add rex PHOTO…" in told.stderr

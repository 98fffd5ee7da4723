"""`concept edit`, `rename` and `rm`."""

from pathlib import Path

import numpy as np
import pytest
from conceptry.registry import Registry
from program import Ask, Run, error_of
from safetensors.numpy import save_file


def add_versions(registry: Registry, count: int) -> None:
    """Give rex versions."""
    weights = Path(registry.location.database).with_name("weights.safetensors")
    for number in range(count):
        save_file({"token": np.full((2, 3), number, dtype=np.float32)}, weights)
        registry.add_version("rex", {"adapter.safetensors": weights})


def test_edit_changes_what_is_given(rex: Registry, run: Run) -> None:
    result = run("edit", "rex", "--category", "puppy", "--notes", "sleeps", "--tag", "old")
    assert result.stdout == "rex (puppy): 3 photos, tags old pets\n"
    assert rex.show("rex").notes == "sleeps"


def test_edit_in_json_is_the_concept(rex: Registry, ask: Ask) -> None:
    assert ask("edit", "rex", "--untag", "pets", "--tag", "old") == ask("show", "rex")
    assert rex.show("rex").tags == ["old"]


def test_a_tag_that_is_not_there_is_told(rex: Registry, run: Run) -> None:
    result = run("edit", "rex", "--untag", "pest", "--untag", "pets")
    assert result.stderr == "warning: rex had no tag pest\n"
    assert rex.show("rex").tags == []


def test_photos_are_captioned_by_name_or_hash(rex: Registry, run: Run) -> None:
    sha256 = rex.show("rex").images[1].sha256
    by_hash = f"{sha256[:8]}=a dog = a friend"
    assert run("edit", "rex", "--caption", "00.png=on a sofa", "--caption", by_hash).exit_code == 0
    captions = [image.caption for image in rex.show("rex").images]
    assert captions == ["on a sofa", "a dog = a friend", None]


def test_empty_texts_take_away(rex: Registry, run: Run) -> None:
    run("edit", "rex", "--notes", "old", "--caption", "00.png=on a sofa")
    run("edit", "rex", "--notes", "", "--caption", "00.png=")
    assert (rex.show("rex").notes, rex.show("rex").images[0].caption) == ("", None)


def test_photos_can_be_taken_out(rex: Registry, run: Run) -> None:
    result = run("edit", "rex", "--remove-image", "00.png", "--remove-image", "02.png")
    assert result.stdout == "rex (dog): 1 photo, tags pets\n"
    assert [image.filename for image in rex.show("rex").images] == ["01.png"]


def test_a_photo_that_is_not_there(rex: Registry, run: Run) -> None:
    result = run("edit", "rex", "--remove-image", "00.png", "--caption", "99.png=x")
    assert result.exit_code == 3
    assert result.stderr == 'error: "rex" has no photo "99.png" -> concept show rex\n'
    assert len(rex.show("rex").images) == 3


def test_rename(rex: Registry, run: Run) -> None:
    result = run("rename", "rex", "max")
    assert result.stdout == "rex is now max\n"
    assert rex.names() == ["max"]


def test_rename_in_json_is_the_concept(rex: Registry, ask: Ask) -> None:
    assert ask("rename", "rex", "max") == ask("show", "max")


@pytest.mark.parametrize("new_name", ["rex", "mia"])
def test_a_taken_name_is_refused_without_advice_to_delete(
    rex: Registry, run: Run, new_name: str
) -> None:
    rex.add("mia", ["photos"], category="cat")
    result = run("rename", "rex", new_name)
    assert result.exit_code == 2
    assert f'"{new_name}" is taken' in result.stderr
    assert " rm " not in result.stderr


def test_rm_says_that_the_files_stay(rex: Registry, run: Run) -> None:
    result = run("rm", "rex", "--yes")
    assert (result.exit_code, result.stdout) == (0, "removed rex\n")
    assert result.stderr == "the files stay until: concept gc\n"
    assert rex.names() == []


def test_rm_in_json_names_each_once(rex: Registry, ask: Ask) -> None:
    rex.add("mia", ["photos"], category="cat")
    assert ask("rm", "rex", "mia", "rex", "--yes") == {"removed": ["rex", "mia"]}


def test_rm_without_a_terminal_wants_yes(rex: Registry, run: Run) -> None:
    result = run("rm", "rex", input="y\n")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "concept rm rex --yes" in result.stderr
    assert rex.names() == ["rex"]


def test_rm_in_json_never_asks(rex: Registry, run: Run) -> None:
    result = run("rm", "rex", "--json")
    assert (result.exit_code, error_of(result)["code"]) == (2, "usage")
    assert rex.names() == ["rex"]


def test_rm_of_several_is_all_or_nothing(rex: Registry, run: Run) -> None:
    result = run("rm", "rex", "mia", "--yes")
    assert result.exit_code == 3
    assert '"mia"' in result.stderr
    assert rex.names() == ["rex"]


def test_rm_of_versions_says_what_the_concept_stands_for(rex: Registry, run: Run) -> None:
    add_versions(rex, 3)
    rex.set_alias("rex", 2, "best")
    result = run("rm", "rex@best", "rex@1", "--yes")
    assert (result.exit_code, result.stdout) == (0, "removed rex@2, rex@1\n")
    assert "<rex> is now rex@3" in result.stderr
    assert [each.number for each in rex.show("rex").versions] == [3]
    assert "rex has no version any more" in run("rm", "rex@3", "--yes").stderr


def test_rm_of_another_version_says_no_more(rex: Registry, run: Run) -> None:
    add_versions(rex, 2)
    assert run("rm", "rex@1", "--yes").stderr == "the files stay until: concept gc\n"


def test_rm_of_a_version_that_is_not_there_removes_nothing(rex: Registry, run: Run) -> None:
    add_versions(rex, 2)
    result = run("rm", "rex@1", "rex@7", "--yes")
    assert (result.exit_code, result.stderr) == (
        3,
        'error: "rex" has no version 7 -> there are 1, 2\n',
    )
    assert len(rex.show("rex").versions) == 2


def test_rm_in_json_names_versions_by_number(rex: Registry, ask: Ask) -> None:
    add_versions(rex, 1)
    rex.set_alias("rex", 1, "best")
    assert ask("rm", "rex@best", "rex@1", "--yes") == {"removed": ["rex@1"]}
    add_versions(rex, 1)
    assert ask("rm", "rex@2", "rex", "--yes") == {"removed": ["rex"]}

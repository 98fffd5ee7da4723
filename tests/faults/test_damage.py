"""Faults 8-11: damaged files, interrupted cleaning, damaged databases. Nothing may get lost."""

import contextlib
import hashlib
import json
import random
import re
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conceptry.registry import Registry, RegistryCorrupt, locate
from drawing import draw, draw_file, draw_folder
from forked import run_forked
from program import change_rows, invoke, make_old, stored_files
from typer.testing import Result


@pytest.fixture(scope="session")
def with_pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos and a registry: rex (3 photos, one with a mask) and mia (1 photo)."""
    folder = tmp_path_factory.mktemp("with_pets")
    (folder / "masks").mkdir()
    draw(1, mode="L").save(folder / "masks/00.png")
    dogs, cat = draw_folder(folder / "photos", 3), draw_file(folder / "cats/mia.png", 30)
    with Registry.open(folder / "registry/concepts.db", create=True) as made:
        made.add("rex", [dogs], category="dog", masks=folder / "masks")
        made.add("mia", [cat], category="cat")
    return folder


@pytest.fixture
def pets(with_pets: Path, tmp_path: Path, database: Path) -> Iterator[Registry]:
    """A registry with the dog rex and the cat mia; their photos are in `photos` and `cats`."""
    shutil.copytree(with_pets, tmp_path, dirs_exist_ok=True)
    with Registry.open(database, timeout=600) as opened:
        yield opened


def concept(registry: Registry, *line: str | Path) -> Result:
    return invoke("--registry", registry.location.database, *line)


def blob(registry: Registry, number: int, name: str = "rex") -> Path:
    return registry.path_of(registry.show(name).images[number].sha256)


def problems(registry: Registry, *options: str) -> list[dict[str, Any]]:
    return json.loads(concept(registry, "check", "--json", *options).stdout)["problems"]


def kinds(registry: Registry, *options: str) -> list[str]:
    return sorted(problem["kind"] for problem in problems(registry, *options))


def contents(database: Path) -> set[bytes]:
    """The bytes of every stored file, whatever it is called."""
    return set(stored_files(database).values())


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


# --- 8: a flipped bit -----------------------------------------------------------------------------


@pytest.fixture
def flipped(pets: Registry) -> Path:
    """A blob of rex in which one bit is not as it was."""
    path = blob(pets, 1)
    flip_bit(path)
    return path


def test_fault_08_check_alone_passes_over_a_flipped_bit(pets: Registry, flipped: Path) -> None:
    assert concept(pets, "check").exit_code == 0


def test_fault_08_read_data_names_hash_and_concept(pets: Registry, flipped: Path) -> None:
    before = stored_files(pets.location.database)
    result = concept(pets, "check", "--read-data")
    assert result.exit_code == 4
    assert f"ERROR: damaged: concepts.blobs/{flipped.parent.name}/{flipped.name}" in result.stdout
    assert "photo 01.png of rex" in result.stdout
    [problem] = problems(pets, "--read-data")
    assert (problem["kind"], problem["sha256"]) == ("damaged", flipped.name)
    assert problem["concepts"] == ["rex"]
    assert stored_files(pets.location.database) == before


def test_fault_08_a_flipped_mask_names_its_photo(pets: Registry) -> None:
    mask = pets.show("rex").images[0].mask
    assert mask is not None
    flip_bit(pets.path_of(mask))
    assert "(mask of 00.png of rex)" in concept(pets, "check", "--read-data").stdout


def test_fault_08_export_refuses(pets: Registry, flipped: Path) -> None:
    result = concept(pets, "export", "rex", "rex.concept")
    assert result.exit_code == 4
    assert flipped.name in result.stderr
    assert not list(Path().glob("*rex.concept*"))
    assert concept(pets, "export", "mia", "mia.concept").exit_code == 0


def test_fault_08_backup_takes_the_others_and_says_so(pets: Registry, flipped: Path) -> None:
    result = concept(pets, "backup", "copy")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "lacks 1 of 5 files" in result.stderr
    assert flipped.name in result.stderr
    with Registry.open("copy") as copy:
        assert kinds(copy, "--read-data") == ["missing"]


def test_fault_08_a_good_backup_is_not_spoilt(pets: Registry) -> None:
    concept(pets, "backup", "copy")
    good = stored_files(Path("copy/concepts.db"))
    flip_bit(blob(pets, 1))
    concept(pets, "backup", "copy")
    assert stored_files(Path("copy/concepts.db")) == good


def test_fault_08_reading_the_photo_refuses(pets: Registry, flipped: Path) -> None:
    with pytest.raises(RegistryCorrupt, match=flipped.name):
        pets.read_photo(pets.show("rex").images[1])


def test_fault_08_nothing_is_deleted(pets: Registry, flipped: Path) -> None:
    before = contents(pets.location.database)
    for line in (
        ["gc", "--grace", "0"],
        ["check", "--read-data", "--repair"],
        ["gc", "--grace", "0"],
    ):
        concept(pets, *line)
    assert contents(pets.location.database) == before
    assert len(pets.show("rex").images) == 3


def test_fault_08_adding_the_photo_again_heals(pets: Registry, flipped: Path) -> None:
    assert concept(pets, "add", "rex", "photos/01.png").exit_code == 0
    assert concept(pets, "check", "--read-data").exit_code == 0


# --- 9: missing, truncated, misnamed, orphan, foreign, temporary ----------------------------------


def lose(registry: Registry) -> None:
    blob(registry, 0).unlink()


def cut(registry: Registry) -> None:
    path = blob(registry, 0)
    path.write_bytes(path.read_bytes()[:-1])


def empty(registry: Registry) -> None:
    blob(registry, 0).write_bytes(b"")


def lengthen(registry: Registry) -> None:
    with blob(registry, 0).open("ab") as file:
        file.write(b"x")


def move_to_another_shard(registry: Registry) -> None:
    path = blob(registry, 0)
    other = path.parent.with_name("00" if path.parent.name != "00" else "01")
    other.mkdir(exist_ok=True)
    path.rename(other / path.name)


def write_in_capitals(registry: Registry) -> None:
    path = blob(registry, 0)
    path.rename(path.with_name(path.name.upper()))


def need_no_more(registry: Registry) -> None:
    registry.edit("rex", remove_images=["02.png"])


def leave_a_note(registry: Registry) -> None:
    blob(registry, 0).with_name("notes.txt").write_text("mine")


def leave_a_note_on_top(registry: Registry) -> None:
    (registry.location.blobs / "notes.txt").write_text("mine")


def leave_a_folder(registry: Registry) -> None:
    draw_file(registry.location.blobs / "holiday" / "beach.png", 40)


def leave_an_old_temporary_file(registry: Registry) -> None:
    path = registry.location.blobs / "tmp" / "4711-0123456789abcdef"
    path.write_bytes(b"half a photo")
    make_old(path)


def leave_a_young_temporary_file(registry: Registry) -> None:
    (registry.location.blobs / "tmp" / "4712-0123456789abcdef").write_bytes(b"half a photo")


Harm = Callable[[Registry], None]
HARM: list[tuple[Harm, list[str], bool]] = [
    (lose, ["missing"], False),
    (cut, ["truncated"], False),
    (empty, ["truncated"], False),
    (lengthen, ["truncated"], False),
    (move_to_another_shard, ["misnamed", "missing"], False),
    (write_in_capitals, ["misnamed", "missing"], False),
    (need_no_more, ["orphan"], True),
    (leave_a_note, ["foreign"], True),
    (leave_a_note_on_top, ["foreign"], True),
    (leave_a_folder, ["foreign"], True),
    (leave_an_old_temporary_file, ["temporary"], True),
    (leave_a_young_temporary_file, [], True),
]


@pytest.mark.parametrize(
    ("harm", "expected", "fine"), HARM, ids=[harm.__name__ for harm, _, _ in HARM]
)
def test_fault_09_each_has_its_own_kind(
    pets: Registry, harm: Harm, expected: list[str], fine: bool
) -> None:
    harm(pets)
    before = stored_files(pets.location.database)
    for options in ([], ["--read-data"]):
        assert concept(pets, "check", *options).exit_code == (0 if fine else 4)
        assert kinds(pets, *options) == expected
    assert stored_files(pets.location.database) == before, "check alone changes nothing"


def test_fault_09_errors_name_photo_and_concept(pets: Registry) -> None:
    cut(pets)
    result = concept(pets, "check")
    assert "has 3,113 bytes instead of 3,114 (photo 00.png of rex)" in result.stdout


def test_fault_09_a_photo_that_two_concepts_need_names_both(pets: Registry) -> None:
    pets.add("max", ["photos/00.png"], category="dog")
    lose(pets)
    [problem] = problems(pets)
    assert problem["concepts"] == ["max", "rex"]


@pytest.mark.parametrize("harm", [move_to_another_shard, write_in_capitals])
def test_fault_09_repair_puts_misnamed_files_in_place(pets: Registry, harm: Harm) -> None:
    before = stored_files(pets.location.database)
    harm(pets)
    result = concept(pets, "check", "--repair")
    assert result.exit_code == 0
    assert result.stdout.count("repaired: ") == 2
    assert stored_files(pets.location.database) == before


def test_fault_09_a_misnamed_file_never_replaces_a_whole_one(pets: Registry) -> None:
    whole = blob(pets, 0)
    impostor = whole.with_name(whole.name.upper())
    impostor.write_bytes(b"not the photo")
    concept(pets, "check", "--repair")
    assert hashlib.sha256(whole.read_bytes()).hexdigest() == whole.name
    assert b"not the photo" in contents(pets.location.database)


def test_fault_09_repair_deletes_old_temporary_files_only(pets: Registry) -> None:
    leave_an_old_temporary_file(pets)
    leave_a_young_temporary_file(pets)
    assert concept(pets, "check", "--repair").exit_code == 0
    assert [path.name[:4] for path in (pets.location.blobs / "tmp").iterdir()] == ["4712"]


def test_fault_09_repair_renews_stale_search_texts(pets: Registry) -> None:
    change_rows(pets.location.database, "UPDATE concept SET search = 'nonsense' WHERE name = 'mia'")
    assert kinds(pets) == ["search"]
    result = concept(pets, "check", "--repair")
    assert result.exit_code == 0
    assert "repaired: search: the search text of mia is out of date" in result.stdout
    assert pets.find(text="mia").total == 1
    assert kinds(pets) == []


@pytest.mark.parametrize("harm", [cut, empty, lengthen, lambda pets: flip_bit(blob(pets, 0))])
def test_fault_09_repair_sets_damaged_files_aside(pets: Registry, harm: Harm) -> None:
    whole = blob(pets, 0).read_bytes()
    harm(pets)
    damaged = blob(pets, 0).read_bytes()
    result = concept(pets, "check", "--read-data", "--repair")
    assert result.exit_code == 4, "the photo is still lost"
    assert "concept check --repair --from" in result.stderr
    [aside] = (pets.location.blobs / "damaged").iterdir()
    assert aside.read_bytes() == damaged
    assert kinds(pets) == ["aside", "missing"]
    assert len(pets.show("rex").images) == 3
    assert concept(pets, "check", "--repair", "--from", "photos").exit_code == 0
    assert blob(pets, 0).read_bytes() == whole


def test_fault_09_one_more_damage_does_not_replace_what_was_set_aside(pets: Registry) -> None:
    for text in (b"first", b"second"):
        blob(pets, 0).write_bytes(text)
        concept(pets, "check", "--repair")
    aside = {path.read_bytes() for path in (pets.location.blobs / "damaged").iterdir()}
    assert aside == {b"first", b"second"}


def test_fault_09_lost_photos_and_masks_come_back_from_a_backup(pets: Registry) -> None:
    concept(pets, "backup", "copy")
    whole = stored_files(pets.location.database)
    for path in pets.location.blobs.glob("??/*"):
        path.unlink()
    result = concept(pets, "check", "--repair", "--from", "copy")
    assert result.exit_code == 0
    assert result.stdout.count("repaired: missing: ") == 5
    assert stored_files(pets.location.database) == whole


def test_fault_09_lost_photos_come_back_from_the_original_photos(pets: Registry) -> None:
    whole = stored_files(pets.location.database)
    originals = Path("pictures/2026")
    shutil.copytree("photos", originals / "dogs")
    (originals / "dogs/00.png").rename(originals / "holiday.jpeg")
    draw_folder(originals / "others", 3, seed=9)
    lose(pets)
    flip_bit(blob(pets, 1))
    result = concept(pets, "check", "--read-data", "--repair", "--from", "pictures")
    assert result.exit_code == 0
    found = stored_files(pets.location.database)
    assert {name: data for name, data in found.items() if "damaged/" not in name} == whole


def test_what_is_looked_through_is_never_whole_in_memory(
    pets: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(pets)
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("it was read whole"))
    assert pets.check(repair=True, look_in=Path("photos")).ok


def test_a_file_that_changes_while_it_is_looked_at_is_not_taken(
    pets: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = pets.show("rex").images[0].sha256
    lose(pets)
    photo = Path("photos/00.png")
    whole = photo.read_bytes()
    changed = bytes(len(whole))
    photo.write_bytes(changed)
    monkeypatch.setattr("conceptry.registry.upkeep.sha256_of", lambda _: lost)
    report = pets.check(repair=True, look_in=Path("photos"))
    assert [each.repaired for each in report.problems] == [False]
    assert changed not in contents(pets.location.database)


def test_fault_09_what_is_not_found_stays_an_error(pets: Registry) -> None:
    lose(pets)
    blob(pets, 0, "mia").unlink()
    result = concept(pets, "check", "--repair", "--from", "cats", "--json")
    assert result.exit_code == 4
    report = json.loads(result.stdout)
    assert {(p["concepts"][0], p["repaired"]) for p in report["problems"]} == {
        ("mia", True),
        ("rex", False),
    }
    assert report["ok"] is False


@pytest.mark.parametrize("harm", [harm for harm, _, _ in HARM], ids=lambda harm: harm.__name__)
def test_fault_09_repair_removes_no_row_and_no_byte(pets: Registry, harm: Harm) -> None:
    harm(pets)
    concepts = [pets.show(name) for name in pets.names()]
    before = contents(pets.location.database)
    concept(pets, "check", "--repair", "--read-data")
    assert [pets.show(name) for name in pets.names()] == concepts
    assert contents(pets.location.database) >= before - {b"half a photo"}


# --- 10: gc dies ----------------------------------------------------------------------------------


def dies_after(deletions: int) -> str:
    """A prelude under which gc is killed when it has deleted so many files."""
    return f"""
import os, signal
from conceptry.registry import upkeep
delete, left = upkeep._delete, [{deletions}]
def count_down(*arguments):
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    delete(*arguments)
upkeep._delete = count_down
"""


@pytest.fixture
def needless(pets: Registry) -> Path:
    """A registry with mia, and 5 files that nothing needs any more."""
    pets.remove(["rex"])
    leave_an_old_temporary_file(pets)
    pets.close()
    return pets.location.database


@pytest.mark.parametrize("deletions", [0, 1, 3])
def test_fault_10_the_next_gc_finishes(needless: Path, deletions: int) -> None:
    line = ("--registry", needless, "gc", "--grace", "0", "--json")
    done = run_forked(*line, prelude=dies_after(deletions))
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")
    assert len(stored_files(needless)) == 6 - deletions
    report = json.loads(invoke(*line).stdout)
    assert report["removed"] + report["temporary"] == 5 - deletions
    assert len(stored_files(needless)) == 1
    assert invoke("--registry", needless, "check", "--read-data").exit_code == 0


@pytest.mark.parametrize("deletions", [1, 3])
def test_fault_10_the_same_photos_can_be_added_again(needless: Path, deletions: int) -> None:
    line = ("--registry", needless, "gc", "--grace", "0")
    run_forked(*line, prelude=dies_after(deletions))
    again = invoke("--registry", needless, "add", "rex", "photos", "-c", "dog")
    assert again.stdout == "rex (dog): 3 photos added, 3 in all\n"
    assert invoke(*line).exit_code == 0
    assert invoke("--registry", needless, "check", "--read-data").exit_code == 0


# --- 11: the database -----------------------------------------------------------------------------


def scribble(data: bytes, *, first_page: int) -> bytes:
    """Random bytes over every page from `first_page` on."""
    kept = first_page * 4096
    return data[:kept] + random.Random(0).randbytes(len(data) - kept)


def a_database_of_others(_: bytes) -> bytes:
    with contextlib.closing(sqlite3.connect("others.db")) as connection:
        connection.execute("CREATE TABLE photo (name TEXT)")
    return Path("others.db").read_bytes()


Damage = Callable[[bytes], bytes]
DESTROYED: dict[str, Damage] = {
    "header": lambda data: random.Random(1).randbytes(100) + data[100:],
    "every-page": lambda data: scribble(data, first_page=0),
    "all-but-the-first-page": lambda data: scribble(data, first_page=1),
    "half": lambda data: data[: len(data) // 2],
    "one-page": lambda data: data[:4096],
    "stump": lambda data: data[:50],
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "text": lambda data: b"my concepts\n" * 500,
    "schema-is-not-utf8": lambda data: data.replace(b"ON image (mask)", b"ON imag\xff (mask)"),
    "somebody-elses": a_database_of_others,
}
COMMANDS = [
    ["gc", "--grace", "0"],
    ["check"],
    ["check", "--repair", "--read-data"],
    ["list"],
    ["add", "rex", "photos"],
    ["add", "leo", "photos", "--category", "lion"],
]


@pytest.fixture
def with_orphans(pets: Registry) -> Path:
    """A registry with photos, and with old blobs that nothing needs: gc has something to do."""
    pets.edit("rex", remove_images=["00.png"])
    pets.edit("mia", notes="likes fish")
    pets.close()
    for path in pets.location.blobs.glob("??/*"):
        make_old(path)
    return pets.location.database


def assert_clear_error(result: Result, database: Path) -> None:
    assert result.exit_code == 4, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert str(database) in result.stderr
    assert " -> " in result.stderr


@pytest.mark.parametrize("damage", DESTROYED.values(), ids=DESTROYED)
def test_fault_11_a_destroyed_database_deletes_nothing(with_orphans: Path, damage: Damage) -> None:
    with_orphans.write_bytes(damage(with_orphans.read_bytes()))
    database, files = with_orphans.read_bytes(), stored_files(with_orphans)
    for line in COMMANDS:
        result = invoke("--registry", with_orphans, *line)
        assert stored_files(with_orphans) == files, line
        assert with_orphans.read_bytes() == database, line
        if line[0] == "check" and result.stdout:
            assert result.exit_code == 4
            assert "ERROR: database: " in result.stdout
        else:
            assert_clear_error(result, with_orphans)


def test_fault_11_a_missing_database_deletes_nothing(with_orphans: Path) -> None:
    with_orphans.unlink()
    files = stored_files(with_orphans)
    for line in COMMANDS:
        assert_clear_error(invoke("--registry", with_orphans, *line), with_orphans)
        assert stored_files(with_orphans) == files
        assert not with_orphans.exists()


def test_fault_11_a_missing_database_without_files_is_no_registry(with_orphans: Path) -> None:
    with_orphans.unlink()
    shutil.rmtree(locate(with_orphans).blobs)
    for line in COMMANDS[:4]:
        result = invoke("--registry", with_orphans, *line)
        assert result.exit_code == 3
        assert f"there is no registry at {with_orphans}" in result.stderr
    assert invoke("--registry", with_orphans, *COMMANDS[-1]).exit_code == 0


WOUNDED: dict[str, Damage] = {
    "notes-are-not-utf8": lambda data: data.replace(b"likes fish", b"likes \xffish"),
    "moments-are-not-utf8": lambda data: re.sub(rb"T(?=\d\d:\d\d:)", b"\xff", data),
    "history-is-not-json": lambda data: data.replace(b'{"category"', b'x"category"'),
}
EVERYTHING = [
    *COMMANDS,
    ["show", "rex"],
    ["history"],
    ["rename", "mia", "mo"],
    ["export", "rex", "rex.concept", "--force"],
    ["backup", "copy"],
    ["rm", "rex", "--yes"],
]


@pytest.mark.parametrize("damage", WOUNDED.values(), ids=WOUNDED)
def test_fault_11_a_wounded_database_is_no_bug(with_orphans: Path, damage: Damage) -> None:
    whole = with_orphans.read_bytes()
    wounded = damage(whole)
    assert wounded != whole
    for line in EVERYTHING:
        with_orphans.write_bytes(wounded)
        result = invoke("--registry", with_orphans, *line)
        assert result.exit_code in (0, 4), f"{line}: {result.stderr}"


@pytest.mark.parametrize("damage", WOUNDED.values(), ids=WOUNDED)
def test_fault_11_check_finds_what_other_commands_stumble_over(
    with_orphans: Path, damage: Damage
) -> None:
    with_orphans.write_bytes(damage(with_orphans.read_bytes()))
    check = invoke("--registry", with_orphans, "check")
    assert check.exit_code == 4
    assert "database" in check.output


def test_fault_11_any_page_may_be_damaged(with_orphans: Path) -> None:
    whole, files = with_orphans.read_bytes(), stored_files(with_orphans)
    for page in range(len(whole) // 4096):
        noise = random.Random(page).randbytes(4096)
        with_orphans.write_bytes(whole[: page * 4096] + noise + whole[(page + 1) * 4096 :])
        for line in (["list"], ["show", "rex"], ["history"], ["gc", "--grace", "0"]):
            result = invoke("--registry", with_orphans, *line)
            assert result.exit_code in (0, 4), f"page {page}, {line}: {result.stderr}"
        assert invoke("--registry", with_orphans, "check").exit_code == 4, f"page {page}"
        assert stored_files(with_orphans) == files, f"page {page}"

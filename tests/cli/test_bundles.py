"""`concept export` and `concept import`."""

from pathlib import Path

import pytest
from conceptry.registry import Registry
from program import Ask, Run, invoke


def test_there_and_back(trained: Registry, run: Run, ask: Ask) -> None:
    before = ask("show", "rex")
    result = run("export", "rex", "rex.concept")
    assert result.stdout.startswith("wrote rex (4 files, ")
    assert result.stdout.endswith(" to rex.concept\n")
    run("rm", "rex", "--yes")
    assert run("import", "rex.concept").stdout == "imported rex (dog): 3 photos, 1 version\n"
    of_this_registry = {"updated": "", "id": 0}
    assert ask("show", "rex") | of_this_registry == before | of_this_registry


def test_export_in_json(rex: Registry, ask: Ask) -> None:
    done = ask("export", "rex", "rex.concept")
    assert done == {
        "path": "rex.concept",
        "concepts": ["rex"],
        "blobs": 3,
        "bytes": Path("rex.concept").stat().st_size,
    }


def test_import_in_json(rex: Registry, ask: Ask) -> None:
    ask("export", "rex", "rex.concept")
    [taken] = ask("import", "rex.concept", "--as", "max")["concepts"]
    assert taken == ask("show", "max")


def test_into_another_registry(rex: Registry, run: Run, tmp_path: Path) -> None:
    rex.add("mia", ["photos/00.png"], category="cat")
    run("export", "rex", "mia", "pets.concept")
    result = invoke("--registry", "second/concepts.db", "import", "pets.concept")
    assert result.exit_code == 0
    with Registry.open(tmp_path / "second") as second:
        assert second.names() == ["mia", "rex"]


def test_import_refuses_a_taken_name_and_offers_another(rex: Registry, run: Run) -> None:
    run("export", "rex", "rex.concept")
    result = run("import", "rex.concept")
    assert result.exit_code == 2
    assert result.stderr == 'error: "rex" is taken -> concept import rex.concept --as NAME\n'


def test_export_keeps_a_file_that_exists(rex: Registry, run: Run) -> None:
    Path("rex.concept").write_text("mine")
    result = run("export", "rex", "rex.concept")
    assert result.exit_code == 2
    assert "concept export rex rex.concept --force" in result.stderr
    assert Path("rex.concept").read_text() == "mine"
    assert run("export", "rex", "rex.concept", "--force").exit_code == 0


def test_export_to_a_folder_does_not_offer_force(rex: Registry, run: Run) -> None:
    result = run("export", "rex", "photos")
    assert result.exit_code == 2
    assert "photos is a folder" in result.stderr
    assert "--force" not in result.stderr


@pytest.mark.parametrize("place", ["nowhere/rex.concept", "photos/00.png/rex.concept"])
def test_export_to_no_folder_is_no_bug(rex: Registry, run: Run, place: str) -> None:
    result = run("export", "rex", place)
    assert result.exit_code in (2, 3, 4)
    assert place in result.stderr


@pytest.mark.parametrize(
    ("words", "instead"),
    [
        (["mia"], "rex mia FILE.concept"),
        (["rex@1"], "rex rex@1 FILE.concept"),
        (["mia", "--format", "diffusers"], "rex mia FILE --format diffusers"),
        (["mia@1", "--format", "diff"], "rex mia@1 FILE --format diff"),
    ],
    ids=["another", "its version", "a folder", "a version"],
)
def test_a_forgotten_file_is_told(rex: Registry, run: Run, words: list[str], instead: str) -> None:
    rex.add("mia", ["photos/00.png"], category="cat")
    result = run("export", "rex", *words)
    name = words[0]
    assert (result.exit_code, result.stderr) == (
        2,
        f'error: "{name}" is a concept, not a file to write -> name the file last: '
        f"concept export {instead}\n",
    )
    assert not Path(name).exists()
    for path in (f"./{name}", "rex"):
        assert run("export", "rex", path).exit_code == 0, "a path, or what is exported"


def test_export_of_an_unknown_concept_writes_nothing(rex: Registry, run: Run) -> None:
    assert run("export", "rex", "mia", "pets.concept").exit_code == 3
    assert not Path("pets.concept").exists()


def test_import_of_no_file(run: Run, database: Path) -> None:
    result = run("import", "nothing.concept")
    assert (result.exit_code, result.stderr) == (
        3,
        "error: nothing.concept does not exist -> ls .\n",
    )
    assert not database.exists(), "a command that did nothing made a registry"


def test_import_of_something_else(rex: Registry, run: Run) -> None:
    result = run("import", "photos/00.png")
    assert result.exit_code == 2
    assert "photos/00.png is not a sound bundle" in result.stderr

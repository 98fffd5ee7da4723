"""Where a registry is found, and that it can be moved."""

from pathlib import Path

import platformdirs
import pytest
from conceptry.registry import InvalidInput, Registry, locate
from drawing import draw_file, draw_folder, draw_masks
from fake_training import train
from snapshot import rows_of

SMALL = (64, 64)
USERS = Path("home/data/conceptry/concepts.db")


def found(path: str | Path | None = None) -> Path:
    location = locate(path)
    assert location.database.is_absolute()
    return location.database


def test_a_named_registry_goes_before_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONCEPT_REGISTRY", "from-variable.db")
    Path("concepts.db").touch()
    assert found("named.db") == tmp_path / "named.db"


def test_the_variable_goes_before_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONCEPT_REGISTRY", "from-variable.db")
    Path("concepts.db").touch()
    assert found() == tmp_path / "from-variable.db"


def test_the_current_folder_goes_before_the_users(tmp_path: Path) -> None:
    Path("concepts.db").touch()
    assert found() == tmp_path / "concepts.db"


def test_else_it_is_in_the_users_data_folder() -> None:
    folder = Path(platformdirs.user_data_dir("conceptry", appauthor=False))
    assert found() == folder / "concepts.db"


def test_an_empty_variable_counts_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONCEPT_REGISTRY", "")
    Path("concepts.db").touch()
    assert found() == tmp_path / "concepts.db"


def test_a_folder_stands_for_the_registry_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("pets").mkdir()
    assert found("pets") == tmp_path / "pets/concepts.db"
    monkeypatch.setenv("CONCEPT_REGISTRY", "pets")
    assert found() == tmp_path / "pets/concepts.db"


def test_a_slash_at_the_end_means_a_folder(tmp_path: Path) -> None:
    assert found("not-yet/") == tmp_path / "not-yet/concepts.db"


def test_a_home_folder_is_expanded(tmp_path: Path) -> None:
    assert found("~/pets.db") == tmp_path / "home/pets.db"


def test_blobs_are_beside_the_database(tmp_path: Path) -> None:
    assert locate("concepts.db").blobs == tmp_path / "concepts.blobs"
    assert locate("my.pets.db").blobs == tmp_path / "my.pets.blobs"


def blobs_unless_refused(name: str) -> Path | None:
    try:
        return locate(name).blobs
    except InvalidInput:
        return None


@pytest.mark.parametrize("other", ["pets.sqlite", "pets", "pets.backup"])
def test_two_registries_never_share_their_blobs(other: str) -> None:
    assert blobs_unless_refused(other) != locate("pets.db").blobs


def test_blobs_are_never_where_the_database_is(tmp_path: Path) -> None:
    assert blobs_unless_refused("pets.blobs") != tmp_path / "pets.blobs"


def test_a_new_registry_is_made_with_its_folders(tmp_path: Path) -> None:
    with Registry.open(tmp_path / "a/b/pets.db", create=True) as registry:
        assert registry.location.database == tmp_path / "a/b/pets.db"
        assert registry.names() == []
    assert (tmp_path / "a/b/pets.db").is_file()


# --- moving -------------------------------------------------------------------------------------


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """The database of a closed registry with everything in it."""
    photos = draw_folder(tmp_path / "photos", 2, size=SMALL)
    masks = draw_masks(tmp_path / "masks", 2, size=SMALL)
    with Registry.open(tmp_path / "first/pets.db", create=True) as registry:
        registry.add("rex", [photos], category="dog", caption="a dog", masks=masks)
        train(registry, "rex", tmp_path)
        registry.export_bundle(["rex"], tmp_path / "rex.concept")
        registry.import_bundle(tmp_path / "rex.concept", name="max")
        registry.backup(tmp_path / "backup")
        return registry.location.database


def move(database: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    database.with_suffix(".blobs").rename(target.with_suffix(".blobs"))
    return database.rename(target)


@pytest.mark.parametrize("target", ["second/pets.db", "first/renamed.db", "größer & so/ä b.db"])
def test_a_moved_registry_works(pets: Path, tmp_path: Path, target: str) -> None:
    with Registry.open(pets) as registry:
        before = registry.show("rex")
    with Registry.open(move(pets, tmp_path / target)) as registry:
        assert registry.show("rex") == before
        assert registry.check(read_data=True).problems == []
        assert registry.read_photo(before.images[0]).size == SMALL
        assert registry.read_mask(before.images[0]) is not None
        registry.add("rex", [draw_file(tmp_path / "new.png", 9, SMALL)])
        registry.backup(tmp_path / "another")
        registry.export_bundle(["rex"], tmp_path / "rex2.concept")
        assert registry.gc(grace=0).removed == 0


def test_a_moved_registry_leaves_nothing_behind(pets: Path, tmp_path: Path) -> None:
    with Registry.open(move(pets, tmp_path / "second/pets.db")) as registry:
        registry.add("rex", [draw_file(tmp_path / "new.png", 9, SMALL)])
    assert list((tmp_path / "first").iterdir()) == []


def test_a_registry_named_relatively_survives_a_change_of_folder(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pets.parent)
    with Registry.open("pets.db") as registry:
        monkeypatch.chdir("/")
        assert registry.check(read_data=True).ok
        registry.add("rex", [draw_file(tmp_path / "new.png", 9, SMALL)])
        assert registry.check(read_data=True).problems == []


def test_no_table_holds_a_path(pets: Path, tmp_path: Path) -> None:
    everything = repr(rows_of(pets))
    assert "rex" in everything
    assert str(tmp_path) not in everything
    assert "/tmp" not in everything
    assert "pets." not in everything

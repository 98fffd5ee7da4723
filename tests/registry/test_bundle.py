"""Concepts as one file, and back. Hostile files: `tests/faults/test_hostile.py`."""

import contextlib
import dataclasses
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bundles import pack, unpack
from conceptry.registry import (
    AlreadyExists,
    ConceptNotFound,
    InvalidBundle,
    InvalidInput,
    NotFound,
    Registry,
    RegistryCorrupt,
    images,
)
from copies import copied
from drawing import draw_file, draw_folder, draw_masks
from fake_training import begin, train, weights_file
from snapshot import files_below, rows_of

SMALL = (64, 64)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a registry of two concepts: rex with everything, mia with a photo."""
    folder = tmp_path_factory.mktemp("made")
    photos = draw_folder(folder / "photos", 3, size=SMALL)
    (photos / "01.txt").write_text("größer, am Strand\nzweite Zeile")
    masks = draw_masks(folder / "masks", 2, size=SMALL)
    with Registry.open(folder / "registry/concepts.db", create=True) as registry:
        registry.add(
            "rex",
            [photos],
            category="teddy bear",
            tags=["pets", "old"],
            notes="bites\nßé",
            masks=masks,
        )
        for seed in (1, 2):
            train(registry, "rex", folder, seed=seed)
        weights = weights_file(folder / "w", 9)
        registry.add_version("rex", {"by-hand.safetensors": weights}, kind="lora")
        registry.set_alias("rex", 3, "hand-made")
        registry.end_run(begin(registry, "rex"), "failed", error="NaN in step 3")
        registry.add("mia", [photos / "00.png"], category="cat")
    return folder


@pytest.fixture
def pets(made: Path, tmp_path: Path) -> Iterator[Registry]:
    """The registry of a copy of it."""
    with copied(made, tmp_path) as registry:
        yield registry


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Registry]:
    """An empty registry on another machine, as it were."""
    with Registry.open(tmp_path / "elsewhere/concepts.db", create=True) as opened:
        yield opened


@pytest.fixture
def bundle(pets: Registry, tmp_path: Path) -> Path:
    pets.export_bundle(["rex"], tmp_path / "rex.concept")
    return tmp_path / "rex.concept"


def told(registry: Registry, name: str) -> dict[str, Any]:
    """All that is known of a concept, but its id and the moment of its last change."""
    concept = dataclasses.asdict(registry.show(name))
    del concept["id"], concept["updated"]
    return concept


def details(registry: Registry) -> dict[str, list[tuple[Any, ...]]]:
    """What `show` does not tell, without row ids."""
    rows = rows_of(registry.location.database)
    return {
        "metric": sorted(row[1:] for row in rows["metric"]),
        "run_image": sorted(row[1:] for row in rows["run_image"]),
        "evaluation": sorted(row[2:] for row in rows["evaluation"]),
    }


def state(registry: Registry) -> tuple[object, object]:
    return files_below(registry.location.database.parent), rows_of(registry.location.database)


# --- there and back -----------------------------------------------------------------------------


def test_a_round_trip_keeps_everything(pets: Registry, bundle: Path) -> None:
    before, hidden = told(pets, "rex"), details(pets)
    pets.remove(["rex"])
    (concept,) = pets.import_bundle(bundle)
    assert told(pets, "rex") == before
    assert concept == pets.show("rex")
    assert details(pets) == hidden
    assert pets.check(read_data=True).problems == []


def test_a_concept_is_the_same_elsewhere(pets: Registry, elsewhere: Registry, bundle: Path) -> None:
    elsewhere.import_bundle(bundle)
    assert told(elsewhere, "rex") == told(pets, "rex")
    for here, there in zip(pets.show("rex").images, elsewhere.show("rex").images, strict=True):
        assert pets.read_photo(here).tobytes() == elsewhere.read_photo(there).tobytes()
        for image, registry in ((here, pets), (there, elsewhere)):
            assert (registry.read_mask(image) is None) == (image.filename == "02.png")


def test_equal_concepts_make_equal_files(
    pets: Registry, elsewhere: Registry, bundle: Path, tmp_path: Path
) -> None:
    pets.export_bundle(["rex"], tmp_path / "again.concept")
    elsewhere.import_bundle(bundle)
    elsewhere.export_bundle(["rex"], tmp_path / "back.concept")
    assert (tmp_path / "again.concept").read_bytes() == bundle.read_bytes()
    assert (tmp_path / "back.concept").read_bytes() == bundle.read_bytes()


def test_a_removed_number_is_not_given_again_elsewhere(
    pets: Registry, elsewhere: Registry, bundle: Path, tmp_path: Path
) -> None:
    assert "last_number" not in unpack(bundle).concept
    last = train(pets, "rex", tmp_path, seed=9)
    pets.remove([f"rex@{last}"])
    for path in (tmp_path / "there.concept", tmp_path / "back.concept"):
        pets.export_bundle(["rex"], path)
        assert unpack(path).concept["last_number"] == last
        pets.remove(["rex"])
        pets.import_bundle(path)
    elsewhere.import_bundle(tmp_path / "back.concept")
    assert train(elsewhere, "rex", tmp_path, seed=9) == last + 1


def test_an_infinite_metric_survives(pets: Registry, elsewhere: Registry, tmp_path: Path) -> None:
    values = [float("inf"), float("-inf"), 1e308, 5e-324, -0.0]
    run = begin(pets, "mia")
    pets.log_metrics(run, [("one", step, "loss", value) for step, value in enumerate(values)])
    pets.export_bundle(["mia"], tmp_path / "mia.concept")
    elsewhere.import_bundle(tmp_path / "mia.concept")
    assert [row[3] for row in details(elsewhere)["metric"]] == values


def test_what_a_version_was_made_of_survives(
    pets: Registry, elsewhere: Registry, tmp_path: Path
) -> None:
    weights = {"w": weights_file(tmp_path / "w")}
    pets.add_version("mia", weights)
    pets.export_bundle(["mia"], tmp_path / "plain.concept")
    assert "origin" not in unpack(tmp_path / "plain.concept").concept["versions"][0]
    made = {"compressed_from": 1, "to": "svd:2"}
    pets.add_version("mia", weights, origin=made)
    pets.add_version("mia", weights, origin={"compressed_from": "odd"})
    pets.export_bundle(["mia"], tmp_path / "mia.concept")
    elsewhere.import_bundle(tmp_path / "mia.concept")
    assert [each.origin for each in elsewhere.show("mia").versions] == [{}, made, {}]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_survives_or_is_refused(
    pets: Registry, elsewhere: Registry, tmp_path: Path, value: float
) -> None:
    pets.add_version("mia", {"w": weights_file(tmp_path / "w")})
    try:
        pets.add_evaluation("mia", 1, suite="s", config={}, scores={"clip": value})
    except InvalidInput:
        return
    pets.export_bundle(["mia"], tmp_path / "mia.concept")
    elsewhere.import_bundle(tmp_path / "mia.concept")
    scores = [row[4] for row in rows_of(pets.location.database)["evaluation"]]
    assert [row[2] for row in details(elsewhere)["evaluation"]] == scores[-1:]


@pytest.mark.parametrize(
    "error", ["one\ntwo\r\n\tthree", "\x1b[31mred\x1b[0m", "a\0b", "\udcff", "x" * 20_000]
)
def test_whatever_a_run_ended_with_survives_as_it_is_shown(
    pets: Registry, elsewhere: Registry, tmp_path: Path, error: str
) -> None:
    pets.end_run(begin(pets, "mia"), "failed", error=error)
    pets.export_bundle(["mia"], tmp_path / "mia.concept")
    elsewhere.import_bundle(tmp_path / "mia.concept")
    assert told(elsewhere, "mia") == told(pets, "mia")


@pytest.mark.parametrize("word", ["", " a ", "a\nb", "a\x1b[0m\0", "\udcff", "x" * 9_999 + " yz"])
def test_whatever_a_program_calls_things_survives_or_is_refused(
    pets: Registry, elsewhere: Registry, tmp_path: Path, word: str
) -> None:
    facts: dict[str, Any] = {"config": {}, "seed": 1, "packages": {word: word}}
    with contextlib.suppress(InvalidInput):
        run = pets.begin_run("mia", method=word, base=word, base_sha256=word, **facts)
        with contextlib.suppress(InvalidInput):
            pets.log_metrics(run, [(word, 1, word, 0.5)])
    with contextlib.suppress(InvalidInput):
        pets.add_version("mia", {word: tmp_path / "w"}, kind=word)
    with contextlib.suppress(InvalidInput, NotFound):
        pets.add_evaluation("mia", 1, suite=word, config={word: word}, scores={word: word})
    pets.export_bundle(["mia"], tmp_path / "mia.concept")
    elsewhere.import_bundle(tmp_path / "mia.concept")
    assert told(elsewhere, "mia") == told(pets, "mia")


@pytest.mark.parametrize(
    "filename", [" a.png", "a\N{IDEOGRAPHIC SPACE}b.png", "a\nb.png", "a\\b.png"]
)
def test_a_file_name_survives(
    pets: Registry, elsewhere: Registry, tmp_path: Path, filename: str
) -> None:
    pets.add("odd", [draw_file(tmp_path / "odd" / filename, 9, SMALL)], category="dog")
    pets.export_bundle(["odd"], tmp_path / "odd.concept")
    elsewhere.import_bundle(tmp_path / "odd.concept")
    assert told(elsewhere, "odd") == told(pets, "odd")


def test_a_bundle_is_what_its_description_says(bundle: Path, pets: Registry) -> None:
    with zipfile.ZipFile(bundle) as opened:
        assert opened.testzip() is None
        names = opened.namelist()
        assert {info.compress_type for info in opened.infolist()} == {zipfile.ZIP_STORED}
    assert names[0] == "manifest.json"
    assert all(re.fullmatch("blobs/[0-9a-f]{64}", name) for name in names[1:])
    assert names[1:] == sorted(names[1:])


def test_a_report_tells_what_was_written(pets: Registry, tmp_path: Path) -> None:
    path = tmp_path / "both.concept"
    report = pets.export_bundle(["rex", "mia", "rex"], path)
    assert (report.path, report.concepts) == (str(path), ["rex", "mia"])
    assert report.bytes == path.stat().st_size
    assert report.blobs == len(unpack(path).blobs) == 3 + 2 + 3


def test_a_bundle_packed_by_hand_is_accepted(
    bundle: Path, elsewhere: Registry, tmp_path: Path
) -> None:
    parts = unpack(bundle)
    packed = pack(tmp_path / "packed.concept", parts.manifest, parts.blobs)
    assert [concept.name for concept in elsewhere.import_bundle(packed)] == ["rex"]


def test_what_is_imported_can_be_found(bundle: Path, elsewhere: Registry) -> None:
    elsewhere.import_bundle(bundle)
    assert [concept.name for concept in elsewhere.find(text="STRAND old teddy").concepts] == ["rex"]


def test_importing_is_in_the_history(bundle: Path, elsewhere: Registry) -> None:
    (concept,) = elsewhere.import_bundle(bundle)
    (event,) = elsewhere.history("rex")
    assert event.action == "import"
    assert event.detail == {"images": [image.sha256 for image in concept.images]}


# --- names --------------------------------------------------------------------------------------


def test_a_single_concept_can_take_another_name(pets: Registry, bundle: Path) -> None:
    (concept,) = pets.import_bundle(bundle, name="max")
    expected, found = told(pets, "rex"), told(pets, "max")
    runs = dict(zip((run["run"] for run in expected["runs"]), found["runs"], strict=True))
    for run in expected["runs"]:
        run["run"] = runs[run["run"]]["run"]
    for version in expected["versions"]:
        version["run"] = version["run"] and runs[version["run"]]["run"]
    assert found == {**expected, "name": "max"}
    assert concept.name == "max"
    assert [c.name for c in pets.find(text="max").concepts] == ["max"]


def test_runs_of_a_copy_are_its_own(pets: Registry, bundle: Path) -> None:
    pets.import_bundle(bundle, name="max")
    runs = [run.run for name in ("rex", "max") for run in pets.show(name).runs]
    assert len(set(runs)) == len(runs) == 6
    pets.remove(["rex"])
    assert len(pets.show("max").runs) == 3


@pytest.mark.parametrize("name", ["Max", "", "../max", "a" * 65])
def test_another_name_keeps_to_the_rules(elsewhere: Registry, bundle: Path, name: str) -> None:
    before = state(elsewhere)
    with pytest.raises(InvalidInput):
        elsewhere.import_bundle(bundle, name=name)
    assert state(elsewhere) == before


def test_only_a_single_concept_can_take_another_name(pets: Registry, tmp_path: Path) -> None:
    pets.export_bundle(["rex", "mia"], tmp_path / "both.concept")
    pets.remove(["rex", "mia"])
    with pytest.raises(InvalidInput, match="holds 2 concepts; only one can be renamed"):
        pets.import_bundle(tmp_path / "both.concept", name="max")
    assert pets.names() == []


def test_a_taken_name_is_refused(pets: Registry, bundle: Path) -> None:
    before = state(pets)
    with pytest.raises(AlreadyExists, match='"rex" is taken') as caught:
        pets.import_bundle(bundle)
    assert caught.value.hint == f"concept import {bundle} --as NAME"
    with pytest.raises(AlreadyExists, match='"mia" is taken'):
        pets.import_bundle(bundle, name="mia")
    assert state(pets) == before


def test_all_concepts_come_in_or_none(pets: Registry, elsewhere: Registry, tmp_path: Path) -> None:
    path = tmp_path / "both.concept"
    pets.export_bundle(["rex", "mia"], path)
    elsewhere.add("mia", [draw_file(tmp_path / "other.png", 9, SMALL)], category="car")
    before = state(elsewhere)
    with pytest.raises(AlreadyExists, match='"mia" is taken') as caught:
        elsewhere.import_bundle(path)
    assert caught.value.hint == "concept rename mia NAME"
    assert state(elsewhere) == before
    elsewhere.rename("mia", "car")
    assert [concept.name for concept in elsewhere.import_bundle(path)] == ["rex", "mia"]
    assert elsewhere.names() == ["car", "mia", "rex"]
    assert elsewhere.check(read_data=True).ok


def test_a_failure_at_the_last_moment_leaves_nothing(
    elsewhere: Registry, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere.add("first", [bundle.with_name("photos") / "00.png"], category="dog")
    before = state(elsewhere)
    monkeypatch.setattr("conceptry.registry.bundle.refresh", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        elsewhere.import_bundle(bundle)
    files = {
        path for path, what in files_below(elsewhere.location.blobs).items() if what != "folder"
    }
    shared = {image.sha256 for image in elsewhere.show("first").images}
    assert {Path(path).name for path in files} == {*shared, "lock", "stamp"}
    assert rows_of(elsewhere.location.database) == before[1]


# --- writing the file ---------------------------------------------------------------------------


def test_a_file_that_exists_is_kept(pets: Registry, bundle: Path) -> None:
    before = bundle.read_bytes()
    with pytest.raises(AlreadyExists, match=re.escape(str(bundle))) as caught:
        pets.export_bundle(["mia"], bundle)
    assert caught.value.hint == f"concept export mia {bundle} --force"
    assert bundle.read_bytes() == before
    pets.export_bundle(["mia"], bundle, overwrite=True)
    assert unpack(bundle).concept["name"] == "mia"


def test_a_folder_is_never_replaced(pets: Registry, tmp_path: Path) -> None:
    with pytest.raises(AlreadyExists):
        pets.export_bundle(["mia"], tmp_path / "photos", overwrite=True)
    assert len(list((tmp_path / "photos").iterdir())) == 4


def test_an_unknown_concept_writes_no_file(pets: Registry, tmp_path: Path) -> None:
    before = files_below(tmp_path)
    with pytest.raises(ConceptNotFound, match="mio"):
        pets.export_bundle(["rex", "mio"], tmp_path / "new.concept")
    assert files_below(tmp_path) == before


def test_no_concept_at_all_is_refused(pets: Registry, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        pets.export_bundle([], tmp_path / "new.concept")
    assert not (tmp_path / "new.concept").exists()


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_damaged_photo_keeps_the_former_file(pets: Registry, bundle: Path, damage: str) -> None:
    blob = pets.path_of(pets.show("rex").images[0].sha256)
    if damage == "missing":
        blob.unlink()
    else:
        blob.write_bytes(b"x" * blob.stat().st_size)
    before = files_below(bundle.parent)
    with pytest.raises(RegistryCorrupt, match=blob.name):
        pets.export_bundle(["rex"], bundle, overwrite=True)
    assert files_below(bundle.parent) == before


def test_a_folder_that_does_not_exist_is_named(pets: Registry, tmp_path: Path) -> None:
    with pytest.raises((NotFound, InvalidInput), match="gone"):
        pets.export_bundle(["rex"], tmp_path / "gone/rex.concept")


# --- reading it ---------------------------------------------------------------------------------


def test_a_missing_file_is_named(pets: Registry, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"gone\.concept does not exist"):
        pets.import_bundle(tmp_path / "gone.concept")


def test_a_folder_is_no_bundle(pets: Registry, tmp_path: Path) -> None:
    with pytest.raises(InvalidBundle, match="photos"):
        pets.import_bundle(tmp_path / "photos")


def test_photos_that_are_there_already_are_shared(pets: Registry, bundle: Path) -> None:
    blobs = pets.check().blobs
    pets.import_bundle(bundle, name="max")
    assert pets.check(read_data=True).blobs == blobs


def test_a_lost_photo_comes_back_with_a_bundle(pets: Registry, bundle: Path) -> None:
    blob = pets.path_of(pets.show("rex").images[0].sha256)
    original = blob.read_bytes()
    blob.write_bytes(b"damaged")
    pets.import_bundle(bundle, name="max")
    assert blob.read_bytes() == original
    assert pets.check(read_data=True).ok


def test_row_37_a_photo_that_concepts_share_is_decoded_once(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = draw_folder(tmp_path / "one", 1, size=SMALL)
    for name in ("ann", "bob", "cid"):
        registry.add(name, [photo], category="cat")
    registry.export_bundle(["ann", "bob", "cid"], tmp_path / "all.concept")
    registry.remove(["ann", "bob", "cid"])
    inspected: list[str] = []
    inspect = images.inspect
    monkeypatch.setattr(
        images, "inspect", lambda data, name: (inspected.append(name), inspect(data, name))[1]
    )
    registry.import_bundle(tmp_path / "all.concept")
    assert len(inspected) == 1

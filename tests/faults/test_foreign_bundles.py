"""Bundles that are sound in form and mean harm all the same, and what is believed of an import."""

import json
import struct
import threading
import zlib
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from sqlite3 import SQLITE_LIMIT_LENGTH

import pytest
from bundles import Parts, pack, unpack
from conceptry.registry import InvalidBundle, InvalidInput, Registry, StorageError
from conceptry.registry import bundle as module
from conceptry.registry.database import translated
from conceptry.registry.lineage import MAX_VERSION
from conceptry.registry.names import MAX_FILE_NAME
from conceptry.registry.queries import fold, search_text
from drawing import draw_bytes, draw_file
from fake_training import begin, train
from program import invoke
from snapshot import rows_of
from typer.testing import Result

SMALL = (64, 64)


@pytest.fixture
def source(tmp_path: Path) -> Registry:
    """Where a stranger's concept comes from: rex, with a version."""
    with Registry.open(tmp_path / "source/concepts.db", create=True) as registry:
        registry.add("rex", [draw_file(tmp_path / "a.png", 1, SMALL)], category="dog")
        train(registry, "rex", tmp_path)
        registry.export_bundle(["rex"], tmp_path / "rex.concept")
        return registry


@pytest.fixture
def parts(source: Registry, tmp_path: Path) -> Parts:
    """The parts of its bundle, to be changed."""
    del source
    return unpack(tmp_path / "rex.concept")


def packed(tmp_path: Path, parts: Parts) -> Path:
    return pack(tmp_path / "hostile.concept", parts.manifest, parts.blobs)


def refused(registry: Registry, path: Path) -> str:
    """The message; nothing came in, not even for a moment."""
    with pytest.raises(InvalidBundle) as caught:
        registry.import_bundle(path)
    assert registry.names() == []
    assert not any(registry.location.blobs.glob("??/*"))
    return caught.value.message


def test_a_version_has_each_file_once(registry: Registry, parts: Parts, tmp_path: Path) -> None:
    (version,) = parts.manifest["concepts"][0]["versions"]
    version["artifacts"] *= 2
    assert "has a file twice" in refused(registry, packed(tmp_path, parts))


# --- the zip itself -------------------------------------------------------------------------------


def local_header(name: bytes, data: bytes) -> bytes:
    sizes = (zlib.crc32(data), len(data), len(data), len(name), 0)
    return struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 20, 0, 0, 0, 33, *sizes) + name


def central_header(name: bytes, data: bytes, offset: int, extra: bytes = b"") -> bytes:
    sizes = (zlib.crc32(data), len(data), len(data), len(name), len(extra), 0, 0, 0)
    where = (0o100644 << 16, offset if not extra else 0xFFFFFFFF)
    start = struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\1\2", 20, 20, 0, 0, 0, 33, *sizes, *where)
    return start + name + extra


def zip_of(path: Path, body: bytes, directory: Sequence[bytes]) -> Path:
    entries = b"".join(directory)
    counts = (0, 0, len(directory), len(directory), len(entries), len(body), 0)
    path.write_bytes(body + entries + struct.pack("<4sHHHHIIH", b"PK\5\6", *counts))
    return path


def test_entries_within_each_other_are_refused_unread(
    registry: Registry, parts: Parts, tmp_path: Path
) -> None:
    """Each photo ends with all the following ones, so the sum grows with the square."""
    photo, num_photos = draw_bytes(3, SMALL), 40
    region, found = b"", []
    for _ in range(num_photos):
        data = photo + region
        name = f"blobs/{parts.put(data)}".encode()
        found.append((name, data))
        region = local_header(name, data) + data
    part = parts.concept["images"][0]
    parts.concept.update(versions=[], runs=[])
    parts.concept["images"] = [
        part | {"sha256": name[6:].decode(), "bytes": len(data), "filename": f"{i}.png"}
        for i, (name, data) in enumerate(found)
    ]
    manifest = json.dumps(parts.manifest).encode()
    body = local_header(b"manifest.json", manifest) + manifest + region
    directory = [central_header(b"manifest.json", manifest, 0)]
    directory += [
        central_header(name, data, len(body) - len(data) - 30 - len(name)) for name, data in found
    ]
    path = zip_of(tmp_path / "hostile.concept", body, directory)
    assert sum(len(data) for _, data in found) > 10 * path.stat().st_size
    assert "overlaps with another file" in refused(registry, path)


@pytest.mark.parametrize("offset", [2**63 - 1, 2**64 - 1])
def test_a_place_beyond_any_file_is_refused(
    registry: Registry, parts: Parts, tmp_path: Path, offset: int
) -> None:
    body, directory = b"", []
    entries = {"manifest.json": json.dumps(parts.manifest).encode()}
    for name, data in (
        entries | {f"blobs/{key}": blob for key, blob in parts.blobs.items()}
    ).items():
        far = struct.pack("<HHQ", 1, 8, offset) if len(directory) == 1 else b""
        directory.append(central_header(name.encode(), data, len(body), far))
        body += local_header(name.encode(), data) + data
    refused(registry, zip_of(tmp_path / "hostile.concept", body, directory))


@pytest.mark.parametrize("error", [KeyError("x"), OverflowError("x"), ValueError("x")])
def test_what_zipfile_raises_is_said_of_the_bundle(
    registry: Registry,
    parts: Parts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    """Newer Pythons raise others than older ones."""
    path = packed(tmp_path, parts)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(module.zipfile.ZipFile, "open", fail)
    assert "is not a sound bundle" in refused(registry, path)


def test_the_registrys_own_disk_is_not_called_the_bundles(
    registry: Registry, parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = packed(tmp_path, parts)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("conceptry.registry.blobs.sync_file", full)
    with pytest.raises(StorageError, match=r"cannot write .*No space left"):
        registry.import_bundle(path)
    monkeypatch.undo()
    monkeypatch.setattr(module.images, "inspect", full)
    with pytest.raises(OSError, match="No space left"):
        registry.import_bundle(path)
    assert registry.names() == []


def test_a_disk_that_became_read_only_is_named(
    registry: Registry, parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be cleared away there either."""

    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    for name in ("create_file", "remove_file"):
        monkeypatch.setattr(f"conceptry.registry.blobs.{name}", read_only)
    with pytest.raises(StorageError, match=r"cannot write .*concepts\.blobs.*Read-only"):
        registry.import_bundle(packed(tmp_path, parts))


def test_a_photo_larger_than_add_takes_is_refused(
    registry: Registry, parts: Parts, tmp_path: Path
) -> None:
    parts.concept["images"][0]["bytes"] = module.images.MAX_FILE_BYTES + 1
    assert "images[0].bytes" in refused(registry, packed(tmp_path, parts))


# --- the manifest ---------------------------------------------------------------------------------


@pytest.mark.parametrize("filler", ["[],", "{},", "0,", '"ab",'])
def test_a_manifest_of_very_many_values_is_not_parsed(
    registry: Registry,
    parts: Parts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    filler: str,
) -> None:
    monkeypatch.setattr(module, "_MAX_MANIFEST_PARTS", 1000)
    text = json.dumps(parts.manifest)
    odd = text.replace('"config": {', '"config": {"x": [' + filler * 1000 + "0], ", 1)
    path = pack(tmp_path / "hostile.concept", odd.encode(), parts.blobs)
    assert "the manifest is too large" in refused(registry, path)


@pytest.mark.parametrize("concepts", [[0] * 5000, [{str(i): 0 for i in range(5000)}]])
def test_a_manifest_with_very_many_mistakes_is_refused(
    registry: Registry, parts: Parts, tmp_path: Path, concepts: list[object]
) -> None:
    parts.manifest["concepts"] = concepts
    assert "the manifest is wrong" in refused(registry, packed(tmp_path, parts))


def test_an_export_that_could_not_be_read_again_is_not_written(
    rex: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_MANIFEST_BYTES", 100)
    with pytest.raises(InvalidInput, match="too much for one file"):
        rex.export_bundle(["rex"], tmp_path / "rex.concept")
    assert not (tmp_path / "rex.concept").exists()


@pytest.mark.parametrize("number", [MAX_VERSION + 1, 2**63 - 1])
def test_a_version_that_leaves_no_next_one_is_refused(
    registry: Registry, parts: Parts, tmp_path: Path, number: int
) -> None:
    parts.concept["versions"][0]["number"] = number
    assert "versions[0].number" in refused(registry, packed(tmp_path, parts))


def test_no_training_begins_that_could_not_end(
    registry: Registry, parts: Parts, tmp_path: Path
) -> None:
    parts.concept["versions"][0]["number"] = MAX_VERSION
    registry.import_bundle(packed(tmp_path, parts))
    with pytest.raises(InvalidInput, match="there is no next one"):
        begin(registry, "rex")
    assert len(registry.show("rex").runs) == 1


def test_a_file_name_that_no_disk_takes_is_refused(
    registry: Registry, parts: Parts, tmp_path: Path
) -> None:
    part = parts.concept["images"][0]
    part["filename"] = "ü" * (MAX_FILE_NAME // 2) + "a"
    registry.import_bundle(packed(tmp_path, parts))
    part["filename"] += "a"
    parts.concept["name"] = "max"
    with pytest.raises(InvalidBundle, match="is not a file name"):
        registry.import_bundle(packed(tmp_path, parts))


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), 1e308])
def test_metrics_without_bounds_come_in_as_a_training_logs_them(
    registry: Registry, parts: Parts, tmp_path: Path, value: float
) -> None:
    (run,) = parts.concept["runs"]
    run["metrics"] = [["one", 1, "loss", value], ["one", 1, "loss", value], ["one", 2, "loss", 0.5]]
    registry.import_bundle(packed(tmp_path, parts))
    own = begin(registry, "rex")
    registry.log_metrics(own, [("one", 1, "loss", value), ("one", 2, "loss", 0.5)])
    assert registry.metrics(run["uid"]) == registry.metrics(own)


# --- what is searched -----------------------------------------------------------------------------


def test_letters_that_unfold_do_not_fill_the_database() -> None:
    captions = [f"{i} " + "\ufdfa" * 9_000 for i in range(20)]
    assert len(fold(captions[0])) > 100_000
    found = search_text("rex", "dog", "", [], captions)
    assert len(found) < 5 * sum(map(len, captions))
    assert "19 " in found


def test_search_text_is_bounded_and_the_first_words_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("conceptry.registry.queries._MAX_SEARCH_TEXT", 100)
    found = search_text("rex", "dog", "", ["pets"], ["x" * 80, "y" * 80])
    assert found.startswith("rex\ndog\n\npets\nxxx")
    assert len(found) == 100


def test_search_text_is_as_if_folded_at_once() -> None:
    captions = ["Straße", "ﬁn", "e\u0301", "\u0301e"]
    found = search_text("rex", "dog", "Größe", ["pets"], captions)
    assert found == fold("\n".join(["rex", "dog", "Größe", "pets", *captions]))


def test_more_than_a_row_holds_is_said(rex: Registry) -> None:
    with closing(rex._store.database._connect()) as connection:
        connection.setlimit(SQLITE_LIMIT_LENGTH, 1000)
        with (
            pytest.raises(InvalidInput, match="more text than"),
            translated(rex.location.database),
        ):
            connection.execute("SELECT ?", ["x" * 2000])


# --- what is believed of it -----------------------------------------------------------------------


def test_imported_scores_are_marked_and_own_ones_are_not(
    registry: Registry, parts: Parts, tmp_path: Path
) -> None:
    registry.import_bundle(packed(tmp_path, parts))
    registry.add_evaluation("rex", 1, suite="own", config={}, scores={})
    found = [(each.suite, each.is_imported) for each in registry.evaluations("rex")]
    assert found == [("live", True), ("own", False)]
    registry.rename("rex", "max")
    registry.export_bundle(["max"], tmp_path / "back.concept")
    registry.import_bundle(tmp_path / "back.concept", name="again")
    assert [each.is_imported for each in registry.evaluations("again")] == [True, True]
    assert [each.is_imported for each in registry.evaluations("max")] == [True, False]


def test_imported_scores_stay_imported_when_a_version_goes(
    registry: Registry, parts: Parts, tmp_path: Path
) -> None:
    registry.import_bundle(packed(tmp_path, parts))
    for _ in range(2):
        number = train(registry, "rex", tmp_path)
        registry.remove([f"rex@{number}"])
    registry.add_evaluation("rex", 1, suite="own", config={}, scores={})
    found = [(each.suite, each.is_imported) for each in registry.evaluations("rex")]
    assert found == [("live", True), ("own", False)]


def test_what_a_run_left_behind_is_not_an_imports(
    registry: Registry, parts: Parts, tmp_path: Path
) -> None:
    (run,) = parts.concept["runs"]
    folder = registry.location.runs / run["uid"]
    folder.mkdir(parents=True)
    (folder / "checkpoint-one-000001.safetensors").write_bytes(b"another's")
    (concept,) = registry.import_bundle(packed(tmp_path, parts))
    assert concept.runs[0].run != run["uid"]
    assert concept.versions[0].run == concept.runs[0].run
    assert registry.checkpoints(concept.runs[0].run) == []


@pytest.mark.parametrize(
    "config",
    [
        {"photos": ["../x"]},
        {"photos": "ab"},
        {"category": "\x1b[2J"},
        {"category": None},
        {"deep": json.loads("[" * 100 + "]" * 100)},
    ],
)
def test_what_could_not_be_exported_is_refused_when_it_is_stored(
    rex: Registry, config: dict[str, object]
) -> None:
    before = rows_of(rex.location.database)
    with pytest.raises(InvalidInput):
        rex.begin_run(
            "rex", method="x", config=config, base="b", base_sha256="0", seed=0, packages={}
        )
    assert rows_of(rex.location.database) == before


@pytest.mark.parametrize("scores", [{"a": [{"picture": "../x"}]}, {"picture": 1}])
def test_scores_that_name_no_picture_are_refused_when_they_are_stored(
    rex: Registry, tmp_path: Path, scores: dict[str, object]
) -> None:
    train(rex, "rex", tmp_path)
    with pytest.raises(InvalidInput, match="not named by a hash"):
        rex.add_evaluation("rex", 1, suite="s", config={}, scores=scores)


# --- at the command line --------------------------------------------------------------------------


def run(database: Path, *words: str) -> Result:
    return invoke("--registry", str(database), *words)


def test_weights_that_are_no_adapter_are_told(parts: Parts, database: Path, tmp_path: Path) -> None:
    done = run(database, "import", str(packed(tmp_path, parts)))
    assert done.exit_code == 0
    assert "warning: rex@1 holds no adapter of concept train" in done.stderr


def test_a_name_in_a_hint_is_one_word(rex: Registry, database: Path, tmp_path: Path) -> None:
    name = tmp_path / "a b; rm -rf x.concept"
    rex.export_bundle(["rex"], name)
    done = run(database, "import", str(name))
    assert done.exit_code == 2
    assert f"concept import '{name}' --as NAME" in done.stderr


ESCAPE = "\x1b[2J"
STYLED = "[red]boo[/red] :dog: [link=file:///etc/passwd]x[/link]"


def test_a_strangers_text_is_shown_as_it_is(parts: Parts, database: Path, tmp_path: Path) -> None:
    parts.concept["notes"] = STYLED
    parts.concept["images"][0] |= {"caption": STYLED, "filename": "[b]:cat:[b].png"}
    parts.concept["runs"][0] |= {"error": STYLED, "base": STYLED, "status": "failed"}
    assert run(database, "import", str(packed(tmp_path, parts))).exit_code == 0
    for command in (["show", "rex"], ["list"], ["history"], ["check"]):
        done = run(database, *command)
        assert done.exit_code == 0, command
        assert "\x1b" not in done.output
        assert "\N{DOG FACE}" not in done.output
    shown = run(database, "show", "rex").stdout
    assert STYLED in shown
    assert "[b]:cat:[b].png" in shown


@pytest.mark.parametrize("where", ["notes", "caption", "filename", "base", "error", "category"])
def test_an_escape_sequence_is_refused_wherever_it_stands(
    registry: Registry, parts: Parts, tmp_path: Path, where: str
) -> None:
    (run,), (image,) = parts.concept["runs"], parts.concept["images"]
    holder = {"caption": image, "filename": image, "base": run, "error": run}
    holder.get(where, parts.concept)[where] = f"a{ESCAPE}b"
    assert "\x1b" not in refused(registry, packed(tmp_path, parts))


# --- many at once ---------------------------------------------------------------------------------


def test_of_two_imports_at_once_one_comes_in(
    registry: Registry, parts: Parts, tmp_path: Path
) -> None:
    path, outcomes = packed(tmp_path, parts), []

    def take_in() -> None:
        with Registry.open(registry.location.database, timeout=600) as own:
            try:
                own.import_bundle(path)
            except InvalidInput as error:
                outcomes.append(error.code)
            else:
                outcomes.append("in")

    threads = [threading.Thread(target=take_in) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["already_exists"] * 3 + ["in"]
    assert registry.check(read_data=True).ok

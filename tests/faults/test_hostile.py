"""Faults 15-18: bundles, links and weights that mean harm are refused, and nothing is changed."""

import ast
import copy
import io
import json
import os
import pickle
import random
import re
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import Parts, pack, unpack
from conceptry import registry as package
from conceptry.cli.app import app
from conceptry.registry import (
    ConceptryError,
    InvalidBundle,
    InvalidImage,
    InvalidInput,
    InvalidWeights,
    Registry,
    RegistryCorrupt,
)
from conceptry.registry.tensors import Tensor, check_weights
from drawing import draw, draw_bytes, draw_file, draw_folder, draw_masks
from fake_training import train, weights_file
from PIL import Image
from raw_safetensors import framed, raw_safetensors
from snapshot import files_below, rows_of
from typer.testing import CliRunner

SMALL = (64, 64)
SHA = "5e" * 32
ESCAPE = "\x1b]0;owned\x07"
HUGE = 2**63

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A bundle of one concept that has everything."""
    folder = tmp_path_factory.mktemp("sound")
    photos = draw_folder(folder / "photos", 2, size=SMALL)
    masks = draw_masks(folder / "masks", 1, size=SMALL)
    with Registry.open(folder / "concepts.db", create=True) as registry:
        registry.add(
            "rex",
            [photos],
            category="dog",
            tags=["pets"],
            notes="bites",
            caption="a dog",
            masks=masks,
        )
        train(registry, "rex", folder)
        registry.export_bundle(["rex"], folder / "rex.concept")
    return (folder / "rex.concept").read_bytes()


@pytest.fixture
def parts(sound: bytes) -> Parts:
    """Its parts, to be changed."""
    return unpack(sound)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry with a concept in it, mia."""
    folder = tmp_path_factory.mktemp("shelf")
    with Registry.open(folder / "registry/concepts.db", create=True) as registry:
        registry.add("mia", [draw_file(folder / "mia.png", 7, SMALL)], category="cat")
        yield registry


@pytest.fixture
def library(shelf: Registry) -> Iterator[Registry]:
    """The same, cleaned after a test in which something came in that should not have."""
    yield shelf
    clean(shelf)


def clean(library: Registry) -> None:
    library.remove([name for name in library.names() if name != "mia"])


def state(registry: Registry, *folders: Path) -> tuple[object, ...]:
    """All that a refused file must leave alone: the registry, and the folders around it."""
    around = registry.location.database.parent.parent
    return (rows_of(registry.location.database), *map(files_below, (around, *folders)))


def refused(
    registry: Registry,
    path: Path,
    error: type[ConceptryError] = InvalidBundle,
    name: str | None = None,
) -> str:
    """Show that a bundle is refused and changes nothing; returns the message."""
    before = state(registry, path.parent)
    with pytest.raises(error) as caught:
        registry.import_bundle(path, name=name)
    assert state(registry, path.parent) == before
    assert error is InvalidWeights or str(path) in caught.value.message
    return caught.value.message


def written(path: Path, entries: Sequence[tuple[str | zipfile.ZipInfo, bytes]]) -> Path:
    """A zip of any entries."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as bundle:
        warnings.simplefilter("ignore", UserWarning)  # duplicate names
        for entry, data in entries:
            bundle.writestr(entry, data)
    return path


def entries_of(parts: Parts) -> list[tuple[str | zipfile.ZipInfo, bytes]]:
    blobs = [(f"blobs/{sha256}", data) for sha256, data in parts.blobs.items()]
    return [("manifest.json", json.dumps(parts.manifest).encode()), *blobs]


def packed(tmp_path: Path, parts: Parts) -> Path:
    return pack(tmp_path / "hostile.concept", parts.manifest, parts.blobs)


def test_the_bundle_that_is_spoilt_here_is_sound(
    sound: bytes, parts: Parts, tmp_path: Path
) -> None:
    (tmp_path / "sound.concept").write_bytes(sound)
    for path in (tmp_path / "sound.concept", packed(tmp_path, parts)):
        with Registry.open(tmp_path / path.stem / "concepts.db", create=True) as registry:
            assert [concept.name for concept in registry.import_bundle(path)] == ["rex"]
            assert registry.check(read_data=True).problems == []


# --- 15: paths that lead elsewhere --------------------------------------------------------------

ENTRY_NAMES = [
    "../escape", "../../escape", "blobs/../escape", f"blobs/../../{SHA}", "/escape",
    "//server/share/x", "C:\\escape", "C:/escape", "C:escape", "\\\\server\\share\\x", "\\escape",
    "..\\escape",
    f"blobs\\{SHA}", f"blobs/..\\{SHA}", "blobs/", "blobs/x", f"blobs/{SHA}/", f"blobs/{SHA}/x",
    f"blobs/{SHA.upper()}", f"blobs/{SHA[1:]}", f"blobs/{SHA}0", f"blobs/{SHA} ", f"blobs/{SHA}\n",
    f"blobs//{SHA}", f"./blobs/{SHA}", f"/blobs/{SHA}", f"Blobs/{SHA}", SHA, "Manifest.json",
    "./manifest.json", "manifest.json/", "manifest.json ", "NUL", "COM1", "~/escape", ".", "..",
    "ü",
]  # fmt: skip


@pytest.mark.parametrize("name", ENTRY_NAMES)
def test_fault_15_an_entry_of_another_name_is_refused(
    library: Registry, parts: Parts, tmp_path: Path, name: str
) -> None:
    path = written(tmp_path / "hostile.concept", [*entries_of(parts), (name, b"x")])
    assert repr(name) in refused(library, path)


@pytest.mark.parametrize("ending", ["\0", "\0.png", "\0/../x"], ids=repr)
def test_fault_15_a_name_with_a_nul_is_refused(
    library: Registry, parts: Parts, tmp_path: Path, ending: str
) -> None:
    (sha256, *_) = parts.blobs
    filler = "?" * len(ending)
    entries = [
        (f"{name}{filler}" if name == f"blobs/{sha256}" else name, data)
        for name, data in entries_of(parts)
    ]
    path = written(tmp_path / "hostile.concept", entries)
    name = f"blobs/{sha256}"
    path.write_bytes(
        path.read_bytes().replace(f"{name}{filler}".encode(), f"{name}{ending}".encode())
    )
    refused(library, path)


def test_fault_15_a_name_that_is_no_utf8_is_refused(
    library: Registry, parts: Parts, tmp_path: Path
) -> None:
    path = written(tmp_path / "hostile.concept", [*entries_of(parts), ("é", b"x")])
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff\xfe"))
    refused(library, path)


@pytest.mark.parametrize("field", ["sha256", "mask", "artifact"])
@pytest.mark.parametrize(
    "evil",
    ["../../victim", "/victim", "C:\\victim", "..\\victim", "", "x" * 64, SHA.upper(), "../" * 22],
)
def test_fault_15_a_hash_that_is_a_path_is_refused(
    library: Registry, parts: Parts, tmp_path: Path, field: str, evil: str
) -> None:
    if field == "artifact":
        holder, key = parts.concept["versions"][0]["artifacts"][0], "sha256"
    else:
        holder, key = parts.concept["images"][0], field
    parts.blobs[evil] = parts.drop(holder[key])
    holder[key] = evil
    refused(library, packed(tmp_path, parts))


@pytest.mark.parametrize(
    "name",
    ["../../evil.png", "/etc/passwd", "a/b.png", "", ".", "..", "a\nb.png", "a\0.png", ESCAPE],
)
def test_fault_15_a_file_name_that_is_a_path_is_refused(
    library: Registry, parts: Parts, tmp_path: Path, name: str
) -> None:
    parts.concept["images"][0]["filename"] = name
    refused(library, packed(tmp_path, parts))


@pytest.mark.parametrize("name", ["../../evil.safetensors", "/etc/passwd", "a/b", "", ESCAPE])
def test_fault_15_a_weights_name_that_is_a_path_is_refused(
    library: Registry, parts: Parts, tmp_path: Path, name: str
) -> None:
    parts.concept["versions"][0]["artifacts"][0]["name"] = name
    refused(library, packed(tmp_path, parts))


# --- 15: archives that are not what they seem ---------------------------------------------------

KINDS = {
    "link": stat.S_IFLNK, "folder": stat.S_IFDIR, "pipe": stat.S_IFIFO, "device": stat.S_IFCHR,
    "socket": stat.S_IFSOCK,
}  # fmt: skip


@pytest.mark.parametrize("place", [0, 1], ids=["manifest", "blob"])
@pytest.mark.parametrize("kind", KINDS)
def test_fault_15_an_entry_that_is_no_plain_file_is_refused(
    library: Registry, parts: Parts, tmp_path: Path, kind: str, place: int
) -> None:
    entries = entries_of(parts)
    info = zipfile.ZipInfo(str(entries[place][0]))
    info.external_attr = (KINDS[kind] | 0o777) << 16
    entries[place] = (info, b"../../victim")
    assert "is not a plain file" in refused(library, written(tmp_path / "hostile.concept", entries))


@pytest.mark.parametrize("place", [0, 1], ids=["manifest", "blob"])
def test_fault_15_two_entries_of_one_name_are_refused(
    library: Registry, parts: Parts, tmp_path: Path, place: int
) -> None:
    entries = entries_of(parts)
    entries.append((entries[place][0], b"another"))
    assert "twice" in refused(library, written(tmp_path / "hostile.concept", entries))


METHODS = {"deflate": zipfile.ZIP_DEFLATED, "bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}


@pytest.mark.parametrize("place", [0, 1], ids=["manifest", "blob"])
@pytest.mark.parametrize("method", METHODS)
def test_fault_15_a_compressed_entry_is_refused(
    library: Registry, parts: Parts, tmp_path: Path, method: str, place: int
) -> None:
    entries = entries_of(parts)
    info = zipfile.ZipInfo(str(entries[place][0]))
    info.compress_type = METHODS[method]
    entries[place] = (info, entries[place][1])
    assert "is compressed" in refused(library, written(tmp_path / "hostile.concept", entries))


def test_fault_15_a_zip_bomb_is_not_inflated(
    library: Registry, parts: Parts, tmp_path: Path
) -> None:
    bomb = bytes(64 << 20)
    sha256 = parts.put(bomb)
    parts.concept["images"][0] |= {"sha256": sha256, "bytes": len(bomb)}
    path = tmp_path / "hostile.concept"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, data in entries_of(parts):
            bundle.writestr(name, data)
    assert path.stat().st_size < 1 << 20
    assert "is compressed" in refused(library, path)


def lie(info: zipfile.ZipInfo, how: str) -> None:
    if how == "longer":
        info.file_size = info.compress_size = info.file_size + 1000
    elif how == "shorter":
        info.file_size = info.compress_size = info.file_size - 10
    elif how == "larger than the disk":
        info.file_size = info.compress_size = 1 << 50
    elif how == "differing sizes":
        info.file_size += 1
    elif how == "encrypted":
        info.flag_bits |= 0x1
    elif how == "patched":
        info.flag_bits |= 0x20
    elif how == "another place":
        info.header_offset += 1
    elif how == "another checksum":
        info.CRC ^= 1
    elif how == "unknown method":
        info.compress_type = 99


@pytest.mark.parametrize("place", [0, 1], ids=["manifest", "blob"])
@pytest.mark.parametrize(
    "how",
    [
        "longer",
        "shorter",
        "larger than the disk",
        "differing sizes",
        "encrypted",
        "patched",
        "another place",
        "another checksum",
        "unknown method",
    ],
)
def test_fault_15_a_directory_that_lies_is_refused(
    library: Registry, parts: Parts, tmp_path: Path, how: str, place: int
) -> None:
    path = tmp_path / "hostile.concept"
    with zipfile.ZipFile(path, "w") as bundle:
        for name, data in entries_of(parts):
            bundle.writestr(name, data)
        lie(bundle.filelist[place], how)
    refused(library, path)


def test_fault_15_entries_that_share_their_bytes_are_refused(
    library: Registry, parts: Parts, tmp_path: Path
) -> None:
    path = tmp_path / "hostile.concept"
    with zipfile.ZipFile(path, "w") as bundle:
        for name, data in entries_of(parts):
            bundle.writestr(name, data)
        bundle.filelist[2].header_offset = bundle.filelist[1].header_offset
    refused(library, path)


@pytest.mark.parametrize(
    "data", [b"", b"PK", b"not a zip", b"PK\x05\x06" + bytes(18), pickle.dumps({})],
    ids=["nothing", "two letters", "text", "no entries", "pickle"],
)  # fmt: skip
def test_fault_15_what_is_no_bundle_is_refused(
    library: Registry, tmp_path: Path, data: bytes
) -> None:
    path = tmp_path / "hostile.concept"
    path.write_bytes(data)
    refused(library, path)


@pytest.mark.parametrize("tenths", range(10))
def test_fault_15_a_bundle_that_ends_early_is_refused(
    library: Registry, sound: bytes, tmp_path: Path, tenths: int
) -> None:
    path = tmp_path / "hostile.concept"
    path.write_bytes(sound[: len(sound) * tenths // 10])
    refused(library, path)


def test_fault_15_bytes_that_changed_on_the_way_are_refused_or_harmless(
    library: Registry, sound: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "hostile.concept"
    before = state(library)
    rng = random.Random(15)
    unexpected: list[str] = []
    with Registry.open(tmp_path / "own/concepts.db", create=True) as registry:
        for _ in range(300):
            data = bytearray(sound)
            for _ in range(rng.randrange(1, 4)):
                place = rng.randrange(len(data) - rng.choice([30, 300, 900, len(data)]), len(data))
                data[place] = rng.choice([0, 1, 8, 127, 128, 255, rng.randrange(256)])
            path.write_bytes(data)
            try:
                for concept in registry.import_bundle(path):
                    registry.remove([concept.name])
            except InvalidInput:
                pass
            except Exception as error:  # noqa: BLE001 (the very thing that is looked for)
                unexpected.append(repr(error))
    assert unexpected == []
    assert state(library) == before


# --- 15: blobs that are not what the manifest says ----------------------------------------------


def swap(parts: Parts, data: bytes) -> None:
    """Other bytes under the name of the first photo."""
    parts.blobs[parts.concept["images"][0]["sha256"]] = data


def test_fault_15_a_blob_of_another_hash_is_refused(
    library: Registry, parts: Parts, tmp_path: Path
) -> None:
    image = parts.concept["images"][0]
    swap(parts, b"x" * image["bytes"])
    assert f"blobs/{image['sha256']} is damaged" in refused(library, packed(tmp_path, parts))


def test_fault_15_a_photo_swapped_for_another_is_refused(
    library: Registry, parts: Parts, tmp_path: Path
) -> None:
    other = draw_bytes(99, SMALL)
    swap(parts, other)
    parts.concept["images"][0]["bytes"] = len(other)
    assert "is damaged" in refused(library, packed(tmp_path, parts))


@pytest.mark.parametrize("change", [-1, 1, 10**6])
def test_fault_15_a_blob_of_another_size_is_refused(
    library: Registry, parts: Parts, tmp_path: Path, change: int
) -> None:
    parts.concept["images"][0]["bytes"] += change
    assert "is not as the manifest says" in refused(library, packed(tmp_path, parts))


def test_fault_15_a_blob_with_two_sizes_is_refused(
    library: Registry, parts: Parts, tmp_path: Path
) -> None:
    twin = copy.deepcopy(parts.concept)
    twin["name"], twin["runs"], twin["versions"] = "twin", [], []
    twin["images"][0]["bytes"] += 5
    parts.manifest["concepts"].insert(0, twin)
    refused(library, packed(tmp_path, parts))


def test_fault_15_a_missing_blob_is_refused(
    library: Registry, parts: Parts, tmp_path: Path
) -> None:
    parts.drop(parts.concept["images"][0]["sha256"])
    assert "is not as the manifest says" in refused(library, packed(tmp_path, parts))


def test_fault_15_a_blob_that_nothing_needs_is_refused(
    library: Registry, parts: Parts, tmp_path: Path
) -> None:
    parts.put(b"stowaway")
    assert "is not as the manifest says" in refused(library, packed(tmp_path, parts))


def replace_photo(parts: Parts, data: bytes) -> None:
    """Another file as the first photo, all of it consistent."""
    image = parts.concept["images"][0]
    parts.drop(image["sha256"])
    image |= {"sha256": parts.put(data), "bytes": len(data)}


def png_claiming(width: int, height: int) -> bytes:
    data = draw_bytes(1, (16, 16))
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    import zlib

    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


@pytest.mark.parametrize(
    "data",
    [
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"GIF89a\1\0\1\0\0\0\0",
        b"%PDF-1.7",
        b"",
        png_claiming(60_000, 60_000),
        png_claiming(12_000, 10_000),
        draw_bytes(1, SMALL)[:200],
    ],
    ids=["svg", "gif", "pdf", "nothing", "bomb", "small bomb", "truncated"],
)
def test_fault_15_a_photo_that_is_none_is_refused(
    library: Registry, parts: Parts, tmp_path: Path, data: bytes
) -> None:
    replace_photo(parts, data)
    refused(library, packed(tmp_path, parts), InvalidBundle if not data else InvalidImage)


def saved(image: Image.Image, format: str = "PNG") -> bytes:  # noqa: A002
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"not a picture",
        saved(draw(1, SMALL)),
        saved(draw(1, (32, 32), "L")),
        saved(draw(1, SMALL, "L"), "JPEG"),
        saved(Image.new("L", SMALL)),
    ],
    ids=["text", "colour", "small", "jpeg", "black"],
)
def test_fault_15_a_mask_that_is_none_is_refused(
    library: Registry, parts: Parts, tmp_path: Path, data: bytes
) -> None:
    image = parts.concept["images"][0]
    parts.drop(image["mask"])
    image |= {"mask": parts.put(data), "mask_bytes": len(data)}
    refused(library, packed(tmp_path, parts), InvalidImage)


# --- 15: manifests ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"null", b"[]", b"{}", b"1", b'"x"', b"\xff\xfe\xfd", b"\x80\x04N.",
        b"[" * 200_000,
        b'{"concepts": ' + b"[" * 90_000 + b"]" * 90_000 + b"}", b'{"a":' * 50_000,
        b'{"format": "conceptry-bundle"}', b'{"format": "conceptry-bundle", "format_version": 1}',
        b'{"format": "conceptry-bundle", "format_version": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda text: f"{text[:16]!r}-{len(text)}",
)  # fmt: skip
def test_fault_15_a_manifest_that_is_none_is_refused(
    library: Registry, parts: Parts, tmp_path: Path, text: bytes
) -> None:
    refused(library, pack(tmp_path / "hostile.concept", text, parts.blobs))


def test_fault_15_a_bundle_without_a_manifest_is_refused(
    library: Registry, parts: Parts, tmp_path: Path
) -> None:
    path = written(tmp_path / "hostile.concept", entries_of(parts)[1:])
    assert "has no manifest.json" in refused(library, path)


def test_fault_15_a_giant_manifest_is_not_read(
    library: Registry, parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conceptry.registry.bundle.MAX_MANIFEST_BYTES", 1000)
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("it was read"))
    path = packed(tmp_path, parts)
    assert "the manifest is too large" in refused(library, path)


def test_fault_15_a_giant_directory_is_not_read(library: Registry, tmp_path: Path) -> None:
    path, size = tmp_path / "hostile.concept", 49 << 20
    with path.open("wb") as file:
        file.write(b"PK")
        file.seek(size)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, size, 0, 0))
    assert "its directory has 51,380,224 bytes" in refused(library, path)


def test_fault_15_what_no_import_would_read_is_not_written(
    library: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conceptry.registry.bundle.MAX_DIRECTORY_BYTES", 200)
    with pytest.raises(InvalidInput, match="too much for one file"):
        library.export_bundle(library.names(), tmp_path / "rex.concept")
    assert not (tmp_path / "rex.concept").exists()


@pytest.mark.parametrize("depth", [100, 1_000, 20_000])
def test_fault_15_a_deep_config_is_refused_or_harmless(
    parts: Parts, registry: Registry, tmp_path: Path, depth: int
) -> None:
    text = json.dumps(parts.manifest)
    deep = text.replace('"config": {', '"config": {"deep": ' + "[" * depth + "]" * depth + ", ", 1)
    path = pack(tmp_path / "hostile.concept", deep.encode(), parts.blobs)
    assert_refused_or_harmless(registry, path)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "9" * 4000])
def test_fault_15_a_config_with_an_odd_number_is_refused_or_harmless(
    parts: Parts, registry: Registry, tmp_path: Path, number: str
) -> None:
    text = json.dumps(parts.manifest)
    odd = text.replace('"config": {', f'"config": {{"odd": {number}, ')
    assert odd != text
    path = pack(tmp_path / "hostile.concept", odd.encode(), parts.blobs)
    assert_refused_or_harmless(registry, path)


def assert_refused_or_harmless(registry: Registry, path: Path) -> None:
    """Show that a bundle is refused, or that all goes on well with what came in."""
    try:
        registry.import_bundle(path)
    except InvalidBundle:
        assert registry.names() == []
    else:
        registry.export_bundle(["rex"], path.with_name("back.concept"))
        registry.remove(["rex"])
        registry.import_bundle(path.with_name("back.concept"))
    assert registry.check(read_data=True).ok


def test_fault_15_a_newer_bundle_is_refused_with_what_to_do(
    library: Registry, parts: Parts, tmp_path: Path
) -> None:
    parts.manifest |= {"format_version": 2, "something": "new"}
    path = packed(tmp_path, parts)
    assert "made by a newer program (bundle format 2)" in refused(library, path)
    with pytest.raises(InvalidBundle) as caught:
        library.import_bundle(path)
    assert caught.value.hint == "pip install --upgrade conceptry"


@pytest.mark.parametrize("version", [0, -1, "1", True, 1.0, None])
def test_fault_15_an_odd_format_version_is_refused(
    library: Registry, parts: Parts, tmp_path: Path, version: object
) -> None:
    parts.manifest["format_version"] = version
    refused(library, packed(tmp_path, parts))


Place = tuple[str | int, ...]


def places(document: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every part of a JSON document, with the way to it."""
    yield place, document
    if isinstance(document, (dict, list)):
        items = document.items() if isinstance(document, dict) else enumerate(document)
        for key, value in items:
            yield from places(value, (*place, key))


def with_change(parts: Parts, place: Place, value: Any) -> Parts:
    manifest = copy.deepcopy(parts.manifest)
    holder: Any = manifest
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    return Parts(manifest, parts.blobs)


def is_free(place: Place) -> bool:
    """Whether it lies in what a run or an evaluation may word as it likes."""
    return any(key in ("config", "packages", "scores") for key in place[:-1])


def assert_each_refused(library: Registry, tmp_path: Path, changed: dict[str, Parts]) -> None:
    """Show that each change is refused; all that are not are told together."""
    before = state(library)
    wrong: list[str] = []
    for what, parts in changed.items():
        path = pack(tmp_path / "hostile.concept", parts.manifest, parts.blobs)
        try:
            library.import_bundle(path)
            wrong.append(f"{what}: accepted")
            clean(library)
        except InvalidBundle:
            pass
        except Exception as error:  # noqa: BLE001 (the very thing that is looked for)
            wrong.append(f"{what}: {error!r:.100}")
    assert changed
    assert wrong == []
    assert state(library) == before


@pytest.mark.parametrize("value", [None, [], {}, "x", 3.5, True], ids=repr)
def test_fault_15_a_value_of_another_type_is_refused(
    library: Registry, parts: Parts, tmp_path: Path, value: object
) -> None:
    optional = {"caption", "mask", "mask_bytes", "finished", "error", "run"}
    changed = {
        str(place): with_change(parts, place, value)
        for place, old in places(parts.manifest)
        if place
        and not is_free(place)
        and place[-1] not in optional
        and type(old) is not type(value)
    }
    assert_each_refused(library, tmp_path, changed)


@pytest.mark.parametrize("key", ["unknown", "__class__", "id", "search", "concept_id"])
def test_fault_15_a_key_that_does_not_belong_is_refused(
    library: Registry, parts: Parts, tmp_path: Path, key: str
) -> None:
    changed = {
        str(place): with_change(parts, (*place, key), 1)
        for place, old in places(parts.manifest)
        if isinstance(old, dict) and not is_free((*place, key))
    }
    assert_each_refused(library, tmp_path, changed)


def test_fault_15_a_key_that_is_missing_is_refused(
    library: Registry, parts: Parts, tmp_path: Path
) -> None:
    changed = {}
    for place, _ in places(parts.manifest):
        if place and isinstance(place[-1], str) and not is_free(place):
            without = with_change(parts, place, None)
            holder: Any = without.manifest
            for key in place[:-1]:
                holder = holder[key]
            del holder[place[-1]]
            changed[str(place)] = without
    assert_each_refused(library, tmp_path, changed)


@pytest.mark.parametrize("number", [HUGE, -HUGE - 1, 10**30], ids=["2^63", "-2^63-1", "10^30"])
def test_fault_15_a_number_that_cannot_be_stored_is_refused(
    library: Registry, parts: Parts, tmp_path: Path, number: int
) -> None:
    changed = {
        str(place): with_change(parts, place, number)
        for place, old in places(parts.manifest)
        if type(old) is int and not is_free(place) and place != ("format_version",)
    }
    assert_each_refused(library, tmp_path, changed)


def test_fault_15_a_metric_that_is_no_number_is_refused(
    library: Registry, parts: Parts, tmp_path: Path
) -> None:
    place = ("concepts", 0, "runs", 0, "metrics", 0, 3)
    assert_each_refused(library, tmp_path, {"nan": with_change(parts, place, float("nan"))})


@pytest.mark.parametrize(
    "text", ["\ud800", "a\0b", ESCAPE], ids=["surrogate", "nul", "terminal escape"]
)
def test_fault_15_a_text_that_is_no_plain_text_is_refused(
    library: Registry, parts: Parts, tmp_path: Path, text: str
) -> None:
    changed = {
        str(place): with_change(parts, place, text)
        for place, old in places(parts.manifest)
        if isinstance(old, str) and not is_free(place)
    }
    assert_each_refused(library, tmp_path, changed)


def twice(items: list[Any]) -> None:
    items.append(copy.deepcopy(items[0]))


RULES: dict[str, Change] = {
    "no concept": lambda c: c.clear(),
    "name in capitals": lambda c: c.update(name="Rex"),
    "name that is a path": lambda c: c.update(name="../rex"),
    "empty name": lambda c: c.update(name=""),
    "long name": lambda c: c.update(name="a" * 65),
    "category that is none": lambda c: c.update(category="<dog>"),
    "empty category": lambda c: c.update(category=""),
    "long notes": lambda c: c.update(notes="x" * 10_001),
    "bad tag": lambda c: c["tags"].append("two words"),
    "empty tag": lambda c: c["tags"].append(""),
    "tag twice": lambda c: twice(c["tags"]),
    "photo twice": lambda c: twice(c["images"]),
    "version twice": lambda c: twice(c["versions"]),
    "run twice": lambda c: twice(c["runs"]),
    "alias in capitals": lambda c: c["versions"][0].update(aliases=["Best"]),
    "alias that is a number": lambda c: c["versions"][0].update(aliases=["3"]),
    "alias twice": lambda c: c["versions"][0].update(aliases=["best", "best"]),
    "version 0": lambda c: c["versions"][0].update(number=0),
    "version of an unknown run": lambda c: c["versions"][0].update(run="gone"),
    "mask without a size": lambda c: c["images"][0].update(mask_bytes=None),
    "size without a mask": lambda c: c["images"][1].update(mask_bytes=5),
    "long caption": lambda c: c["images"][0].update(caption="x" * 10_001),
    "unknown status": lambda c: c["runs"][0].update(status="finished"),
    "photo of a run that is no hash": lambda c: c["runs"][0].update(images=["x"]),
    "moment that is none": lambda c: c.update(created="yesterday"),
    "moment of adding that is none": lambda c: c["images"][0].update(added="9999"),
    "moment in other digits": lambda c: c.update(created="٢٠٢٦-01-02T10:00:00.000Z"),
    "empty run": lambda c: c["runs"][0].update(uid=""),
}


@pytest.mark.parametrize("change", RULES.values(), ids=RULES)
def test_fault_15_a_concept_that_breaks_the_rules_is_refused(
    library: Registry, parts: Parts, tmp_path: Path, change: Change
) -> None:
    change(parts.concept)
    assert_each_refused(library, tmp_path, {"change": parts})


def test_fault_15_a_concept_twice_is_refused(
    library: Registry, parts: Parts, tmp_path: Path
) -> None:
    twice(parts.manifest["concepts"])
    assert "holds a concept twice" in refused(library, packed(tmp_path, parts))


def test_fault_15_another_name_does_not_excuse_the_rest(
    library: Registry, parts: Parts, tmp_path: Path
) -> None:
    parts.concept["tags"].append("two words")
    refused(library, packed(tmp_path, parts), name="max")


@pytest.mark.parametrize(
    ("field", "given", "stored"),
    [
        ("category", "  teddy \t bear ", "teddy bear"),
        ("notes", "\x1c bites\r\nhard \n", "bites\nhard"),
        ("caption", "\x1f a dog\r\n", "a dog"),
    ],
)
def test_fault_15_texts_are_stored_as_add_would_store_them(
    registry: Registry, parts: Parts, tmp_path: Path, field: str, given: str, stored: str
) -> None:
    holder = parts.concept["images"][0] if field == "caption" else parts.concept
    holder[field] = given
    (concept,) = registry.import_bundle(packed(tmp_path, parts))
    assert getattr(concept.images[0] if field == "caption" else concept, field) == stored


def test_fault_15_a_bad_concept_keeps_the_good_ones_out(
    library: Registry, parts: Parts, tmp_path: Path
) -> None:
    bad = copy.deepcopy(parts.concept)
    bad |= {"name": "bad", "tags": ["two words"]}
    parts.manifest["concepts"].append(bad)
    refused(library, packed(tmp_path, parts))


def test_fault_15_the_command_line_says_so_in_one_printable_line(
    library: Registry, parts: Parts, tmp_path: Path
) -> None:
    parts.concept[f"a\nkey{ESCAPE}"] = 1
    arguments = [
        "--registry",
        str(library.location.database),
        "import",
        str(packed(tmp_path, parts)),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert result.stderr.rstrip("\n").isprintable()
    document = json.loads(CliRunner().invoke(app, ["--json", *arguments]).stdout)
    assert document["error"]["code"] == "invalid_bundle"


# --- 16: links that stand where a file will be written ------------------------------------------


def set_trap(blob: Path, victim: Path, how: str) -> None:
    """Let the place of a blob lead to a victim."""
    blob.parent.mkdir(parents=True, exist_ok=True)
    if how == "symbolic link":
        blob.symlink_to(victim)
    elif how == "relative link":
        blob.symlink_to(os.path.relpath(victim, blob.parent))
    elif how == "hard link":
        blob.hardlink_to(victim)
    elif how == "dangling link":
        blob.symlink_to(victim.with_name("not there"))
    elif how == "linked folder":
        blob.parent.rmdir()
        blob.parent.symlink_to(victim.parent, target_is_directory=True)


@pytest.mark.parametrize("way", ["import", "add", "version"])
@pytest.mark.parametrize(
    "how", ["symbolic link", "relative link", "hard link", "dangling link", "linked folder"]
)
def test_fault_16_what_a_link_leads_to_is_untouched(
    registry: Registry, sound: bytes, parts: Parts, tmp_path: Path, how: str, way: str
) -> None:
    victims = tmp_path / "victims"
    victims.mkdir()
    (victims / "victim").write_bytes(b"dear to somebody")
    photo, weights = draw_file(tmp_path / "photo.png", 1, SMALL), weights_file(tmp_path / "w", 1)
    (tmp_path / "sound.concept").write_bytes(sound)
    if way == "version":
        registry.add("mia", [draw_file(tmp_path / "other.png", 2, SMALL)], category="cat")
    coming = {"import": [*parts.blobs], "add": [sha256_of(photo)], "version": [sha256_of(weights)]}[
        way
    ]
    for sha256 in coming:
        if not registry.path_of(sha256).parent.is_symlink():
            set_trap(registry.path_of(sha256), victims / "victim", how)
    before = files_below(victims)
    is_refused = how == "linked folder"  # faults, row 27: it is never entered
    with pytest.raises(RegistryCorrupt, match="is a link") if is_refused else nullcontext():
        if way == "import":
            registry.import_bundle(tmp_path / "sound.concept")
        elif way == "add":
            registry.add("mia", [photo], category="cat")
        else:
            registry.add_version("mia", {"w.safetensors": weights})
    assert files_below(victims) == before
    assert registry.check(read_data=True).ok
    if is_refused:
        return
    for sha256 in coming:
        assert not registry.path_of(sha256).is_symlink()


def sha256_of(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("how", ["symbolic link", "hard link", "dangling link"])
def test_fault_16_a_failed_import_leaves_links_and_victims(
    registry: Registry, parts: Parts, tmp_path: Path, how: str
) -> None:
    victims = tmp_path / "victims"
    victims.mkdir()
    (victims / "victim").write_bytes(b"dear to somebody")
    registry.add("mia", [draw_file(tmp_path / "mia.png", 7, SMALL)], category="cat")
    for sha256 in parts.blobs:
        set_trap(registry.path_of(sha256), victims / "victim", how)
    swap(parts, b"other bytes")
    refused(registry, packed(tmp_path, parts))


@pytest.mark.parametrize("how", ["symbolic link", "hard link", "dangling link"])
def test_fault_16_an_export_does_not_write_through_a_link(
    registry: Registry, tmp_path: Path, how: str
) -> None:
    victims = tmp_path / "victims"
    victims.mkdir()
    (victims / "victim").write_bytes(b"dear to somebody")
    registry.add("mia", [draw_file(tmp_path / "mia.png", 7, SMALL)], category="cat")
    shared = tmp_path / "shared"
    for name in ("mia.concept", f".mia.concept.unfinished-{os.getpid()}"):
        set_trap(shared / name, victims / "victim", how)
    before = files_below(victims)
    registry.export_bundle(["mia"], shared / "mia.concept", overwrite=True)
    assert files_below(victims) == before
    assert unpack(shared / "mia.concept").concept["name"] == "mia"
    assert not (shared / "mia.concept").is_symlink()


# --- 17: pickles --------------------------------------------------------------------------------


class Payload:
    """When unpickled, it leaves a mark."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.sentinel),)


def checkpoint(payload: Payload) -> bytes:
    """A file as torch.save writes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(payload, 2))
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/data/0", bytes(16))
    return buffer.getvalue()


def legacy_checkpoint(payload: Payload) -> bytes:
    """A file as torch.save wrote it before 1.6: several pickles."""
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, payload]
    return b"".join(pickle.dumps(part, 2) for part in parts)


@pytest.fixture
def sentinel(tmp_path: Path) -> Path:
    return tmp_path / "it-ran"


PICKLES: dict[str, Callable[[Payload], bytes]] = {
    **{f"protocol {i}": lambda payload, i=i: pickle.dumps(payload, i) for i in range(6)},
    "checkpoint": checkpoint,
    "legacy checkpoint": legacy_checkpoint,
    "behind a header": lambda payload: framed(pickle.dumps(payload, 4)),
}


@pytest.mark.parametrize("name", ["model.pt", "model.bin", "model.safetensors"])
@pytest.mark.parametrize("kind", PICKLES)
def test_fault_17_a_pickle_is_no_version(
    library: Registry, tmp_path: Path, sentinel: Path, kind: str, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(PICKLES[kind](Payload(sentinel)))
    before = state(library, tmp_path)
    with pytest.raises(InvalidWeights) as caught:
        library.add_version("mia", {name: path})
    assert state(library, tmp_path) == before
    assert not sentinel.exists()
    if kind in ("protocol 2", "protocol 4", "checkpoint", "legacy checkpoint"):
        assert "is a pickle" in caught.value.message
        assert caught.value.hint == "convert it to safetensors first"


@pytest.mark.parametrize("kind", PICKLES)
def test_fault_17_a_pickle_in_a_bundle_is_refused(
    library: Registry, parts: Parts, tmp_path: Path, sentinel: Path, kind: str
) -> None:
    replace_weights(parts, PICKLES[kind](Payload(sentinel)))
    refused(library, packed(tmp_path, parts), InvalidWeights)
    assert not sentinel.exists()


def replace_weights(parts: Parts, data: bytes) -> None:
    artifact = parts.concept["versions"][0]["artifacts"][0]
    parts.drop(artifact["sha256"])
    artifact |= {"sha256": parts.put(data), "bytes": max(len(data), 1)}


@pytest.mark.parametrize("kind", PICKLES)
def test_fault_17_a_pickle_is_neither_bundle_nor_photo(
    library: Registry, tmp_path: Path, sentinel: Path, kind: str
) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(PICKLES[kind](Payload(sentinel)))
    refused(library, path)
    before = state(library, tmp_path)
    with pytest.raises(InvalidImage, match=r"photo\.png"):
        library.add("mia", [path])
    assert state(library, tmp_path) == before
    assert not sentinel.exists()


@pytest.mark.parametrize("kind", sorted(PICKLES.keys() - {"checkpoint", "behind a header"}))
def test_fault_17_these_pickles_would_run(sentinel: Path, kind: str) -> None:
    stream = io.BytesIO(PICKLES[kind](Payload(sentinel)))
    while not sentinel.exists():
        pickle.load(stream)


def test_fault_17_nothing_in_the_registry_can_unpickle() -> None:
    forbidden = {"pickle", "_pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "torch"}
    (folder,) = package.__path__
    for path in Path(folder).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert forbidden.isdisjoint(alias.name.split(".")[0] for alias in node.names), path
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in forbidden, path
            elif isinstance(node, ast.keyword):
                assert node.arg != "allow_pickle", path


# --- 18: safetensors ----------------------------------------------------------------------------

ONE = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
SOUND = framed(ONE, bytes(8))


def one(**change: object) -> bytes:
    return framed({"a": {**ONE["a"], **change}}, bytes(8))


HOSTILE = {
    "nothing": b"",
    "seven bytes": SOUND[:7],
    "length only": SOUND[:8],
    "half a header": SOUND[:30],
    "data cut short": SOUND[:-1],
    "no data": SOUND[:-8],
    "bytes behind the data": SOUND + b"x",
    "header of 2^63 bytes": struct.pack("<Q", 1 << 63) + b"{}",
    "header of 2^40 bytes": struct.pack("<Q", 1 << 40) + b"{}",
    "header of 100 MB": struct.pack("<Q", 100_000_001) + b"{}",
    "header of 0 bytes": struct.pack("<Q", 0),
    "header that is no JSON": framed(b"{nothing}"),
    "header that is a list": framed(b"[]"),
    "header that is no UTF-8": framed(b'{"\xff": 1}'),
    "deep header": framed(b'{"a":' * 5000 + b"1" + b"}" * 5000),
    "negative offsets": one(data_offsets=[-8, 0]),
    "reversed offsets": one(data_offsets=[8, 0]),
    "offsets beyond the end": one(data_offsets=[8, 16]),
    "huge offsets": one(data_offsets=[2**63, 2**63 + 8]),
    "one offset": one(data_offsets=[0]),
    "no offsets": one(data_offsets=None),
    "larger shape": one(shape=[3]),
    "smaller shape": one(shape=[1]),
    "negative shape": one(shape=[-2]),
    "shape that overflows": one(shape=[2**62, 4]),
    "shape that wraps to its size": one(shape=[2**61, 2**3, 2]),
    "unknown dtype": one(dtype="F31"),
    "dtype that is an object": one(dtype="O"),
    "no dtype": one(dtype=None),
    "gap": framed({"a": {**ONE["a"], "data_offsets": [4, 12]}}, bytes(12)),
    "overlap": framed({"a": ONE["a"], "b": ONE["a"]}, bytes(8)),
    "metadata that is no text": framed({"__metadata__": {"a": 1}, **ONE}, bytes(8)),
    "an array file": b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'shape': (1,)}",
    "a text": b"version https://git-lfs.github.com/spec/v1\n",
}

NOT_FINITE = {
    "F64 NaN": ("F64", struct.pack("<d", float("nan"))),
    "F64 Inf": ("F64", struct.pack("<d", float("inf"))),
    "F64 signalling NaN": ("F64", struct.pack("<Q", 0x7FF0_0000_0000_0001)),
    "F32 NaN": ("F32", struct.pack("<f", float("nan"))),
    "F32 -Inf": ("F32", struct.pack("<f", float("-inf"))),
    "F16 NaN": ("F16", np.float16("nan").tobytes()),
    "F16 Inf": ("F16", np.float16("inf").tobytes()),
    "BF16 NaN": ("BF16", struct.pack("<H", 0x7FC0)),
    "BF16 -Inf": ("BF16", struct.pack("<H", 0xFF80)),
    "F8_E4M3 NaN": ("F8_E4M3", b"\x7f"),
    "F8_E5M2 Inf": ("F8_E5M2", b"\x7c"),
    "F8_E4M3FNUZ NaN": ("F8_E4M3FNUZ", b"\x80"),
    "F8_E5M2FNUZ NaN": ("F8_E5M2FNUZ", b"\x80"),
    "F8_E8M0 NaN": ("F8_E8M0", b"\xff"),
    "C64 NaN": ("C64", struct.pack("<ff", 0, float("nan"))),
}


def not_finite(kind: str) -> bytes:
    """Three tensors, the middle one with a bad value between good ones."""
    dtype, value = NOT_FINITE[kind]
    good = bytes(len(value))
    fine = ("F32", [1], bytes(4))
    return raw_safetensors({"a": fine, "b": (dtype, [3], good + value + good), "c": fine})


ALL_HOSTILE = {**HOSTILE, **{kind: not_finite(kind) for kind in NOT_FINITE}}


def test_fault_18_the_weights_that_are_spoilt_here_are_sound(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(SOUND)
    assert check_weights(tmp_path / "w") == {"a": Tensor("F32", (2,))}


@pytest.mark.parametrize("kind", ALL_HOSTILE)
def test_fault_18_hostile_weights_are_no_version(
    library: Registry, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(ALL_HOSTILE[kind])
    before = state(library, tmp_path)
    with pytest.raises(InvalidWeights):
        library.add_version("mia", {"hostile.safetensors": path})
    assert state(library, tmp_path) == before


@pytest.mark.parametrize(
    "data", [b"", b"\x80\x04N.", not_finite("F32 NaN")], ids=["unsound", "pickle", "NaN"]
)
def test_fault_18_the_file_that_is_refused_is_named(
    library: Registry, parts: Parts, tmp_path: Path, data: bytes
) -> None:
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(data)
    with pytest.raises(InvalidWeights, match=r"hostile\.safetensors"):
        library.add_version("mia", {"token.safetensors": path})
    replace_weights(parts, data or b"x")
    bundle = packed(tmp_path, parts)
    with pytest.raises(InvalidWeights, match=re.escape(f"{bundle}: token.safetensors")):
        library.import_bundle(bundle)


@pytest.mark.parametrize(
    "kind", [kind for kind in NOT_FINITE if not kind.startswith(("F8", "C64"))]
)
def test_fault_18_the_tensor_that_is_not_finite_is_named(tmp_path: Path, kind: str) -> None:
    (tmp_path / "w.safetensors").write_bytes(not_finite(kind))
    with pytest.raises(
        InvalidWeights, match=r"w\.safetensors: tensor b has values that are not finite"
    ):
        check_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize("kind", ALL_HOSTILE)
def test_fault_18_hostile_weights_in_a_bundle_are_refused(
    library: Registry, parts: Parts, tmp_path: Path, kind: str
) -> None:
    replace_weights(parts, ALL_HOSTILE[kind])
    refused(
        library, packed(tmp_path, parts), InvalidWeights if ALL_HOSTILE[kind] else InvalidBundle
    )


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({}, "has an unexpected tensor: a (1 in all)"),
        ({"b": Tensor("F32", (2,))}, "lacks tensor: b (1 in all)"),
        ({"a": Tensor("F32", (2,)), "b": Tensor("F32", (2,))}, "lacks tensor: b (1 in all)"),
        ({"a": Tensor("F32", (1,))}, "tensor a is F32 (2,), not F32 (1,)"),
        ({"a": Tensor("F32", (2, 1))}, "tensor a is F32 (2,), not F32 (2, 1)"),
        ({"a": Tensor("F16", (2,))}, "tensor a is F32 (2,), not F16 (2,)"),
    ],
    ids=["unexpected", "other", "missing", "size", "dimensions", "dtype"],
)
def test_fault_18_other_tensors_than_expected_are_refused(
    tmp_path: Path, expected: dict[str, Tensor], message: str
) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(SOUND)
    with pytest.raises(InvalidWeights, match=re.escape(message)) as caught:
        check_weights(path, expected)
    assert "w.safetensors" in caught.value.message

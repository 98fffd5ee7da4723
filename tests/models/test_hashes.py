"""Which base model it is: the hash of what is loaded, and nothing else (faults, 33 and 41)."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from conceptry.models.hashes import hash_of, hash_of_configuration, hash_of_folder
from conceptry.models.loading import load_base
from conceptry.registry import InvalidWeights

UNET = "unet/diffusion_pytorch_model.safetensors"
WEIGHTS = ("text_encoder/model.safetensors", UNET, "vae/diffusion_pytorch_model.safetensors")


@pytest.fixture
def folder(tiny_base: Path, tmp_path: Path) -> Path:
    """The tiny base, to be added to."""
    return shutil.copytree(tiny_base, tmp_path / "tiny")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_plain_folder_has_the_hash_that_it_always_had(folder: Path) -> None:
    lines = "\n".join(sha256(folder / name) for name in WEIGHTS)
    assert hash_of_folder(folder) == hashlib.sha256(lines.encode()).hexdigest()
    assert load_base(str(folder)).sha256 == hash_of_folder(folder)


@pytest.mark.parametrize(
    "name",
    [
        "unet/._diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
        "unet/model.safetensors",
        "unet/diffusion_pytorch_model (copy).safetensors",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/._model.safetensors",
        "vae/.diffusion_pytorch_model.safetensors.unfinished",
        "model.safetensors",
        "lora/model.safetensors",
    ],
)
def test_what_lies_beside_the_weights_makes_no_stranger(folder: Path, name: str) -> None:
    before = hash_of_folder(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"something else")
    assert hash_of_folder(folder) == before
    assert load_base(str(folder)).sha256 == before


def test_shards_are_those_of_the_index(folder: Path) -> None:
    pipeline = load_base(str(folder)).backbone.pipeline
    whole = hash_of_folder(folder)
    (folder / UNET).unlink()
    pipeline.unet.save_pretrained(folder / "unet", max_shard_size="100KB")
    index = json.loads((folder / f"{UNET}.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 1
    names = (WEIGHTS[0], *(f"unet/{name}" for name in shards), WEIGHTS[2])
    lines = "\n".join(sha256(folder / name) for name in names)
    before = hash_of_folder(folder)
    assert before == hashlib.sha256(lines.encode()).hexdigest() != whole
    stray = folder / "unet/diffusion_pytorch_model-00009-of-00009.safetensors"
    stray.write_bytes(b"of another time")
    assert load_base(str(folder)).sha256 == before


def test_a_change_of_what_is_loaded_is_another_base(folder: Path) -> None:
    before = hash_of_folder(folder)
    data = bytearray((folder / UNET).read_bytes())
    data[-1] ^= 1
    (folder / UNET).write_bytes(data)
    assert hash_of_folder(folder) != before


@pytest.mark.parametrize(
    "name",
    ["scheduler/scheduler_config.json", "vae/config.json", "tokenizer/tokenizer_config.json"],
)
def test_a_change_of_configuration_is_the_same_base_configured_anew(
    folder: Path, name: str
) -> None:
    loaded = load_base(str(folder))
    assert loaded.configuration_sha256 == hash_of_configuration(folder)
    (folder / name).write_text((folder / name).read_text() + "\n")
    changed = load_base(str(folder))
    assert changed.sha256 == loaded.sha256
    assert changed.configuration_sha256 != loaded.configuration_sha256


def test_half_precision_is_hashed_where_it_is_loaded(folder: Path) -> None:
    before = hash_of_folder(folder)
    half = (folder / UNET).with_suffix(".fp16.safetensors")
    (folder / UNET).rename(half)
    assert hash_of_folder(folder) == before  # the same bytes, by another name
    half.with_name("diffusion_pytorch_model.bf16.safetensors").write_bytes(b"not loaded")
    assert hash_of_folder(folder) == before


@pytest.mark.parametrize("text", ["[]", "{", '{"files": 3}', '{"files": {"a": 3}}', "{}", "\udc80"])
def test_a_manifest_of_another_program_is_nothing(folder: Path, text: str) -> None:
    before = hash_of_folder(folder)
    (folder / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert hash_of_folder(folder) == before


# --- names that are hashes ------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, ours alone."""
    cache = tmp_path / "hub"
    (cache / "models--me--mine" / "blobs").mkdir(parents=True)
    for path in (cache, *cache.rglob("*")):
        path.chmod(0o755)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


def linked(blob: Path) -> Path:
    """A link to a new file."""
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(b"weights")
    blob.chmod(0o644)
    link = blob.parent.parent / "link.safetensors"
    link.symlink_to(blob)
    return link


NAME = "ab" * 32


def test_the_hubs_own_cache_is_believed(cache: Path) -> None:
    assert hash_of(linked(cache / "models--me--mine/blobs" / NAME)) == NAME


@pytest.mark.parametrize(
    "place",
    ["elsewhere", "hub/blobs", "hub/models--me--mine/other", "hub/models--me--mine/blobs/deeper"],
)
def test_a_name_elsewhere_is_not_taken_for_a_hash(cache: Path, place: str) -> None:
    link = linked(cache.parent / place / NAME)
    assert hash_of(link) == sha256(link)


@pytest.mark.parametrize("name", ["x" * 64, "AB" * 32, "ab" * 20, f"{NAME}.old"])
def test_a_name_that_is_no_sha256_is_none(cache: Path, name: str) -> None:
    link = linked(cache / "models--me--mine/blobs" / name)
    assert hash_of(link) == sha256(link)


@pytest.mark.skipif(os.name != "posix", reason="modes say nothing here")
@pytest.mark.parametrize("mode", [0o002, 0o020, 0o022])
@pytest.mark.parametrize("place", ["", "models--me--mine", "models--me--mine/blobs", "blob"])
def test_a_cache_that_others_may_write_is_not_believed(cache: Path, place: str, mode: int) -> None:
    link = linked(cache / "models--me--mine/blobs" / NAME)
    path = link.resolve() if place == "blob" else cache / place
    path.chmod(path.stat().st_mode | mode)
    assert hash_of(link) == sha256(link)


def test_a_blob_that_is_gone_is_told(cache: Path) -> None:
    link = linked(cache / "models--me--mine/blobs" / NAME)
    link.resolve().unlink()
    with pytest.raises(InvalidWeights, match=r"link.safetensors cannot be read: No such file"):
        hash_of(link)
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(InvalidWeights, match="cannot be read"):
        hash_of(link)

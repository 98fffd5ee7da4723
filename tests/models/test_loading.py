"""Folders, single files and hub repositories become the same pipeline; damage is told."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conceptry.adapters.tensor_file import write_tensors
from conceptry.generation.request import SamplingSettings
from conceptry.generation.sampler import draw
from conceptry.models.loading import LoadedBase, load_base
from conceptry.models.single_file import original_tensors
from conceptry.registry import InvalidInput, InvalidWeights, NotFound
from safetensors.numpy import save_file

QUICK = SamplingSettings(steps=2)


def pixels(base: LoadedBase) -> np.ndarray:
    (drawn,) = draw(base, "a photo of a cat", [3], QUICK)
    return np.asarray(drawn.image, dtype=np.int16)


@pytest.fixture
def copied(tiny_base: Path, tmp_path: Path) -> Path:
    """The tiny base, to be damaged."""
    return shutil.copytree(tiny_base, tmp_path / "tiny")


def test_a_folder_is_loaded(tiny_base: Path) -> None:
    base = load_base(str(tiny_base))
    assert pixels(base).shape == (16, 16, 3)
    assert len(base.sha256) == 64


def test_the_hash_follows_from_the_weights_alone(tiny_base: Path, copied: Path) -> None:
    first = load_base(str(tiny_base)).sha256
    (copied / "README.md").write_text("hello")
    assert load_base(str(copied)).sha256 == first
    weights = copied / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert load_base(str(copied)).sha256 != first


def test_a_single_file_is_loaded_offline_with_the_folder_beside_it(
    tiny_base: Path, tmp_path: Path
) -> None:
    folder = load_base(str(tiny_base))
    file = tmp_path / "single.safetensors"
    write_tensors(file, original_tensors(folder.backbone), {})
    beside = shutil.copytree(tiny_base, tmp_path / "single")
    for weights in beside.rglob("*.safetensors"):
        weights.unlink()
    single = load_base(str(file), offline=True)
    assert (pixels(single) == pixels(folder)).all()
    assert single.sha256 != folder.sha256


def test_a_repository_in_the_hubs_cache_is_loaded_offline(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--me--tiny"
    shutil.copytree(tiny_base, repository / "snapshots" / ("1" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("1" * 40)
    assert load_base("me/tiny", offline=True).sha256 == load_base(str(tiny_base)).sha256


def test_row_52_a_repository_of_fp16_files_alone_is_loaded_offline(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--me--half"
    snapshot = shutil.copytree(tiny_base, repository / "snapshots" / ("1" * 40))
    for weights in list(snapshot.rglob("*.safetensors")):
        weights.rename(weights.with_suffix(".fp16.safetensors"))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("1" * 40)
    assert load_base("me/half", offline=True).sha256 == load_base(str(tiny_base)).sha256


def test_a_repository_that_is_not_here_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(NotFound, match="me/nothing is not on this machine"):
        load_base("me/nothing", offline=True)


@pytest.mark.parametrize("source", ["./gone", "./gone.safetensors", "./empty"])
def test_an_alias_of_what_is_not_there_is_told(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    aliases = tmp_path / "bases.yaml"
    aliases.write_text(f"mine: {{source: {source}}}")
    monkeypatch.setenv("CONCEPT_BASES", str(aliases))
    with pytest.raises(NotFound, match="mine should be at"):
        load_base("mine")


def test_damaged_weights_are_told(copied: Path) -> None:
    weights = copied / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InvalidWeights, match="cannot be loaded"):
        load_base(str(copied))


def test_a_missing_part_is_told(copied: Path) -> None:
    shutil.rmtree(copied / "vae")
    with pytest.raises(InvalidWeights, match="cannot be loaded"):
        load_base(str(copied))


def test_weights_that_are_not_those_of_the_manifest_are_told(copied: Path) -> None:
    name = "unet/diffusion_pytorch_model.safetensors"
    (copied / "manifest.json").write_text(json.dumps({"files": {name: {"sha256": "0" * 64}}}))
    with pytest.raises(InvalidWeights, match="is damaged"):
        load_base(str(copied))


def test_a_lora_is_not_taken_for_a_base_model(tmp_path: Path) -> None:
    save_file({"lora_up.weight": np.ones((2, 2))}, tmp_path / "lora.safetensors")
    with pytest.raises(InvalidInput, match="has no U-Net"):
        load_base("lora.safetensors")


def test_a_file_that_is_no_safetensors_is_told(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"PK\x03\x04 not at all")
    with pytest.raises(InvalidWeights, match="not sound safetensors"):
        load_base("bad.safetensors")


def test_another_kind_of_pipeline_is_refused(copied: Path) -> None:
    index = copied / "model_index.json"
    named = json.loads(index.read_text()) | {"_class_name": "StableDiffusionUpscalePipeline"}
    index.write_text(json.dumps(named))
    with pytest.raises(InvalidInput, match="are known"):
        load_base(str(copied))

"""Which base model a word means."""

from functools import partial
from pathlib import Path

import pytest
from conceptry.models.bases import (
    SHIPPED,
    Base,
    SamplingDefaults,
    cached_bases,
    find_base,
    read_aliases,
)
from conceptry.registry import InvalidInput, NotFound


@pytest.fixture
def own_bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own file of aliases."""
    path = tmp_path / "bases.yaml"
    monkeypatch.setenv("CONCEPT_BASES", str(path))
    return path


def make_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "model_index.json").write_text("{}")
    return path


def test_the_four_aliases_are_there() -> None:
    assert set(read_aliases()) == {"miniature", "sd15", "sd21", "sdxl"}
    assert find_base("miniature").source == str(SHIPPED)
    assert find_base("sd15").kind == "hub"


def test_an_alias_of_the_user_replaces_ours_and_is_relative_to_its_file(own_bases: Path) -> None:
    own_bases.write_text(
        """
sd21: {source: me/mirror, about: mine}
house: {source: models/house.safetensors, config: models/house}
folder: {source: ./models/folder}
"""
    )
    base = partial(Base, sampling=SamplingDefaults())
    assert find_base("sd21") == base("sd21", "hub", "me/mirror", "mine")
    beside = own_bases.parent / "models"
    assert find_base("house") == base(
        "house", "file", str(beside / "house.safetensors"), "", str(beside / "house")
    )
    assert find_base("folder").source == str(beside / "folder")
    assert find_base("sd15").kind == "hub"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not YAML"),
        ("- a", "does not map names"),
        ("a: {about: b}", '"a": there is no source'),
        ("a: b/c", '"a": it is a group of keys, not'),
        ("a: {source: 3}", '"a": source is 3: expected a text'),
        ("a: {source: b/c, sauce: d}", 'there is no key "sauce"'),
    ],
)
def test_a_bad_file_of_aliases_is_told(own_bases: Path, text: str, message: str) -> None:
    own_bases.write_text(text)
    with pytest.raises(InvalidInput, match=message):
        find_base("sd15")


def test_a_file_of_aliases_that_is_missing_is_told(own_bases: Path) -> None:
    with pytest.raises(NotFound, match="CONCEPT_BASES"):
        find_base("sd15")


def test_a_folder_a_file_and_a_repository(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "owner" / "model")
    assert find_base(str(folder)).kind == "folder"
    assert find_base("owner/model").kind == "folder"  # what is there goes before the hub
    assert find_base("other/model").kind == "hub"
    file = tmp_path / "one.safetensors"
    file.touch()
    assert find_base("one.safetensors").config is None
    beside = make_folder(tmp_path / "one")
    assert find_base(str(file)) == Base(str(file), "file", str(file), config=str(beside))


@pytest.mark.parametrize("name", ["model.ckpt", "folder/model.bin", "model.pt"])
def test_a_pickle_is_refused_unread(name: str) -> None:
    with pytest.raises(InvalidInput, match="only safetensors"):
        find_base(name)


def test_unknown_names_are_told_with_what_is_near(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as wrong:
        find_base("sd12")
    assert "sd" in str(wrong.value.hint)
    with pytest.raises(NotFound, match="does not exist"):
        find_base("gone.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="has no model_index"):
        find_base("./empty")


def test_what_lies_in_the_hubs_cache_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    assert cached_bases() == []
    assert not find_base("sd15").is_at_hand()
    for owner, name in (("me", "mine"), ("stable-diffusion-v1-5", "stable-diffusion-v1-5")):
        repository = cache / f"models--{owner}--{name}"
        make_folder(repository / "snapshots" / ("0" * 40))
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0" * 40)
    assert find_base("sd15").is_at_hand()
    assert [base.name for base in cached_bases()] == ["me/mine"]

"""Fault 27: links planted where training and evaluation write, and where locks are."""

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conceptry.adapters.file_format import AdapterMetadata, read_adapter, write_adapter
from conceptry.generation.pictures import replace_picture
from conceptry.registry import Registry, RegistryCorrupt, files
from conceptry.registry.errors import ConceptryError
from conceptry.registry.files import new_file, write_file
from conceptry.training.checkpoints import ResumePoint, read_resume_point, write_resume_point
from drawing import draw, draw_folder
from program import invoke
from snapshot import files_below

FITS = AdapterMetadata(
    base_sha256="0" * 64, method="sefi", category="dog", num_tokens=1, names_category=True
)
POINT = ResumePoint(stage="stage1", step=5, learned={"a": torch.ones(2)})
WRITERS: dict[str, Callable[[Path], object]] = {
    "adapter": lambda path: write_adapter(path, {"token.0": torch.ones(1, 2)}, FITS),
    "resume point": lambda path: write_resume_point(path, POINT),
    "picture": lambda path: replace_picture(draw(1, (8, 8)), path, root=path.parent),
    "file": lambda path: write_file(path, b"new", root=path.parent),
}


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A file of somebody's, which is as it was in the end, and alone."""
    path = tmp_path / "theirs/dear"
    path.parent.mkdir()
    path.write_bytes(b"dear to somebody")
    before = files_below(path.parent)
    yield path
    assert files_below(path.parent) == before


@pytest.fixture(params=["named", "unnamed"])
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With files that have no name at first, and where there are none."""
    if request.param == "named":
        monkeypatch.setattr(files, "_unnamed_flag", _no_flag)


def _no_flag() -> int:
    raise OSError


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_link_at_the_name_is_replaced(
    tmp_path: Path, victim: Path, write: Callable[[Path], object]
) -> None:
    path = tmp_path / "run/x"
    path.parent.mkdir()
    path.symlink_to(victim)
    write(path)
    assert not path.is_symlink()
    assert path.stat().st_size > 0
    assert [each.name for each in path.parent.iterdir()] == ["x"]


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_link_at_the_temporary_name_is_not_followed(
    tmp_path: Path,
    victim: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path], object],
) -> None:
    """Though it cannot be guessed."""
    monkeypatch.setattr(secrets, "token_hex", lambda _: "0" * 16)
    path = tmp_path / "run/x"
    path.parent.mkdir()
    for name in ("x", "new"):
        path.with_name(f".{name}.{'0' * 16}.unfinished").symlink_to(victim)
    with pytest.raises((ConceptryError, FileExistsError)):
        write(path)
    assert not path.exists()


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_link_in_place_of_the_folder_is_not_entered(
    tmp_path: Path, victim: Path, write: Callable[[Path], object]
) -> None:
    (tmp_path / "run").symlink_to(victim.parent)
    with pytest.raises(RegistryCorrupt, match="is a link"):
        write(tmp_path / "run/x")


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.skipif(not hasattr(os, "O_DIRECTORY"), reason="no handles of folders")
@pytest.mark.parametrize("how", ["replace", "take"])
def test_a_folder_that_becomes_a_link_meanwhile(tmp_path: Path, victim: Path, how: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with new_file(folder, root=tmp_path) as unfinished:
        unfinished.file.write(b"new")
        folder.rename(tmp_path / "moved")
        folder.symlink_to(victim.parent)
        getattr(unfinished, how)(folder / "dear")
    assert files_below(tmp_path / "moved").keys() == {"dear"}


@pytest.mark.parametrize("write", ["adapter", "resume point"])
def test_what_was_written_is_read_again(tmp_path: Path, write: str) -> None:
    path = tmp_path / "x.safetensors"
    WRITERS[write](path)
    if write == "adapter":
        state, fits = read_adapter(path)
        assert fits == FITS
        assert torch.equal(state["token.0"], torch.ones(1, 2))
    else:
        point = read_resume_point(path)
        assert (point.stage, point.step) == ("stage1", 5)
        assert torch.equal(point.learned["a"], torch.ones(2))


@pytest.mark.parametrize("leads_to", ["a file", "nothing"])
@pytest.mark.parametrize("lock", ["concepts.runs/7.lock", "concepts.blobs/lock"])
def test_a_planted_lock_is_neither_emptied_nor_made(
    registry: Registry, tmp_path: Path, victim: Path, lock: str, leads_to: str
) -> None:
    registry.add("rex", [draw_folder(tmp_path / "photos", 1, size=(64, 64))], category="dog")
    concept = registry.show("rex")
    path = registry.location.database.parent / lock.replace("7", str(concept.id))
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(victim if leads_to == "a file" else victim.with_name("nothing"))
    with pytest.raises(ConceptryError), registry.training_lock("rex"):
        raise RegistryCorrupt("held")  # by a lock that is not at the planted link
    arguments = ("--registry", registry.location.database)
    for line in (["list"], ["history"], ["gc"], ["add", "rex", "photos"], ["check"]):
        assert invoke(*arguments, *line).exit_code in (0, 4)

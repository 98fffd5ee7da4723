"""Faults 26-28, 31 and 40: text that becomes a path, links, planted names, leftovers."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from bundles import Parts, pack, unpack
from conceptry.evaluation.picture_cache import PictureCache
from conceptry.generation.provenance import save_picture
from conceptry.registry import (
    ConceptryError,
    InvalidBundle,
    NotFound,
    Registry,
    RegistryCorrupt,
    locate,
)
from conceptry.registry.files import below, new_file, replacing, replacing_folder, write_file
from drawing import draw_file, draw_folder
from fake_training import begin, train
from long import quick_for
from PIL import Image
from program import DEADLINE, change_rows, invoke, make_old, stored_files
from snapshot import files_below

HOSTILE = ["..", ".", "", "/etc", "a/b", "a\\b", "C:", "a\0b", "../../x", "x" * 300]
RUN = "1f0c92a7be44"


@pytest.fixture
def rex(registry: Registry, tmp_path: Path) -> Registry:
    registry.add("rex", [draw_folder(tmp_path / "photos", 2, size=(64, 64))], category="dog")
    return registry


@pytest.fixture
def victims(tmp_path: Path) -> Iterator[Path]:
    """Files of somebody's, old enough for every clean-up, that are as they were in the end."""
    folder = tmp_path / "victims"
    for name in ("dear", "tmp/dear", "sub/dear", "resume.safetensors", "ab/" + "ab" * 32):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"dear to somebody")
        make_old(folder / name, 10**6)
    before = files_below(folder)
    yield folder
    assert files_below(folder) == before


def exported(rex: Registry, tmp_path: Path) -> Parts:
    train(rex, "rex", tmp_path)
    rex.end_run(begin(rex, "rex"), "interrupted")
    rex.export_bundle(["rex"], tmp_path / "rex.concept")
    return unpack(tmp_path / "rex.concept")


# --- 26 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_fault_26_only_plain_names_lead_below_a_folder(name: str) -> None:
    with pytest.raises(RegistryCorrupt):
        below(Path("folder"), "a", name)


@pytest.mark.parametrize("name", quick_for(4, ["rex", RUN.upper(), "٣٣٣٣٣٣", *HOSTILE]))
def test_fault_26_a_bundle_whose_run_is_no_id_is_refused(
    rex: Registry, tmp_path: Path, name: str
) -> None:
    parts = exported(rex, tmp_path)
    parts.concept["runs"][-1]["uid"] = name
    with pytest.raises(InvalidBundle, match="uid"):
        rex.import_bundle(pack(tmp_path / "evil", parts.manifest, parts.blobs), name="max")


@pytest.mark.parametrize(
    "config",
    [{"category": "../x"}, {"category": 7}, {"photos": ["../x"]}, {"photos": "x"}],
    ids=str,
)
def test_fault_26_what_a_run_was_taught_from_is_checked(
    rex: Registry, tmp_path: Path, config: dict[str, object]
) -> None:
    parts = exported(rex, tmp_path)
    parts.concept["runs"][-1]["config"] |= config
    with pytest.raises(InvalidBundle, match="config"):
        rex.import_bundle(pack(tmp_path / "evil", parts.manifest, parts.blobs), name="max")


def test_fault_26_scores_name_pictures_by_hash(rex: Registry, tmp_path: Path) -> None:
    parts = exported(rex, tmp_path)
    parts.concept["versions"][0]["evaluations"][0]["scores"]["prompts"] = [
        {"pictures": [{"picture": str(tmp_path / "private")}]}
    ]
    with pytest.raises(InvalidBundle, match="picture"):
        rex.import_bundle(pack(tmp_path / "evil", parts.manifest, parts.blobs), name="max")
    with pytest.raises(RegistryCorrupt):
        PictureCache.of(rex).get(str(tmp_path / "private"), num_subjects=1)


@pytest.mark.parametrize("status", ["interrupted", "running", "failed"])
def test_fault_26_an_imported_run_is_read_and_never_goes_on(
    rex: Registry, tmp_path: Path, status: str
) -> None:
    parts = exported(rex, tmp_path)
    parts.concept["runs"][-1]["status"] = status
    (max_,) = rex.import_bundle(pack(tmp_path / "a", parts.manifest, parts.blobs), name="max")
    assert max_.runs[-1].status == (status if status == "failed" else "interrupted")
    with pytest.raises(NotFound, match="was imported"):
        rex.resumable_run("max")
    with pytest.raises(ConceptryError, match="was imported"):
        rex.resume_run(max_.runs[-1].run)
    assert rex.resumable_run("rex").status == "interrupted"
    result = invoke("--registry", rex.location.database, "train", "max", "--resume")
    assert result.exit_code == 3
    rex.rename("rex", "leo")
    assert rex.resumable_run("leo").status == "interrupted"


@pytest.mark.parametrize("name", ["..", "victims", "/etc"])
def test_fault_26_a_row_whose_run_is_no_id_leads_nowhere(
    rex: Registry, victims: Path, name: str
) -> None:
    run = begin(rex, "rex")
    before = files_below(rex.location.database.parent)
    change_rows(rex.location.database, f"UPDATE run SET uid = '{name}'")
    change_rows(
        rex.location.database, f"UPDATE event SET detail = replace(detail, '{run}', '{name}')"
    )
    for use in (rex.run_folder, rex.tidy_run_folder, rex.checkpoints):
        with pytest.raises(RegistryCorrupt, match="not the id of a run"):
            use(name)
    for line in (["gc", "--grace", "0"], ["check"], ["check", "--repair"]):
        assert invoke("--registry", rex.location.database, *line).exit_code == 4
    after = files_below(rex.location.database.parent)
    assert {path for path in before if "concepts.db" not in str(path)} <= set(after)


@pytest.mark.parametrize("column", ["sha256", "mask"])
def test_fault_26_a_row_whose_hash_is_a_path_is_not_exported(
    rex: Registry, tmp_path: Path, column: str
) -> None:
    private = tmp_path / "private"
    private.write_bytes(b"secret")
    change_rows(
        rex.location.database, f"UPDATE image SET {column} = '{private}', mask_bytes = 6, bytes = 6"
    ) if column == "mask" else change_rows(
        rex.location.database, f"UPDATE image SET sha256 = '{private}', bytes = 6 WHERE id = 1"
    )
    for line in (["export", "rex", "out"], ["check"], ["gc"]):
        assert invoke("--registry", rex.location.database, *line).exit_code == 4
    assert not Path("out").exists()
    with pytest.raises(RegistryCorrupt):
        rex.path_of(str(private))


# --- 27 -------------------------------------------------------------------------------------------


def _link(path: Path, victims: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        path.rename(path.with_name(f"{path.name}-was"))
    path.symlink_to(victims, target_is_directory=True)


@pytest.mark.parametrize(
    "place",
    [
        "concepts.blobs/tmp",
        "concepts.blobs/damaged",
        "concepts.blobs/ab",
        "concepts.blobs/foreign",
        "concepts.runs",
        f"concepts.runs/{RUN}",
        "concepts.cache",
        "concepts.cache/evaluations",
        "concepts.cache/evaluations/ab",
        "concepts.cache/class-pictures",
    ],
)
def test_fault_27_a_linked_folder_is_told_of_and_never_entered(
    rex: Registry, victims: Path, place: str
) -> None:
    link = rex.location.database.parent / place
    _link(link, victims)
    foreign = [each.path for each in rex.check().problems if each.kind == "foreign"]
    assert place in foreign
    for line in (["check", "--repair"], ["gc", "--grace", "0", "--checkpoints"], ["backup", "b"]):
        assert invoke("--registry", rex.location.database, *line).exit_code in (0, 4), line
    rex.remove(["rex"])
    rex.gc(grace=0)
    for use in (
        lambda: rex.run_folder(RUN),
        lambda: rex.tidy_run_folder(RUN),
        lambda: rex.checkpoints(RUN),
        lambda: rex.cache_folder("class-pictures", "x"),
    ):
        with suppress(RegistryCorrupt):
            use()
    assert link.is_symlink()


def test_fault_27_blobs_behind_a_link_are_not_reached(rex: Registry, victims: Path) -> None:
    _link(rex.location.blobs, victims)
    for line in (["check"], ["gc", "--grace", "0"], ["export", "rex", "out"]):
        assert invoke("--registry", rex.location.database, *line).exit_code == 4


def test_fault_27_a_link_in_place_of_a_blob_is_not_read(rex: Registry, victims: Path) -> None:
    blob = rex.path_of(rex.show("rex").images[0].sha256)
    blob.rename(victims.parent / "moved")
    blob.symlink_to(victims.parent / "moved")
    assert "missing" in {each.kind for each in rex.check(read_data=True).problems}
    assert invoke("--registry", rex.location.database, "export", "rex", "out").exit_code == 4


@pytest.mark.parametrize("place", ["concepts.db", "concepts.blobs", "concepts.blobs/tmp"])
def test_fault_27_a_backup_follows_no_link(rex: Registry, victims: Path, place: str) -> None:
    target = Path("copy") / place
    target.parent.mkdir(parents=True)
    target.symlink_to(victims / "dear" if place == "concepts.db" else victims)
    result = invoke("--registry", rex.location.database, "backup", "copy")
    assert result.exit_code in (2, 4)


# --- 28 -------------------------------------------------------------------------------------------


def test_fault_28_no_name_can_be_planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"dear")
    folder = tmp_path / "folder"
    folder.mkdir()
    names = ("out.html", ".out.html.unfinished", "out.html.unfinished")
    names += (f".out.{os.getpid()}.unfinished", f"out.{os.getpid()}.unfinished")
    for name in names:
        (folder / name).symlink_to(victim)
    write_file(folder / "out.html", b"page")
    with replacing(folder / "out.html.unfinished") as unfinished:
        unfinished.write_bytes(b"weights")
    path, _ = save_picture(Image.new("RGB", (4, 4)), folder, "out", {})
    monkeypatch.setattr("secrets.token_hex", lambda _: "0" * 16)
    (folder / f".x.{'0' * 16}.unfinished").symlink_to(victim)
    with pytest.raises(FileExistsError), replacing(folder / "x"):
        pass
    assert victim.read_bytes() == b"dear"
    assert (folder / "out.html").read_bytes() == b"page"
    assert not path.is_symlink()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_fault_28_nothing_stays_of_what_was_not_finished(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"former")
    with suppress(error), replacing(path) as unfinished:
        unfinished.write_bytes(b"half")
        raise error
    with suppress(error), new_file(tmp_path) as half:
        half.file.write(b"half")
        raise error
    assert [each.name for each in tmp_path.iterdir()] == ["a"]
    assert path.read_bytes() == b"former"


# --- 31 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["database", "dangling", "relative"])
def test_fault_31_a_linked_database_keeps_all_in_one_place(tmp_path: Path, way: str) -> None:
    real, link = tmp_path / "v/concepts.db", tmp_path / "w/concepts.db"
    for folder in (real.parent, link.parent):
        folder.mkdir()
    photo = draw_file(tmp_path / "a.png", 1, (64, 64))
    if way != "dangling":
        invoke("--registry", real, "add", "mia", photo, "--category", "cat")
    link.symlink_to("../v/concepts.db" if way == "relative" else real)
    assert invoke("--registry", link, "add", "rex", photo, "--category", "dog").exit_code == 0
    assert [each.name for each in link.parent.iterdir()] == ["concepts.db"]
    assert stored_files(real)
    assert locate(link) == locate(real)
    assert invoke("--registry", real, "check", "--read-data").exit_code == 0


# --- 40 -------------------------------------------------------------------------------------------

_KILLED = """
import os, signal, sys
from pathlib import Path
from PIL import Image
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
for name in sys.argv[2].split(","):
    setattr(os, name, die)
Path.replace = Path.rename = die
from conceptry.generation.provenance import save_picture
save_picture(Image.new("RGB", (8, 8)), Path(sys.argv[1]), "rex-7", {})
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no files without a name")
@pytest.mark.parametrize("at", ["link", "fsync"])
def test_fault_40_a_kill_leaves_no_empty_picture(tmp_path: Path, at: str) -> None:
    folder = tmp_path / "pictures"
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, folder, at], timeout=DEADLINE, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert not any(each.stat().st_size == 0 for each in folder.iterdir())


def test_fault_40_what_a_kill_left_goes_with_the_next(tmp_path: Path) -> None:
    old, young, other = (tmp_path / f".a.{digit * 16}.unfinished" for digit in "012")
    for path in (old, young, other := other.with_name(f".b.{'2' * 16}.unfinished")):
        path.write_bytes(b"half")
    make_old(old)
    make_old(other)
    with replacing(tmp_path / "a"):
        pass
    assert {each.name for each in tmp_path.iterdir()} == {"a", young.name, other.name}


_KILLED_AT_THE_SWAP = """
import os, signal, sys
from pathlib import Path
from conceptry.registry.files import replacing_folder
def rename(self, target, rename=Path.rename):
    if target == Path(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
Path.rename = rename
with replacing_folder(Path(sys.argv[1])) as unfinished:
    (unfinished / "new").touch()
"""


def a_folder(path: Path) -> Path:
    path.mkdir()
    (path / "old").touch()
    return path


@pytest.mark.parametrize("name", ["pets", "x" * 200])
def test_a_folder_that_a_kill_took_away_is_put_back(tmp_path: Path, name: str) -> None:
    folder, other = a_folder(tmp_path / name), tmp_path / f"{name[:50]}y"
    words = [sys.executable, "-c", _KILLED_AT_THE_SWAP, folder]
    assert subprocess.run(words, timeout=DEADLINE, check=False).returncode == -signal.SIGKILL
    assert not folder.exists()
    with replacing_folder(other):
        pass
    assert not folder.exists()
    with suppress(RuntimeError), replacing_folder(folder):
        raise RuntimeError
    assert [each.name for each in folder.iterdir()] == ["old"]
    with replacing_folder(folder) as unfinished:
        (unfinished / "newer").touch()
    assert [each.name for each in folder.iterdir()] == ["newer"]
    assert not list(tmp_path.glob("*.former"))


def test_a_folder_stays_where_no_other_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rename = a_folder(tmp_path / "pets"), Path.rename

    def refused(self: Path, target: Path) -> Path:
        if self.suffix == ".unfinished":
            raise OSError
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(OSError), replacing_folder(folder):  # noqa: PT011
        pass
    assert [each.name for each in folder.iterdir()] == ["old"]
    assert [each.name for each in tmp_path.iterdir()] == ["pets"]


def _cached(rex: Registry) -> list[Path]:
    paths = [
        rex.cache_folder("evaluations", "ab") / f"{'ab' * 32}.png",
        rex.cache_folder("class-pictures", "0123-dog") / "00000.png",
        rex.cache_folder("class-pictures", "0123-dog") / "00001.png",
    ]
    for age, path in enumerate(paths, 2):
        path.write_bytes(b"x" * 1000)
        make_old(path, age * 3600)
    return paths


CLEARED: dict[str, tuple[list[str], int]] = {
    "all": ([], 0),
    "bound": (["--cache-size", "2kB"], 2),
    "large bound": (["--cache-size", "1GB"], 3),
    "young": (["--grace", "1d"], 3),
    "dry run": (["--dry-run"], 3),
}


@pytest.mark.parametrize(("options", "kept"), CLEARED.values(), ids=CLEARED)
def test_fault_40_gc_clears_the_cache(rex: Registry, options: list[str], kept: int) -> None:
    paths = _cached(rex)
    own = rex.location.cache / "notes.txt"
    own.write_text("not ours")
    make_old(own)
    result = invoke("--registry", rex.location.database, "gc", *options)
    assert result.exit_code == 0, result.stderr
    assert [path.exists() for path in paths] == [i < kept for i in range(3)]
    assert own.exists()


def test_fault_40_a_size_that_is_none(rex: Registry) -> None:
    result = invoke("--registry", rex.location.database, "gc", "--cache-size", "much")
    assert result.exit_code == 2


def test_fault_40_gc_takes_what_a_kill_left_of_a_resume_point(rex: Registry) -> None:
    run = begin(rex, "rex")
    rex.end_run(run, "interrupted")
    folder = rex.run_folder(run)
    left = folder / f".resume.safetensors.{'0' * 16}.unfinished"
    point = folder / "resume.safetensors"
    for path in (left, point):
        path.write_bytes(b"x")
        make_old(path)
    assert rex.gc().temporary == 1
    assert point.exists()

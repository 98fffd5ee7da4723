"""What made what: from photos to runs, versions, scores and pictures, and back."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conceptry.registry import ConceptNotFound, InvalidInput, InvalidWeights, NotFound, Registry
from conceptry.registry.records import VersionRecord
from copies import copied
from drawing import draw_file, draw_folder
from fake_training import BASE_SHA256, begin, draw_with, train, weights_file
from snapshot import files_below, rows_of

SMALL = (64, 64)
PICTURE = "c" * 64


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a registry that has one concept, mia, a cat with three small photos."""
    folder = tmp_path_factory.mktemp("made")
    photos = draw_folder(folder / "small", 3, size=SMALL)
    with Registry.open(folder / "registry/concepts.db", create=True) as registry:
        registry.add("mia", [photos], category="cat")
    return folder


@pytest.fixture
def mia(made: Path, tmp_path: Path) -> Iterator[Registry]:
    """The registry of a copy of it."""
    with copied(made, tmp_path) as registry:
        yield registry


def photo_hashes(registry: Registry, name: str = "mia") -> list[str]:
    return sorted(image.sha256 for image in registry.show(name).images)


def metrics(registry: Registry) -> list[tuple[Any, ...]]:
    return [row[1:] for row in rows_of(registry.location.database)["metric"]]


def aliases(registry: Registry) -> list[list[str]]:
    return [version.aliases for version in registry.show("mia").versions]


# --- runs ---------------------------------------------------------------------------------------


def test_a_run_is_recorded_as_it_begins(mia: Registry) -> None:
    uid = begin(mia, "mia")
    (run,) = mia.show("mia").runs
    assert (run.run, run.method, run.status) == (uid, "textual-inversion", "running")
    assert (run.base, run.base_sha256, run.seed) == ("miniature", BASE_SHA256, 1)
    assert run.config == {"steps": 100, "rates": [0.5, 1e-05], "note": "größer"}
    assert run.packages == {"torch": "2.9", "diffusers": "0.42"}
    assert (run.finished, run.error) == (None, None)
    assert run.host
    assert run.started


@pytest.mark.parametrize(
    ("status", "error"), [("done", None), ("interrupted", None), ("failed", "NaN in step 3")]
)
def test_a_run_ends(mia: Registry, status: str, error: str | None) -> None:
    uid = begin(mia, "mia")
    mia.end_run(uid, status, error=error)
    (run,) = mia.show("mia").runs
    assert (run.status, run.error) == (status, error)
    assert run.finished is not None
    assert run.finished >= run.started


def test_runs_are_in_the_history(mia: Registry) -> None:
    uid = begin(mia, "mia")
    mia.end_run(uid, "failed")
    begun, ended = mia.history("mia")[-2:]
    assert (begun.action, begun.detail) == ("train", {"run": uid, "method": "textual-inversion"})
    assert (ended.action, ended.detail) == ("trained", {"run": uid, "status": "failed"})


def test_an_unknown_status_is_refused(mia: Registry) -> None:
    uid = begin(mia, "mia")
    with pytest.raises(InvalidInput, match="'finished' is no run status") as caught:
        mia.end_run(uid, "finished")
    assert caught.value.hint == "running, done, interrupted, failed"


def test_an_unknown_run_is_an_error(mia: Registry, tmp_path: Path) -> None:
    weights = weights_file(tmp_path / "w.safetensors")
    for use in (
        lambda: mia.end_run("gone", "done"),
        lambda: mia.log_metrics("gone", [("one", 1, "loss", 0.5)]),
        lambda: mia.add_version("mia", {"w.safetensors": weights}, run="gone"),
    ):
        with pytest.raises(NotFound, match='there is no run "gone"'):
            use()
    assert mia.check(read_data=True).problems == []


def test_an_unknown_concept_has_no_runs(mia: Registry) -> None:
    with pytest.raises(ConceptNotFound, match="mio"):
        begin(mia, "mio")


def test_runs_have_different_ids(mia: Registry) -> None:
    assert len({begin(mia, "mia") for _ in range(5)}) == 5


def test_a_seed_that_cannot_be_stored_is_refused(mia: Registry) -> None:
    with pytest.raises(InvalidInput, match="seed"):
        begin(mia, "mia", seed=2**64)


# --- metrics ------------------------------------------------------------------------------------


def test_metrics_are_recorded(mia: Registry) -> None:
    run = begin(mia, "mia")
    mia.log_metrics(
        run, [("one", 1, "loss", 0.5), ("one", 1, "rate", 1e-4), ("two", 1, "loss", 9.0)]
    )
    mia.log_metrics(run, [("one", 2, "loss", -0.25)])
    assert metrics(mia) == [
        ("one", 1, "loss", 0.5),
        ("one", 1, "rate", 1e-4),
        ("one", 2, "loss", -0.25),
        ("two", 1, "loss", 9.0),
    ]


def test_a_metric_logged_again_replaces_the_former(mia: Registry) -> None:
    run = begin(mia, "mia")
    mia.log_metrics(run, [("one", 1, "loss", 0.5), ("one", 2, "loss", 0.4)])
    mia.log_metrics(run, [("one", 2, "loss", 0.3), ("one", 2, "loss", 0.2)])
    assert metrics(mia) == [("one", 1, "loss", 0.5), ("one", 2, "loss", 0.2)]


def test_runs_do_not_share_metrics(mia: Registry) -> None:
    for value in (0.5, 0.6):
        mia.log_metrics(begin(mia, "mia"), [("one", 1, "loss", value)])
    assert sorted(metrics(mia)) == [("one", 1, "loss", 0.5), ("one", 1, "loss", 0.6)]


def test_metrics_are_recorded_all_or_none(mia: Registry) -> None:
    run = begin(mia, "mia")

    def rows() -> Any:
        yield ("one", 1, "loss", 0.5)
        raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        mia.log_metrics(run, rows())
    assert metrics(mia) == []


def test_a_metric_that_is_no_number_is_refused_by_name(mia: Registry) -> None:
    run = begin(mia, "mia")
    with pytest.raises(InvalidInput, match="loss"):
        mia.log_metrics(run, [("one", 3, "loss", float("nan"))])


# --- versions -----------------------------------------------------------------------------------


def test_versions_are_numbered_from_1(mia: Registry, tmp_path: Path) -> None:
    assert [train(mia, "mia", tmp_path, seed=seed) for seed in (1, 2, 3)] == [1, 2, 3]
    assert [version.number for version in mia.show("mia").versions] == [1, 2, 3]


def test_each_concept_counts_its_own_versions(mia: Registry, tmp_path: Path) -> None:
    mia.add("leo", [tmp_path / "small"], category="cat")
    assert [train(mia, name, tmp_path) for name in ("mia", "leo", "mia")] == [1, 1, 2]


def test_a_version_keeps_its_files(mia: Registry, tmp_path: Path) -> None:
    run = begin(mia, "mia")
    files = {f"{part}.safetensors": weights_file(tmp_path / part, i) for i, part in enumerate("ab")}
    mia.add_version("mia", files, run=run, kind="lora")
    (version,) = mia.show("mia").versions
    assert version.run == run
    assert [(artifact.name, artifact.kind) for artifact in version.artifacts] == [
        ("a.safetensors", "lora"),
        ("b.safetensors", "lora"),
    ]
    for artifact in version.artifacts:
        original = files[artifact.name].read_bytes()
        assert mia.path_of(artifact.sha256).read_bytes() == original
        assert artifact.bytes == len(original)


def test_a_version_needs_no_run(mia: Registry, tmp_path: Path) -> None:
    mia.add_version("mia", {"w.safetensors": weights_file(tmp_path / "w")})
    assert mia.show("mia").versions[0].run is None


def test_two_files_of_the_same_bytes_are_stored_once(mia: Registry, tmp_path: Path) -> None:
    weights = weights_file(tmp_path / "w")
    mia.add_version("mia", {"a.safetensors": weights, "b.safetensors": weights})
    first, second = mia.show("mia").versions[0].artifacts
    assert first.sha256 == second.sha256
    assert mia.check(read_data=True).ok


def test_a_version_is_all_or_nothing(mia: Registry, tmp_path: Path) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"not weights")
    files = {"good.safetensors": weights_file(tmp_path / "good"), "bad.safetensors": bad}
    before = files_below(mia.location.blobs), rows_of(mia.location.database)
    with pytest.raises(InvalidWeights, match=r"bad\.safetensors"):
        mia.add_version("mia", files)
    assert (files_below(mia.location.blobs), rows_of(mia.location.database)) == before


@pytest.mark.parametrize("what", ["nothing", "a folder"])
def test_weights_that_do_not_exist_are_named(mia: Registry, tmp_path: Path, what: str) -> None:
    path = tmp_path / "gone.safetensors"
    if what == "a folder":
        path.mkdir()
    with pytest.raises((NotFound, InvalidInput), match=re.escape(str(path))):
        mia.add_version("mia", {"w.safetensors": path})


def test_the_weights_of_an_unknown_concept_are_not_kept(mia: Registry, tmp_path: Path) -> None:
    before = files_of(mia)
    with pytest.raises(ConceptNotFound, match="mio"):
        mia.add_version("mio", {"w.safetensors": weights_file(tmp_path / "w")})
    assert files_of(mia) == before


def files_of(registry: Registry) -> dict[str, str]:
    found = files_below(registry.location.blobs)
    return {path: what for path, what in found.items() if what != "folder"}


def test_a_version_is_in_the_history(mia: Registry, tmp_path: Path) -> None:
    train(mia, "mia", tmp_path)
    (run,) = mia.show("mia").runs
    events = {event.action: event.detail for event in mia.history("mia")}
    assert events["version"] == {"number": 1, "run": run.run}
    assert events["alias"] == {"alias": "best", "number": 1}
    assert events["evaluate"] == {"number": 1, "suite": "live"}


# --- aliases ------------------------------------------------------------------------------------


def test_an_alias_moves(mia: Registry, tmp_path: Path) -> None:
    for seed in (1, 2):
        mia.add_version("mia", {"w": weights_file(tmp_path / str(seed), seed)})
    mia.set_alias("mia", 1, "best")
    mia.set_alias("mia", 1, "soft")
    assert aliases(mia) == [["best", "soft"], []]
    mia.set_alias("mia", 2, "best")
    mia.set_alias("mia", 2, "best")
    assert aliases(mia) == [["soft"], ["best"]]


def test_two_concepts_may_have_the_same_alias(mia: Registry, tmp_path: Path) -> None:
    mia.add("leo", [tmp_path / "small"], category="cat")
    train(mia, "leo", tmp_path)
    train(mia, "mia", tmp_path)
    assert mia.show("leo").versions[0].aliases == mia.show("mia").versions[0].aliases == ["best"]


@pytest.mark.parametrize("alias", ["Best", "", "1", "42", "a b", "-x"])
def test_a_bad_alias_is_refused(mia: Registry, tmp_path: Path, alias: str) -> None:
    mia.add_version("mia", {"w": weights_file(tmp_path / "w")})
    with pytest.raises(InvalidInput):
        mia.set_alias("mia", 1, alias)
    assert aliases(mia) == [[]]


@pytest.mark.parametrize("number", [0, -1, 2, 2**70])
def test_an_unknown_version_is_an_error(mia: Registry, tmp_path: Path, number: int) -> None:
    mia.add_version("mia", {"w": weights_file(tmp_path / "w")})
    for use in (
        lambda: mia.set_alias("mia", number, "best"),
        lambda: mia.add_evaluation("mia", number, suite="s", config={}, scores={}),
        lambda: draw_with(mia, PICTURE, ("mia", number)),
    ):
        with pytest.raises(NotFound, match=f'"mia" has no version {number}') as caught:
            use()
        assert caught.value.hint == "concept show mia"
    assert rows_of(mia.location.database)["generation"] == []


# --- scores -------------------------------------------------------------------------------------


def test_scores_are_recorded(mia: Registry, tmp_path: Path) -> None:
    train(mia, "mia", tmp_path)
    (row,) = rows_of(mia.location.database)["evaluation"]
    assert row[2:5] == ("live", '{"prompts": 2}', '{"clip_i": 0.75, "parts": [1, 2]}')


# --- from a picture back to the photos ----------------------------------------------------------


def test_a_picture_leads_back_to_its_photos(mia: Registry, tmp_path: Path) -> None:
    number = train(mia, "mia", tmp_path)
    draw_with(mia, PICTURE, ("mia", number))
    found = mia.trace(PICTURE)
    (run,) = mia.show("mia").runs
    (source,) = found.sources
    assert (found.prompt, found.seed) == ("a photo of <rex> on a sofa", 7)
    assert (found.base, found.settings) == ("miniature", {"steps": 20, "guidance": 7.5})
    assert (source.concept, source.version) == ("mia", number)
    assert (source.run, source.method) == (run.run, "textual-inversion")
    assert source.images == photo_hashes(mia)


def test_a_picture_of_several_concepts_leads_to_all(mia: Registry, tmp_path: Path) -> None:
    mia.add("leo", [draw_file(tmp_path / "leo.png", 9, SMALL)], category="cat")
    for name, seed in (("mia", 1), ("mia", 2), ("leo", 3)):
        train(mia, name, tmp_path, seed=seed)
    draw_with(mia, PICTURE, ("mia", 2), ("leo", 1))
    sources = mia.trace(PICTURE).sources
    assert [(source.concept, source.version) for source in sources] == [("leo", 1), ("mia", 2)]
    assert [source.images for source in sources] == [photo_hashes(mia, "leo"), photo_hashes(mia)]


def test_photos_added_after_a_training_did_not_teach_it(mia: Registry, tmp_path: Path) -> None:
    before = photo_hashes(mia)
    draw_with(mia, PICTURE, ("mia", train(mia, "mia", tmp_path)))
    mia.add("mia", [draw_file(tmp_path / "late.png", 9, SMALL)])
    assert mia.trace(PICTURE).sources[0].images == before


def test_photos_that_a_training_left_out_did_not_teach_it(mia: Registry, tmp_path: Path) -> None:
    chosen = photo_hashes(mia)[1:2]
    run = mia.begin_run(
        "mia",
        method="sefi",
        config={"photos": chosen},
        base="miniature",
        base_sha256="b" * 64,
        seed=1,
        packages={},
    )
    mia.end_run(run, "done")
    weights = weights_file(tmp_path / "weights.safetensors", 1)
    number = mia.add_version("mia", {"token.safetensors": weights}, run=run)
    draw_with(mia, PICTURE, ("mia", number))
    assert mia.trace(PICTURE).sources[0].images == chosen


def test_a_removed_photo_is_still_known(mia: Registry, tmp_path: Path) -> None:
    before = photo_hashes(mia)
    draw_with(mia, PICTURE, ("mia", train(mia, "mia", tmp_path)))
    mia.edit("mia", remove_images=["01.png"])
    assert len(photo_hashes(mia)) == 2
    assert mia.trace(PICTURE).sources[0].images == before


def test_a_renamed_concept_is_known_by_its_new_name(mia: Registry, tmp_path: Path) -> None:
    draw_with(mia, PICTURE, ("mia", train(mia, "mia", tmp_path)))
    mia.rename("mia", "leo")
    assert mia.trace(PICTURE).sources[0].concept == "leo"


def test_a_version_without_a_run_has_no_photos(mia: Registry, tmp_path: Path) -> None:
    number = mia.add_version("mia", {"w": weights_file(tmp_path / "w")})
    draw_with(mia, PICTURE, ("mia", number))
    (source,) = mia.trace(PICTURE).sources
    assert (source.version, source.run, source.method, source.images) == (1, None, None, [])


def test_a_picture_outlives_its_concept(mia: Registry, tmp_path: Path) -> None:
    draw_with(mia, PICTURE, ("mia", train(mia, "mia", tmp_path)))
    mia.remove(["mia"])
    found = mia.trace(PICTURE)
    assert (found.seed, found.sources) == (7, [])


def test_a_picture_drawn_twice_leads_to_the_last_time(mia: Registry, tmp_path: Path) -> None:
    for seed in (1, 2):
        draw_with(mia, PICTURE, ("mia", train(mia, "mia", tmp_path, seed=seed)))
    assert [source.version for source in mia.trace(PICTURE).sources] == [2]


def test_a_picture_without_concepts_has_no_sources(mia: Registry) -> None:
    draw_with(mia, PICTURE)
    assert mia.trace(PICTURE).sources == []


def test_an_unknown_picture_is_an_error(mia: Registry) -> None:
    with pytest.raises(NotFound, match=f"no picture with the hash {PICTURE}"):
        mia.trace(PICTURE)


def test_versions_are_shown_in_full(mia: Registry, tmp_path: Path) -> None:
    train(mia, "mia", tmp_path)
    (version,) = mia.show("mia").versions
    assert isinstance(version, VersionRecord)
    assert (version.number, version.aliases) == (1, ["best"])
    assert [artifact.kind for artifact in version.artifacts] == ["adapter"]

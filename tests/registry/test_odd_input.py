"""Words, numbers and paths that nothing can bear: told as what they are, never a bug."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conceptry.registry import ConceptryError, InvalidInput, NotFound, Registry, StorageError
from copies import copied
from drawing import draw_folder
from fake_training import begin, draw_with, train
from snapshot import rows_of

BROKEN = "re\udcff"  # what Python makes of an argument that is not UTF-8
HUGE = 2**70
LONG = "x" * 300
PHOTOS = "photos"
WEIGHTS = "rex-1.safetensors"

Call = Callable[[Registry], object]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a registry that has one concept, rex, with a version."""
    folder = tmp_path_factory.mktemp("made")
    photos = draw_folder(folder / PHOTOS, 1, size=(64, 64))
    with Registry.open(folder / "registry/concepts.db", create=True) as registry:
        registry.add("rex", [photos], category="dog")
        train(registry, "rex", folder)
    return folder


@pytest.fixture
def rex(made: Path, tmp_path: Path) -> Iterator[Registry]:
    """The registry of a copy of it, in the current folder."""
    with copied(made, tmp_path) as registry:
        yield registry


def run_of(registry: Registry) -> str:
    return registry.show("rex").runs[0].run


def picture(
    registry: Registry, sha256: str = "c" * 64, prompt: str = "a dog", seed: int = 1
) -> None:
    facts = {"base": "b", "base_sha256": "b", "settings": {}, "versions": [("rex", 1)]}
    registry.add_generation(sha256, prompt=prompt, seed=seed, **facts)


UNKNOWN: dict[str, Call] = {
    "show": lambda r: r.show(BROKEN),
    "history": lambda r: r.history(BROKEN),
    "edit": lambda r: r.edit(BROKEN, notes="x"),
    "rename": lambda r: r.rename(BROKEN, "max"),
    "remove": lambda r: r.remove([BROKEN]),
    "export": lambda r: r.export_bundle([BROKEN], "new.concept"),
    "caption": lambda r: r.edit("rex", captions={BROKEN: "x"}),
    "photo": lambda r: r.edit("rex", remove_images=[BROKEN]),
    "begin_run": lambda r: begin(r, BROKEN),
    "end_run": lambda r: r.end_run(BROKEN, "done"),
    "log_metrics": lambda r: r.log_metrics(BROKEN, [("a", 1, "b", 1.0)]),
    "add_version": lambda r: r.add_version(BROKEN, {"w": WEIGHTS}),
    "run of a version": lambda r: r.add_version("rex", {"w": WEIGHTS}, run=BROKEN),
    "set_alias": lambda r: r.set_alias(BROKEN, 1, "best"),
    "add_evaluation": lambda r: r.add_evaluation(BROKEN, 1, suite="s", config={}, scores={}),
    "add_generation": lambda r: draw_with(r, "c" * 64, (BROKEN, 1)),
    "trace": lambda r: r.trace(BROKEN),
}


@pytest.mark.parametrize("call", UNKNOWN.values(), ids=UNKNOWN)
def test_broken_text_names_nothing(rex: Registry, call: Call) -> None:
    before = rows_of(rex.location.database)
    with pytest.raises(NotFound):
        call(rex)
    assert rows_of(rex.location.database) == before
    assert rex.check(read_data=True).problems == []


HARMLESS: dict[str, Call] = {
    "find a tag": lambda r: r.find(tags=[BROKEN]),
    "find a category": lambda r: r.find(category=BROKEN),
    "find text": lambda r: r.find(text=BROKEN),
    "untag": lambda r: r.edit("rex", untag=[BROKEN]),
    "tag": lambda r: r.edit("rex", tag=[BROKEN]),
    "notes": lambda r: r.edit("rex", notes=BROKEN),
    "category": lambda r: r.edit("rex", category=BROKEN),
    "new name": lambda r: r.rename("rex", BROKEN),
    "alias": lambda r: r.set_alias("rex", 1, BROKEN),
    "prompt": lambda r: picture(r, prompt=BROKEN),
    "picture": lambda r: picture(r, BROKEN),
    "seed of a picture": lambda r: picture(r, seed=HUGE),
    "seed of a run": lambda r: begin(r, "rex", seed=HUGE),
    "step": lambda r: r.log_metrics(run_of(r), [("one", HUGE, "loss", 1.0)]),
    "metric": lambda r: r.log_metrics(run_of(r), [(BROKEN, 1, BROKEN, 1.0)]),
    "limit": lambda r: r.find(limit=HUGE),
    "page": lambda r: r.find(page=HUGE),
    "many tags": lambda r: r.find(tags=[f"t{i}" for i in range(1500)]),
    "limit of history": lambda r: r.history(limit=HUGE),
    "score that is no number": lambda r: r.add_evaluation(
        "rex", 1, suite="s", config={"rate": float("inf")}, scores={"clip": float("nan")}
    ),
    "config that is no number": lambda r: r.begin_run(
        "rex",
        method="m",
        config={"rate": float("nan")},
        base="b",
        base_sha256="b",
        seed=1,
        packages={},
    ),
}


@pytest.mark.parametrize("call", HARMLESS.values(), ids=HARMLESS)
def test_odd_words_and_numbers_are_refused_or_harmless(rex: Registry, call: Call) -> None:
    try:
        call(rex)
    except InvalidInput as error:
        assert error.message  # noqa: PT017 (one of two right outcomes)
    assert rex.check(read_data=True).problems == []
    rex.gc()
    rex.export_bundle(rex.names(), "all.concept")


PATHS: dict[str, Callable[[Registry, str], object]] = {
    "open": lambda _, path: Registry.open(path),
    "create": lambda _, path: Registry.open(path, create=True),
    "add": lambda r, path: r.add("rex", [path]),
    "add a pattern": lambda r, path: r.add("rex", [f"{path}*"]),
    "masks": lambda r, path: r.add("rex", [PHOTOS], masks=path),
    "export": lambda r, path: r.export_bundle(["rex"], path),
    "import": lambda r, path: r.import_bundle(path),
    "backup": lambda r, path: r.backup(path),
    "check": lambda r, path: r.check(look_in=path),
    "weights": lambda r, path: r.add_version("rex", {"w": path}),
}


@pytest.mark.parametrize("path", ["a\0b", LONG, f"{LONG}/a"], ids=["nul", "long", "long folder"])
@pytest.mark.parametrize("call", PATHS.values(), ids=PATHS)
def test_a_path_that_cannot_be_is_an_error_of_ours(
    rex: Registry, call: Callable[[Registry, str], object], path: str
) -> None:
    before = rows_of(rex.location.database)
    with pytest.raises((InvalidInput, NotFound, StorageError)) as caught:
        call(rex, path)
    assert isinstance(caught.value, ConceptryError)
    assert rows_of(rex.location.database) == before
    assert rex.check(read_data=True).problems == []

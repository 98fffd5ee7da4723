"""Fixtures for all tests."""

import gc
import os
import random
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import pytest
from conceptry.models import bases
from conceptry.registry import Registry
from copies import copied, made_with_rex
from drawing import draw_folder

# Before anything imports Triton or torch:
if not Path("/dev/nvidia0").exists():
    os.environ["TRITON_INTERPRET"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin starve those they wait for
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault(
        "OMP_NUM_THREADS", "1"
    )  # workers that share cores wait for each other's threads


FEW_STEPS = 4
"""In which pictures of other base models than the miniature are drawn, if nothing else is asked."""


# A machine may be busy, and its checkout read-only.
hypothesis.settings.register_profile(
    "any machine",
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("any machine")


# Whether they are good is asked of the miniature, which says itself in how many.
object.__setattr__(bases.Base("", "folder", "").sampling, "steps", FEW_STEPS)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--shuffle 3` runs tests in an order of its own, and fixtures of modules anew each time."""
    parser.addoption("--shuffle", type=int, metavar="SEED", help="run tests in another order")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The same order in every xdist worker."""
    if (seed := config.getoption("--shuffle")) is not None:
        random.Random(seed).shuffle(items)


gc.disable()  # while modules are imported, which leaves none


def pytest_collection_finish() -> None:
    """Every stage of a training collects garbage: let it look at what is new, not at all there is.

    What is old is collected whenever Python finds that there is much of it.
    """
    gc.enable()
    gc.freeze()
    if memory := sys.modules.get("accelerate.utils.memory"):
        vars(memory)["gc"] = SimpleNamespace(collect=partial(gc.collect, 1))


def pytest_sessionfinish() -> None:
    """Some libraries complain of what is still there when Python ends."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _nothing_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees or touches the registry of the person who runs it."""
    monkeypatch.delenv("CONCEPT_REGISTRY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home/data"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Where the test's registry is, or will be."""
    return tmp_path / "registry" / "concepts.db"


@pytest.fixture
def registry(database: Path) -> Iterator[Registry]:
    """An empty registry."""
    with Registry.open(database, create=True, timeout=600) as opened:
        yield opened


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of three drawn photos."""
    return draw_folder(tmp_path / "photos", 3)


@pytest.fixture(scope="session")
def with_rex(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three photos, and a registry in which they are the dog rex."""
    return made_with_rex(tmp_path_factory.mktemp("with_rex"))


@pytest.fixture
def rex(with_rex: Path, tmp_path: Path) -> Iterator[Registry]:
    """A registry with one concept, rex, a dog with three photos, and them as a folder."""
    with copied(with_rex, tmp_path) as registry:
        yield registry

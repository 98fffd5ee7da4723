"""Fixtures that run commands on the test's registry."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conceptry.registry import Registry
from drawing import draw_folder
from program import Ask, Run, invoke
from safetensors.numpy import save_file


@pytest.fixture(scope="session")
def with_rex(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three photos, and a registry in which they are the dog rex."""
    folder = tmp_path_factory.mktemp("with_rex")
    with Registry.open(folder / "registry/concepts.db", create=True) as made:
        made.add("rex", [draw_folder(folder / "photos", 3)], category="dog", tags=["pets"])
    return folder


@pytest.fixture
def rex(with_rex: Path, tmp_path: Path, database: Path) -> Iterator[Registry]:
    """The same as for all tests, but copied: most tests here begin with it."""
    shutil.copytree(with_rex, tmp_path, dirs_exist_ok=True)
    with Registry.open(database, timeout=600) as opened:
        yield opened


@pytest.fixture
def run(database: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command line: `run("show", "rex")`. Processes that a test starts find it too."""
    monkeypatch.setenv("CONCEPT_REGISTRY", str(database))
    return invoke


@pytest.fixture
def ask(run: Run) -> Ask:
    """Runs a command that has to succeed, and returns its JSON document."""

    def ask(*arguments: str | Path, **options: Any) -> dict[str, Any]:
        result = run("--json", *arguments, **options)
        assert (result.exit_code, result.stderr) == (0, ""), result.output
        return json.loads(result.stdout)

    return ask


@pytest.fixture
def trained(rex: Registry, tmp_path: Path) -> Registry:
    """A registry whose rex has a training and the version that came of it."""
    weights = tmp_path / "rex.safetensors"
    save_file({"token": np.ones((2, 3), dtype=np.float32)}, weights)
    run = rex.begin_run(
        "rex",
        method="textual-inversion",
        config={"steps": 10},
        base="miniature",
        base_sha256="0" * 64,
        seed=7,
        packages={"torch": "2.9"},
    )
    rex.end_run(run, "done")
    number = rex.add_version("rex", {"adapter": weights}, run=run)
    rex.set_alias("rex", number, "best")
    return rex

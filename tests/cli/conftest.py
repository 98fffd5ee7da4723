"""Fixtures that run commands on the test's registry."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conceptry.registry import Registry
from copied_bases import _loaded_once
from program import Ask, Run, invoke
from safetensors.numpy import save_file

__all__ = ["_loaded_once"]


@pytest.fixture
def run(database: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command line: `run("show", "rex")`. Processes that a test starts find it too."""
    monkeypatch.setenv("CONCEPT_REGISTRY", str(database))
    return invoke


@pytest.fixture
def ask(run: Run) -> Ask:
    """Runs a command that has to succeed, warning at most, and returns its JSON document."""

    def ask(*arguments: str | Path, **options: Any) -> dict[str, Any]:
        result = run("--json", *arguments, **options)
        assert result.exit_code == 0, result.output
        assert all(line.startswith("warning: ") for line in result.stderr.splitlines())
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

"""Completion of concept names in a shell."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conceptry.cli.arguments import complete_concept
from conceptry.registry import Registry
from program import Run, run_concept

BASH = {"_CONCEPT_COMPLETE": "complete_bash"}
ZSH = {"_CONCEPT_COMPLETE": "complete_zsh"}


@pytest.fixture
def pets(rex: Registry) -> Registry:
    """A registry with rex, roy and mia."""
    for name in ("roy", "mia"):
        rex.add(name, ["photos/00.png"], category="dog")
    return rex


def offered(line: str) -> list[str]:
    """What bash is told to offer at the end of a line."""
    words = line.split(" ")
    done = run_concept(env={**BASH, "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)})
    assert done.stderr == ""
    return done.stdout.split()


def complete(prefix: str, registry: str | None = None) -> list[str]:
    context: Any = SimpleNamespace(params={}, parent=None)
    context.find_root = lambda: SimpleNamespace(params={"registry": registry})
    return complete_concept(context, prefix)


def test_names_that_begin_so(pets: Registry, run: Run) -> None:
    assert complete("r") == ["rex", "roy"]
    assert complete("") == ["mia", "rex", "roy"]
    assert complete("x") == []


def test_in_bash(pets: Registry, run: Run) -> None:
    assert offered("concept show r") == ["rex", "roy"]


def test_in_zsh(pets: Registry, run: Run) -> None:
    done = run_concept(env={**ZSH, "_TYPER_COMPLETE_ARGS": "concept rm rex m"})
    assert '"mia"' in done.stdout
    assert '"rex"' not in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("line", ["--registry {} show r", "show --registry {} r"])
def test_from_the_registry_that_the_line_names(pets: Registry, database: Path, line: str) -> None:
    assert offered("concept " + line.format(database)) == ["rex", "roy"]


def test_leaves_nothing_behind(pets: Registry, run: Run, database: Path) -> None:
    pets.close()
    before = sorted(database.parent.rglob("*"))
    assert complete("r") == ["rex", "roy"]
    assert sorted(database.parent.rglob("*")) == before


def test_sees_what_another_process_has_just_written(pets: Registry, run: Run) -> None:
    pets.rename("mia", "ria")  # still in the write-ahead log
    assert complete("r") == ["rex", "ria", "roy"]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("nowhere/concepts.db", id="missing"),
        pytest.param("photos/00.png", id="no-database"),
        pytest.param("empty.db", id="empty"),
        pytest.param("photos", id="folder"),
        pytest.param("~nobody-of-this-name/concepts.db", id="no-such-user"),
        pytest.param("x" * 5000, id="too-long"),
    ],
)
def test_silent_without_a_sound_registry(photos: Path, path: str) -> None:
    Path("empty.db").touch()
    assert complete("r", path) == []
    assert not Path("nowhere").exists()


def test_silent_with_a_damaged_registry_in_a_shell(pets: Registry, database: Path) -> None:
    pets.close()
    database.write_bytes(b"\xff" * 5000)
    assert offered(f"concept --registry {database} show r") == []

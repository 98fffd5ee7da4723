"""What may import what, and that quick commands stay quick."""

import ast
import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from conceptry.cli.app import COMMANDS
from drawing import draw_file
from foreign_files import write_embedding
from program import ROOT, command_named, run_python

PACKAGES = (
    "adapters",
    "cli",
    "evaluation",
    "generation",
    "kernels",
    "methods",
    "models",
    "registry",
    "training",
)
HEAVY = ("torch", "diffusers", "transformers", "accelerate")


IN_ONE_PROCESS = f"""
import json, shlex, sys
from conceptry.cli import main
met = {{}}
for line in json.loads(sys.argv[1]):
    sys.argv[1:] = shlex.split(line)
    try:
        main()
    except SystemExit as stopped:
        met[line] = [stopped.code, sorted(set({HEAVY}) & set(sys.modules))]
print()
print(json.dumps(met))
"""
"""Runs command lines; prints for each its exit code, and which of some modules are loaded."""
LINES = {
    "--help": 0,
    "add rex photo.png --category dog": 0,
    "list": 0,
    "gallery shown": 0,
    "show rex": 0,
    "edit rex --notes old": 0,
    "history": 0,
    "path": 0,
    "bases": 0,
    "generate 'a cat' --base nobody": 3,
    "generate 'a photo of <nobody>'": 3,
    "generate 'a cat' --dry-run": 0,
    "generate --prompts photo.png": 2,
    "reproduce photo.png": 2,
    "train nobody": 3,
    "train rex --set stage9.steps=1": 2,
    "eval nobody": 3,
    "eval rex --suite nobody": 3,
    "queue add rex": 0,
    "queue add nobody": 3,
    "queue list": 0,
    "queue first 1": 0,
    "queue rm 1": 0,
    "queue run": 0,
    "compress nobody": 3,
    "compress rex --to svd:0": 2,
    "compress rex --alias 2": 2,
    "mask nobody": 3,
    "caption nobody": 3,
    "suites": 0,
    "methods": 0,
    "presets": 0,
    "export rex rex.concept": 0,
    "rename rex max": 0,
    "import rex.concept": 0,
    "import word.safetensors": 0,
    "export word again.safetensors --format original": 0,
    "backup copy": 0,
    "check --read-data --repair": 0,
    "rm rex --yes": 0,
    "gc --grace 0": 0,
    "show nobody": 3,
}
"""Command lines, and their exit codes: what ends too early loads nothing."""


def test_no_command_loads_a_deep_learning_library_without_need(tmp_path: Path) -> None:
    draw_file(tmp_path / "photo.png")
    write_embedding(tmp_path / "word.safetensors")
    registry = str(tmp_path / "concepts.db")
    output = run_python(IN_ONE_PROCESS, json.dumps([*LINES]), CONCEPT_REGISTRY=registry)
    assert json.loads(output.splitlines()[-1]) == {line: [code, []] for line, code in LINES.items()}
    named = {command_named(shlex.split(line))[1] for line in LINES}
    assert named >= {name for name, _, _ in COMMANDS}


def test_an_interrupt_before_a_command_begins_is_an_exit_code() -> None:
    program = """
from conceptry.cli import app as module, main
def interrupted():
    raise KeyboardInterrupt
module.app = interrupted
try:
    main()
except SystemExit as stopped:
    print(stopped.code)
"""
    assert run_python(program).splitlines() == ["130"]


def test_help_loads_no_database_library() -> None:
    program = f"""
import sys
sys.argv[1:] = ["--help"]
from conceptry.cli import main
try:
    main()
finally:
    print([name for name in {("sqlmodel", "PIL", "numpy", *HEAVY)} if name in sys.modules])
"""
    assert run_python(program).splitlines()[-1] == "[]"


def test_reading_loads_neither_the_orm_nor_what_decodes_photos(tmp_path: Path) -> None:
    draw_file(tmp_path / "photo.png")
    registry = str(tmp_path / "concepts.db")
    add = "add rex photo.png --category dog"
    run_python(IN_ONE_PROCESS, json.dumps([add]), CONCEPT_REGISTRY=registry)
    lines = ["list", "list rex --json", "show rex", "history", "path rex"]
    program = IN_ONE_PROCESS.replace(repr(HEAVY), repr(("sqlalchemy", "sqlmodel", "numpy", "PIL")))
    output = run_python(program, json.dumps(lines), CONCEPT_REGISTRY=registry)
    assert json.loads(output.splitlines()[-1]) == {line: [0, []] for line in lines}


def test_what_typer_does_not_have_to_check_loads_no_pydantic(tmp_path: Path) -> None:
    draw_file(tmp_path / "photo.png")
    registry = str(tmp_path / "concepts.db")
    add = "add rex photo.png --category dog"
    run_python(IN_ONE_PROCESS, json.dumps([add]), CONCEPT_REGISTRY=registry)
    lines = ["list", "list --json --sort name", "show rex", "--version"]
    program = IN_ONE_PROCESS.replace(repr(HEAVY), repr(("pydantic",)))
    output = run_python(program, json.dumps(lines), CONCEPT_REGISTRY=registry)
    assert json.loads(output.splitlines()[-1]) == {line: [0, []] for line in lines}


@pytest.mark.parametrize(("wish", "expected"), [(None, "1000"), ("ACTIVE", "None")])
def test_threads_that_wait_soon_sleep_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, wish: str | None, expected: str
) -> None:
    """OpenMP reads it when torch is loaded."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    if wish:
        monkeypatch.setenv("OMP_WAIT_POLICY", wish)
    program = """
import os, sys
sys.argv[1:] = ["methods", "--quiet"]
from conceptry.cli import main
try:
    main()
finally:
    print(os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules)
"""
    assert run_python(program).splitlines()[-1] == f"{expected} False"


def test_no_module_of_the_registry_loads_a_deep_learning_library() -> None:
    modules = [f"conceptry.registry.{path.stem}" for path in (ROOT / "registry").glob("[a-z]*.py")]
    program = f"""
import importlib, sys
for name in {modules}:
    importlib.import_module(name)
print(sorted(set({HEAVY}) & set(sys.modules)))
"""
    assert "conceptry.registry.registry" in modules
    assert run_python(program) == "[]\n"


@pytest.mark.long
def test_other_libraries_find_no_foreign_packages_at_the_root(tmp_path: Path) -> None:
    """Transformers and Diffusers look for an importable `kernels` of their own."""
    program = f"""
import os, sys
os.chdir({str(ROOT)!r})
sys.path.insert(0, {str(ROOT)!r})
import transformers, diffusers
from transformers import CLIPTextModel
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
print(CLIPTextModel.__name__, StableDiffusionPipeline.__name__, UNet2DConditionModel.__name__)
"""
    loaded = run_python(program, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert loaded == "CLIPTextModel StableDiffusionPipeline UNet2DConditionModel\n"


def imports_of(path: Path) -> Iterator[str]:
    """The dotted names that a file of the product imports, ours as `conceptry.…`."""
    package = ["conceptry", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            parts = [*base, *(node.module.split(".") if node.module else [])]
            yield from (".".join([*parts, alias.name]) for alias in node.names)


def test_the_registry_names_no_deep_learning_library() -> None:
    names = {
        name.split(".")[0]
        for path in (ROOT / "registry").rglob("*.py")
        for name in imports_of(path)
    }
    assert not names & set(HEAVY)


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_within_the_product_are_relative(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            absolute = isinstance(node, ast.ImportFrom) and not node.level and node.module
            assert not str(absolute).startswith("conceptry"), path

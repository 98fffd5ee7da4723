"""The house has floors: a package imports lower ones only, and no module imports in a circle."""

import ast
import re
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from program import ROOT

FLOORS = (
    "cli",
    "evaluation",
    "training",
    "generation",
    "methods",
    "adapters",
    "models",
    "kernels",
    "registry",
)
"""From the top down. `kernels` and `registry` stand beside each other."""


def modules() -> dict[str, Path]:
    """All modules of the product by dotted name, packages by theirs."""
    paths = (path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))
    return {_dotted(path): path for path in paths}


def _dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """The modules of ours that one imports, also where only types need them."""
    package = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            origin = ".".join(part for part in base if part)
            for alias in node.names:
                name = f"{origin}.{alias.name}"
                yield name if name in known else origin


def test_the_walk_sees_imports() -> None:
    known = modules()
    assert "registry.registry" in set(imports(known["cli.framework"], known)) | set(
        imports(known["registry"], known)
    )
    assert "models.backbone" in set(imports(known["models.sd"], known))
    assert len(known) > 100


def test_nothing_imports_upwards() -> None:
    known = modules()
    upwards = [
        f"{name} -> {target}"
        for name, path in known.items()
        for target in imports(path, known)
        if FLOORS.index(target.split(".")[0]) < FLOORS.index(name.split(".")[0])
    ]
    assert upwards == []


@pytest.mark.parametrize("package", ["registry", "kernels"])
def test_the_lowest_import_no_other(package: str) -> None:
    known = modules()
    found = {
        target.split(".")[0]
        for name, path in known.items()
        if name.split(".")[0] == package
        for target in imports(path, known)
    }
    assert found == {package}


def test_there_is_no_circle() -> None:
    """A package's face, its `__init__.py`, imports when it is asked."""
    known = modules()
    faces = {name for name, path in known.items() if path.name == "__init__.py"}
    graph = {
        name: {target for target in imports(path, known) if target not in faces}
        for name, path in known.items()
        if name not in faces
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"circle: {' -> '.join(error.args[1])}")


FAMILIES = {"models/sd.py", "models/sdxl.py"}
LOADING = {f"models/{name}.py" for name in ("latents", "loading", "compatibility", "shapes")}


def test_only_families_know_the_parts_of_a_pipeline() -> None:
    part = re.compile(r"\bpipeline\.|\.(unet|vae|text_encoder|tokenizer_2)\b(?!\.(json|safe))")
    found = {
        path.relative_to(ROOT).as_posix()
        for path in modules().values()
        if part.search(_code_of(path)) and "recipe" not in path.parts
    }
    assert found - FAMILIES - LOADING == {"models/backbone.py"}


def _code_of(path: Path) -> str:
    """A module without its texts and comments."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
    return ast.unparse(tree)


def test_scoring_imports_no_trainer() -> None:
    known = modules()
    found = {
        name
        for name, path in known.items()
        if name.startswith("evaluation.")
        and any("recipe" in target for target in imports(path, known))
    }
    assert found == {"evaluation.faces_recipe", "evaluation.judge_recipe"}

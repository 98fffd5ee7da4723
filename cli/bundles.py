"""`concept export` and `concept import`: concepts as one portable file."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..registry.errors import quoted
from .arguments import complete_concept
from .errors import usage
from .framework import session_of
from .output import count, size

if TYPE_CHECKING:
    from ..registry import Registry
    from ..registry.records import Concept


def export(
    context: typer.Context,
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME... FILE",
            help="The concepts, then the file to write.",
            autocompletion=complete_concept,
            show_default=False,
        ),
    ],
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace the file.")] = False,
) -> None:
    """Write concepts to one portable file.

    With their photos, runs and versions; `concept import` reads it.
    """
    session = session_of(context)
    *concepts, file = names
    if not concepts:
        raise usage("name the concepts and then the file", f"concept export NAME {quoted(file)}")
    with session.registry() as registry:
        done = registry.export_bundle(concepts, Path(file), overwrite=force)
    what = f"{', '.join(done.concepts)} ({count(done.blobs, 'file')}, {size(done.bytes)})"
    session.output.result(asdict(done), f"wrote {what} to {done.path}")


def import_(
    context: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A file from `concept export`.", show_default=False),
    ],
    new_name: Annotated[
        str | None,
        typer.Option("--as", metavar="NAME", help="Another name, if it holds a single concept."),
    ] = None,
) -> None:
    """Import the concepts of an exported file.

    All of them or, if one cannot be, none.
    """
    session = session_of(context)
    from ..registry import NotFound
    from ..registry.not_bundles import refuse_non_bundle

    if not os.path.exists(file):
        raise NotFound(f"{file} does not exist", hint=f"ls {quoted(file.parent)}")
    refuse_non_bundle(file)
    with session.registry(create=True) as registry:
        concepts = registry.import_bundle(file, name=new_name)
        undrawable = _undrawable(registry, concepts)
    lines = [
        f"imported {concept.name} ({concept.category}): {count(len(concept.images), 'photo')}, "
        f"{count(len(concept.versions), 'version')}"
        for concept in concepts
    ]
    session.output.lines({"concepts": [asdict(concept) for concept in concepts]}, lines)
    for label in undrawable:
        session.output.warn(f"{label} holds no adapter of concept train: it cannot be drawn with")


def _undrawable(registry: "Registry", concepts: "list[Concept]") -> list[str]:
    """Versions with weights that `generate` cannot use, as their files say at a glance."""
    from ..registry.tensors import is_adapter

    return [
        f"{concept.name}@{version.number}"
        for concept in concepts
        for version in concept.versions
        if not any(is_adapter(registry.path_of(each.sha256)) for each in version.artifacts)
    ]

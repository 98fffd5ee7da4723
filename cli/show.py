"""`concept show`: everything about one concept."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from .arguments import ConceptName
from .framework import session_of
from .output import count, moment, printable, size

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from ..registry.records import Concept


def show(context: typer.Context, name: ConceptName) -> None:
    """Show a concept: its photos, versions and trainings."""
    session = session_of(context)
    with session.registry() as registry:
        concept = registry.show(name)
    session.output.result(asdict(concept), *([] if session.output.as_json else _render(concept)))


def _render(concept: "Concept") -> "list[RenderableType]":
    facts = [
        f"{concept.name}, a {concept.category}: {count(len(concept.images), 'photo')}, "
        f"{count(len(concept.versions), 'version')}, {size(concept.bytes)}",
        f"tags: {' '.join(concept.tags)}" if concept.tags else "",
        f"notes: {concept.notes}" if concept.notes else "",
        f"created {moment(concept.created)}, updated {moment(concept.updated)} UTC",
    ]
    parts: list[RenderableType] = [printable("\n".join(fact for fact in facts if fact))]
    if concept.images:
        parts += ["", _images(concept)]
    if concept.versions:
        parts += ["", _versions(concept)]
    if concept.runs:
        parts += ["", _runs(concept)]
    return parts


def _images(concept: "Concept") -> "Table":
    table = _table("photo", "hash", "pixels", "format", "size", "mask", "caption")
    for image in concept.images:
        table.add_row(
            _text(image.filename),
            image.sha256[:8],
            f"{image.width}x{image.height}",
            image.format,
            size(image.bytes),
            "yes" if image.mask else "",
            _text(image.caption or ""),
        )
    return table


def _versions(concept: "Concept") -> "Table":
    table = _table("version", "aliases", "run", "size", "created (UTC)")
    for version in concept.versions:
        table.add_row(
            str(version.number),
            " ".join(version.aliases),
            version.run or "",
            size(sum(artifact.bytes for artifact in version.artifacts)),
            moment(version.created),
        )
    return table


def _runs(concept: "Concept") -> "Table":
    table = _table("run", "method", "status", "base", "seed", "started (UTC)")
    for run in concept.runs:
        table.add_row(
            run.run, run.method, run.status, _text(run.base), str(run.seed), moment(run.started)
        )
    return table


def _table(*headings: str) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _text(text: str) -> "Text":
    from rich.text import Text

    return Text(printable(text))

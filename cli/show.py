"""`concept show`: everything about one concept."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from .arguments import ConceptName
from .framework import session_of
from .output import count, moment, size, table

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from ..registry.records import Concept


def show(context: typer.Context, name: ConceptName) -> None:
    """Show a concept: its photos, versions and trainings."""
    session = session_of(context)
    with session.registry() as registry:
        concept = registry.show(name)
    session.output.result(asdict(concept), *([] if session.output.as_json else _render(concept)))


def _render(concept: "Concept") -> "list[RenderableType]":
    notes = f"notes: {concept.notes}" if concept.notes else ""
    facts = [
        f"{concept.name}, a {concept.category}: {count(len(concept.images), 'photo')}, "
        f"{count(len(concept.versions), 'version')}, {size(concept.size)}",
        f"tags: {' '.join(concept.tags)}" if concept.tags else "",
        *notes.splitlines(),
        *_imports(concept),
        *_on_disk(concept),
        f"created {moment(concept.created)}, updated {moment(concept.updated)} UTC",
    ]
    parts: list[RenderableType] = [fact for fact in facts if fact]
    if concept.images:
        parts += ["", _images(concept)]
    if concept.versions:
        parts += ["", _versions(concept)]
    if concept.runs:
        parts += ["", _runs(concept)]
    return parts


def _imports(concept: "Concept") -> list[str]:
    """What imported files are, with the hashes by which other tools know them."""
    from ..registry.records import IMPORT, originals_of

    runs = {run.run: run for run in concept.runs if run.method == IMPORT}
    lines: list[str] = []
    for version in concept.versions:
        if (run := runs.get(version.run or "")) is None:
            continue
        said = run.config.get("phrase") or "nothing"
        lines.append(
            f"{concept.name}@{version.number}: {run.config.get('holds')}, base model {run.base}, "
            f"in prompts: {said}"
        )
        hashes = run.config.get("hashes")
        of_tensors = hashes if isinstance(hashes, dict) else {}
        lines += [
            f"{each.name}: AutoV2 {each.sha256[:10]}, "
            f"AutoV3 {str(of_tensors.get(each.sha256, 'unknown'))[:12]}"
            for each in originals_of(version)
        ]
    return lines


def _on_disk(concept: "Concept") -> list[str]:
    """What takes the room, if photos are not all of it. Files that versions share count once."""
    files = {each.sha256: each.bytes for version in concept.versions for each in version.artifacts}
    versions, trainings = sum(files.values()), concept.size - concept.bytes
    if not versions + trainings:
        return []
    parts = [f"{size(concept.bytes - versions)} photos", f"{size(versions)} versions"]
    return [f"on disk: {', '.join(parts)}, {size(trainings)} kept of trainings"]


def _images(concept: "Concept") -> "Table":
    headings = ("photo", "hash", "pixels", "format", "size", "mask", "caption")
    return table(
        headings,
        [
            (
                image.filename,
                image.sha256[:8],
                f"{image.width}x{image.height}",
                image.format,
                size(image.bytes),
                "yes" if image.mask else "",
                image.caption or "",
            )
            for image in concept.images
        ],
    )


def _versions(concept: "Concept") -> "Table":
    from ..registry.records import made_of

    has_origin = any(version.origin for version in concept.versions)
    return table(
        (
            *("version", "aliases", "run", "size", "created (UTC)"),
            *(("made of",) if has_origin else ()),
        ),
        [
            (
                str(version.number),
                " ".join(version.aliases),
                version.run or "",
                size(sum(artifact.bytes for artifact in version.artifacts)),
                moment(version.created),
                *((made_of(version),) if has_origin else ()),
            )
            for version in concept.versions
        ],
    )


def _runs(concept: "Concept") -> "Table":
    return table(
        ("run", "method", "status", "base", "seed", "started (UTC)"),
        [
            (run.run, run.method, run.status, run.base, str(run.seed), moment(run.started))
            for run in concept.runs
        ],
    )

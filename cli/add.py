"""`concept add`: add photos to a concept."""

import codecs
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .arguments import ConceptName
from .framework import session_of
from .output import Output, count, unused_in_training

if TYPE_CHECKING:
    from ..registry.records import AddReport


def add(
    context: typer.Context,
    name: ConceptName,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH",
            help="Photos: files, folders, quoted patterns, or - for a list on stdin.",
            show_default=False,
        ),
    ],
    category: Annotated[
        str | None,
        typer.Option(
            "--category",
            "-c",
            metavar="WORD",
            help="What it is, in a word; needed for a new concept.",
        ),
    ] = None,
    caption: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Caption of the photos that have no text file beside them."
        ),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder of subject masks named like the photos; white is subject."
        ),
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", "-t", metavar="T", help="A tag; may be repeated.")
    ] = None,
    notes: Annotated[str | None, typer.Option(metavar="TEXT", help="Notes for yourself.")] = None,
) -> None:
    """Add photos to a new or old concept.

    All of them are added or, if one cannot be used, none.
    """
    session = session_of(context)
    named = [path for given in paths for path in (_stdin_paths() if given == "-" else [given])]
    said: dict[str, Any] = {
        "category": category,
        "caption": caption,
        "masks": masks,
        "tags": tag or [],
        "notes": notes,
    }
    if session.lacks_registry():
        from ..registry.intake import check_new

        check_new(name, named, **said)
    with session.registry(create=True) as registry, session.output.progress("reading") as advance:
        done = registry.add(name, named, **said, on_progress=advance)
    document = asdict(done)
    session.output.result({**document.pop("concept"), **document}, _summary(done))
    _tell_doubts(done, session.output)


def _stdin_paths() -> list[str]:
    """Paths from stdin, one a line, or separated by NUL as `find -print0` does.

    Lines may end, and the list begin, as on Windows.
    """
    data = sys.stdin.buffer.read()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        data = data.decode("utf-16", "replace").encode()
    text = os.fsdecode(data.removeprefix(codecs.BOM_UTF8))
    if "\0" in text:
        return [path for path in text.split("\0") if path]
    return [path for line in text.split("\n") if (path := line.removesuffix("\r"))]


def _summary(done: "AddReport") -> str:
    concept = done.concept
    return (
        f"{concept.name} ({concept.category}): {count(len(done.added), 'photo')} added, "
        f"{len(concept.images):,} in all"
    )


def _tell_doubts(done: "AddReport", output: Output) -> None:
    for double in done.duplicates:
        if double.exact:
            took = f"; took its {' and '.join(double.updated)}" if double.updated else ""
            output.note(f"{double.path} is there already, as {double.of_filename}{took}")
        else:
            looks = f"looks like {double.of_filename} ({double.distance} of 64 bits differ)"
            output.warn(f"{double.path} {looks}")
    for doubt in done.warnings:
        output.warn(f"{doubt.path} {doubt.message}")
    new = {image.sha256 for image in done.added}
    new |= {double.sha256 for double in done.duplicates if double.updated}
    unused, options = unused_in_training([i for i in done.concept.images if i.sha256 in new])
    if unused:
        output.note(f"{unused} are kept; trainings use them with {options}")

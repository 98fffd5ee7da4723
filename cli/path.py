"""`concept path`: the paths of the registry, and of a concept's pictures."""

from pathlib import Path
from typing import Annotated

import typer

from ..registry.records import PREVIEW
from .arguments import complete_concept
from .framework import session_of


def path(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="A concept: print the files of its photos.",
            autocompletion=complete_concept,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Print where the registry is, or a concept's photos and imported previews.

    Never write to these files.
    """
    session = session_of(context)
    if name is None:
        from ..registry import locate

        location = locate(session.registry_path)
        document = {
            "registry": str(location.database),
            "blobs": str(location.blobs),
            "exists": location.database.exists(),
        }
        session.output.lines(document, [str(location.database)])
        return
    with session.registry() as registry:
        concept = registry.show(name)
        images = [(each.filename, registry.path_of(each.sha256)) for each in concept.images]
        previews = [
            (each.name, registry.path_of(each.sha256))
            for version in concept.versions
            for each in version.artifacts
            if each.kind == PREVIEW
        ]
    document = {"name": name, "images": _files(images), "previews": _files(previews)}
    session.output.lines(document, [str(path) for _, path in (*images, *previews)])
    if not images and not previews:
        session.output.note(f"{name} has no photos: concept add {name} PHOTO…")


def _files(found: list[tuple[str, Path]]) -> list[dict[str, str]]:
    return [{"filename": name, "path": str(path)} for name, path in found]

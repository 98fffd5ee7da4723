"""`concept path`: the paths of the registry, and of a concept's photos."""

from typing import Annotated

import typer

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
    """Print where the registry is, or a concept's photos.

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
        images = registry.show(name).images
        paths = [str(registry.path_of(image.sha256)) for image in images]
    files = [
        {"filename": image.filename, "path": file}
        for image, file in zip(images, paths, strict=True)
    ]
    session.output.lines({"name": name, "images": files}, paths)

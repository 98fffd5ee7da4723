"""`concept backup`: a copy that is itself a registry."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .framework import session_of
from .output import count, size


def backup(
    context: typer.Context,
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="A folder, empty or with an earlier backup.", show_default=False
        ),
    ],
) -> None:
    """Copy the registry into a folder.

    The copy is a registry itself: to restore, use it as --registry, or copy it back.
    """
    session = session_of(context)
    with session.registry() as registry, session.output.progress("copying") as advance:
        done = registry.backup(folder, on_progress=advance)
    session.output.result(
        asdict(done),
        f"{count(done.concepts, 'concept')}, {count(done.blobs, 'file')} ({size(done.bytes)}) in "
        f"{done.path}, {done.copied:,} newly copied",
    )

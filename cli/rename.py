"""`concept rename`: give a concept another name."""

from dataclasses import asdict
from typing import Annotated

import typer

from .arguments import ConceptName
from .framework import session_of


def rename(
    context: typer.Context,
    name: ConceptName,
    new_name: Annotated[
        str, typer.Argument(metavar="NEW", help="Its new name.", show_default=False)
    ],
) -> None:
    """Give a concept another name.

    Its photos, versions and history stay with it.
    """
    session = session_of(context)
    with session.registry() as registry:
        concept = registry.rename(name, new_name)
    session.output.result(asdict(concept), f"{name} is now {new_name}")

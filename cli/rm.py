"""`concept rm`: remove concepts."""

import sys
from typing import Annotated

import typer

from .arguments import ConceptNames
from .errors import ExitCode, Failure, usage
from .framework import session_of
from .output import count


def _confirm(question: str) -> None:
    refused = Failure(ExitCode.INTERRUPTED, "interrupted", "nothing was removed", None)
    try:
        agreed = typer.confirm(question, err=True)
    except typer.Abort:
        raise refused from None
    if not agreed:
        raise refused


def rm(
    context: typer.Context,
    names: ConceptNames,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove concepts and their versions.

    All of them or, if one does not exist, none. Their files stay until `concept gc`.
    """
    session = session_of(context)
    names = list(dict.fromkeys(names))
    with session.registry() as registry:
        concepts = [registry.show(name) for name in names]
        if not yes:
            if session.output.as_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
                raise usage(
                    "removing needs --yes where no question can be asked",
                    f"concept rm {' '.join(names)} --yes",
                )
            photos = count(sum(len(concept.images) for concept in concepts), "photo")
            versions = count(sum(len(concept.versions) for concept in concepts), "version")
            _confirm(f"Remove {', '.join(names)} ({photos}, {versions})?")
        registry.remove(names)
    session.output.result({"removed": names}, f"removed {', '.join(names)}")
    session.output.note("the files stay until: concept gc")

"""`concept rm`: remove concepts and versions."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from .arguments import complete_concept
from .errors import ExitCode, Failure, usage
from .framework import session_of
from .output import count

if TYPE_CHECKING:
    from ..registry.records import Concept
    from .output import Output

RemovedNames = Annotated[
    list[str],
    typer.Argument(
        metavar="NAME[@VERSION]",
        help="Concepts, or single versions: by number, or a word such as best.",
        autocompletion=complete_concept,
        show_default=False,
    ),
]


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
    names: RemovedNames,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove concepts, or single versions of them.

    All that is named or, if one does not exist, nothing. With a version go its scores and the
    record of its training; its number is not given again. Files stay until `concept gc`.
    """
    session = session_of(context)
    names = list(dict.fromkeys(names))
    with session.registry() as registry:
        concepts = {name: registry.show(name.partition("@")[0]) for name in names}
        if not yes:
            if session.output.as_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
                raise usage(
                    "removing needs --yes where no question can be asked",
                    f"concept rm {' '.join(names)} --yes",
                )
            _confirm(f"Remove {', '.join(_described(*each) for each in concepts.items())}?")
        removed = registry.remove(names)
        session.output.result({"removed": removed}, f"removed {', '.join(removed)}")
        for before in {concept.id: concept for concept in concepts.values()}.values():
            if before.name not in removed:
                _tell_default(session.output, before, registry.show(before.id))
    session.output.note("the files stay until: concept gc")


def _described(name: str, concept: "Concept") -> str:
    if "@" in name:
        return name
    photos, versions = len(concept.images), len(concept.versions)
    return f"{name} ({count(photos, 'photo')}, {count(versions, 'version')})"


def _tell_default(output: "Output", before: "Concept", after: "Concept") -> None:
    """Say what a plain `<rex>` stands for now, if that has changed."""
    was, default = before.default_version, after.default_version
    if default is None:
        output.note(f"{after.name} has no version any more: concept train {after.name}")
    elif was and was.number != default.number:
        output.note(f"<{after.name}> is now {after.name}@{default.number}")

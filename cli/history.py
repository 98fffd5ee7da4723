"""`concept history`: the events of a registry."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from .arguments import complete_concept
from .framework import session_of
from .output import count

if TYPE_CHECKING:
    from ..registry.records import EventRecord


def history(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="A concept, present or removed; else all of them.",
            autocompletion=complete_concept,
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option(metavar="N", min=0, help="The last so many; 0 for all.")
    ] = 50,
) -> None:
    """Show what was done to a concept, oldest first."""
    session = session_of(context)
    with session.registry() as registry:
        events = registry.history(name, limit=limit)
    session.output.lines(
        {"events": [asdict(event) for event in events]}, [_line(event) for event in events]
    )


def _line(event: "EventRecord") -> str:
    at = event.at[:19].replace("T", " ")
    return f"{at}  {event.concept}  {event.action}  {_describe(event.detail)}".rstrip()


def _describe(detail: dict[str, object]) -> str:
    words: list[str] = []
    for key, value in detail.items():
        if isinstance(value, list) and key in ("images", "updated_images", "removed_images"):
            verb = key.removesuffix("images").rstrip("_")
            words.append(f"{count(len(value), 'photo')} {verb}".rstrip())
        elif isinstance(value, list):
            words += [f"{key.replace('_', ' ')} {item}" for item in value]
        elif isinstance(value, dict):
            words += [f"{key.rstrip('s')} {item}={text or ''}" for item, text in value.items()]
        elif value is not None:
            words.append(f"{key} {value}")
    return ", ".join(words).replace("\n", " ")

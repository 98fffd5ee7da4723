"""`concept list`: find concepts."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .arguments import CategoryOption, TagsOption
from .framework import session_of
from .output import count, moment, size

if TYPE_CHECKING:
    from rich.table import Table

    from ..registry.records import Page

SortKey = Literal["name", "created", "updated", "images", "versions", "bytes", "size"]


def list_concepts(
    context: typer.Context,
    text: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT",
            help="Words to find in name, category, tags, notes or captions.",
            show_default=False,
        ),
    ] = None,
    tag: TagsOption = None,
    category: CategoryOption = None,
    sort: Annotated[
        SortKey,
        typer.Option(
            metavar="KEY",
            help="What to sort by: name, created, updated, images, versions, bytes of stored "
            "files, or size on disk.",
        ),
    ] = "name",
    reverse: Annotated[bool, typer.Option("--reverse", "-r", help="Sort downwards.")] = False,
    limit: Annotated[
        int, typer.Option(metavar="N", min=0, help="Concepts on a page; 0 for all.")
    ] = 50,
    page: Annotated[int, typer.Option(metavar="N", min=1, help="Which page.")] = 1,
) -> None:
    """List concepts, a page at a time."""
    session = session_of(context)
    with session.registry() as registry:
        found = registry.find(
            text=" ".join(text or []),
            tags=tag or [],
            category=category,
            sort=sort,
            descending=reverse,
            limit=limit,
            page=page,
        )
    session.output.result(asdict(found), *([] if session.output.as_json else [_table(found)]))
    session.output.note(_where(found))


def _table(found: "Page") -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("name", style="bold", overflow="fold")
    table.add_column("category")
    for heading in ("photos", "versions", "size"):
        table.add_column(heading, justify="right")
    table.add_column("tags", overflow="fold")
    table.add_column("updated (UTC)", no_wrap=True)
    for concept in found.concepts:
        table.add_row(
            concept.name,
            concept.category,
            f"{concept.images:,}",
            f"{concept.versions:,}",
            size(concept.size),
            Text(" ".join(concept.tags)),
            moment(concept.updated),
        )
    return table


def _where(found: "Page") -> str:
    pages = f", page {found.page} of {found.pages}" if max(found.pages, found.page) > 1 else ""
    return count(found.total, "concept") + pages

"""`concept bases`: which base models there are."""

from typing import TYPE_CHECKING, Any

import typer

from .framework import session_of

if TYPE_CHECKING:
    from rich.table import Table


def bases(context: typer.Context) -> None:
    """List the base models that have a short name, and others in the hub's cache."""
    session = session_of(context)
    from ..models.bases import DEFAULT_BASE, Base, cached_bases, read_aliases

    def document(base: Base) -> dict[str, Any]:
        return {
            "name": base.name,
            "kind": base.kind,
            "source": base.source,
            "about": base.about,
            "at_hand": base.is_at_hand(),
            "is_default": base.name == DEFAULT_BASE,
        }

    found = [document(base) for base in [*read_aliases().values(), *cached_bases()]]
    session.output.result({"bases": found}, _table(found))


def _table(found: list[dict[str, Any]]) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("name", style="bold", overflow="fold")
    table.add_column("at hand")
    table.add_column("source", overflow="fold")
    table.add_column("about")
    for base in found:
        source = "shipped" if base["is_default"] else base["source"]
        cells = (base["name"], "yes" if base["at_hand"] else "no", source, base["about"])
        table.add_row(*map(Text, cells))
    return table

"""`concept methods` and `concept presets`: the ways to teach, and their settings."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .framework import session_of

if TYPE_CHECKING:
    from rich.table import Table


def methods(context: typer.Context) -> None:
    """List the methods that can teach a concept."""
    session = session_of(context)
    from ..methods.method import DEFAULT_METHOD, all_methods, read_presets

    found = [
        {
            "name": method.name,
            "about": method.about,
            "paper": method.paper,
            "stages": [stage.name for stage in method.stages],
            "presets": list(read_presets(method)),
            "is_default": method.name == DEFAULT_METHOD,
        }
        for method in all_methods().values()
    ]
    columns = {"name": "name", "about": "about", "paper": "paper", "presets": "presets"}
    session.output.result({"methods": found}, _table(found, columns))


def presets(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(metavar="PRESET", help="Show all of its settings.", show_default=False),
    ] = None,
    method: Annotated[str, typer.Option(metavar="METHOD", help="Of which method.")] = (
        "attndreambooth"
    ),
) -> None:
    """List the presets of a method, or the settings of one of them.

    Each setting can be changed with concept train --set NAME=VALUE.
    """
    session = session_of(context)
    from ..methods.method import find_method, find_preset, read_presets

    chosen = find_method(method)
    if name is None:
        found = [
            {"name": preset.name, "about": preset.about, "settings": preset.settings.to_mapping()}
            for preset in read_presets(chosen).values()
        ]
        table = _table(found, {"name": "name", "about": "about"})
        session.output.result({"method": chosen.name, "presets": found}, table)
        return
    preset = find_preset(chosen, name, "")
    document = {
        "method": chosen.name,
        "presets": [
            {"name": preset.name, "about": preset.about, "settings": preset.settings.to_mapping()}
        ],
    }
    rows = [{"setting": key, "value": _plain(value)} for key, value in preset.settings.flat()]
    table = _table(rows, {"setting": "setting", "value": "value"})
    session.output.result(document, table)


def _plain(value: Any) -> str:
    """A value as `--set` takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _table(rows: list[dict[str, Any]], columns: dict[str, str]) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for i, heading in enumerate(columns.values()):
        table.add_column(heading, style="bold" if i == 0 else "", overflow="fold")
    for row in rows:
        cells = (row[key] for key in columns)
        table.add_row(*(Text(" ".join(c) if isinstance(c, list) else str(c)) for c in cells))
    return table

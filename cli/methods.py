"""`concept methods` and `concept presets`: the training methods, and their settings."""

from typing import Annotated

import typer

from .framework import session_of
from .output import table


def methods(context: typer.Context) -> None:
    """List the training methods."""
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
    rows = [(m["name"], m["about"], m["paper"], " ".join(m["presets"])) for m in found]
    session.output.result({"methods": found}, table(("name", "about", "paper", "presets"), rows))


def presets(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="PRESET", help="Show all settings of this preset.", show_default=False
        ),
    ] = None,
    method: Annotated[str, typer.Option(metavar="METHOD", help="The method.")] = ("attndreambooth"),
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
        rows = [(each["name"], each["about"]) for each in found]
        document = {"method": chosen.name, "presets": found}
        session.output.result(document, table(("name", "about"), rows))
        return
    preset = find_preset(chosen, name, "")
    document = {
        "method": chosen.name,
        "presets": [
            {"name": preset.name, "about": preset.about, "settings": preset.settings.to_mapping()}
        ],
    }
    rows = [(key, _plain(value)) for key, value in preset.settings.flat()]
    session.output.result(document, table(("setting", "value"), rows))


def _plain(value: object) -> str:
    """A value as `--set` takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return str(list(value)) if isinstance(value, tuple) else str(value)

"""`concept bases`: list base models."""

from typing import TYPE_CHECKING, TypedDict

import typer

from .framework import session_of
from .output import table

if TYPE_CHECKING:
    from rich.table import Table


class _Document(TypedDict):
    name: str
    kind: str
    source: str
    about: str
    at_hand: bool
    is_default: bool
    controls: list[str]
    steps: int
    guidance: float
    scheduler: str | None
    perturbed_attention: float


def bases(context: typer.Context) -> None:
    """List the base models that have a short name, and others in the hub's cache."""
    session = session_of(context)
    from ..models.bases import DEFAULT_BASE, Base, cached_bases, read_aliases

    def document(base: Base) -> _Document:
        return {
            "name": base.name,
            "kind": base.kind,
            "source": base.source,
            "about": base.about,
            "at_hand": base.is_at_hand(),
            "is_default": base.name == DEFAULT_BASE,
            "controls": [each.name for each in base.controls],
            "steps": base.sampling.steps,
            "guidance": base.sampling.guidance,
            "scheduler": base.sampling.scheduler,
            "perturbed_attention": base.sampling.perturbed_attention,
        }

    found = [document(base) for base in [*read_aliases().values(), *cached_bases()]]
    session.output.result({"bases": found}, _table(found))


def _table(found: list[_Document]) -> "Table":
    rows = [
        (
            base["name"],
            "yes" if base["at_hand"] else "no",
            "shipped" if base["is_default"] else base["source"],
            _drawn(base),
            base["about"],
        )
        for base in found
    ]
    return table(("name", "at hand", "source", "drawn in", "about"), rows)


def _drawn(base: _Document) -> str:
    """`25 steps of dpm++, guidance 7.5, of perturbed attention 2`."""
    how = f" of {base['scheduler']}" if base["scheduler"] else ""
    scale = base["perturbed_attention"]
    perturbed = f", of perturbed attention {scale:g}" if scale else ""
    return f"{base['steps']} steps{how}, guidance {base['guidance']:g}{perturbed}"

"""What pages have in common: how they are filled in, and outlines of regions over pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..generation.outlines import Polygon, as_path
from ..registry.names import printable
from .charts import COLOURS, DASHES

if TYPE_CHECKING:
    from jinja2 import Template


@dataclass(frozen=True, slots=True)
class ShownRegion:
    """Where a subject of a picture is: the data of an SVG path, and how it is drawn and named."""

    label: str
    path: str
    colour: str
    dash: str
    note: str = ""

    @classmethod
    def of(
        cls,
        number: int,
        label: str,
        polygons: Sequence[Polygon],
        size: tuple[int, int],
        note: str = "",
    ) -> "ShownRegion":
        """The region of the subject with a number, in a picture of that width and height."""
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
        return cls(label, as_path(polygons, size), colour, dash, note)


def template(name: str) -> "Template":
    """A page's template; all that it is filled in with is escaped, and cleaned of controls."""
    environment = Environment(
        loader=PackageLoader("conceptry.evaluation", "."),
        autoescape=True,
        finalize=_shown_text,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _shown_text(value: object) -> object:
    """What stands on the page; what we drew is left as it is."""
    return printable(value) if type(value) is str else value

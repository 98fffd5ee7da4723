"""The methods, as they are published: a module each, with settings and presets.

    from conceptry.methods import all_methods, settings_of

How one is trained is in `training`, how its concepts are drawn in `generation`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .method import all_methods, find_method, read_presets, settings_of

_HOMES = {
    "all_methods": ".method",
    "find_method": ".method",
    "read_presets": ".method",
    "settings_of": ".method",
}

__all__ = [
    "all_methods",
    "find_method",
    "read_presets",
    "settings_of",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)

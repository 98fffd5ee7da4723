"""The published methods: a module each, with settings and presets.

    from conceptry.methods import all_methods, resolve_settings

`training` trains with them, `generation` draws the concepts.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .method import all_methods, find_method, read_presets, resolve_settings

_HOMES = {
    "all_methods": ".method",
    "find_method": ".method",
    "read_presets": ".method",
    "resolve_settings": ".method",
}

__all__ = [
    "all_methods",
    "find_method",
    "read_presets",
    "resolve_settings",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)

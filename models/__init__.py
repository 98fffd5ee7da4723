"""Base models: aliases, hub ids, folders and single files, and the miniature that ships.

    from conceptry.models import load_base

    base = load_base("miniature")

Names are imported on first use, as loading a model needs torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .backbone import Backbone
    from .bases import Base, find_base
    from .loading import LoadedBase, load_base

_HOMES = {
    "Backbone": ".backbone",
    "Base": ".bases",
    "LoadedBase": ".loading",
    "find_base": ".bases",
    "load_base": ".loading",
}

__all__ = ["Backbone", "Base", "LoadedBase", "find_base", "load_base"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)

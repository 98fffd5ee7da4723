"""The registry of concepts: photos, trained versions, and the record of what made what.

Start with `Registry`. Names are imported on first use, so that `locate` does not load the database
libraries.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .errors import (
        AlreadyExists,
        ConceptNotFound,
        ConceptryError,
        InvalidBundle,
        InvalidImage,
        InvalidInput,
        InvalidWeights,
        NotFinite,
        NotFound,
        RegistryBusy,
        RegistryCorrupt,
        RegistryError,
        RegistryMissing,
        RegistryTooNew,
        StorageError,
    )
    from .location import locate
    from .registry import Registry

_HOMES = {"Registry": "registry", "locate": "location"}

__all__ = [
    "AlreadyExists",
    "ConceptNotFound",
    "ConceptryError",
    "InvalidBundle",
    "InvalidImage",
    "InvalidInput",
    "InvalidWeights",
    "NotFinite",
    "NotFound",
    "Registry",
    "RegistryBusy",
    "RegistryCorrupt",
    "RegistryError",
    "RegistryMissing",
    "RegistryTooNew",
    "StorageError",
    "locate",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES.get(name, 'errors')}", __name__), name)

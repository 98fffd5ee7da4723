"""Attention that returns token maps, or only their moments, without writing the map.

`attend` and `map_distance` are the operations, `observe` applies them in a diffusers U-Net. Names
are imported on first use: other libraries import this package by chance when they look for a
`kernels` of their own.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .attention import AttentionResult, attend, map_distance
    from .inputs import GroupBias, Segment
    from .observation import Observation, observe

_HOMES = {
    "AttentionResult": "attention",
    "GroupBias": "inputs",
    "Segment": "inputs",
    "attend": "attention",
    "map_distance": "attention",
    "Observation": "observation",
    "observe": "observation",
}

__all__ = [
    "AttentionResult",
    "GroupBias",
    "Observation",
    "Segment",
    "attend",
    "map_distance",
    "observe",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)

"""Modules that are loaded when something of them is first used, so that reading stays quick."""

from importlib import import_module


class WhenUsed:
    """Stands for a module of this package."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> object:
        return getattr(import_module(f".{self._name}", __package__), attribute)

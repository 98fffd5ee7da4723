"""Lazy imports: modules of this package that are loaded on first use, so that reads stay quick."""

from importlib import import_module


class WhenUsed:
    """A stand-in for a module of this package."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> object:
        return getattr(import_module(f".{self._name}", __package__), attribute)

"""A diffusers folder with random weights."""

from tiny_fixtures import _one_base, base, tiny_base

__all__ = ["_one_base", "base", "tiny_base"]

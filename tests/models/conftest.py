"""A diffusers folder with random weights."""

from tiny_fixtures import tiny_base

__all__ = ["tiny_base"]

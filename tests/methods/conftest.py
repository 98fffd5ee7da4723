"""A base model that is quick to train on, and photos for it."""

from tiny_fixtures import _one_base, backbone, base, pictures, pipeline

__all__ = ["_one_base", "backbone", "base", "pictures", "pipeline"]

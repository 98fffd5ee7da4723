"""A base model that is quick to train on, photos for it, and the same base as a folder."""

from tiny_fixtures import _one_base, backbone, base, pictures, pipeline, tiny_base

__all__ = ["_one_base", "backbone", "base", "pictures", "pipeline", "tiny_base"]

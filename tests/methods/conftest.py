"""A base model that is quick to train on, and photos for it."""

from copied_bases import _loaded_once
from tiny_fixtures import _one_base, backbone, base, pictures, pipeline

__all__ = ["_loaded_once", "_one_base", "backbone", "base", "pictures", "pipeline"]

"""Pictures that were drawn for an evaluation, kept by the hash of all that makes them.

    CACHE/evaluations/ab/ab12….png           the picture
    CACHE/evaluations/ab/ab12….safetensors   its maps

The folder may be removed at any time: what is missing is drawn again.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..models.pictures import replace_picture
from ..registry import Registry
from ..registry.blobs import PRIVATE, is_sha256
from ..registry.errors import StorageError
from .scoring import Picture

_UNSOUND = (
    OSError,
    ValueError,
    SyntaxError,
    KeyError,
    SafetensorError,
    Image.DecompressionBombError,
)


class PictureCache:
    """Pictures by key."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def of(cls, registry: Registry) -> "PictureCache":
        """The one of a registry."""
        return cls(registry.location.cache / "evaluations")

    @staticmethod
    def key(made_from: Mapping[str, Any]) -> str:
        """The name of the picture that follows from `made_from`."""
        return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()

    def path(self, key: str) -> Path:
        """Where a picture is, or would be."""
        return self._folder / key[:2] / f"{key}.png"

    def get(self, key: str) -> Picture | None:
        """A picture, if it is here and whole."""
        if not is_sha256(key):
            return None
        path = self.path(key)
        with suppress(*_UNSOUND):
            maps = load_file(path.with_suffix(".safetensors"))["maps"].float()
            with Image.open(path) as image:
                return Picture(image.convert("RGB"), maps)
        return None

    def put(self, key: str, picture: Picture) -> Picture:
        """Keep a picture; returns it as it will be found again."""
        path = self.path(key)
        maps = picture.maps.to(torch.float16).contiguous()
        unfinished = path.with_suffix(".maps-unfinished")
        try:
            self._folder.mkdir(PRIVATE, parents=True, exist_ok=True)
            path.parent.mkdir(PRIVATE, exist_ok=True)
            save_file({"maps": maps}, unfinished)
            unfinished.replace(path.with_suffix(".safetensors"))
            replace_picture(picture.image, path)
        except OSError as error:
            raise StorageError(f"cannot write into {self._folder}: {error.strerror}") from error
        return Picture(picture.image, maps.float())

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
from safetensors.torch import load, save

from ..generation.pictures import replace_picture
from ..registry import Registry
from ..registry.blobs import is_sha256
from ..registry.errors import RegistryCorrupt, StorageError
from ..registry.files import below, make_folder, open_file, write_file
from ..registry.running import EVALUATIONS
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

    def __init__(self, root: Path, *names: str) -> None:
        self._root = root
        self._folder = below(root, *names)

    @classmethod
    def of(cls, registry: Registry) -> "PictureCache":
        """The one of a registry."""
        return cls(registry.location.cache, EVALUATIONS)

    @staticmethod
    def key(made_from: Mapping[str, Any]) -> str:
        """The name of the picture that follows from `made_from`."""
        return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()

    def path(self, key: str) -> Path:
        """Where a picture is, or would be. Raises `RegistryCorrupt` for what is no key."""
        if not is_sha256(key):
            raise RegistryCorrupt(f"{key!r} is not the hash of a picture", hint="concept check")
        return below(self._folder, key[:2], f"{key}.png")

    def get(self, key: str) -> Picture | None:
        """A picture, if it is here and whole."""
        path = self.path(key)
        with suppress(*_UNSOUND):
            with open_file(self._root, path.with_suffix(".safetensors")) as file:
                maps = load(file.read())["maps"].float()
            with open_file(self._root, path) as file, Image.open(file) as image:
                return Picture(image.convert("RGB"), maps)
        return None

    def put(self, key: str, picture: Picture) -> Picture:
        """Keep a picture; returns it as it will be found again."""
        path = self.path(key)
        maps = picture.maps.to(torch.float16).contiguous()
        try:
            make_folder(self._root, path.parent)
            write_file(path.with_suffix(".safetensors"), save({"maps": maps}))
            replace_picture(picture.image, path)
        except OSError as error:
            raise StorageError(f"cannot write into {self._folder}: {error.strerror}") from error
        return Picture(picture.image, maps.float())

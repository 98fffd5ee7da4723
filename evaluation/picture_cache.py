"""Pictures that were drawn for an evaluation, kept by the hash of all that makes them.

    CACHE/evaluations/ab/ab12….png           the picture
    CACHE/evaluations/ab/ab12….safetensors   its maps, and regions in 256 steps

The folder may be removed at any time: what is missing is drawn again.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..generation.pictures import kept_picture, replace_picture
from ..registry import Registry
from ..registry.errors import StorageError
from ..registry.files import below, make_folder, open_file, write_file
from ..registry.hashes import sha256_of_json
from ..registry.running import EVALUATIONS
from .picture_path import picture_path
from .scoring import ObservedPicture

_MAX_MAPS_BYTES = 64 << 20
_MAX_SIDE = 1024
"""Of maps: more than any layer of attention has."""


class PictureCache:
    """A cache of pictures and their maps, by key."""

    def __init__(self, root: Path, *names: str) -> None:
        self._root = root
        self._folder = below(root, *names)

    @classmethod
    def of(cls, registry: Registry) -> "PictureCache":
        """The cache of a registry."""
        return cls(registry.location.cache, EVALUATIONS)

    @staticmethod
    def key(made_from: Mapping[str, object]) -> str:
        """The key of a picture: the hash of all that makes it."""
        return sha256_of_json(made_from)

    def path(self, key: str) -> Path:
        """Where a picture is, or would be. Raises `RegistryCorrupt` for what is no key."""
        return picture_path(self._folder, key)

    def get(
        self, key: str, *, num_subjects: int, size: tuple[int, int] | None = None
    ) -> ObservedPicture | None:
        """The picture of `size` (width, height), with its maps; None if it is not cached."""
        path = self.path(key)
        seen = _read_maps(self._root, path.with_suffix(".safetensors"), num_subjects)
        image = kept_picture(self._root, path, size) if seen else None
        return ObservedPicture(image, *seen) if image is not None and seen else None

    def put(self, key: str, picture: ObservedPicture) -> ObservedPicture:
        """Store a picture; returns it as `get` will, its maps rounded to half precision."""
        path = self.path(key)
        kept = {"maps": picture.maps.to(torch.float16).contiguous()}
        if picture.regions is not None:
            kept["regions"] = (picture.regions * 255).round().to(torch.uint8).contiguous()
        try:
            make_folder(self._root, path.parent)
            write_file(path.with_suffix(".safetensors"), save(kept), root=self._root)
            replace_picture(picture.image, path, root=self._root)
        except OSError as error:
            raise StorageError(f"cannot write into {self._folder}: {error.strerror}") from error
        return ObservedPicture(picture.image, kept["maps"].float(), _regions(kept))


def _read_maps(root: Path, path: Path, num_subjects: int) -> tuple[Tensor, Tensor | None] | None:
    """Maps (S, 2, h, w) of so many subjects; None unless they are here, whole and finite.

    With them the regions (S, h, w), if subjects had some.
    """
    try:
        with open_file(root, path) as file:
            kept = load(file.read(_MAX_MAPS_BYTES))
        maps, regions = kept["maps"].float(), _regions(kept)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError):
        return None
    is_ours = maps.dim() == 4 and maps.shape[:2] == (num_subjects, 2)
    fits = is_ours and all(0 < side <= _MAX_SIDE for side in maps.shape[2:])
    if regions is not None:
        fits &= regions.dim() == 3 and regions.shape == (num_subjects, *maps.shape[2:])
    return (maps, regions) if fits and maps.isfinite().all() else None


def _regions(kept: Mapping[str, Tensor]) -> Tensor | None:
    found = kept.get("regions")
    return found.float() / 255 if found is not None and found.dtype == torch.uint8 else None

"""Registries made once and copied for each test, which is quicker than making them anew."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from conceptry.registry import Registry
from drawing import draw_folder


def made_with_rex(folder: Path, make: Callable[[Registry, Path], None] | None = None) -> Path:
    """A registry in `folder` with rex, a dog of three photos, and what is made of it then.

    `make` gets the registry and the folder of the photos.
    """
    with Registry.open(folder / "registry/concepts.db", create=True) as registry:
        photos = draw_folder(folder / "photos", 3)
        registry.add("rex", [photos], category="dog", tags=["pets"])
        if make is not None:
            make(registry, photos)
    return folder


@contextlib.contextmanager
def copied(made: Path, folder: Path) -> Iterator[Registry]:
    """Copy all that is in `made` into `folder` and open the registry there."""
    shutil.copytree(made, folder, dirs_exist_ok=True)
    with Registry.open(folder / "registry/concepts.db", timeout=600) as registry:
        yield registry

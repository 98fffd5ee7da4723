"""Registries made once and copied for each test, which is quicker than making them anew."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from conceptry.registry import Registry


@contextlib.contextmanager
def copied(made: Path, folder: Path) -> Iterator[Registry]:
    """Copy all that is in `made` into `folder` and open the registry there."""
    shutil.copytree(made, folder, dirs_exist_ok=True)
    with Registry.open(folder / "registry/concepts.db") as registry:
        yield registry

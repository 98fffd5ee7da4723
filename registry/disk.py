"""What trainings keep on disk beside the stored files: previews, checkpoints, resume points."""

import os
from collections.abc import Iterable

from .files import below, own_entries
from .location import Location
from .names import is_run_id


def kept_bytes(location: Location, runs: Iterable[str] | None = None) -> dict[str, int]:
    """The size of each run's folder, by run: of these runs, or of all; 0 are left out.

    Links are neither followed nor counted. Raises `StorageError` for what cannot be read.
    """
    if not os.path.isdir(location.runs) or os.path.islink(location.runs):
        return {}
    if runs is None:
        runs = [entry.name for entry in own_entries(location.runs, location.runs)]
    sizes = {run: _size(location, run) for run in runs if is_run_id(run)}
    return {run: size for run, size in sizes.items() if size}


def _size(location: Location, run: str) -> int:
    files = own_entries(location.runs, below(location.runs, run))
    return sum(entry.status.st_size for entry in files if entry.is_file)

"""Zip files that others made, read within bounds."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import cast

from .files import open_given

MAX_DIRECTORY_BYTES = 48 << 20
"""Of what a zip says that it holds; a bundle's file takes 124 at most."""
BYTES_OF_FILE = 124


class _Bounded:
    """A file of which no more is read at once than a directory may have.

    `zipfile` reads all of a directory before it looks at any of it.
    """

    def __init__(self, file: BufferedReader) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        """As that of a file. Raises `BadZipFile` if it is too much."""
        if size > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"its directory has {size:,} bytes")
        return self._file.read(size)


@contextmanager
def opened_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip, open for reading. Raises what `zipfile` does, `BadZipFile` for a giant directory."""
    with open_given(path) as file, zipfile.ZipFile(cast("BufferedReader", _Bounded(file))) as found:
        yield found

"""Small pictures beside a page, each named by the hash of what it is of.

    thumbnails/1f0c92a7be44….-320x240.webp

So one that is there is never made again, and what no page shows any more is known by its name.
"""

import io
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from PIL import Image

from ..registry.errors import InvalidInput, RegistryError, StorageError
from ..registry.files import entries, is_unfinished, make_folder, remove_file, write_file

SIDE = 320
_LOSSLESS = 128
"""Pictures up to this size are kept as they are: pixels of the miniature's pictures."""
_NUM_THREADS = 16
"""Which wait for the disk, most of the time."""
_NAME = re.compile(r"([0-9a-f]{32})-([0-9]{1,4})x([0-9]{1,4})\.(?:webp|png)")


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A small picture: its name in the folder, width and height."""

    name: str
    size: tuple[int, int]


@dataclass(slots=True)
class Thumbnails:
    """The thumbnails below the folder `root`. `made` counts the new ones, `kept` the others."""

    root: Path
    made: int = 0
    kept: int = 0
    _known: dict[str, Thumbnail] = field(default_factory=dict)
    _used: set[str] = field(default_factory=set)
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_NUM_THREADS))
    _writing: list[Future[None]] = field(default_factory=list)

    @classmethod
    def of(cls, root: Path) -> "Thumbnails":
        """Those that are there. Raises `RegistryCorrupt` where the folder is a link."""
        found = cls(root)
        make_folder(root, found.folder)
        for entry in entries(root, found.folder):
            if (named := _NAME.fullmatch(entry.name)) and entry.is_file and entry.status.st_size:
                size = (int(named[2]), int(named[3]))
                found._known[named[1]] = Thumbnail(entry.name, size)
        return found

    @property
    def folder(self) -> Path:
        """Where they are."""
        return self.root / "thumbnails"

    def get(self, sha256: str, read: Callable[[], Image.Image | None]) -> Thumbnail | None:
        """The thumbnail of what has a hash, made from what `read` gives; None if that is gone.

        What cannot be read counts as gone. It is written when `finish` returns.
        """
        key = sha256[:32]
        if (known := self._known.get(key)) is None:
            image = None
            with suppress(InvalidInput, RegistryError):
                image = read()
            if image is None:
                return None
            known = self._known[key] = self._written(key, image)
            self.made += 1
        elif known.name not in self._used:
            self.kept += 1
        self._used.add(known.name)
        return known

    def _written(self, key: str, image: Image.Image) -> Thumbnail:
        encoded = io.BytesIO()
        is_small = max(image.size) <= _LOSSLESS
        image = image.convert("RGB")
        image.thumbnail((SIDE, SIDE))
        if is_small:
            image.save(encoded, "png", optimize=True)
        else:
            image.save(encoded, "webp", quality=80)
        suffix = "png" if is_small else "webp"
        name = f"{key}-{image.width}x{image.height}.{suffix}"
        path, data = self.folder / name, encoded.getvalue()
        self._writing.append(self._pool.submit(write_file, path, data, root=self.root))
        return Thumbnail(name, image.size)

    def finish(self) -> None:
        """Wait until all are written and synced. Raises `StorageError` if one cannot be."""
        try:
            for each in self._writing:
                each.result()
        except OSError as error:
            raise StorageError(f"cannot write into {self.folder}: {error.strerror}") from error
        finally:
            self._writing.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def remove_others(self) -> int:
        """Remove what was not asked for since; returns how many there were."""
        gone = 0
        for entry in entries(self.root, self.folder):
            is_ours = _NAME.fullmatch(entry.name) or is_unfinished(entry.name)
            if entry.is_file and is_ours and entry.name not in self._used:
                with suppress(OSError):
                    remove_file(self.root, self.folder / entry.name)
                    gone += not is_unfinished(entry.name)
        return gone

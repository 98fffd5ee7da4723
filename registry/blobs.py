"""Stored files, named by the SHA-256 of their bytes and never changed.

A blob is written to a temporary file, synced, renamed to its name, and its folder synced; only
then may a row that needs it be committed. So after a crash at any moment every final name holds
the bytes it promises, and what may remain are temporary files and blobs that no row needs.

    concepts.blobs/
        lock                  see `locks.py`
        stamp                 of whose database they are, see `store.py`
        tmp/                  files being written: 4711-0123456789abcdef
        damaged/              set aside by `check --repair`
        3f/3fa1…              a blob, in a folder named by its first two digits
"""

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Self

from .errors import RegistryCorrupt, StorageError
from .files import (
    Entry,
    FileSystemSync,
    begin_sync,
    below,
    create_file,
    entries,
    is_file,
    make_folder,
    move_file,
    open_file,
    own_entries,
    remove_file,
    sync_file,
    sync_folder,
)
from .hashes import is_sha256

LOCK_NAME = "lock"
STAMP_NAME = "stamp"
CHUNK = 1 << 20
DEFAULT_GRACE = 3600.0
"""Seconds for which `gc` spares a file, whatever it is."""

_SHARD = re.compile(r"[0-9a-f]{2}")
_TEMPORARY = re.compile(r"[0-9]+-[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file found in a folder of the registry. `shard` is the folder it is in."""

    path: Path
    shard: str
    size: int
    modified: float
    is_plain: bool = True
    """Whether it is a regular file; a link is none, whatever it leads to."""

    @property
    def is_blob(self) -> bool:
        """Whether it has the name and the place of a blob; its bytes are another matter."""
        is_named_so = is_sha256(self.path.name) and self.path.name[:2] == self.shard
        return is_named_so and self.is_plain

    @property
    def is_temporary(self) -> bool:
        """Whether it has the name and the place of a blob that is being written."""
        is_named_so = _TEMPORARY.fullmatch(self.path.name) is not None and self.shard == "tmp"
        return is_named_so and self.is_plain

    @classmethod
    def of(cls, entry: Entry, folder: Path, shard: str) -> Self:
        """What was found in a folder."""
        status = entry.status
        path = folder / entry.name
        return cls(path, shard, status.st_size, status.st_mtime, entry.is_file)


class BlobStore:
    """The blobs in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temporary = folder / "tmp"
        self.damaged = folder / "damaged"

    def path(self, sha256: str) -> Path:
        """Where the blob of this hash is, or would be. Raises `RegistryCorrupt` if it is none."""
        if not is_sha256(sha256):
            raise RegistryCorrupt(f"{sha256!r} is not the hash of a file", hint="concept check")
        return below(self.folder, sha256[:2], sha256)

    def open(self, path: Path) -> BufferedReader:
        """Open a file that was found in the store, to read it; a link is never followed."""
        return open_file(self.folder, path)

    def holds(self, sha256: str, size: int) -> bool:
        """Whether there is a blob of this hash and size; its bytes are another matter."""
        return is_file(self.folder, self.path(sha256), size)

    def read(self, sha256: str) -> bytes:
        """Return the bytes of a blob, hashed again on the way.

        Raises `RegistryCorrupt` if the blob is missing or its bytes are not those of its name.
        """
        return b"".join(self.chunks(sha256))

    def chunks(self, sha256: str) -> Iterator[bytes]:
        """Yield the bytes of a blob piece by piece; raises as `read` does, at the end."""
        path = self.path(sha256)
        digest = hashlib.sha256()
        try:
            with self.open(path) as file:
                while chunk := file.read(CHUNK):
                    digest.update(chunk)
                    yield chunk
        except FileNotFoundError:
            raise RegistryCorrupt(f"the stored file {path} is missing", hint=_CHECK) from None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise RegistryCorrupt(f"the stored file {path} is a link", hint=_CHECK) from None
            raise StorageError(f"cannot read {path}: {error.strerror}") from error
        if digest.hexdigest() != sha256:
            raise RegistryCorrupt(f"the stored file {path} is damaged", hint=_CHECK)

    def stage(self, *, many: bool = False) -> "Staging":
        """Begin writing blobs, perhaps very `many`.

        Hold the registry's lock, shared, until the rows are committed.
        """
        return Staging(self, many=many)

    def shards(self) -> list[str]:
        """The names of all places where files can be, so that a walk needs little memory."""
        return [entry.name for entry in entries(self.folder, self.folder) if entry.is_folder]

    def files(self, shard: str) -> list[StoredFile]:
        """The files of one folder under the blob folder, by name; links are not followed."""
        folder = self.folder / shard
        if os.path.islink(folder):  # told of by `strays`
            return []
        return sorted(self._below(folder), key=lambda file: file.path)

    def own_files(self, shard: str) -> list[StoredFile]:
        """The files of a folder that can be ours: neither deeper ones, nor those of a mount."""
        folder = self.folder / shard
        found = own_entries(self.folder, folder)
        return [StoredFile.of(entry, folder, shard) for entry in found if not entry.is_folder]

    def _below(self, folder: Path) -> Iterator[StoredFile]:
        for entry in entries(self.folder, folder):
            if entry.is_folder:
                yield from self._below(folder / entry.name)
            else:
                yield StoredFile.of(entry, folder, folder.relative_to(self.folder).as_posix())

    def strays(self) -> list[Path]:
        """What is directly in the blob folder, other than folders, the lock and the stamp."""
        return [
            self.folder / entry.name
            for entry in entries(self.folder, self.folder)
            if not (entry.is_folder or (entry.is_file and _is_on_top(entry.name)))
        ]

    def has_blobs(self) -> bool:
        """Whether anything that looks like a blob is stored."""
        return any(
            file.is_blob
            for shard in self.shards()
            if _SHARD.fullmatch(shard)
            for file in self.files(shard)
        )

    def read_stamp(self) -> bytes | None:
        """The bytes of the stamp, None if there is none; raises `OSError` if it is no file."""
        try:
            with self.open(self.folder / STAMP_NAME) as file:
                return file.read(CHUNK)
        except FileNotFoundError:
            return None

    def write_stamp(self, data: bytes) -> None:
        """Put a stamp in place of the former one; not synced: after a crash, that is as true."""
        path = self.new_temporary()
        make_folder(self.folder, self.temporary)
        try:
            with create_file(self.folder, path) as file:
                file.write(data)
            move_file(self.folder, path, self.folder / STAMP_NAME)
        except BaseException:
            with suppress(OSError):
                remove_file(self.folder, path)
            raise

    def new_temporary(self) -> Path:
        """A path that nobody has, for a file that is being written."""
        return self.temporary / f"{os.getpid()}-{secrets.token_hex(8)}"

    def remove(self, sha256: str) -> None:
        """Delete a blob. Only under the registry's exclusive lock, and only if no row needs it."""
        with suppress(FileNotFoundError):
            remove_file(self.folder, self.path(sha256))


class Staging:
    """Blobs on their way in: synced temporary files until `publish` renames them all.

    As a context manager it removes what was not published. `write` may be called from several
    threads. `many` files are synced together before they are renamed, and all names after that,
    where the system can; waiting for each would take most of the time.
    """

    def __init__(self, store: BlobStore, *, many: bool = False) -> None:
        self._store = store
        self._many = many
        self._together: FileSystemSync | None = None
        self._staged: dict[str, Path] = {}
        self._open: set[Path] = set()
        self.published: list[str] = []
        """The hashes that were not in the store before."""

    def __enter__(self) -> Self:
        try:
            make_folder(self._store.folder, self._store.temporary)
            self._together = FileSystemSync.of(self._store.temporary) if self._many else None
        except OSError as error:
            raise _cannot_write(self._store.temporary, error) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for path in [*self._staged.values(), *self._open]:
            self._remove(path)
        if self._together:
            self._together.close()

    def _remove(self, path: Path) -> None:
        with suppress(OSError):  # what stays is gc's; why nothing could be written counts
            remove_file(self._store.folder, path)

    def write(self, data: bytes | Iterable[bytes]) -> str:
        """Write bytes to a temporary file, sync it unless all are, and return their SHA-256.

        Raises `StorageError` naming the path if the disk refuses.
        """
        path = self._store.new_temporary()
        self._open.add(path)
        digest = hashlib.sha256()
        try:
            with create_file(self._store.folder, path) as file:
                for chunk in [data] if isinstance(data, bytes) else data:
                    digest.update(chunk)
                    file.write(chunk)
                if self._together:
                    begin_sync(file)
                else:
                    sync_file(file)
        except OSError as error:
            self._remove(path)
            raise _cannot_write(path, error) from error
        sha256 = digest.hexdigest()
        if self._staged.setdefault(sha256, path) != path:
            self._remove(path)
        self._open.discard(path)
        return sha256

    def path(self, sha256: str) -> Path:
        """The temporary file of a blob that was written and not yet published."""
        return self._staged[sha256]

    def staged(self) -> set[str]:
        """The hashes of blobs that were written and not yet published."""
        return set(self._staged)

    def discard(self, sha256: str) -> None:
        """Remove a blob that was written and is not to be published; none, if there is none."""
        if path := self._staged.pop(sha256, None):
            self._remove(path)

    def publish(self) -> None:
        """Rename every staged file to its name and sync the folders: now rows may need them.

        A name that exists is replaced by the same bytes, which heals a damaged blob.
        """
        folders = {self._store.path(sha256).parent for sha256 in self._staged}
        try:
            if self._together:
                self._together.sync()
            for folder in sorted(folders):
                make_folder(self._store.folder, folder)
            for sha256, temporary in list(self._staged.items()):
                path = self._store.path(sha256)
                if not is_file(self._store.folder, path):
                    self.published.append(sha256)
                move_file(self._store.folder, temporary, path)
                del self._staged[sha256]
            if self._together:
                self._together.sync()
                return
            for folder in sorted(folders):
                sync_folder(folder)
            sync_folder(self._store.folder)
        except OSError as error:
            raise _cannot_write(self._store.folder, error) from error


def _is_on_top(name: str) -> bool:
    return name == STAMP_NAME or name.startswith(LOCK_NAME)


def _cannot_write(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot write {path}: {error.strerror}",
        hint="free some space, or name another place with --registry; nothing was changed",
    )


_CHECK = "concept check --read-data"

"""Stored files, named by the SHA-256 of their bytes and never changed.

A blob is written to a temporary file, synced, renamed to its name, and its folder synced; only
then may a row that needs it be committed. So after a crash at any moment every final name holds
the bytes it promises, and what may remain are temporary files and blobs that no row needs.

    concepts.blobs/
        lock                  see `locks.py`
        tmp/                  files being written
        damaged/              set aside by `check --repair`
        3f/3fa1…              a blob, in a folder named by its first two digits
"""

import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from .errors import RegistryCorrupt, StorageError

LOCK_NAME = "lock"
CHUNK = 1 << 20
PRIVATE = 0o700
"""Permissions of a new folder for photos and pictures, of which the umask may take more away."""
DEFAULT_GRACE = 3600.0
"""Seconds for which `gc` spares a file, whatever it is."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHARD = re.compile(r"[0-9a-f]{2}")


def is_sha256(text: str) -> bool:
    """Whether `text` is a SHA-256 in the one form used here, 64 lower-case hex digits."""
    return _SHA256.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file found under the blob folder. `shard` is the folder it is in."""

    path: Path
    shard: str
    size: int
    modified: float

    @property
    def is_blob(self) -> bool:
        """Whether it has the name and the place of a blob; its bytes are another matter."""
        return is_sha256(self.path.name) and self.path.name[:2] == self.shard


class BlobStore:
    """The blobs in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temporary = folder / "tmp"
        self.damaged = folder / "damaged"

    def path(self, sha256: str) -> Path:
        """Where the blob of this hash is, or would be."""
        return self.folder / sha256[:2] / sha256

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
            with path.open("rb") as file:
                while chunk := file.read(CHUNK):
                    digest.update(chunk)
                    yield chunk
        except FileNotFoundError:
            raise RegistryCorrupt(f"the stored file {path} is missing", hint=_CHECK) from None
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror}") from error
        if digest.hexdigest() != sha256:
            raise RegistryCorrupt(f"the stored file {path} is damaged", hint=_CHECK)

    def stage(self) -> "Staging":
        """Begin writing blobs. Hold the registry's lock, shared, until the rows are committed."""
        return Staging(self)

    def shards(self) -> list[str]:
        """The names of all places where files can be, so that a walk needs little memory."""
        try:
            return sorted(entry.name for entry in os.scandir(self.folder) if entry.is_dir())
        except FileNotFoundError:
            return []

    def files(self, shard: str) -> list[StoredFile]:
        """The files of one folder under the blob folder, by name; links are not followed."""
        found: list[StoredFile] = []
        for folder, folders, names in os.walk(self.folder / shard):
            folders.sort()
            for name in names:
                path = Path(folder, name)
                status = path.lstat()
                place = path.parent.relative_to(self.folder).as_posix()
                found.append(StoredFile(path, place, status.st_size, status.st_mtime))
        return sorted(found, key=lambda file: file.path)

    def strays(self) -> list[Path]:
        """Files directly in the blob folder, other than the lock."""
        try:
            entries = [Path(entry.path) for entry in os.scandir(self.folder) if not entry.is_dir()]
        except FileNotFoundError:
            return []
        return sorted(path for path in entries if not path.name.startswith(LOCK_NAME))

    def has_blobs(self) -> bool:
        """Whether anything that looks like a blob is stored."""
        return any(
            file.is_blob
            for shard in self.shards()
            if _SHARD.fullmatch(shard)
            for file in self.files(shard)
        )

    def remove(self, sha256: str) -> None:
        """Delete a blob. Only under the registry's exclusive lock, and only if no row needs it."""
        self.path(sha256).unlink(missing_ok=True)


class Staging:
    """Blobs on their way in: synced temporary files until `publish` renames them all.

    As a context manager it removes what was not published. `write` may be called from several
    threads.
    """

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._staged: dict[str, Path] = {}
        self._open: set[Path] = set()
        self._mode = PRIVATE
        self.published: list[str] = []
        """The hashes that were not in the store before."""

    def __enter__(self) -> Self:
        try:
            self._store.folder.mkdir(PRIVATE, parents=True, exist_ok=True)
            self._mode = self._store.folder.stat().st_mode & 0o777
            self._store.temporary.mkdir(self._mode, exist_ok=True)
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
            path.unlink(missing_ok=True)

    def write(self, data: bytes | Iterable[bytes]) -> str:
        """Write bytes to a temporary file, sync it, and return their SHA-256.

        Raises `StorageError` naming the path if the disk refuses.
        """
        path = self._store.temporary / f"{os.getpid()}-{secrets.token_hex(8)}"
        self._open.add(path)
        digest = hashlib.sha256()
        try:
            with open(path, "xb", opener=self._open_as_folder) as file:
                for chunk in [data] if isinstance(data, bytes) else data:
                    digest.update(chunk)
                    file.write(chunk)
                sync_file(file)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise _cannot_write(path, error) from error
        sha256 = digest.hexdigest()
        if self._staged.setdefault(sha256, path) != path:
            path.unlink()
        self._open.discard(path)
        return sha256

    def _open_as_folder(self, path: str, flags: int) -> int:
        """Open a file for those for whom the folder is: in a registry of one's own, nobody else."""
        return os.open(path, flags, self._mode & 0o666)

    def path(self, sha256: str) -> Path:
        """The temporary file of a blob that was written and not yet published."""
        return self._staged[sha256]

    def publish(self) -> None:
        """Rename every staged file to its name and sync the folders: now rows may need them.

        A name that exists is replaced by the same bytes, which heals a damaged blob.
        """
        folders = {self._store.path(sha256).parent for sha256 in self._staged}
        try:
            for folder in sorted(folders):
                folder.mkdir(self._mode, exist_ok=True)
            for sha256, temporary in list(self._staged.items()):
                path = self._store.path(sha256)
                if not path.exists():
                    self.published.append(sha256)
                temporary.replace(path)
                del self._staged[sha256]
            for folder in sorted(folders):
                sync_folder(folder)
            sync_folder(self._store.folder)
        except OSError as error:
            raise _cannot_write(self._store.folder, error) from error


def sync_file(file: BinaryIO) -> None:
    """Force what was written to a file onto the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Force the names in a folder onto the disk, where the system can (not on Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_write(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot write {path}: {error.strerror}",
        hint="free some space, or name another place with --registry; nothing was changed",
    )


_CHECK = "concept check --read-data"

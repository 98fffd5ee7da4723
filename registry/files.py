"""Names that become paths, folders that no link leads out of, files that appear whole.

What was read from a database, an import or a picture becomes a path by `below` alone. What is done
below the root of a registry's folder enters each folder on the way by its handle, so that a link in
it is never followed, whenever it was put there.
"""

import ctypes
import errno
import glob
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

from .errors import RegistryCorrupt, StorageError

_T = TypeVar("_T")
PRIVATE = 0o700
"""Permissions of a new folder for photos and pictures, of which the umask may take more away.

What is made below it is for those for whom it is: in a registry of one's own, nobody else.
"""
LEFT_AFTER = 3600.0
"""Seconds after which an unfinished file has nobody who still writes it."""

_UNFINISHED = re.compile(r"\..*\.[0-9a-f]{16}\.unfinished", re.DOTALL)
_HAS_HANDLES = os.open in os.supports_dir_fd and hasattr(os, "O_DIRECTORY")
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_READ = os.O_RDONLY | _NO_LINK | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINK | getattr(os, "O_BINARY", 0)
_MAX_NAME = 255  # bytes, of nearly all file systems


def below(root: Path, *names: str) -> Path:
    """The path of a file or folder below `root`, each name one step down.

    Raises `RegistryCorrupt` for a name that would lead anywhere else on some system.
    """
    for name in names:
        is_plain = name not in ("", ".", "..") and not set(name) & set("/\\:\0")
        if not is_plain or len(os.fsencode(name)) > _MAX_NAME:
            raise RegistryCorrupt(f"{name!r} is no name of a file in {root}", hint="concept check")
    return root.joinpath(*names)


def check_can_write(folder: Path) -> None:
    """Raise `StorageError` if nothing can be written into a folder, which need not be there yet."""
    whole = folder.absolute()
    there = next(each for each in (whole, *whole.parents) if os.path.exists(each))
    number = 0
    if not there.is_dir():
        number = errno.ENOTDIR
    elif not os.access(there, os.W_OK | os.X_OK):
        number = errno.EACCES
    if number:
        raise StorageError(f"cannot write into {folder}: {os.strerror(number)}")


# --- without following links ----------------------------------------------------------------------


class Entry(NamedTuple):
    """A name in a folder and what `lstat` says of it."""

    name: str
    status: os.stat_result

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder; a link to one is none."""
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file; a link to one is none."""
        return stat.S_ISREG(self.status.st_mode)


def make_folder(root: Path, folder: Path) -> Path:
    """Make a folder below `root`, and those above it; raises `RegistryCorrupt` at a link."""
    root.mkdir(PRIVATE, parents=True, exist_ok=True)
    with _entered(root, folder, create=True):
        return folder


def entries(root: Path, folder: Path) -> list[Entry]:
    """What is in a folder below `root`, by name; nothing, if it does not exist.

    Raises `StorageError` for one that cannot be read.
    """
    found: list[Entry] = []
    try:
        with suppress(FileNotFoundError), _entered(root, folder) as handle:
            for name in sorted(os.listdir(folder if handle is None else handle)):
                with suppress(FileNotFoundError):  # gone meanwhile
                    found.append(Entry(name, _status(handle, folder / name)))
    except OSError as error:
        raise StorageError(f"cannot read {folder}: {error.strerror}") from error
    return found


def own_entries(root: Path, folder: Path) -> list[Entry]:
    """As `entries`, but nothing where the folder is a link or has another file system in it."""
    with suppress(FileNotFoundError):
        status = os.lstat(folder)
        if stat.S_ISDIR(status.st_mode) and status.st_dev == os.lstat(root).st_dev:
            return entries(root, folder)
    return []


def open_file(root: Path, path: Path) -> BufferedReader:
    """Open a regular file below `root` for reading; raises `OSError` for anything else."""
    with _entered(root, path.parent) as handle:
        return os.fdopen(_opened(handle, path), "rb")


def open_given(path: Path) -> BufferedReader:
    """Open a file that the user named, who may have links; raises `OSError` for what is no file.

    Opened as usual, a pipe would wait for who writes into it.
    """
    descriptor = os.open(path, _READ & ~_NO_LINK | getattr(os, "O_CLOEXEC", 0))
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def create_file(root: Path, path: Path) -> BinaryIO:
    """Make a file below `root` for writing; raises `FileExistsError`, also for a link."""
    with _entered(root, path.parent) as handle:
        mode = permissions(root) & 0o666
        return os.fdopen(os.open(_named(handle, path), _CREATE, mode, dir_fd=handle), "wb")


def remove_file(root: Path, path: Path) -> None:
    """Delete a file below `root`."""
    with _entered(root, path.parent) as handle:
        os.unlink(_named(handle, path), dir_fd=handle)


def remove_folder(root: Path, folder: Path) -> None:
    """Delete an empty folder below `root`; one with something in it stays."""
    with suppress(OSError), _entered(root, folder.parent) as handle:
        os.rmdir(_named(handle, folder), dir_fd=handle)


def move_file(root: Path, path: Path, to: Path) -> None:
    """Rename a file below `root`, in place of what may bear that name."""
    with _entered(root, path.parent) as source, _entered(root, to.parent) as target:
        os.replace(_named(source, path), _named(target, to), src_dir_fd=source, dst_dir_fd=target)


def is_file(root: Path, path: Path, size: int | None = None) -> bool:
    """Whether there is a regular file below `root`, of that size."""
    try:
        with open_file(root, path) as file:
            return size is None or os.fstat(file.fileno()).st_size == size
    except (OSError, RegistryCorrupt):
        return False


def permissions(path: Path) -> int:
    """The permissions of a file or folder, which those that are made of it have too."""
    return stat.S_IMODE(path.stat().st_mode) & 0o777


def tried(read: Callable[[], list[_T]], failed: list[str]) -> list[_T]:
    """What was read; nothing, with a word of why in `failed`, if it cannot be."""
    try:
        return read()
    except StorageError as error:
        failed.append(error.message)
        return []


@contextmanager
def _entered(root: Path, folder: Path, *, create: bool = False) -> Iterator[int | None]:
    """The handle of a folder; None on systems where only paths can be used.

    Raises `RegistryCorrupt` where the root, the folder or one between them is a link.
    """
    handle = _enter(None, root)
    try:
        path = root
        for name in folder.relative_to(root).parts:
            path /= name
            if create:
                with suppress(FileExistsError):
                    os.mkdir(_named(handle, path), permissions(root), dir_fd=handle)
            inner = _enter(handle, path)
            _close(handle)
            handle = inner
        yield handle
    finally:
        _close(handle)


def _enter(handle: int | None, folder: Path) -> int | None:
    if not stat.S_ISDIR(_status(handle, folder).st_mode):
        raise _leads_away(folder)
    if not _HAS_HANDLES:
        return None
    try:
        return os.open(
            _named(handle, folder), os.O_RDONLY | os.O_DIRECTORY | _NO_LINK, dir_fd=handle
        )
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise _leads_away(folder) from None
        raise


def _leads_away(folder: Path) -> RegistryCorrupt:
    return RegistryCorrupt(
        f"{folder} is a link, or no folder: nothing behind it is read or changed",
        hint="put a folder in its place",
    )


def _opened(handle: int | None, path: Path) -> int:
    if not _HAS_HANDLES and stat.S_ISLNK(_status(handle, path).st_mode):
        raise OSError(errno.ELOOP, "it is a link", str(path))
    descriptor = os.open(_named(handle, path), _READ, dir_fd=handle)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.ELOOP, "it is not a regular file", str(path))


def _named(handle: int | None, path: Path) -> str | Path:
    return path if handle is None else path.name


def _status(handle: int | None, path: Path) -> os.stat_result:
    return os.stat(_named(handle, path), dir_fd=handle, follow_symlinks=False)


def _close(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)


# --- whole or not at all --------------------------------------------------------------------------


def write_file(path: Path, data: bytes, *, root: Path | None = None) -> None:
    """Write a file, synced, in place of what was there; whoever looks finds one of the two.

    With `root`, no folder from there to the file may be a link.
    """
    with new_file(path.parent, root=root) as unfinished:
        unfinished.file.write(data)
        unfinished.replace(path)


class NewFile:
    """A file that has no name, or one that nobody can guess, until it is given its own.

    All is done in the folder that was opened, whatever its path leads to by then.
    """

    def __init__(self, folder: Path, handle: int | None) -> None:
        self._folder = folder
        self._handle = handle
        self._path: Path | None = None
        try:
            here = folder if handle is None else "."
            descriptor = os.open(here, os.O_RDWR | _unnamed_flag(), 0o666, dir_fd=handle)
        except OSError:  # some file systems know no files without a name
            self._path = _random_path(folder, "new")
            descriptor = os.open(_named(handle, self._path), _CREATE, 0o666, dir_fd=handle)
        self.file: BinaryIO = os.fdopen(descriptor, "w+b")

    def replace(self, path: Path) -> None:
        """Give it a name, in place of what bears it."""
        sync_file(self.file)
        if self._path is None:
            unfinished = _random_path(self._folder, path.name)
            self._link(unfinished)
            self._path = unfinished
        self._rename(path)

    def take(self, path: Path) -> bool:
        """Give it a name that nothing bears; False if something does."""
        sync_file(self.file)
        try:
            self._link(path)
        except FileExistsError:
            return False
        except OSError:
            if self._path is None:
                raise
            try:  # without links, a name has to be reserved first
                os.close(os.open(self._named(path), _CREATE, 0o666, dir_fd=self._handle))
            except FileExistsError:
                return False
            self._rename(path)
        self._sync_folder()
        return True

    def _rename(self, path: Path) -> None:
        assert self._path is not None
        source, target = self._named(self._path), self._named(path)
        os.replace(source, target, src_dir_fd=self._handle, dst_dir_fd=self._handle)
        self._path = None
        self._sync_folder()

    def _link(self, path: Path) -> None:
        source: str | Path = f"/proc/self/fd/{self.file.fileno()}"
        if self._path is not None:
            source = self._named(self._path)
        # only with a handle does Python call the function that follows /proc
        os.link(source, self._named(path), src_dir_fd=self._handle, dst_dir_fd=self._handle)

    def _named(self, path: Path) -> str | Path:
        return _named(self._handle, path)

    def _sync_folder(self) -> None:
        if self._handle is None:
            sync_folder(self._folder)
        else:
            os.fsync(self._handle)

    def close(self) -> None:
        """Let go of it, and of all that has no name of its own yet."""
        with suppress(OSError):
            self.file.close()
        if self._path is not None:
            with suppress(OSError):
                os.unlink(self._named(self._path), dir_fd=self._handle)


@contextmanager
def new_file(folder: Path, *, root: Path | None = None) -> Iterator[NewFile]:
    """A file in `folder` that is gone again unless it is given a name in the block.

    With `root`, no folder from there to it may be a link.
    """
    with _entered(root, folder) if root else _opened_folder(folder) as handle:
        unfinished = NewFile(folder, handle)
        try:
            yield unfinished
        finally:
            unfinished.close()


@contextmanager
def _opened_folder(folder: Path) -> Iterator[int | None]:
    """The handle of a folder of the user's, who may have links."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY) if _HAS_HANDLES else None
    try:
        yield handle
    finally:
        _close(handle)


@contextmanager
def replacing(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """A new, empty file beside `path`, which takes its place, synced, when the block ends well.

    Its permissions are `mode`, of which the umask may take more away. For libraries that write to
    paths alone. Whatever is raised, it is gone; what a kill left is removed by the next one.
    """
    _remove_left(path)
    unfinished = _random_path(path.parent, path.name)
    os.close(os.open(unfinished, _CREATE, mode))
    try:
        yield unfinished
        with os.fdopen(os.open(unfinished, os.O_RDWR | _NO_LINK), "rb+") as file:
            sync_file(file)
        unfinished.replace(path)
        sync_folder(path.parent)
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, which takes its place, synced, when the block ends well.

    What bears the name must be a folder, if there is something, and is removed. Should a kill come
    just when the one is gone and the other not there yet, the next attempt puts it back.
    """
    _remove_left(path)
    unfinished = _random_path(path.parent, path.name)
    former = _former(path)
    _put_back(former, path)
    unfinished.mkdir()
    try:
        yield unfinished
        for folder, _, names in os.walk(unfinished):
            for name in names:
                with Path(folder, name).open("rb+") as file:
                    sync_file(file)
            sync_folder(Path(folder))
        if os.path.lexists(path):
            path.rename(former)
        unfinished.rename(path)
        sync_folder(path.parent)
    finally:
        _put_back(former, path)
        shutil.rmtree(unfinished, ignore_errors=True)


def _former(path: Path) -> Path:
    """Where a folder is while another takes its place; that of no other folder."""
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    return path.with_name(f".{path.name[:50]}.{digest}.former")


def _put_back(former: Path, path: Path) -> None:
    """Give a former folder its name again, or remove it if another has that by now."""
    with suppress(FileNotFoundError):
        if os.path.lexists(path):
            _remove(former)
        else:
            former.rename(path)


def _remove(entry: Path) -> None:
    """Remove a file or link, or a folder with all that is in it as far as that goes."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink()


def is_unfinished(name: str) -> bool:
    """Whether a file's name is one that files have while they are written."""
    return _UNFINISHED.fullmatch(name) is not None or name.startswith(".tmp")  # of safetensors


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


def begin_sync(file: BinaryIO) -> None:
    """Have the system begin to write a file to the disk, without waiting, where it can be told so.

    Linux does on this advice, of bytes that are not on the disk yet, and keeps them in its cache.
    """
    file.flush()
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):  # not every file system takes advice
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class FileSystemSync:
    """Forces all that was written below a folder onto the disk at once, by Linux's `syncfs`.

    Make it before anything is written: it tells of errors since then, from Linux 5.8 on.
    """

    def __init__(self, folder: Path) -> None:
        self._handle = os.open(folder, os.O_RDONLY)

    @classmethod
    def of(cls, folder: Path) -> "FileSystemSync | None":
        """That of a folder; None where the system has no such call, or it hides errors."""
        return cls(folder) if _syncfs() else None

    def sync(self) -> None:
        """Force it onto the disk; raises `OSError`."""
        call = _syncfs()
        assert call is not None
        if call(self._handle):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self._handle)


@cache
def _syncfs() -> Callable[[int], int] | None:
    version = re.match(r"(\d+)\.(\d+)", platform.release())
    if sys.platform != "linux" or not version or (int(version[1]), int(version[2])) < (5, 8):
        return None
    return getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)


def _remove_left(path: Path) -> None:
    """Remove what a kill left of earlier attempts at the same file."""
    for entry in path.parent.glob(f".{glob.escape(path.name[:50])}.*.unfinished"):
        with suppress(OSError):
            if (
                _UNFINISHED.fullmatch(entry.name)
                and time.time() - entry.lstat().st_mtime > LEFT_AFTER
            ):
                _remove(entry)


def _random_path(folder: Path, name: str) -> Path:
    return folder / f".{name[:50]}.{secrets.token_hex(8)}.unfinished"


def _unnamed_flag() -> int:
    """The flag of `open` for a file without a name. Raises `OSError` where there is none."""
    flag = getattr(os, "O_TMPFILE", None)
    if flag is None or not os.path.isdir("/proc/self/fd"):
        raise OSError(errno.EOPNOTSUPP, "no files without a name")
    return flag

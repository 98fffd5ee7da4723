"""Where the cache keeps a picture. Loads no weights."""

from pathlib import Path

from ..registry.errors import RegistryCorrupt
from ..registry.files import below
from ..registry.hashes import is_sha256


def picture_path(folder: Path, key: str) -> Path:
    """Where a picture is, or would be. Raises `RegistryCorrupt` for what is no key."""
    if not is_sha256(key):
        raise RegistryCorrupt(f"{key!r} is not the hash of a picture", hint="concept check")
    return below(folder, key[:2], f"{key}.png")

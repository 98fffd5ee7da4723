"""SHA-256, by which stored files, and all that follows from something, are named."""

import hashlib
import json
import re
from io import BufferedReader

_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_sha256(text: str) -> bool:
    """Whether `text` is a SHA-256 in the one form used here, 64 lower-case hex digits."""
    return _SHA256.fullmatch(text) is not None


def sha256_of(data: bytes | BufferedReader) -> str:
    """Of bytes, or of what is left to read of a file."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    return hashlib.file_digest(data, "sha256").hexdigest()


def sha256_of_json(value: object) -> str:
    """Of a value as JSON, in which the order of keys says nothing."""
    return sha256_of(json.dumps(value, sort_keys=True).encode())

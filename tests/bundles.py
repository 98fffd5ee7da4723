"""Taking bundles apart and putting them together again by hand, soundly or not."""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Parts:
    """A manifest and the bytes of the blobs, by hash."""

    manifest: dict[str, Any]
    blobs: dict[str, bytes]

    @property
    def concept(self) -> dict[str, Any]:
        """The first concept of the manifest."""
        return self.manifest["concepts"][0]

    def put(self, data: bytes) -> str:
        """Add a blob and return its hash."""
        sha256 = hashlib.sha256(data).hexdigest()
        self.blobs[sha256] = data
        return sha256

    def drop(self, sha256: str) -> bytes:
        """Remove a blob and return its bytes."""
        return self.blobs.pop(sha256)


def unpack(bundle: bytes | Path) -> Parts:
    """The parts of a bundle."""
    with zipfile.ZipFile(io.BytesIO(bundle) if isinstance(bundle, bytes) else bundle) as opened:
        blobs = {
            name.removeprefix("blobs/"): opened.read(name)
            for name in opened.namelist()
            if name.startswith("blobs/")
        }
        return Parts(json.loads(opened.read("manifest.json")), blobs)


def pack(path: Path, manifest: object, blobs: Mapping[str, bytes]) -> Path:
    """Write a bundle; a manifest given as bytes is written as it is."""
    with zipfile.ZipFile(path, "w") as bundle:
        text = manifest if isinstance(manifest, bytes) else json.dumps(manifest)
        bundle.writestr("manifest.json", text)
        for sha256, data in blobs.items():
            bundle.writestr(f"blobs/{sha256}", data)
    return path

"""Files that are not bundles: what their first bytes say they are, and the command for them."""

import zipfile
from pathlib import Path

from .errors import (
    InvalidBundle,
    quoted,
)
from .files import open_given
from .zips import opened_zip

_HEAD = 1 << 20
_MANIFEST = "manifest.json"
_PICTURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_PICTURE_BOXES = (b"heic", b"heix", b"mif1", b"avif", b"msf1")
_PICKLES = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
_ARCHIVES = (b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_CONVERT = "look for a .safetensors file of the same model; pickles are never opened"
_PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".heic", ".avif", ".tif", ".tiff", ".bmp")


_WEIGHTS = (".safetensors", ".pt", ".ckpt", ".bin", ".pth", ".pkl")
"""How files of weights end, pickles too."""
_PICTURE = ("a picture", "concept add NAME PHOTO --category WORD")
_ARCHIVE = ("an archive", "unpack it first")
_STARTS = (
    (_PICTURES, _PICTURE),
    (_PICKLES, ("a checkpoint, which may run code when it is loaded", _CONVERT)),
    (_ARCHIVES, _ARCHIVE),
    (b"SQLite format 3\0", ("a registry", "concept list --registry FILE")),
    (b"GGUF", ("a GGUF model", "look for a .safetensors file of the same model")),
)


def is_of_other_tools(path: Path) -> bool:
    """Whether a path is a folder of files, or a file of weights by its name, and no bundle."""
    if path.is_dir():
        return not any((path / name).is_file() for name in ("concepts.db", "model_index.json"))
    return path.suffix.lower() in _WEIGHTS and not _is_bundle(path)


def _is_bundle(path: Path) -> bool:
    """Whether a file is a zip with a manifest, whatever it is called."""
    try:
        with open_given(path) as file:
            begins_so = file.read(2) == b"PK"
    except OSError:
        return False
    return begins_so and _MANIFEST in (_names_in(path) or ())


def _names_in(path: Path) -> list[str] | None:
    """The names in a zip; None where it cannot be read."""
    try:
        with opened_zip(path) as opened:
            return opened.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return None


def refuse_non_bundle(path: Path) -> None:
    """Raise `InvalidBundle` for a file of another kind, with the command that takes it."""
    if path.is_dir():
        raise _not_bundle(path, *_of_folder(path))
    if not path.is_file():
        raise _not_bundle(path, "not a regular file", "concept import FILE")
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return  # whoever reads it says why not
    if kind := _of_zip(path) if head.startswith(b"PK") else _of_head(path, head):
        raise _not_bundle(path, *kind)


def _not_bundle(path: Path, what: str, hint: str) -> InvalidBundle:
    return InvalidBundle(f"{path} is not a sound bundle: it is {what}", hint=hint)


def _of_folder(path: Path) -> tuple[str, str]:
    if (path / "concepts.db").is_file():
        return "a registry", f"concept list --registry {quoted(path)}"
    if (path / "model_index.json").is_file():
        return (
            "a base model",
            f'concept generate "a photo of a dog" --base {quoted(path)}',
        )
    return "a folder", f"concept add NAME {quoted(path)} --category WORD"


def _of_zip(path: Path) -> tuple[str, str] | None:
    names = _names_in(path)
    if names is None or _MANIFEST in names:
        return None
    if any(name.endswith("data.pkl") for name in names):
        return "a checkpoint, which may run code when it is loaded", _CONVERT
    if any(name.lower().endswith(_PHOTO_SUFFIXES) for name in names):
        return "a zip of pictures", "unpack it, then concept add NAME FOLDER --category WORD"
    if any(name.endswith(".concept") for name in names):
        return "a zip of exports", "unpack it, then concept import FILE"
    return "a zip of other files", "concept import takes what concept export wrote"


def _of_head(path: Path, head: bytes) -> tuple[str, str] | None:
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return _of_safetensors(path, head)
    if head[8:12] in (b"WEBP", *_PICTURE_BOXES):
        return _PICTURE
    if head[257:262] == b"ustar":
        return _ARCHIVE
    return next((kind for start, kind in _STARTS if head.startswith(start)), None)


def _of_safetensors(path: Path, head: bytes) -> tuple[str, str]:
    if b'"conceptry-' in head:
        return (
            "one file of a concept, without its photos and history",
            "concept export NAME FILE, where it was trained",
        )
    if b'"model.diffusion_model.' in head or b'"first_stage_model.' in head:
        return (
            "a base model",
            f'concept generate "a photo of a dog" --base {quoted(path)}',
        )
    if b"lora_" in head or b'"emb_params"' in head or b'"string_to_param' in head:
        return (
            "a LoRA or an embedding of another tool",
            f"concept import {quoted(path.with_suffix('.safetensors'))}, once it is named so",
        )
    return (
        "weights in safetensors",
        f'concept generate "a photo of a dog" --base {quoted(path)}, if it is a base model',
    )

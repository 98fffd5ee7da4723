"""Weights files: sound safetensors or nothing. Pickle is refused unread."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from .documents import parse_json
from .errors import InvalidWeights, NotFound
from .files import open_given

ADAPTER_FORMAT = "conceptry-adapter 1"
"""The metadata key of an adapter's description; see `adapters.file_format`."""
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80")
_FINITE_CHUNK = 1 << 20
"""Bytes, a multiple of what any number takes."""
MAX_HEADER_BYTES = 16 << 20
"""Of a file from elsewhere; what trainers say of their captions has some megabytes."""


class Tensor(NamedTuple):
    """What a file says of one tensor; `dtype` in safetensors' words (F32, F16, BF16, …)."""

    dtype: str
    shape: tuple[int, ...]


class Header(NamedTuple):
    """What a safetensors file says of itself; its tensors' bytes begin at `start`."""

    metadata: dict[str, str]
    tensors: dict[str, Tensor]
    start: int


def read_header(path: Path) -> Header:
    """The header of a file from elsewhere, within bounds; nothing else of it is read.

    Raises `InvalidWeights` for a file that is no safetensors, or a pickle, and `NotFound`.
    """
    try:
        with open_given(path) as file:
            size = int.from_bytes(file.read(8), "little")
            data = file.read(min(size, MAX_HEADER_BYTES))
    except FileNotFoundError:
        raise NotFound(f"the weights file {path} does not exist") from None
    except OSError as error:
        raise InvalidWeights(f"{path} cannot be read: {error.strerror}") from error
    if not data.startswith(b"{"):
        if _looks_pickled(path):
            raise pickled(path.name)
        raise InvalidWeights(f"{path.name} is not a sound safetensors file: it has no header")
    if size > MAX_HEADER_BYTES:
        raise InvalidWeights(
            f"{path.name} says {size:,} bytes of itself; {MAX_HEADER_BYTES:,} is the limit"
        )
    try:
        found = parse_json(data.decode())
        assert isinstance(found, dict)  # as it begins with a brace
        metadata = found.pop("__metadata__", {})
        tensors = {
            name: Tensor(str(each["dtype"]), tuple(int(side) for side in each["shape"]))
            for name, each in found.items()
        }
        said = {key: text for key, text in metadata.items() if isinstance(text, str)}
    except (ArithmeticError, ValueError, LookupError, TypeError, AttributeError):
        raise InvalidWeights(
            f"{path.name} is not a sound safetensors file: its header cannot be read"
        ) from None
    return Header(said, tensors, 8 + size)


def pickled(name: str) -> InvalidWeights:
    """The error for a pickle, which is never read."""
    return InvalidWeights(
        f"{name} is a pickle (a PyTorch checkpoint), which can run code when read",
        hint="convert it to safetensors first",
    )


def check_weights(
    path: Path, expected: Mapping[str, Tensor] | None = None, *, name: str | None = None
) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file after checking that it is sound.

    The header must be sane and cover the file exactly, every value must be finite, and the names,
    shapes and dtypes must be `expected`, where that is given. Raises `InvalidWeights`, which calls
    the file `name`, and `NotFound`.
    """
    name = name or path.name
    if not os.path.isfile(path):
        raise NotFound(f"the weights file {path} does not exist")
    try:
        with safe_open(path, framework="np") as opened:
            tensors = {
                name: Tensor(part.get_dtype(), tuple(part.get_shape()))
                for name in opened.keys()  # noqa: SIM118 (not a mapping)
                for part in [opened.get_slice(name)]
            }
    except (SafetensorError, OSError) as error:
        if _looks_pickled(path):
            raise pickled(name) from None
        raise InvalidWeights(f"{name} is not a sound safetensors file: {error}") from None
    for key, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise InvalidWeights(f"{name}: tensor {key} is {tensor.dtype}, which nothing here uses")
    if expected is not None:
        _compare(name, tensors, expected)
    _check_finite(path, name, tensors)
    return tensors


def is_adapter(path: Path) -> bool:
    """Whether a sound safetensors file says that it is an adapter."""
    with safe_open(path, framework="np") as opened:
        return ADAPTER_FORMAT in (opened.metadata() or {})


def _looks_pickled(path: Path) -> bool:
    with open_given(path) as file:
        return file.read(4).startswith(_PICKLE_STARTS)


def _compare(name: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for what, keys in (
        ("lacks", expected.keys() - found.keys()),
        ("has an unexpected", found.keys() - expected.keys()),
    ):
        if keys:
            raise InvalidWeights(f"{name} {what} tensor: {min(keys)} ({len(keys)} in all)")
    for key, tensor in expected.items():
        if found[key] != tensor:
            raise InvalidWeights(
                f"{name}: tensor {key} is {found[key].dtype} {found[key].shape}, "
                f"not {tensor.dtype} {tensor.shape}"
            )


def _check_finite(path: Path, file_name: str, tensors: Mapping[str, Tensor]) -> None:
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_bytes))
        start = 8 + header_bytes
        for name, tensor in tensors.items():
            layout = _FLOAT_LAYOUTS.get(tensor.dtype)
            first, last = header[name]["data_offsets"]
            if layout is None or first == last:
                continue
            integer, exponent = layout
            file.seek(start + first)
            for begin in range(first, last, _FINITE_CHUNK):  # a memory map faults at each page
                raw = np.frombuffer(file.read(min(_FINITE_CHUNK, last - begin)), integer)
                if ((raw & exponent) == exponent).any():
                    raise InvalidWeights(
                        f"{file_name}: tensor {name} has values that are not finite"
                    )


def _layout(integer: str, exponent: int) -> tuple[np.dtype, np.unsignedinteger]:
    dtype = np.dtype(integer)
    return dtype, dtype.type(exponent)


_FLOAT_LAYOUTS = {
    "F64": _layout("<u8", 0x7FF0_0000_0000_0000),
    "F32": _layout("<u4", 0x7F80_0000),
    "F16": _layout("<u2", 0x7C00),
    "BF16": _layout("<u2", 0x7F80),
    "F8_E5M2": _layout("u1", 0x7C),
    "F8_E4M3": _layout("u1", 0x7F),
}
"""As which integers a float's bits can be read, and the bits that, all set, mean Inf or NaN."""

_DTYPES = {*_FLOAT_LAYOUTS, "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}

"""Writes safetensors files as the registry writes: atomically, and never through a link.

The library's own writer only takes paths, or builds the whole file in memory.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..registry.files import new_file

_TYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""In the order in which the library writes them."""
_ALIGNMENT = 8


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write CPU tensors to `path`, replacing it; equal tensors give equal files.

    The folder must not be a link; a link at `path` is replaced. Raises `OSError`.
    """
    ordered = _in_order(tensors)
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with new_file(path.parent, root=path.parent) as unfinished:
        unfinished.file.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in ordered:
            unfinished.file.write(_bytes_of(tensor))
        unfinished.replace(path)


def hash_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of what `write_tensors` writes after the header: a LoRA's name among other tools."""
    digest = hashlib.sha256()
    for _, tensor in _in_order(tensors):
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def _in_order(tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    rank = list(_TYPES)
    return sorted(tensors.items(), key=lambda each: (rank.index(each[1].dtype), each[0]))


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data

"""Safetensors files byte by byte, sound or not."""

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


def framed(header: object, data: bytes = b"") -> bytes:
    """A header, as it is if it is bytes, and data behind it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def raw_safetensors(parts: Mapping[str, tuple[str, Sequence[int], bytes]]) -> bytes:
    """A file of tensors given as (dtype, shape, bytes)."""
    header: dict[str, Any] = {}
    data = b""
    for name, (dtype, shape, content) in parts.items():
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        data += content
    return framed(header, data)

"""Odd versions of sound files: bytes that flip, values that are exchanged, texts that bite."""

import csv
import io
import json
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any

WORDS: Sequence[Any] = (
    None,
    True,
    -1,
    0,
    1 << 63,
    10**30,
    1e308,
    0.5,
    "",
    " ",
    "..",
    ".",
    "/etc/passwd",
    "../../outside/kept",
    "C:\\x",
    "~nobody-of-this-name/x",
    "a" * 5000,
    "rex",
    "<b>",
    "<rex",
    "{}",
    "{a|b}",
    "\x1b[31m",
    "\0",
    "\u202e",
    "\ud800",
    "é" * 40,
    "=1+1",
    "@SUM(1)",
    "2024-99-99",
    "9" * 5000,
    "NaN",
    "no",
    "\r\n",
    [],
    {},
    [[]],
    {"a": {"b": []}},
    [1, "a", None],
)
YAML_PIECES = (
    "&a [*a]",
    "&a {b: *a}",
    "*nobody",
    "2024-99-99",
    "9" * 100_000,
    "1:" * 1000 + "1",
    "!!python/object/apply:os.system ['touch outside/ran']",
    "!!binary x",
    "!!int ''",
    "!!timestamp 0",
    "!!set {a, b}",
    "{1: 2}",
    "{[1]: 2}",
    "{a: 1, a: 2}",
    "[" * 3000,
    "<<: [1]",
    "\t",
    "---\n...",
    "%YAML 9.9",
    "? [x]\n: y",
    '"\\ud800\\0\\e"',
)
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)


def odd_value(rng: random.Random) -> Any:
    """Something that does not belong where it will stand."""
    value = deepcopy(rng.choice(WORDS))  # it will be changed
    if rng.random() < 0.05:
        for _ in range(rng.choice((10, 100, 2000))):
            value = [value] if rng.random() < 0.5 else {"a": value}
    elif rng.random() < 0.03 and not isinstance(value, (list, dict)):  # else, ever more of more
        return [value] * 1000
    return value


def odd_tree(rng: random.Random, value: Any) -> Any:
    """A JSON value with a few of its parts exchanged, left out, doubled or renamed."""
    changed = json.loads(dumped(value))
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        places = list(_places(changed))
        if not places or rng.random() < 0.02:
            return odd_value(rng)
        holder, key = rng.choice(places)
        what = rng.random()
        if what < 0.7:
            holder[key] = odd_value(rng)
        elif what < 0.85:
            del holder[key]
        elif isinstance(holder, list):
            holder.append(holder[key])
        else:
            holder[_cell(odd_value(rng))[:100]] = holder[key]
    return changed


def _places(value: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """Everything in a value, as what holds it and under which key."""
    if isinstance(value, (dict, list)) and depth < 50:
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key], depth + 1)


def dumped(value: Any) -> str:
    """As JSON, however deep."""
    try:
        return json.dumps(value)
    except RecursionError:
        return "[" * 100_000


def odd_bytes(rng: random.Random, data: bytes) -> bytes:
    """Bytes flipped, cut, doubled, or numbers in them made extreme."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not made:
            return bytes(made)
        at = rng.randrange(min(len(made), rng.choice((64, 512, len(made)))))
        ODD_BYTES[rng.randrange(len(ODD_BYTES))](rng, made, at)
    return bytes(made)


def _flip(rng: random.Random, made: bytearray, at: int) -> None:
    made[at] ^= 1 << rng.randrange(8)


def _cut(rng: random.Random, made: bytearray, at: int) -> None:
    del made[at:]


def _leave_out(rng: random.Random, made: bytearray, at: int) -> None:
    del made[at : at + rng.choice((1, 4, 100))]


def _double(rng: random.Random, made: bytearray, at: int) -> None:
    made[at:at] = made[at : at + rng.choice((1, 4, 100, 10_000))]


def _length(rng: random.Random, made: bytearray, at: int) -> None:
    form = rng.choice(("<H", "<I", ">I", "<Q", ">H"))
    most = (1 << (8 * struct.calcsize(form))) - 1
    number = struct.pack(form, rng.choice((0, 1, most, most // 2, most // 2 + 1, 1 << 15)))
    made[at : at + len(number)] = number


def _fill(rng: random.Random, made: bytearray, at: int) -> None:
    made[at : at + 40] = bytes([rng.choice((0, 255, 10, 27))]) * 40


ODD_BYTES: Sequence[Callable[[random.Random, bytearray, int], None]] = (
    _flip,
    _flip,
    _flip,
    _cut,
    _leave_out,
    _double,
    _length,
    _length,
    _fill,
)


def odd_text(rng: random.Random, text: str) -> bytes:
    """A text with pieces of YAML, words or bytes put into it, perhaps in another encoding."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(text) + 1)
        piece = rng.choice((*YAML_PIECES, *(word for word in WORDS if isinstance(word, str))))
        text = rng.choice((text[:at] + piece + text[at:], text[:at], text.replace(":", "", 1)))
    if rng.random() < 0.02:
        text = BOMB + text
    encoding = rng.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"))
    data = text.encode(encoding, "replace")
    return odd_bytes(rng, data) if rng.random() < 0.2 else data


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else dumped(value)[:6000]


def odd_csv(rng: random.Random, rows: Sequence[Sequence[Any]]) -> bytes:
    """Rows with odd cells, parted by one thing or another."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=rng.choice(",;\t|"))
    found = odd_tree(rng, [list(row) for row in rows])
    for row in found if isinstance(found, list) else [found]:
        cells = row if isinstance(row, list) else [row]
        writer.writerow([_cell(cell) for cell in cells])
    return (
        odd_text(rng, text.getvalue())
        if rng.random() < 0.5
        else text.getvalue().encode("utf-8", "replace")
    )


def odd_safetensors(rng: random.Random, data: bytes) -> bytes:
    """A file with another header, or with odd bytes."""
    if rng.random() < 0.5:
        return odd_bytes(rng, data)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    text = dumped(odd_tree(rng, header)).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]

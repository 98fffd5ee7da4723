"""Everything random in a training follows from its seed and a place in it."""

import hashlib


def seed_of(seed: int, *place: str | int) -> int:
    """A 63-bit seed from a training's seed, a stage and a step; the same on every machine."""
    text = " ".join(map(str, (seed, *place)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1

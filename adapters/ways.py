"""The ways to compress a version. Loads no deep-learning library."""

import re
from dataclasses import dataclass
from typing import Literal, cast, get_args

from ..registry.errors import InvalidInput
from .limits import MAX_RANK

Bits = Literal["1bit", "int4", "fp8", "int8"]
_SVD = re.compile(r"svd:(\d{1,4})(%?)(?::(int4|int8))?", re.ASCII)
WAYS = "svd:RANK, svd:RANK:int4, svd:SHARE%, 1bit, int4, fp8 or int8"


@dataclass(frozen=True, slots=True)
class Way:
    """How weights are compressed: by SVD to a `rank`, or to a `share` of the change; in `bits`.

    With both the factors' numbers have so few bits, else 16.
    """

    rank: int | None = None
    share: float | None = None
    bits: Bits | None = None

    @classmethod
    def parse(cls, text: str) -> "Way":
        """`svd:32`, `svd:32:int4`, `svd:90%`, `1bit`, `fp8`, `int8`. Raises `InvalidInput`."""
        if text in get_args(Bits):
            return cls(bits=cast("Bits", text))
        match = _SVD.fullmatch(text)
        highest = 99 if match and match[2] else MAX_RANK
        if not match or not 1 <= int(match[1]) <= highest:
            raise InvalidInput(
                f"{text[:40]!r} is no way to compress: {WAYS}, a rank up to {MAX_RANK}, a share up "
                "to 99%",
                hint="--to svd:32",
            )
        bits = cast("Bits | None", match[3])
        if match[2]:
            return cls(share=int(match[1]) / 100, bits=bits)
        return cls(rank=int(match[1]), bits=bits)

    @property
    def is_low_rank(self) -> bool:
        """Whether a LoRA is made."""
        return self.rank is not None or self.share is not None

    def __str__(self) -> str:
        size = f"{self.share:.0%}" if self.share is not None else self.rank
        parts = ["svd", size] if self.is_low_rank else []
        return ":".join(str(part) for part in [*parts, self.bits] if part is not None)

"""The ways to compress a version. Loads no deep-learning library."""

import re
from dataclasses import dataclass
from typing import Literal

from ..registry.errors import InvalidInput
from .limits import MAX_RANK

_SVD = re.compile(r"svd:(\d{1,4})(%?)", re.ASCII)
WAYS = "svd:RANK, svd:SHARE%, 1bit, fp8 or int8"


@dataclass(frozen=True, slots=True)
class Way:
    """How weights are compressed: by SVD to a `rank`, or to a `share` of the change; or in bits."""

    name: Literal["svd", "1bit", "fp8", "int8"]
    rank: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Way":
        """`svd:32`, `svd:90%`, `1bit`, `fp8`, `int8`. Raises `InvalidInput`."""
        if text in ("1bit", "fp8", "int8"):
            return cls(text)
        match = _SVD.fullmatch(text)
        highest = 99 if match and match[2] else MAX_RANK
        if not match or not 1 <= int(match[1]) <= highest:
            raise InvalidInput(
                f"{text[:40]!r} is no way to compress: {WAYS}, a rank up to {MAX_RANK}, a share up "
                "to 99%",
                hint="--to svd:32",
            )
        return cls("svd", share=int(match[1]) / 100) if match[2] else cls("svd", int(match[1]))

    def __str__(self) -> str:
        if self.share is not None:
            return f"svd:{self.share:.0%}"
        return f"svd:{self.rank}" if self.rank else self.name

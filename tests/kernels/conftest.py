"""The Triton interpreter, without work that it repeats."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest


@pytest.fixture(autouse=True, scope="session")
def _language_patched_once() -> Iterator[None]:
    """Within a kernel, a function that it calls finds the language patched already.

    The interpreter looks through all of Triton's names at every such call, which takes it longer
    than most of what these functions do.
    """
    if find_spec("triton") is None:
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter

    usual: Any = interpreter._patch_lang

    def unless_patched(function: Any) -> Any:
        seen = [
            lang
            for lang in (tl, tl.core)
            if any(lang is it for it in function.__globals__.values())
        ]
        return usual(function) if any(tl.core.is_builtin(lang.load) for lang in seen) else None

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(interpreter, "_patch_lang", unless_patched)
        yield

"""A short run of the fuzz harness; `python tests/faults/fuzz.py` makes it as long as wished."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from odd import WORDS, odd_bytes, odd_tree
from program import DEADLINE

KINDS = "photo,mask,caption,words,suite,prompts,setting,aliases,picture,bundle"


@pytest.mark.skipif(sys.platform != "linux", reason="bounds memory by what Linux tells")
@pytest.mark.long
def test_odd_files_are_no_bugs() -> None:
    """Faults, row 38: in a process of its own, as it forks."""
    harness = Path(__file__).with_name("fuzz.py")
    words = ("--cases", "400", "--seed", "5", "--kinds", KINDS)
    done = subprocess.run(
        [sys.executable, harness, *words],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def test_what_is_odd_follows_from_the_seed() -> None:
    for make, value in ((odd_bytes, bytes(100)), (odd_tree, {"a": [1, {"b": 2}]})):
        first, second = (repr(make(random.Random(3), value)) for _ in range(2))  # pyright: ignore[reportArgumentType]
        assert first == second
        assert any(make(random.Random(i), value) != value for i in range(5))  # pyright: ignore[reportArgumentType]


def test_what_was_made_before_changes_nothing() -> None:
    """A change within an odd value must not reach into the words that it was chosen from."""
    words = repr(WORDS)
    for i in range(500):
        odd_tree(random.Random(i), {"a": [1, {"b": 2}]})
    assert repr(WORDS) == words

"""The session in the manual prints what the manual says."""

import shlex
import tempfile
from pathlib import Path

import pytest
from forked import Forked
from manual_session import PAGE, in_a_shell, play, prepare, rewritten, without_moments


@pytest.mark.long
def test_the_session_in_the_manual_is_real(tmp_path: Path) -> None:
    prepare(tmp_path)
    text = PAGE.read_text()
    session = dict(play(text, tmp_path, run))
    assert len(session) >= 12
    assert without_moments(rewritten(text, session)) == without_moments(text)


def run(line: str, folder: Path) -> str:
    """Run it as it is where it needs a shell; the rest where libraries need not be loaded again."""
    if "*" in line:
        return in_a_shell(line, folder)
    command, *words = shlex.split(line)
    assert command == "concept"
    with tempfile.TemporaryFile() as printed, pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setenv("CONCEPT_REGISTRY", "concepts.db")
        with Forked(*words, stdout=printed.fileno(), stderr=printed.fileno()) as process:
            process.wait()
        printed.seek(0)
        return printed.read().decode()

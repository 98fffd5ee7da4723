"""What `make` installs, for which target, and when; with a Python and a pip that only note it."""

import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from program import DEADLINE, ROOT, make_old

PYTHON = f"""#!/bin/sh
[ "$1" = -c ] && exec {sys.executable} "$@"
mkdir -p .venv/bin
cp pip .venv/bin/pip
for name in python pytest mkdocs; do printf '#!/bin/sh\\n' > .venv/bin/$name; done
chmod +x .venv/bin/*
"""
PIP = """#!/bin/sh
for word; do :; done
echo "$word" >> installed.txt
echo "Collecting tiny"
echo "  Downloading large-1.0.whl (812.3 MB)"
echo "Installing collected packages: tiny, large"
test ! -e broken || { echo "ERROR: no network"; exit 1; }
"""
PROGRAM, WITH_TOOLS, WITH_SITE = ".", ".[dev]", ".[docs]"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        make_old(Path(shutil.copy(ROOT / name, tmp_path)))
    for name, script in (("python", PYTHON), ("pip", PIP)):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def make(clone: Path, *targets: str) -> subprocess.CompletedProcess[str]:
    # without the words of a make that may run this test
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", "PYTHON=./python", *targets],
        cwd=clone,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def installed(clone: Path, *targets: str) -> list[str]:
    """What pip was asked for by these targets."""
    log = clone / "installed.txt"
    log.unlink(missing_ok=True)
    done = make(clone, *targets)
    assert done.returncode == 0, done.stdout
    return log.read_text().splitlines() if log.exists() else []


def test_the_demo_needs_no_development_tools(clone: Path) -> None:
    assert installed(clone, "demo") == [PROGRAM]
    assert installed(clone, "demo") == []


@pytest.mark.parametrize("target", ["install", "test"])
def test_development_tools_come_with_the_program(clone: Path, target: str) -> None:
    assert installed(clone, target) == [WITH_TOOLS]
    assert installed(clone, "test", "demo") == []


def test_development_tools_are_added_to_what_the_demo_needs(clone: Path) -> None:
    assert installed(clone, "demo") == [PROGRAM]
    assert installed(clone, "test") == [WITH_TOOLS]
    assert installed(clone, "demo") == []


def test_what_builds_the_site_is_for_the_site_alone(clone: Path) -> None:
    assert installed(clone, "docs") == [WITH_SITE]
    assert installed(clone, "docs") == []
    assert installed(clone, "demo") == [PROGRAM]
    assert installed(clone, "test") == [WITH_TOOLS]


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
@pytest.mark.parametrize(("target", "what"), [("demo", PROGRAM), ("test", WITH_TOOLS)])
def test_other_requirements_are_installed(clone: Path, name: str, target: str, what: str) -> None:
    installed(clone, target)
    for stamp in (clone / ".venv").iterdir():
        make_old(stamp, 3600)
    (clone / name).touch()
    assert installed(clone, "demo") == [what]
    assert installed(clone, "demo") == []


def test_an_installation_that_failed_is_gone_on_with(clone: Path) -> None:
    (clone / "broken").touch()
    failed = make(clone, "demo")
    assert failed.returncode != 0
    assert "ERROR: no network" in failed.stdout
    (clone / "broken").unlink()
    assert installed(clone, "demo") == [PROGRAM]


def test_where_nobody_looks_only_what_takes_long_is_told(clone: Path) -> None:
    told = make(clone, "demo").stdout.splitlines()
    assert told[-2:] == ["Downloading large-1.0.whl (812.3 MB)", "unpacking them"]
    assert not any("Collecting" in line for line in told)


def test_on_a_terminal_pip_shows_its_progress(clone: Path) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen, os.fdopen(theirs, "wb") as terminal:
        subprocess.run(
            ["make", "PYTHON=./python", "demo"],
            cwd=clone,
            stdout=terminal,
            stderr=subprocess.STDOUT,
            timeout=DEADLINE,
            check=True,
        )
        assert b"Collecting tiny" in screen.read(10_000)

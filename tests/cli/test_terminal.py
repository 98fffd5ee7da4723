"""What a person at a terminal, or a pipe, gets to see."""

import json
import os
import pty
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from conceptry.registry import Registry, blobs, intake, locate
from drawing import draw_bytes, draw_file
from forked import Forked
from program import DEADLINE, Run, command, error_of, run_concept, stored_files, wait_until
from tiny_base import write_tiny_base

HOSTILE = ["two\nlines", "red\x1b[31m", "bell\x07", "back\x08", "left\u202eright", b"caf\xe9"]


def unsafe(text: str) -> set[str]:
    """The characters in `text` that a terminal would obey."""
    return {character for character in text if not character.isprintable()} - {"\n"}


@pytest.fixture(params=HOSTILE, ids=ascii)
def hostile(request: pytest.FixtureRequest) -> str:
    """Part of a file name that nobody means well with."""
    return os.fsdecode(request.param)


def assert_harmless(output: bytes, name: str | Path) -> None:
    text = output.decode()  # what is not UTF-8 has been escaped
    assert not unsafe(text), f"from {name}"
    assert "two\nlines" not in text, f"from {name}"


def test_hostile_names_of_photos(rex: Registry, run: Run, tmp_path: Path, hostile: str) -> None:
    photo = draw_file(tmp_path / f"{hostile}.png", 20, (300, 300))
    for line in (
        ["add", "rex", photo],  # small: a warning
        ["add", "rex", photo],  # there already: a note
        ["add", "rex", f"{photo.name}.jpg"],  # not found
        ["show", "rex"],
        ["history"],
        ["export", "rex", f"{hostile}.concept"],
        ["export", "rex", f"{hostile}.concept"],  # exists
        ["import", f"{hostile}.concept"],  # taken
        ["backup", hostile],
        ["check", "--repair", "--from", f"no {hostile}"],
        ["show", hostile],
        ["rename", "rex", hostile],
        ["edit", "rex", "--caption", hostile],
        [hostile],
    ):
        assert_harmless(run(*line).output_bytes, line[0])


def test_hostile_names_in_the_blob_folder(
    rex: Registry, run: Run, database: Path, hostile: str
) -> None:
    (locate(database).blobs / hostile).touch()
    result = run("check")
    assert "foreign" in result.stdout
    assert_harmless(result.output_bytes, "check")


def test_hostile_words_of_a_training(rex: Registry, run: Run, hostile: str) -> None:
    word = hostile.encode(errors="replace").decode()
    rex.begin_run(
        "rex",
        method=f"[/red]{word}",
        config={},
        base=f"[bold]{word}",
        base_sha256="",
        seed=1,
        packages={},
    )
    for line in (["show", "rex"], ["history"]):
        result = run(*line)
        assert result.exit_code == 0
        assert_harmless(result.output_bytes, line[0])


def test_nothing_is_coloured_in_a_pipe(rex: Registry, run: Run) -> None:
    small = draw_file(Path("small.png"), 21, (200, 200))
    done = run_concept("add", "rex", small)
    assert "warning" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    for line in (["list"], ["show", "rex"], ["check"], ["show", "rx"]):
        assert "\x1b" not in run(*line).output


def test_no_absolute_path_where_none_was_given(rex: Registry, run: Run, tmp_path: Path) -> None:
    for line in (
        ["add", "rex", "photos"],
        ["list"],
        ["show", "rex"],
        ["export", "rex", "rex.concept", "--force"],
        ["backup", "copy"],
        ["history"],
        ["check"],
        ["gc"],
    ):
        for form in ([], ["--json"]):
            assert str(tmp_path) not in run(*line, *form).output


def test_a_reader_that_leaves_early(rex: Registry, run: Run) -> None:
    words = [str(word) for word in command("list")]
    script = '"$0" "$@" | head -1; exit "${PIPESTATUS[0]}"'
    done = subprocess.run(
        ["bash", "-c", script, *words],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.stdout.startswith("name")
    assert (done.returncode, done.stderr) == (0, "1 concept\n")


@pytest.mark.parametrize("line", [["list", "-q"], ["list", "--json"], ["history"]], ids=" ".join)
def test_a_reader_that_left_already(rex: Registry, run: Run, line: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        done = subprocess.run(
            command(*line), stdout=closed, stderr=subprocess.PIPE, timeout=DEADLINE, check=False
        )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_json_is_json_in_every_encoding(rex: Registry, run: Run, encoding: str) -> None:
    rex.edit("rex", captions={"00.png": "café \N{DOG FACE} \N{GREEK SMALL LETTER ALPHA}"})
    words = command("show", "rex", "--json")
    done = subprocess.run(
        words,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        timeout=DEADLINE,
        check=False,
    )
    shown = json.loads(done.stdout.decode(encoding))
    assert shown["images"][0]["caption"] == rex.show("rex").images[0].caption


def test_paths_that_are_not_utf8_survive_json(rex: Registry, run: Run, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / name).write_bytes(draw_bytes(22))
    [added] = json.loads(run("add", "rex", name, "--json").stdout)["added"]
    assert added["path"] == name


# --- a terminal -----------------------------------------------------------------------------------


class Terminal:
    """`concept` with its input and messages on a pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        self.screen, far_end = pty.openpty()
        self.process = Forked(*arguments, stdin=far_end, stderr=far_end)
        os.close(far_end)

    def read_until(self, text: bytes) -> bytes:
        seen = b""
        while text not in seen:
            ready, _, _ = select.select([self.screen], [], [], DEADLINE)
            assert ready, seen
            try:
                seen += os.read(self.screen, 1000)
            except OSError:  # the process has ended
                pytest.fail(f"{text!r} is not in {seen!r}")
        return seen

    def type(self, text: bytes) -> None:
        os.write(self.screen, text)

    def interrupt(self) -> None:
        """Press Ctrl-C until it has ended: one between a question and its read goes unseen."""
        self.process.send_signal(signal.SIGINT)
        while not self.process.has_ended(within=2):
            self.process.send_signal(signal.SIGINT)

    def status(self) -> int:
        return self.process.wait()

    def close(self) -> None:
        self.process.__exit__()
        os.close(self.screen)


@pytest.fixture
def at_terminal(run: Run) -> Iterator[Callable[..., Terminal]]:
    """Starts commands at a terminal."""
    started: list[Terminal] = []

    def start(*arguments: str) -> Terminal:
        started.append(Terminal(*arguments))
        return started[-1]

    yield start
    for terminal in started:
        terminal.close()


AtTerminal = Callable[..., Terminal]


def test_rm_asks_at_a_terminal(rex: Registry, at_terminal: AtTerminal) -> None:
    terminal = at_terminal("rm", "rex")
    assert b"Remove rex (3 photos, 0 versions)?" in terminal.read_until(b"[y/N]")
    assert rex.names() == ["rex"]
    terminal.type(b"y\n")
    assert terminal.status() == 0
    assert rex.names() == []


@pytest.mark.parametrize("answer", [b"n\n", b"\x04"], ids=["n", "ctrl-d"])
def test_rm_takes_no_for_an_answer(rex: Registry, at_terminal: AtTerminal, answer: bytes) -> None:
    terminal = at_terminal("rm", "rex")
    terminal.read_until(b"[y/N]")
    terminal.type(answer)
    terminal.read_until(b"nothing was removed")
    assert terminal.status() != 0
    assert rex.names() == ["rex"]


@pytest.mark.long
def test_rm_is_interrupted_while_it_asks(rex: Registry, at_terminal: AtTerminal) -> None:
    terminal = at_terminal("rm", "rex")
    terminal.read_until(b"[y/N]")
    terminal.interrupt()
    assert terminal.status() == 130
    assert rex.names() == ["rex"]


def test_rm_with_yes_does_not_ask(rex: Registry, at_terminal: AtTerminal) -> None:
    terminal = at_terminal("rm", "rex", "--yes")
    assert b"[y/N]" not in terminal.read_until(b"concept gc")
    assert terminal.status() == 0
    assert rex.names() == []


@pytest.mark.long
def test_previews_are_shown_where_there_are_colours(
    rex: Registry, at_terminal: AtTerminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = str(write_tiny_base(tmp_path / "tiny"))
    words = ["rex", "--base", base, "--preview-every", "2", "--set", "augmentation.crops=2"]
    words += [word for i in (1, 2, 3) for word in ("--set", f"stage{i}.steps={2 * (i == 1)}")]
    for colours, shown in (("truecolor", True), ("", False)):
        monkeypatch.setenv("COLORTERM", colours)
        monkeypatch.setenv("TERM", "xterm")
        terminal = at_terminal("train", *words)
        text = terminal.read_until(b"next:")
        assert ("▀" in text.decode()) == shown
        assert (b"stage1, step 2" in text) == shown
        assert terminal.status() == 0


# --- Ctrl-C ---------------------------------------------------------------------------------------


def many_photos(folder: Path, count: int) -> Path:
    """Photos that differ and take a moment each."""
    folder.mkdir()
    data = draw_bytes(23, (2500, 2500))
    for i in range(count):
        (folder / f"{i:03}.png").write_bytes(data + b"%03d" % i)
    return folder


def ctrl_c(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_while_photos_are_read(
    rex: Registry, run: Run, database: Path, tmp_path: Path
) -> None:
    before = stored_files(database)
    photos = many_photos(tmp_path / "many", 100)
    adding = subprocess.Popen(
        command("add", "mia", str(photos), "--category", "cat", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    waiting = locate(database).blobs / "tmp"
    wait_until(lambda: len(list(waiting.iterdir())) >= 3)
    adding.send_signal(signal.SIGINT)
    out, err = adding.communicate(timeout=DEADLINE)
    assert adding.returncode == 130
    assert json.loads(out)["error"]["code"] == "interrupted"
    assert "Traceback" not in err
    assert rex.names() == ["rex"]
    assert stored_files(database) == before


@pytest.mark.parametrize(
    ("module", "name"),
    [(blobs, "sync_folder"), (intake, "record_event")],
    ids=["publishing", "inserting"],
)
def test_ctrl_c_later_on(
    rex: Registry,
    run: Run,
    database: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    name: str,
) -> None:
    before = stored_files(database)
    monkeypatch.setattr(module, name, ctrl_c)
    photo = draw_file(tmp_path / "new.png", 24)
    result = run("add", "mia", photo, "--category", "cat", "--json")
    assert result.exit_code == 130
    assert error_of(result)["code"] == "interrupted"
    assert rex.names() == ["rex"]
    assert stored_files(database) == before


@pytest.mark.parametrize("library", ["typer", "conceptry.registry.queries"])
def test_ctrl_c_while_the_program_loads(rex: Registry, run: Run, library: str) -> None:
    interrupt = f"""
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {library!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Finder())
"""
    done = run_concept("list", prelude=interrupt)
    assert done.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in done.stderr

"""The only printer. Results go to stdout, everything else to stderr."""

import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from ..registry.names import printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_PIPE_WIDTH = 240
"""Columns when no terminal is there to say: wide enough that nothing is cut."""


class Output:
    """Prints for people or, `as_json`, one document for programs."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet

    def result(self, document: dict[str, Any], *parts: "RenderableType") -> None:
        """Print what the command was asked for: the document as JSON, or the parts for people."""
        if self.as_json:
            self._write(_json(document))
            return
        rendered = io.StringIO()
        console = _console(sys.stdout, rendered)
        for part in parts:
            if isinstance(part, str):
                console.print(printable(part), highlight=False, markup=False, soft_wrap=True)
            else:
                console.print(part)
        self._write(rendered.getvalue().removesuffix("\n"))

    def lines(self, document: dict[str, Any], lines: list[str]) -> None:
        """Print plain lines that other programs can read, or the document as JSON."""
        self._write(_json(document) if self.as_json else "\n".join(map(printable, lines)))

    def note(self, text: str, style: str = "") -> None:
        """Tell a person something besides the result."""
        if not (self.quiet or self.as_json):
            _console(sys.stderr).print(
                printable(text), style=style, highlight=False, markup=False, soft_wrap=True
            )

    def warn(self, text: str) -> None:
        """Tell a person of something that may be wrong."""
        self.note(f"warning: {text}", style="yellow")

    def error(self, message: str, hint: str | None) -> None:
        """Print one line: what, why, and what to do next."""
        line = f"error: {message}" + (f" -> {hint}" if hint else "")
        print(printable(line), file=sys.stderr)  # noqa: T201

    @contextmanager
    def progress(self, label: str) -> Iterator[Callable[[int, int], None] | None]:
        """Show a bar with ETA on a terminal; yields what to call with (done, total), or None."""
        if self.quiet or self.as_json or not sys.stderr.isatty():
            yield None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn())
        with Progress(
            *columns, TimeRemainingColumn(), console=_console(sys.stderr), transient=True
        ) as bar:
            task = bar.add_task(label, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)

    @contextmanager
    def steps(self) -> Iterator[Callable[[str, int, int, str], None] | None]:
        """As `progress`, for work in stages: yields what takes (stage, done, total, text)."""
        if self.quiet or self.as_json or not sys.stderr.isatty():
            yield None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        columns = (
            "[progress.description]{task.description}",
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            "[dim]{task.fields[text]}",
        )
        with Progress(*columns, console=_console(sys.stderr), transient=True) as bars:
            tasks: dict[str, Any] = {}

            def show(stage: str, done: int, total: int, text: str) -> None:
                if stage not in tasks:
                    tasks[stage] = bars.add_task(stage, total=total, text="")
                bars.update(tasks[stage], completed=done, total=total, text=text)

            yield show

    def _write(self, text: str) -> None:
        with _quiet_on_broken_pipe():
            sys.stdout.write(text + "\n" if text else "")
            sys.stdout.flush()


def _json(document: dict[str, Any]) -> str:
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    return json.dumps(document, indent=2, ensure_ascii=encoding != "utf8")


def size(num_bytes: int) -> str:
    """A number of bytes for people, in powers of 1000."""
    amount, unit = float(num_bytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 999.5 or unit == "TB":
            break
        amount /= 1000
    return f"{amount:.0f} {unit}" if amount >= 10 or unit == "B" else f"{amount:.1f} {unit}"


def count(number: int, noun: str) -> str:
    """`1 photo`, `2 photos`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def moment(text: str) -> str:
    """A stored moment for people: to the minute."""
    return text[:16].replace("T", " ")


def _console(stream: TextIO, target: TextIO | None = None) -> "Console":
    """A Rich console fit for `stream`; it writes there or to `target`."""
    from rich.console import Console

    is_terminal = stream.isatty()
    width = shutil.get_terminal_size().columns if is_terminal else _PIPE_WIDTH
    return Console(file=target or stream, width=width, force_terminal=is_terminal)


@contextmanager
def _quiet_on_broken_pipe() -> Iterator[None]:
    """Let `concept list | head` end without a complaint."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

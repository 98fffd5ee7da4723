"""The only printer. Results go to stdout, everything else to stderr."""

import errno
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO, cast

from ..registry.names import printable
from .errors import OutputLost

if TYPE_CHECKING:
    from PIL import Image
    from rich.console import Console, RenderableType
    from rich.progress import Progress, TaskID
    from rich.table import Table
    from rich.text import Text

    from ..methods.settings import TrainingSettings
    from ..registry.records import ImageRecord

GONE = (errno.EPIPE, errno.EIO)
"""Errors of a stream that nobody reads any more: a pipe, or a terminal that was closed."""
_PIPE_WIDTH = 240
"""Columns when no terminal is there to say: wide enough that nothing is cut."""


class Output:
    """Prints for people or, `as_json`, one document for programs."""

    def __init__(
        self, *, as_json: bool = False, quiet: bool = False, is_silent: bool = False
    ) -> None:
        self.as_json = as_json
        self.quiet = quiet or is_silent
        self.is_silent = is_silent

    def result(self, document: Mapping[str, object], *parts: "RenderableType") -> None:
        """Print a command's result: the document as JSON, or the parts for people."""
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

    def lines(self, document: Mapping[str, object], lines: list[str]) -> None:
        """Print plain lines that other programs can read, or the document as JSON."""
        self._write(_json(document) if self.as_json else "\n".join(map(printable, lines)))

    def note(self, text: str, style: str = "") -> None:
        """Print a note for people on stderr."""
        if not self.as_json:
            self._tell(text, style)

    def warn(self, text: str) -> None:
        """Print a warning on stderr, for programs too: not all that was asked for may be done."""
        self._tell(f"warning: {text}", "yellow")

    def _tell(self, text: str, style: str) -> None:
        if not self.quiet:
            with _if_heard():
                _console(sys.stderr).print(
                    printable(text), style=style, highlight=False, markup=False, soft_wrap=True
                )

    def error(self, message: str, hint: str | None) -> None:
        """Print one line: what, why, and what to do next."""
        line = f"error: {message}" + (f" -> {hint}" if hint else "")
        with _if_heard():
            print(printable(line), file=sys.stderr)  # noqa: T201

    @contextmanager
    def progress(self, label: str) -> Iterator[Callable[[int, int], None] | None]:
        """Show a bar with ETA on a terminal; yields what to call with (done, total), or None."""
        with self._bars(40) as bars:
            if bars is None:
                yield None
                return
            task = bars.add_task(_unstyled(label), total=None)
            yield lambda done, total: bars.update(task, completed=done, total=total)

    @contextmanager
    def steps(self) -> "Iterator[StepsShown | None]":
        """As `progress`, for work in stages."""
        with self._bars(24, "[dim]{task.fields[text]}") as bars:
            yield StepsShown(bars) if bars else None

    @contextmanager
    def _bars(self, width: int, *further: str) -> "Iterator[Progress | None]":
        """Bars on a terminal, else None."""
        if self.quiet or self.as_json or not sys.stderr.isatty():
            yield None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        with Progress(
            "[progress.description]{task.description}",
            BarColumn(width),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            *further,
            console=_console(sys.stderr),
            transient=True,
        ) as bars:
            yield bars

    def _write(self, text: str) -> None:
        if self.is_silent:
            return
        deliver(text + "\n" if text else "")


class StepsShown:
    """Bars of stages on a terminal, and pictures above them."""

    def __init__(self, bars: "Progress") -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def step(self, stage: str, done: int, total: int, text: str) -> None:
        """Move a stage's bar; `text` stands beside it."""
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(_unstyled(stage), total=total, text="")
        self._bars.update(self._tasks[stage], completed=done, total=total, text=_unstyled(text))

    def pictures(self, caption: str, images: "list[Image.Image]") -> None:
        """Show a strip of pictures, if the terminal has the colours for it."""
        console = self._bars.console
        if console.color_system == "truecolor":
            console.print(caption, highlight=False, markup=False)
            console.print(_as_text(images, console.width))


def _unstyled(text: str) -> str:
    """A text beside a bar, where Rich would obey what is in brackets."""
    from rich.markup import escape

    return escape(printable(text))


def _as_text(images: "list[Image.Image]", width: int) -> "Text":
    """Pictures side by side as half blocks: two pixels to a character."""
    from PIL import Image
    from rich.text import Text

    side = min(32, width // len(images) - 1)
    strip = Image.new("RGB", (len(images) * (side + 1), side - side % 2))
    for i, image in enumerate(images):
        strip.paste(image.convert("RGB").resize((side, side)), (i * (side + 1), 0))
    pixels, row = strip.tobytes(), 3 * strip.width
    text = Text()
    for y in range(0, strip.height, 2):
        for place in range(y * row, (y + 1) * row, 3):
            above, below = pixels[place : place + 3], pixels[place + row : place + row + 3]
            upper, lower = (f"rgb({','.join(map(str, pixel))})" for pixel in (above, below))
            text.append("▀", f"{upper} on {lower}")
        text.append("\n")
    return text


def _json(document: Mapping[str, object]) -> str:
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    text = json.dumps(document, indent=2, ensure_ascii=encoding != "utf8")
    return "\n".join(line if line.isprintable() else _escaped(line) for line in text.split("\n"))


def _escaped(line: str) -> str:
    """A line of JSON in which a terminal finds nothing to obey; it says the same."""
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: int = 0) -> "Table":
    """A plain table; its last `numbers` columns are set flush right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    made = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for i, heading in enumerate(headings):
        is_number = i >= len(headings) - numbers
        made.add_column(
            heading,
            style="bold" if i == 0 else "",
            justify="right" if is_number else "left",
            overflow="fold",
        )
    for row in rows:
        lines = (map(printable, cell.split("\n")) for cell in row)
        made.add_row(*(Text("\n".join(each)) for each in lines))
    return made


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


def unused_in_training(
    images: "Sequence[ImageRecord]", settings: "TrainingSettings | None" = None
) -> tuple[str, str]:
    """What photos have and a training does not use, by default or with these settings.

    `captions and masks`, and the options that use them; empty texts if it uses all there is.
    """
    captions = any(image.caption for image in images)
    masks = any(image.mask for image in images)
    if settings:
        captions &= not settings.captions.share
        masks &= settings.mask.use == "none"
    unused = {"captions": "--set captions.share=0.5"} if captions else {}
    unused |= {"masks": "--set mask.use=stored"} if masks else {}
    return " and ".join(unused), " ".join(unused.values())


def moment(text: str) -> str:
    """A stored moment for people: to the minute."""
    return text[:16].replace("T", " ")


def _console(stream: TextIO, target: TextIO | None = None) -> "Console":
    """A Rich console fit for `stream`; it writes there or to `target`."""
    from rich.console import Console

    is_terminal = stream.isatty()
    width = shutil.get_terminal_size().columns if is_terminal else _PIPE_WIDTH
    # while bars are shown, Rich has put a proxy in the stream's place
    file = target or _Lasting.of(getattr(stream, "rich_proxied_file", stream))
    return Console(file=file, width=width, force_terminal=is_terminal, markup=False, emoji=False)


def deliver(text: str = "") -> None:
    """Print and send off; `concept list | head` may end without a complaint.

    Raises `OutputLost` if it cannot be written.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        close_quietly(sys.stdout)
        if error.errno not in GONE:
            raise OutputLost(error) from error


@contextmanager
def _if_heard() -> Iterator[None]:
    """Ignore errors of writing to stderr."""
    try:
        yield
        sys.stderr.flush()
    except OSError:
        close_quietly(sys.stderr)


def close_quietly(stream: TextIO) -> None:
    """Let what is left of a stream go nowhere, so that nothing complains in the end."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _Lasting:
    """A stream that outlives who reads it: the `head` of `concept list | head`, or a terminal.

    What is written after that is lost, and the work goes on.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @classmethod
    def of(cls, stream: TextIO) -> TextIO:
        """For who takes streams: all that is not here is the stream's own."""
        return cast("TextIO", cls(stream))

    def write(self, text: str) -> int:
        """Write a text; returns its length."""
        with self._unless_gone():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand on what was written."""
        with self._unless_gone():
            self._stream.flush()

    @contextmanager
    def _unless_gone(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in GONE:
                raise
            close_quietly(self._stream)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

"""The page of a story: its scenes in order, as HTML that needs no network."""

import errno
import itertools
import os
from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

from ..registry.errors import AlreadyExists, StorageError
from ..registry.files import open_file, write_file
from ..registry.hashes import sha256_of
from ..registry.names import printable
from .pictures import file_stem

_MARK = '<meta name="generator" content="conceptry story of {}">'
"""Of the script: its file's name, and a hash of where that is."""
_ANY_MARK = _MARK.partition("{")[0]
_DIGITS = 12
_HEAD = 4096
"""Bytes of a page, in the first of which its mark is."""
_STYLE = """
body { margin: 2rem auto; max-width: 72rem; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif;
  color: #282828; background: #fff; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
div { display: flex; flex-wrap: wrap; gap: .75rem; }
figure { margin: 0; width: min(100%, 16rem); }
img { width: 100%; height: auto; display: block; border-radius: 4px; }
figcaption { font-size: .85rem; color: #595959; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) { body { color: #e8e8e8; background: #181818; }
  figcaption { color: #a8a8a8; } }
"""

Panel = tuple[str, str, int, Path]
"""(scene, prompt, seed, picture in the page's folder)."""


def page_path(folder: Path, script: Path) -> Path:
    """Where the page of a script's file is: `day.html`, or `day-2.html`.

    Another script's page is left alone; one that was moved is another. Raises `AlreadyExists` if
    something else is there.
    """
    stem = file_stem(script.stem, 0)[:-2]
    for number in itertools.count(1):
        path = folder / f"{stem}{f'-{number}' if number > 1 else ''}.html"
        head = _head(path)
        if head is None or _mark(script) in head:
            return path
        if _ANY_MARK not in head:
            raise AlreadyExists(
                f"{path} is no page of a script: it is not replaced", hint="--out DIR"
            )
    raise AssertionError("there is no last number")


def _head(path: Path) -> str | None:
    """How a file begins; None if there is none, nothing of a link and of what is no file."""
    folder = Path(os.path.realpath(path.parent))
    try:
        with open_file(folder, folder / path.name) as file:
            return file.read(_HEAD).decode("utf-8", "replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return ""
        raise StorageError(f"cannot read {path}: {error.strerror}") from error


def _mark(script: Path) -> str:
    place = sha256_of(os.fsencode(os.path.realpath(script)))[:_DIGITS]
    return _MARK.format(f"{_text(script.name)} {place}")


def write_page(path: Path, script: Path, title: str, panels: Sequence[Panel]) -> None:
    """Write the page of a script in place of an earlier one. Raises `StorageError`."""
    parts = [
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{_mark(script)}\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{_text(title)}</h1>\n"
    ]
    for scene, group in groupby(panels, key=lambda panel: panel[0]):
        parts.append(f"<section>\n<h2>{_text(scene)}</h2>\n<div>\n")
        parts += [_figure(scene, *panel[1:]) for panel in group]
        parts.append("</div>\n</section>\n")
    parts.append("</body>\n</html>\n")
    try:
        write_file(path, "".join(parts).encode())
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def _figure(scene: str, prompt: str, seed: int, picture: Path) -> str:
    link = quote(picture.name)
    words = "" if prompt == scene else f"{_text(prompt)}, "
    return (
        f'<figure><a href="{link}"><img src="{link}" alt="{_text(prompt)}" loading="lazy"></a>'
        f"<figcaption>{words}seed {seed}</figcaption></figure>\n"
    )


def _text(text: str) -> str:
    return escape(printable(text))

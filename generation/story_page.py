"""The page of a story: its scenes in order, as HTML that needs no network."""

from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

from ..registry.errors import AlreadyExists, StorageError
from ..registry.files import write_file
from ..registry.names import printable
from .pictures import file_stem

_MARK = '<meta name="generator" content="conceptry story">'
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


def page_path(folder: Path, title: str) -> Path:
    """Where the page is. Raises `AlreadyExists` if something else is there."""
    path = folder / f"{file_stem(title, 0)[:-2]}.html"
    try:
        is_ours = _MARK in path.read_text("utf-8", "replace") if path.exists() else True
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    if not is_ours:
        raise AlreadyExists(f"{path} is no page of a script: it is not replaced", hint="--out DIR")
    return path


def write_page(path: Path, title: str, panels: Sequence[Panel]) -> None:
    """Write the page in place of an earlier one. Raises `StorageError`."""
    parts = [
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{_MARK}\n'
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

"""A hook of MkDocs: the site has the repository's layout, so that one link is right in both.

`README.md` is the first page, this folder's pages are `docs/…`, and whatever they link to elsewhere
in the repository (other pages, pictures, code, results) comes along under its own path.
"""

import os
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s#]+)(?:#[^)\s]*)?\)")
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def on_files(files: Any, config: Any) -> Any:
    """Put every file where it is in the repository, and take in what pages link to."""
    files_of_mkdocs: Any = import_module("mkdocs.structure.files")
    root = Path(config.config_file_path).parent
    for file in [each for each in files if each.src_dir == config.docs_dir]:
        files.remove(file)
    for path in site_files(root):
        source = str(root / path)
        files.append(files_of_mkdocs.File.generated(config, path, abs_src_path=source))
    return files


def site_files(root: Path) -> list[str]:
    """All files of the site, as paths in the repository: pages, and all they link to."""
    waiting = ["README.md", "docs/site.css"]
    waiting += [f"docs/{page.name}" for page in sorted((root / "docs").glob("*.md"))]
    found: dict[str, None] = {}
    while waiting:
        path = waiting.pop(0)
        if path in found or not (root / path).is_file():
            continue
        found[path] = None
        if path.endswith(".md"):
            text = (root / path).read_text(encoding="utf-8")
            waiting += [_from(path, link) for link in links(text)]
    return list(found)


def links(text: str) -> Iterator[str]:
    """The relative links of a page, without anchors; code has none."""
    for link in LINK.findall(FENCE.sub("", text)):
        if "://" not in link and not link.startswith("mailto:"):
            yield link


def _from(page: str, link: str) -> str:
    return os.path.normpath(Path(page).parent / link).replace(os.sep, "/")

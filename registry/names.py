"""The words a registry accepts as names, categories, tags and aliases."""

import re
import unicodedata
from pathlib import PurePath

from .errors import InvalidInput

MAX_NAME = 64
MAX_CATEGORY = 64
MAX_TEXT = 10_000

_LAYOUT = {ord("\n"): " ", ord("\t"): " "}
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_CATEGORY = re.compile(r"[^\W_]+(?:[ '-][^\W_]+)*")


def check_name(name: str, what: str = "concept name") -> str:
    """Return `name` if it can stand in a prompt as `<name>`."""
    if _NAME.fullmatch(name) and len(name) <= MAX_NAME:
        return name
    proposal = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_")[:MAX_NAME]
    raise InvalidInput(
        f"{name!r} is not a {what}: use lower-case letters, digits, - and _, at most {MAX_NAME}",
        hint=f'try "{proposal}"' if proposal else None,
    )


def check_category(category: str) -> str:
    """Return the category, a plain word or a few (`dog`, `teddy bear`), single-spaced."""
    category = " ".join(category.split())
    if _CATEGORY.fullmatch(category) and len(category) <= MAX_CATEGORY:
        return category
    raise InvalidInput(
        f"{category!r} is not a category: give the plain word for what it is",
        hint="for example --category dog",
    )


def check_text(text: str, what: str) -> str:
    """Return a caption or a note, stripped; control characters and broken UTF-8 are refused."""
    text = text.strip().replace("\r\n", "\n")
    if any(
        unicodedata.category(character) in ("Cc", "Cs") for character in text.translate(_LAYOUT)
    ):
        raise InvalidInput(f"the {what} is not plain text: control characters or broken UTF-8")
    if len(text) > MAX_TEXT:
        raise InvalidInput(f"the {what} has {len(text):,} characters; {MAX_TEXT:,} is the limit")
    return text


def printable_name(path: PurePath) -> str:
    """The name of a file, with a replacement character for what cannot be stored or shown."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in path.name)

"""The words a registry accepts as names, categories, tags and aliases."""

import re

from .errors import InvalidInput

MAX_NAME = 64
MAX_CATEGORY = 64
MAX_TEXT = 10_000

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_CATEGORY = re.compile(r"[^\W_]+(?:[ '-][^\W_]+)*")


def check_name(name: str, what: str = "concept name") -> str:
    """Return `name` if it can stand in a prompt as `<name>`: lower-case letters, digits, - and _."""
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
    """Return a caption or a note, stripped; NUL and lone surrogates cannot be stored."""
    text = text.strip()
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidInput(f"the {what} is not valid text (a NUL or broken UTF-8 in it)")
    if len(text) > MAX_TEXT:
        raise InvalidInput(f"the {what} has {len(text):,} characters; {MAX_TEXT:,} is the limit")
    return text

"""The words a registry accepts as names, categories, tags and aliases."""

import re
import unicodedata

from .errors import InvalidInput, RegistryCorrupt

MAX_NAME = 64
MAX_CATEGORY = 64
MAX_TEXT = 10_000
MAX_FILE_NAME = 255
"""Bytes."""

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_JOINER = "\N{ZERO WIDTH JOINER}"  # holds emoji together
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
RUN_ID_LENGTHS = (4, 64)
RUN_ID = "[0-9a-f]{{{},{}}}".format(*RUN_ID_LENGTHS)


def check_name(name: str, what: str = "concept name") -> str:
    """Return `name` if it can stand in a prompt as `<name>`."""
    if _NAME.fullmatch(name) and len(name) <= MAX_NAME:
        return name
    proposal = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_")[:MAX_NAME]
    raise InvalidInput(
        f"{name!r} is not a {what}: use lower-case letters, digits, - and _, at most {MAX_NAME}",
        hint=f'try "{proposal}"' if proposal else None,
    )


def is_run_id(text: str) -> bool:
    """Whether `text` is the id of a run: 4 to 64 lower-case hex digits."""
    return re.fullmatch(RUN_ID, text) is not None


def check_run_id(run: str) -> str:
    """Return the id of a run if it can name a folder; a row with another one is damaged."""
    if is_run_id(run):
        return run
    raise RegistryCorrupt(f"{printable(run)[:40]!r} is not the id of a run", hint="concept check")


def check_category(category: str) -> str:
    """Return the category, a plain word or a few (`dog`, `teddy bear`), single-spaced."""
    category = " ".join(category.split())
    words = re.split("[ '-]", category)
    if all(map(_is_word, words)) and len(category) <= MAX_CATEGORY:
        return category
    raise InvalidInput(
        f"{category!r} is not a category: give the plain word for what it is",
        hint="for example --category dog",
    )


def _is_word(text: str) -> bool:
    """Whether it consists of letters, marks and digits of any script, a letter or digit first."""
    kinds = [unicodedata.category(character)[0] for character in text]
    return bool(kinds) and kinds[0] in "LN" and set(kinds) <= set("LMN")


def check_text(text: str, what: str) -> str:
    """Return a caption or a note, stripped; control characters and broken UTF-8 are refused."""
    text = text.replace("\r\n", "\n").strip()
    if any(_is_control(character) for character in text if character not in "\n\t"):
        raise InvalidInput(f"the {what} is not plain text: control characters or broken UTF-8")
    if len(text) > MAX_TEXT:
        raise InvalidInput(f"the {what} has {len(text):,} characters; {MAX_TEXT:,} is the limit")
    return text


def check_line(text: str, what: str) -> str:
    """Return a line of plain text as it is; an empty one is refused, as are control characters."""
    if text and text == plain_text(text) and "\n" not in text:
        return text
    raise InvalidInput(f"the {what} {text[:40]!r} is not a line of plain text")


def check_file_name(name: str) -> str:
    """Return a file's name if it is one and can be shown; a path is refused."""
    is_name = name not in ("", ".", "..") and "/" not in name and name == printable(name)
    if is_name and len(name.encode()) <= MAX_FILE_NAME:
        return name
    too_long = f": it has more than {MAX_FILE_NAME} bytes" if is_name else ""
    raise InvalidInput(f"{name[:MAX_FILE_NAME]!r} is not a file name{too_long}")


def plain_file_name(name: str) -> str:
    """A file's name, as a disk has it, made storable: unshowable characters replaced, cut."""
    return printable(name).encode()[:MAX_FILE_NAME].decode(errors="ignore")


def plain_text(text: str) -> str:
    """Any text made storable and showable: stripped, cut, control characters replaced."""
    text = text.replace("\r\n", "\n").strip()[:MAX_TEXT].rstrip()
    return "".join(c if c in "\n\t" or not _is_control(c) else _REPLACEMENT for c in text)


def plain_line(text: str, what: str) -> str:
    """Any text made a storable line; raises `InvalidInput` if nothing is left of it."""
    return check_line(plain_text(printable(text)), what)


def findable(text: str) -> str:
    """`text` as a query can take it; broken text is never stored, so it will not be found."""
    return text.encode(errors="backslashreplace").decode()


def printable(text: str) -> str:
    """`text` on one line, with a replacement character for what a terminal would obey.

    Spaces of all widths stay; Python calls only the plain one printable.
    """
    if text.isprintable():
        return text
    return "".join(c if _is_printable(c) else _REPLACEMENT for c in text)


def _is_printable(character: str) -> bool:
    is_space = unicodedata.category(character) == "Zs"
    return character.isprintable() or is_space or character == _JOINER


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs")


def check_alias(alias: str) -> str:
    """Return an alias of versions, or raise `InvalidInput`."""
    check_name(alias, "alias")
    if alias.isdigit():
        raise InvalidInput(f'"{alias}" would be taken for a version number', hint=f"v{alias}")
    return alias

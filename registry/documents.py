"""Documents that people bring, YAML, JSON and plain text: read within bounds.

What comes out is as JSON has it: texts, numbers, true, false, null, lists, and mappings whose keys
are texts. Whatever else a file may hold is refused as `InvalidInput`, before anything is made of
it that is larger than the file.
"""

import json
import re
from collections.abc import Hashable, Iterator
from pathlib import Path

import yaml

from .errors import InvalidInput, NotFound
from .files import open_given

MAX_BYTES = 4 << 20
MAX_DEPTH = 64
MAX_VALUES = 100_000
MAX_EXPANDED = 8 << 20
"""Of characters, and 16 for each value, after every alias was replaced by what it stands for."""
MAX_NUMBER = 40
"""Characters of a number."""
_VALUE = 16
_MAX_COMPLAINT = 200
_DECIMAL = re.compile(r"[-+]?[0-9][0-9_]*(?<!_)")
_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


def read_text(path: Path) -> str:
    """The text of a file: UTF-8, or UTF-16 with its mark, as spreadsheets save it.

    Raises `NotFound` if there is no such file, `InvalidInput` if it is too large or no text.
    """
    try:
        with open_given(path) as file:
            data = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise NotFound(f"{path} is no file") from None
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path} cannot be read: {_described(error)}") from None
    if len(data) > MAX_BYTES:
        raise InvalidInput(f"{path} has more than {MAX_BYTES:,} bytes, the limit of a text")
    try:
        return data.decode(_MARKS.get(data[:2], "utf-8-sig"))
    except UnicodeDecodeError:
        raise InvalidInput(f"{path} cannot be read: it is not UTF-8 text") from None


def parse_json(text: str, *, has_unique_keys: bool = False) -> object:
    """The value of a JSON document. Raises `InvalidInput`, if asked to for a key that is twice."""
    mapping = _unique if has_unique_keys else dict[str, object]
    try:
        value = json.loads(
            text, parse_int=_whole, parse_constant=_no_constant, object_pairs_hook=mapping
        )
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"not JSON that can be read: {_described(error)}") from None
    if _is_too_deep(value):
        raise InvalidInput(f"not JSON that can be read: nested deeper than {MAX_DEPTH}")
    return value


def parse_yaml(text: str) -> object:
    """The value of a YAML document. Raises `InvalidInput`."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader, and less)
    except (yaml.YAMLError, ValueError, LookupError, RecursionError) as error:
        raise InvalidInput(f"not YAML that can be read: {_described(error)}") from None


def shown(value: object) -> str:
    """A value in a message; what is large is cut, or only called by its kind."""
    if isinstance(value, (list, tuple, dict)):
        return "a mapping" if isinstance(value, dict) else "a list" if value else "an empty list"
    text = repr(value[:MAX_NUMBER] if isinstance(value, str) else value)
    return text if len(text) <= 2 * MAX_NUMBER else text[: 2 * MAX_NUMBER] + "…"


def _described(error: Exception) -> str:
    """What went wrong, in a line that is not too long; a value in it may be as long as the file."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(text[: 4 * _MAX_COMPLAINT].split())
    return text if len(text) <= _MAX_COMPLAINT else text[:_MAX_COMPLAINT] + "…"


def _whole(digits: str) -> int:
    if len(digits) > MAX_NUMBER:
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f'the key "{key[:MAX_NUMBER]}" twice')
        found[key] = value
    return found


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no number")


def _is_too_deep(value: object) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for each in level for inner in _inside(each)]
        if not level:
            return False
    return True


def _inside(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


class _Loader(yaml.SafeLoader):
    """Reads what JSON has too; counts while it reads, so that it stops early."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._composed = 0
        self._sizes: dict[int, tuple[int, int]] = {}
        """Of each node: how much it is, and how deep, with its aliases replaced."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """A node within the bounds."""
        is_alias = self.check_event(yaml.AliasEvent)
        self._depth += 1
        self._composed += 1
        self._check(self._depth, self._composed > MAX_VALUES)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is not None and not is_alias:
            self._measure(node)
        return node

    def _measure(self, node: yaml.Node) -> None:
        if isinstance(node, yaml.ScalarNode):
            self._sizes[id(node)] = (_VALUE + len(node.value), 1)
            return
        pairs = node.value if isinstance(node, yaml.MappingNode) else [(x,) for x in node.value]
        inner = [self._sizes.get(id(each)) for pair in pairs for each in pair]
        if None in inner:
            self._refuse(node, "something that holds itself")
        known = [each for each in inner if each is not None]
        size = _VALUE + sum(each for each, _ in known)
        depth = 1 + max((each for _, each in known), default=0)
        self._check(depth, size > MAX_EXPANDED)
        self._sizes[id(node)] = (size, depth)

    def _check(self, depth: int, is_too_large: bool) -> None:
        if depth > MAX_DEPTH:
            raise yaml.YAMLError(f"nested deeper than {MAX_DEPTH}")
        if is_too_large:
            raise yaml.YAMLError("too many values")

    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Hashable, object]:
        """A mapping whose keys are the words that were written, each once."""
        written = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(written) != len(node.value):
            self._refuse(node, "a key that is not a word")
        if len(set(written)) != len(written):
            twice = next(key for key in written if written.count(key) > 1)
            self._refuse(node, f'the key "{twice[:40]}" twice')
        self.flatten_mapping(node)
        return {key.value: self.construct_object(value, deep=deep) for key, value in node.value}

    def construct_number(self, node: yaml.ScalarNode) -> int | float | str:
        """A number of no more characters than any that is used here, as YAML 1.2 reads it.

        010 is ten, and 1:30 a text; in YAML 1.1 they are eight and ninety.
        """
        if len(node.value) > MAX_NUMBER:
            self._refuse(node, f"a number of {len(node.value):,} digits")
        if ":" in node.value:
            return node.value
        if _DECIMAL.fullmatch(node.value):
            return int(node.value)
        kind = node.tag.rpartition(":")[2]
        return self.construct_yaml_int(node) if kind == "int" else self.construct_yaml_float(node)

    def _refuse(self, node: yaml.Node, what: str) -> None:
        raise yaml.constructor.ConstructorError(None, None, f"found {what}", node.start_mark)


_TAG = "tag:yaml.org,2002:"
_KINDS = ("null", "bool", "str", "seq", "map")
_Loader.yaml_constructors = {
    None: yaml.SafeLoader.construct_undefined,
    **{_TAG + kind: yaml.SafeLoader.yaml_constructors[_TAG + kind] for kind in _KINDS},
    **{_TAG + kind: _Loader.construct_number for kind in ("int", "float")},
}
_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if not pair[0].endswith(":timestamp")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}

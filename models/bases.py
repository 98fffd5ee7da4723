"""Finding a base model by alias, path or hub id, and whether it is local. Loads no weights."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ..registry.documents import parse_yaml, read_text
from ..registry.errors import InvalidInput, NotFound, suggest
from ..registry.names import check_line
from ..registry.validation import Form, Line, Text, validated
from .folder import PICKLES, PIPELINE_FILE, how_to_convert, kind_of_folder

DEFAULT_BASE = "miniature"
SHIPPED = Path(__file__).parent / "miniature" / "weights"
ENVIRONMENT_VARIABLE = "CONCEPT_BASES"

Kind = Literal["folder", "file", "hub"]
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Base:
    """A base model by name, not loaded: where its weights are.

    `source` is the path of a diffusers folder or a single file, or a hub repository; `config` is
    the diffusers folder with a single file's configuration, if there is one.
    """

    name: str
    kind: Kind
    source: str
    about: str = ""
    config: str | None = None

    def is_at_hand(self) -> bool:
        """Whether it can be loaded without a network."""
        if self.kind == "hub":
            return _is_cached(self.source)
        if self.kind == "folder":
            return os.path.isfile(Path(self.source) / PIPELINE_FILE)
        return os.path.isfile(self.source)


def find_base(name: str) -> Base:
    """Find a base model: an alias, a diffusers folder, a .safetensors file or a hub repository.

    An alias comes first; `./name` is always a path. Raises `NotFound` or `InvalidInput`.
    """
    aliases = read_aliases()
    if name in aliases:
        return aliases[name]
    path = _at_home(name)
    if os.path.exists(path) or _looks_like_a_file(name):
        return _from_path(name, path)
    if HUB_ID.fullmatch(name) and not name.startswith("."):
        return Base(name, "hub", name)
    near = suggest(name, aliases).replace("concept list", "concept bases")
    raise NotFound(f'there is no base model "{name}"', hint=near)


def read_aliases() -> dict[str, Base]:
    """The aliases by name: those shipped, then the user's, which may replace them."""
    found = dict(_read(Path(__file__).with_name("bases.yaml")))
    own = _own_file()
    if own is not None:
        found |= dict(_read(own))
    return found


def cached_bases() -> list[Base]:
    """The pipelines in the hub's cache on this machine that no alias names."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return []
    named = {base.source for base in read_aliases().values()}
    names = sorted(repo.repo_id for repo in repositories if repo.repo_type == "model")
    return [Base(name, "hub", name) for name in names if name not in named and _is_cached(name)]


def _own_file() -> Path | None:
    if named := os.environ.get(ENVIRONMENT_VARIABLE):
        if not os.path.isfile(named):
            raise NotFound(f"${ENVIRONMENT_VARIABLE} names {named}, which is no file")
        return Path(named)
    import platformdirs

    path = platformdirs.user_config_path("conceptry", appauthor=False) / "bases.yaml"
    return path if path.is_file() else None


def _read(path: Path) -> Iterator[tuple[str, Base]]:
    text = read_text(path)
    try:
        entries = parse_yaml(text) or {}
    except InvalidInput as error:
        raise InvalidInput(f"{path} is {error.message}") from None
    if not isinstance(entries, dict):
        raise InvalidInput(f"{path} does not map names to base models")
    for name, entry in entries.items():
        yield check_line(name, f"name in {path}"), _from_entry(path, name, entry)


class _Entry(Form):
    source: Annotated[Line, Field(examples=["source: owner/name or a path"])]
    config: Line | None = None
    about: Text = ""


def _from_entry(path: Path, name: str, entry: object) -> Base:
    if isinstance(entry, Mapping):
        entry = {key: value for key, value in entry.items() if value is not None}
    checked = validated(_Entry, entry, at=f'{path}: "{name}"')
    source, about, config = checked.source, checked.about, checked.config
    if source == "shipped":
        return Base(name, "folder", str(SHIPPED), about)
    if HUB_ID.fullmatch(source) and not source.startswith(".") and not _looks_like_a_file(source):
        return Base(name, "hub", source, about)
    beside = path.parent
    kind: Kind = "file" if _looks_like_a_file(source) else "folder"
    where = beside / _at_home(source)
    return Base(name, kind, str(where), about, config and str(beside / _at_home(config)))


def _at_home(path: str) -> Path:
    return Path(os.path.expanduser(path))


def _looks_like_a_file(source: str) -> bool:
    return Path(source).suffix in (".safetensors", *PICKLES)


def _from_path(name: str, path: Path) -> Base:
    if path.suffix in PICKLES:
        raise InvalidInput(
            f"{name} may run code when it is loaded; only safetensors is read",
            hint=how_to_convert(path),
        )
    if path.suffix == ".safetensors":
        if not os.path.isfile(path):
            raise NotFound(f"{name} does not exist")
        return Base(name, "file", str(path), config=_config_beside(path))
    if not os.path.isfile(path / PIPELINE_FILE):
        is_what = kind_of_folder(path)
        raise InvalidInput(
            f"{name} is {is_what or 'not a base model'}: it has no {PIPELINE_FILE}",
            hint="name a diffusers folder, a .safetensors file, or one of: concept bases",
        )
    return Base(name, "folder", str(path))


def _config_beside(path: Path) -> str | None:
    """`model/` beside `model.safetensors`, if it is a diffusers folder."""
    folder = path.with_suffix("")
    return str(folder) if os.path.isfile(folder / PIPELINE_FILE) else None


def _is_cached(repository: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repository, PIPELINE_FILE), str)

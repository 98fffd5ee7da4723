"""Finding a base model or a ControlNet by alias, path or hub id, and whether it is local.

Loads no weights.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ..registry.documents import parse_yaml, read_text
from ..registry.errors import InvalidInput, NotFound, suggest
from ..registry.names import check_line
from ..registry.validation import Form, Line, Text, validated
from .folder import CONFIG_FILE, PICKLES, PIPELINE_FILE, how_to_convert, kind_of_folder

if TYPE_CHECKING:
    from ..registry import Registry
    from ..registry.records import RunRecord

DEFAULT_BASE = "miniature"
SHIPPED = Path(__file__).parent / "miniature" / "weights"
ENVIRONMENT_VARIABLE = "CONCEPT_BASES"

Kind = Literal["folder", "file", "hub"]
Scheduler = Literal["ddim", "euler", "dpm++"]
Layers = Literal["mid", "all"]
"""Which self-attention layers of a U-Net: those in its middle, or all."""
Place = tuple[Literal["folder", "hub"], str]
"""A path, or a hub repository."""
_OWN_SCHEDULER = "own"
"""The word for a base model's own scheduler."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class ControlSource:
    """A ControlNet by name, not loaded: the path of a diffusers folder, or a hub repository."""

    name: str
    kind: Literal["folder", "hub"]
    source: str

    @property
    def is_shipped(self) -> bool:
        """Whether it is one of the miniature's own."""
        return Path(self.source).parent == SHIPPED


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """How pictures of a base model are drawn unless asked otherwise; `scheduler` None is its own.

    These are for Stable Diffusion: DPM-Solver++ in 25 steps (Lu et al. 2022). Perturbed-attention
    guidance is off, and where it is asked for in the U-Net's middle (Ahn et al. 2024, section 5.4).
    """

    steps: int = 25
    guidance: float = 7.5
    scheduler: str | None = "dpm++"
    perturbed_attention: float = 0.0
    perturbed_layers: Layers = "mid"


_USUAL = SamplingDefaults()


@dataclass(frozen=True, slots=True)
class Base:
    """A base model by name, not loaded: where its weights are.

    `source` is the path of a diffusers folder or a single file, or a hub repository; `config` is
    the diffusers folder with a single file's configuration, if there is one. `controls` are the
    ControlNets that have a short name. `subject_encoder` is a folder, a file or a hub repository,
    and `vision` the picture encoder that it was trained with, where its file does not say.
    `sampling` is how its pictures are drawn by default.
    """

    name: str
    kind: Kind
    source: str
    about: str = ""
    config: str | None = None
    controls: tuple[ControlSource, ...] = ()
    subject_encoder: Place | None = None
    vision: Place | None = None
    sampling: SamplingDefaults = _USUAL

    @property
    def configuration(self) -> str | None:
        """The folder that configures it; None for a file without one, and for a hub repository."""
        return {"folder": self.source, "file": self.config}.get(self.kind)

    def is_at_hand(self) -> bool:
        """Whether it can be loaded without a network."""
        if self.kind == "hub":
            return _is_cached(self.source)
        if self.kind == "folder":
            return os.path.isfile(Path(self.source) / PIPELINE_FILE)
        return os.path.isfile(self.source)


def scheduler_of(word: str) -> str | None:
    """The scheduler that a word names; None for `own`, the base model's."""
    return None if word == _OWN_SCHEDULER else word


def find_base(name: str) -> Base:
    """Find a base model: an alias, a diffusers folder, a .safetensors file or a hub repository.

    An alias comes first; `./name` is always a path. Raises `NotFound` or `InvalidInput`.
    """
    aliases = read_aliases()
    if name in aliases:
        return aliases[name]
    path = _at_home(name)
    if name and (os.path.exists(path) or _looks_like_a_file(name)):
        return _from_path(name, path)
    if HUB_ID.fullmatch(name) and not name.startswith("."):
        return Base(name, "hub", name)
    near = suggest(name, aliases).replace("concept list", "concept bases")
    raise NotFound(f'there is no base model "{name}"', hint=near)


def is_believed(registry: "Registry", run: "RunRecord") -> bool:
    """Whether a run's base model may be looked for: an alias, or that of a run that began here.

    What a bundle says must not make us read a folder or download a repository.
    """
    return run.base in read_aliases() or registry.began_here(run.run)


def find_control(base: Base, name: str | None = None) -> ControlSource:
    """Find a ControlNet of a base model: by its short name, a diffusers folder or a hub repository.

    None is the base model's only one. Raises `NotFound` or `InvalidInput`.
    """
    own = {each.name: each for each in base.controls}
    if name is None and len(own) == 1:
        return base.controls[0]
    if name is None:
        known = f"several ControlNets: {', '.join(own)}" if own else "no ControlNet of its own"
        raise InvalidInput(
            f"{base.name} has {known}",
            hint="IMAGE:KIND, where KIND is a name of these, a hub repository or a folder",
        )
    if name in own:
        return own[name]
    path = _at_home(name)
    if path.suffix in PICKLES:
        raise _is_pickle(name, "name a diffusers folder with safetensors, or a hub repository")
    if os.path.exists(path):
        if not os.path.isfile(path / CONFIG_FILE):
            raise InvalidInput(
                f"{name} is no ControlNet: it has no {CONFIG_FILE}",
                hint="name a diffusers folder of a ControlNet, or a hub repository",
            )
        return ControlSource(name, "folder", str(path))
    if HUB_ID.fullmatch(name) and not name.startswith("."):
        return ControlSource(name, "hub", name)
    near = suggest(name, own).replace("concept list", "concept bases --json lists them")
    raise NotFound(f'{base.name} has no ControlNet "{name}"', hint=near)


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
    controls: dict[Line, Line] = Field(
        default_factory=dict, description="names with a source each", examples=["{canny: me/canny}"]
    )
    subject_encoder: Line | None = None
    vision: Line | None = None
    steps: Annotated[int, Field(ge=1, le=1000)] = _USUAL.steps
    guidance: Annotated[float, Field(ge=0, le=100)] = _USUAL.guidance
    scheduler: Scheduler | Literal["own"] = "dpm++"
    perturbed_attention: Annotated[float, Field(ge=0, le=100)] = _USUAL.perturbed_attention
    perturbed_layers: Layers = _USUAL.perturbed_layers


def _from_entry(path: Path, name: str, entry: object) -> Base:
    if isinstance(entry, Mapping):
        named = {"scheduler": _OWN_SCHEDULER} if entry.get("scheduler", "") is None else {}
        entry = {key: value for key, value in entry.items() if value is not None} | named
    checked = validated(_Entry, entry, at=f'{path}: "{name}"')
    source, beside = checked.source, path.parent
    kind, where = _place(beside, source)
    return Base(
        name,
        "file" if kind == "folder" and _looks_like_a_file(source) else kind,
        where,
        checked.about,
        checked.config and str(beside / _at_home(checked.config)),
        tuple(_control(beside, *each) for each in checked.controls.items()),
        _place(beside.absolute(), checked.subject_encoder) if checked.subject_encoder else None,
        _place(beside.absolute(), checked.vision) if checked.vision else None,
        SamplingDefaults(
            checked.steps,
            checked.guidance,
            scheduler_of(checked.scheduler),
            checked.perturbed_attention,
            checked.perturbed_layers,
        ),
    )


def _place(beside: Path, source: str) -> Place:
    """A source in a file of aliases: the hub repository, or the path from that file's folder."""
    if source == "shipped":
        return "folder", str(SHIPPED)
    return ("hub", source) if _is_hub_id(source) else ("folder", str(beside / _at_home(source)))


def _control(beside: Path, name: str, source: str) -> ControlSource:
    if source == "shipped":
        return ControlSource(name, "folder", str(SHIPPED / name))
    return ControlSource(name, *_place(beside, source))


def _is_hub_id(source: str) -> bool:
    is_id = bool(HUB_ID.fullmatch(source)) and not source.startswith(".")
    return is_id and not _looks_like_a_file(source)


def _at_home(path: str) -> Path:
    return Path(os.path.expanduser(path))


def _looks_like_a_file(source: str) -> bool:
    return Path(source).suffix in (".safetensors", *PICKLES)


def _from_path(name: str, path: Path) -> Base:
    if path.suffix in PICKLES:
        raise _is_pickle(name, how_to_convert(path))
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


def _is_pickle(name: str, hint: str) -> InvalidInput:
    return InvalidInput(
        f"{name} may run code when it is loaded; only safetensors is read", hint=hint
    )


def _config_beside(path: Path) -> str | None:
    """`model/` beside `model.safetensors`, if it is a diffusers folder."""
    folder = path.with_suffix("")
    return str(folder) if os.path.isfile(folder / PIPELINE_FILE) else None


def _is_cached(repository: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repository, PIPELINE_FILE), str)

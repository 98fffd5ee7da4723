"""Which pictures of scenes are there already: drawn by the same words, settings and weights."""

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..models.bases import Base, find_control
from ..models.native import native_of
from ..registry import Registry
from ..registry.errors import ConceptryError, NotFound
from ..registry.files import entries, open_file
from ..registry.hashes import sha256_of, sha256_of_json
from .control_request import LAYOUT, read_control
from .frames import ChosenFrame, EarlierFrame, FrameWeights, frames_before
from .init_request import read_init
from .picture_texts import FileFormat
from .pictures import file_stem
from .prompt_syntax import resolve_prompt
from .provenance import read_metadata
from .reference_syntax import described, resolve_references
from .request import Request, naming_place, with_layout, with_size

if TYPE_CHECKING:
    from ..models.loading import LoadedBase

_BY_CHANCE = ("batch_seeds", "leaks", "regions")
"""What metadata say of how pictures came to be drawn, not of what was asked for."""
_USUAL_SIDE = 512
"""Of a base model that says nothing of its pictures' size before it is loaded."""


@dataclass(frozen=True, slots=True)
class KeptPicture:
    """A picture that is there: its file, that one's hash, and the file of its heat-maps."""

    path: Path
    sha256: str
    maps: Path | None = None

    def image(self) -> Image.Image:
        """Its pixels. Raises `NotFound` if it is gone or another by now."""
        folder = Path(os.path.realpath(self.path.parent))
        try:
            with open_file(folder, folder / self.path.name) as file:
                data = file.read()
        except (OSError, ConceptryError):
            data = b""
        if sha256_of(data) != self.sha256:
            raise NotFound(
                f"{self.path} has changed while it was looked at", hint="the same command again"
            )
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")


@dataclass(frozen=True, slots=True)
class Shot:
    """One picture of a scene; `kept` is that which is there, if it is."""

    request: Request
    seed: int
    key: str
    kept: KeptPicture | None


class KeptPictures:
    """The pictures in a folder that the registry knows by their hash, found by what they show.

    One is there if its metadata say the same: prompt, seed, settings, base model, weights of
    concepts and their categories, photos, control picture and what it begins with. With heat-maps,
    the sheet of these has to be there too. With the `loaded` base model its weights have to be the
    same, and those of the ControlNet and the subject encoder; else its name. Of files whose names
    begin with none of the `stems`, if there are some, none is read. Without a registry nothing is
    there, nor with leaks, which files do not tell.
    """

    def __init__(
        self,
        registry: Registry | None,
        base: Base,
        folder: Path,
        *,
        loaded: "LoadedBase | None" = None,
        file_format: FileFormat = "png",
        with_maps: bool = False,
        with_leaks: bool = False,
        points: Sequence[tuple[float, float]] = (),
        stems: Sequence[str] = ("",),
    ) -> None:
        self._registry, self._base, self._loaded = registry, base, loaded
        self._also = {"maps": with_maps, "points": [list(each) for each in points]}
        native = native_of(base)
        side = native.size if native else _USUAL_SIDE
        self._side = loaded.backbone.size if loaded else side
        self._networks = cache(partial(_networks, loaded)) if loaded else None
        self._there: dict[str, list[KeptPicture]] = {}
        if registry and not with_leaks:
            look = _Look(registry, is_loaded=loaded is not None, with_maps=with_maps)
            for key, kept in look.there(folder, f".{file_format}", tuple(stems)):
                self._there.setdefault(key, []).append(kept)

    def asked(self, request: Request) -> dict[str, object]:
        """What is asked for, in the words of pictures' metadata.

        Raises what `resolve_prompt`, `resolve_references` and `read_init` raise.
        """
        sha256 = self._loaded.sha256 if self._loaded else None
        with naming_place(request):
            sized = with_size(request, self._side)
            asked = _asked(self._registry, self._base, sized, sha256)
            if self._networks:
                sees = bool(request.settings.encoder_strength)
                asked["networks"] = self._networks(_control_of(request), sees)
            return asked | self._also | {"init": _init(request, self._side)}

    def get(self, key: str, stem: str = "") -> KeptPicture | None:
        """The picture of a key, if it is there, and its file's name begins with a stem."""
        found = [each for each in self._there.get(key, []) if each.path.name.startswith(stem)]
        return found[-1] if found else None


class KeptFrames:
    """The frames of an animation that are there, whose files are called as frames.

    `options` are those of `KeptPictures`. Raises what its `asked` raises.
    """

    def __init__(
        self,
        registry: Registry | None,
        base: Base,
        requests: Sequence[Request],
        folder: Path,
        **options: Any,
    ) -> None:
        self._title = requests[0].title
        stems = [file_stem(self._title, seed) for seed in requests[0].seeds]
        self._pictures = KeptPictures(registry, base, folder, stems=stems, **options)
        self._asked = [self._pictures.asked(each) for each in requests]

    def find(self, number: int, seed: int, after: Sequence[ChosenFrame]) -> KeptPicture | None:
        """A frame, from 1 on, that was drawn with a seed after earlier ones, if it is there."""
        key = _key(self._asked[number - 1], seed, [each.drawn.record for each in after])
        return self._pictures.get(key, file_stem(self._title, seed, number))


def _key(
    asked: Mapping[str, object], seed: int, frames: Sequence[Mapping[str, object]] = ()
) -> str:
    """Of a picture that is asked for with a seed, after earlier frames."""
    settings = asked["settings"]
    assert isinstance(settings, dict)
    drawn_after = {"frames": list(frames)} if frames else {}
    return sha256_of_json([{**asked, "settings": settings | drawn_after}, seed])


def find_shots(
    registry: Registry | None, base: Base, requests: Sequence[Request], folder: Path, **options: Any
) -> list[Shot]:
    """The pictures of requests, in order, and which of them are in the folder.

    Those without a scene are drawn each time that they are asked for. `options` are those of
    `KeptPictures`; raises what its `asked` raises.
    """
    kept = KeptPictures(registry, base, folder, **options)
    shots: list[Shot] = []
    for request in requests:
        asked = kept.asked(request)
        for seed in request.seeds:
            key = _key(asked, seed)
            if request.scene:
                shots.append(Shot(request, seed, key, kept.get(key)))
            else:
                shots.append(Shot(request, seed, f"{key} {len(shots)}", None))
    return shots


def find_frames(
    registry: Registry | None,
    base: Base,
    requests: Sequence[Request],
    folder: Path,
    weights: FrameWeights,
    **options: Any,
) -> list[Shot]:
    """All frames of an animation's first seed, then those of the others, and which are there.

    A frame is there if its file is called as one, and the frames are there that it was drawn after.
    As `find_shots` otherwise.
    """
    kept = KeptFrames(registry, base, requests, folder, **options)
    chosen = [resolve_prompt(registry, each.prompt) if registry else [] for each in requests]
    shots: list[Shot] = []
    for seed in requests[0].seeds:
        earlier: list[EarlierFrame] = []
        for number, (request, named) in enumerate(zip(requests, chosen, strict=True), 1):
            there = None
            if len(earlier) == min(number - 1, 2):  # all before it are there
                after = frames_before(base, request, named, earlier, weights)
                there = kept.find(number, seed, after)
            shots.append(Shot(request, seed, f"{seed} {number}", there))
            if there:
                earlier = [*earlier[:1], EarlierFrame(request, named, there.sha256, there.image())]
            else:
                earlier = []
    return shots


def _asked(
    registry: Registry | None, base: Base, request: Request, base_sha256: str | None
) -> dict[str, object]:
    chosen = resolve_prompt(registry, request.prompt) if registry else []
    references = (
        resolve_references(registry, request.references, request.prompt) if registry else []
    )
    found: dict[str, object] = {
        "prompt": request.prompt,
        "base": base_sha256 or base.name,
        "settings": with_layout(request).settings.to_mapping(),
        "versions": [
            [each.mention.name, each.version.number, each.sha256, each.concept.category]
            for each in chosen
        ],
        "references": described(references),
        "control": None,
    }
    if request.control:
        network = find_control(base, request.control.kind).name
        sha256 = read_control(request.control.picture).sha256
        found["control"] = [sha256, network, request.control.scale, request.control.transfers]
    return found


def _control_of(request: Request) -> tuple[str | None] | None:
    """The kind of ControlNet that a request is drawn with, if it is with one."""
    if request.control:
        return (request.control.kind,)
    return (LAYOUT,) if request.settings.layout_control else None


def _networks(
    base: "LoadedBase", control: tuple[str | None] | None, sees: bool
) -> list[str | None]:
    """The hashes of the files of a ControlNet and, if it `sees`, of the subject encoder."""
    from ..models.control import hash_of_control
    from ..models.subject_encoder_file import hash_of_subject_encoder

    return [
        hash_of_control(find_control(base.base, *control), offline=base.offline)
        if control
        else None,
        hash_of_subject_encoder(base) if sees else None,
    ]


def _init(request: Request, side: int) -> dict[str, object] | None:
    """What a picture begins with, as its metadata says it."""
    if request.init is None:
        return None
    return read_init(request.init, request.settings.size, side).used.record


class _Look:
    """Looks at the pictures in a folder that a registry knows, for what was asked for.

    With maps, only at pictures that have these.
    """

    def __init__(self, registry: Registry, *, is_loaded: bool, with_maps: bool) -> None:
        self._registry, self._is_loaded, self._with_maps = registry, is_loaded, with_maps
        self._category = cache(self._category_of)

    def there(
        self, folder: Path, ending: str, stems: tuple[str, ...]
    ) -> Iterator[tuple[str, KeptPicture]]:
        """Pictures, by what was asked for. The user's folder may be a link, nothing in it."""
        if not folder.is_dir():
            return
        real = Path(os.path.realpath(folder))
        files = [each.name for each in entries(real, real) if each.is_file]
        names = [name for name in files if name.startswith(stems)]
        sheets = _sheets(real, names) if self._with_maps else {}
        for name in names:
            if Path(name).suffix != ending:
                continue
            try:
                with open_file(real, real / name) as file:
                    sha256 = sha256_of(file)
                self._registry.trace(sha256)
                metadata = read_metadata(real / name)
            except (OSError, ConceptryError):  # no picture of ours, or gone by now
                continue
            if not metadata or "settings" not in metadata:
                continue
            sheet = sheets.get(sha256_of_json(metadata))
            if self._with_maps and sheet is None:
                continue
            maps = folder / sheet if sheet else None
            key = sha256_of_json([self._said(metadata), metadata["seed"]])
            yield key, KeptPicture(folder / name, sha256, maps)

    def _said(self, metadata: Mapping[str, object]) -> dict[str, object]:
        """What a picture, which the registry knows, says was asked for."""
        recorded = metadata["settings"]
        assert isinstance(recorded, dict)
        settings = {name: value for name, value in recorded.items() if name not in _BY_CHANCE}
        control, versions = settings.pop("control", None), metadata["versions"]
        networks = [control and control["network_sha256"], settings.pop("subject_encoder", None)]
        if settings.get("layout_control"):  # made from what the settings say
            control = None
        assert isinstance(versions, list)
        names = ("image_sha256", "network", "scale")
        versions = [self._with_category(each) for each in versions]
        return {
            "prompt": metadata["prompt"],
            "base": metadata["base_sha256" if self._is_loaded else "base"],
            "maps": settings.pop("maps", False),
            "points": settings.pop("points", []),
            "references": [self._with_category(each) for each in settings.pop("references", [])],
            "init": settings.pop("init", None),
            "control": control
            and [*(control[name] for name in names), control.get("transfers", True)],
            "versions": [
                [each["concept"], each["version"], each["sha256"], each["category"]]
                for each in versions
            ],
            "settings": settings,
            **({"networks": networks} if self._is_loaded else {}),
        }

    def _with_category(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """What metadata tells of a concept; older ones tell no category: it is the one by now."""
        return {"category": self._category(told["concept"]), **told}

    def _category_of(self, name: str) -> str | None:
        try:
            return self._registry.show(name).category
        except NotFound:
            return None


def _sheets(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """The names of sheets of heat-maps, by the metadata of the pictures that they are of."""
    found: dict[str, str] = {}
    for name in names:
        if Path(name).suffix == ".png":
            with suppress(ConceptryError):
                metadata = read_metadata(folder / name)
                if metadata and "maps_of" in metadata:
                    found.setdefault(sha256_of_json(metadata["maps_of"]), name)
    return found

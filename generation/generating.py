"""`generate` and `reproduce`: draw prompts with concepts into files, and draw a file again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, permutations
from pathlib import Path

from PIL import Image
from torch import Tensor

from ..kernels.observation import CROSS_ATTENTION
from ..models.conditioning import Control
from ..models.loading import LoadedBase
from ..registry import Registry
from ..registry.errors import (
    InvalidInput,
    NotFound,
    quoted,
)
from .attention_maps import MapCollector, heat_sheet, words_of
from .control_request import ControlRequest, check_same_control
from .controls import Controls, PreparedControl, check_controls, following
from .injection import InjectedConcept, expand_prompt, inject_concepts
from .pictures import contact_sheet, file_stem
from .prompt_syntax import ChosenVersion, check_negative, resolve_prompt
from .provenance import read_provenance, save_picture
from .regions import (
    SubjectColumns,
    all_columns,
    by_subject,
    leak,
    region,
    subject_columns,
)
from .request import Request
from .sampler import DrawnPicture, draw
from .separation import separating

GRID_COLUMNS = 8


@dataclass(frozen=True, slots=True)
class Leak:
    """The share (0 to 1) of the token map of `of` that falls on the region of `on`."""

    of: str
    on: str
    share: float


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that was written and recorded; `maps` is the file of its heat-maps.

    `leaks` has both directions of each pair of concepts, if requested.
    """

    path: Path
    seed: int
    sha256: str
    prompt: str
    maps: Path | None
    image: Image.Image
    leaks: list[Leak] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Observed:
    """A drawn picture with its heat-maps and leaks, if requested."""

    drawn: DrawnPicture
    heat: Image.Image | None = None
    leaks: list[Leak] = field(default_factory=list)


def generate(
    registry: Registry,
    base: LoadedBase,
    requests: Sequence[Request],
    folder: Path,
    *,
    batch: int = 4,
    with_maps: bool = False,
    with_leaks: bool = False,
    offline: bool = False,
) -> Iterator[Picture]:
    """Draw requests into a folder, `batch` pictures at a time; yields each once it is written.

    Its provenance goes into the file and the registry. All prompts and control pictures are checked
    before the first is drawn. `with_maps` also writes heat-maps of each concept's tokens;
    `with_leaks` measures how much of each concept's attention falls on the others' regions.
    ControlNets are downloaded, unless `offline`. Raises what `resolve_prompt`, `inject_concepts`,
    `check_controls`, `load_control` and `draw` raise.
    """
    registry.check_outside(folder)
    for request in requests:
        check_negative(request.settings.negative)
    resolved = [(request, resolve_prompt(registry, request.prompt)) for request in requests]
    check_controls(base.base, base.backbone.size, requests)
    controls = Controls(base, requests, offline=offline)
    for chosen, group in groupby(resolved, key=lambda each: each[1]):
        with inject_concepts(base, chosen) as concepts:
            for request, _ in group:
                control = controls.of(request)
                record = _Record(registry, base, request, chosen, folder, control)
                with following(control, concepts) as added:
                    for seen in _drawn(
                        base, request, concepts, batch, with_maps, with_leaks, added
                    ):
                        yield record.keep(seen)


def _drawn(
    base: LoadedBase,
    request: Request,
    concepts: Sequence[InjectedConcept],
    batch: int,
    with_maps: bool = False,
    with_leaks: bool = False,
    control: Control | None = None,
) -> Iterator[_Observed]:
    """Pictures of a request, with heat-maps and leaks if requested."""
    backbone, settings = base.backbone, request.settings
    prompt = expand_prompt(request.prompt, concepts)
    subjects = subject_columns(backbone, prompt, concepts)
    words = words_of(backbone, prompt, concepts) if with_maps else []
    compares = with_leaks and len(concepts) > 1
    layers = [CROSS_ATTENTION] if with_maps else []
    layers += [backbone.localising_layers] if compares else []
    columns = sorted({word.column for word in words} | set(all_columns(subjects)))
    collector = MapCollector(columns, layers=layers)
    drawing = draw(
        base,
        prompt,
        request.seeds,
        settings,
        batch=batch,
        observers=[*separating(backbone, subjects, settings), *([collector] if layers else [])],
        names=[each.weight for each in concepts],
        control=control,
    )
    if not layers:
        yield from map(_Observed, drawing)
        return
    maps: list[Iterator[Tensor]] = []
    for i, drawn in enumerate(drawing):
        if i % batch == 0:
            maps = [iter(each) for each in collector.take()]
        of_picture = [next(each) for each in maps]
        rows = [columns.index(word.column) for word in words]
        heat = heat_sheet(drawn.image, of_picture[0][rows], words) if with_maps else None
        leaks = _leaks(of_picture[-1], columns, subjects, concepts) if compares else []
        yield _Observed(drawn, heat, leaks)


def _leaks(
    maps: Tensor,
    columns: Sequence[int],
    subjects: Sequence[SubjectColumns],
    concepts: Sequence[InjectedConcept],
) -> list[Leak]:
    own = by_subject(maps[[columns.index(column) for column in all_columns(subjects)]], subjects)
    regions = region(own[:, 0])
    names = [each.mention.name for each in concepts]
    return [
        Leak(names[i], names[j], round(leak(own, regions, i, [j]), 4))
        for i, j in permutations(range(len(concepts)), 2)
    ]


@dataclass(frozen=True, slots=True)
class _Record:
    """Saves pictures: the registry has a picture's row before its file appears."""

    registry: Registry
    base: LoadedBase
    request: Request
    chosen: Sequence[ChosenVersion]
    folder: Path
    control: PreparedControl | None = None

    def keep(self, seen: _Observed) -> Picture:
        drawn, heat = seen.drawn, seen.heat
        made_by = {
            "prompt": self.request.prompt,
            "seed": drawn.seed,
            "base": self.base.base.name,
            "base_sha256": self.base.sha256,
            "settings": self.request.settings.to_mapping()
            | {"batch_seeds": list(drawn.batch_seeds), "maps": heat is not None}
            | ({"leaks": True} if seen.leaks else {})
            | ({"control": self.control.record} if self.control else {}),
        }
        versions = [
            {"concept": each.mention.name, "version": each.version.number, "sha256": each.sha256}
            for each in self.chosen
        ]
        stem = file_stem(self.request.prompt, drawn.seed)
        metadata = made_by | {"versions": versions}

        def record(sha256: str) -> None:
            self.registry.add_generation(
                sha256,
                **made_by,
                versions=[(each.concept.id, each.version.number) for each in self.chosen],
            )

        path, sha256 = save_picture(drawn.image, self.folder, stem, metadata, record=record)
        maps = (
            save_picture(heat, self.folder, f"{stem}-maps", {"maps_of": metadata})[0]
            if heat
            else None
        )
        prompt = self.request.prompt
        return Picture(path, drawn.seed, sha256, prompt, maps, drawn.image, seen.leaks)


def save_grid(pictures: Sequence[Picture], folder: Path) -> Path:
    """Write a contact sheet with a row or more for each prompt; returns its path."""
    rows: list[tuple[str, list[Image.Image]]] = []
    for prompt, group in groupby(pictures, key=lambda picture: picture.prompt):
        images = [picture.image for picture in group]
        rows += [
            ("" if i else prompt, images[i : i + GRID_COLUMNS])
            for i in range(0, len(images), GRID_COLUMNS)
        ]
    stem = file_stem(pictures[0].prompt, pictures[0].seed)
    metadata = {"grid": [picture.sha256 for picture in pictures]}
    return save_picture(contact_sheet(rows), folder, f"{stem}-grid", metadata)[0]


# --- reproduce ------------------------------------------------------------------------------------


def _name_now(registry: Registry, name: str, number: int, sha256: str) -> str:
    """The present name of a concept that was called `name`, found by its version's hash."""
    names = registry.names()
    for other in sorted(names, key=lambda each: each != name):
        for version in registry.show(other).versions:
            if version.number == number and sha256 in {each.sha256 for each in version.artifacts}:
                return other
    return name


def reproduce(
    registry: Registry,
    base: LoadedBase,
    path: Path,
    folder: Path,
    *,
    control: ControlRequest | None = None,
    offline: bool = False,
) -> tuple[Picture, bool]:
    """Draw a picture again; returns it, and whether all pixels are the same.

    They are the same on the same machine with the same packages. `control` names the control
    picture, if one was used, and its ControlNet; the scale is the picture's. Raises `InvalidInput`
    for another base model, control picture or ControlNet, `NotFound` for versions that are gone or
    have other weights now, and what `read_provenance` raises.
    """
    registry.check_outside(folder)
    made = read_provenance(path)
    check_same_control(path, made.control, control)
    if made.base_sha256 != base.sha256:
        raise InvalidInput(
            f"{path} was drawn by another base model than {base.base.name}",
            hint=f"--base {quoted(made.base)}",
        )
    pinned = {
        name: (_name_now(registry, name, *version), version[0])
        for name, version in made.versions.items()
    }
    chosen = resolve_prompt(registry, made.prompt, pinned=pinned)
    for each in chosen:
        if made.versions.get(each.mention.name, (0, ""))[1] != each.sha256:
            raise NotFound(f"{path} was drawn with other weights than {each.label} has now")
    if made.control and control:
        used = {"scale": made.control.scale, "transfers": made.control.transfers}
        control = replace(control, **used)
    request = Request(
        prompt=made.prompt, seeds=made.batch_seeds, settings=made.settings, control=control
    )
    prepared = Controls(base, [request], offline=offline).of(request)
    if prepared and made.control and prepared.used.network_sha256 != made.control.network_sha256:
        raise InvalidInput(
            f"{path} was drawn with another ControlNet than {prepared.used.network} is now",
            hint="--control IMAGE:KIND",
        )
    record = _Record(registry, base, request, chosen, folder, prepared)
    with inject_concepts(base, chosen) as concepts, following(prepared, concepts) as added:
        drawing = _drawn(
            base, request, concepts, len(made.batch_seeds), made.with_maps, made.with_leaks, added
        )
        picture = record.keep(next(each for each in drawing if each.drawn.seed == made.seed))
    with Image.open(path) as before:
        is_same = before.convert("RGB").tobytes() == picture.image.convert("RGB").tobytes()
    return picture, is_same

"""`generate` and `reproduce`: from prompts that name concepts to picture files, and back again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, permutations
from pathlib import Path

from PIL import Image
from torch import Tensor

from ..kernels.observation import CROSS_ATTENTION
from ..models.loading import LoadedBase
from ..registry import Registry
from ..registry.errors import (
    InvalidInput,
    NotFound,
    quoted,
)
from .attention_maps import MapCollector, heat_sheet, words_of
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
    """How much of one concept's token map falls on the region of another: 0 to 1."""

    of: str
    on: str
    share: float


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that was written and recorded; `maps` is the file with its heat-maps.

    `leaks` has both directions of each pair of concepts, if they were asked for.
    """

    path: Path
    seed: int
    sha256: str
    prompt: str
    maps: Path | None
    image: Image.Image
    leaks: list[Leak] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A picture as it was drawn, with what was seen of attention meanwhile."""

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
) -> Iterator[Picture]:
    """Draw requests into a folder, `batch` pictures at a time; each is there once it is yielded.

    What made a picture is written into it and into the registry. All prompts are checked before
    the first is drawn. `with_maps` also draws where each word of a concept looks; `with_leaks`
    tells how much concepts of one prompt look at each other's places. Raises what `resolve_prompt`,
    `inject_concepts` and `draw` raise.
    """
    registry.check_outside(folder)
    for request in requests:
        check_negative(request.settings.negative)
    wanted = [(request, resolve_prompt(registry, request.prompt)) for request in requests]
    for chosen, group in groupby(wanted, key=lambda each: each[1]):
        with inject_concepts(base, chosen) as concepts:
            for request, _ in group:
                record = _Record(registry, base, request, chosen, folder)
                for seen in _drawn(base, request, concepts, batch, with_maps, with_leaks):
                    yield record.keep(seen)


def _drawn(
    base: LoadedBase,
    request: Request,
    concepts: Sequence[InjectedConcept],
    batch: int,
    with_maps: bool = False,
    with_leaks: bool = False,
) -> Iterator[_Seen]:
    """Pictures of a request, each with what is wished to be seen."""
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
    )
    if not layers:
        yield from map(_Seen, drawing)
        return
    maps: list[Iterator[Tensor]] = []
    for i, drawn in enumerate(drawing):
        if i % batch == 0:
            maps = [iter(each) for each in collector.take()]
        of_picture = [next(each) for each in maps]
        rows = [columns.index(word.column) for word in words]
        heat = heat_sheet(drawn.image, of_picture[0][rows], words) if with_maps else None
        leaks = _leaks(of_picture[-1], columns, subjects, concepts) if compares else []
        yield _Seen(drawn, heat, leaks)


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
    """Keeps pictures: the row that says what made one is there when its file appears."""

    registry: Registry
    base: LoadedBase
    request: Request
    chosen: Sequence[ChosenVersion]
    folder: Path

    def keep(self, seen: _Seen) -> Picture:
        drawn, heat = seen.drawn, seen.heat
        made_by = {
            "prompt": self.request.prompt,
            "seed": drawn.seed,
            "base": self.base.base.name,
            "base_sha256": self.base.sha256,
            "settings": self.request.settings.to_mapping()
            | {"batch_seeds": list(drawn.batch_seeds), "maps": heat is not None}
            | ({"leaks": True} if seen.leaks else {}),
        }
        versions = [
            {"concept": each.mention.name, "version": each.version.number, "sha256": each.sha256}
            for each in self.chosen
        ]
        stem = file_stem(self.request.prompt, drawn.seed)
        told = made_by | {"versions": versions}

        def record(sha256: str) -> None:
            self.registry.add_generation(
                sha256,
                **made_by,
                versions=[(each.concept.id, each.version.number) for each in self.chosen],
            )

        path, sha256 = save_picture(drawn.image, self.folder, stem, told, record=record)
        maps = (
            save_picture(heat, self.folder, f"{stem}-maps", {"maps_of": told})[0] if heat else None
        )
        prompt = self.request.prompt
        return Picture(path, drawn.seed, sha256, prompt, maps, drawn.image, seen.leaks)


def save_grid(pictures: Sequence[Picture], folder: Path) -> Path:
    """Put pictures on a sheet, a row or more for each prompt; returns its path."""
    rows: list[tuple[str, list[Image.Image]]] = []
    for prompt, group in groupby(pictures, key=lambda picture: picture.prompt):
        images = [picture.image for picture in group]
        rows += [
            ("" if i else prompt, images[i : i + GRID_COLUMNS])
            for i in range(0, len(images), GRID_COLUMNS)
        ]
    stem = file_stem(pictures[0].prompt, pictures[0].seed)
    told = {"grid": [picture.sha256 for picture in pictures]}
    return save_picture(contact_sheet(rows), folder, f"{stem}-grid", told)[0]


# --- again ----------------------------------------------------------------------------------------


def _name_now(registry: Registry, name: str, number: int, sha256: str) -> str:
    """What a concept is called that was called `name`, by its version; `name`, if it is gone."""
    names = registry.names()
    for other in sorted(names, key=lambda each: each != name):
        for version in registry.show(other).versions:
            if version.number == number and sha256 in {each.sha256 for each in version.artifacts}:
                return other
    return name


def reproduce(
    registry: Registry, base: LoadedBase, path: Path, folder: Path
) -> tuple[Picture, bool]:
    """Draw a picture again; also returns whether all pixels are the same.

    They are on the machine that drew it and with the same packages; elsewhere sums are taken in
    another order. Raises `InvalidInput` for another base model, `NotFound` for versions that are
    gone or are others by now, and what `read_provenance` raises.
    """
    registry.check_outside(folder)
    made = read_provenance(path)
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
    request = Request(prompt=made.prompt, seeds=made.batch_seeds, settings=made.settings)
    record = _Record(registry, base, request, chosen, folder)
    with inject_concepts(base, chosen) as concepts:
        drawing = _drawn(
            base, request, concepts, len(made.batch_seeds), made.with_maps, made.with_leaks
        )
        picture = record.keep(next(each for each in drawing if each.drawn.seed == made.seed))
    with Image.open(path) as before:
        is_same = before.convert("RGB").tobytes() == picture.image.convert("RGB").tobytes()
    return picture, is_same

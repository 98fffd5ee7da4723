"""A gallery: one HTML page of many concepts, with thumbnails beside it. Loads no weights.

    gallery.html        all of the page: no network, and what it shows without JavaScript too
    thumbnails/         its pictures, and what is known of the files that were looked at

Thumbnails lie beside the page and not in it: those of a thousand concepts take fifty megabytes and
more, which a browser would have to read before it shows anything, and each run would write anew. So
it loads what is on the screen, and a run makes what is new. The page is written when all that it
shows is there, and what no page shows any more is removed after that: whenever a run is killed, the
former page or the new one is whole.
"""

import math
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, TypeGuard, get_args

from PIL import Image
from pydantic import TypeAdapter, ValidationError

from ..generation.pictures import kept_picture
from ..generation.provenance import Regions
from ..registry import Registry
from ..registry.errors import AlreadyExists, InvalidInput, RegistryBusy, StorageError
from ..registry.files import write_file
from ..registry.images import read_file, read_photo
from ..registry.names import printable
from ..registry.records import (
    IMPORT,
    PREVIEW,
    Concept,
    EvaluationRecord,
    ImageRecord,
    PictureRecord,
    RunRecord,
    VersionRecord,
    made_of,
)
from ..registry.running import EVALUATIONS
from .pages import ShownRegion, template
from .picture_files import PictureFile, find_pictures
from .picture_path import picture_path
from .record import HARMONIC
from .thumbnails import SIDE, Thumbnail, Thumbnails

PAGE = "gallery.html"
MOST = 24
Status = Literal["trained", "untrained", "imported", "running", "interrupted", "failed"]
STATUSES = get_args(Status)
_MARK = b'<meta name="generator" content="Conceptry gallery">'
_REGIONS: TypeAdapter[dict[str, list[list[tuple[float, float]]]]] = TypeAdapter(Regions)
_MAX_SEARCH = 2000
"""Characters of a concept that the page's search looks through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GalleryRequest:
    """What a gallery is of: all concepts, or those with these names, all tags, and so on.

    `pictures` are folders with files that were drawn; `most` is how many photos and how many
    pictures of a concept are shown, the newest ones, 0 for all.
    """

    names: Sequence[str] = ()
    tags: Sequence[str] = ()
    category: str | None = None
    status: str | None = None
    pictures: Sequence[Path] = ()
    most: int = MOST


@dataclass(frozen=True, slots=True)
class GalleryReport:
    """What was written. `missing` pictures are on record, and their files were not found.

    `left_out` are concepts that were named and do not fit the rest of what was asked for;
    `unknown` counts pictures of the folders that name no version of these concepts.
    """

    page: str
    concepts: int
    pictures: int
    made: int
    kept: int
    removed: int
    missing: int
    unknown: int
    changed: bool
    left_out: list[str]


def write_gallery(
    registry: Registry,
    request: GalleryRequest,
    folder: Path,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> GalleryReport:
    """Write or renew the gallery in a folder, which is made if need be.

    Raises `ConceptNotFound` for names, `InvalidInput` for a folder of the registry's or a status
    that there is not, `AlreadyExists` for a page of that name that is none of ours, `RegistryBusy`
    if another process writes the same gallery, and `StorageError`.
    """
    registry.check_folder(folder)
    if request.status is not None and request.status not in STATUSES:
        raise InvalidInput(f"{request.status!r} is no status", hint=" or ".join(STATUSES))
    concepts, left_out = _chosen(registry, request)
    page = folder / PAGE
    _check_ours(page)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write into {folder}: {error.strerror}") from error
    with _alone(folder), Thumbnails.of(folder) as thumbnails:
        files = find_pictures(request.pictures, folder, thumbnails.folder)
        writer = _Writer(registry, thumbnails, files, request.most)
        cards: list[_Card] = []
        for number, concept in enumerate(concepts, 1):
            cards.append(writer.card(concept))
            if on_progress:
                on_progress(number, len(concepts))
        thumbnails.finish()
        changed = _replaced(page, _rendered(cards))
        removed = thumbnails.remove_others()
    return GalleryReport(
        page=str(page),
        concepts=len(cards),
        pictures=sum(len(card.pictures) for card in cards),
        made=thumbnails.made,
        kept=thumbnails.kept,
        removed=removed,
        missing=sum(card.missing for card in cards),
        unknown=sum(bool(each.prompt) for each in files.values()) - len(writer.shown_files),
        changed=changed,
        left_out=left_out,
    )


def _chosen(registry: Registry, request: GalleryRequest) -> tuple[list[Concept], list[str]]:
    """The concepts that were asked for, by name, and the names that do not fit."""
    named = [registry.show(name) for name in dict.fromkeys(request.names)]
    fitting = registry.find(tags=request.tags, category=request.category, limit=0).concepts
    names = {each.name for each in fitting}
    found = named or [registry.show(name) for name in sorted(names)]
    chosen = [
        each for each in found if each.name in names and request.status in (None, status_of(each))
    ]
    return chosen, [each.name for each in named if each not in chosen]


def status_of(concept: Concept) -> Status:
    """What became of a concept: how its latest training stands, else whether it has versions."""
    latest = concept.runs[-1].status if concept.runs else "done"
    for unfinished in ("running", "interrupted", "failed"):
        if latest == unfinished:
            return unfinished
    if not concept.versions:
        return "untrained"
    imported = {run.run for run in concept.runs if run.method == IMPORT}
    return "imported" if {each.run for each in concept.versions} <= imported else "trained"


def _check_ours(page: Path) -> None:
    try:
        with page.open("rb") as file:
            is_ours = _MARK in file.read(1000)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"cannot read {page}: {error.strerror}") from error
    if not is_ours:
        raise AlreadyExists(
            f"{page} is not a gallery: it is not replaced", hint="name another folder"
        )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Be the only process that writes a gallery there."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / ".gallery.lock", timeout=1):
            yield
    except Timeout:
        raise RegistryBusy(
            f"another process writes the gallery in {folder}", hint="try again when it is done"
        ) from None


def _replaced(page: Path, text: str) -> bool:
    """Write the page, unless it is there; returns whether it was written."""
    data = text.encode()
    with suppress(OSError):
        if page.read_bytes() == data:
            return False
    try:
        write_file(page, data)
    except OSError as error:
        raise StorageError(f"cannot write {page}: {error.strerror}") from error
    return True


def _rendered(cards: "Sequence[_Card]") -> str:
    tags = sorted({tag for card in cards for tag in card.concept.tags})
    return template("gallery.html.j2").render(
        cards=cards,
        tags=tags,
        categories=sorted({card.concept.category for card in cards}),
        statuses=[each for each in STATUSES if any(card.status == each for card in cards)],
    )


# --- what is on it --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Photo:
    thumbnail: Thumbnail
    text: str


@dataclass(frozen=True, slots=True)
class _Picture:
    """A picture with what it was drawn from; `scores` are those of an evaluation."""

    thumbnail: Thumbnail
    prompt: str
    seed: int
    versions: str
    about: str
    scores: list[tuple[str, str]] = field(default_factory=list)
    regions: list[ShownRegion] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Version:
    label: str
    aliases: str
    origin: str
    base: str
    created: str
    size: int
    scores: list[str]


@dataclass(slots=True)
class _Card:
    """A concept on the page."""

    concept: Concept
    status: str
    photos: list[_Photo]
    pictures: list[_Picture]
    versions: list[_Version]
    score: float
    more_photos: int
    more_pictures: int
    missing: int

    @property
    def covers(self) -> list[_Photo | _Picture]:
        """A photo, and the newest picture beside it, or a second photo."""
        return [*self.photos[:1], *self.pictures[:1], *self.photos[1:]][:2]

    @property
    def search(self) -> str:
        """What the page's search looks through: plain words, each once."""
        own = self.concept
        said = [each.caption or "" for each in own.images]
        said += [each.prompt for each in self.pictures]
        said += [f"{each.origin} {each.base} {each.aliases}" for each in self.versions]
        text = " ".join([own.name, own.category, *own.tags, self.status, own.notes, *said])
        words = unicodedata.normalize("NFKC", text[: 8 * _MAX_SEARCH]).lower().split()
        return " ".join(dict.fromkeys(words))[:_MAX_SEARCH]


@dataclass(slots=True)
class _Writer:
    """Gathers what is shown of concepts, and makes the thumbnails on the way."""

    registry: Registry
    thumbnails: Thumbnails
    files: Mapping[str, PictureFile]
    most: int
    shown_files: set[str] = field(default_factory=set)
    _by_weights: dict[str, list[PictureFile]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for file in self.files.values():
            for weights in set(file.weights):
                self._by_weights.setdefault(weights, []).append(file)

    def card(self, concept: Concept) -> _Card:
        """All that is shown of a concept."""
        records = self.registry.evaluations(concept.id) if concept.versions else []
        photos, more_photos = self._photos(concept)
        pictures, more_pictures, missing = self._pictures(concept, records)
        latest = _latest(records)
        scored = [_mean(each, HARMONIC) for each in latest if not each.is_imported]
        return _Card(
            concept=concept,
            status=status_of(concept),
            photos=photos,
            pictures=pictures,
            versions=[self._version(concept, each, latest) for each in concept.versions],
            score=max((each for each in scored if each is not None), default=-1.0),
            more_photos=more_photos,
            more_pictures=more_pictures,
            missing=missing,
        )

    def _photos(self, concept: Concept) -> tuple[list[_Photo], int]:
        """Photos, and pictures that came with imported files."""
        sources: list[tuple[str, str, Callable[[], Image.Image]]] = [
            (each.sha256, each.caption or each.filename, partial(self._photo, each))
            for each in concept.images
        ]
        sources += [
            (each.sha256, each.name, partial(self._preview, each.sha256))
            for version in concept.versions
            for each in version.artifacts
            if each.kind == PREVIEW
        ]
        shown = sources[: self.most or None]
        found = [
            _Photo(thumbnail, text)
            for sha256, text, read in shown
            if (thumbnail := self.thumbnails.get(sha256, read))
        ]
        return found, len(sources) - len(shown)

    def _photo(self, image: ImageRecord) -> Image.Image:
        return self.registry.read_photo(image, at_least=SIDE)

    def _preview(self, sha256: str) -> Image.Image:
        return read_photo(read_file(self.registry.path_of(sha256)), at_least=SIDE)

    def _pictures(
        self, concept: Concept, records: Sequence[EvaluationRecord]
    ) -> tuple[list[_Picture], int, int]:
        """Pictures that were drawn, the newest first, then those of evaluations."""
        drawn = self.registry.pictures(concept.id)[::-1]
        known = {each.sha256 for each in drawn}
        there = [each for each in drawn if each.sha256 in self.files]
        here = {
            artifact.sha256: version.number
            for version in concept.versions
            for artifact in version.artifacts
        }
        others = {
            file.sha256: (file, number)
            for weights, number in here.items()
            for file in self._by_weights.get(weights, [])
            if file.sha256 not in known
        }
        self.shown_files |= {each.sha256 for each in there if self.files[each.sha256].prompt}
        self.shown_files |= set(others)
        sources: list[Callable[[], _Picture | None]] = [
            partial(self._drawn, each) for each in there
        ]
        sources += [
            partial(self._found, file, f"{concept.name}@{number}")
            for file, number in others.values()
        ]
        sources += [
            partial(self._scored, concept, record, prompt, picture)
            for record in _latest(records)[::-1]
            for prompt, picture in _scored_pictures(record)
        ]
        found: list[_Picture] = []
        rest = iter(sources)
        for source in rest:
            if picture := source():
                found.append(picture)
            if self.most and len(found) == self.most:
                break
        return found, len(list(rest)), len(drawn) - len(there)

    def _drawn(self, record: PictureRecord) -> _Picture | None:
        """A picture on record, whose file was found."""
        thumbnail = self._of_file(self.files[record.sha256])
        if thumbnail is None:
            return None
        regions = _shown_regions(record.settings.get("regions"), thumbnail.size)
        about = f"{record.base}, {record.created[:10]}"
        versions = ", ".join(record.versions)
        return _Picture(thumbnail, record.prompt, record.seed, versions, about, regions=regions)

    def _found(self, file: PictureFile, version: str) -> _Picture | None:
        """A picture that is not on record, and names the weights of a version."""
        thumbnail = self._of_file(file)
        if thumbnail is None:
            return None
        regions = _shown_regions(file.regions, thumbnail.size)
        about = f"{file.base}, not on record: by its own account"
        return _Picture(thumbnail, file.prompt, file.seed, version, about, regions=regions)

    def _of_file(self, file: PictureFile) -> Thumbnail | None:
        def read() -> Image.Image:
            return read_photo(read_file(file.path), file.path.name, at_least=SIDE)

        return self.thumbnails.get(file.sha256, read)

    def _scored(
        self,
        concept: Concept,
        record: EvaluationRecord,
        prompt: str,
        picture: Mapping[str, object],
    ) -> _Picture | None:
        """A picture of an evaluation, if the cache still has it."""
        key, seed, scores = picture.get("picture"), picture.get("seed"), picture.get("scores")
        if not isinstance(key, str) or not isinstance(seed, int) or not isinstance(scores, dict):
            return None

        def read() -> Image.Image | None:
            cache = self.registry.location.cache
            return kept_picture(cache, picture_path(cache / EVALUATIONS, key))

        thumbnail = self.thumbnails.get(key, read)
        if thumbnail is None:
            return None
        rounded = [
            (str(name), f"{value:.2f}") for name, value in scores.items() if _is_number(value)
        ]
        version = f"{concept.name}@{record.version}"
        return _Picture(thumbnail, prompt, seed, version, f"of the suite {record.suite}", rounded)

    def _version(
        self, concept: Concept, version: VersionRecord, records: Sequence[EvaluationRecord]
    ) -> _Version:
        runs = {run.run: run for run in concept.runs}
        run = runs.get(version.run or "")
        same = [each.number for each in concept.versions if each.run and each.run == version.run]
        return _Version(
            label=f"{concept.name}@{version.number}",
            aliases=" ".join(version.aliases),
            origin=_origin(run, version, min(same, default=version.number)),
            base=run.base if run else "",
            created=version.created[:10],
            size=sum({each.sha256: each.bytes for each in version.artifacts}.values()),
            scores=[_told(each) for each in records if each.version == version.number],
        )


def _origin(run: RunRecord | None, version: VersionRecord, first: int) -> str:
    """Where a version came from."""
    parts = [f"made of {made_of(version)}"] if version.origin else []
    if run is None:
        return ", ".join(parts) or "added as it is"
    parts += [f"{_spaced(key)} {_listed(run.config[key])}" for key in run.config if _is_origin(key)]
    if run.method == IMPORT:
        said = run.config.get("holds")
        parts += [f"imported: {said}" if isinstance(said, str) else "imported"]
        return ", ".join(parts)
    photos = run.config.get("photos")
    count = len(photos) if isinstance(photos, list) else 0
    parts += [f"trained by {run.method}", *([f"from {count} photos"] if count else [])]
    is_same = first < version.number and not version.origin
    parts += [f"the same training as version {first}"] if is_same else []
    return ", ".join([*parts, f"seed {run.seed}"])


def _is_origin(key: str) -> bool:
    """Whether a key of a run's configuration names what it came from: merged_from, and the like."""
    return key.endswith("_from")


def _spaced(key: str) -> str:
    return key.replace("_", " ")


def _listed(value: object) -> str:
    found = value if isinstance(value, list) else [value]
    words = [f"version {each}" if isinstance(each, int) else str(each)[:100] for each in found]
    return ", ".join(words[:16])


def _latest(records: Sequence[EvaluationRecord]) -> list[EvaluationRecord]:
    """The last evaluation of each version by each suite and with each other concept."""
    found = {(each.version, each.suite, str(each.scores.get("others"))): each for each in records}
    return sorted(found.values(), key=lambda each: (each.version, each.suite))


def _told(record: EvaluationRecord) -> str:
    """`living: both 0.71, clip t 0.30, dino 0.66`."""
    chosen = record.config.get("chosen_by")
    names = [HARMONIC, *(chosen if isinstance(chosen, list) else [])]
    means = [(name, _mean(record, name)) for name in names if isinstance(name, str)]
    scores = [f"{_spaced(name)} {mean:.2f}" for name, mean in means if mean is not None]
    others = record.scores.get("others")
    company = f" with {_listed(others)}" if isinstance(others, list) and others else ""
    doubt = " (imported)" if record.is_imported else ""
    return f"{record.suite}{company}: {', '.join(scores) or 'no score'}{doubt}"


def _mean(record: EvaluationRecord, name: str) -> float | None:
    scores = record.scores.get("scores")
    interval = scores.get(name) if isinstance(scores, dict) else None
    mean = interval.get("mean") if isinstance(interval, dict) else None
    return float(mean) if _is_number(mean) else None


def _is_number(value: object) -> TypeGuard[float]:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) and abs(value) < 1e6


def _scored_pictures(record: EvaluationRecord) -> Iterator[tuple[str, Mapping[str, object]]]:
    """The prompts and pictures of an evaluation that was made here; the first seeds first."""
    prompts = record.scores.get("prompts")
    rows: list[tuple[int, str, Mapping[str, object]]] = []
    for prompt in prompts if isinstance(prompts, list) and not record.is_imported else []:
        own = prompt if isinstance(prompt, dict) else {}
        text, pictures = own.get("prompt"), own.get("pictures")
        for number, picture in enumerate(pictures if isinstance(pictures, list) else []):
            if isinstance(text, str) and isinstance(picture, dict):
                rows.append((number, text, picture))
    for _, text, picture in sorted(rows, key=lambda row: row[0]):
        yield text, picture


def _shown_regions(regions: object, size: tuple[int, int]) -> list[ShownRegion]:
    """Outlines of a picture's subjects; none if they are not sound."""
    try:
        found = _REGIONS.validate_python(regions or {})
    except ValidationError:
        return []
    return [
        ShownRegion.of(number, printable(name), polygons, size)
        for number, (name, polygons) in enumerate(found.items())
    ]

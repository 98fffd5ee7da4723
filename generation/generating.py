"""`generate`, `animate`, `reproduce`: draw prompts with concepts into files, and a file again."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, permutations
from pathlib import Path
from typing import Literal

from PIL import Image
from torch import Tensor

from ..adapters.adapter import injected
from ..adapters.references import References
from ..adapters.subject_encoding import SubjectEncoding
from ..kernels.observation import CROSS_ATTENTION
from ..models.conditioning import Control
from ..models.loading import LoadedBase
from ..models.subject_encoder_file import (
    LoadedSubjectEncoder,
    check_same_encoder,
    load_subject_encoder,
)
from ..registry import Registry
from ..registry.errors import (
    InvalidInput,
    NotFound,
)
from ..registry.records import Concept, ImageRecord
from .attention_maps import MapCollector, heat_row, region_row, words_of
from .control_request import ControlRequest, ReadControl, check_same_control, read_control
from .controls import Controls, PreparedControl, categories_in, check_controls, following
from .foreign_pictures import ForeignPicture, request_like
from .frames import (
    FRAME_RATE,
    ChosenFrame,
    FrameWeights,
    check_frame_rate,
    check_frames,
    durations,
    find_frames,
    find_layouts,
    read_frame,
)
from .in_regions import draw_in_regions
from .init_request import InitRequest, UsedInit, check_same_init, read_init
from .injection import InjectedConcept, expand_prompt, inject_concepts, stand_ins
from .layout import AUTO
from .outlines import Outlines, outlined
from .parameters import Parameters, parameters_of
from .picture_texts import FileFormat, check_room
from .pictures import contact_sheet, file_stem
from .prompt_syntax import (
    ChosenVersion,
    check_negative,
    imported_sha256,
    replaced,
    resolve_prompt,
)
from .provenance import (
    MAX_POINTS,
    DrawnAfter,
    DrawnFrame,
    read_provenance,
    read_texts,
    save_picture,
    write_picture,
)
from .reference_maps import Point, ReferenceMapCollector
from .reference_syntax import (
    ChosenReference,
    ReferenceRequest,
    described,
    resolve_references,
)
from .references import frame_reference, load_references
from .regional_plan import RegionalPlan, plan_regions
from .regions import (
    SubjectColumns,
    all_columns,
    by_subject,
    check_has_words,
    leak,
    region,
    subject_columns,
)
from .request import Request, check_encoder, with_layout, with_size
from .sampler import DrawnPicture, check_prompts, draw
from .separation import separating
from .starts import Start

GRID_COLUMNS = 8
_UNITS = {"webp": 1, "gif": 10}
"""Of durations, in ms."""


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
class _Wanted:
    """What is wanted beside pictures: heat-maps, those of points in references too, and leaks.

    And the format of the pictures' files.
    """

    maps: bool
    leaks: bool
    points: tuple[Point, ...]
    file_format: FileFormat = "png"


@dataclass(frozen=True, slots=True)
class _Observed:
    """A drawn picture with its heat-maps and leaks, if requested, and its subjects' regions."""

    drawn: DrawnPicture
    heat: Image.Image | None = None
    leaks: list[Leak] = field(default_factory=list)
    regions: Outlines | None = None


def generate(
    registry: Registry,
    base: LoadedBase,
    requests: Sequence[Request],
    folder: Path,
    *,
    batch: int = 4,
    file_format: FileFormat = "png",
    with_maps: bool = False,
    with_leaks: bool = False,
    points: Sequence[Point] = (),
) -> Iterator[Picture]:
    """Draw requests into a folder, `batch` pictures at a time; yields each once it is written.

    Its provenance goes into the file and the registry; `file_format` is the pictures', maps are
    PNG. All prompts and control pictures are checked before the first is drawn. `with_maps` also
    writes heat-maps of each concept's tokens, and of where `points` of the picture, or its centre,
    look in its references; `with_leaks` measures how much of each concept's attention falls on the
    others' regions. ControlNets and subject encoders are downloaded, unless the base model was
    loaded offline. Raises what `resolve_prompt`, `inject_concepts`, `check_controls`,
    `load_control`, `load_subject_encoder`, `read_init` and `draw` raise.
    """
    wanted = _Wanted(with_maps, with_leaks, tuple(points), file_format)
    records = _records(registry, base, requests, folder, wanted)
    for (chosen, apart), group in groupby(records, key=lambda each: (each.chosen, each.apart)):
        together = list(group)
        references = _loaded_references(together)
        with inject_concepts(base, chosen, apart=apart) as concepts:
            for record in together:
                yield from record.draw(concepts, references[record.asked], batch)


def animate(
    registry: Registry,
    base: LoadedBase,
    requests: Sequence[Request],
    folder: Path,
    *,
    weights: FrameWeights | None = None,
    file_format: FileFormat = "png",
    with_maps: bool = False,
    with_leaks: bool = False,
    points: Sequence[Point] = (),
) -> Iterator[Picture]:
    """Draw requests as the frames of an animation, once for each seed; as `generate` otherwise.

    All frames begin with the noise of their seed. From the second on they are drawn after earlier
    ones as well as after photos: a frame's subjects, where the maps of their categories are in it,
    are attended with the `weights` (DreamTuner's project page, and appendix B). Raises
    `InvalidInput` for requests of other seeds or sizes, and for JPEG, which loses what later frames
    are drawn after.
    """
    check_frames(requests)
    if file_format == "jpg":
        raise InvalidInput(
            "frames are drawn after earlier ones, of which a JPEG loses some",
            hint="--format png, or webp",
        )
    wanted = _Wanted(with_maps, with_leaks, tuple(points), file_format)
    records = _records(registry, base, requests, folder, wanted)
    check_frames([each.request for each in records])
    first = records[0].request.title
    frames = [
        replace(record, request=replace(record.request, seeds=[seed]), title=first, number=number)
        for seed in requests[0].seeds
        for number, record in enumerate(records, 1)
    ]
    earlier: list[tuple[_Record, Picture]] = []
    for (chosen, apart), group in groupby(frames, key=lambda each: (each.chosen, each.apart)):
        together = list(group)
        references = _loaded_references(together)
        with inject_concepts(base, chosen, apart=apart) as concepts:
            for frame in together:
                earlier = earlier if frame.number != 1 else []
                after = frame.after(earlier, weights or FrameWeights())
                drawing = replace(frame, frames=after)
                (picture,) = drawing.draw(concepts, references[frame.asked], 1)
                earlier = [*earlier[:1], (frame, picture)]
                yield picture


_Asked = tuple[tuple[ReferenceRequest, ...], float]
"""The references of a request, and β."""


def _loaded_references(together: "Sequence[_Record]") -> dict[_Asked, References]:
    """The references of requests for the same versions; those of many requests are loaded once."""
    different = {record.asked: record for record in together}
    sees = any(strength for _, strength in different)
    encoder = load_subject_encoder(together[0].base) if sees else None
    return {asked: record.load_references(encoder) for asked, record in different.items()}


def _records(
    registry: Registry,
    base: LoadedBase,
    requests: Sequence[Request],
    folder: Path,
    wanted: _Wanted,
) -> "list[_Record]":
    """Requests whose prompts, references and control pictures have been looked up and checked."""
    registry.check_folder(folder)
    if len(wanted.points) > MAX_POINTS:
        raise InvalidInput(
            f"maps show {MAX_POINTS} places at most, not {len(wanted.points):,}",
            hint="fewer of --point",
        )
    for request in requests:
        check_negative(request.settings.negative)
        check_encoder(request)
        check_room(request.prompt, request.settings.negative, wanted.file_format)
    requests = [with_size(request, base.backbone.size) for request in requests]
    resolved = [
        (
            with_layout(request),
            resolve_prompt(registry, request.prompt),
            resolve_references(registry, request.references, request.prompt),
        )
        for request in requests
    ]
    check_controls(base.base, base.backbone.size, requests)
    controls = Controls(base, requests)
    records = [_Record(registry, base, *each, folder, controls, wanted) for each in resolved]
    for each in records:
        each.check()
    return records


def _drawn(
    base: LoadedBase,
    request: Request,
    concepts: Sequence[InjectedConcept],
    batch: int,
    wanted: _Wanted,
    control: Control | None,
    plan: RegionalPlan | None,
    start: Start | None,
) -> Iterator[_Observed]:
    """Pictures of a request, with heat-maps and leaks if requested."""
    if plan is not None:
        yield from _drawn_in_regions(base, request, concepts, batch, wanted, control, plan, start)
        return
    backbone, settings = base.backbone, request.settings
    prompt = expand_prompt(request.prompt, concepts)
    subjects = subject_columns(backbone, prompt, concepts)
    if wanted.maps or wanted.leaks or settings.separate:
        check_has_words(concepts)
    words = words_of(backbone, prompt, concepts) if wanted.maps else []
    compares = wanted.leaks and len(concepts) > 1
    layers = [CROSS_ATTENTION] if wanted.maps else []
    layers += [backbone.localising_layers] if compares else []
    columns = sorted({word.column for word in words} | set(all_columns(subjects)))
    collector = MapCollector(columns, layers=layers)
    looking = ReferenceMapCollector(backbone, wanted.points, settings.size) if wanted.maps else None
    observers = [collector, *([looking] if looking else [])] if layers else []
    drawing = draw(
        base,
        prompt,
        request.seeds,
        settings,
        batch=batch,
        observers=[*separating(backbone, subjects, settings), *observers],
        names=[each.weight for each in concepts],
        control=control,
        start=start,
    )
    if not layers:
        yield from map(_Observed, drawing)
        return
    maps, looks = list[Iterator[Tensor]](), list[Iterator[Tensor]]()
    for i, drawn in enumerate(drawing):
        if i % batch == 0:
            maps = [iter(each) for each in collector.take()]
            looks = [iter(each) for each in looking.take()] if looking else []
        of_picture = [next(each) for each in maps]
        heat = None
        if looking:
            rows = [columns.index(word.column) for word in words]
            after = looking.rows(drawn.image, [next(each) for each in looks])
            heat = contact_sheet([heat_row(drawn.image, of_picture[0][rows], words), *after])
        leaks = _leaks(of_picture[-1], columns, subjects, concepts) if compares else []
        yield _Observed(drawn, heat, leaks)


def _drawn_in_regions(
    base: LoadedBase,
    request: Request,
    concepts: Sequence[InjectedConcept],
    batch: int,
    wanted: _Wanted,
    control: Control | None,
    plan: RegionalPlan,
    start: Start | None,
) -> Iterator[_Observed]:
    """Pictures of a request whose subjects have regions; heat-maps show these, too."""
    settings = request.settings
    looking = (
        ReferenceMapCollector(base.backbone, wanted.points, settings.size) if wanted.maps else None
    )
    drawing = draw_in_regions(
        base,
        plan,
        concepts,
        request.seeds,
        settings,
        batch=batch,
        observers=[looking] if looking else [],
        control=control,
        start=start,
    )
    looks = list[Iterator[Tensor]]()
    for i, seen in enumerate(drawing):
        heat = None
        if looking:
            if i % batch == 0:
                looks = [iter(each) for each in looking.take()]
            image = seen.drawn.image
            after = looking.rows(image, [next(each) for each in looks])
            row = region_row(image, plan.subjects, seen.maps[:, 0], seen.regions)
            heat = contact_sheet([row, *after])
        leaks = _leaks_between(seen.maps, plan.subjects) if wanted.leaks else []
        yield _Observed(seen.drawn, heat, leaks, outlined(plan.subjects, seen.regions))


def _leaks(
    maps: Tensor,
    columns: Sequence[int],
    subjects: Sequence[SubjectColumns],
    concepts: Sequence[InjectedConcept],
) -> list[Leak]:
    own = by_subject(maps[[columns.index(column) for column in all_columns(subjects)]], subjects)
    return _leaks_between(own, [each.mention.name for each in concepts])


def _leaks_between(own: Tensor, names: Sequence[str]) -> list[Leak]:
    """Both directions of each pair of subjects with maps (S, 2, h, w)."""
    regions = region(own[:, 0])
    return [
        Leak(names[i], names[j], round(leak(own, regions, i, [j]), 4))
        for i, j in permutations(range(len(names)), 2)
    ]


@dataclass(frozen=True, slots=True)
class _Record:
    """Draws a request, and saves its pictures: the registry knows one before its file appears.

    Of an animation's frame, `title` is the first one's, by which the files of all are called,
    `number` counts from 1, and `frames` are what it is drawn after.
    """

    registry: Registry
    base: LoadedBase
    request: Request
    chosen: Sequence[ChosenVersion]
    references: Sequence[ChosenReference]
    folder: Path
    controls: Controls
    wanted: _Wanted
    title: str | None = None
    number: int | None = None
    frames: Sequence[ChosenFrame] = ()

    @property
    def apart(self) -> bool:
        """Whether concepts are injected apart, for regions."""
        layout = self.request.settings.layout
        return bool(self.chosen) and (layout not in (None, AUTO) or len(self.subjects) > 1)

    @property
    def subjects(self) -> set[str]:
        """The concepts that the prompt names, and those that it is drawn after."""
        return {each.mention.name for each in self.chosen} | self.referenced.keys()

    @property
    def referenced(self) -> dict[str, str]:
        """The categories of concepts that the request is drawn after, by name."""
        return {each.name: each.concept.category for each in self.references}

    def check(self) -> None:
        """Raise what can be told before weights are loaded: `InvalidInput` and `InvalidWeights`."""
        settings = self.request.settings
        if boxes := settings.shown_boxes:
            categories_in(boxes, self.categories)
        concepts = stand_ins(self.base, self.chosen)
        with self.base.backbone.weighing_words(settings.prompt_weights):
            plan = self.plan(concepts)
            prompt = expand_prompt(self.request.prompt, concepts)
            check_prompts(self.base.backbone, prompt, settings, plan)

    @property
    def control(self) -> PreparedControl | None:
        """The control of its pictures, if any. Raises what `Controls.of` raises."""
        return self.controls.of(self.request, self.categories)

    @property
    def categories(self) -> dict[str, str]:
        """Those of its subjects, by name."""
        own = {each.mention.name: each.concept.category for each in self.chosen}
        return self.referenced | own

    def plan(self, concepts: Sequence[InjectedConcept]) -> RegionalPlan | None:
        """Who is drawn where, if there is a layout, and more than one subject in it."""
        request = self.request
        if request.settings.layout is None:
            return None
        return plan_regions(
            self.base.backbone,
            request.prompt,
            concepts,
            request.settings.layout,
            self.referenced,
        )

    @property
    def asked(self) -> _Asked:
        """What references are asked for."""
        return self.request.references, self.request.settings.encoder_strength

    def load_references(self, encoder: LoadedSubjectEncoder | None) -> References:
        """The references, before concepts are injected."""
        mentions = {each.concept.id: each.mention.text for each in self.chosen}
        return load_references(
            self.registry,
            self.base,
            self.references,
            mentions,
            encoder=encoder,
            encoder_strength=self.request.settings.encoder_strength,
        )

    def after(
        self, earlier: Sequence[tuple["_Record", Picture]], weights: FrameWeights
    ) -> list[ChosenFrame]:
        """The first and the last of some earlier frames, once if they are one, in this one's words.

        A concept that this frame's prompt does not name is its category.
        """
        names = {each.concept.id: each.mention.text for each in self.chosen}
        found: dict[str, ChosenFrame] = {}
        for (frame, picture), weight in zip(
            [*earlier[-1:], *earlier[:1]], (weights.previous, weights.first), strict=False
        ):
            if not weight:
                continue
            words = {
                each.mention.text: names.get(each.concept.id, each.concept.category)
                for each in frame.chosen
            }
            before = found.get(picture.sha256)
            total = weight + (before.drawn.weight if before else 0)
            control = self._layout_of(frame.request)
            drawn = DrawnFrame(
                picture.sha256,
                replaced(picture.prompt, words),
                total,
                control=control and control.sha256,
            )
            found[picture.sha256] = ChosenFrame(drawn, picture.image, control)
        return list(found.values())

    def _layout_of(self, frame: Request) -> ReadControl | None:
        """The control picture of an earlier frame, if it is for the same ControlNet as this one's.

        A reference follows a ControlNet too, by its own layout (DreamTuner, project page).
        """
        own, other = self.request.control, frame.control
        if own is None or other is None or own.kind != other.kind:
            return None
        return read_control(other.picture)

    def draw(
        self,
        concepts: Sequence[InjectedConcept],
        references: References,
        batch: int,
        kept: Sequence[int] | None = None,
    ) -> Iterator[Picture]:
        """Draw the request with injected concepts, after references.

        Pictures are kept, or only those with some seeds.
        """
        references = self._with_frames(concepts, references)
        for each in concepts:
            references = references.in_words(each.phrase, each.mention.text)
        with self.base.backbone.weighing_words(self.request.settings.prompt_weights):
            yield from self._draw(concepts, references, batch, kept)

    def _draw(
        self,
        concepts: Sequence[InjectedConcept],
        references: References,
        batch: int,
        kept: Sequence[int] | None,
    ) -> Iterator[Picture]:
        control, plan = self.control, self.plan(concepts)
        start, used = self._start()
        parameters = self._parameters(concepts, used)
        alone = [each.change for each in concepts if each.change and each.is_apart]
        with (
            injected(self.base.backbone, [references, *(alone if plan is None else [])]),
            following(control, concepts) as added,
        ):
            for seen in _drawn(
                self.base, self.request, concepts, batch, self.wanted, added, plan, start
            ):
                if kept is None or seen.drawn.seed in kept:
                    yield self._keep(seen, control, references.encoding, used, parameters)

    def _start(self) -> tuple[Start | None, UsedInit | None]:
        """What pictures begin with, if the request says so, and what their metadata says of it."""
        if (asked := self.request.init) is None:
            return None, None
        backbone = self.base.backbone
        read = read_init(asked, self.request.settings.size, backbone.size)
        return Start.of(backbone, read), read.used

    def _with_frames(
        self, concepts: Sequence[InjectedConcept], references: References
    ) -> References:
        subjects = [each.category for each in concepts]
        subjects += [each.concept.category for each in self.references]
        categories = list(dict.fromkeys(subjects))
        size = self.request.settings.size
        frames = [frame_reference(self.base, each, categories, size) for each in self.frames]
        return References([*references.references, *frames], references.encoding)

    def _keep(
        self,
        seen: _Observed,
        control: PreparedControl | None,
        encoding: SubjectEncoding | None,
        init: UsedInit | None,
        parameters: Parameters,
    ) -> Picture:
        drawn, heat = seen.drawn, seen.heat
        made_by = {
            "prompt": self.request.prompt,
            "seed": drawn.seed,
            "base": self.base.base.name,
            "base_sha256": self.base.sha256,
            "settings": self.request.settings.to_mapping()
            | {"batch_seeds": list(drawn.batch_seeds), "maps": heat is not None}
            | ({"leaks": True} if seen.leaks else {})
            | ({"references": described(self.references)} if self.references else {})
            | ({"subject_encoder": encoding.encoder_sha256} if encoding else {})
            | ({"points": self.wanted.points} if self.wanted.points else {})
            | ({"control": control.record} if control else {})
            | ({"init": init.record} if init else {})
            | ({"regions": seen.regions} if seen.regions else {})
            | ({"frames": [each.drawn.record for each in self.frames]} if self.frames else {}),
        }
        versions = [
            {
                "concept": each.mention.name,
                "category": each.concept.category,
                "version": each.version.number,
                "sha256": each.sha256,
            }
            for each in self.chosen
        ]
        stem = file_stem(self.title or self.request.title, drawn.seed, self.number)
        metadata = made_by | {"versions": versions}

        def record(sha256: str) -> None:
            self.registry.add_generation(
                sha256,
                **made_by,
                versions=[(each.concept.id, each.version.number) for each in self.chosen],
            )

        path, sha256 = save_picture(
            drawn.image,
            self.folder,
            stem,
            metadata,
            file_format=self.wanted.file_format,
            parameters=parameters.with_seed(drawn.seed).to_text(),
            record=record,
        )
        maps = (
            save_picture(heat, self.folder, f"{stem}-maps", {"maps_of": metadata})[0]
            if heat
            else None
        )
        prompt = self.request.prompt
        return Picture(path, drawn.seed, sha256, prompt, maps, drawn.image, seen.leaks)

    def _parameters(self, concepts: Sequence[InjectedConcept], init: UsedInit | None) -> Parameters:
        base, settings = self.base, self.request.settings
        return parameters_of(
            self.request.prompt,
            self.chosen,
            concepts,
            settings=settings,
            size=settings.size or (base.backbone.size, base.backbone.size),
            sampler=type(base.backbone.sampling_scheduler(settings.scheduler)).__name__,
            model=base.base.name,
            model_sha256=base.sha256 if base.base.kind == "file" else None,
            strength=init.strength if init else None,
        )


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


def save_animation(
    frames: Sequence[Picture],
    folder: Path,
    *,
    file_format: Literal["webp", "gif"] = "webp",
    frame_rate: float = FRAME_RATE,
) -> Path:
    """Write an animation of frames, `frame_rate` of them in a second; returns its path.

    Raises `InvalidInput` for a rate that is not 0.1 to 50.
    """
    check_frame_rate(frame_rate)
    first, *others = [frame.image.convert("RGB") for frame in frames]
    shown = durations(len(frames), frame_rate, _UNITS[file_format])
    encoded = io.BytesIO()
    options = {"quality": 90} if file_format == "webp" else {}
    first.save(
        encoded, file_format, save_all=True, append_images=others, duration=shown, loop=0, **options
    )
    stem = file_stem(frames[0].prompt, frames[0].seed)
    return write_picture(encoded.getvalue(), folder, stem, f".{file_format}")[0]


# --- reproduce ------------------------------------------------------------------------------------


def _name_now(registry: Registry, name: str, number: int, sha256: str) -> str:
    """The present name of a concept that was called `name`, found by its version's hash."""
    names = registry.names()
    for other in sorted(names, key=lambda each: each != name):
        concept = registry.show(other)
        for version in concept.versions:
            known = {each.sha256 for each in version.artifacts}
            known.add(imported_sha256(concept, version) or "")
            if version.number == number and sha256 in known:
                return other
    return name


def _as_then(concept: Concept, category: str | None) -> Concept:
    """A concept with the category that it had when a picture was drawn, if that is known."""
    return replace(concept, category=category) if category else concept


def _reference_now(registry: Registry, path: Path, drawn_after: DrawnAfter) -> ChosenReference:
    """The photo that a picture was drawn after, whatever its concept is called now."""
    found: dict[str | None, tuple[Concept, ImageRecord]] = {}
    for name in sorted(registry.names(), key=lambda each: each != drawn_after.concept):
        concept = registry.show(name)
        for image in concept.images:
            if image.sha256 == drawn_after.photo:
                found.setdefault(image.mask, (concept, image))
        if drawn_after.mask in found:
            break
    if drawn_after.mask not in found:
        other = ", with the mask that it had then," if found else ""
        raise NotFound(
            f"{path} was drawn after a photo of {drawn_after.concept} that{other} is not in this "
            "registry"
        )
    concept, image = found[drawn_after.mask]
    return ChosenReference(
        concept=_as_then(concept, drawn_after.category),
        name=drawn_after.concept,
        image=image,
        prompt=drawn_after.prompt,
        weight=drawn_after.weight,
        share=drawn_after.share,
        guidance=drawn_after.guidance,
    )


def reproduce(
    registry: Registry,
    base: LoadedBase,
    path: Path,
    folder: Path,
    *,
    control: ControlRequest | None = None,
    init: InitRequest | None = None,
    frames: Sequence[Path] = (),
    layouts: Sequence[Path] = (),
) -> tuple[Picture, bool]:
    """Draw a picture again; returns it, and whether all pixels are the same.

    They are the same on the same machine with the same packages, whatever its concepts are called
    now, and whatever category they have. `control` names the control picture, if one was used, and
    its ControlNet; the scale is the picture's. So with `init`, what the picture began with, and its
    strength. `frames` are files of frames that it was drawn after, where those do not lie beside
    it; `layouts` are control pictures of what it was drawn after, where those do not lie beside its
    own. Raises `InvalidInput` for another base model, picture or ControlNet, `NotFound` for
    versions that are gone or have other weights now, and what `read_provenance`, `find_frames` and
    `find_layouts` raise.
    """
    registry.check_folder(folder)
    made = read_provenance(path)
    check_same_control(path, made.control_picture, control)
    check_same_init(path, made.init, init)
    found = find_frames(path, made.frames, frames)
    own = find_layouts(path, made.layouts, layouts, beside=control and control.picture)
    earlier = [
        read_frame(found_at, each, own.get(each.control or ""))
        for found_at, each in zip(found, made.frames, strict=True)
    ]
    then = "--base FOLDER, where its weights of then are"
    base.check_is(made.base_sha256, made.base, f"{path} was drawn by", otherwise=then)
    pinned = {
        name: (_name_now(registry, name, *version), version[0])
        for name, version in made.versions.items()
    }
    chosen = [
        replace(each, concept=_as_then(each.concept, made.categories.get(each.mention.name)))
        for each in resolve_prompt(registry, made.prompt, pinned=pinned)
    ]
    for each in chosen:
        if made.versions.get(each.mention.name, (0, ""))[1] != each.sha256:
            raise NotFound(f"{path} was drawn with other weights than {each.label} has now")
    if made.control and control:
        used = {"scale": made.control.scale, "transfers": made.control.transfers}
        control = replace(control, **used)
    if made.init and init:
        init = replace(init, strength=made.init.strength)
    request = Request(
        prompt=made.prompt,
        seeds=made.batch_seeds,
        settings=made.settings,
        control=control,
        init=init,
    )
    check_controls(base.base, base.backbone.size, [request])
    controls = Controls(base, [request])
    after = [
        replace(_reference_now(registry, path, each), control=own.get(each.control or ""))
        for each in made.references
    ]
    texts = read_texts(path)
    file_format = texts.file_format if texts else "png"
    wanted = _Wanted(made.with_maps, made.with_leaks, made.points, file_format)
    record = _Record(
        registry, base, request, chosen, after, folder, controls, wanted, frames=earlier
    )
    now = record.control
    if now and made.control and now.used.network_sha256 != made.control.network_sha256:
        raise InvalidInput(
            f"{path} was drawn with another ControlNet than {now.used.network} is now",
            hint="--control IMAGE:KIND" if control else then,
        )
    (references,) = _loaded_references([record]).values()
    if encoding := references.encoding:
        check_same_encoder(str(path), base, encoding.encoder_sha256, made.subject_encoder)
    with inject_concepts(base, chosen, apart=record.apart) as concepts:
        (picture, *_) = record.draw(concepts, references, len(made.batch_seeds), [made.seed])
    return picture, has_same_pixels(path, picture.path)


def reproduce_foreign(
    registry: Registry,
    base: LoadedBase,
    picture: ForeignPicture,
    folder: Path,
    *,
    init: InitRequest | None = None,
) -> tuple[Picture, bool, list[str]]:
    """Draw the like of another tool's picture, as far as what it says means something here.

    Returns it, whether all pixels are the same, and a line about each thing that was not used.
    `init` is what it began with. Raises what `request_like` and `generate` raise.
    """
    like = request_like(registry, picture, base.base, base.sha256, init)
    (drawn,) = generate(registry, base, [like.request], folder, file_format=picture.file_format)
    return drawn, has_same_pixels(picture.path, drawn.path), like.unused


def has_same_pixels(path: Path, other: Path) -> bool:
    """Whether two pictures do not differ, as their files have them."""
    with Image.open(path) as one, Image.open(other) as two:
        return one.size == two.size and one.convert("RGB").tobytes() == two.convert("RGB").tobytes()

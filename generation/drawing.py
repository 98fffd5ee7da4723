"""Drawing of one request: pictures with their maps and leaks, their provenance and their files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ..adapters.adapter import injected
from ..adapters.references import References
from ..adapters.subject_encoding import SubjectEncoding
from ..models.loading import LoadedBase
from ..models.subject_encoder_file import LoadedSubjectEncoder, load_subject_encoder
from ..registry import Registry
from .control_request import categories_in
from .controls import (
    Controls,
    PreparedControl,
    check_controls,
    followed,
    following,
)
from .frames import ChosenFrame
from .init_request import UsedInit, read_init
from .injection import InjectedConcept, expand_prompt, stand_ins
from .layout import AUTO
from .observing import Leak, Observed, Wanted, observed
from .parameters import Parameters, parameters_of
from .picture_texts import check_room
from .pictures import file_stem
from .prompt_syntax import ChosenVersion, check_negative, resolve_prompt
from .provenance import check_points, save_picture
from .reference_syntax import ChosenReference, ReferenceRequest, described, resolve_references
from .references import check_reference, frame_reference, load_references
from .regional_plan import RegionalPlan, plan_regions
from .request import Request, check_encoder, naming_place, with_layout, with_size
from .resuming import KeptPicture
from .sampler import check_prompts
from .starts import Start


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that was written and recorded; `maps` is the file of its heat-maps.

    `leaks` has both directions of each pair of concepts, if requested. One that was there already
    is not new.
    """

    path: Path
    seed: int
    sha256: str
    prompt: str
    maps: Path | None
    image: Image.Image
    leaks: list[Leak] = field(default_factory=list)
    is_new: bool = True

    @classmethod
    def there(cls, kept: KeptPicture, request: Request, seed: int) -> "Picture":
        """One that was there already, from its file. Raises `NotFound` if it is there no more."""
        return cls(
            kept.path, seed, kept.sha256, request.prompt, kept.maps, kept.image(), is_new=False
        )


AskedReferences = tuple[tuple[ReferenceRequest, ...], float]
"""The references of a request, and β."""


@dataclass(frozen=True, slots=True)
class Drawing:
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
    wanted: Wanted
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
        words = {
            each.concept.id: one.phrase for each, one in zip(self.chosen, concepts, strict=True)
        }
        for each in self.references:
            phrase = words.get(each.concept.id, each.concept.category)
            check_reference(self.base.backbone, each, phrase)

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
    def asked(self) -> AskedReferences:
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
        control = self.control
        plan = followed(self.plan(concepts), control, concepts)
        start, used = self._start()
        parameters = self._parameters(concepts, used)
        alone = [each.change for each in concepts if each.change and each.is_apart]
        with (
            injected(self.base.backbone, [references, *(alone if plan is None else [])]),
            following(control, concepts, plan) as added,
        ):
            for seen in observed(
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
        subjects = [each.category for each in concepts if each.is_subject]
        subjects += [each.concept.category for each in self.references]
        categories = list(dict.fromkeys(subjects))
        size = self.request.settings.size
        frames = [frame_reference(self.base, each, categories, size) for each in self.frames]
        return References([*references.references, *frames], references.encoding)

    def _keep(
        self,
        seen: Observed,
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


def loaded_references(together: Sequence[Drawing]) -> dict[AskedReferences, References]:
    """The references of requests for the same versions; those of many requests are loaded once."""
    different = {record.asked: record for record in together}
    sees = any(strength for _, strength in different)
    encoder = load_subject_encoder(together[0].base) if sees else None
    return {asked: record.load_references(encoder) for asked, record in different.items()}


def drawings_of(
    registry: Registry,
    base: LoadedBase,
    requests: Sequence[Request],
    folder: Path,
    wanted: Wanted,
) -> list[Drawing]:
    """Requests whose prompts, references and control pictures have been looked up and checked."""
    registry.check_folder(folder)
    check_points(wanted.points)
    sized: list[Request] = []
    resolved: list[tuple[Request, list[ChosenVersion], list[ChosenReference]]] = []
    for request in requests:
        with naming_place(request):
            check_negative(request.settings.negative)
            check_encoder(request)
            check_room(request.prompt, request.settings.negative, wanted.file_format)
            sized.append(with_size(request, base.backbone.size))
            chosen = resolve_prompt(registry, request.prompt)
            references = resolve_references(registry, request.references, request.prompt)
        resolved.append((with_layout(sized[-1]), chosen, references))
    check_controls(base.base, base.backbone.size, sized)
    controls = Controls(base, sized)
    records = [Drawing(registry, base, *each, folder, controls, wanted) for each in resolved]
    for each in records:
        with naming_place(each.request):
            each.check()
    return records

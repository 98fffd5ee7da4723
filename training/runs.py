"""`train` and `resume`: train a concept of a registry, and record the run and its new version."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image

from ..adapters.adapter import injected
from ..adapters.file_format import AdapterMetadata, write_adapter
from ..adapters.prompt_encoding import class_prompt
from ..adapters.references import References
from ..generation.pictures import kept_picture, replace_picture
from ..generation.reference_syntax import choose_reference, find_photo
from ..generation.references import load_references
from ..generation.request import SamplingSettings
from ..generation.sampler import draw, reporting_broken_base
from ..methods.method import (
    DEFAULT_METHOD,
    Method,
    active_stages,
    find_method,
    resolve_settings,
)
from ..methods.settings import ReferenceSettings, TrainingSettings
from ..models.loading import LoadedBase
from ..models.pixels import on_white
from ..models.seeds import seed_of
from ..models.subject_encoder_file import (
    LoadedSubjectEncoder,
    check_same_encoder,
    hash_of_subject_encoder,
    load_subject_encoder,
)
from ..registry import Registry
from ..registry.errors import (
    ConceptNotFound,
    ConceptryError,
    InvalidInput,
    NotFinite,
    NotFound,
    RegistryCorrupt,
    StorageError,
    TrainingFailed,
    TrainingInterrupted,
)
from ..registry.hashes import sha256_of, sha256_of_json
from ..registry.names import check_category
from ..registry.records import Concept, ConceptKey, RunRecord
from ..registry.running import (
    ADAPTER_FILE,
    CHECKPOINT_PREFIX,
    CLASS_PICTURES,
    PREVIEWS_FILE,
    RESUME_FILE,
)
from .callbacks import Checkpoint, Hooks, LearnedAdapters, StepReport
from .checkpoints import TrainingPosition, read_position
from .crops import Photos, needed_side
from .distributed import broadcast, is_main_process, join, num_processes
from .photo_masks import masks_for_training
from .previews import add_strip
from .trainer import Trainer
from .training import Subject, Training, check_fitting, training_resolution

PACKAGES = ("accelerate", "conceptry", "diffusers", "peft", "torch", "transformers")
METRICS_EVERY = 50
CLASS_PICTURES_AT_ONCE = 8

Key = TypeVar("Key", bound=ConceptKey)


@dataclass(frozen=True, slots=True)
class StageSummary:
    """A stage of a run: its number of steps, and the mean total loss of the last tenth of them."""

    name: str
    steps: int
    loss: float


@dataclass(frozen=True, slots=True)
class Trained:
    """The result of a training: version `version` of a concept."""

    concept: str
    run: str
    version: int
    method: str
    seconds: float
    """Of the whole batch of `together` concepts."""
    together: int
    stages: list[StageSummary]
    previews: Path | None
    """The sheet of preview strips; None without `Hooks.preview_every`."""


def trained_before(registry: Registry, concept: ConceptKey, run: str) -> Trained:
    """What a run made that has ended; raises `NotFound` if its version is gone."""
    found = registry.show(concept)
    made = next((each for each in found.versions if each.run == run), None)
    if made is None:
        raise NotFound(f"the version of {found.name} that was trained is gone")
    record = next(each for each in found.runs if each.run == run)
    began, ended = (
        datetime.fromisoformat(each) for each in (record.started, record.finished or record.started)
    )
    seconds = (ended - began).total_seconds()
    return Trained(found.name, run, made.number, record.method, seconds, 1, [], None)


def train(
    registry: Registry,
    name: ConceptKey,
    base: LoadedBase,
    *,
    method: str = DEFAULT_METHOD,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    photos: Sequence[str] = (),
    seed: int = 0,
    hooks: Hooks | None = None,
) -> Trained:
    """Train a concept of a registry on a base model; the result is its next version.

    `preset` defaults to the one named like the base model, else to `paper`; `overrides` change
    single settings, as `stage3.steps=300`. `photos`, by number, hash or file name, are those to be
    learned; all of them by default. A training that is interrupted or fails keeps its state,
    and `resume` continues it.

    Raises `NotFound` for an unknown concept, method or preset, `InvalidInput` for settings out of
    range or a concept without photos, `RegistryBusy` if it is being trained already,
    `TrainingFailed` and `TrainingInterrupted`.
    """
    return _only(
        train_many(
            registry,
            [name],
            base,
            method=method,
            preset=preset,
            overrides=overrides,
            photos=photos,
            seed=seed,
            hooks={name: hooks or Hooks()},
        )
    )


def train_many(
    registry: Registry,
    names: Sequence[Key],
    base: LoadedBase,
    *,
    method: str,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    photos: Sequence[str] = (),
    seed: int = 0,
    hooks: Mapping[Key, Hooks] | None = None,
) -> list[Trained | ConceptryError]:
    """Train several concepts in one batch; the method has to keep the base model.

    Each learns what it would learn alone, up to the order of summation, and gets a version of its
    own. One that fails does not stop the others; its error is returned in its place. `hooks` are by
    the names as given; `should_stop` is asked of the first concept that begins. Concepts may be
    renamed during the call.

    Raises what `train` raises for methods and settings, and `TrainingInterrupted`.
    """
    chosen = find_method(method)
    settings = resolve_settings(
        chosen, preset=preset, base=base.base.name, overrides=tuple(overrides)
    )
    if len(names) > 1 and not chosen.keeps_base:
        raise InvalidInput(f"{method} changes the base model: one concept at a time")
    check_fitting(base.backbone, chosen, settings)

    def begin(concept: Concept) -> _RunPlan:
        concept = with_photos(concept, photos)
        run = registry.begin_run(
            concept.id,
            method=chosen.name,
            config=settings.to_mapping() | _training_data_of(base, concept, settings),
            base=base.base.name,
            base_sha256=base.sha256,
            seed=seed,
            packages={package: installed_version(package) for package in PACKAGES},
        )
        return _RunPlan(concept, run, chosen.name, settings, seed)

    return _run_all(registry, base, names, begin, hooks or {})


def resume(
    registry: Registry, name: ConceptKey, base: LoadedBase, *, hooks: Hooks | None = None
) -> Trained:
    """Continue the latest unfinished training of a concept, with the settings it began with.

    Starts over if no state was saved. Raises `NotFound` if there is none, and `InvalidInput` if the
    base model is another, or photos that it began with are gone.
    """
    return _only(resume_many(registry, [name], base, hooks={name: hooks or Hooks()}))


def resume_many(
    registry: Registry,
    names: Sequence[Key],
    base: LoadedBase,
    *,
    hooks: Mapping[Key, Hooks] | None = None,
) -> list[Trained | ConceptryError]:
    """Continue the latest unfinished trainings of several concepts; see `resume` and `train_many`.

    Those with the same settings, at the same step, share a batch.
    """

    def begin(concept: Concept) -> _RunPlan:
        record = registry.resumable_run(concept.id)
        base.check_is(
            record.base_sha256,
            record.base,
            f"run {record.run} of {concept.name} began on",
            otherwise=f"concept train {concept.name}",
        )
        method = find_method(record.method)
        data, config = _recorded_data_of(record, concept.name)
        concept = _restored(registry, concept, data)
        settings = method.settings().updated({**method.former, **config})
        if settings.reference.encoder_strength:
            what, now = f"run {record.run} of {concept.name}", hash_of_subject_encoder(base)
            check_same_encoder(what, base, now, data.subject_encoder)
        path = registry.run_folder(record.run) / RESUME_FILE
        position = read_position(path) if path.exists() else None
        registry.resume_run(record.run)
        return _RunPlan(concept, record.run, method.name, settings, record.seed, position)

    return _run_all(registry, base, names, begin, hooks or {})


def _only(outcomes: Sequence[Trained | ConceptryError]) -> Trained:
    (outcome,) = outcomes
    if isinstance(outcome, ConceptryError):
        raise outcome
    return outcome


@dataclass(frozen=True, slots=True)
class _TrainingData:
    """What a run keeps of its concept, as later edits must not change it.

    Photos, masks and the subject encoder are hashes. What is not of all trainings is kept where it
    is used.
    """

    photos: list[str]
    category: str
    masks: list[str | None] | None = None
    captions: list[str | None] | None = None
    subject_encoder: str | None = None


def with_photos(concept: Concept, words: Sequence[str]) -> Concept:
    """The concept with the photos that are to be learned: all, or those that are named.

    Raises `InvalidInput` for a concept without photos, and `NotFound`.
    """
    concept.check_photos()
    if not words:
        return concept
    return replace(concept, images=list(dict.fromkeys(find_photo(concept, word) for word in words)))


def _training_data_of(
    base: LoadedBase, concept: Concept, settings: TrainingSettings
) -> dict[str, object]:
    """`_TrainingData` as the run's record has it, beside the settings.

    Raises what `hash_of_subject_encoder` does.
    """
    data: dict[str, object] = {
        "photos": [image.sha256 for image in concept.images],
        "category": concept.category,
    }
    has_references = bool(settings.reference.photos)
    if settings.mask.use != "none" or settings.augmentation.white_background or has_references:
        data["photo_masks"] = [image.mask for image in concept.images]
    if settings.captions.share or has_references:
        data["photo_captions"] = [image.caption for image in concept.images]
    if settings.reference.encoder_strength:
        data["subject_encoder"] = hash_of_subject_encoder(base)
    return data


def _recorded_data_of(record: RunRecord, name: str) -> tuple[_TrainingData, dict[str, object]]:
    """What a run began with, and its settings, from its record."""
    config = dict(record.config)
    photos, category = config.pop("photos", None), config.pop("category", None)
    if isinstance(photos, list) and isinstance(category, str):
        with suppress(InvalidInput, ValueError):
            masks, captions = (
                _of_photos(config.pop(key, None), len(photos))
                for key in ("photo_masks", "photo_captions")
            )
            hashes = [str(photo) for photo in photos]
            encoder = config.pop("subject_encoder", None)
            encoder = None if encoder is None else str(encoder)
            category = check_category(category)
            return _TrainingData(hashes, category, masks, captions, encoder), config
    raise RegistryCorrupt(
        f"the record of run {record.run} of {name} is damaged", hint=f"concept train {name}"
    )


def _of_photos(value: object, count: int) -> list[str | None] | None:
    """A recorded text or None of each of `count` photos. Raises `ValueError`."""
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != count:
        raise ValueError("expected one for each photo")
    return [None if each is None else str(each) for each in value]


def _restored(registry: Registry, concept: Concept, data: _TrainingData) -> Concept:
    """The concept with the photos, masks, captions and the category that a run began with."""
    by_hash = {image.sha256: image for image in concept.images}
    if missing := [sha256 for sha256 in data.photos if sha256 not in by_hash]:
        raise InvalidInput(
            f"{len(missing)} of the photos that the run of {concept.name} began with are gone",
            hint=f"concept train {concept.name}",
        )
    images = [by_hash[sha256] for sha256 in data.photos]
    if data.masks is not None:
        images = [replace(i, mask=mask) for i, mask in zip(images, data.masks, strict=True)]
        if lost := [mask for mask in data.masks if mask and not registry.path_of(mask).exists()]:
            raise InvalidInput(
                f"{len(lost)} of the masks that the run of {concept.name} began with are gone",
                hint=f"concept train {concept.name}",
            )
    if data.captions is not None:
        pairs = zip(images, data.captions, strict=True)
        images = [replace(image, caption=caption) for image, caption in pairs]
    return replace(concept, images=images, category=data.category)


@dataclass(frozen=True, slots=True)
class _RunPlan:
    """A recorded run: all that a process needs to take part in it."""

    concept: Concept
    run: str
    method: str
    settings: TrainingSettings
    seed: int
    position: TrainingPosition | None = None
    """Where it resumes; None from the beginning."""


def _run_all(
    registry: Registry,
    base: LoadedBase,
    keys: Sequence[Key],
    begin: Callable[[Concept], _RunPlan],
    hooks: Mapping[Key, Hooks],
) -> list[Trained | ConceptryError]:
    """Begin and run trainings; the other processes follow the main one."""
    join()
    if not is_main_process():
        while batch := broadcast():
            encoder = encoder_for(base, batch[0][0].settings)
            Trainer(
                [_training(registry, base, plan, hooks, encoder) for plan, hooks in batch],
                [registry.run_folder(plan.run) / RESUME_FILE for plan, _ in batch],
            ).run()
        return broadcast()
    outcomes: dict[str, Trained | ConceptryError] = {}
    begun: dict[Key, str | ConceptryError] = {}
    with ExitStack() as locks:
        plans: list[_RunPlan] = []
        hooks_of: dict[str, Hooks] = {}
        for key in keys:
            try:
                concept_id = registry.show(key).id
                locks.enter_context(registry.training_lock(concept_id))
                plans.append(begin(registry.show(concept_id)))
            except ConceptryError as error:
                begun[key] = error
                continue
            begun[key] = run = plans[-1].run
            hooks_of[run] = hooks.get(key) or Hooks()
        batch, waiting = list[_RunPlan](), list(plans)
        try:
            for batch in _batches(plans):
                waiting = [plan for plan in waiting if plan not in batch]
                outcomes |= _outcomes(registry, base, batch, hooks_of)
        except BaseException as error:
            _end(waiting, registry, "interrupted")
            if isinstance(error, TrainingInterrupted):
                names = [name_now(registry, plan.concept) for plan in (*batch, *waiting)]
                command = f"concept train {' '.join(names)} --resume"
                raise TrainingInterrupted(error.message, hint=command) from None
            raise
    broadcast(None)
    return broadcast([outcomes[run] if isinstance(run, str) else run for run in begun.values()])


def name_now(registry: Registry, concept: Concept) -> str:
    """The concept's present name; its last known one, if it was removed."""
    try:
        return registry.show(concept.id).name
    except ConceptNotFound:
        return concept.name


def _outcomes(
    registry: Registry, base: LoadedBase, batch: Sequence[_RunPlan], hooks: Mapping[str, Hooks]
) -> dict[str, Trained | ConceptryError]:
    """The outcome of each run of a batch; an error that stops the batch is that of all."""
    try:
        return _Batch(registry, base, batch, hooks).run()
    except TrainingInterrupted:
        raise
    except ConceptryError as error:
        if num_processes() > 1:
            raise  # the other processes cannot continue
        return {plan.run: error for plan in batch}


def _end(
    plans: Sequence[_RunPlan], registry: Registry, status: str, error: str | None = None
) -> None:
    """Record how runs end; runs of removed concepts are skipped."""
    for plan in plans:
        with suppress(NotFound):
            registry.end_run(plan.run, status, error=error)


def _batches(plans: Sequence[_RunPlan]) -> list[list[_RunPlan]]:
    """Group plans that can share a batch: same method and settings, at the same step.

    Crops of one shape make a batch where they are not square: concepts have their own then.
    """
    batches: dict[object, list[_RunPlan]] = {}
    for plan in plans:
        is_square = not plan.settings.augmentation.buckets
        can_share = find_method(plan.method).keeps_base and is_square
        key = (plan.method, plan.settings, plan.position) if can_share else plan.run
        batches.setdefault(key, []).append(plan)
    return list(batches.values())


class _Batch:
    """Trainings that run as one batch, and their records in the registry; hooks are by run id."""

    def __init__(
        self,
        registry: Registry,
        base: LoadedBase,
        plans: Sequence[_RunPlan],
        hooks: Mapping[str, Hooks],
    ) -> None:
        self._registry = registry
        self._base = base
        self._plans = plans
        self._hooks = hooks
        self._running = list(plans)
        self._outcomes: dict[str, Trained | ConceptryError] = {}
        self._started = time.monotonic()

    def run(self) -> dict[str, Trained | ConceptryError]:
        """Run them; returns the outcome by run id.

        An error of one concept is its outcome; any other is raised.
        """
        with self._recorded():
            recorders, trainings = self._prepared()
            if not recorders:
                return self._outcomes
            broadcast(
                [(recorder.plan, recorder.hooks_of_other_processes()) for recorder in recorders]
            )
            try:
                paths = [recorder.resume_path for recorder in recorders]
                with reporting_broken_base(self._base):
                    found = Trainer(trainings, paths).run()
            finally:
                for recorder in recorders:
                    recorder.metrics.flush()
            for recorder, learned in zip(recorders, found, strict=True):
                if isinstance(learned, TrainingFailed):
                    who = name_now(self._registry, recorder.plan.concept)
                    message = self._on_base(who, learned)
                    self._fail(recorder.plan, TrainingFailed(message, hint=learned.hint))
                    continue
                try:
                    number = recorder.keep(learned)
                except ConceptryError as error:
                    self._fail(recorder.plan, error)
                    continue
                self._running.remove(recorder.plan)
                with suppress(OSError):  # gc would do it
                    self._registry.tidy_run_folder(recorder.plan.run)
                self._outcomes[recorder.plan.run] = self._trained(recorder, number, len(recorders))
        return self._outcomes

    def _prepared(self) -> tuple[list["_RunRecorder"], list[Training]]:
        recorders: list[_RunRecorder] = []
        trainings: list[Training] = []
        encoder = encoder_for(self._base, self._plans[0].settings)
        for plan in self._plans:
            try:
                recorder = _RunRecorder(self._registry, self._base, plan, self._hooks[plan.run])
                hooks = recorder.recording_hooks()
                training = _training(self._registry, self._base, plan, hooks, encoder)
            except TrainingInterrupted:
                raise
            except ConceptryError as error:
                self._fail(plan, error)
                continue
            recorders.append(recorder)
            trainings.append(training)
        return recorders, trainings

    def _fail(self, plan: _RunPlan, error: ConceptryError) -> None:
        _end([plan], self._registry, "failed", error.message)
        self._running.remove(plan)
        self._outcomes[plan.run] = error

    def _trained(self, recorder: "_RunRecorder", number: int, together: int) -> Trained:
        return Trained(
            concept=name_now(self._registry, recorder.plan.concept),
            run=recorder.plan.run,
            version=number,
            method=recorder.plan.method,
            seconds=round(time.monotonic() - self._started, 1),
            together=together,
            stages=recorder.metrics.summary(),
            previews=recorder.previews if recorder.previews.exists() else None,
        )

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """Record that the remaining runs were interrupted or failed, if the block raises."""
        try:
            yield
        except TrainingInterrupted as error:
            self._end("interrupted")
            raise TrainingInterrupted(f"{self._names()}: {error.message}; saved") from None
        except torch.OutOfMemoryError as error:
            self._end("failed", "out of memory")
            raise TrainingFailed(
                f"{self._names()}: the GPU has too little memory for these settings",
                hint=self._less_memory(),
            ) from error
        except NotFinite as error:
            self._end("failed", error.message)
            raise NotFinite(self._on_base(self._names(), error), hint=error.hint) from None
        except ConceptryError as error:
            self._end("failed", error.message)
            raise
        except KeyboardInterrupt:
            self._end("interrupted")
            raise
        except Exception as error:
            self._end("failed", f"{type(error).__name__}: {error}")
            raise

    def _less_memory(self) -> str:
        """What to type to need less memory; batches of one picture cannot be split."""
        settings = self._plans[0].settings
        fewer = "--together 1, " if len(self._plans) > 1 else ""
        if all(each.batch == 1 for each in settings.stages().values() if each.steps):
            return f"{fewer}--preset 8gb, or --set gradient_checkpointing=true"
        return f"{fewer}--preset 8gb, or --set gradient_accumulation=4 --set fused_backward=false"

    def _on_base(self, who: str, error: ConceptryError) -> str:
        return f"{who} on {self._base.base.name}: {error.message}"

    def _names(self) -> str:
        return ", ".join(name_now(self._registry, plan.concept) for plan in self._plans)

    def _end(self, status: str, error: str | None = None) -> None:
        _end(self._running, self._registry, status, error)


class _RunRecorder:
    """Records one run of a batch: metrics, previews, checkpoints, and the new version."""

    def __init__(self, registry: Registry, base: LoadedBase, plan: _RunPlan, hooks: Hooks) -> None:
        self.plan = plan
        self.metrics = _Metrics(registry, plan.run)
        self._registry = registry
        self._hooks = hooks
        self._folder = registry.run_folder(plan.run)
        self._base_sha256 = base.sha256

    def _metadata_of(self, learned: LearnedAdapters) -> AdapterMetadata:
        plan, encoding = self.plan, learned.references.encoding
        return AdapterMetadata(
            base_sha256=self._base_sha256,
            method=plan.method,
            category=plan.concept.category,
            num_tokens=len(learned.embedding.tokens) if learned.embedding else 0,
            names_category=find_method(plan.method).names_category or not learned.embedding,
            stage_order=learned.embedding.stage_order if learned.embedding else "",
            references=learned.references.describe(),
            subject=encoding.describe() if encoding else None,
        )

    @property
    def resume_path(self) -> Path:
        return self._folder / RESUME_FILE

    @property
    def previews(self) -> Path:
        return self._folder / PREVIEWS_FILE

    def recording_hooks(self) -> Hooks:
        """The hooks, which also write to the registry and beside it."""
        return replace(
            self._hooks,
            on_step=self._on_step,
            on_preview=self._on_preview,
            on_saved=self._on_saved,
            on_checkpoint=self._on_checkpoint,
        )

    def hooks_of_other_processes(self) -> Hooks:
        """What the other processes need of the hooks to stay in step with the main one."""
        return Hooks(checkpoint_every=self._hooks.checkpoint_every)

    def keep(self, learned: LearnedAdapters) -> int:
        """Store what was learned as the concept's next version, and end the run.

        Returns the version's number. Raises `TrainingFailed` if it is not finite.
        """
        path = self._folder / ADAPTER_FILE
        try:
            write_adapter(path, learned.state(), self._metadata_of(learned))
        except NotFinite as error:
            raise TrainingFailed(
                f"{name_now(self._registry, self.plan.concept)}: {error.message}", hint=error.hint
            ) from None
        return self._registry.finish_run(self.plan.run, {ADAPTER_FILE: path})

    def _on_step(self, report: StepReport) -> None:
        self.metrics.add(report)
        self._hooks.on_step(report)

    def _on_preview(self, stage: str, step: int, images: list[Image.Image]) -> None:
        with suppress(OSError):  # a lost preview must not end a training
            add_strip(self.previews, f"{stage}, step {step}", images)
        self._hooks.on_preview(stage, step, images)

    def _on_saved(self, path: Path) -> None:
        self.metrics.flush()
        self._hooks.on_saved(path)

    def _on_checkpoint(self, checkpoint: Checkpoint) -> None:
        name = f"{CHECKPOINT_PREFIX}{checkpoint.name}.safetensors"
        learned = checkpoint.learned
        write_adapter(self._folder / name, learned.state(), self._metadata_of(learned))
        self._hooks.on_checkpoint(checkpoint)


def encoder_for(base: LoadedBase, settings: TrainingSettings) -> LoadedSubjectEncoder | None:
    """The subject encoder for a batch of trainings, which have the same settings."""
    return load_subject_encoder(base) if settings.reference.encoder_strength else None


def _training(
    registry: Registry,
    base: LoadedBase,
    plan: _RunPlan,
    hooks: Hooks,
    encoder: LoadedSubjectEncoder | None,
) -> Training:
    method = find_method(plan.method)
    subject = subject_of(registry, base, plan.concept, method, plan.settings)
    prior, category = plan.settings.prior, plan.concept.category
    references = references_of(
        registry, base, plan.concept, plan.settings.reference, encoder=encoder
    )
    subject = replace(subject, references=references)
    training = Training(base.backbone, method, plan.settings, subject, seed=plan.seed, hooks=hooks)
    if prior.weight and any(active_stages(method, plan.settings)):  # last, as it takes long
        after = references if prior.after_references else References(())
        pictures = class_pictures(
            registry, base, category, prior.num_images, after=after, hooks=hooks
        )
        training.subject = replace(subject, class_pictures=pictures)
    return training


def subject_of(
    registry: Registry,
    base: LoadedBase,
    concept: Concept,
    method: Method,
    settings: TrainingSettings,
) -> Subject:
    """A concept's photos, as large as crops need them, its category and placeholder tokens.

    With them are the masks and captions that the settings ask for. Decodes each photo, to find
    damaged ones before training. Raises `RegistryCorrupt` for them, and `InvalidInput` if there are
    no photos.
    """
    side = needed_side(training_resolution(base.backbone, settings), settings.augmentation)
    concept.check_photos()
    images = concept.images
    photos = Photos([partial(registry.read_photo, image, at_least=side) for image in images])
    is_trained = any(active_stages(method, settings))
    use = settings.mask.use if is_trained else "none"
    masks = masks_for_training(registry, base, concept, photos, use)
    if settings.augmentation.white_background and is_trained:
        cut = masks_for_training(registry, base, concept, photos, "auto")
        photos = Photos([partial(_on_white, photos, cut, i) for i in range(len(images))])
    num_tokens = method.count_tokens(base.backbone, settings)
    return Subject(
        photos=photos,
        category=concept.category,
        tokens=tuple(f"<{concept.id}#{i}>" for i in range(num_tokens)),
        sizes=[(image.width, image.height) for image in images],
        masks=masks,
        captions=[image.caption for image in images],
    )


def _on_white(photos: Photos, masks: Photos, number: int) -> Image.Image:
    return on_white(photos[number], masks[number])


def references_of(
    registry: Registry,
    base: LoadedBase,
    concept: Concept,
    settings: ReferenceSettings,
    *,
    encoder: LoadedSubjectEncoder | None = None,
) -> References:
    """The references that a concept's version holds, with {} for the concept in their prompts.

    A subject `encoder` sees them with the settings' strength.
    """
    chosen = [
        replace(
            choose_reference(concept, image, settings.weight),
            share=settings.share,
            guidance=settings.guidance,
        )
        for image in concept.images[: settings.photos]
    ]
    names = {concept.id: "{}"}
    strength = settings.encoder_strength
    return load_references(
        registry, base, chosen, names, encoder=encoder, encoder_strength=strength
    )


@dataclass(slots=True)
class _Metrics:
    """Writes losses into the registry, `METRICS_EVERY` steps at a time."""

    registry: Registry
    run: str
    _rows: list[tuple[str, int, str, float]] = field(default_factory=list)

    def add(self, report: StepReport) -> None:
        self._rows += [
            (report.stage, report.step, name, value) for name, value in report.losses.items()
        ]
        if report.step % METRICS_EVERY == 0:
            self.flush()

    def flush(self) -> None:
        try:
            self.registry.log_metrics(self.run, self._rows)
        except NotFound:
            raise NotFound(
                "the concept was removed while it was trained: nothing of that is kept",
                hint="concept list",
            ) from None
        self._rows.clear()

    def summary(self) -> list[StageSummary]:
        """Of all steps of the run, including those before a resume."""
        totals: dict[str, dict[int, float]] = {}
        for stage, step, _, value in self.registry.metrics(self.run):
            steps = totals.setdefault(stage, {})
            steps[step] = steps.get(step, 0.0) + value
        return [
            StageSummary(
                stage, len(steps), _mean(list(steps.values())[-max(1, len(steps) // 10) :])
            )
            for stage, steps in totals.items()
        ]


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 5)


# --- class pictures -------------------------------------------------------------------------------


def class_pictures(
    registry: Registry,
    base: LoadedBase,
    category: str,
    count: int,
    *,
    after: References | None = None,
    hooks: Hooks | None = None,
) -> Photos:
    """`count` pictures of a category for prior preservation, drawn once as the base model draws.

    Those `after` references, without their masks, are DreamTuner's regular images: alike in all but
    the subject (section 3.3). All concepts of the category share the others in the registry's
    cache; the same batches are drawn whatever `count` is, and after an interruption. Raises
    `TrainingInterrupted` when `should_stop` is true, and `StorageError` if the disk refuses, or if
    one is gone when it is read; finished pictures are kept.
    """
    hooks = hooks or Hooks()
    whole = (after or References(())).unmasked().in_words(category)
    prompt, settings = class_prompt(category), SamplingSettings.for_base(base.base)
    drawn_with = sha256_of_json(settings.to_mapping())
    kind = f"{base.sha256[:16]}{whole.fingerprint()[:16]}{drawn_with[:8]}"
    folder = registry.cache_folder(CLASS_PICTURES, _class_folder(kind, category))
    size = (base.backbone.size, base.backbone.size)
    readers: list[Callable[[], Image.Image]] = []
    for first in range(0, count, CLASS_PICTURES_AT_ONCE):
        numbers = range(first, first + CLASS_PICTURES_AT_ONCE)
        paths = [folder / f"{i:05}.png" for i in numbers]
        found = [kept_picture(folder, path, size) for path in paths]
        if not all(found):
            seeds = [seed_of(i, "class picture") % (1 << 32) for i in numbers]
            with injected(base.backbone, [whole]):
                drawn = draw(base, prompt, seeds, settings, batch=CLASS_PICTURES_AT_ONCE)
                found = [picture.image for picture in drawn]
            _keep_pictures(found, paths)
            done = min(first + len(found), count)
            hooks.on_class_picture(done, count)
            if hooks.should_stop():
                raise TrainingInterrupted(f"stopped after class picture {done} of {count}")
        readers += [partial(_class_picture, folder, path, size) for path in paths]
    return Photos(readers[:count])


def _class_picture(folder: Path, path: Path, size: tuple[int, int]) -> Image.Image:
    picture = kept_picture(folder, path, size)
    if picture is None:
        raise StorageError(f"{path} is gone", hint="train again, which draws it again")
    return picture


def _class_folder(base: str, category: str) -> str:
    """A folder name of bounded length; categories may be longer."""
    name = category if len(category.encode()) < 200 else sha256_of(category.encode())
    return f"{base}-{name}"


def _keep_pictures(pictures: Sequence[Image.Image | None], paths: Sequence[Path]) -> None:
    try:
        for picture, path in zip(pictures, paths, strict=True):
            assert picture is not None
            replace_picture(picture, path, root=path.parent)
    except OSError as error:
        raise StorageError(f"cannot write {paths[0].parent}: {error}", hint="make room") from error

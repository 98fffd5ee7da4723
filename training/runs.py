"""`train` and `resume`: train a concept of a registry, and record the run and its new version."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TypeVar

import torch

from ..adapters.references import References
from ..generation.sampler import reporting_broken_base
from ..methods.method import DEFAULT_METHOD, active_stages, find_method, resolve_settings
from ..models.loading import LoadedBase
from ..models.subject_encoder_file import (
    LoadedSubjectEncoder,
    check_same_encoder,
    hash_of_subject_encoder,
)
from ..registry import Registry
from ..registry.errors import (
    ConceptryError,
    InvalidInput,
    NotFinite,
    NotFound,
    TrainingFailed,
    TrainingInterrupted,
)
from ..registry.records import Concept, ConceptKey
from ..registry.running import RESUME_FILE
from .callbacks import Hooks, LearnedAdapters
from .checkpoints import read_position
from .class_pictures import class_pictures
from .distributed import broadcast, is_main_process, join, num_processes
from .run_data import recorded_data_of, restored_concept, training_data_of
from .run_recorder import RunPlan, RunRecorder, StageSummary, name_now
from .subjects import encoder_for, references_of, subject_of, with_photos
from .trainer import Trainer
from .training import Training, check_fitting

PACKAGES = ("accelerate", "conceptry", "diffusers", "peft", "torch", "transformers")

Key = TypeVar("Key", bound=ConceptKey)


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
    the names as given; `should_stop` is asked of the first concept that begins, and what it stops
    has `TrainingInterrupted` in its place. Concepts may be renamed during the call.

    Raises what `train` raises for methods and settings; with several processes also what stops a
    whole batch.
    """
    chosen = find_method(method)
    settings = resolve_settings(
        chosen, preset=preset, base=base.base.name, overrides=tuple(overrides)
    )
    if len(names) > 1 and not chosen.keeps_base:
        raise InvalidInput(f"{method} changes the base model: one concept at a time")
    check_fitting(base.backbone, chosen, settings)

    def begin(concept: Concept) -> RunPlan:
        concept = with_photos(concept, photos)
        run = registry.begin_run(
            concept.id,
            method=chosen.name,
            config=settings.to_mapping() | training_data_of(base, concept, settings),
            base=base.base.name,
            base_sha256=base.sha256,
            seed=seed,
            packages={package: installed_version(package) for package in PACKAGES},
        )
        return RunPlan(concept, run, chosen.name, settings, seed)

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

    def begin(concept: Concept) -> RunPlan:
        record = registry.resumable_run(concept.id)
        base.check_is(
            record.base_sha256,
            record.base,
            f"run {record.run} of {concept.name} began on",
            otherwise=f"concept train {concept.name}",
        )
        method = find_method(record.method)
        data, config = recorded_data_of(record, concept.name)
        concept = restored_concept(registry, concept, data)
        settings = method.settings().updated({**method.former, **config})
        if settings.reference.encoder_strength:
            what, now = f"run {record.run} of {concept.name}", hash_of_subject_encoder(base)
            check_same_encoder(what, base, now, data.subject_encoder)
        path = registry.run_folder(record.run) / RESUME_FILE
        position = read_position(path) if path.exists() else None
        registry.resume_run(record.run)
        return RunPlan(concept, record.run, method.name, settings, record.seed, position)

    return _run_all(registry, base, names, begin, hooks or {})


def _only(outcomes: Sequence[Trained | ConceptryError]) -> Trained:
    (outcome,) = outcomes
    if isinstance(outcome, ConceptryError):
        raise outcome
    return outcome


def _run_all(
    registry: Registry,
    base: LoadedBase,
    keys: Sequence[Key],
    begin: Callable[[Concept], RunPlan],
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
        plans: list[RunPlan] = []
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
        waiting = _batches(plans)
        try:
            while waiting:
                _Batch(registry, base, waiting.pop(0), hooks_of, outcomes).run()
        except BaseException as error:
            _end([plan for batch in waiting for plan in batch], registry, "interrupted")
            if not isinstance(error, TrainingInterrupted):
                raise
            stopped = [plan for plan in plans if plan.run not in outcomes]
            names = [name_now(registry, plan.concept) for plan in stopped]
            command = f"concept train {' '.join(names)} --resume"
            interrupted = TrainingInterrupted(error.message, hint=command)
            if num_processes() > 1:
                raise interrupted from None  # the other processes have left
            outcomes |= {plan.run: interrupted for plan in stopped}
    broadcast(None)
    return broadcast([outcomes[run] if isinstance(run, str) else run for run in begun.values()])


def _end(
    plans: Sequence[RunPlan], registry: Registry, status: str, error: str | None = None
) -> None:
    """Record how runs end; runs of removed concepts are skipped."""
    for plan in plans:
        with suppress(NotFound):
            registry.end_run(plan.run, status, error=error)


def _batches(plans: Sequence[RunPlan]) -> list[list[RunPlan]]:
    """Group plans that can share a batch: same method and settings, at the same step.

    Crops of one shape make a batch where they are not square: concepts have their own then.
    """
    batches: dict[object, list[RunPlan]] = {}
    for plan in plans:
        is_square = not plan.settings.augmentation.buckets
        can_share = find_method(plan.method).keeps_base and is_square
        key = (plan.method, plan.settings, plan.position) if can_share else plan.run
        batches.setdefault(key, []).append(plan)
    return list(batches.values())


class _Batch:
    """Trainings that run as one batch, and their records in the registry.

    Hooks and outcomes, to which theirs are added, are by run id.
    """

    def __init__(
        self,
        registry: Registry,
        base: LoadedBase,
        plans: Sequence[RunPlan],
        hooks: Mapping[str, Hooks],
        outcomes: dict[str, Trained | ConceptryError],
    ) -> None:
        self._registry = registry
        self._base = base
        self._plans = plans
        self._hooks = hooks
        self._running = list(plans)
        self._outcomes = outcomes
        self._started = time.monotonic()

    def run(self) -> None:
        """Run them, and add their outcomes by run id; an error that stops them is all others'."""
        try:
            with self._recorded():
                self._train()
        except TrainingInterrupted:
            raise
        except ConceptryError as error:
            if num_processes() > 1:
                raise  # the other processes cannot continue
            self._outcomes |= {plan.run: error for plan in self._running}

    def _train(self) -> None:
        recorders, trainings = self._prepared()
        if not recorders:
            return
        broadcast([(recorder.plan, recorder.hooks_of_other_processes()) for recorder in recorders])
        trainer = Trainer(trainings, [recorder.resume_path for recorder in recorders])
        try:
            with reporting_broken_base(self._base):
                found = trainer.run()
        finally:
            for recorder, training in zip(recorders, trainings, strict=True):
                with suppress(NotFound):  # of a removed concept, as keeping it tells
                    recorder.metrics.flush()
                if error := trainer.failed.get(training):
                    self._fail(recorder.plan, self._told(recorder.plan, error))
        for recorder, learned in zip(recorders, found, strict=True):
            if isinstance(learned, ConceptryError):
                continue
            try:
                outcome = self._kept(recorder, learned, len(recorders))
            except ConceptryError as error:
                self._fail(recorder.plan, error)
                continue
            self._running.remove(recorder.plan)
            self._outcomes[recorder.plan.run] = outcome

    def _told(self, plan: RunPlan, error: ConceptryError) -> ConceptryError:
        """What made one training fail, with whose it is."""
        if not isinstance(error, TrainingFailed):
            return error
        who = name_now(self._registry, plan.concept)
        return TrainingFailed(self._on_base(who, error), hint=error.hint)

    def _kept(self, recorder: "RunRecorder", learned: LearnedAdapters, together: int) -> Trained:
        """Keep what one training learned."""
        number = recorder.keep(learned)
        with suppress(OSError):  # gc would do it
            self._registry.tidy_run_folder(recorder.plan.run)
        return self._trained(recorder, number, together)

    def _prepared(self) -> tuple[list["RunRecorder"], list[Training]]:
        recorders: list[RunRecorder] = []
        trainings: list[Training] = []
        encoder = encoder_for(self._base, self._plans[0].settings)
        for plan in self._plans:
            try:
                recorder = RunRecorder(self._registry, self._base, plan, self._hooks[plan.run])
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

    def _fail(self, plan: RunPlan, error: ConceptryError) -> None:
        _end([plan], self._registry, "failed", error.message)
        self._running.remove(plan)
        self._outcomes[plan.run] = error

    def _trained(self, recorder: "RunRecorder", number: int, together: int) -> Trained:
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
            if self._hooks[self._plans[0].run].should_stop():  # it took a compiler with it
                self._end("interrupted")
                raise TrainingInterrupted(f"{self._names()}: stopped") from error
            self._end("failed", f"{type(error).__name__}: {error}")
            raise

    def _less_memory(self) -> str:
        """What to type to need less memory."""
        from .memory import less_memory

        plan, *_ = self._plans
        return less_memory(
            find_method(plan.method),
            plan.settings,
            is_sdxl=len(self._base.backbone.text_encoders) > 1,
            together=len(self._plans),
        )

    def _on_base(self, who: str, error: ConceptryError) -> str:
        return f"{who} on {self._base.base.name}: {error.message}"

    def _names(self) -> str:
        return ", ".join(name_now(self._registry, plan.concept) for plan in self._running)

    def _end(self, status: str, error: str | None = None) -> None:
        _end(self._running, self._registry, status, error)


def _training(
    registry: Registry,
    base: LoadedBase,
    plan: RunPlan,
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

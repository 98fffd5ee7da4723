"""Working off the trainings that wait in a registry; one that fails does not stop the others.

options = TrainOptions(method="sefi", overrides=("embedding.steps=300",))
registry.enqueue(["rex", "mia"], options.to_mapping())
for outcomes in work_off(registry, partial(train_queued, registry, base)):
    ...
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ..methods.method import DEFAULT_METHOD, find_method
from ..models.bases import DEFAULT_BASE
from ..registry import Registry
from ..registry.errors import (
    ConceptryError,
    NotFound,
    RegistryBusy,
    TrainingFailed,
    TrainingInterrupted,
)
from ..registry.records import Concept, QueuedTraining
from ..registry.validation import form_of, validated

if TYPE_CHECKING:
    from ..models.loading import LoadedBase
    from .callbacks import Hooks
    from .queue import Outcome

POLL_SECONDS = 2.0
"""How often a queue is asked for more."""
_Whole = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """What `concept train` is told, beside the concepts."""

    base: str = DEFAULT_BASE
    method: str = DEFAULT_METHOD
    preset: str | None = None
    overrides: tuple[str, ...] = ()
    photos: tuple[str, ...] = ()
    """Of a single concept: by number, hash or file name."""
    seed: _Whole = 0
    resume: bool = False
    preview_every: _Whole = 100
    keep_every: _Whole = 0
    eval_every: _Whole = 0
    stop_early: bool = False
    suite: str | None = None
    clip: str | None = None
    dino: str | None = None
    tensorboard: str | None = None
    together: int | None = field(default=None, metadata={"ge": 1, "le": 1024})
    offline: bool = False

    def to_mapping(self) -> dict[str, object]:
        """As a queue keeps them: base, method, and what differs from the defaults."""
        mapping: dict[str, object] = {"base": self.base, "method": self.method}
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        usual = {each.name: each.default for each in fields(self)}
        return mapping | {name: each for name, each in values.items() if each != usual[name]}

    @classmethod
    def from_mapping(cls, options: Mapping[str, object]) -> "TrainOptions":
        """What `to_mapping` made. Raises `InvalidInput`."""
        found = validated(form_of(cls), dict(options), at="its options", noun="option")
        return cls(**found.model_dump(exclude_none=True))

    def words(self) -> list[str]:
        """The words of a command line that say so, without the concepts."""
        return self._words(self.to_mapping())

    def words_beside_run(self) -> list[str]:
        """Those of what no run records, as previews: `--resume` needs them again."""
        mapping = self.to_mapping()
        return self._words({name: each for name, each in mapping.items() if name not in _OF_A_RUN})

    def _words(self, mapping: Mapping[str, Any]) -> list[str]:
        flags = ("resume", "stop_early", "offline")
        found: list[str] = []
        for name, each in mapping.items():
            option = "--" + _OPTIONS.get(name, name.replace("_", "-"))
            if name in flags:
                found.append(option)
            elif self.resume and name == "method":
                continue
            else:
                values = each if isinstance(each, tuple) else (each,)
                found += [word for value in values for word in (option, str(value))]
        return found


_OPTIONS = {"overrides": "set", "photos": "photo"}
_OF_A_RUN = ("base", "method", "preset", "overrides", "photos", "seed", "resume")
Train = Callable[[Sequence[QueuedTraining], TrainOptions], "Iterator[list[Outcome]]"]
"""Trains some concepts with the same options; see `train_queued`."""


def train_queued(
    registry: Registry,
    base: "LoadedBase",
    trainings: Sequence[QueuedTraining],
    options: TrainOptions,
    *,
    hooks: "Callable[[int], Hooks] | None" = None,
    on_batch: Callable[[Sequence[Concept], bool], None] = lambda *_: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> "Iterator[list[Outcome]]":
    """Train what was taken from a queue; those that were begun go on. See `train_queue`.

    `on_batch` gets the concepts, and whether they go on. Of those that are trained, first of all,
    only the outcome is told.
    """
    from .callbacks import Hooks
    from .queue import train_queue

    if trained := [each for each in trainings if each.state == "trained"]:
        yield [_outcome_before(registry, each) for each in trained]
    left = [each for each in trainings if each not in trained]
    going_on = [each.concept_id for each in left if options.resume or goes_on(registry, each)]
    anew = [each.concept_id for each in left if each.concept_id not in going_on]
    for concepts, resume in ((going_on, True), (anew, False)):
        if concepts:
            yield from train_queue(
                registry,
                concepts,
                base,
                method=options.method,
                preset=options.preset,
                overrides=options.overrides,
                photos=options.photos,
                seed=options.seed,
                resume=resume,
                together=options.together,
                hooks=hooks or (lambda _: Hooks()),
                on_batch=lambda batch, resume=resume: on_batch(batch, resume),
                should_stop=should_stop,
            )


def goes_on(registry: Registry, training: QueuedTraining) -> bool:
    """Whether the run that was begun for a queued training is its concept's latest unfinished."""
    try:
        return training.run == registry.resumable_run(training.concept_id).run
    except NotFound:
        return False


def _outcome_before(registry: Registry, training: QueuedTraining) -> "Outcome":
    """Of a training that a process which is gone has ended."""
    from .queue import Outcome
    from .runs import trained_before

    found = trained_before(registry, training.concept_id, training.run or "")
    return Outcome(training.concept_id, found.concept, trained=found)


def work_off(
    registry: Registry,
    train: Train,
    *,
    watch: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    on_wait: Callable[[], None] = lambda: None,
) -> "Iterator[list[Outcome]]":
    """Train what waits in a registry's queue, in turn; yields the outcomes of each batch.

    Other processes may do so at the same time: none takes what another one has. What fails is
    marked with its reason and stays in the queue; what is done leaves it. What `should_stop` stops,
    a kill or a reboot goes on with the next call. Trainings with `eval_every` leave when the caller
    asks for the next outcomes, so that one whose best version was not chosen is told again. Ends
    when nothing is left to take or, with `watch`, when `should_stop` is true; `on_wait` is called
    whenever it begins to wait.
    """
    is_waiting = False
    while not should_stop():
        with registry.claim_queued(_how_many) as taken:
            if taken:
                is_waiting = False
                yield from _trained(registry, train, taken, should_stop)
                continue
        if not watch:
            return
        if not is_waiting:
            on_wait()
            is_waiting = True
        time.sleep(POLL_SECONDS)


def _how_many(training: QueuedTraining) -> int:
    """How many trainings with the same options share a batch with this one."""
    from .queue import batch_size

    try:
        options = TrainOptions.from_mapping(training.options)
        can_share = find_method(options.method).keeps_base and not options.resume
    except ConceptryError:
        return 1
    return batch_size(options.preset, options.together) if can_share else 1


def _trained(
    registry: Registry,
    train: Train,
    taken: Sequence[QueuedTraining],
    should_stop: Callable[[], bool],
) -> "Iterator[list[Outcome]]":
    left = {each.concept_id: each for each in taken}
    try:
        options = TrainOptions.from_mapping(taken[0].options)
        for outcomes in train(taken, options):
            done = list[int]()
            for each in outcomes:
                training = left.pop(each.concept_id)
                _note(registry, training, each.error)
                done += [training.id] if each.trained else []
            if not options.eval_every:
                _finish(registry, done)
            yield [_in_queue(each) for each in outcomes]
            if options.eval_every and not should_stop():
                _finish(registry, done)
    except ConceptryError as error:
        yield _failed(registry, left, error)
    except Exception as error:  # noqa: BLE001 (of one training; the others wait)
        what = f"{type(error).__name__}: {error}"
        names = " ".join(each.concept for each in left.values())
        hint = f"concept train {names} --debug, and report the trace"
        yield _failed(registry, left, TrainingFailed(f"unexpected {what}", hint=hint))


def _finish(registry: Registry, done: Sequence[int]) -> None:
    for training in done:
        registry.finish_queued(training)


def _in_queue(outcome: "Outcome") -> "Outcome":
    """An outcome, of which what was stopped goes on with the queue."""
    if isinstance(outcome.error, TrainingInterrupted):
        error = TrainingInterrupted(outcome.error.message, hint="concept queue run")
        return replace(outcome, error=error)
    return outcome


def _failed(
    registry: Registry, trainings: Mapping[int, QueuedTraining], error: ConceptryError
) -> "list[Outcome]":
    from .queue import Outcome

    for each in trainings.values():
        _note(registry, each, error)
    return [Outcome(each.concept_id, each.concept, error=error) for each in trainings.values()]


def _note(registry: Registry, training: QueuedTraining, error: ConceptryError | None) -> None:
    """Mark a training as failed; not one that was stopped, or that another process is at."""
    if error is not None and not isinstance(error, (TrainingInterrupted, RegistryBusy)):
        hint = f" -> {error.hint}" if error.hint else ""
        registry.fail_queued(training.id, f"{error.message}{hint}")

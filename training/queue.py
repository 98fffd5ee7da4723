"""`train_queue`: train many concepts, some at a time; one that fails does not stop the others."""

import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from ..methods.method import DEFAULT_METHOD, find_method
from ..models.loading import LoadedBase
from ..registry import Registry
from ..registry.errors import ConceptryError, TrainingInterrupted
from ..registry.records import Concept, ConceptKey
from .callbacks import Hooks, ignore, never
from .distributed import num_processes
from .run_recorder import name_now
from .runs import Trained, resume_many, train_many

TOGETHER = 8
"""Concepts trained in one batch, by methods that keep the base model."""

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a training of a queue ended: `trained` or `error` is set."""

    concept_id: int
    name: str
    """The concept's present name; its last one, if it was removed."""
    trained: Trained | None = None
    error: ConceptryError | None = None
    """Several concepts of a batch may share one error."""


def train_queue(
    registry: Registry,
    names: Sequence[ConceptKey],
    base: LoadedBase,
    *,
    method: str = DEFAULT_METHOD,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    photos: Sequence[str] = (),
    seed: int = 0,
    resume: bool = False,
    together: int | None = None,
    hooks: Callable[[int], Hooks] = lambda _: Hooks(),
    on_batch: Callable[[Sequence[Concept]], None] = ignore,
    should_stop: Callable[[], bool] = never,
) -> Iterator[list[Outcome]]:
    """Train concepts in batches, see `in_batches`; yields the outcomes of each batch as it ends.

    Methods that change the base model train one concept at a time. `resume` continues the latest
    unfinished training of each, with the settings that it began with. `photos` are as for `train`.
    Before a batch begins,
    `on_batch` gets its concepts, then `hooks` is called with each concept's id, while no adapter is
    injected; if it raises, that concept has failed. Once `should_stop` is true, no further batch
    begins, and the outcome of what is left is `TrainingInterrupted`; the hooks decide whether the
    running batch stops.

    Concepts may be renamed or removed during the call. Raises `NotFound` for an unknown concept or
    method; with several processes also what stops a whole batch.
    """
    if resume:
        run_batch = partial(resume_many, registry, base=base)
        again = ["--resume"]
    else:
        run_batch = partial(
            train_many,
            registry,
            base=base,
            method=method,
            preset=preset,
            overrides=overrides,
            photos=photos,
            seed=seed,
        )
        again = ["--base", base.base.name, "--method", method, "--seed", str(seed)]
        again += ["--preset", preset] if preset else []
        again += [word for each in overrides for word in ("--set", each)]
        again += [word for each in photos for word in ("--photo", each)]
    concepts = {concept.id: concept for concept in map(registry.show, names)}
    waiting = in_batches(
        registry, list(concepts), method, preset=preset, together=together, resume=resume
    )
    while waiting and not should_stop():
        batch = waiting.pop(0)
        results = _results(registry, batch, run_batch, hooks, on_batch)
        yield [_outcome(registry, concepts[each], results[each]) for each in batch]
    if left := [concepts[each] for batch in waiting for each in batch]:
        called = [name_now(registry, concept) for concept in left]
        hint = shlex.join(["concept", "train", *called, *again])
        error = TrainingInterrupted(f"{', '.join(called)}: not begun", hint=hint)
        yield [_outcome(registry, concept, error) for concept in left]


def _outcome(registry: Registry, concept: Concept, result: Trained | ConceptryError) -> Outcome:
    if isinstance(result, Trained):
        return Outcome(concept.id, result.concept, trained=result)
    return Outcome(concept.id, name_now(registry, concept), error=result)


def in_batches(
    registry: Registry,
    concepts: Sequence[int],
    method: str,
    *,
    preset: str | None = None,
    together: int | None = None,
    resume: bool = False,
) -> list[list[int]]:
    """Split concepts into batches, in order; with `resume`, by the methods they began with.

    A batch has up to `together` concepts, see `batch_size`.
    """
    size = batch_size(preset, together)

    def can_share(concept: int) -> bool:
        own = registry.resumable_run(concept).method if resume else method
        return find_method(own).keeps_base

    batches = list[list[int]]()
    for concept in concepts:
        has_room = bool(batches) and len(batches[-1]) < size
        if has_room and can_share(batches[-1][0]) and can_share(concept):
            batches[-1].append(concept)
        else:
            batches.append([concept])
    return batches


def batch_size(preset: str | None, together: int | None) -> int:
    """How many share a batch: `together`; by default `TOGETHER`, or 1 with a card's presets."""
    return together or (1 if re.match(r"\d+gb", preset or "") else TOGETHER)


def _results(
    registry: Registry,
    batch: Sequence[int],
    run_batch: Callable[..., list[Trained | ConceptryError]],
    hooks: Callable[[int], Hooks],
    on_batch: Callable[[Sequence[Concept]], None],
) -> dict[int, Trained | ConceptryError]:
    """The result of each concept of a batch."""
    results = dict[int, Trained | ConceptryError]()
    concepts = _collect(batch, registry.show, results)
    on_batch(list(concepts.values()))
    begun = _collect(concepts, hooks, results)
    try:
        ended = run_batch(list(begun), hooks=begun) if begun else []
    except ConceptryError as error:
        if num_processes() > 1:
            raise  # the others cannot follow any further
        ended = [error] * len(begun)
    return results | dict(zip(begun, ended, strict=True))


def _collect(
    concepts: Iterable[int],
    get: Callable[[int], _Value],
    errors: dict[int, Trained | ConceptryError],
) -> dict[int, _Value]:
    """`get` of each concept; those for which it raises go into `errors`."""
    values = dict[int, _Value]()
    for concept in concepts:
        try:
            values[concept] = get(concept)
        except ConceptryError as error:
            errors[concept] = error
    return values

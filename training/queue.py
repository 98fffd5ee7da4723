"""`train_queue`: many concepts one after another, or some at a time; what fails stops no other."""

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
from .callbacks import Hooks
from .distributed import num_processes
from .runs import Trained, name_now, resume_many, train_many

TOGETHER = 8
"""Concepts in one batch, by methods that keep the base model as it is."""

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the training of a concept in a queue ended: with a version, or an error."""

    concept_id: int
    name: str
    """What the concept is called by now; the last that is known, if it was removed."""
    trained: Trained | None = None
    error: ConceptryError | None = None
    """One error may be that of several concepts of a batch."""


def _no_hooks(_: int) -> Hooks:
    return Hooks()


def _nothing(_: Sequence[Concept]) -> None:
    """Told to nobody."""


def _no() -> bool:
    return False


def train_queue(
    registry: Registry,
    names: Sequence[ConceptKey],
    base: LoadedBase,
    *,
    method: str = DEFAULT_METHOD,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    seed: int = 0,
    resume: bool = False,
    together: int = TOGETHER,
    hooks: Callable[[int], Hooks] = _no_hooks,
    on_batch: Callable[[Sequence[Concept]], None] = _nothing,
    should_stop: Callable[[], bool] = _no,
) -> Iterator[list[Outcome]]:
    """Teach concepts, up to `together` in a batch; yields what came of each batch as it ends.

    Methods that keep the base model share a batch, the others teach one concept after another.
    With `resume`, go on with the latest training of each that did not end, as it was set up then.
    `on_batch` gets the concepts of a batch before it begins, then `hooks` is asked, by id, for
    those of each one, while the base model is bare; where that raises, the concept has failed.
    Once `should_stop` is true, nothing more is begun, and what was not is interrupted; the hooks
    say whether the batch under way stops.

    Concepts may be renamed or removed meanwhile. Raises `NotFound` for an unknown concept or
    method; in several processes also what stops a whole batch.
    """
    if resume:
        teach = partial(resume_many, registry, base=base)
        again = ["--resume"]
    else:
        chosen = {"method": method, "preset": preset, "overrides": overrides, "seed": seed}
        teach = partial(train_many, registry, base=base, **chosen)
        again = ["--base", base.base.name, "--method", method, "--seed", str(seed)]
        again += ["--preset", preset] if preset else []
        again += [word for each in overrides for word in ("--set", each)]
    concepts = {concept.id: concept for concept in map(registry.show, names)}
    waiting = in_batches(registry, list(concepts), method, together=together, resume=resume)
    while waiting and not should_stop():
        batch = waiting.pop(0)
        results = _results(registry, batch, teach, hooks, on_batch)
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
    together: int = TOGETHER,
    resume: bool = False,
) -> list[list[int]]:
    """Which concepts are taught at once, in their order; with `resume`, by their own methods."""

    def can_share(concept: int) -> bool:
        own = registry.resumable_run(concept).method if resume else method
        return find_method(own).keeps_base

    batches = list[list[int]]()
    for concept in concepts:
        has_room = bool(batches) and len(batches[-1]) < together
        if has_room and can_share(batches[-1][0]) and can_share(concept):
            batches[-1].append(concept)
        else:
            batches.append([concept])
    return batches


def _results(
    registry: Registry,
    batch: Sequence[int],
    teach: Callable[..., list[Trained | ConceptryError]],
    hooks: Callable[[int], Hooks],
    on_batch: Callable[[Sequence[Concept]], None],
) -> dict[int, Trained | ConceptryError]:
    """What came of each concept of a batch."""
    results = dict[int, Trained | ConceptryError]()
    there = _asked(batch, registry.show, results)
    on_batch(list(there.values()))
    begun = _asked(there, hooks, results)
    try:
        ended = teach(list(begun), hooks=begun) if begun else []
    except ConceptryError as error:
        if num_processes() > 1:
            raise  # the others cannot follow any further
        ended = [error] * len(begun)
    return results | dict(zip(begun, ended, strict=True))


def _asked(
    concepts: Iterable[int],
    question: Callable[[int], _Answer],
    errors: dict[int, Trained | ConceptryError],
) -> dict[int, _Answer]:
    """The answers for concepts; an error is put beside those of others."""
    answers = dict[int, _Answer]()
    for concept in concepts:
        try:
            answers[concept] = question(concept)
        except ConceptryError as error:
            errors[concept] = error
    return answers

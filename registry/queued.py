"""Trainings that wait in the registry for their turn, and who works them off.

What is taken is held by a lock on its concept, which dies with its holder: what a kill leaves as
running counts as interrupted, and is taken first by whoever comes next. The run that is begun for a
queued training is noted in the transaction that begins it, and that it is trained in the one that
ends the run (see `lineage`): it is neither lost nor done twice. Whoever took it then lets it leave
the queue, once all that was asked for with it is done.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress

from sqlmodel import Session, col, func, select

from .clock import now
from .edits import existing_row, record_event
from .errors import ConceptryError, InvalidInput, NotFound, RegistryBusy
from .locks import is_queue_alive, is_training, queue_lock
from .names import plain_text
from .queries import queue, to_json
from .records import TO_DO, ConceptKey, QueuedTraining
from .store import Store
from .tables import Concept, Queued, Run

MAX_QUEUED = 10_000
"""Trainings in a queue."""


def add(
    store: Store, keys: Sequence[ConceptKey], options: Mapping[str, object], *, first: bool
) -> list[QueuedTraining]:
    """Put a training of each concept into the queue; see `Registry.enqueue`."""
    rows: list[Queued] = []
    with store.database.write() as session:
        if session.exec(select(func.count(col(Queued.id)))).one() + len(keys) > MAX_QUEUED:
            raise InvalidInput(
                f"a queue holds {MAX_QUEUED:,} trainings", hint="concept queue rm --all"
            )
        for position, key in zip(_places(session, len(keys), first), keys, strict=True):
            concept = existing_row(session, store.database, key)
            row = Queued(
                concept_id=concept.id,
                position=position,
                options=to_json(options),
                state="waiting",
                added=now(),
            )
            session.add(row)
            rows.append(row)
            record_event(session, concept, "queue", method=options.get("method"))
        session.flush()
        ids = [row.id for row in rows]
    return _those(store, ids)


def _places(session: Session, count: int, first: bool) -> range:
    """Positions for some trainings before or behind all others."""
    if first:
        lowest = session.exec(select(func.min(Queued.position))).one() or 0
        return range(lowest - count, lowest)
    highest = session.exec(select(func.max(Queued.position))).one() or 0
    return range(highest + 1, highest + 1 + count)


def remove(store: Store, ids: Sequence[int]) -> list[QueuedTraining]:
    """Take trainings out of the queue; see `Registry.dequeue`."""
    found = _those(store, ids)
    with store.database.write() as session:
        for each in found:
            row = session.get(Queued, each.id)
            if row is None:
                continue
            if row.state == "running" and is_queue_alive(store.location, row.concept_id):
                raise RegistryBusy(
                    f"training {each.id}, of {each.concept}, is under way",
                    hint="stop it first, with Ctrl-C where concept queue run is",
                )
            session.delete(row)
            concept = session.get_one(Concept, row.concept_id)
            record_event(session, concept, "dequeue", run=each.run)
    return found


def put_first(store: Store, ids: Sequence[int]) -> list[QueuedTraining]:
    """Let trainings be next, in this order; see `Registry.put_first`."""
    found = _those(store, ids)
    if failed := [each for each in found if each.state == "failed"]:
        raise InvalidInput(
            f"training {failed[0].id}, of {failed[0].concept}, has failed",
            hint="concept queue run --failed tries it again",
        )
    with store.database.write() as session:
        for position, each in zip(_places(session, len(found), True), found, strict=True):
            if row := session.get(Queued, each.id):
                row.position = position
    return _those(store, ids)


def retry(store: Store) -> None:
    """Give those that failed another turn; see `Registry.retry_failed`."""
    with store.database.write() as session:
        for row in session.exec(select(Queued).where(Queued.state == "failed")):
            row.state, row.error = "waiting", None


def finish(store: Store, training: int) -> None:
    """Let a training leave the queue; see `Registry.finish_queued`."""
    with store.database.write() as session:
        if row := session.get(Queued, training):
            session.delete(row)


def _those(store: Store, ids: Sequence[int]) -> list[QueuedTraining]:
    """Queued trainings by their ids, each once; raises `NotFound`."""
    known = {each.id: each for each in queue(store.database)}
    if missing := [each for each in ids if each not in known]:
        raise NotFound(f"there is no training {missing[0]} in the queue", hint="concept queue list")
    return [known[each] for each in dict.fromkeys(ids)]


@contextmanager
def claim(
    store: Store, how_many: Callable[[QueuedTraining], int]
) -> Iterator[list[QueuedTraining]]:
    """Take the next trainings that nobody works on; see `Registry.claim_queued`."""
    taken: list[QueuedTraining] = []
    with ExitStack() as locks:
        try:
            for each in queue(store.database):
                if taken and not (len(taken) < how_many(taken[0]) and _go_together(taken[0], each)):
                    break
                if each.state in TO_DO and _is_taken(locks, store, each):
                    taken.append(each)
            yield taken
        finally:
            _release(store, taken)


def _go_together(first: QueuedTraining, other: QueuedTraining) -> bool:
    return first.options == other.options and first.state == other.state


def _is_taken(locks: ExitStack, store: Store, training: QueuedTraining) -> bool:
    """Take a training, unless somebody else has, or trains its concept by hand."""
    concept = training.concept_id
    with ExitStack() as own:
        if not own.enter_context(queue_lock(store.location, concept)):
            return False
        if is_training(store.location, concept):
            return False
        with store.database.write() as session:
            row = session.get(Queued, training.id)
            if row is None or row.state == "failed":  # since we looked
                return False
            row.state = "running"
        locks.enter_context(own.pop_all())
    store.claimed[concept] = training.id
    return True


def _release(store: Store, taken: Sequence[QueuedTraining]) -> None:
    for each in taken:
        store.claimed.pop(each.concept_id, None)
    with suppress(ConceptryError), store.database.write() as session:  # else they count as such
        for each in taken:
            row = session.get(Queued, each.id)
            if row is not None and row.state == "running":
                row.state = "waiting"


def fail(store: Store, training: int, message: str) -> None:
    """Record why a training cannot be done; see `Registry.fail_queued`."""
    with store.database.write() as session:
        if row := session.get(Queued, training):
            row.state, row.error = "failed", plain_text(message)


# --- with the runs of trainings that were taken ---------------------------------------------------


def note_begun(session: Session, store: Store, run: Run) -> None:
    """Note that a run was begun for the training that this process has taken, if it has."""
    if taken := store.claimed.get(run.concept_id):
        row = session.get(Queued, taken)
        if row is not None:
            row.run_id = run.id


def note_ended(session: Session, store: Store, run: Run, status: str, error: str | None) -> None:
    """Take the training that a run was begun for out of the queue, if it was done by hand."""
    for row in session.exec(select(Queued).where(Queued.run_id == run.id)):
        if status == "done" and store.claimed.get(run.concept_id) != row.id:
            session.delete(row)
        elif status == "failed":
            row.state, row.error = "failed", error

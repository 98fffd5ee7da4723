"""What made what: runs, the versions they leave, scores, and the pictures drawn with them."""

import math
import secrets
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from sqlmodel import Session, col, func, select

from .blobs import CHUNK, Staging
from .clock import now
from .edits import existing_row, record_event, refresh
from .errors import InvalidInput, NotFound
from .hashes import is_sha256
from .locks import begun_here
from .names import (
    check_alias,
    check_category,
    check_file_name,
    check_text,
    findable,
    plain_line,
    plain_text,
)
from .queries import began_here, loaded, to_json
from .queued import note_begun, note_ended
from .records import ConceptKey, EvaluationRecord, Lineage, LineageSource, Scored
from .store import Store
from .tables import (
    Alias,
    Artifact,
    Concept,
    Evaluation,
    Event,
    Generation,
    GenerationVersion,
    Image,
    Metric,
    Run,
    RunImage,
    Version,
)
from .tensors import check_weights

RUN_STATUSES = ("running", "done", "interrupted", "failed")
MAX_VERSION = 999_999_999
"""The highest number that a version may have."""
REMOVED_VERSION = "remove version"
"""The event of a version that was removed; its number is not given again."""
IMPORTED = "import"
"""The event of a concept that came in a bundle, with the last number given where it came from."""


def begin_run(
    store: Store,
    key: ConceptKey,
    *,
    method: str,
    config: Mapping[str, object],
    base: str,
    base_sha256: str,
    seed: int,
    packages: Mapping[str, str],
) -> str:
    """Record that a training begins; see `Registry.begin_run`."""
    _check_integer(seed, "seed")
    uid = secrets.token_hex(6)
    with store.database.write() as session:
        concept = existing_row(session, store.database, key)
        _next_number(session, concept)
        run = Run(
            uid=uid,
            concept_id=concept.id,
            method=plain_line(method, "method"),
            config=to_json(check_config(config)),
            base=plain_text(base),
            base_sha256=plain_text(base_sha256),
            seed=seed,
            packages=to_json(
                {plain_line(key, "package"): plain_text(value) for key, value in packages.items()}
            ),
            host=plain_text(socket.gethostname()),
            status="running",
            started=now(),
        )
        session.add(run)
        session.flush()
        query = select(Image.sha256).where(Image.concept_id == concept.id)
        photos = session.exec(query).all()
        if isinstance(chosen := config.get("photos"), (list, tuple)):
            photos = [each for each in photos if each in chosen]
        session.add_all(RunImage(run_id=run.id, sha256=sha256) for sha256 in photos)
        note_begun(session, store, run)
        record_event(session, concept, "train", run=uid, method=method)
    store.stamp()
    begun_here.add(uid)
    return uid


def end_run(store: Store, uid: str, status: str, *, error: str | None) -> None:
    """Record how a training ended; see `Registry.end_run`."""
    if status not in RUN_STATUSES:
        raise InvalidInput(f"{status!r} is no run status", hint=", ".join(RUN_STATUSES))
    error = plain_text(error) if error is not None else None
    with store.database.write() as session:
        run = _run_row(session, uid)
        _end(session, store, session.get_one(Concept, run.concept_id), run, status, error)
    begun_here.discard(uid)


def _end(
    session: Session, store: Store, concept: Concept, run: Run, status: str, error: str | None
) -> None:
    run.status, run.error, run.finished = status, error, now()
    note_ended(session, store, run, status, error)
    record_event(session, concept, "trained", run=run.uid, status=status)


def resume_run(store: Store, uid: str) -> None:
    """Record that a run goes on; see `Registry.resume_run`."""
    with store.database.write() as session:
        run = _run_row(session, uid)
        concept = session.get_one(Concept, run.concept_id)
        if not began_here(store.database, uid):
            raise InvalidInput(
                f"run {uid} of {concept.name} was imported: it cannot go on here",
                hint=f"concept train {concept.name}",
            )
        run.status, run.error, run.finished = "running", None, None
        note_begun(session, store, run)
        record_event(session, concept, "resume", run=uid)
    begun_here.add(uid)


def log_metrics(store: Store, uid: str, rows: Iterable[tuple[str, int, str, float]]) -> None:
    """Record numbers of training steps; see `Registry.log_metrics`."""
    with store.database.write() as session:
        run = _run_row(session, uid)
        for stage, step, name, value in rows:
            _check_integer(step, "step")
            if math.isnan(value):
                raise InvalidInput(f"{name} at step {step} of {stage} is not a number")
            session.merge(
                Metric(
                    run_id=run.id,
                    stage=plain_line(stage, "stage"),
                    step=step,
                    name=plain_line(name, "metric"),
                    value=value,
                )
            )


def metrics(store: Store, uid: str) -> list[tuple[str, int, str, float]]:
    """The numbers of a run, in the order of its stages; see `Registry.metrics`."""
    with store.database.read() as session:
        run = _run_row(session, uid)
        rows = session.exec(select(Metric).where(Metric.run_id == run.id)).all()
        found = [(row.stage, row.step, row.name, row.value) for row in rows]
        order = {stage: number for number, stage in enumerate(loaded(run.config))}
    return sorted(found, key=lambda row: (order.get(row[0], len(order)), *row[:3]))


def add_version(
    store: Store,
    key: ConceptKey,
    files: Mapping[str, Path],
    *,
    run: str | None,
    kind: str,
    alias: str | None,
    evaluation: Callable[[int], Scored] | None,
    origin: Mapping[str, object],
) -> int:
    """Store weights as the next version of a concept; see `Registry.add_version`."""
    if alias is not None:
        check_alias(alias)
    with store.receive() as staging:
        stored = _stored(staging, files, kind)
        with store.database.write() as session:
            concept = existing_row(session, store.database, key)
            made_by = _run_row(session, run) if run is not None else None
            version = _insert_version(session, concept, stored, made_by, origin)
            if evaluation is not None:
                _insert_evaluation(session, concept, version, **evaluation(version.number))
            if alias is not None:
                _set_alias(session, concept, version, alias)
    return version.number


def finish_run(store: Store, uid: str, files: Mapping[str, Path], *, kind: str) -> int:
    """Store the result of a run, and mark it done; see `Registry.finish_run`."""
    with store.receive() as staging:
        stored = _stored(staging, files, kind)
        with store.database.write() as session:
            run = _run_row(session, uid)
            if run.status == "done":
                raise InvalidInput(f"the run {uid} is done already")
            concept = session.get_one(Concept, run.concept_id)
            version = _insert_version(session, concept, stored, run, {})
            _end(session, store, concept, run, "done", None)
    begun_here.discard(uid)
    return version.number


def _stored(staging: Staging, files: Mapping[str, Path], kind: str) -> list[Artifact]:
    """Take in weights and publish them; the rows still lack what they belong to."""
    stored: list[Artifact] = []
    moment = now()
    for file_name, path in files.items():
        check_file_name(file_name)
        check_weights(path)
        with path.open("rb") as file:
            sha256 = staging.write(_chunks(file))
        staged = staging.path(sha256)
        check_weights(staged, name=file_name)  # it may have been changed since
        stored.append(
            Artifact(
                name=file_name,
                kind=plain_line(kind, "kind"),
                sha256=sha256,
                bytes=staged.stat().st_size,
                created=moment,
            )
        )
    staging.publish()
    return stored


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    return iter(lambda: file.read(CHUNK), b"")


def _insert_version(
    session: Session,
    concept: Concept,
    stored: Sequence[Artifact],
    run: Run | None,
    origin: Mapping[str, object],
) -> Version:
    version = Version(
        concept_id=concept.id,
        number=_next_number(session, concept),
        run_id=run.id if run else None,
        created=now(),
    )
    session.add(version)
    session.flush()
    for artifact in stored:
        artifact.version_id = version.id
    session.add_all(stored)
    refresh(session, concept)
    uid = run.uid if run else None
    record_event(session, concept, "version", number=version.number, run=uid, **origin)
    return version


def _next_number(session: Session, concept: Concept) -> int:
    """The number of a concept's next version: one that none ever had, so that pictures keep theirs.

    Raises `InvalidInput` beyond the last one.
    """
    number = last_number(session, concept) + 1
    if number > MAX_VERSION:
        raise InvalidInput(
            f"{concept.name} has had a version numbered {number - 1}: there is no next one",
            hint="add its photos under another name: concept add NAME PHOTO… --category WORD",
        )
    return number


def last_number(session: Session, concept: Concept) -> int:
    """The highest number that a version of a concept ever had; 0 if it had none."""
    there = select(func.max(Version.number)).where(Version.concept_id == concept.id)
    events = select(Event.detail).where(
        Event.concept_id == concept.id, col(Event.action).in_((REMOVED_VERSION, IMPORTED))
    )
    gone = [loaded(detail).get("number") for detail in session.exec(events)]
    numbers = [session.exec(there).one(), *gone]
    return max((each for each in numbers if isinstance(each, int)), default=0)


def set_alias(store: Store, key: ConceptKey, number: int, alias: str) -> None:
    """Let `alias` stand for a version; see `Registry.set_alias`."""
    check_alias(alias)
    with store.database.write() as session:
        concept = existing_row(session, store.database, key)
        _set_alias(session, concept, _version_row(session, concept, number), alias)


def _set_alias(session: Session, concept: Concept, version: Version, alias: str) -> None:
    session.merge(Alias(concept_id=concept.id, alias=alias, version_id=version.id))
    record_event(session, concept, "alias", alias=alias, number=version.number)


def add_evaluation(
    store: Store,
    key: ConceptKey,
    number: int,
    *,
    suite: str,
    config: Mapping[str, object],
    scores: Mapping[str, object],
) -> None:
    """Record the scores of a version; see `Registry.add_evaluation`."""
    with store.database.write() as session:
        concept = existing_row(session, store.database, key)
        version = _version_row(session, concept, number)
        _insert_evaluation(session, concept, version, suite=suite, config=config, scores=scores)


def _insert_evaluation(
    session: Session,
    concept: Concept,
    version: Version,
    *,
    suite: str,
    config: Mapping[str, object],
    scores: Mapping[str, object],
) -> None:
    session.add(
        Evaluation(
            version_id=version.id,
            suite=plain_line(suite, "suite"),
            config=to_json(config),
            scores=to_json(check_scores(scores)),
            created=now(),
        )
    )
    record_event(session, concept, "evaluate", number=version.number, suite=suite)


def evaluations(store: Store, key: ConceptKey) -> list[EvaluationRecord]:
    """What was scored of a concept, oldest first; see `Registry.evaluations`."""
    with store.database.read() as session:
        concept = existing_row(session, store.database, key)
        rows = session.exec(
            select(Version.number, Evaluation)
            .where(Evaluation.version_id == Version.id, Version.concept_id == concept.id)
            .order_by(col(Evaluation.id))
        ).all()
        num_imported = len(rows) - _num_made_here(session, concept)
        return [
            EvaluationRecord(
                number,
                row.suite,
                loaded(row.config),
                loaded(row.scores),
                row.created,
                is_imported=i < num_imported,
            )
            for i, (number, row) in enumerate(rows)
        ]


def _num_made_here(session: Session, concept: Concept) -> int:
    """How many evaluations were made here, by history; those that were imported came before.

    History also has those of versions that were removed, and their scores with them.
    """
    made = select(Event.detail).where(Event.concept_id == concept.id, Event.action == "evaluate")
    numbers = session.exec(select(Version.number).where(Version.concept_id == concept.id)).all()
    return sum(loaded(detail).get("number") in numbers for detail in session.exec(made))


def add_generation(
    store: Store,
    output_sha256: str,
    *,
    prompt: str,
    seed: int,
    base: str,
    base_sha256: str,
    settings: Mapping[str, object],
    versions: Sequence[tuple[ConceptKey, int]],
) -> None:
    """Record a picture; see `Registry.add_generation`."""
    check_text(prompt, "prompt")
    _check_integer(seed, "seed")
    if not is_sha256(output_sha256):
        raise InvalidInput(f"{output_sha256!r} is not a SHA-256")
    with store.database.write() as session:
        picture = Generation(
            output_sha256=output_sha256,
            prompt=prompt,
            seed=seed,
            base=base,
            base_sha256=base_sha256,
            settings=to_json(settings),
            created=now(),
        )
        session.add(picture)
        session.flush()
        for key, number in versions:
            if isinstance(key, int) and session.get(Concept, key) is None:
                continue  # removed while it was drawn: the picture stays, as it does afterwards
            concept = existing_row(session, store.database, key)
            version = _version_row(session, concept, number)
            session.add(GenerationVersion(generation_id=picture.id, version_id=version.id))


_TRACE_SQL = """
    SELECT generation.id AS id, prompt, generation.seed AS seed, generation.base AS base, settings,
        concept.name AS concept, number AS version, run.uid AS run, method,
        run_image.sha256 AS image
    FROM generation
        LEFT JOIN generation_version ON generation_id = generation.id
        LEFT JOIN version ON version.id = version_id
        LEFT JOIN concept ON concept.id = version.concept_id
        LEFT JOIN run ON run.id = version.run_id
        LEFT JOIN run_image ON run_image.run_id = run.id
    WHERE output_sha256 = :sha256
    ORDER BY generation.id DESC, concept.name, number, run_image.sha256"""


def trace(store: Store, output_sha256: str) -> Lineage:
    """What made a picture; see `Registry.trace`."""
    rows = store.database.rows(_TRACE_SQL, sha256=output_sha256)
    if not rows:
        raise NotFound(f"no picture with the hash {output_sha256} was drawn with this registry")
    latest = rows[0]
    sources: dict[tuple[str, int], LineageSource] = {}
    for row in rows:
        name, number = row["concept"], row["version"]
        if row["id"] == latest["id"] and name is not None:
            new = LineageSource(name, number, row["run"], row["method"], [])
            source = sources.setdefault((name, number), new)
            source.images.extend([row["image"]] if row["image"] else [])
    return Lineage(
        latest["prompt"],
        latest["seed"],
        latest["base"],
        loaded(latest["settings"]),
        list(sources.values()),
    )


def check_config(config: Mapping[str, object]) -> Mapping[str, object]:
    """Check the photos and category in a run's config; methods check the other settings."""
    photos, category = config.get("photos", []), config.get("category", "thing")
    if not isinstance(photos, (list, tuple)) or not all(map(_is_hash, photos)):
        raise InvalidInput("photos are not hashes")
    if not isinstance(category, str) or check_category(category) != category:
        raise InvalidInput("the category is not valid")
    return config


def check_scores(scores: Mapping[str, object]) -> Mapping[str, object]:
    """Scores, if pictures are named by hashes wherever they are named."""
    waiting: list[object] = [scores]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            if not _is_hash(value.get("picture", "0" * 64)):
                raise InvalidInput("a picture is not named by a hash")
            waiting += value.values()
        elif isinstance(value, (list, tuple)):
            waiting += value
    return scores


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and is_sha256(value)


def _check_integer(value: int, what: str) -> None:
    if not -(1 << 63) <= value < 1 << 63:
        raise InvalidInput(f"the {what} {value} does not fit into 64 bits")


def _run_row(session: Session, uid: str) -> Run:
    run = session.exec(select(Run).where(Run.uid == findable(uid))).one_or_none()
    if run is None:
        raise NotFound(f'there is no run "{uid}"')
    return run


def _version_row(session: Session, concept: Concept, number: int) -> Version:
    query = select(Version).where(Version.concept_id == concept.id, Version.number == number)
    version = session.exec(query).one_or_none() if 0 < number < 1 << 63 else None
    if version is None:
        raise NotFound(
            f'"{concept.name}" has no version {number}', hint=f"concept show {concept.name}"
        )
    return version

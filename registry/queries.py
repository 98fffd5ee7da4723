"""The reads, in SQL, run on the plain connection: no library has to be loaded for them."""

import json
import sqlite3
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from .database import Database
from .disk import kept_bytes
from .errors import ConceptNotFound, InvalidInput, RegistryCorrupt
from .location import Location
from .locks import is_alive, is_queue_alive
from .names import MAX_TEXT
from .records import (
    ArtifactRecord,
    Concept,
    ConceptKey,
    ConceptSummary,
    EventRecord,
    ImageRecord,
    Page,
    PictureRecord,
    QueuedTraining,
    RunRecord,
    VersionRecord,
)

_Record = TypeVar("_Record")
MAX_WORDS = 32
MAX_SEARCH = 1_000
MAX_DEPTH = 64
"""Of lists and mappings in a JSON column."""
_MAX_FOLDED = 4 * MAX_TEXT
_MAX_SEARCH_TEXT = 16 << 20
"""Characters; what is beyond is not found, since a row of SQLite has a limit."""
SORTS = ("name", "created", "updated", "images", "versions", "bytes", "size")

_MAX_INTEGER = (1 << 63) - 1


def search_text(
    name: str, category: str, notes: str, tags: Sequence[str], captions: Sequence[str | None]
) -> str:
    """What a text search looks through, as `Concept.search` stores it."""
    parts = dict.fromkeys([name, category, notes, *tags, *filter(None, captions)])
    return "\n".join(fold(part)[:_MAX_FOLDED] for part in parts)[:_MAX_SEARCH_TEXT]


def fold(text: str) -> str:
    """Make letters comparable: compatibility forms and case are levelled."""
    return unicodedata.normalize("NFKC", text).casefold()


_TAGS = "(SELECT group_concat(tag, ' ') FROM tag WHERE concept_id = concept.id)"
_NUM_IMAGES = "(SELECT count(*) FROM image WHERE concept_id = concept.id)"
_NUM_VERSIONS = "(SELECT count(*) FROM version WHERE concept_id = concept.id)"
_BYTES = """(
    SELECT coalesce(sum(bytes), 0) FROM (
        SELECT sha256, bytes FROM image WHERE concept_id = concept.id
        UNION SELECT mask, mask_bytes FROM image WHERE concept_id = concept.id
        UNION SELECT sha256, bytes FROM artifact JOIN version ON version.id = version_id
            WHERE version.concept_id = concept.id
        UNION SELECT sha256, bytes FROM artifact JOIN run ON run.id = artifact.run_id
            WHERE run.concept_id = concept.id
    )
)"""
"""Of all stored files of a concept, each counted once."""
_DISK = f"""{_BYTES} + (
    SELECT coalesce(sum(value), 0) FROM json_each(:kept) JOIN run ON uid = key
    WHERE run.concept_id = concept.id
)"""  # noqa: S608
_SORT_KEYS = {
    "name": "name",
    "created": "created",
    "updated": "updated",
    "images": _NUM_IMAGES,
    "versions": _NUM_VERSIONS,
    "bytes": _BYTES,
    "size": _DISK,
}


def find_concepts(
    database: Database,
    *,
    text: str = "",
    tags: Sequence[str] = (),
    category: str | None = None,
    sort: str = "name",
    descending: bool = False,
    limit: int = 50,
    page: int = 1,
) -> Page:
    """The concepts that fit; see `Registry.find`."""
    if sort not in SORTS:
        raise InvalidInput(f"cannot sort by {sort!r}", hint="sort by " + ", ".join(SORTS))
    if page < 1 or limit < 0:
        raise InvalidInput("pages count from 1, and a limit is 0 (all) or more")
    words = list(dict.fromkeys(fold(text).split()))
    if len(words) + len(tags) > MAX_WORDS or len(text) > MAX_SEARCH:
        raise InvalidInput(
            f"search for at most {MAX_WORDS} words and tags, {MAX_SEARCH:,} characters"
        )
    where = _conditions(len(words), len(tags), category is not None)
    parameters: dict[str, object] = {f"tag{i}": tag for i, tag in enumerate(tags)}
    parameters |= {f"word{i}": f"%{_escaped(word)}%" for i, word in enumerate(words)}
    if category is not None:
        parameters["category"] = category
    location = Location(database.path)
    kept = kept_bytes(location) if sort == "size" else {}
    by_size = {"kept": json.dumps(kept)} if sort == "size" else {}
    with database.snapshot():
        (total,) = database.rows(_count_sql(where), **parameters)[0]
        rows = database.rows(
            _page_sql(sort, descending, where),
            **parameters,
            **by_size,
            limit=min(limit, _MAX_INTEGER) or -1,
            offset=min(limit * (page - 1), _MAX_INTEGER),
        )
        ids = json.dumps([row["id"] for row in rows])
        runs = database.rows(_RUNS_OF_SQL, ids=ids)
    kept = kept or kept_bytes(location, [run["uid"] for run in runs])
    of_trainings: defaultdict[int, int] = defaultdict(int)
    for run in runs:
        of_trainings[run["concept_id"]] += kept.get(run["uid"], 0)
    concepts = [
        ConceptSummary(
            row["name"],
            row["category"],
            _words(row["tags"]),
            row["notes"],
            row["images"],
            row["versions"],
            row["bytes"],
            row["created"],
            row["updated"],
            size=row["bytes"] + of_trainings[row["id"]],
        )
        for row in rows
    ]
    return Page(concepts, total, page, max(1, -(-total // limit)) if limit else 1)


def _page_sql(sort: str, descending: bool, where: str) -> str:
    return f"""
        SELECT id, name, category, {_TAGS} AS tags, notes, {_NUM_IMAGES} AS images,
            {_NUM_VERSIONS} AS versions, {_BYTES} AS bytes, created, updated
        FROM concept {where}
        ORDER BY {_SORT_KEYS[sort]} {"DESC" if descending else "ASC"}, name
        LIMIT :limit OFFSET :offset"""  # noqa: S608


_RUNS_OF_SQL = """
    SELECT uid, concept_id FROM run WHERE concept_id IN (SELECT value FROM json_each(:ids))"""


def _count_sql(where: str) -> str:
    return f"SELECT count(*) FROM concept {where}"  # noqa: S608


def _conditions(num_words: int, num_tags: int, has_category: bool) -> str:
    conditions = [rf"search LIKE :word{i} ESCAPE '\'" for i in range(num_words)]
    conditions += [
        f"id IN (SELECT concept_id FROM tag WHERE tag = :tag{i})"  # noqa: S608
        for i in range(num_tags)
    ]
    conditions += ["category = :category"] if has_category else []
    return f"WHERE {' AND '.join(conditions)}" if conditions else ""


def _record(kind: Callable[..., _Record], row: sqlite3.Row, **own: object) -> _Record:
    """A record of a row whose columns have the names of its fields; `own` are other values."""
    return kind(**dict(row) | own)


def _words(joined: str | None) -> list[str]:
    """What `group_concat` joined."""
    return joined.split() if joined else []


def _escaped(word: str) -> str:
    for special in ("\\", "%", "_"):
        word = word.replace(special, "\\" + special)
    return word


_CONCEPT_SQL = f"""
    SELECT id, name, category, {_TAGS} AS tags, notes, {_BYTES} AS bytes, created, updated
    FROM concept WHERE """  # noqa: S608
_IMAGES_SQL = """
    SELECT sha256, filename, format, width, height, bytes, caption, mask, added
    FROM image WHERE concept_id = :concept ORDER BY id"""
_RUNS_SQL = """
    SELECT uid AS run, method, status, base, base_sha256, seed, config, packages, host, started,
        finished, error
    FROM run WHERE concept_id = :concept ORDER BY id"""
_VERSIONS_SQL = """
    SELECT version.id AS id, number, uid AS run, created,
        (SELECT group_concat(alias, ' ') FROM alias WHERE version_id = version.id) AS aliases
    FROM version LEFT JOIN run ON run.id = run_id
    WHERE version.concept_id = :concept ORDER BY number"""
_ARTIFACTS_SQL = """
    SELECT version_id, name, kind, sha256, bytes
    FROM artifact JOIN version ON version.id = version_id
    WHERE version.concept_id = :concept"""
_ORIGINS_SQL = """
    SELECT detail FROM event
    WHERE concept_id = :concept AND action = 'version' AND instr(detail, '_from"')"""
_NAMES_SQL = "SELECT name FROM concept ORDER BY name"


def show_concept(database: Database, key: ConceptKey) -> Concept:
    """Everything about one concept; raises `ConceptNotFound`."""
    with database.snapshot():
        found = _concept_row(database, key)
        if found is None:
            raise ConceptNotFound(key, names(database))
        concept_id = found["id"]
        images = database.rows(_IMAGES_SQL, concept=concept_id)
        runs = database.rows(_RUNS_SQL, concept=concept_id)
        versions = database.rows(_VERSIONS_SQL, concept=concept_id)
        stored = database.rows(_ARTIFACTS_SQL, concept=concept_id) if versions else []
        told = database.rows(_ORIGINS_SQL, concept=concept_id) if versions else []
    origins = origins_of([row["detail"] for row in told])
    kept = kept_bytes(Location(database.path), [row["run"] for row in runs])
    artifacts: defaultdict[int, list[ArtifactRecord]] = defaultdict(list)
    for row in stored:
        file = ArtifactRecord(row["name"], row["kind"], row["sha256"], row["bytes"])
        artifacts[row["version_id"]].append(file)
    return Concept(
        id=concept_id,
        name=found["name"],
        category=found["category"],
        tags=_words(found["tags"]),
        notes=found["notes"],
        images=[ImageRecord(**row) for row in images],
        versions=[
            VersionRecord(
                row["number"],
                _words(row["aliases"]),
                row["run"],
                row["created"],
                artifacts[row["id"]],
                origins.get(row["number"], {}),
            )
            for row in versions
        ],
        runs=_run_records(database, concept_id, runs),
        bytes=found["bytes"],
        created=found["created"],
        updated=found["updated"],
        size=found["bytes"] + sum(kept.values()),
    )


def origins_of(details: Sequence[str]) -> dict[int, dict[str, object]]:
    """By number, what the events of new versions say that they were made of."""
    found: dict[int, dict[str, object]] = {}
    for text in details:
        detail = loaded(text)
        number = detail.pop("number", None)
        origin = {key: each for key, each in detail.items() if key != "run"}
        if isinstance(number, int) and origin:
            found[number] = origin
    return found


def _concept_row(database: Database, key: ConceptKey) -> sqlite3.Row | None:
    column = "id" if isinstance(key, int) else "name"
    return next(iter(database.rows(f"{_CONCEPT_SQL} {column} = :key", key=key)), None)


def _run_records(
    database: Database, concept_id: int, rows: Sequence[sqlite3.Row]
) -> list[RunRecord]:
    found: list[RunRecord] = []
    for row in rows:
        config, packages = loaded(row["config"]), loaded(row["packages"])
        run = _record(RunRecord, row, config=config, packages=packages)
        if run.status == "running" and _is_dead(database, concept_id, run.run):
            run = replace(run, status="interrupted")
        found.append(run)
    return found


def _is_dead(database: Database, concept_id: int, uid: str) -> bool:
    """Whether a run is on record as running and nobody runs it."""
    if is_alive(Location(database.path), concept_id, uid):
        return False
    rows = database.rows("SELECT status FROM run WHERE uid = :uid", uid=uid)
    # it may have ended while its process was looked for
    return [row["status"] for row in rows] == ["running"]


_BEGUN_SQL = """
    SELECT CASE WHEN json_valid(detail) THEN json_extract(detail, '$.run') END AS run
    FROM event WHERE action = 'train' AND concept_id = (
        SELECT concept_id FROM run WHERE uid = :run)"""


def began_here(database: Database, run: str) -> bool:
    """Whether a run began in this registry, by history, which an import cannot write.

    One that was imported can be read, and never goes on.
    """
    return any(row["run"] == run for row in database.rows(_BEGUN_SQL, run=run))


_QUEUE_SQL = """
    SELECT queue.id AS id, concept.name AS concept, concept.id AS concept_id, state, options,
        queue.error AS error, added, run.uid AS run, run.config AS config, run.status AS status,
        (SELECT count(*) FROM (SELECT DISTINCT stage, step FROM metric
            WHERE run_id = queue.run_id)) AS steps_done
    FROM queue JOIN concept ON concept.id = queue.concept_id LEFT JOIN run ON run.id = run_id
    ORDER BY state = 'failed', run_id IS NULL, position, queue.id"""


def queue(database: Database) -> list[QueuedTraining]:
    """The trainings in the queue: first those that were begun, in the end those that failed."""
    return [_queued(database, row) for row in database.rows(_QUEUE_SQL)]


def _queued(database: Database, row: sqlite3.Row) -> QueuedTraining:
    state, is_begun = row["state"], row["run"] is not None
    if state == "running" and not is_queue_alive(Location(database.path), row["concept_id"]):
        state = "waiting"
    if state == "waiting" and is_begun:
        state = "trained" if row["status"] == "done" else "interrupted"
    return QueuedTraining(
        id=row["id"],
        concept=row["concept"],
        concept_id=row["concept_id"],
        state=state,
        options=loaded(row["options"]),
        run=row["run"],
        error=row["error"],
        steps_done=row["steps_done"],
        steps=_num_steps(loaded(row["config"])) if is_begun else None,
        added=row["added"],
    )


def _num_steps(config: Mapping[str, object]) -> int:
    """The steps of all stages that a run's settings have."""
    stages = [stage for stage in config.values() if isinstance(stage, dict)]
    steps = [stage.get("steps") for stage in stages]
    return sum(each for each in steps if isinstance(each, int))


_SEARCH_SQL = f"SELECT id, search, name, category, notes, {_TAGS} AS tags FROM concept"  # noqa: S608
_CAPTIONS_SQL = "SELECT caption FROM image WHERE concept_id = :concept ORDER BY id"


def stale_concepts(database: Database) -> Iterator[tuple[int, str]]:
    """The (id, name) of every concept whose search text is not what its rows say."""
    for row in database.stream(_SEARCH_SQL):
        photos = database.rows(_CAPTIONS_SQL, concept=row["id"])
        captions = [photo["caption"] for photo in photos]
        name, tags = row["name"], _words(row["tags"])
        if row["search"] != search_text(name, row["category"], row["notes"], tags, captions):
            yield row["id"], name


def to_json(value: object) -> str:
    """The text of a JSON column: valid UTF-8, whatever broken text is in it.

    Raises `InvalidInput` for NaN and infinity, which JSON does not have, and for what is nested
    deeper than an import would read.
    """
    if is_too_deep(value):
        raise InvalidInput(f"a value is nested deeper than {MAX_DEPTH}")
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise InvalidInput("a value is not a finite number; leave it out or make it null") from None
    return text.encode(errors="replace").decode()


def is_too_deep(value: object) -> bool:
    """Whether lists and mappings are nested deeper than `MAX_DEPTH`."""
    path = [iter((value,))]
    while path:
        for inner in path[-1]:
            if isinstance(inner, (list, tuple, Mapping)):
                path.append(iter(inner.values() if isinstance(inner, Mapping) else inner))
                break
        else:
            path.pop()
        if len(path) > MAX_DEPTH + 1:
            return True
    return False


def loaded(text: str) -> dict[str, object]:
    """The mapping in a JSON column; raises `RegistryCorrupt`."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise RegistryCorrupt(f"the database is damaged: {error}", hint="concept check") from None
    if not isinstance(found, dict):
        raise RegistryCorrupt("the database is damaged: a mapping is none", hint="concept check")
    return found


def category_of(database: Database, name: str) -> str | None:
    """The category of a concept, or None if there is no such concept."""
    found = _concept_row(database, name)
    return found["category"] if found else None


_DRAWN_WITH = """
    FROM generation_version JOIN version ON version.id = version_id
        JOIN concept ON concept.id = version.concept_id"""
_PICTURES_SQL = f"""
    SELECT id, output_sha256 AS sha256, prompt, seed, base, settings, created FROM generation
    WHERE id IN (SELECT generation_id {_DRAWN_WITH} WHERE concept.id = :concept)
    ORDER BY id"""  # noqa: S608
_VERSIONS_OF_PICTURES_SQL = f"""
    SELECT generation_id, name, number {_DRAWN_WITH}
    WHERE generation_id IN (SELECT generation_id {_DRAWN_WITH} WHERE concept.id = :concept)
    ORDER BY name, number"""


def pictures(database: Database, key: ConceptKey) -> list[PictureRecord]:
    """The pictures that a concept was drawn in, oldest first; see `Registry.pictures`."""
    with database.snapshot():
        found = _concept_row(database, key)
        if found is None:
            raise ConceptNotFound(key, names(database))
        drawn = database.rows(_PICTURES_SQL, concept=found["id"])
        used = database.rows(_VERSIONS_OF_PICTURES_SQL, concept=found["id"]) if drawn else []
    versions: defaultdict[int, list[str]] = defaultdict(list)
    for row in used:
        versions[row["generation_id"]].append(f"{row['name']}@{row['number']}")
    return [
        PictureRecord(
            sha256=row["sha256"],
            prompt=row["prompt"],
            seed=row["seed"],
            base=row["base"],
            settings=loaded(row["settings"]),
            versions=versions[row["id"]],
            created=row["created"],
        )
        for row in drawn
    ]


def names(database: Database) -> list[str]:
    """The names of all concepts, sorted."""
    return [row["name"] for row in database.rows(_NAMES_SQL)]


_HISTORY_SQL = """
    SELECT at, concept_id, concept, action, detail
    FROM event {where} ORDER BY id DESC LIMIT :limit"""
_RUNNING_SQL = "SELECT uid FROM run WHERE status = 'running'"
_OF_ONE = """
    WHERE concept_id IN (SELECT id FROM concept WHERE name = :name)
    OR concept_id IN (SELECT concept_id FROM event WHERE concept = :name)"""


def history(database: Database, name: str | None, limit: int) -> list[EventRecord]:
    """The last events, oldest first: of all concepts, or of those that bear or bore `name`.

    The last event of a run whose process is dead says that it was interrupted.

    Raises `ConceptNotFound` for a name that was never used.
    """
    parameters: dict[str, object] = {"limit": min(limit, _MAX_INTEGER) or -1}
    if name is not None:
        parameters["name"] = name
    where = _OF_ONE if name is not None else ""
    rows = database.rows(_HISTORY_SQL.format(where=where), **parameters)
    if name is not None and not rows:
        raise ConceptNotFound(name, names(database))
    running = {row["uid"] for row in database.rows(_RUNNING_SQL)}
    events: list[EventRecord] = []
    for row in rows:
        detail = loaded(row["detail"])
        run = detail["run"] if row["action"] in ("train", "resume") else None
        if isinstance(run, str) and run in running:
            running.remove(run)
            if _is_dead(database, row["concept_id"], run):
                detail["status"] = "interrupted"
        events.append(EventRecord(row["at"], row["concept"], row["action"], detail))
    return events[::-1]

"""The reads: SQLModel statements, compiled to SQL once and run on the plain connection."""

import json
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from sqlalchemy import bindparam, literal_column, select, union_all
from sqlalchemy.dialects import sqlite
from sqlmodel import col, func

from .database import Database
from .errors import ConceptNotFound, InvalidInput, RegistryCorrupt
from .records import (
    ArtifactRecord,
    Concept,
    ConceptSummary,
    EventRecord,
    ImageRecord,
    Page,
    RunRecord,
    VersionRecord,
)
from .tables import Alias, Artifact, Event, Image, Run, Tag, Version
from .tables import Concept as ConceptRow

MAX_WORDS = 32
MAX_SEARCH = 1_000
SORTS = ("name", "created", "updated", "images", "versions", "bytes")

_MAX_INTEGER = (1 << 63) - 1
_ZERO, _SPACE = literal_column("0"), literal_column("' '")
_DIALECT = sqlite.dialect(paramstyle="named")


def compiled(statement: Any) -> str:
    """The SQL of a statement, with `:name` for each `bindparam`; other values must be literals."""
    result = statement.compile(dialect=_DIALECT)
    assert all(value is None for value in result.params.values()), "a value would be lost"
    return str(result)


def pick(*columns: Any) -> Any:
    """A SELECT of any number of columns; SQLModel's own types end at four."""
    return select(*columns)


def search_text(
    name: str, category: str, notes: str, tags: Sequence[str], captions: Sequence[str | None]
) -> str:
    """What a text search looks through, as `Concept.search` stores it."""
    parts = [name, category, notes, *tags, *filter(None, captions)]
    return fold("\n".join(dict.fromkeys(parts)))


def fold(text: str) -> str:
    """Make letters comparable: compatibility forms and case are levelled."""
    return unicodedata.normalize("NFKC", text).casefold()


def _total(column: Any, *where: Any) -> Any:
    return pick(func.coalesce(func.sum(column), _ZERO)).where(*where).scalar_subquery()


def _count(column: Any, *where: Any) -> Any:
    return pick(func.count(column)).where(*where).scalar_subquery()


_OF_CONCEPT = col(Image.concept_id) == col(ConceptRow.id)
_TAGS = pick(func.group_concat(Tag.tag, _SPACE)).where(col(Tag.concept_id) == col(ConceptRow.id))
_NUM_IMAGES = _count(Image.id, _OF_CONCEPT)
_NUM_VERSIONS = _count(Version.id, col(Version.concept_id) == col(ConceptRow.id))
_BYTES = (
    _total(Image.bytes + func.coalesce(Image.mask_bytes, _ZERO), _OF_CONCEPT)
    + _total(
        Artifact.bytes,
        col(Artifact.version_id) == col(Version.id),
        col(Version.concept_id) == col(ConceptRow.id),
    )
    + _total(
        Artifact.bytes,
        col(Artifact.run_id) == col(Run.id),
        col(Run.concept_id) == col(ConceptRow.id),
    )
)
_SORT_COLUMNS = {
    "name": ConceptRow.name,
    "created": ConceptRow.created,
    "updated": ConceptRow.updated,
    "images": _NUM_IMAGES,
    "versions": _NUM_VERSIONS,
    "bytes": _BYTES,
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
    filters = (len(words), len(tags), category is not None)
    parameters: dict[str, object] = {f"tag{i}": tag for i, tag in enumerate(tags)}
    parameters |= {f"word{i}": f"%{_escaped(word)}%" for i, word in enumerate(words)}
    if category is not None:
        parameters["category"] = category
    with database.snapshot():
        total = database.rows(_count_sql(*filters), **parameters)[0][0]
        rows = database.rows(
            _page_sql(sort, descending, *filters),
            **parameters,
            limit=min(limit, _MAX_INTEGER) or -1,
            offset=min(limit * (page - 1), _MAX_INTEGER),
        )
    concepts = [
        ConceptSummary(name, category, tags.split() if tags else [], *rest)
        for name, category, tags, *rest in rows
    ]
    return Page(concepts, total, page, max(1, -(-total // limit)) if limit else 1)


@cache
def _page_sql(sort: str, descending: bool, *filters: int) -> str:
    key = _SORT_COLUMNS[sort]
    statement = pick(
        ConceptRow.name,
        ConceptRow.category,
        _TAGS.scalar_subquery(),
        ConceptRow.notes,
        _NUM_IMAGES,
        _NUM_VERSIONS,
        _BYTES,
        ConceptRow.created,
        ConceptRow.updated,
    )
    statement = statement.where(*_conditions(*filters))
    statement = statement.order_by(key.desc() if descending else key, col(ConceptRow.name))
    return compiled(statement.limit(bindparam("limit")).offset(bindparam("offset")))


@cache
def _count_sql(*filters: int) -> str:
    return compiled(pick(func.count()).select_from(ConceptRow).where(*_conditions(*filters)))


def _conditions(num_words: int, num_tags: int, has_category: int) -> list[Any]:
    conditions: list[Any] = [
        col(ConceptRow.search).like(bindparam(f"word{i}"), escape="\\") for i in range(num_words)
    ]
    for i in range(num_tags):
        tagged = pick(Tag.concept_id).where(Tag.tag == bindparam(f"tag{i}"))
        conditions.append(col(ConceptRow.id).in_(tagged))
    if has_category:
        conditions.append(ConceptRow.category == bindparam("category"))
    return conditions


def _escaped(word: str) -> str:
    for special in ("\\", "%", "_"):
        word = word.replace(special, "\\" + special)
    return word


_CONCEPT_SQL = compiled(
    pick(
        ConceptRow.id,
        ConceptRow.category,
        _TAGS.scalar_subquery(),
        ConceptRow.notes,
        ConceptRow.created,
        ConceptRow.updated,
    ).where(ConceptRow.name == bindparam("name"))
)
_IMAGES_SQL = compiled(
    pick(
        Image.sha256,
        Image.filename,
        Image.format,
        Image.width,
        Image.height,
        Image.bytes,
        Image.caption,
        Image.mask,
        Image.added,
        func.coalesce(Image.mask_bytes, _ZERO),
    )
    .where(Image.concept_id == bindparam("concept"))
    .order_by(col(Image.id))
)
_RUNS_SQL = compiled(
    pick(
        Run.uid,
        Run.method,
        Run.status,
        Run.base,
        Run.base_sha256,
        Run.seed,
        Run.config,
        Run.packages,
        Run.host,
        Run.started,
        Run.finished,
        Run.error,
    )
    .where(Run.concept_id == bindparam("concept"))
    .order_by(col(Run.id))
)
_VERSIONS_SQL = compiled(
    pick(
        Version.id,
        Version.number,
        pick(func.group_concat(Alias.alias, _SPACE))
        .where(col(Alias.version_id) == col(Version.id))
        .scalar_subquery(),
        Run.uid,
        Version.created,
    )
    .outerjoin(Run, col(Run.id) == col(Version.run_id))
    .where(Version.concept_id == bindparam("concept"))
    .order_by(col(Version.number))
)
_ARTIFACT_COLUMNS = (Artifact.version_id, Artifact.name, Artifact.kind, Artifact.sha256)
_ARTIFACTS_SQL = compiled(
    union_all(
        pick(*_ARTIFACT_COLUMNS, Artifact.bytes)
        .join(Version, col(Version.id) == col(Artifact.version_id))
        .where(Version.concept_id == bindparam("concept")),
        pick(*_ARTIFACT_COLUMNS, Artifact.bytes)
        .join(Run, col(Run.id) == col(Artifact.run_id))
        .where(Run.concept_id == bindparam("concept"), col(Artifact.version_id).is_(None)),
    )
)
_NAMES_SQL = compiled(pick(ConceptRow.name).order_by(col(ConceptRow.name)))


def show_concept(database: Database, name: str) -> Concept:
    """Everything about one concept; raises `ConceptNotFound`."""
    with database.snapshot():
        found = database.rows(_CONCEPT_SQL, name=name)
        if not found:
            raise ConceptNotFound(name, names(database))
        concept_id, category, tags, notes, created, updated = found[0]
        image_rows = database.rows(_IMAGES_SQL, concept=concept_id)
        runs = database.rows(_RUNS_SQL, concept=concept_id)
        versions = database.rows(_VERSIONS_SQL, concept=concept_id)
        stored = database.rows(_ARTIFACTS_SQL, concept=concept_id) if runs or versions else []
    artifacts: defaultdict[int | None, list[ArtifactRecord]] = defaultdict(list)
    for version_id, *fields in stored:
        artifacts[version_id].append(ArtifactRecord(*fields))
    return Concept(
        name=name,
        category=category,
        tags=tags.split() if tags else [],
        notes=notes,
        images=[ImageRecord(*row[:-1]) for row in image_rows],
        versions=[
            VersionRecord(number, aliases.split() if aliases else [], run, at, artifacts[version])
            for version, number, aliases, run, at in versions
        ],
        runs=[_run_record(row) for row in runs],
        bytes=sum(row[5] + row[-1] for row in image_rows) + sum(row[-1] for row in stored),
        created=created,
        updated=updated,
    )


def _run_record(row: tuple[Any, ...]) -> RunRecord:
    *_, config, packages, _, _, _, _ = row
    return replace(RunRecord(*row), config=loaded(config), packages=loaded(packages))


_SEARCH_SQL = compiled(
    pick(
        ConceptRow.id,
        ConceptRow.search,
        ConceptRow.name,
        ConceptRow.category,
        ConceptRow.notes,
        _TAGS.scalar_subquery(),
    )
)
_CAPTIONS_SQL = compiled(
    pick(Image.caption).where(Image.concept_id == bindparam("concept")).order_by(col(Image.id))
)


def stale_concepts(database: Database) -> Iterator[tuple[int, str]]:
    """The (id, name) of every concept whose search text is not what its rows say."""
    for concept_id, search, name, category, notes, tags in database.stream(_SEARCH_SQL):
        captions = [row[0] for row in database.rows(_CAPTIONS_SQL, concept=concept_id)]
        if search != search_text(name, category, notes, (tags or "").split(), captions):
            yield concept_id, name


def to_json(value: object) -> str:
    """The text of a JSON column: valid UTF-8, whatever broken text is in it.

    Raises `InvalidInput` for NaN and infinity, which JSON does not have.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise InvalidInput("a value is not a finite number; leave it out or make it null") from None
    return text.encode(errors="replace").decode()


def loaded(text: str) -> Any:
    """The value of a JSON column; raises `RegistryCorrupt`."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise RegistryCorrupt(f"the database is damaged: {error}", hint="concept check") from None


def category_of(database: Database, name: str) -> str | None:
    """The category of a concept, or None if there is no such concept."""
    rows = database.rows(_CONCEPT_SQL, name=name)
    return rows[0][1] if rows else None


def names(database: Database) -> list[str]:
    """The names of all concepts, sorted."""
    return [row[0] for row in database.rows(_NAMES_SQL)]


@cache
def _history_sql(of_one: bool) -> str:
    statement = pick(Event.at, Event.concept, Event.action, Event.detail)
    if of_one:
        now_named = pick(ConceptRow.id).where(ConceptRow.name == bindparam("name"))
        once_named = pick(Event.concept_id).where(Event.concept == bindparam("name"))
        statement = statement.where(
            col(Event.concept_id).in_(now_named) | col(Event.concept_id).in_(once_named)
        )
    return compiled(
        statement.order_by(col(Event.id).desc()).limit(bindparam("limit")).offset(_ZERO)
    )


def history(database: Database, name: str | None, limit: int) -> list[EventRecord]:
    """The last events, oldest first: of all concepts, or of those that bear or bore `name`.

    Raises `ConceptNotFound` for a name that was never used.
    """
    parameters: dict[str, object] = {"limit": min(limit, _MAX_INTEGER) or -1}
    if name is not None:
        parameters["name"] = name
    rows = database.rows(_history_sql(name is not None), **parameters)
    if name is not None and not rows:
        raise ConceptNotFound(name, names(database))
    return [
        EventRecord(at, concept, action, loaded(detail))
        for at, concept, action, detail in reversed(rows)
    ]

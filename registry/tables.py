"""The tables of `concepts.db`.

They describe today's schema for queries and type checkers. What creates and changes a database
are the functions in `migrations.py`; a test holds the two equal.

    concept ─┬─ tag
             ├─ image ······ photos: original bytes, mask, caption
             ├─ run ─┬─ run_image ······ which photos it learned from
             │       └─ metric
             ├─ queue ······ trainings that wait for their turn
             ├─ version ─┬─ alias ······ such as `best`
             │           ├─ evaluation
             │           └─ generation_version ─ generation ······ pictures
             └─ event ······ history, which outlives its concept
    run, version ── artifact ······ safetensors
"""

from typing import Any, ClassVar

from sqlalchemy import UniqueConstraint
from sqlmodel import Field, SQLModel


class Concept(SQLModel, table=True):
    """A concept: name, category and notes.

    Ids are never used twice, so that events of a removed concept stay its own.
    """

    __table_args__: ClassVar[dict[str, bool]] = {"sqlite_autoincrement": True}
    id: int = Field(default=None, primary_key=True)
    name: str = Field(unique=True)
    category: str = Field(index=True)
    notes: str = ""
    created: str
    updated: str
    search: str
    """The text that a search matches, case-folded; see `queries.search_text`."""


class Tag(SQLModel, table=True):
    """A word that groups concepts."""

    __table_args__: ClassVar[dict[str, bool]] = {"sqlite_with_rowid": False}
    concept_id: int = Field(foreign_key="concept.id", ondelete="CASCADE", primary_key=True)
    tag: str = Field(primary_key=True, index=True)


class Image(SQLModel, table=True):
    """A photo of a concept. Width and height are as seen, after EXIF rotation."""

    __table_args__: ClassVar[tuple[UniqueConstraint]] = (UniqueConstraint("concept_id", "sha256"),)
    id: int = Field(default=None, primary_key=True)
    concept_id: int = Field(foreign_key="concept.id", ondelete="CASCADE")
    sha256: str = Field(index=True)
    bytes: int
    filename: str
    format: str
    width: int
    height: int
    caption: str | None = None
    mask: str | None = Field(default=None, index=True)
    """SHA-256 of the subject mask, a grey PNG of the photo's size; white is subject."""
    mask_bytes: int | None = None
    phash: str
    """64-bit perceptual hash, 16 hex digits."""
    added: str


class Run(SQLModel, table=True):
    """A training of a concept, with all that its result depends on; or an import (`originals`)."""

    id: int = Field(default=None, primary_key=True)
    uid: str = Field(unique=True)
    concept_id: int = Field(foreign_key="concept.id", ondelete="CASCADE", index=True)
    method: str
    config: str
    base: str
    base_sha256: str
    seed: int
    packages: str
    """JSON: the version of each package that shaped the result."""
    host: str
    status: str
    started: str
    finished: str | None = None
    error: str | None = None


class RunImage(SQLModel, table=True):
    """A photo that a run was trained on, by hash, so that the record outlives the photo."""

    __tablename__: ClassVar[Any] = "run_image"
    __table_args__: ClassVar[dict[str, bool]] = {"sqlite_with_rowid": False}
    run_id: int = Field(foreign_key="run.id", ondelete="CASCADE", primary_key=True)
    sha256: str = Field(primary_key=True)


class Metric(SQLModel, table=True):
    """One number of one training step."""

    __table_args__: ClassVar[dict[str, bool]] = {"sqlite_with_rowid": False}
    run_id: int = Field(foreign_key="run.id", ondelete="CASCADE", primary_key=True)
    stage: str = Field(primary_key=True)
    step: int = Field(primary_key=True)
    name: str = Field(primary_key=True)
    value: float


class Queued(SQLModel, table=True):
    """A training that waits for its turn, is under way, or failed; one that is done has no row.

    Ids are never used twice, so that who types one means the training that they saw.
    """

    __tablename__: ClassVar[Any] = "queue"
    __table_args__: ClassVar[dict[str, bool]] = {"sqlite_autoincrement": True}
    id: int = Field(default=None, primary_key=True)
    concept_id: int = Field(foreign_key="concept.id", ondelete="CASCADE", index=True)
    position: int
    """Lower ones come first."""
    options: str
    state: str
    """waiting, running or failed."""
    run_id: int | None = Field(foreign_key="run.id", ondelete="SET NULL", default=None, index=True)
    """The run that was begun for it."""
    error: str | None = None
    added: str


class Version(SQLModel, table=True):
    """A numbered version of a concept: the result of a training, or what was imported."""

    __table_args__: ClassVar[tuple[UniqueConstraint]] = (UniqueConstraint("concept_id", "number"),)
    id: int = Field(default=None, primary_key=True)
    concept_id: int = Field(foreign_key="concept.id", ondelete="CASCADE")
    number: int
    run_id: int | None = Field(foreign_key="run.id", ondelete="SET NULL", default=None, index=True)
    created: str


class Alias(SQLModel, table=True):
    """A word such as `best` that stands for a version of its concept."""

    __table_args__: ClassVar[dict[str, bool]] = {"sqlite_with_rowid": False}
    concept_id: int = Field(foreign_key="concept.id", ondelete="CASCADE", primary_key=True)
    alias: str = Field(primary_key=True)
    version_id: int = Field(foreign_key="version.id", ondelete="CASCADE", index=True)


class Artifact(SQLModel, table=True):
    """A stored safetensors file: a version's adapter or what was imported, or a run's resume point.

    Of an imported version it may be a picture too (kind `preview`). It belongs to a version or to a
    run, never to both.
    """

    id: int = Field(default=None, primary_key=True)
    run_id: int | None = Field(foreign_key="run.id", ondelete="CASCADE", default=None, index=True)
    version_id: int | None = Field(
        foreign_key="version.id", ondelete="CASCADE", default=None, index=True
    )
    name: str
    kind: str
    sha256: str = Field(index=True)
    bytes: int
    created: str


class Evaluation(SQLModel, table=True):
    """The scores of a version on a prompt suite."""

    id: int = Field(default=None, primary_key=True)
    version_id: int = Field(foreign_key="version.id", ondelete="CASCADE", index=True)
    suite: str
    config: str
    scores: str
    created: str


class Generation(SQLModel, table=True):
    """A picture, with all it takes to draw it again."""

    id: int = Field(default=None, primary_key=True)
    output_sha256: str = Field(index=True)
    prompt: str
    seed: int
    base: str
    base_sha256: str
    settings: str
    created: str


class GenerationVersion(SQLModel, table=True):
    """A version that a picture was drawn with."""

    __tablename__: ClassVar[Any] = "generation_version"
    __table_args__: ClassVar[dict[str, bool]] = {"sqlite_with_rowid": False}
    generation_id: int = Field(foreign_key="generation.id", ondelete="CASCADE", primary_key=True)
    version_id: int = Field(
        foreign_key="version.id", ondelete="CASCADE", primary_key=True, index=True
    )


class Event(SQLModel, table=True):
    """Something that was done to a concept. No foreign key: history outlives its concept."""

    id: int = Field(default=None, primary_key=True)
    at: str
    concept_id: int = Field(index=True)
    concept: str = Field(index=True)
    """The name at that time."""
    action: str
    detail: str


class AppliedMigration(SQLModel, table=True):
    """A migration that this database has been through, and the program it needs since."""

    __tablename__: ClassVar[Any] = "migration"
    name: str = Field(primary_key=True)
    position: int
    needs: str
    applied: str


JSON_COLUMNS = (
    ("run", "config"),
    ("run", "packages"),
    ("evaluation", "config"),
    ("evaluation", "scores"),
    ("generation", "settings"),
    ("event", "detail"),
    ("queue", "options"),
)
"""The (table, column) pairs that hold JSON."""

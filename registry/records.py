"""The records that the registry returns; their fields are the keys of the JSON interface."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypedDict

from .errors import InvalidInput

IMPORT = "import"
"""The method of the run that made an imported version."""
ORIGINAL = "original"
"""The kind of an artifact that is a file of another tool."""
PREVIEW = "preview"
"""The kind of an artifact that is a picture."""
ConceptKey = str | int
"""A concept by name, or by id, which stays the same if it is renamed."""


@dataclass(frozen=True, slots=True)
class ConceptSummary:
    """A concept as `list` shows it; counts, not contents. Sizes are in bytes.

    `bytes` are those of its stored files, each counted once; `size` has what its trainings keep,
    too.
    """

    name: str
    category: str
    tags: list[str]
    notes: str
    images: int
    versions: int
    bytes: int
    created: str
    updated: str
    size: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """A photo. Width and height are as seen, after EXIF rotation; `mask` is a SHA-256 or None."""

    sha256: str
    filename: str
    format: str
    width: int
    height: int
    bytes: int
    caption: str | None
    mask: str | None
    added: str


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A training. One whose process is dead counts as interrupted."""

    run: str
    method: str
    status: str
    base: str
    base_sha256: str
    seed: int
    config: dict[str, object]
    packages: dict[str, str]
    host: str
    started: str
    finished: str | None
    error: str | None


TO_DO = ("waiting", "interrupted", "trained")
"""The states in which nobody is at a queued training, and there is something to do."""


@dataclass(frozen=True, slots=True)
class QueuedTraining:
    """A training in the queue, in its turn; `options` are those of `concept train`.

    `state`: waiting, running, interrupted (it goes on where it was), trained (the version is there;
    what was to be done with it is not) or failed. `steps_done` are those on record, of `steps` in
    all; None until its run has begun.
    """

    id: int
    concept: str
    concept_id: int = field(compare=False)
    state: str
    options: dict[str, object]
    run: str | None
    error: str | None
    steps_done: int
    steps: int | None
    added: str


@dataclass(frozen=True, slots=True)
class ArtifactRecord:
    """A stored weights file, or the picture that came beside it (kind `preview`)."""

    name: str
    kind: str
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """A version of a concept: its aliases, the run that made it and its files.

    `origin` is what it was made of, if not by the training alone, as `add_version` was told:
    `{"compressed_from": 1, "to": "svd:32"}`.
    """

    number: int
    aliases: list[str]
    run: str | None
    created: str
    artifacts: list[ArtifactRecord]
    origin: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Concept:
    """A concept with everything in it. Its `id` stays whatever it is called.

    `bytes` and `size` are as in `ConceptSummary`.
    """

    id: int = field(compare=False)
    name: str
    category: str
    tags: list[str]
    notes: str
    images: list[ImageRecord]
    versions: list[VersionRecord]
    runs: list[RunRecord]
    bytes: int
    created: str
    updated: str
    size: int = field(compare=False)

    @property
    def default_version(self) -> VersionRecord | None:
        """The one that a plain `<rex>` stands for: `best`, else the latest; None if untrained."""
        return max(
            self.versions, key=lambda each: ("best" in each.aliases, each.number), default=None
        )

    def check_photos(self) -> None:
        """Raise `InvalidInput` if it has none."""
        if not self.images:
            raise InvalidInput(f"{self.name} has no photos", hint=f"concept add {self.name} PHOTO…")


def made_of(version: VersionRecord) -> str:
    """`version 1, svd:32`; empty for what a training alone made."""
    of = [f"version {each}" for key, each in version.origin.items() if key.endswith("_from")]
    return ", ".join([*of, *(str(each) for key, each in version.origin.items() if key == "to")])


def originals_of(version: VersionRecord) -> list[ArtifactRecord]:
    """The files of an imported version; none of another."""
    return [each for each in version.artifacts if each.kind == ORIGINAL]


class Scored(TypedDict):
    """The scores of a version, as `add_evaluation` takes them; see `EvaluationRecord`."""

    suite: str
    config: Mapping[str, object]
    scores: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class EvaluationRecord:
    """The scores of a version on a prompt suite, and all that they depend on."""

    version: int
    suite: str
    config: dict[str, object]
    scores: dict[str, object]
    created: str
    is_imported: bool = False
    """Whether it was imported; imported scores are untrusted, and never reused."""


@dataclass(frozen=True, slots=True)
class PictureRecord:
    """A picture that was drawn, by the hash of its file; `versions` as `rex@2`."""

    sha256: str
    prompt: str
    seed: int
    base: str
    settings: dict[str, object]
    versions: list[str]
    created: str


@dataclass(frozen=True, slots=True)
class Page:
    """One page of concepts, and how many there are in all."""

    concepts: list[ConceptSummary]
    total: int
    page: int
    pages: int


@dataclass(frozen=True, slots=True)
class AddedImage:
    """A file that was added, and the photo it became."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A file that looks like a photo of the same concept.

    `exact` files have the same bytes and are not stored twice; `updated` says which of caption
    and mask the photo took over from it. The others are added all the same. `distance` counts the
    differing bits of 64 in the perceptual hashes.
    """

    path: str
    sha256: str
    of: str
    of_filename: str
    exact: bool
    distance: int
    updated: list[str]


@dataclass(frozen=True, slots=True)
class PhotoWarning:
    """Something about a file or folder that may spoil a training.

    `code`: small, blurred, dark, colour or frames; of folders, left_out (files that are no photos),
    unused_captions, unused_masks and no_mask.
    """

    code: str
    path: str
    message: str


@dataclass(frozen=True, slots=True)
class AddReport:
    """What `add` added, and what it found."""

    concept: Concept
    added: list[AddedImage]
    duplicates: list[Duplicate]
    warnings: list[PhotoWarning]


@dataclass(frozen=True, slots=True)
class EventRecord:
    """A line of history."""

    at: str
    concept: str
    action: str
    detail: dict[str, object]


@dataclass(frozen=True, slots=True)
class Problem:
    """A finding of `check`; `path` is relative to the registry's folder.

    Errors are `missing`, `truncated`, `damaged`, `size`, `unreadable`, `database` and `search`;
    notes, which hurt nothing, are `misnamed`, `orphan`, `foreign`, `temporary`, `aside` and
    `stranger`.
    """

    kind: str
    path: str
    message: str
    is_error: bool
    sha256: str | None = None
    concepts: list[str] = field(default_factory=list)
    repaired: bool = False


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What `check` examined and found; `ok` if no error is left unrepaired."""

    ok: bool
    read_data: bool
    blobs: int
    bytes: int
    problems: list[Problem]


@dataclass(frozen=True, slots=True)
class GcReport:
    """What `gc` removed, or with `dry_run` would have; `failed` says what it could not."""

    removed: int
    bytes: int
    temporary: int
    cached: int
    kept_young: int
    dry_run: bool
    failed: list[str]


@dataclass(frozen=True, slots=True)
class BackupReport:
    """Where a backup is and what it took; `copied` counts the blobs that were not there yet."""

    path: str
    concepts: int
    blobs: int
    copied: int
    bytes: int


@dataclass(frozen=True, slots=True)
class BundleReport:
    """An export file and what is in it."""

    path: str
    concepts: list[str]
    blobs: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Lineage:
    """What made a picture, back to the photos that its concepts were trained on."""

    prompt: str
    seed: int
    base: str
    settings: dict[str, object]
    sources: list["LineageSource"]


@dataclass(frozen=True, slots=True)
class LineageSource:
    """A concept in a picture: the version drawn, its run, and the photos it was trained on."""

    concept: str
    version: int
    run: str | None
    method: str | None
    images: list[str]

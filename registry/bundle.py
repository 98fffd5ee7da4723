"""Concepts as one portable file, and back.

A bundle is an uncompressed zip: `manifest.json`, then `blobs/<sha256>`. Reading one trusts nothing:
names that are not exactly these, links, compression and entries that overlap (zip bombs), sizes and
hashes that differ from the manifest, photos that do not decode and weights that are not sound
safetensors are refused before anything is written under a final name. Names in a bundle are never
used as paths.
"""

import json
import math
import os
import shlex
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    ValidationError,
    model_validator,
)
from sqlmodel import Session, col, insert, select

from . import images
from .blobs import CHUNK
from .clock import now
from .edits import concept_row, existing_row, record_event, refresh, set_tags
from .errors import (
    AlreadyExists,
    InvalidBundle,
    InvalidImage,
    InvalidInput,
    NotFound,
    RegistryCorrupt,
    StorageError,
    quoted,
)
from .files import below, new_file
from .hashes import is_sha256
from .lineage import IMPORTED, MAX_VERSION, check_config, check_scores, last_number
from .location import Location
from .names import RUN_ID, check_category, check_file_name, check_line, check_name, check_text
from .queries import category_of, origins_of, show_concept, to_json
from .records import PREVIEW, BundleReport, Concept
from .store import Store
from .tables import Alias, Artifact, Evaluation, Event, Image, Metric, Run, RunImage, Tag, Version
from .tables import Concept as ConceptRow
from .tensors import check_weights
from .validation import problem
from .zips import BYTES_OF_FILE, MAX_DIRECTORY_BYTES, opened_zip

FORMAT = "conceptry-bundle"
FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = 128 << 20
"""A concept with a training of 660 steps takes some 90 kB of it, an untrained one 2 kB."""
_MAX_MANIFEST_PARTS = 8 << 20
"""Of values, which take far more room in memory than in the file."""
_LOCAL_HEADER_BYTES = 30

_MANIFEST = "manifest.json"
_BLOBS = "blobs/"
_MOMENT = (1980, 1, 1, 0, 0, 0)  # so that equal concepts make equal files


def _checked(check: Callable[..., str], *arguments: str) -> AfterValidator:
    return AfterValidator(lambda text: check(text, *arguments))


def _no_nan(value: float) -> float:
    if math.isnan(value):
        raise ValueError("is not a number")
    return value


def _storable(value: dict[str, object]) -> dict[str, object]:
    to_json(value)
    return value


def _checked_packages(packages: dict[str, object]) -> dict[str, object]:
    for name, version in packages.items():
        check_line(name, "package")
        if not isinstance(version, str) or check_text(version, "version") != version:
            raise ValueError(f"{name[:40]!r} has no version")
    return packages


def _no_number(alias: str) -> str:
    if alias.isdigit():
        raise ValueError("an alias is not a number")
    return alias


_MAX_INTEGER = (1 << 63) - 1
_Name = Annotated[str, _checked(check_name)]
_Tag = Annotated[str, _checked(check_name, "tag")]
_AliasName = Annotated[str, _checked(check_name, "alias"), AfterValidator(_no_number)]
_Category = Annotated[str, _checked(check_category)]
_Text = Annotated[str, _checked(check_text, "text")]
_Line = Annotated[str, _checked(check_line, "text")]
_FileName = Annotated[str, _checked(check_file_name)]
_RunId = Annotated[str, Field(pattern=f"^{RUN_ID}$")]
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Moment = Annotated[
    str, Field(pattern=r"^[0-9]{4}(-[0-9]{2}){2}T([0-9]{2}:){2}[0-9]{2}\.[0-9]{3}Z$")
]
_Size = Annotated[int, Field(ge=1, le=_MAX_INTEGER)]
_PictureSize = Annotated[int, Field(ge=1, le=images.MAX_FILE_BYTES)]
_Number = Annotated[int, Field(ge=1, le=MAX_VERSION)]
_Integer = Annotated[int, Field(ge=-_MAX_INTEGER - 1, le=_MAX_INTEGER)]
_Json = Annotated[dict[str, object], AfterValidator(_storable)]
_Packages = Annotated[dict[str, object], AfterValidator(_checked_packages)]
_Config = Annotated[_Json, AfterValidator(check_config)]
_Scores = Annotated[_Json, AfterValidator(check_scores)]
_Value = Annotated[float, AfterValidator(_no_nan)]
_Item = TypeVar("_Item")
_List = Annotated[list[_Item], FailFast()]


class _Part(BaseModel):
    """Errors are reported one at a time: a list of all may fill the memory."""

    model_config = ConfigDict(extra="allow", strict=True, ser_json_inf_nan="constants")

    @model_validator(mode="after")
    def _has_no_more(self) -> Self:
        for key in self.model_extra or ():
            raise ValueError(f"{key[:40]!r} does not belong here")
        return self


class _ImagePart(_Part):
    sha256: _Sha256
    bytes: _PictureSize
    filename: _FileName
    caption: _Text | None
    mask: _Sha256 | None
    mask_bytes: _PictureSize | None
    added: _Moment


class _RunPart(_Part):
    uid: _RunId
    method: _Line
    config: _Config
    base: _Text
    base_sha256: _Text
    seed: _Integer
    packages: _Packages
    host: _Text
    status: Literal["running", "done", "interrupted", "failed"]
    started: _Moment
    finished: _Moment | None
    error: _Text | None
    images: _List[_Sha256]
    metrics: _List[tuple[_Line, _Integer, _Line, _Value]]


class _ArtifactPart(_Part):
    name: _FileName
    kind: _Line
    sha256: _Sha256
    bytes: _Size
    created: _Moment


class _EvaluationPart(_Part):
    suite: _Line
    config: _Json
    scores: _Scores
    created: _Moment


class _OriginPart(_Part):
    compressed_from: _Number
    to: _Line


class _VersionPart(_Part):
    number: _Number
    run: _RunId | None
    created: _Moment
    aliases: _List[_AliasName]
    artifacts: _List[_ArtifactPart]
    evaluations: _List[_EvaluationPart]
    origin: _OriginPart | None = Field(default=None, exclude_if=lambda origin: origin is None)


class _ConceptPart(_Part):
    name: _Name
    category: _Category
    notes: _Text
    created: _Moment
    tags: _List[_Tag]
    images: _List[_ImagePart]
    runs: _List[_RunPart]
    versions: _List[_VersionPart]
    last_number: _Number | None = Field(default=None, exclude_if=lambda number: number is None)
    """That of a version which was removed, if it was the last one; it is not given again."""


class _Format(BaseModel):
    """What every manifest says, of any version."""

    model_config = ConfigDict(extra="ignore", strict=True)

    format: str
    format_version: int


class _Manifest(_Part):
    format: str
    format_version: int
    concepts: _List[_ConceptPart]

    def blobs(self) -> dict[str, int]:
        """The size of every blob, by hash; raises `InvalidInput` for one of two sizes."""
        sizes: dict[str, int] = {}
        for sha256, size in self._uses():
            if sizes.setdefault(sha256, size) != size:
                raise InvalidInput(f"the blob {sha256} has two sizes")
        return sizes

    def _uses(self) -> Iterator[tuple[str, int]]:
        for concept in self.concepts:
            for image in concept.images:
                yield image.sha256, image.bytes
                if image.mask is not None and image.mask_bytes is not None:
                    yield image.mask, image.mask_bytes
            for version in concept.versions:
                for artifact in version.artifacts:
                    yield artifact.sha256, artifact.bytes


def export_bundle(
    store: Store, names: Sequence[str], path: Path, *, overwrite: bool
) -> BundleReport:
    """Write concepts to one file; see `Registry.export_bundle`."""
    if not names:
        raise InvalidInput("no concept was named", hint=f"concept export NAME {quoted(path)}")
    command = f"concept export {shlex.join(names)} "
    if os.path.isdir(path):
        raise AlreadyExists(f"{path} is a folder", hint=command + quoted(path / "NAME.concept"))
    store.location.check_new(path, overwrite=overwrite, command=command + quoted(path))
    with store.lock.shared():
        manifest = _describe(store, list(dict.fromkeys(names)))
        text = manifest.model_dump_json().encode()
        blobs = manifest.blobs()
        if _is_too_large(text) or (len(blobs) + 1) * BYTES_OF_FILE > MAX_DIRECTORY_BYTES:
            raise InvalidInput(
                f"what is known of {len(manifest.concepts)} concepts is too much for one file",
                hint="export them in several",
            )
        try:
            with new_file(path.parent) as unfinished:
                with zipfile.ZipFile(unfinished.file, "w", zipfile.ZIP_STORED) as bundle:
                    _write_entry(bundle, _MANIFEST, [text])
                    for sha256 in sorted(blobs):
                        _write_entry(bundle, _BLOBS + sha256, store.blobs.chunks(sha256))
                unfinished.replace(path)
        except OSError as error:
            raise StorageError(
                f"cannot write {path}: {error.strerror}",
                hint="free some space or name another file",
            ) from error
    concept_names = [concept.name for concept in manifest.concepts]
    return BundleReport(str(path), concept_names, len(blobs), path.stat().st_size)


def _write_entry(
    bundle: zipfile.ZipFile, name: str, chunks: Sequence[bytes] | Iterator[bytes]
) -> None:
    info = zipfile.ZipInfo(name, _MOMENT)
    info.external_attr = 0o644 << 16
    with bundle.open(info, "w", force_zip64=True) as entry:
        for chunk in chunks:
            entry.write(chunk)


def _describe(store: Store, names: Sequence[str]) -> _Manifest:
    try:
        with store.database.read() as session:
            concepts = [
                _describe_concept(session, existing_row(session, store.database, name))
                for name in names
            ]
    except (ValidationError, json.JSONDecodeError) as error:
        raise RegistryCorrupt(
            f"{store.location.database} is damaged: {problem(error)}", hint="concept check"
        ) from error
    return _Manifest(format=FORMAT, format_version=FORMAT_VERSION, concepts=concepts)


def _describe_concept(session: Session, concept: ConceptRow) -> _ConceptPart:
    images_of = select(Image).where(Image.concept_id == concept.id).order_by(col(Image.id))
    runs_of = select(Run).where(Run.concept_id == concept.id).order_by(col(Run.id))
    versions_of = select(Version).where(Version.concept_id == concept.id)
    uids = {run.id: run.uid for run in session.exec(runs_of)}
    made = select(Event.detail).where(Event.concept_id == concept.id, Event.action == "version")
    origins = origins_of(session.exec(made).all())
    versions = session.exec(versions_of.order_by(col(Version.number))).all()
    last = last_number(session, concept)
    return _ConceptPart(
        name=concept.name,
        category=concept.category,
        notes=concept.notes,
        created=concept.created,
        tags=sorted(session.exec(select(Tag.tag).where(Tag.concept_id == concept.id)).all()),
        images=[
            _ImagePart.model_validate(image.model_dump(include=set(_ImagePart.model_fields)))
            for image in session.exec(images_of)
        ],
        runs=[_describe_run(session, run) for run in session.exec(runs_of)],
        versions=[
            _describe_version(session, version, uids, origins.get(version.number))
            for version in versions
        ],
        last_number=last if last > max((each.number for each in versions), default=0) else None,
    )


def _describe_run(session: Session, run: Run) -> _RunPart:
    photos = session.exec(select(RunImage.sha256).where(RunImage.run_id == run.id))
    metrics = session.exec(select(Metric).where(Metric.run_id == run.id))
    fields = run.model_dump(include=set(_RunPart.model_fields))
    fields |= {"config": json.loads(run.config), "packages": json.loads(run.packages)}
    return _RunPart(
        **fields,
        images=list(photos),
        metrics=[(row.stage, row.step, row.name, row.value) for row in metrics],
    )


def _origin(found: Mapping[str, object] | None) -> _OriginPart | None:
    """What a version was made of, if it is said in a way that the other side takes."""
    with suppress(ValidationError):
        return _OriginPart.model_validate(found)
    return None


def _describe_version(
    session: Session,
    version: Version,
    uids: Mapping[int, str],
    origin: Mapping[str, object] | None,
) -> _VersionPart:
    aliases = session.exec(select(Alias.alias).where(Alias.version_id == version.id))
    artifacts = session.exec(
        select(Artifact).where(Artifact.version_id == version.id).order_by(col(Artifact.id))
    )
    evaluations = session.exec(
        select(Evaluation).where(Evaluation.version_id == version.id).order_by(col(Evaluation.id))
    )
    return _VersionPart(
        number=version.number,
        run=uids[version.run_id] if version.run_id is not None else None,
        created=version.created,
        aliases=list(aliases),
        artifacts=[
            _ArtifactPart.model_validate(row.model_dump(include=set(_ArtifactPart.model_fields)))
            for row in artifacts
        ],
        evaluations=[
            _EvaluationPart(
                suite=row.suite,
                config=json.loads(row.config),
                scores=json.loads(row.scores),
                created=row.created,
            )
            for row in evaluations
        ],
        origin=_origin(origin),
    )


def check_bundle(path: Path, *, name: str | None) -> None:
    """Raise what `import_bundle` would of a bundle, but for what is in its files.

    For callers that would make a registry for it.
    """
    with _opened(path, name):
        pass


def import_bundle(store: Store, path: Path, *, name: str | None) -> list[Concept]:
    """Read concepts from a bundle; see `Registry.import_bundle`."""
    with _opened(path, name) as (bundle, manifest):
        _check_free(store, manifest, path)
        return _take_in(store, bundle, manifest, path)


@contextmanager
def _opened(path: Path, name: str | None) -> Iterator[tuple[zipfile.ZipFile, _Manifest]]:
    """A bundle and what it says, checked; its only concept is called `name`, if that is given."""
    with ExitStack() as stack:
        with _reading(path):
            bundle = stack.enter_context(opened_zip(path))
        entries = _checked_entries(bundle, path)
        manifest = _read_manifest(bundle, path)
        if name is not None:
            if len(manifest.concepts) != 1:
                raise InvalidInput(
                    f"{path} holds {len(manifest.concepts)} concepts; only one can be renamed",
                    hint=f"concept import {quoted(path)}",
                )
            manifest.concepts[0].name = check_name(name)
        _check_manifest(manifest, entries, path)
        yield bundle, manifest


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What `zipfile` raises of a file, as ours; around nothing else, for a bug of ours is none."""
    try:
        yield
    except FileNotFoundError:
        raise NotFound(f"{path} does not exist") from None
    except OSError as error:
        raise InvalidBundle(f"cannot read {path}: {error.strerror or error}") from error
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        EOFError,
        LookupError,
        OverflowError,
        ValueError,
    ) as error:
        raise InvalidBundle(f"{path} is not a sound bundle: {error}") from None


def _checked_entries(bundle: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    entries: dict[str, zipfile.ZipInfo] = {}
    end = 0
    for info in sorted(bundle.infolist(), key=lambda info: info.header_offset):
        name = info.orig_filename
        kind = stat.S_IFMT(info.external_attr >> 16)
        is_ours = name == _MANIFEST or (
            name.startswith(_BLOBS) and is_sha256(name.removeprefix(_BLOBS))
        )
        if not is_ours:
            raise InvalidBundle(f"{path} holds {name!r}, which does not belong in a bundle")
        if kind not in (0, stat.S_IFREG) or info.flag_bits & 0x1:
            raise InvalidBundle(f"{path}: {name} is not a plain file")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise InvalidBundle(f"{path}: {name} is compressed, which bundles never are")
        if name in entries:
            raise InvalidBundle(f"{path} holds {name} twice")
        if info.header_offset < end:
            raise InvalidBundle(f"{path}: {name} overlaps with another file")
        end = info.header_offset + _LOCAL_HEADER_BYTES + len(name) + info.compress_size
        entries[name] = info
    if end > bundle.start_dir:
        raise InvalidBundle(f"{path} is not a sound bundle: it is shorter than what it holds")
    return entries


def _read_manifest(bundle: zipfile.ZipFile, path: Path) -> _Manifest:
    try:
        info = bundle.getinfo(_MANIFEST)
    except KeyError:
        raise InvalidBundle(f"{path} has no {_MANIFEST}: it is not a bundle") from None
    if info.file_size > MAX_MANIFEST_BYTES:
        raise InvalidBundle(f"{path}: the manifest is too large")
    with _reading(path):
        text = bundle.read(info)
    if _is_too_large(text):
        raise InvalidBundle(f"{path}: the manifest is too large")
    manifest = _parsed(text)
    if isinstance(manifest, str):
        _refuse_newer(text, path)
        raise InvalidBundle(f"{path}: the manifest is {manifest}")
    if (manifest.format, manifest.format_version) != (FORMAT, FORMAT_VERSION):
        _refuse_newer(text, path)
        raise InvalidBundle(f"{path} is not a {FORMAT}")
    return manifest


def _parsed(text: bytes) -> _Manifest | str:
    """The manifest, or what is wrong; the error itself would keep all of it in memory."""
    try:
        return _Manifest.model_validate_json(text)
    except ValidationError as error:
        return f"wrong: {problem(error)}"


def _is_too_large(text: bytes) -> bool:
    parts = sum(text.count(mark) for mark in (b",", b":", b"[", b"{"))
    return len(text) > MAX_MANIFEST_BYTES or parts > _MAX_MANIFEST_PARTS


def _refuse_newer(text: bytes, path: Path) -> None:
    """Say so where a manifest cannot be understood because a newer program wrote it."""
    try:
        header = _Format.model_validate_json(text)
    except ValidationError:
        return
    if header.format == FORMAT and header.format_version > FORMAT_VERSION:
        raise InvalidBundle(
            f"{path} was made by a newer program (bundle format {header.format_version})",
            hint="pip install --upgrade conceptry",
        )


def _check_manifest(
    manifest: _Manifest, entries: Mapping[str, zipfile.ZipInfo], path: Path
) -> None:
    """Hold the manifest to the rules that `add` and training hold to, and to what is there."""
    if not manifest.concepts:
        raise InvalidBundle(f"{path} holds no concept")
    if len({concept.name for concept in manifest.concepts}) != len(manifest.concepts):
        raise InvalidBundle(f"{path} holds a concept twice")
    try:
        for concept in manifest.concepts:
            _check_concept(concept)
        sizes = {_BLOBS + sha256: size for sha256, size in manifest.blobs().items()}
    except InvalidInput as error:
        raise InvalidBundle(f"{path}: {error.message}") from None
    present = {name: info.file_size for name, info in entries.items() if name != _MANIFEST}
    for name in sizes.keys() | present.keys():
        if sizes.get(name) != present.get(name):
            raise InvalidBundle(f"{path}: {name} is not as the manifest says")


def _check_concept(concept: _ConceptPart) -> None:
    """What concerns several fields; each by itself has been checked on reading."""
    runs = [run.uid for run in concept.runs]
    for what, values in (
        ("photo", [image.sha256 for image in concept.images]),
        ("version", [version.number for version in concept.versions]),
        ("alias", [alias for version in concept.versions for alias in version.aliases]),
        ("tag", concept.tags),
        ("run", runs),
    ):
        if len(set(values)) != len(values):
            raise InvalidInput(f"{concept.name} has the same {what} twice")
    for image in concept.images:
        if (image.mask is None) != (image.mask_bytes is None):
            raise InvalidInput(f"the mask of {image.filename} has no size")
    for version in concept.versions:
        if version.run is not None and version.run not in runs:
            raise InvalidInput(f"version {version.number} of {concept.name} has an unknown run")
        files = [artifact.name for artifact in version.artifacts]
        if len(set(files)) != len(files):
            raise InvalidInput(f"version {version.number} of {concept.name} has a file twice")


def _check_free(store: Store, manifest: _Manifest, path: Path) -> None:
    names = [concept.name for concept in manifest.concepts]
    taken = [name for name in names if category_of(store.database, name) is not None]
    if taken:
        one = len(names) == 1
        raise AlreadyExists(
            f'"{taken[0]}" is taken' + (f" ({len(taken)} names are)" if len(taken) > 1 else ""),
            hint=f"concept import {quoted(path)} --as NAME"
            if one
            else f"concept rename {taken[0]} NAME",
        )


def _take_in(
    store: Store, bundle: zipfile.ZipFile, manifest: _Manifest, path: Path
) -> list[Concept]:
    with store.receive() as staging, images.strict_decoding():
        for sha256, size in manifest.blobs().items():
            if staging.write(_entry(bundle, _BLOBS + sha256, size, path)) != sha256:
                raise InvalidBundle(f"{path}: {_BLOBS}{sha256} is damaged")
        photos: dict[str, images.Inspected] = {}
        masks: set[tuple[str, str]] = set()
        for image in (image for concept in manifest.concepts for image in concept.images):
            name = f"{path}: {image.filename}"
            if image.sha256 not in photos:
                data = staging.path(image.sha256).read_bytes()
                photos[image.sha256] = images.inspect(data, name)
            if image.mask is not None and (image.sha256, image.mask) not in masks:
                _check_mask(staging.path(image.mask).read_bytes(), photos[image.sha256], name)
                masks.add((image.sha256, image.mask))
        for concept in manifest.concepts:
            for version in concept.versions:
                for artifact in version.artifacts:
                    _check_artifact(staging.path(artifact.sha256), artifact, path)
        staging.publish()
        with store.database.write() as session:
            for concept in manifest.concepts:
                if concept_row(session, concept.name) is not None:
                    raise AlreadyExists(f'"{concept.name}" is taken')
                _insert_concept(session, concept, photos, store.location)
    return [show_concept(store.database, concept.name) for concept in manifest.concepts]


def _entry(bundle: zipfile.ZipFile, name: str, size: int, path: Path) -> Iterator[bytes]:
    """The bytes of an entry, never more than it declares (and one chunk)."""
    total = 0
    with _reading(path):
        entry = bundle.open(name)
    with entry:
        while total <= size:
            with _reading(path):
                chunk = entry.read(CHUNK)
            if not chunk:
                return
            total += len(chunk)
            yield chunk


def _check_artifact(staged: Path, artifact: _ArtifactPart, path: Path) -> None:
    name = f"{path}: {artifact.name}"
    if artifact.kind == PREVIEW:
        images.check_preview(images.read_file(staged), name)
    else:
        check_weights(staged, name=name)


def _check_mask(mask: bytes, photo: images.Inspected, name: str) -> None:
    if not images.is_stored_mask(mask, images.size_as_read(photo.width, photo.height)):
        raise InvalidImage(f"{name} has an unusable mask")


def _insert_concept(
    session: Session,
    part: _ConceptPart,
    photos: Mapping[str, images.Inspected],
    location: Location,
) -> None:
    concept = ConceptRow(
        name=part.name,
        category=part.category,
        notes=part.notes,
        created=part.created,
        updated=now(),
        search="",
    )
    session.add(concept)
    session.flush()
    set_tags(session, concept, add=part.tags)
    for image in part.images:
        photo = photos[image.sha256]
        session.add(
            Image(
                concept_id=concept.id,
                format=photo.format,
                width=photo.width,
                height=photo.height,
                phash=photo.phash,
                **image.model_dump(),
            )
        )
    runs = {run.uid: _insert_run(session, concept.id, run, location) for run in part.runs}
    for version in part.versions:
        _insert_version(session, concept.id, version, runs)
    refresh(session, concept)
    last = {} if part.last_number is None else {"number": part.last_number}
    images_of = [image.sha256 for image in part.images]
    record_event(session, concept, IMPORTED, images=images_of, **last)
    for version in part.versions:
        if version.origin:
            origin = version.origin.model_dump(include=set(_OriginPart.model_fields))
            record_event(session, concept, "version", number=version.number, run=None, **origin)


def _insert_run(session: Session, concept_id: int, part: _RunPart, location: Location) -> int:
    """Its id stays, unless another run has it or left a folder, which is not the import's."""
    fields = part.model_dump(exclude={"images", "metrics", "config", "packages", "uid"})
    has_folder = os.path.lexists(below(location.runs, part.uid))
    taken = has_folder or session.exec(select(Run).where(Run.uid == part.uid)).first() is not None
    run = Run(
        concept_id=concept_id,
        uid=os.urandom(6).hex() if taken else part.uid,
        config=to_json(part.config),
        packages=to_json(part.packages),
        **fields,
    )
    session.add(run)
    session.flush()
    session.add_all(RunImage(run_id=run.id, sha256=sha256) for sha256 in set(part.images))
    numbers = {(stage, step, name): value for stage, step, name, value in part.metrics}
    if numbers:
        rows = [
            {"run_id": run.id, "stage": stage, "step": step, "name": name, "value": value}
            for (stage, step, name), value in numbers.items()
        ]
        session.execute(insert(Metric), rows)
    return run.id


def _insert_version(
    session: Session, concept_id: int, part: _VersionPart, runs: Mapping[str, int]
) -> None:
    version = Version(
        concept_id=concept_id,
        number=part.number,
        run_id=runs[part.run] if part.run is not None else None,
        created=part.created,
    )
    session.add(version)
    session.flush()
    for alias in part.aliases:
        session.add(Alias(concept_id=concept_id, alias=alias, version_id=version.id))
    for artifact in part.artifacts:
        session.add(Artifact(version_id=version.id, **artifact.model_dump()))
    for row in part.evaluations:
        session.add(
            Evaluation(
                version_id=version.id,
                suite=row.suite,
                config=to_json(row.config),
                scores=to_json(row.scores),
                created=row.created,
            )
        )

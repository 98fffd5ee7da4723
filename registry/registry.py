"""The registry as everyone else sees it. Each method's work is in the module its name suggests."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from . import locks, queries, running
from .blobs import DEFAULT_GRACE, BlobStore
from .database import Database
from .errors import ConceptryError, RegistryCorrupt, RegistryMissing, StorageError
from .files import PRIVATE, check_can_write
from .location import Location, locate, plain_path
from .locks import RegistryLock
from .records import (
    AddReport,
    BackupReport,
    BundleReport,
    CheckReport,
    Concept,
    ConceptKey,
    EvaluationRecord,
    EventRecord,
    GcReport,
    ImageRecord,
    Lineage,
    Page,
    PictureRecord,
    QueuedTraining,
    RunRecord,
    Scored,
)
from .store import Store
from .when_used import WhenUsed

if TYPE_CHECKING:
    from PIL.Image import Image

    from . import backup, bundle, edits, images, intake, lineage, queued, removal, sources, upkeep
    from . import originals as originals_
    from .intake import Progress
    from .originals import Original, TakenIn
else:
    backup, bundle, edits, images = map(WhenUsed, ("backup", "bundle", "edits", "images"))
    intake, lineage, sources, upkeep = map(WhenUsed, ("intake", "lineage", "sources", "upkeep"))
    originals_, queued, removal = map(WhenUsed, ("originals", "queued", "removal"))

DEFAULT_TIMEOUT = 30.0
"""Seconds to wait for another process before the registry counts as busy."""

AnyPath = str | os.PathLike[str]


class Registry:
    """A registry of concepts: photos, trained versions, and the record of what made what.

        with Registry.open("concepts.db", create=True) as registry:
            registry.add("rex", ["photos/"], category="dog", tags=["pets"])
            for concept in registry.find(tags=["pets"]).concepts:
                print(concept.name, concept.images)

    Every change is one transaction: done completely or not at all, also after a crash.
    Several processes may use one registry; within a process, open one `Registry` per thread.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    @classmethod
    def open(
        cls,
        path: AnyPath | None = None,
        *,
        create: bool = False,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Self:
        """Open a registry, migrating its schema if needed; with `create`, make a missing one.

        Without `path` it is `$CONCEPT_REGISTRY`, `./concepts.db` or the one in the user's data
        folder. Raises `RegistryMissing`, `RegistryCorrupt`, `RegistryTooNew`, and, after `timeout`
        seconds, `RegistryBusy`.
        """
        location = locate(path)
        _prepare(location, create)
        database = Database(location.database, timeout=timeout)
        try:
            store = Store(
                location=location,
                database=database,
                blobs=BlobStore(location.blobs),
                lock=RegistryLock(location, timeout),
            )
            _bring_up_to_date(store, create)
        except BaseException:
            database.close()
            raise
        return cls(store)

    def close(self) -> None:
        """Close the database."""
        self._store.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def location(self) -> Location:
        """The paths of the database and of the blobs."""
        return self._store.location

    def check_outside(self, path: AnyPath | None) -> None:
        """Raise `InvalidInput` if an output path, unless None, is one of the registry's own."""
        if path is not None:
            self.location.check_outside(plain_path(path))

    def check_folder(self, path: AnyPath | None) -> None:
        """Raise for an output folder, unless None, into which nothing can be written.

        `InvalidInput` if it is one of the registry's own, else `StorageError`.
        """
        if path is not None:
            self.check_outside(path)
            check_can_write(plain_path(path))

    # --- concepts -------------------------------------------------------------------------------

    def add(
        self,
        name: str,
        paths: Iterable[AnyPath],
        *,
        category: str | None = None,
        caption: str | None = None,
        masks: AnyPath | None = None,
        tags: Sequence[str] = (),
        notes: str | None = None,
        on_progress: "Progress | None" = None,
    ) -> AddReport:
        """Create a concept from photos, or append photos to it: all of them or none.

        `paths` are files, folders and patterns. `category` is the plain word for what it is, and
        needed for a new concept. The caption of a photo is the text file beside it, else
        `caption`; its mask is the picture of the same name in the folder `masks`, else its alpha
        channel (see `sources.collect`). Bytes are stored as they are. Photos already in the concept
        are not stored again but take over a new caption or mask; near-duplicates, small, blurred
        and dark photos are added and reported.

        Raises `InvalidInput` (a bad name or photo), `NotFound` (a path), `RegistryBusy` and
        `StorageError`.
        """
        paths = list(paths)
        found = sources.collect(paths, caption=caption, masks=masks)
        return intake.add(
            self._store,
            name,
            found,
            category=category,
            tags=tags,
            notes=notes,
            warnings=sources.passed_over(paths, found, masks=masks),
            on_progress=on_progress,
        )

    def find(
        self,
        *,
        text: str = "",
        tags: Sequence[str] = (),
        category: str | None = None,
        sort: str = "name",
        descending: bool = False,
        limit: int = 50,
        page: int = 1,
    ) -> Page:
        """One page of concepts: those with all `tags`, the `category`, and every word of `text`.

        Words are looked for anywhere in name, category, tags, notes and captions, ignoring case.
        `sort` is one of name, created, updated, images, versions, bytes (of stored files) and size
        (of all that is on disk). `limit` 0 means all.
        """
        return queries.find_concepts(
            self._store.database,
            text=text,
            tags=tags,
            category=category,
            sort=sort,
            descending=descending,
            limit=limit,
            page=page,
        )

    def show(self, concept: ConceptKey) -> Concept:
        """Everything about one concept; raises `ConceptNotFound`, which suggests near names."""
        return queries.show_concept(self._store.database, concept)

    def names(self) -> list[str]:
        """The names of all concepts, sorted."""
        return queries.names(self._store.database)

    def edit(
        self,
        name: ConceptKey,
        *,
        category: str | None = None,
        notes: str | None = None,
        tag: Sequence[str] = (),
        untag: Sequence[str] = (),
        captions: Mapping[str, str] | None = None,
        remove_images: Sequence[str] = (),
    ) -> Concept:
        """Change a concept's metadata; None leaves a field as it is.

        Photos are named by file name, hash, or the first 4 or more digits of it. Raises
        `ConceptNotFound`, `NotFound` (a photo) and `InvalidInput`.
        """
        return edits.edit(
            self._store,
            name,
            category=category,
            notes=notes,
            tag=tag,
            untag=untag,
            captions=captions or {},
            remove_images=remove_images,
        )

    def rename(self, name: str, new_name: str) -> Concept:
        """Give a concept another name; raises `ConceptNotFound` and `AlreadyExists`."""
        return edits.rename(self._store, name, new_name)

    def remove(self, names: Sequence[str]) -> list[str]:
        """Remove concepts, or versions as `rex@3` and `rex@best`: all or, if one is missing, none.

        With a version go its scores, its aliases and the training that made it; its number is not
        given again. Files stay until `gc`. Returns what is gone, each once, a version by its
        number. Raises `ConceptNotFound`, and `NotFound` for a version.
        """
        return removal.remove(self._store, names)

    def history(self, name: str | None = None, *, limit: int = 0) -> list[EventRecord]:
        """The events of one concept (removed ones too) or of all, oldest first.

        The last `limit` events, 0 for all of them.
        """
        return queries.history(self._store.database, name, limit)

    def read_photo(self, image: ImageRecord, *, at_least: int | None = None) -> "Image":
        """A photo of a concept in sRGB, upright, white where transparent.

        It has the size of `images.size_as_read`; with `at_least`, it may be reduced while it is
        decoded, to a shorter side of that or more. Raises `RegistryCorrupt` if its file is missing
        or damaged.
        """
        data = self._store.blobs.read(image.sha256)
        return images.read_photo(data, image.filename, at_least=at_least)

    def read_mask(self, image: ImageRecord) -> "Image | None":
        """The mask of a photo, if any: 8-bit grey, of the size as read, white on the subject."""
        if image.mask is None:
            return None
        return images.open_stored_mask(self._store.blobs.read(image.mask))

    def set_masks(
        self, name: ConceptKey, masks: "Mapping[str, Image]", *, replace: bool = False
    ) -> list[str]:
        """Give photos, by hash, masks: 8-bit grey of any size, white on the subject.

        Photos that have one keep it, unless `replace`. Returns the hashes of those that got one.
        """
        return intake.set_masks(self._store, name, masks, replace=replace)

    def path_of(self, sha256: str) -> Path:
        """The stored file of a photo, mask or artifact. Never write to it."""
        return self._store.blobs.path(sha256)

    # --- upkeep ---------------------------------------------------------------------------------

    def check(
        self,
        *,
        read_data: bool = False,
        repair: bool = False,
        look_in: AnyPath | None = None,
        on_progress: "Progress | None" = None,
    ) -> CheckReport:
        """Compare the rows with the stored files; with `read_data` hash every file again.

        `repair` puts misnamed files in place, sets damaged ones aside, renews search texts and
        copies lost files back from wherever under `look_in` their bytes are found (a backup, the
        original photos). It never deletes a photo, nor the row of one.
        """
        return upkeep.check(
            self._store,
            read_data=read_data,
            repair=repair,
            look_in=plain_path(look_in) if look_in is not None else None,
            on_progress=on_progress,
        )

    def gc(
        self,
        *,
        grace: float = DEFAULT_GRACE,
        dry_run: bool = False,
        checkpoints: bool = False,
        cache_size: float = 0,
        unknown: bool = False,
    ) -> GcReport:
        """Delete stored files that no row needs and that are older than `grace` seconds.

        Also deletes resume points that no training can use any more, the cache but for its latest
        `cache_size` bytes and, with `checkpoints`, the checkpoints of finished trainings. Files
        that cannot be deleted are named in the report.

        Raises `RegistryBusy` while photos are being added, and `RegistryCorrupt`, having deleted
        nothing, if the database is damaged. So too, unless `unknown` is set, if files are missing,
        or if another database, or a later state of this one, stored files here last.
        """
        return upkeep.gc(
            self._store,
            grace=grace,
            dry_run=dry_run,
            checkpoints=checkpoints,
            cache_size=cache_size,
            unknown=unknown,
        )

    def backup(self, folder: AnyPath, *, on_progress: "Progress | None" = None) -> BackupReport:
        """Copy the registry into a folder, as a registry of its own.

        A folder with an earlier backup is brought up to date. Raises `AlreadyExists` for a folder
        with other things in it, `RegistryCorrupt` if a stored file is damaged (the others are
        copied all the same).
        """
        return backup.backup(self._store, plain_path(folder), on_progress)

    def export_bundle(
        self, names: Sequence[str], path: AnyPath, *, overwrite: bool = False
    ) -> BundleReport:
        """Write concepts, with photos, runs and versions, to one portable file.

        Left out: resume points of trainings and records of pictures. Raises `ConceptNotFound`,
        `AlreadyExists` and `RegistryCorrupt`.
        """
        return bundle.export_bundle(self._store, names, plain_path(path), overwrite=overwrite)

    def import_bundle(self, path: AnyPath, *, name: str | None = None) -> list[Concept]:
        """Import all concepts of an exported file, or none; `name` renames a single one.

        Raises `NotFound`, `InvalidBundle`, `InvalidImage`, `InvalidWeights` and `AlreadyExists`.
        """
        return bundle.import_bundle(self._store, plain_path(path), name=name)

    def import_originals(
        self,
        originals: "Sequence[Original]",
        *,
        on_progress: Callable[[], None] = lambda: None,
    ) -> "list[TakenIn | ConceptryError]":
        """Make a concept of each of some files of other tools, whose bytes are stored as they are.

        Those whose weights are stored already are left out, and named. What cannot be one stops no
        other: its error takes its place. `on_progress` is called once for each. Raises
        `RegistryBusy` and `StorageError`, having stored nothing.
        """
        return originals_.take_in(self._store, originals, on_progress=on_progress)

    # --- the queue of trainings ------------------------------------------------------------------

    def enqueue(
        self, concepts: Sequence[ConceptKey], options: Mapping[str, object], *, first: bool = False
    ) -> list[QueuedTraining]:
        """Let a training of each concept wait for its turn, the last ones or the `first`.

        `options` say what `concept train` is told: `training.queued.TrainOptions.to_mapping`.
        They are read when the training begins.
        """
        return queued.add(self._store, concepts, options, first=first)

    def queue(self) -> list[QueuedTraining]:
        """The trainings in the queue, in the order of their turns; in the end those that failed."""
        return queries.queue(self._store.database)

    def dequeue(self, ids: Sequence[int]) -> list[QueuedTraining]:
        """Take trainings out of the queue, all of them or none; returns them as they were.

        Raises `NotFound`, and `RegistryBusy` for one that is under way.
        """
        return queued.remove(self._store, ids)

    def put_first(self, ids: Sequence[int]) -> list[QueuedTraining]:
        """Let trainings be next, in this order; those that were begun still go before them.

        Raises `NotFound`, and `InvalidInput` for one that has failed.
        """
        return queued.put_first(self._store, ids)

    def retry_failed(self) -> None:
        """Give the queued trainings that failed another turn; they go on where they were."""
        queued.retry(self._store)

    def claim_queued(
        self, how_many: Callable[[QueuedTraining], int]
    ) -> AbstractContextManager[list[QueuedTraining]]:
        """Take the next training that nobody works on, and hold it until the block ends.

        With it come those behind it with the same options, up to as many as `how_many` says of the
        first. A run that begins in the block on one of their concepts is begun for it. Empty if
        there is nothing to take.
        """
        return queued.claim(self._store, how_many)

    def finish_queued(self, training: int) -> None:
        """Let a training that was taken leave the queue: all that was asked for is done."""
        queued.finish(self._store, training)

    def fail_queued(self, training: int, message: str) -> None:
        """Record that a queued training cannot be done, and why; no run was begun for it."""
        queued.fail(self._store, training, message)

    # --- lineage --------------------------------------------------------------------------------

    def begin_run(
        self,
        concept: ConceptKey,
        *,
        method: str,
        config: Mapping[str, object],
        base: str,
        base_sha256: str,
        seed: int,
        packages: Mapping[str, str],
    ) -> str:
        """Record that a training of a concept's present photos begins; returns the run's id.

        If the settings list `photos`, by hash, it is of these alone.
        Hold the `training_lock` until it ends, or other processes take the run for interrupted.
        """
        return lineage.begin_run(
            self._store,
            concept,
            method=method,
            config=config,
            base=base,
            base_sha256=base_sha256,
            seed=seed,
            packages=packages,
        )

    def resume_run(self, run: str) -> None:
        """Record that an interrupted run continues."""
        lineage.resume_run(self._store, run)

    def resumable_run(self, concept: ConceptKey) -> RunRecord:
        """The latest run of a concept. Raises `NotFound` if it is done, or was imported."""
        return running.resumable_run(self._store, self.show(concept))

    def began_here(self, run: str) -> bool:
        """Whether a run began in this registry; imported ones cannot be resumed."""
        return queries.began_here(self._store.database, run)

    def training_lock(self, concept: ConceptKey) -> AbstractContextManager[None]:
        """Lock a concept for training. Raises `RegistryBusy` if another process trains it."""
        return locks.training_lock(self.location, self.show(concept))

    def run_folder(self, run: str) -> Path:
        """The folder of a run's resume point, previews and checkpoints."""
        return running.run_folder(self.location, run)

    def checkpoints(self, run: str) -> list[Path]:
        """The kept checkpoints of a run, in order."""
        return running.checkpoints(self.location, run)

    def cache_folder(self, *names: str) -> Path:
        """A folder of the cache, for what can be recomputed; `gc` clears it."""
        return running.cache_folder(self.location, *names)

    def tidy_run_folder(self, run: str) -> None:
        """Remove a run's resume point; its previews and checkpoints stay."""
        running.tidy_run_folder(self.location, run)

    def end_run(self, run: str, status: str, *, error: str | None = None) -> None:
        """Record how a run ended; `status` is done, interrupted or failed."""
        lineage.end_run(self._store, run, status, error=error)

    def log_metrics(self, run: str, rows: Iterable[tuple[str, int, str, float]]) -> None:
        """Record (stage, step, name, value) rows; a row logged again replaces the former."""
        lineage.log_metrics(self._store, run, rows)

    def metrics(self, run: str) -> list[tuple[str, int, str, float]]:
        """The logged rows of a run, (stage, step, name, value), stage after stage."""
        return lineage.metrics(self._store, run)

    def add_version(
        self,
        concept: ConceptKey,
        files: Mapping[str, AnyPath],
        *,
        run: str | None = None,
        kind: str = "adapter",
        alias: str | None = None,
        evaluation: Callable[[int], Scored] | None = None,
        origin: Mapping[str, object] | None = None,
    ) -> int:
        """Store safetensors files as the next version of a concept and return its number.

        `origin` says in history what it was made of, if not by a training.
        The alias, and the scores that `evaluation` returns for the number, are recorded in the same
        transaction. Raises `InvalidWeights` for anything but sound, finite safetensors.
        """
        return lineage.add_version(
            self._store,
            concept,
            _plain_paths(files),
            run=run,
            kind=kind,
            alias=alias,
            evaluation=evaluation,
            origin=origin or {},
        )

    def finish_run(self, run: str, files: Mapping[str, AnyPath], *, kind: str = "adapter") -> int:
        """Store a run's adapter as the next version and mark the run done, in one transaction.

        Returns the version's number. Raises what `add_version` raises.
        """
        return lineage.finish_run(self._store, run, _plain_paths(files), kind=kind)

    def set_alias(self, concept: ConceptKey, number: int, alias: str) -> None:
        """Give a version an alias such as `best`, which moves from another version if need be."""
        lineage.set_alias(self._store, concept, number, alias)

    def add_evaluation(
        self,
        concept: ConceptKey,
        number: int,
        *,
        suite: str,
        config: Mapping[str, object],
        scores: Mapping[str, object],
    ) -> None:
        """Record the scores of a version on a prompt suite."""
        lineage.add_evaluation(
            self._store, concept, number, suite=suite, config=config, scores=scores
        )

    def evaluations(self, concept: ConceptKey) -> list[EvaluationRecord]:
        """The scores of a concept's versions, oldest first. Raises `NotFound`."""
        return lineage.evaluations(self._store, concept)

    def add_generation(
        self,
        output_sha256: str,
        *,
        prompt: str,
        seed: int,
        base: str,
        base_sha256: str,
        settings: Mapping[str, object],
        versions: Sequence[tuple[ConceptKey, int]],
    ) -> None:
        """Record a picture by the hash of its file; `versions` are (concept, number) pairs.

        Concepts given by id may have been removed since.
        """
        lineage.add_generation(
            self._store,
            output_sha256,
            prompt=prompt,
            seed=seed,
            base=base,
            base_sha256=base_sha256,
            settings=settings,
            versions=versions,
        )

    def pictures(self, concept: ConceptKey) -> list[PictureRecord]:
        """The pictures that were drawn with a concept, oldest first. Raises `ConceptNotFound`."""
        return queries.pictures(self._store.database, concept)

    def trace(self, output_sha256: str) -> Lineage:
        """The versions, runs and photos that made a picture. Raises `NotFound`."""
        return lineage.trace(self._store, output_sha256)


def _plain_paths(files: Mapping[str, AnyPath]) -> dict[str, Path]:
    return {name: plain_path(path) for name, path in files.items()}


def _prepare(location: Location, create: bool) -> None:
    database = location.database
    try:
        if database.exists() and database.stat().st_size > 0:
            return
        if folder := running.stored_files(location):
            if database.exists() and database.stat().st_size > 0:  # another process made it
                return
            raise _lost(folder, f"{database} is " + ("empty" if database.exists() else "gone"))
        if not create:
            raise RegistryMissing(
                f"there is no registry at {database}",
                hint="concept add NAME PHOTO… --category WORD creates it",
            )
        location.blobs.mkdir(PRIVATE, parents=True, exist_ok=True)
        os.close(os.open(database, os.O_RDWR | os.O_CREAT, PRIVATE & 0o666))
    except OSError as error:
        raise StorageError(f"cannot use {database}: {error.strerror}") from error


def _lost(folder: Path, what: str) -> RegistryCorrupt:
    """The error for a registry whose files are there and whose database is not."""
    return RegistryCorrupt(
        f"{folder} holds stored files, but {what}",
        hint="restore the database from a backup, or move the folder away",
    )


def _bring_up_to_date(store: Store, create: bool) -> None:
    if store.database.is_blank():
        # Asked again, for another process may have made it and stored files in between.
        if (folder := running.stored_files(store.location)) and store.database.is_blank():
            raise _lost(folder, f"{store.location.database} has nothing in it")
        if not create:
            raise RegistryMissing(f"there is no registry at {store.location.database}")
    if store.database.pending():
        with store.lock.exclusive():
            if store.database.pending():  # another process may have been faster
                store.database.upgrade()

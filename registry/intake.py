"""Adding photos to a concept, all or nothing."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import numpy as np
import PIL.Image
from sqlmodel import Session, col, select

from . import images
from .blobs import Staging
from .clock import now
from .edits import (
    check_category_fits,
    concept_row,
    existing_row,
    record_event,
    refresh,
    set_tags,
)
from .errors import InvalidImage
from .names import check_category, check_name, check_text, plain_file_name
from .queries import category_of, show_concept
from .records import AddedImage, AddReport, ConceptKey, Duplicate, PhotoWarning
from .sources import Source, collect, listed
from .store import Store
from .tables import Concept, Image

Progress = Callable[[int, int], None]
"""Called with how many of how many are done."""

NUM_THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class Received:
    """A photo whose bytes, and whose mask's, are safely in the staging."""

    source: Source
    sha256: str
    num_bytes: int
    photo: images.Inspected
    mask: str | None
    mask_bytes: int | None


def add(
    store: Store,
    name: str,
    sources: Sequence[Source],
    *,
    category: str | None,
    tags: Sequence[str],
    notes: str | None,
    warnings: Sequence[PhotoWarning] = (),
    on_progress: Progress | None,
) -> AddReport:
    """Create or extend a concept; see `Registry.add`."""
    category, notes = _checked(name, tags, category, notes)
    check_category_fits(name, category_of(store.database, name), category)  # before reading photos
    with store.receive() as staging:
        received = _receive_all(sources, staging, on_progress)
        staging.publish()
        with store.database.write() as session:
            concept = concept_row(session, name)
            check_category_fits(name, concept and concept.category, category)
            concept = concept or _new_concept(session, name, category)
            added, duplicates = _insert(session, concept, received)
            changes = _changes(concept, added, duplicates, notes)
            new_tags, _ = set_tags(session, concept, add=tags)
            if new_tags:
                changes["tag"] = new_tags
            if changes:
                concept.notes = concept.notes if notes is None else notes
                refresh(session, concept)
                record_event(session, concept, "add", **changes)
        found = [warning for item in received for warning in _warnings(item)]
        warnings = [*found, *_without_masks(received), *warnings]
        return AddReport(show_concept(store.database, name), added, duplicates, warnings)


def check_new(
    name: str,
    paths: Iterable[str | os.PathLike[str]],
    *,
    category: str | None,
    caption: str | None,
    masks: str | os.PathLike[str] | None,
    tags: Sequence[str],
    notes: str | None,
) -> None:
    """Raise what `Registry.add` would of a new concept, but for what is in photos.

    For callers that would make a registry for it.
    """
    collect(paths, caption=caption, masks=masks)
    category, _ = _checked(name, tags, category, notes)
    check_category_fits(name, None, category)


def _checked(
    name: str, tags: Sequence[str], category: str | None, notes: str | None
) -> tuple[str | None, str | None]:
    """Category and notes as they are stored; raises `InvalidInput` if any of these is none."""
    check_name(name)
    for tag in tags:
        check_name(tag, "tag")
    category = check_category(category) if category is not None else None
    return category, check_text(notes, "notes") if notes is not None else None


def _receive_all(
    sources: Sequence[Source], staging: Staging, on_progress: Progress | None
) -> list[Received]:
    """Decode, hash and stage every photo, several at once; all bad ones are reported together."""
    received: dict[int, Received] = {}
    errors: dict[int, InvalidImage] = {}
    with images.strict_decoding(), ThreadPoolExecutor(NUM_THREADS) as pool:
        jobs = {pool.submit(_receive, source, staging): i for i, source in enumerate(sources)}
        try:
            for done, job in enumerate(as_completed(jobs), 1):
                try:
                    received[jobs[job]] = job.result()
                except InvalidImage as error:
                    errors[jobs[job]] = error
                if on_progress is not None:
                    on_progress(done, len(sources))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if errors:
        raise _summary([errors[i] for i in sorted(errors)], len(sources))
    return [received[i] for i in sorted(received)]


def _receive(source: Source, staging: Staging) -> Received:
    data = images.read_file(source.path)
    photo = images.inspect(data, str(source.path))
    mask = photo.alpha
    if source.mask is not None:
        mask_file = images.read_file(source.mask)
        size = images.size_as_read(photo.width, photo.height)
        mask = images.read_mask(mask_file, str(source.mask), size)
    return Received(
        source=source,
        sha256=staging.write(data),
        num_bytes=len(data),
        photo=photo,
        mask=staging.write(mask) if mask else None,
        mask_bytes=len(mask) if mask else None,
    )


def set_masks(
    store: Store, key: ConceptKey, masks: Mapping[str, PIL.Image.Image], *, replace: bool
) -> list[str]:
    """Give photos masks; see `Registry.set_masks`."""
    with store.receive() as staging:
        known = {image.sha256: image for image in show_concept(store.database, key).images}
        stored: dict[str, tuple[str, int]] = {}
        for sha256, mask in masks.items():
            if sha256 in known and (replace or known[sha256].mask is None):
                size = images.size_as_read(known[sha256].width, known[sha256].height)
                data = images.stored_mask(mask, size)
                stored[sha256] = staging.write(data), len(data)
        staging.publish()
        with store.database.write() as session:
            concept = existing_row(session, store.database, key)
            query = select(Image).where(Image.concept_id == concept.id).order_by(col(Image.id))
            changed: list[str] = []
            for row in session.exec(query):
                if row.sha256 in stored and (replace or row.mask is None):
                    row.mask, row.mask_bytes = stored[row.sha256]
                    changed.append(row.sha256)
            if changed:
                refresh(session, concept)
                record_event(session, concept, "edit", updated_images=changed)
        return changed


def _summary(errors: list[InvalidImage], num_sources: int) -> InvalidImage:
    message = errors[0].message
    if len(errors) > 1:
        others = ", ".join(error.message for error in errors[1:4])
        more = f" and {len(errors) - 4} more" if len(errors) > 4 else ""
        message = f"{len(errors)} of {num_sources} files cannot be used: {message}, {others}{more}"
    return InvalidImage(message, hint="leave out or replace it; nothing was added")


def _new_concept(session: Session, name: str, category: str | None) -> Concept:
    assert category is not None, "check_category_fits has seen to it"
    moment = now()
    concept = Concept(name=name, category=category, created=moment, updated=moment, search="")
    session.add(concept)
    session.flush()
    record_event(session, concept, "create", category=category)
    return concept


def _insert(
    session: Session, concept: Concept, received: Sequence[Received]
) -> tuple[list[AddedImage], list[Duplicate]]:
    """Insert the photos that are new to the concept, and say which resemble others in it."""
    query = select(Image).where(Image.concept_id == concept.id).order_by(col(Image.id))
    known = list(session.exec(query))
    hashes = images.hash_bits([image.phash for image in known])
    by_hash = {image.sha256: image for image in known}
    added: list[AddedImage] = []
    duplicates: list[Duplicate] = []
    moment = now()
    for item in received:
        path = str(item.source.path)
        if same := by_hash.get(item.sha256):
            updated = _take_over(same, item)
            duplicates.append(
                Duplicate(path, item.sha256, same.sha256, same.filename, True, 0, updated)
            )
            continue
        distances = images.distances(item.photo.phash, hashes)
        if known and distances.min() <= images.NEAR:
            nearest = int(distances.argmin())
            near, distance = known[nearest], int(distances[nearest])
            duplicates.append(
                Duplicate(path, item.sha256, near.sha256, near.filename, False, distance, [])
            )
        image = _row(concept, item, moment)
        known.append(image)
        hashes = np.append(hashes, images.hash_bits([image.phash]))
        by_hash[image.sha256] = image
        added.append(AddedImage(path, item.sha256))
    session.add_all(known)
    return added, duplicates


def _changes(
    concept: Concept,
    added: Sequence[AddedImage],
    duplicates: Sequence[Duplicate],
    notes: str | None,
) -> dict[str, object]:
    """What history will say of an `add`."""
    changes: dict[str, object] = {}
    if added:
        changes["images"] = [image.sha256 for image in added]
    if updated := [double.sha256 for double in duplicates if double.updated]:
        changes["updated_images"] = updated
    if notes not in (None, concept.notes):
        changes["notes"] = notes
    return changes


def _take_over(image: Image, item: Received) -> list[str]:
    """Give a photo that was added again its new caption and mask."""
    updated: list[str] = []
    if item.source.caption and item.source.caption != image.caption:
        image.caption = item.source.caption
        updated.append("caption")
    is_better = item.source.mask is not None or image.mask is None
    if item.mask and item.mask != image.mask and is_better:
        image.mask, image.mask_bytes = item.mask, item.mask_bytes
        updated.append("mask")
    return updated


def _row(concept: Concept, item: Received, moment: str) -> Image:
    return Image(
        concept_id=concept.id,
        sha256=item.sha256,
        bytes=item.num_bytes,
        filename=plain_file_name(item.source.path.name),
        format=item.photo.format,
        width=item.photo.width,
        height=item.photo.height,
        caption=item.source.caption,
        mask=item.mask,
        mask_bytes=item.mask_bytes,
        phash=item.photo.phash,
        added=moment,
    )


def _warnings(item: Received) -> list[PhotoWarning]:
    path, photo = str(item.source.path), item.photo
    found: list[PhotoWarning] = []
    if min(photo.width, photo.height) < images.SMALL:
        size = f"{photo.width}x{photo.height}"
        found.append(PhotoWarning("small", path, f"{size} is below {images.SMALL} pixels"))
    if photo.blur > images.BLURRED:
        found.append(PhotoWarning("blurred", path, f"looks blurred ({photo.blur:.2f} of 1)"))
    if photo.brightest < images.DARK:
        shades = f"99 % of it is below {photo.brightest + 1} of 255"
        found.append(PhotoWarning("dark", path, f"is very dark ({shades})"))
    if photo.colour is not None:
        found.append(PhotoWarning("colour", path, photo.colour))
    if photo.frames > 1:
        found.append(PhotoWarning("frames", path, f"has {photo.frames} frames; the first is used"))
    return found


def _without_masks(received: Sequence[Received]) -> list[PhotoWarning]:
    """Photos that got no mask although others did from files."""
    masks = [item.source.mask for item in received if item.source.mask is not None]
    lacking = [item.source.path.name for item in received if item.mask is None]
    if not masks or not lacking:
        return []
    message = f"has no mask for {len(lacking)} of {len(received)} photos ({listed(lacking)})"
    return [PhotoWarning("no_mask", str(masks[0].parent), message)]

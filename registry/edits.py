"""Changing what is known of a concept: category, notes, tags, captions, its name."""

from collections.abc import Mapping, Sequence

from sqlmodel import Session, col, select

from .clock import now
from .database import Database
from .errors import (
    AlreadyExists,
    ConceptNotFound,
    InvalidInput,
    NotFound,
    quoted,
)
from .names import check_category, check_name, check_text, findable
from .queries import names, search_text, show_concept, to_json
from .records import Concept as ConceptRecord
from .records import ConceptKey
from .store import Store
from .tables import Concept, Event, Image, Tag


def edit(
    store: Store,
    name: ConceptKey,
    *,
    category: str | None,
    notes: str | None,
    tag: Sequence[str],
    untag: Sequence[str],
    captions: Mapping[str, str],
    remove_images: Sequence[str],
) -> ConceptRecord:
    """Change a concept; see `Registry.edit`."""
    with store.database.write() as session:
        concept = existing_row(session, store.database, name)
        detail: dict[str, object] = {}
        if category is not None:
            detail["category"] = concept.category = check_category(category)
        if notes is not None:
            detail["notes"] = concept.notes = check_text(notes, "notes")
        new, gone = set_tags(
            session, concept, add=[check_name(t, "tag") for t in tag], remove=untag
        )
        detail |= {"tag": new, "untag": gone} if new or gone else {}
        captioned: dict[str, str | None] = {}
        for image, caption in captions.items():
            row = _image_row(session, concept, image)
            row.caption = check_text(caption, "caption") or None
            captioned[row.sha256] = row.caption
        if captioned:
            detail["captions"] = captioned
        leaving = {
            row.sha256: row for row in (_image_row(session, concept, i) for i in remove_images)
        }
        for row in leaving.values():
            session.delete(row)
        if leaving:
            detail["removed_images"] = list(leaving)
        if detail:
            refresh(session, concept)
            record_event(session, concept, "edit", **detail)
    return show_concept(store.database, name)


def rename(store: Store, name: str, new_name: str) -> ConceptRecord:
    """Give a concept another name; see `Registry.rename`."""
    check_name(new_name)
    with store.database.write() as session:
        concept = existing_row(session, store.database, name)
        if concept_row(session, new_name) is not None:
            raise AlreadyExists(f'"{new_name}" is taken', hint=f"concept show {new_name}")
        concept.name = new_name
        refresh(session, concept)
        record_event(session, concept, "rename", was=name)
    return show_concept(store.database, new_name)


def check_category_fits(name: str, taken: str | None, category: str | None) -> None:
    """Raise `InvalidInput` if a new concept lacks a category, or `taken` is another."""
    if taken is None and category is None:
        raise InvalidInput(
            f'"{name}" is new: say in a word what it is',
            hint=f"concept add {quoted(name)} PHOTO… --category dog",
        )
    if taken is not None and category not in (None, taken):
        raise InvalidInput(
            f'"{name}" is a {taken}, not a {category}',
            hint=f"concept edit {name} --category {quoted(category)}",
        )


def concept_row(session: Session, name: str) -> Concept | None:
    """The row of a concept, if there is one."""
    return session.exec(select(Concept).where(Concept.name == findable(name))).one_or_none()


def existing_row(session: Session, database: Database, key: ConceptKey) -> Concept:
    """The row of a concept; raises `ConceptNotFound`."""
    concept = session.get(Concept, key) if isinstance(key, int) else concept_row(session, key)
    if concept is None:
        raise ConceptNotFound(key, names(database))
    return concept


def set_tags(
    session: Session, concept: Concept, *, add: Sequence[str], remove: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """Add and remove tags; one that is there already, or missing, is no error.

    Returns those that came, and those that went.
    """
    rows = session.exec(select(Tag).where(Tag.concept_id == concept.id))
    present = {row.tag: row for row in rows}
    gone = [tag for tag in dict.fromkeys(remove) if tag in present and tag not in add]
    for tag in gone:
        session.delete(present[tag])
    new = [tag for tag in dict.fromkeys(add) if tag not in present]
    session.add_all(Tag(concept_id=concept.id, tag=tag) for tag in new)
    return new, gone


def refresh(session: Session, concept: Concept) -> None:
    """Bring what is derived from a concept's rows up to date: its search text and its date."""
    session.flush()
    tags = session.exec(select(Tag.tag).where(Tag.concept_id == concept.id).order_by(Tag.tag))
    captions = session.exec(
        select(Image.caption).where(Image.concept_id == concept.id).order_by(col(Image.id))
    )
    concept.search = search_text(
        concept.name, concept.category, concept.notes, tags.all(), captions.all()
    )
    concept.updated = now()
    session.add(concept)


def record_event(session: Session, concept: Concept, action: str, **detail: object) -> None:
    """Write a line of history."""
    session.add(
        Event(
            at=now(),
            concept_id=concept.id,
            concept=concept.name,
            action=action,
            detail=to_json(detail),
        )
    )


def _image_row(session: Session, concept: Concept, image: str) -> Image:
    """The photo of a concept by its file name, its hash, or the first 4 or more digits of it."""
    rows = session.exec(select(Image).where(Image.concept_id == concept.id)).all()
    is_prefix = len(image) >= 4
    found = [
        row
        for row in rows
        if row.filename == image or (is_prefix and row.sha256.startswith(image.lower()))
    ]
    show = f"concept show {concept.name}"
    if not found:
        raise NotFound(f'"{concept.name}" has no photo "{image}"', hint=show)
    if len(found) > 1:
        raise InvalidInput(f'"{image}" fits {len(found)} photos; name one by its hash', hint=show)
    return found[0]

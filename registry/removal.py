"""Forgetting concepts and versions, whose numbers are not given again."""

from collections.abc import Sequence

from sqlmodel import Session, col, select

from .edits import existing_row, record_event, refresh
from .errors import NotFound
from .lineage import REMOVED_VERSION
from .names import findable
from .store import Store
from .tables import Alias, Artifact, Concept, Image, Run, Version


def remove(store: Store, names: Sequence[str]) -> list[str]:
    """Forget concepts and versions, all or none of them; see `Registry.remove`."""
    with store.database.write() as session:
        concepts: dict[str, Concept] = {}
        versions: dict[str, tuple[Concept, Version]] = {}
        for name in names:
            concept_name, has_version, word = name.partition("@")
            concept = existing_row(session, store.database, concept_name)
            if has_version:
                version = _version_row(session, concept, word)
                versions[f"{concept.name}@{version.number}"] = concept, version
            else:
                concepts[concept.name] = concept
        alone = {label: each for label, each in versions.items() if each[0].name not in concepts}
        for concept, version in alone.values():
            _remove_version(session, concept, version)
        for concept in concepts.values():
            _remove_concept(session, concept)
        return [*alone, *concepts]


def _remove_concept(session: Session, concept: Concept) -> None:
    images = session.exec(select(Image.sha256).where(Image.concept_id == concept.id)).all()
    record_event(session, concept, "remove", images=list(images))
    session.delete(concept)


def _remove_version(session: Session, concept: Concept, version: Version) -> None:
    """Forget a version, and the training that made it unless it has made another."""
    run = session.get(Run, version.run_id) if version.run_id else None
    artifacts = session.exec(select(Artifact.sha256).where(Artifact.version_id == version.id)).all()
    record_event(
        session,
        concept,
        REMOVED_VERSION,
        number=version.number,
        method=run.method if run else None,
        sha256=list(artifacts),
    )
    session.delete(version)
    session.flush()
    if run and not session.exec(select(Version.id).where(Version.run_id == run.id)).first():
        session.delete(run)
    refresh(session, concept)


def _version_row(session: Session, concept: Concept, word: str) -> Version:
    """A version by its number or by a word that stands for it."""
    query = select(Version).where(Version.concept_id == concept.id).order_by(col(Version.number))
    rows = session.exec(query).all()
    aliased = select(Alias).where(Alias.concept_id == concept.id)
    words = {each.alias: each.version_id for each in session.exec(aliased)}
    for row in rows:
        if word == str(row.number) or words.get(findable(word)) == row.id:
            return row
    known = ", ".join([*(str(row.number) for row in rows), *words])
    raise NotFound(
        f'"{concept.name}" has no version {word}',
        hint=f"there are {known}" if rows else f"concept show {concept.name}",
    )

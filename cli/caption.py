"""`concept caption`: draft captions of photos that have none, and edit them."""

import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .arguments import ConceptName
from .errors import usage
from .framework import Session, session_of
from .output import count
from .quick_start import quick_imports

if TYPE_CHECKING:
    from ..registry import Registry
    from ..registry.records import Concept

_SEPARATOR = " | "


def caption(
    context: typer.Context,
    name: ConceptName,
    model: Annotated[
        str,
        typer.Option(
            metavar="ID",
            help="What describes the photos: a folder or hub repository of a model that turns "
            "images into text, or miniature, which knows its synthetic scenes.",
        ),
    ] = "miniature",
    edit: Annotated[
        bool, typer.Option("--edit", help="Open all captions in $EDITOR before they are stored.")
    ] = False,
    preview: Annotated[bool, typer.Option("--preview", help="Store nothing; only print.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Download nothing.")] = False,
) -> None:
    """Draft captions of photos that have none.

    A caption that is there already is only changed by hand, with --edit.
    """
    session = session_of(context)
    if edit and (session.output.as_json or preview):
        raise usage("--edit is without --json and --preview", f"concept caption {name} --edit")
    editor = _editor(name) if edit else []
    with session.registry() as registry:
        concept = registry.show(name)
        concept.check_photos()
        drafts = _drafts(session, registry, concept, model, offline)
        captions = _edited(concept, drafts, editor) if edit else drafts
        stored = {} if preview else _stored(session, registry, concept, captions)
    rows = [
        {
            "sha256": image.sha256,
            "filename": image.filename,
            "caption": captions[image.sha256],
            "stored": image.sha256 in stored,
        }
        for image in concept.images
        if image.sha256 in captions
    ]
    lines = [f"{row['filename']}: {row['caption']}" for row in rows]
    lines.append(f"{concept.name}: {count(len(stored), 'caption')} stored")
    session.output.result({"concept": concept.name, "captions": rows}, *lines)


def _drafts(
    session: Session, registry: "Registry", concept: "Concept", model: str, offline: bool
) -> dict[str, str]:
    if all(image.caption for image in concept.images):
        session.output.note(f"all photos of {concept.name} have captions, which are kept")
        return {}
    session.output.note(f"loading {model}")
    with quick_imports():
        from ..evaluation.captioning import draft_captions, load_captioner

        captioner = load_captioner(model, offline=offline)
    with session.output.progress("describing") as advance:
        return draft_captions(registry, concept, captioner, on_progress=advance)


def _stored(
    session: Session, registry: "Registry", concept: "Concept", captions: dict[str, str]
) -> dict[str, str]:
    """Store captions, but for photos whose caption was changed meanwhile; returns those stored."""
    before = {image.sha256: image.caption for image in concept.images}
    now = {image.sha256: image.caption for image in registry.show(concept.id).images}
    chosen: dict[str, str] = {}
    for sha256, text in captions.items():
        if now.get(sha256, "") == before[sha256]:
            chosen[sha256] = text
        else:
            session.output.warn(f"a caption was changed meanwhile, and is kept: {now.get(sha256)}")
    if chosen:
        registry.edit(concept.id, captions=chosen)
    return chosen


# --- in an editor ---------------------------------------------------------------------------------


def _editor(name: str) -> list[str]:
    words = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "")
    if not words:
        raise usage("--edit needs an editor", f"EDITOR=nano concept caption {name} --edit")
    return words


def _edited(concept: "Concept", drafts: dict[str, str], editor: list[str]) -> dict[str, str]:
    """The captions that were changed or drafted, as they are when the editor is closed.

    The file stays where it is if it cannot be used.
    """
    lines = [f"# Captions of {concept.name}, one a line. An empty one takes the caption away;"]
    lines.append("# a photo whose line is gone stays as it is.")
    for number, image in enumerate(concept.images, 1):
        text = " ".join((image.caption or drafts.get(image.sha256, "")).split())
        lines.append(_SEPARATOR.join((str(number), image.filename.replace("|", "_"), text)))
    handle, name = tempfile.mkstemp(prefix=f"{concept.name}-captions-", suffix=".txt")
    path = Path(name)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    try:
        done = subprocess.run([*editor, name], check=False).returncode
    except OSError as error:
        path.unlink()
        raise usage(f"{editor[0]} cannot be run: {error.strerror}", "EDITOR=nano") from error
    if done:
        raise usage(f"{editor[0]} ended with {done}; nothing was stored", f"see {name}")
    captions = _parsed(concept, path)
    path.unlink()
    return captions


def _parsed(concept: "Concept", path: Path) -> dict[str, str]:
    from ..registry.documents import read_text, shown
    from ..registry.errors import InvalidInput
    from ..registry.names import check_text

    by_number = {str(number): image for number, image in enumerate(concept.images, 1)}
    captions: dict[str, str] = {}
    for line in read_text(path).splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        number, *rest = (part.strip() for part in line.split(_SEPARATOR.strip(), 2))
        if number not in by_number or len(rest) != 2:
            what = f"{shown(line)} is not NUMBER | PHOTO | CAPTION; nothing was stored"
            raise usage(what, f"your text is in {path}")
        try:
            text = check_text(rest[1], "caption")
        except InvalidInput as error:
            raise usage(f"{shown(line)}: {error.message}", f"your text is in {path}") from None
        image = by_number[number]
        if text != " ".join((image.caption or "").split()):
            captions[image.sha256] = text
    return captions

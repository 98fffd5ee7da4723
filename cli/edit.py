"""`concept edit`: change a concept's category, notes, tags, captions and photos."""

from dataclasses import asdict
from typing import Annotated

import typer

from .arguments import ConceptName
from .errors import usage
from .framework import session_of
from .output import count


def edit(
    context: typer.Context,
    name: ConceptName,
    category: Annotated[
        str | None, typer.Option("--category", "-c", metavar="WORD", help="What it is, in a word.")
    ] = None,
    notes: Annotated[
        str | None, typer.Option(metavar="TEXT", help="New notes; empty removes them.")
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option("--tag", "-t", metavar="T", help="Add a tag; may be repeated."),
    ] = None,
    untag: Annotated[
        list[str] | None, typer.Option(metavar="T", help="Remove a tag; may be repeated.")
    ] = None,
    caption: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PHOTO=TEXT",
            help="Caption a photo, named by file name or hash; empty removes it; may be repeated.",
        ),
    ] = None,
    remove_image: Annotated[
        list[str] | None,
        typer.Option(metavar="PHOTO", help="Take a photo out of the concept; may be repeated."),
    ] = None,
) -> None:
    """Change a concept's category, notes, tags, captions or photos.

    Its category, notes, tags, captions, or which photos belong to it.
    """
    session = session_of(context)
    captions = dict(_split(item) for item in caption or [])
    changes = (category, notes, tag, untag, captions or None, remove_image)
    if all(change is None for change in changes):
        raise usage("say what to change", f"concept edit {name} --notes TEXT")
    with session.registry() as registry:
        before = registry.show(name).tags
        concept = registry.edit(
            name,
            category=category,
            notes=notes,
            tag=tag or [],
            untag=untag or [],
            captions=captions,
            remove_images=remove_image or [],
        )
    for missing in [each for each in dict.fromkeys(untag or []) if each not in before]:
        session.output.warn(f"{concept.name} had no tag {missing}")
    tags = f", tags {' '.join(concept.tags)}" if concept.tags else ""
    photos = count(len(concept.images), "photo")
    session.output.result(asdict(concept), f"{concept.name} ({concept.category}): {photos}{tags}")


def _split(item: str) -> tuple[str, str]:
    photo, separator, text = item.partition("=")
    if not separator or not photo:
        raise usage(f"{item!r} is not PHOTO=TEXT", "for example --caption 01.jpg='a dog on a sofa'")
    return photo, text

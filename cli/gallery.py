"""`concept gallery`: a page of many concepts."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .arguments import CategoryOption, TagsOption, complete_concept
from .framework import Session, session_of
from .output import count

if TYPE_CHECKING:
    from ..evaluation.gallery import GalleryReport

_DRAWN = Path("pictures")
"""Where `concept generate` puts pictures."""


def gallery(
    context: typer.Context,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where the gallery goes.", show_default=False)
    ],
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="Only these concepts; else all of them.",
            autocompletion=complete_concept,
            show_default=False,
        ),
    ] = None,
    tag: TagsOption = None,
    category: CategoryOption = None,
    status: Annotated[
        str | None,
        typer.Option(
            metavar="WORD",
            help="Only what is trained, untrained, imported, running, interrupted or failed.",
            show_default=False,
        ),
    ] = None,
    pictures: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="A folder with pictures of concept generate; repeatable. By default pictures, if "
            "it is there.",
            show_default=False,
        ),
    ] = None,
    most: Annotated[
        int,
        typer.Option(metavar="N", min=0, help="Pictures of a concept, the newest ones; 0 for all."),
    ] = 24,
) -> None:
    """Write a page of all or some concepts: photos, versions with scores, pictures, where from.

    DIR/gallery.html needs no network; its thumbnails lie beside it. The next time only what has
    changed is made, and what is gone is removed.
    """
    session = session_of(context)
    from ..evaluation.gallery import GalleryRequest, write_gallery
    from ..registry.errors import NotFound

    for each in pictures or ():
        if not each.is_dir():
            raise NotFound(f"there is no folder {each}", hint="--pictures DIR")
    request = GalleryRequest(
        names=names or (),
        tags=tag or (),
        category=category,
        status=status,
        pictures=pictures or ([_DRAWN] if _DRAWN.is_dir() else []),
        most=most,
    )
    with session.registry() as registry, session.output.progress("gallery") as advance:
        written = write_gallery(registry, request, folder, on_progress=advance)
    session.output.lines(asdict(written), [written.page])
    _say(session, written)


def _say(session: Session, written: "GalleryReport") -> None:
    output = session.output
    changed = "" if written.changed else ", nothing new on the page"
    output.note(
        f"{count(written.concepts, 'concept')}, {count(written.pictures, 'picture')}; thumbnails: "
        f"{written.made:,} made, {written.kept:,} kept, {written.removed:,} removed{changed}"
    )
    if written.left_out:
        output.note(f"left out, as they do not fit the options: {', '.join(written.left_out)}")
    if written.missing:
        output.note(
            f"{count(written.missing, 'picture')} on record not found: --pictures names the folders"
        )
    if written.unknown:
        output.note(f"{count(written.unknown, 'picture')} found of none of these concepts")

"""`concept mask`: find the subject in photos that have no mask."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .arguments import ConceptName
from .framework import Session, session_of
from .output import count
from .quick_start import quick_imports
from .training_options import given

if TYPE_CHECKING:
    from PIL import Image

    from ..models.loading import LoadedBase
    from ..registry.records import Concept
    from ..training.photo_masks import MaskFinder

_OUT = Path("masks")


def mask(
    context: typer.Context,
    name: ConceptName,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="Find it with this model, a folder or hub repository: CLIPSeg, ViTMatte, or one "
            "for image segmentation. By the base model's attention by default.",
            show_default=False,
        ),
    ] = None,
    base: Annotated[
        str, typer.Option(metavar="BASE", help="The base model whose attention finds it.")
    ] = "miniature",
    preview: Annotated[
        bool, typer.Option("--preview", help="Store nothing; only write the files to look at.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Also in photos, and files, that have a mask already.")
    ] = False,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the sheet and the masks go, as files.")
    ] = _OUT,
    offline: Annotated[bool, typer.Option("--offline", help="Download nothing.")] = False,
) -> None:
    """Find the subject in photos that have no mask, and store the masks.

    Look at the sheet; masks that are wrong can be painted over as files, and given back:
    concept add NAME PHOTOS --masks DIR/NAME.
    """
    session = session_of(context)
    with session.registry() as registry:
        registry.check_folder(out)
        concept = registry.show(name)
        concept.check_photos()
        from ..training.photo_masks import find_masks, sheet_of_masks, write_masks

        lacking = [image for image in concept.images if replace or image.mask is None]
        found: dict[str, Image.Image] = {}
        if not lacking:
            session.output.note(f"all photos of {name} have masks: --replace finds them anew")
        else:
            finder, has_base = _finder(session, model, base, offline)
            if not has_base and given(context, "base"):
                session.output.warn(f"{model} needs no base model: --base is unused")
            with session.output.progress("looking") as advance:
                found = find_masks(registry, concept, finder, replace=replace, on_progress=advance)
        files, kept = write_masks(concept, found, out, replace=replace)
        sheet = sheet_of_masks(registry, concept, found, out)
        stored = [] if preview else registry.set_masks(concept.id, found, replace=replace)
    without = [image.filename for image in lacking if image.sha256 not in found]
    document = _document(concept, found, stored, files, without, sheet)
    done = f"{concept.name}: {count(len(found), 'mask')} found, {len(stored):,} stored"
    session.output.result(document, f"{done}; {sheet}")
    for path in kept:
        session.output.warn(f"{path} was there already and is kept; --replace writes it again")
    if without:
        session.output.warn(f"no {concept.category} was seen in {', '.join(without)}")


def _finder(
    session: Session, model: str | None, base: str, offline: bool
) -> "tuple[MaskFinder, bool]":
    """What finds masks, and whether the base model is needed for it, which is loaded then."""
    needed: list[LoadedBase] = []
    session.output.note(f"loading {model or base}")
    with quick_imports():
        from ..models.loading import load_base
        from ..training.photo_masks import ByAttention

        def loaded() -> "LoadedBase":
            needed.append(load_base(base, offline=offline))
            return needed[-1]

        if model is None:
            return ByAttention(loaded()), True
        from ..training.mask_models import load_mask_model

        return load_mask_model(model, loaded, offline=offline), bool(needed)


def _document(
    concept: "Concept",
    found: "dict[str, Image.Image]",
    stored: list[str],
    files: dict[str, Path],
    without: list[str],
    sheet: Path,
) -> dict[str, Any]:
    masks = [
        {
            "sha256": image.sha256,
            "filename": image.filename,
            "share": _share(found[image.sha256]),
            "stored": image.sha256 in stored,
            "path": str(files[image.sha256]),
        }
        for image in concept.images
        if image.sha256 in found
    ]
    return {"concept": concept.name, "masks": masks, "without": without, "sheet": str(sheet)}


def _share(inside: "Image.Image") -> float:
    """The share of a photo that is subject."""
    counts = inside.histogram()
    return round(sum(i * n for i, n in enumerate(counts)) / (255 * sum(counts)), 3)

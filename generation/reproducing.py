"""`reproduce`: draw a picture again, from what its file says."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from ..models.loading import LoadedBase
from ..models.subject_encoder_file import check_same_encoder
from ..registry import Registry
from ..registry.errors import InvalidInput, NotFound
from ..registry.records import Concept, ImageRecord
from .control_request import ControlRequest, check_same_control
from .controls import Controls, check_controls
from .drawing import Drawing, Picture, loaded_references
from .foreign_pictures import ForeignPicture, request_like
from .frames import find_frames, find_layouts, read_frame
from .generating import generate
from .init_request import InitRequest, check_same_init
from .injection import inject_concepts
from .observing import Wanted
from .prompt_syntax import ChosenVersion, imported_sha256, resolve_prompt
from .provenance import DrawnAfter, Provenance, read_provenance, read_texts
from .reference_syntax import ChosenReference
from .request import Request


def reproduce(
    registry: Registry,
    base: LoadedBase,
    path: Path,
    folder: Path,
    *,
    control: ControlRequest | None = None,
    init: InitRequest | None = None,
    frames: Sequence[Path] = (),
    layouts: Sequence[Path] = (),
) -> tuple[Picture, bool]:
    """Draw a picture again; returns it, and whether all pixels are the same.

    They are the same on the same machine with the same packages, whatever its concepts are called
    now, and whatever category they have. `control` names the control picture, if one was used, and
    its ControlNet; the scale is the picture's. So with `init`, what the picture began with, and its
    strength. `frames` are files of frames that it was drawn after, where those do not lie beside
    it; `layouts` are control pictures of what it was drawn after, where those do not lie beside its
    own. Raises `InvalidInput` for another base model, picture or ControlNet, `NotFound` for
    versions that are gone or have other weights now, and what `read_provenance`, `find_frames` and
    `find_layouts` raise.
    """
    registry.check_folder(folder)
    provenance = read_provenance(path)
    check_same_control(path, provenance.control_picture, control)
    check_same_init(path, provenance.init, init)
    found = find_frames(path, provenance.frames, frames)
    own = find_layouts(path, provenance.layouts, layouts, beside=control and control.picture)
    earlier = [
        read_frame(found_at, each, own.get(each.control or ""))
        for found_at, each in zip(found, provenance.frames, strict=True)
    ]
    then = "--base FOLDER, where its weights of then are"
    base.check_is(provenance.base_sha256, provenance.base, f"{path} was drawn by", otherwise=then)
    chosen = _versions_then(registry, path, provenance)
    request = _request_then(provenance, control, init)
    check_controls(base.base, base.backbone.size, [request])
    controls = Controls(base, [request])
    named = {each.mention.name: each.concept.id for each in chosen}
    after = [
        replace(_reference_now(registry, path, each, named), control=own.get(each.control or ""))
        for each in provenance.references
    ]
    texts = read_texts(path)
    file_format = texts.file_format if texts else "png"
    wanted = Wanted(provenance.with_maps, provenance.with_leaks, provenance.points, file_format)
    drawing = Drawing(
        registry, base, request, chosen, after, folder, controls, wanted, frames=earlier
    )
    _check_same_network(path, provenance, drawing, hint="--control IMAGE:KIND" if control else then)
    (references,) = loaded_references([drawing]).values()
    if encoding := references.encoding:
        check_same_encoder(str(path), base, encoding.encoder_sha256, provenance.subject_encoder)
    with inject_concepts(base, chosen, apart=drawing.apart) as concepts:
        (picture, *_) = drawing.draw(
            concepts, references, len(provenance.batch_seeds), [provenance.seed]
        )
    return picture, has_same_pixels(path, picture.path)


def reproduce_foreign(
    registry: Registry,
    base: LoadedBase,
    picture: ForeignPicture,
    folder: Path,
    *,
    init: InitRequest | None = None,
) -> tuple[Picture, bool, list[str]]:
    """Draw the like of another tool's picture, as far as what it says means something here.

    Returns it, whether all pixels are the same, and a line about each thing that was not used.
    `init` is what it began with. Raises what `request_like` and `generate` raise.
    """
    like = request_like(registry, picture, base.base, base.sha256, init)
    (drawn,) = generate(registry, base, [like.request], folder, file_format=picture.file_format)
    return drawn, has_same_pixels(picture.path, drawn.path), like.unused


def has_same_pixels(path: Path, other: Path) -> bool:
    """Whether two pictures do not differ, as their files have them."""
    with Image.open(path) as one, Image.open(other) as two:
        return one.size == two.size and one.convert("RGB").tobytes() == two.convert("RGB").tobytes()


# --- as it was then ------------------------------------------------------------------------------


def _name_now(registry: Registry, name: str, number: int, sha256: str) -> str:
    """The present name of a concept that was called `name`, found by its version's hash."""
    names = registry.names()
    for other in sorted(names, key=lambda each: each != name):
        concept = registry.show(other)
        for version in concept.versions:
            known = {each.sha256 for each in version.artifacts}
            known.add(imported_sha256(concept, version) or "")
            if version.number == number and sha256 in known:
                return other
    return name


def _as_then(concept: Concept, category: str | None) -> Concept:
    """A concept with the category that it had when a picture was drawn, if that is known."""
    return replace(concept, category=category) if category else concept


def _reference_now(
    registry: Registry, path: Path, drawn_after: DrawnAfter, named: Mapping[str, int]
) -> ChosenReference:
    """The photo that a picture was drawn after, whatever its concept is called now.

    `named` are the ids of the concepts of its prompt: who was not one of them is not one now.
    """
    others = set(named.values()) if drawn_after.concept not in named else set[int]()
    found: list[tuple[Concept, ImageRecord]] = []
    later: list[tuple[Concept, ImageRecord]] = []
    for name in sorted(registry.names(), key=lambda each: each != drawn_after.concept):
        concept = registry.show(name)
        own = [(concept, each) for each in concept.images if each.sha256 == drawn_after.photo]
        (later if concept.id in others else found).extend(own)
        if any(image.mask == drawn_after.mask for _, image in found):
            break
    found += later
    same = [pair for pair in found if pair[1].mask == drawn_after.mask]
    if drawn_after.mask is None:  # what its mask was is found again
        same = same or [(concept, replace(image, mask=None)) for concept, image in found]
    if not same:
        raise NotFound(
            f"{path} was drawn after a photo of {drawn_after.concept} that "
            + (
                "has another mask, or none, in this registry"
                if found
                else "is not in this registry"
            ),
            hint="concept add NAME PHOTO --masks FOLDER, with the mask of then"
            if found
            else "concept add NAME PHOTO",
        )
    concept, image = same[0]
    return ChosenReference(
        concept=_as_then(concept, drawn_after.category),
        name=drawn_after.concept,
        image=image,
        prompt=drawn_after.prompt,
        weight=drawn_after.weight,
        share=drawn_after.share,
        guidance=drawn_after.guidance,
    )


def _versions_then(registry: Registry, path: Path, provenance: Provenance) -> list[ChosenVersion]:
    """The versions that a picture was drawn with. Raises `NotFound` for other weights."""
    pinned = {
        name: (_name_now(registry, name, *version), version[0])
        for name, version in provenance.versions.items()
    }
    chosen = [
        replace(each, concept=_as_then(each.concept, provenance.categories.get(each.mention.name)))
        for each in resolve_prompt(registry, provenance.prompt, pinned=pinned)
    ]
    for each in chosen:
        if provenance.versions.get(each.mention.name, (0, ""))[1] != each.sha256:
            raise NotFound(f"{path} was drawn with other weights than {each.label} has now")
    return chosen


def _request_then(
    provenance: Provenance, control: ControlRequest | None, init: InitRequest | None
) -> Request:
    """What was asked for, with its control picture and what it began with as they are given now."""
    if provenance.control and control:
        control = replace(
            control, scale=provenance.control.scale, transfers=provenance.control.transfers
        )
    if provenance.init and init:
        init = replace(init, strength=provenance.init.strength)
    return Request(
        prompt=provenance.prompt,
        seeds=provenance.batch_seeds,
        settings=provenance.settings,
        control=control,
        init=init,
    )


def _check_same_network(path: Path, provenance: Provenance, drawing: Drawing, *, hint: str) -> None:
    """Raise `InvalidInput` if a picture was drawn with another ControlNet."""
    now = drawing.control
    if now and provenance.control and now.used.network_sha256 != provenance.control.network_sha256:
        raise InvalidInput(
            f"{path} was drawn with another ControlNet than {now.used.network} is now", hint=hint
        )

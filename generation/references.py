"""From photos to references: encoded as the base model sees them, with the subject's mask."""

from collections.abc import Mapping, Sequence

from PIL import Image, ImageChops

from ..adapters.references import References
from ..adapters.subject_encoding import SubjectEncoding
from ..models.backbone import Backbone
from ..models.loading import LoadedBase
from ..models.pixels import control_pixels, on_white, share_of_mask
from ..models.references import Reference
from ..models.subject_encoder_file import LoadedSubjectEncoder
from ..registry import Registry
from ..registry.errors import InvalidInput
from .control_request import ReadControl
from .frames import ChosenFrame
from .photo_regions import regions_of_photos
from .reference_syntax import ChosenReference, check_not_narrow
from .sampler import check_length

_POSITIONS = 2
"""Sides are multiples of so many latent positions."""


def load_references(
    registry: Registry,
    base: LoadedBase,
    chosen: Sequence[ChosenReference],
    names: Mapping[int, str],
    *,
    encoder: LoadedSubjectEncoder | None = None,
    encoder_strength: float = 0.0,
) -> References:
    """The references of chosen photos, as an adapter; injected concepts must not be there yet.

    `names`, by id, are what stands for concepts in their prompts; for others it is the category.
    A subject `encoder` sees the photos without their background, with a strength (β).

    Raises `InvalidInput` for an empty mask, a photo that is too narrow and a caption that is too
    long.
    """
    loaded = [_loaded(registry, base, each, names) for each in chosen]
    encoding = None
    if encoder and encoder_strength and loaded:
        cut = [on_white(photo, mask) for _, photo, mask in loaded]
        encoding = SubjectEncoding.of(encoder, cut, encoder_strength)
    return References([reference for reference, _, _ in loaded], encoding)


def _loaded(
    registry: Registry, base: LoadedBase, chosen: ChosenReference, names: Mapping[int, str]
) -> tuple[Reference, Image.Image, Image.Image]:
    """A reference, its photo, and its mask."""
    concept, image = chosen.concept, chosen.image
    prompt = chosen.prompt.replace("{}", names.get(concept.id, concept.category))
    try:
        photo = registry.read_photo(image, at_least=2 * base.backbone.size)
        mask = registry.read_mask(image)
        if mask is None:
            (mask,) = regions_of_photos(base, [photo], concept.category)
        reference = make_reference(
            base,
            photo,
            mask,
            prompt=prompt,
            weight=chosen.weight,
            share=chosen.share,
            guidance=chosen.guidance,
            subject=chosen.name,
            control=chosen.control,
        )
        return reference, photo, mask
    except InvalidInput as error:
        where = f"the photo {image.filename} of {concept.name}"
        raise InvalidInput(f"{where}: {error.message}", hint=error.hint) from None


def make_reference(
    base: LoadedBase,
    photo: Image.Image,
    mask: Image.Image,
    *,
    prompt: str,
    weight: float,
    share: float,
    guidance: float,
    size: tuple[int, int] | None = None,
    subject: str = "",
    control: ReadControl | None = None,
) -> Reference:
    """A reference of a photo and its mask, white on the subject.

    The photo keeps its shape, with about as many pixels as the base model's own pictures, or gets a
    `size` (width, height). Raises `InvalidInput` for an empty mask, for a control picture of
    another shape and, without a size, for a photo more than four times as long as wide.
    """
    backbone = base.backbone
    size = size or _fitting_size(photo.size, backbone)
    latents = backbone.encode_images([photo.convert("RGB").resize(size, Image.Resampling.LANCZOS)])
    found = latents.mean[0].cpu()
    inside = share_of_mask(mask, (found.shape[-2], found.shape[-1]))
    if not inside.any():
        raise InvalidInput(
            "its mask is empty", hint="a mask is white on the subject: concept add --masks"
        )
    layout = control and control_pixels(_layout(control, photo.size, size))[0]
    return Reference(found, inside, prompt, weight, share, guidance, subject, layout)


def _layout(control: ReadControl, photo: tuple[int, int], size: tuple[int, int]) -> Image.Image:
    """A photo's control picture, of its shape, in the size that it is drawn after in."""
    if control.image.size == size:
        return control.image
    return control.fitted(photo, "the photo", hint="cut it").resize(size, Image.Resampling.LANCZOS)


def check_reference(backbone: Backbone, chosen: ChosenReference, words: str) -> None:
    """Raise `InvalidInput` for what `load_references` would, as far as no pixel tells it.

    `words` are what its prompt says for the concept.
    """
    image = chosen.image
    try:
        check_length(backbone, chosen.prompt.replace("{}", words))
        size = _fitting_size((image.width, image.height), backbone)
        if chosen.control:
            _layout(chosen.control, (image.width, image.height), size)
    except InvalidInput as error:
        where = f"the photo {image.filename} of {chosen.concept.name}"
        raise InvalidInput(f"{where}: {error.message}", hint=error.hint) from None


def frame_reference(
    base: LoadedBase,
    frame: ChosenFrame,
    categories: Sequence[str],
    size: tuple[int, int] | None = None,
) -> Reference:
    """A reference of a frame, whose subjects are where the maps of their categories are.

    Without categories, or where their maps say nothing, all of it is. `size` is that of the frame,
    by default the base model's own.
    """
    backbone, image = base.backbone, frame.image
    mask = Image.new("L", (backbone.size, backbone.size), 0 if categories else 255)
    for category in categories:
        (inside,) = regions_of_photos(base, [image], category)
        mask = ImageChops.lighter(mask, inside.resize(mask.size, Image.Resampling.NEAREST))
    if not mask.getbbox():  # the maps are flat: they tell nothing
        mask = Image.new("L", mask.size, 255)
    return make_reference(
        base,
        image,
        mask,
        prompt=frame.drawn.prompt,
        weight=frame.drawn.weight,
        share=frame.drawn.share,
        guidance=frame.drawn.guidance,
        size=size or (backbone.size, backbone.size),
        control=frame.control,
    )


def _fitting_size(size: tuple[int, int], backbone: Backbone) -> tuple[int, int]:
    """(width, height) in pixels of about the shape of `size`."""
    width, height = size
    check_not_narrow(size, "it")
    unit = _POSITIONS * backbone.latent_factor
    scale = backbone.size / (width * height) ** 0.5
    wide, high = (max(1, round(side * scale / unit)) * unit for side in size)
    return wide, high

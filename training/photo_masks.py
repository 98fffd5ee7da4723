"""Masks of the photos that are trained on: stored ones, and found ones where there are none."""

from functools import partial
from typing import Literal

from PIL import Image

from ..generation.photo_regions import regions_of_photos
from ..models.loading import LoadedBase
from ..registry import Registry
from ..registry.records import Concept, ImageRecord
from .latents import Photos

Size = tuple[int, int]


def masks_for_training(
    registry: Registry,
    base: LoadedBase,
    concept: Concept,
    photos: Photos,
    use: Literal["none", "stored", "auto"],
) -> Photos:
    """A mask for each of a concept's photos, as large as the photo, white on the subject.

    With `stored` a photo without one counts as a whole, with `auto` its mask is the region of its
    category's word in the attention of the base model, which must have no adapters. Decodes each
    photo once or twice, even where no masks are used; raises what that raises.
    """
    sizes = [photo.size for photo in photos]
    if use == "none":
        return Photos([])
    lacking = [i for i, image in enumerate(concept.images) if image.mask is None]
    found: dict[int, Image.Image] = {}
    if use == "auto" and lacking:
        seen = (photos[i] for i in lacking)
        found = dict(zip(lacking, regions_of_photos(base, seen, concept.category), strict=True))
    return Photos(
        [
            partial(_mask, registry, image, found.get(i), size)
            for i, (image, size) in enumerate(zip(concept.images, sizes, strict=True))
        ]
    )


def _mask(
    registry: Registry, image: ImageRecord, found: Image.Image | None, size: Size
) -> Image.Image:
    mask = found or registry.read_mask(image)
    if mask is None:
        return Image.new("L", size, 255)
    return mask.convert("L").resize(size, Image.Resampling.BILINEAR)

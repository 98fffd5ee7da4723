"""Masks of subjects in photos that have none.

The map of the subject's word says where it is, and the photo's own self-attention what belongs to
it (`carried`). On renders of strangers, whose masks are known, the regions of such maps have an
intersection over union with the masks of 0.72, and those of the words' maps alone 0.59
(`bench/masks.py`).
"""

from collections.abc import Iterable

import torch
from PIL import Image
from torch import Tensor

from ..adapters.prompt_encoding import class_prompt
from ..models.backbone import Backbone
from ..models.conditioning import Conditioning
from ..models.loading import LoadedBase
from ..registry.errors import NotFinite
from .regions import SubjectColumns, region, subject_columns
from .sampler import reporting_broken_base
from .token_maps import CollectedMaps, carried

_TIMESTEPS = (100, 200, 300)
_LEVEL = 0.5
"""Where a mask begins, of the way from a carried map's minimum to its maximum."""


def as_mask(inside: Tensor) -> Image.Image:
    """A region (h, w) as a picture: white is inside."""
    return Image.fromarray((inside.numpy() * 255).astype("uint8"))


@torch.no_grad()
def regions_of_photos(
    base: LoadedBase, photos: Iterable[Image.Image], category: str
) -> list[Image.Image]:
    """Masks of photos that have none: `category_regions`, white inside."""
    return [as_mask(each) for each in category_regions(base, photos, category)]


def category_regions(
    base: LoadedBase, photos: Iterable[Image.Image], category: str
) -> list[Tensor]:
    """Where each photo shows its category: bool (h, w) at the size of latents.

    The U-Net as it is now gets the slightly noised photo and `a photo of a CATEGORY`; the region is
    that of the category's map, carried by self-attention. Raises `NotFinite` for a broken base
    model.
    """
    backbone = base.backbone
    prompt = class_prompt(category)
    (subject,) = subject_columns(backbone, prompt, [category])
    side = backbone.size
    conditioning = backbone.encode_prompts([prompt] * len(_TIMESTEPS), side)
    try:
        with reporting_broken_base(base):
            return [
                _region_of_photo(backbone, photo.resize((side, side)), conditioning, subject)
                for photo in photos
            ]
    except NotFinite as error:
        raise NotFinite(f"{base.base.name}: {error.message}", hint=error.hint) from None


def _region_of_photo(
    backbone: Backbone, photo: Image.Image, conditioning: Conditioning, subject: SubjectColumns
) -> Tensor:
    latents = backbone.encode_images([photo]).mean
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    steps = torch.tensor(_TIMESTEPS)
    noisy = backbone.training_scheduler().add_noise(
        latents.cpu().expand(len(steps), -1, -1, -1), noise.expand(len(steps), -1, -1, -1), steps
    )
    size = (latents.shape[-2], latents.shape[-1])
    collected = CollectedMaps()
    attention = backbone.attention
    with (
        attention.observe(
            columns=list(subject.all), want="maps", layers=backbone.localising_layers
        ) as seen,
        attention.follow() as followed,
    ):
        noisy = noisy.to(backbone.device, conditioning.states.dtype)
        backbone.denoise(noisy, steps.to(backbone.device), conditioning)
        collected.add(list(seen.maps.values()), size)
    found = collected.take().mean((0, 1)).expand(len(steps), 1, -1, -1)
    spread = carried(followed, found, size).mean((0, 1))
    if not spread.isfinite().all():
        raise NotFinite("the base model's attention is not finite")
    return region(spread, _LEVEL)

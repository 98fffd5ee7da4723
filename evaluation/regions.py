"""A subject cut out of its picture, and where it is in photos that have no mask."""

from collections.abc import Iterable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..adapters.conditioning import Conditioning, encode
from ..generation.attention_maps import CollectedMaps
from ..generation.regions import SubjectColumns, localising_layers, region, subject_columns
from ..kernels import observe
from ..models.loading import LoadedBase
from ..registry.errors import NotFinite
from ..training.latents import encode_pictures

GREY = (128, 128, 128)
_TIMESTEPS = (100, 200, 300)


def inside_only(image: Image.Image, inside: Image.Image) -> Image.Image:
    """The picture with grey outside a region, given as a mask of any size."""
    mask = inside.convert("L").resize(image.size, Image.Resampling.BILINEAR)
    return Image.composite(image.convert("RGB"), Image.new("RGB", image.size, GREY), mask)


def as_mask(inside: Tensor) -> Image.Image:
    """A region (h, w) as a picture: white is inside."""
    return Image.fromarray((inside.numpy() * 255).astype("uint8"))


@torch.no_grad()
def regions_of_photos(
    base: LoadedBase, photos: Iterable[Image.Image], category: str
) -> list[Image.Image]:
    """Masks of photos that have none, from the map of their category's word.

    A photo is noised a little, shown to the bare U-Net beside `a photo of a CATEGORY`, and where
    the category's word looks is the subject. Raises `NotFinite` for a base model that is broken.
    """
    pipeline = base.pipeline
    prompt = f"a photo of a {category}"
    (looks,) = subject_columns(pipeline, prompt, [category])
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    seen_as = encode(pipeline, [prompt] * len(_TIMESTEPS), side)
    try:
        return [
            _region_of_photo(pipeline, photo.resize((side, side)), seen_as, looks)
            for photo in photos
        ]
    except NotFinite as error:
        raise NotFinite(f"{base.base.name}: {error.message}", hint=error.hint) from None


def _region_of_photo(
    pipeline: Any, photo: Image.Image, seen_as: Conditioning, looks: SubjectColumns
) -> Image.Image:
    unet = pipeline.unet
    latents = encode_pictures(pipeline, [photo]).mean
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    steps = torch.tensor(_TIMESTEPS)
    noisy = pipeline.scheduler.add_noise(
        latents.cpu().expand(len(steps), -1, -1, -1), noise.expand(len(steps), -1, -1, -1), steps
    )
    collected = CollectedMaps(is_guided=False)
    layers = localising_layers(unet)
    with observe(unet, columns=list(looks.all), want="maps", layers=layers) as seen:
        unet(
            noisy.to(unet.device, unet.dtype),
            steps.to(unet.device),
            seen_as.states,
            added_cond_kwargs=seen_as.added,
        )
        collected.add(list(seen.maps.values()), (latents.shape[-2], latents.shape[-1]))
    maps = collected.take()
    if not maps.isfinite().all():
        raise NotFinite("the base model's attention is not finite")
    return as_mask(region(maps.mean((0, 1))))

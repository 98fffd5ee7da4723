"""Models of transformers that find a subject in photos: from a word, by labels, or its edges."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    VitMatteForImageMatting,
    VitMatteImageProcessor,
    pipeline,
)

from ..generation.init_request import hard
from ..models.hub import HubModel
from ..models.loading import LoadedBase, best_device
from ..registry.errors import InvalidInput
from .photo_masks import ByAttention, MaskFinder, unless_empty

_BAND = 16
"""The unknown band of a trimap is this part of the photo's shorter side, inwards and outwards."""


@dataclass(frozen=True, slots=True)
class ByWord:
    """CLIPSeg (arXiv 2112.10003), which is asked for the category."""

    model: Any
    processor: Any

    @torch.no_grad()
    def find(self, photo: Image.Image, category: str) -> Image.Image | None:
        """See `MaskFinder`."""
        inputs = self.processor(
            text=[f"a photo of a {category}"], images=[photo], padding=True, return_tensors="pt"
        )
        logits = self.model(**inputs.to(self.model.device)).logits.reshape(-1, *_side(self.model))
        return unless_empty(_as_picture(logits[0].sigmoid() > 0.5))


@dataclass(frozen=True, slots=True)
class ByLabel:
    """A segmentation model: the segments whose label names the category."""

    segments: Callable[[Image.Image], list[dict[str, Any]]]

    def find(self, photo: Image.Image, category: str) -> Image.Image | None:
        """See `MaskFinder`."""
        inside = np.zeros((photo.height, photo.width), np.uint8)
        for segment in self.segments(photo):
            if _names(str(segment["label"]), category):
                inside |= np.asarray(segment["mask"].convert("L").resize(photo.size))
        return unless_empty(Image.fromarray(inside))


@dataclass(frozen=True, slots=True)
class ByEdges:
    """ViTMatte (arXiv 2305.15272), which refines the edges of the mask that attention gives."""

    model: Any
    processor: Any
    rough: MaskFinder

    @torch.no_grad()
    def find(self, photo: Image.Image, category: str) -> Image.Image | None:
        """See `MaskFinder`."""
        mask = self.rough.find(photo, category)
        if mask is None:
            return None
        trimap = trimap_of(mask, photo.size)
        inputs = self.processor(images=photo, trimaps=trimap, return_tensors="pt")
        alphas = self.model(**inputs.to(self.model.device)).alphas[0, 0]
        return unless_empty(_as_picture(alphas[: photo.height, : photo.width]))


def load_mask_model(
    name: str, base: Callable[[], LoadedBase], *, offline: bool = False
) -> MaskFinder:
    """CLIPSeg, ViTMatte or a segmentation model, from a folder or a hub repository.

    It is put on the GPU, if there is one. `base` loads the base model that ViTMatte needs. Raises
    `NotFound`, and `InvalidInput` for another model.
    """
    source = HubModel(name, offline=offline)
    config, device = source.config, best_device()
    if config.model_type == "clipseg":
        model = source.network(CLIPSegForImageSegmentation).to(device)
        return ByWord(model, source.part(CLIPSegProcessor))
    if config.model_type == "vitmatte":
        model = source.network(VitMatteForImageMatting).to(device)
        return ByEdges(model, source.part(VitMatteImageProcessor), ByAttention(base()))
    for kind in (AutoModelForUniversalSegmentation, AutoModelForSemanticSegmentation):
        if type(config) in kind._model_mapping:
            model, processor = source.network(kind), source.part(AutoImageProcessor)
            return ByLabel(
                pipeline(
                    "image-segmentation", model=model, image_processor=processor, device=device
                )
            )
    raise InvalidInput(
        f"{name} is a {config.model_type}, which finds no masks",
        hint="a model for image segmentation, CLIPSeg or ViTMatte",
    )


def trimap_of(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """255 inside, 0 outside, 128 near the edge of a mask scaled to `size` (width, height)."""
    whole = hard(mask.convert("L").resize(size, Image.Resampling.BILINEAR))
    small = whole.resize((max(1, size[0] // 4), max(1, size[1] // 4)))  # else wide filters are slow
    wide = 2 * (min(small.size) // _BAND) + 1
    inner = small.filter(ImageFilter.MinFilter(wide)).resize(size)
    outer = small.filter(ImageFilter.MaxFilter(wide)).resize(size)
    trimap = np.full((size[1], size[0]), 128, np.uint8)
    trimap[np.asarray(inner) > 127] = 255
    trimap[np.asarray(outer) <= 127] = 0
    return Image.fromarray(trimap)


def _names(label: str, category: str) -> bool:
    """Whether a label such as `dog`, `domestic dog` or `dog, domestic dog` names a category."""
    parts = [part.strip().lower() for part in label.replace(";", ",").replace("_", " ").split(",")]
    wanted = category.lower()
    return any(part == wanted or part.endswith(f" {wanted}") for part in parts)


def _side(model: Any) -> tuple[int, int]:
    side = model.config.vision_config.image_size
    return side, side


def _as_picture(inside: torch.Tensor) -> Image.Image:
    """Shares (h, w), or a region, as 8-bit grey."""
    return Image.fromarray((inside.float().clamp(0, 1) * 255).round().byte().cpu().numpy())

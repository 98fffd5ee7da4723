"""Heat-maps of where in a picture a word was looked at, collected while it is drawn."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (everyone's name for it)

from ..kernels import observe
from ..kernels.observation import CROSS_ATTENTION
from .injection import InjectedConcept
from .pictures import contact_sheet
from .regions import subject_columns

_HEAT = ((0, 0, 40), (90, 20, 140), (220, 60, 80), (255, 160, 40), (255, 255, 190))


@dataclass(frozen=True, slots=True)
class Word:
    """A token of a prompt, and how people know it."""

    label: str
    column: int


def words_of(pipeline: Any, prompt: str, worn: Sequence[InjectedConcept]) -> list[Word]:
    """The tokens of the concepts in a prompt, as spelled out, each with its category.

    Of a prompt without concepts, all of its tokens.
    """
    tokenizer = pipeline.tokenizer
    ids: list[int] = tokenizer(prompt, truncation=True).input_ids
    if not worn:
        return [
            Word(tokenizer.decode([each]).replace("</w>", "").strip(), column)
            for column, each in enumerate(ids)
            if each not in tokenizer.all_special_ids
        ]
    found: list[Word] = []
    for each, looks in zip(worn, subject_columns(pipeline, prompt, worn), strict=True):
        name = f"<{each.mention.name}>"
        many = len(looks.own) > 1
        found += [Word(f"{name} {i}" if many else name, c) for i, c in enumerate(looks.own, 1)]
        if category := looks.all[len(looks.own) :]:
            found.append(Word(each.category, category[0]))
    return found


@contextmanager
def collected_maps(
    pipeline: Any,
    columns: Sequence[int],
    *,
    is_guided: bool,
    layers: Sequence[str] = (CROSS_ATTENTION,),
) -> Iterator[list["CollectedMaps"]]:
    """Collect token maps while the pipeline draws, for each of some patterns of layers' names.

    With guidance the first half of the U-Net's batch sees the negative prompt and is left out.
    """
    patterns = [re.compile(each) for each in layers]
    collected = [CollectedMaps(is_guided) for _ in patterns]

    def after_pass(_: Any, arguments: tuple[Any, ...], __: Any) -> None:
        if torch.is_grad_enabled():
            return  # a look ahead, not a step
        size = tuple(arguments[0].shape[-2:])
        for pattern, each in zip(patterns, collected, strict=True):
            each.add([maps for name, maps in seen.maps.items() if pattern.fullmatch(name)], size)
        seen.clear()

    def is_watched(name: str) -> bool:
        return any(pattern.fullmatch(name) for pattern in patterns)

    with observe(pipeline.unet, columns=columns, want="maps", layers=is_watched) as seen:
        hook = pipeline.unet.register_forward_hook(after_pass)
        try:
            yield collected
        finally:
            hook.remove()


class CollectedMaps:
    """The mean over layers and denoising steps, at the latents' size (Tang et al. 2023, eq. 4)."""

    def __init__(self, is_guided: bool) -> None:
        self._is_guided = is_guided
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, maps: Sequence[Tensor], size: tuple[int, int]) -> None:
        """Take the maps (B, T, N) of one pass of the U-Net over latents of `size` (h, w)."""
        for each in maps:
            own = each[len(each) // 2 :] if self._is_guided else each
            square = own.detach().float().cpu().unflatten(-1, _shrunk(size, own.shape[-1]))
            whole = F.interpolate(square, size=size, mode="bicubic")
            self._sum = whole if self._sum is None else self._sum + whole
            self._count += 1

    def take(self) -> Tensor:
        """The maps (B, T, h, w) of the pictures since the last call."""
        if self._sum is None:
            raise ValueError("nothing has been drawn")
        mean = (self._sum / self._count).clamp(min=0)
        self._sum, self._count = None, 0
        return mean


def _shrunk(size: tuple[int, int], places: int) -> tuple[int, int]:
    """(h, w) of a layer with so many places: the U-Net halves sizes, and rounds up."""
    height, width = size
    while height * width > places:
        height, width = (height + 1) // 2, (width + 1) // 2
    return height, width


def heat_sheet(image: Image.Image, maps: Tensor, words: Sequence[Word]) -> Image.Image:
    """A picture and, beside it, each of its maps (T, h, w) over it, from its lowest to its peak."""
    over = [overlaid(image, each) for each in maps]
    return contact_sheet([(["picture", *(word.label for word in words)], [image, *over])])


def overlaid(image: Image.Image, heat: Tensor) -> Image.Image:
    """A picture in grey under the colours of a map (h, w), from its lowest value to its peak."""
    low, high = heat.min(), heat.max()
    level = (heat - low) / (high - low).clamp(min=1e-12)
    level = F.interpolate(level[None, None], size=(image.height, image.width), mode="bilinear")
    stops = np.linspace(0, 1, len(_HEAT))
    flat = level.flatten().numpy()
    colours = np.stack([np.interp(flat, stops, channel) for channel in zip(*_HEAT, strict=True)], 1)
    heated = colours.reshape(image.height, image.width, 3)
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None]
    return Image.fromarray((0.4 * grey + 0.6 * heated).round().astype(np.uint8))

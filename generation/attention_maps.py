"""Heat-maps of the attention to each token, collected while a picture is drawn."""

import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (everyone's name for it)

from ..kernels.observation import CROSS_ATTENTION, Observation
from ..models.backbone import Backbone
from .injection import InjectedConcept
from .pictures import SheetRow
from .prediction import Guidance
from .prompt_syntax import mention_of
from .regional import RegionalGuidance
from .regions import subject_columns
from .sampler import Step
from .token_maps import CollectedMaps

_HEAT = ((0, 0, 40), (90, 20, 140), (220, 60, 80), (255, 160, 40), (255, 255, 190))


@dataclass(frozen=True, slots=True)
class Word:
    """A token of a prompt: its label for people, and its position."""

    label: str
    column: int


def words_of(backbone: Backbone, prompt: str, concepts: Sequence[InjectedConcept]) -> list[Word]:
    """The tokens of an expanded prompt's concepts and their categories.

    All tokens for a prompt without concepts.
    """
    encoder = backbone.text_encoders[0]
    tokenizer, ids = encoder.tokenizer, backbone.tokens_of(prompt).ids
    if not concepts:
        return [
            Word(str(tokenizer.decode([each])).replace("</w>", "").strip(), column)
            for column, each in enumerate(ids)
            if each not in tokenizer.all_special_ids
        ]
    found: list[Word] = []
    for each, subject in zip(concepts, subject_columns(backbone, prompt, concepts), strict=True):
        name = mention_of(each.mention.name)
        many = len(subject.own) > 1
        found += [Word(f"{name} {i}" if many else name, c) for i, c in enumerate(subject.own, 1)]
        if category := subject.all[len(subject.own) :]:
            found.append(Word(each.category, category[0]))
    return found


class MapCollector:
    """An observer that collects token maps; `layers` are patterns of layer names."""

    def __init__(
        self, columns: Sequence[int], *, layers: Sequence[str] = (CROSS_ATTENTION,)
    ) -> None:
        self._columns = columns
        self._patterns = [re.compile(each) for each in layers]
        self._collected = [CollectedMaps() for _ in layers]
        self._seen = Observation()

    @contextmanager
    def watching(self, backbone: Backbone) -> Iterator[None]:
        """The layers compute maps while a batch is drawn."""
        observed = backbone.attention.observe(
            columns=self._columns, want="maps", layers=self._is_watched
        )
        with observed as self._seen:
            yield

    def _is_watched(self, layer: str) -> bool:
        return any(pattern.fullmatch(layer) for pattern in self._patterns)

    def after_prediction(self, guidance: Guidance, latents: Tensor) -> None:
        """Collect the maps of the rows that have the prompt."""
        rows = guidance.conditional(len(latents))
        size = (latents.shape[-2], latents.shape[-1])
        for pattern, each in zip(self._patterns, self._collected, strict=True):
            maps = [maps[rows] for name, maps in self._seen.maps.items() if pattern.fullmatch(name)]
            each.add(maps, size)
        self._seen.clear()

    def after_step(self, step: Step) -> Tensor:
        """Change nothing."""
        return step.latents

    def take(self) -> list[Tensor]:
        """For each pattern, the maps (B, T, h, w) of the pictures since the last call."""
        return [each.take() for each in self._collected]


class SubjectCollector:
    """An observer that collects the maps and regions of a plan's subjects."""

    def __init__(self) -> None:
        self._maps: list[Tensor] = []
        self._regions: Tensor | None = None

    def watching(self, backbone: Backbone) -> AbstractContextManager[None]:
        """Nothing: the guidance observes."""
        del backbone
        return nullcontext()

    def after_prediction(self, guidance: Guidance, latents: Tensor) -> None:
        """Collect the maps of this step."""
        del latents
        assert isinstance(guidance, RegionalGuidance)
        assert guidance.subject_maps is not None
        self._maps.append(guidance.subject_maps)
        self._regions = guidance.masks

    def after_step(self, step: Step) -> Tensor:
        """Change nothing."""
        return step.latents

    def take(self) -> tuple[Tensor, Tensor]:
        """Of the pictures since the last call, mean maps (B, S, 2, h, w) as of `by_subject`.

        And their regions (B, S, h, w).
        """
        assert self._regions is not None
        found = torch.stack(self._maps).mean(0), self._regions.cpu()
        self._maps = []
        return found


def heat_row(image: Image.Image, maps: Tensor, words: Sequence[Word]) -> SheetRow:
    """A row of a sheet: the picture, then each of its maps (T, h, w) laid over it."""
    over = [overlaid(image, each) for each in maps]
    return ["picture", *(word.label for word in words)], [image, *over]


def region_row(
    image: Image.Image, subjects: Sequence[str], maps: Tensor, regions: Tensor
) -> SheetRow:
    """A row of a sheet: the picture, then each subject's map and region, both (S, h, w)."""
    labels = [label for name in subjects for label in (name, f"region of {name}")]
    over = [overlaid(image, each) for pair in zip(maps, regions, strict=True) for each in pair]
    return ["picture", *labels], [image, *over]


def overlaid(image: Image.Image, heat: Tensor, highest: Tensor | None = None) -> Image.Image:
    """The picture in grey with a map (h, w) in colours, scaled from its minimum to its maximum.

    Maps that are to be compared share a maximum, `highest`.
    """
    low, high = heat.min(), heat.max() if highest is None else highest
    level = (heat - low) / (high - low).clamp(min=1e-12)
    level = F.interpolate(level[None, None], size=(image.height, image.width), mode="bilinear")
    stops = np.linspace(0, 1, len(_HEAT))
    flat = level.flatten().numpy()
    colours = np.stack([np.interp(flat, stops, channel) for channel in zip(*_HEAT, strict=True)], 1)
    heated = colours.reshape(image.height, image.width, 3)
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None]
    return Image.fromarray((0.4 * grey + 0.6 * heated).round().astype(np.uint8))

"""Heat-maps of where places of a picture look in its references, collected while it is drawn."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (everyone's name for it)

from ..kernels.observation import FurtherMaps
from ..models.backbone import Backbone
from ..models.latents import layer_size
from .attention_maps import overlaid
from .pictures import SheetRow
from .prediction import Guidance
from .sampler import Step
from .self_subject_attention import in_groups

Point = tuple[float, float]
"""A place in a picture, as shares of its width and height from the top left."""
CENTRE: Point = (0.5, 0.5)
_DOT = (255, 0, 0)


class ReferenceMapCollector:
    """An observer that collects the attention of points of a picture to its references."""

    def __init__(
        self, backbone: Backbone, points: Sequence[Point], size: tuple[int, int] | None
    ) -> None:
        width, height = size or (backbone.size, backbone.size)
        factor = backbone.latent_factor
        self._points = points or [CENTRE]
        self._size = (height // factor, width // factor)
        self._groups = list(in_groups([each for each in backbone.references if each.weight]))
        self._pictures = [
            backbone.decode_latents(each.latents[None].to(backbone.device))[0]
            for group in self._groups
            for each in group
        ]
        self._seen = FurtherMaps(self._queries)
        self._sums: list[Tensor] = []
        self._count = 0

    def _queries(self, positions: int) -> list[int]:
        height, width = layer_size(self._size, positions)
        return [
            min(int(y * height), height - 1) * width + min(int(x * width), width - 1)
            for x, y in self._points
        ]

    @contextmanager
    def watching(self, backbone: Backbone) -> Iterator[None]:
        """Layers keep where the points look, while a batch is drawn."""
        with backbone.attention.observe_further(self._queries) as self._seen:
            yield

    def after_prediction(self, guidance: Guidance, latents: Tensor) -> None:
        """Collect the maps of the rows that have the prompt."""
        rows = guidance.conditional(len(latents))
        for layer in self._seen.maps.values():
            self._add([each[rows].float().cpu() for each in layer])
        self._seen.maps.clear()

    def _add(self, layer: Sequence[Tensor]) -> None:
        """Add a layer's maps, (B, P, S, M) for the references of each size."""
        found: list[Tensor] = []
        for group, maps in zip(self._groups, layer, strict=True):
            latents = group[0].latents
            size = (latents.shape[-2], latents.shape[-1])
            over_times = maps.unflatten(2, (-1, len(group))).sum(2)  # (B, P, R, M)
            square = over_times.unflatten(-1, layer_size(size, maps.shape[-1]))
            whole = F.interpolate(square.flatten(0, 1), size=size, mode="bilinear")
            found += whole.unflatten(0, maps.shape[:2]).unbind(2)
        before = self._sums or [torch.zeros_like(each) for each in found]
        self._sums = [one + other for one, other in zip(before, found, strict=True)]
        self._count += 1

    def after_step(self, step: Step) -> Tensor:
        """Change nothing."""
        return step.latents

    def take(self) -> list[Tensor]:
        """For each reference, the maps (B, P, h, w) of the pictures since the last call."""
        mean = [each / self._count for each in self._sums]
        self._sums, self._count = [], 0
        return mean

    def rows(self, image: Image.Image, maps: Sequence[Tensor]) -> list[SheetRow]:
        """For each reference, a row of a sheet: a picture with its points, and their maps.

        `maps` (P, h, w) are those of the picture, of `take`. Colours are the same in all of them:
        where a point does not look, its map is dark.
        """
        highest = torch.stack([each.max() for each in maps]).max() if maps else None
        labels = [f"where {i} looks" for i in range(1, len(self._points) + 1)]
        marked = _marked(image, self._points)
        return [
            (["points", *labels], [marked, *(overlaid(picture, each, highest) for each in own)])
            for picture, own in zip(self._pictures, maps, strict=True)
        ]


def _marked(image: Image.Image, points: Sequence[Point]) -> Image.Image:
    """A picture with a dot and a number at each point."""
    marked = image.convert("RGB").resize((4 * image.width, 4 * image.height))
    pen, radius = ImageDraw.Draw(marked), marked.width / 32
    font = ImageFont.load_default(3 * radius)
    for number, (x, y) in enumerate(points, 1):
        place = (x * marked.width, y * marked.height)
        pen.circle(place, radius, _DOT, "white", width=max(1, round(radius / 4)))
        pen.text((place[0] + 1.5 * radius, place[1]), str(number), _DOT, font, "lm", stroke_width=1)
    return marked

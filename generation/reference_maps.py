"""Heat-maps of where places of a picture look in its references, collected while it is drawn."""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (everyone's name for it)

from ..kernels.observation import FurtherMaps
from ..models.backbone import Backbone
from ..models.latents import layer_size
from ..models.references import Reference
from .attention_maps import overlaid
from .pictures import SheetRow
from .prediction import Guidance
from .sampler import Step

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
        self._references = [each for each in backbone.references if each.weight]
        self._pictures = [
            backbone.decode_latents(each.latents[None].to(backbone.device))[0]
            for each in self._references
        ]
        self._seen = FurtherMaps(self._queries)
        self._sums: dict[int, Tensor] = {}
        self._counts: Counter[int] = Counter()
        self._waiting: deque[tuple[Tensor, ...]] = deque()

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
        for owners, maps in self._seen.maps:
            self._add([each for each in owners if isinstance(each, Reference)], maps[rows])
        self._seen.maps.clear()

    def _add(self, references: Sequence[Reference], maps: Tensor) -> None:
        """Add a layer's maps, (B, P, S, M), of references that passed the denoiser together.

        Where subjects have predictions of their own, a reference is seen in some of them.
        """
        latents = references[0].latents
        size = (latents.shape[-2], latents.shape[-1])
        over_times = maps.float().cpu().unflatten(2, (-1, len(references))).sum(2)  # (B, P, R, M)
        square = over_times.unflatten(-1, layer_size(size, maps.shape[-1]))
        whole = F.interpolate(square.flatten(0, 1), size=size, mode="bilinear")
        own = whole.unflatten(0, maps.shape[:2]).unbind(2)
        for key, found in zip(map(id, references), own, strict=True):
            self._sums[key] = self._sums[key] + found if key in self._sums else found
            self._counts[key] += 1

    def after_step(self, step: Step) -> Tensor:
        """Change nothing."""
        return step.latents

    def rows(self, image: Image.Image) -> list[SheetRow]:
        """For each reference, a row of a sheet: a picture with its points, and their maps.

        Call it for each picture of a batch in turn, before the next batch is drawn. Colours are the
        same in all rows: where a point does not look, its map is dark.
        """
        if not self._waiting:
            self._waiting.extend(zip(*self._take(), strict=True))
        maps = self._waiting.popleft() if self._references else ()
        highest = torch.stack([each.max() for each in maps]).max() if maps else None
        labels = [f"where {i} looks" for i in range(1, len(self._points) + 1)]
        marked = _marked(image, self._points)
        return [
            (["points", *labels], [marked, *(overlaid(picture, each, highest) for each in own)])
            for picture, own in zip(self._pictures, maps, strict=True)
        ]

    def _take(self) -> list[Tensor]:
        """For each reference, the maps (B, P, h, w) of the pictures since the last call."""
        keys = [id(each) for each in self._references]
        mean = [self._sums[key] / self._counts[key] for key in keys]
        self._sums.clear()
        self._counts.clear()
        return mean


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

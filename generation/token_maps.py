"""Token maps of several layers and steps as one."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (everyone's name for it)

from ..kernels.observation import FollowedAttention
from ..models.latents import layer_size


class CollectedMaps:
    """Averages maps over layers and steps at the latents' size (Tang et al. 2023, eq. 4)."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, maps: Sequence[Tensor], size: tuple[int, int]) -> None:
        """Add the maps (B, T, N) of one U-Net pass over latents of `size` (h, w)."""
        for each in maps:
            square = each.detach().float().cpu().unflatten(-1, layer_size(size, each.shape[-1]))
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


def carried(followed: FollowedAttention, maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, S, h, w) carried once by each layer of self-attention: the mean over layers of A m.

    What belongs to a subject looks at the same places (as SeeDiff spreads seeds of cross-attention:
    Park et al. 2025, arXiv 2507.19808). `size` (h, w) is that of the latents. Of noise, layers tell
    little.
    """
    collected = CollectedMaps()
    for layer, (query, _, _) in followed.kept.items():
        own = layer_size(size, query.shape[2])
        values = F.adaptive_avg_pool2d(maps.to(query.device), own).flatten(2)
        collected.add([followed.carry(layer, values)], size)
    return collected.take()

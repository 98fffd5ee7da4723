"""Where the subjects of a picture are: in boxes, or where the maps of their words are."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (everyone's name for it)

from .layout import Box

_LEVEL, _EDGE = 0.35, 0.1
"""A place is a subject's from this share of its map's maximum on, more or less."""
_CONTRAST = 4
"""How decidedly a place goes to the subject whose map is the stronger one there."""


def box_regions(boxes: Sequence[Box], size: tuple[int, int]) -> Tensor:
    """Shares (S, h, w) of each place that are in each subject's box, with soft edges."""
    height, width = size
    masks = torch.stack(
        [
            _covered(top, bottom, height)[:, None] * _covered(left, right, width)
            for left, top, right, bottom in boxes
        ]
    )
    masks = smoothed(masks)
    return masks / masks.sum(0, keepdim=True).clamp(min=1)


def regions_of(maps: Tensor, alike: Sequence[Sequence[int]] = ()) -> Tensor:
    """Shares (B, S, h, w) of each place from the subjects' maps (B, S, h, w).

    A place belongs to a subject as far as its map there is near its maximum, and above the others'.
    Subjects that are `alike`, as two dogs, have maps that are alike, too: what they have together
    is divided among them, from left to right, or from above if they are rather there.
    """
    level = smoothed(maps)
    for group in alike:
        level[:, group] = torch.stack([_divided(each, len(group)) for each in level[:, group]])
    level = level / level.amax((-2, -1), keepdim=True).clamp(min=1e-12)
    among = level**_CONTRAST
    among = among / among.sum(1, keepdim=True).clamp(min=1e-12)
    return smoothed(among * torch.sigmoid((level - _LEVEL) / _EDGE * 4))


def _divided(maps: Tensor, count: int) -> Tensor:
    """Maps (S, h, w) of subjects that are alike as theirs alone.

    By k-means (Lloyd 1982) of the places along the direction in which they lie further apart.
    """
    joint = maps.amax(0)
    strong = (joint - _LEVEL * joint.amax()).clamp(min=0)
    sums = strong.sum(0), strong.sum(1)  # along x, and y
    places = [torch.arange(len(each), dtype=each.dtype, device=each.device) for each in sums]
    spreads = [_spread(each, at) for each, at in zip(sums, places, strict=True)]
    across = int(spreads[1] > spreads[0])
    weights, at = sums[across], places[across]
    shares = (weights.cumsum(0) - weights / 2) / weights.sum().clamp(min=1e-12)
    owner = (shares * count).long().clamp(max=count - 1)
    for _ in range(20):
        own = F.one_hot(owner, count).to(weights) * weights[:, None]
        centres = (own * at[:, None]).sum(0) / own.sum(0).clamp(min=1e-12)
        owner = (at[:, None] - centres).abs().argmin(1)
    mine = F.one_hot(owner, count).to(joint).T  # (S, length)
    return joint * (mine[:, :, None] if across else mine[:, None])


def _spread(weights: Tensor, places: Tensor) -> Tensor:
    share = weights / weights.sum().clamp(min=1e-12)
    return (share * (places - (share * places).sum()).square()).sum()


def smoothed(maps: Tensor) -> Tensor:
    """Maps (…, h, w), each place averaged with its neighbours."""
    flat = F.pad(maps.flatten(0, -3)[:, None], (1, 1, 1, 1), mode="replicate")
    kernel = maps.new_tensor([1.0, 2.0, 1.0]) / 4
    flat = F.conv2d(flat, (kernel[:, None] * kernel)[None, None])
    return flat.view(maps.shape)


def _covered(first: float, last: float, length: int) -> Tensor:
    """How much of each of `length` places lies between two shares of the whole."""
    places = torch.arange(length, dtype=torch.float32)
    ends = (last * length - places).clamp(0, 1) - (first * length - places).clamp(0, 1)
    return ends.clamp(min=0)

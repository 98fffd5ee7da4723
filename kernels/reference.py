"""The reference definition: attention with its whole matrix in memory."""

import torch
from torch import Tensor

from .inputs import AttentionInputs, RequestedMaps, Segment

Results = tuple[Tensor, Tensor | None, Tensor | None]


def attend_reference(inputs: AttentionInputs) -> Results:
    """Output (B, H, N, D), maps (B, T, N) or (B, H, T, N), moments (B, T, 2).

    Everything is computed in the queries' precision, float32 at least, and differentiated by
    autograd; the output has the queries' dtype.
    """
    q, segments, scale = inputs.q, inputs.segments, inputs.scale
    dtype = torch.promote_types(q.dtype, torch.float32)
    scores = [_scores(q, segment, scale, dtype) for segment in segments]
    weights = torch.cat(scores, dim=-1).softmax(dim=-1)  # A: (B, H, N, all keys)
    values = torch.cat([segment.v for segment in segments], dim=-2).to(dtype)
    output = (weights @ values).to(q.dtype)
    if inputs.columns is None:
        return output, None, None
    index = inputs.columns[:, None, None, :].expand(*weights.shape[:3], -1)
    columns = weights.gather(-1, index)  # (B, H, N, T)
    maps = maps_of(columns, inputs.requested) if inputs.requested.maps else None
    moments = moments_of(columns) if inputs.requested.moments else None
    return output, maps, moments


def _scores(q: Tensor, segment: Segment, scale: float, dtype: torch.dtype) -> Tensor:
    scores = q.to(dtype) @ segment.k.to(dtype).mT * scale
    if segment.bias is not None:
        scores = scores + segment.bias[:, None, None, :].to(dtype)
    if segment.group_bias is not None:
        scores = scores + segment.group_bias.of_keys()[:, None].to(dtype)
    return scores


def maps_of(columns: Tensor, requested: RequestedMaps) -> Tensor:
    """Columns (B, H, N, T) as maps: (B, T, N), or (B, H, T, N) per head."""
    per_head = columns.transpose(-1, -2)
    return per_head if requested.per_head else per_head.mean(1)


def moments_of(columns: Tensor) -> Tensor:
    """Mean and unbiased variance of columns (B, H, N, T) over heads and positions: (B, T, 2)."""
    values = columns.permute(0, 3, 1, 2).flatten(2)
    mean = values.mean(-1)
    squares = (values - mean.unsqueeze(-1)).square().sum(-1)  # Tensor.var is many times slower
    return torch.stack([mean, squares / (values.shape[-1] - 1)], dim=-1)


def map_distance_reference(
    q: Tensor, k_a: Tensor, k_b: Tensor, weights: Tensor, scale: float
) -> Tensor:
    """Sum over heads, positions and keys of `weights` (B, M) times (A_a - A_b)²: (B,).

    A_b is a target: no gradient enters it.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    ours = (q.to(dtype) @ k_a.to(dtype).mT * scale).softmax(-1)
    with torch.no_grad():
        target = (q.to(dtype) @ k_b.to(dtype).mT * scale).softmax(-1)
    return ((ours - target).square() * weights[:, None, None, :]).sum((1, 2, 3))

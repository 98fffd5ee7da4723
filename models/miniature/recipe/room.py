"""Room in a latent space, for an autoencoder that goes on learning beside a trained U-Net.

Latents of C channels may vary in fewer than C directions. The autoencoder then learns to keep in
the empty ones what it lost, while it goes on saying what it said in the others. A U-Net that was
trained in the former latents draws in the new ones from the start, and learns what is new; their
scale, one for all channels, is computed anew, so that it sees the former ones a little smaller.
"""

from typing import Any

import torch
from torch import Tensor, nn

EMPTY = 0.05
"""Of the mean variance of a direction; below it, one says nothing."""
KEPT_WEIGHT, FREE_WEIGHT = 1.0, 0.01
_LOG_VARIANCE = -7.0


class Directions(nn.Module):
    """Directions of latents (B, C, h, w): those that vary, `kept` (k, C), and `free` (C - k, C)."""

    def __init__(self, latents: Tensor) -> None:
        super().__init__()
        centred = (latents - latents.mean((0, 2, 3), keepdim=True)).movedim(1, 0).flatten(1)
        scale = latents.std()
        variances, directions = torch.linalg.eigh(centred @ centred.T / centred.shape[1])
        count = int((variances < EMPTY * variances.mean()).sum())
        self.register_buffer("scale", scale)
        self.register_buffer("free", directions[:, :count].T.contiguous())
        self.register_buffer("kept", directions[:, count:].T.contiguous())
        self.scale: Tensor
        self.free: Tensor
        self.kept: Tensor

    def along(self, directions: Tensor, latents: Tensor) -> Tensor:
        """How far latents (B, C, h, w) are along each, (count, B · h · w), in deviations."""
        return torch.einsum("kc,bchw->kbhw", directions, latents / self.scale).flatten(1)

    def losses(self, latents: Tensor, former: Tensor) -> dict[str, Tensor]:
        """How far kept directions are from the former latents, and free ones from being their own.

        These should be of mean 0, of deviation 1 and uncorrelated, with each other and with the
        kept ones.
        """
        kept, free = (self.along(each, latents) for each in (self.kept, self.free))
        together = torch.cat([free - free.mean(1, keepdim=True), kept - kept.mean(1, keepdim=True)])
        covariance = together[: len(free)] @ together.T / together.shape[1]
        wanted = torch.eye(*covariance.shape, device=covariance.device)
        spread = (covariance - wanted).square().sum() + free.mean(1).square().sum()
        off = (kept - self.along(self.kept, former)).square().mean()
        return {"kept": KEPT_WEIGHT * off, "free": FREE_WEIGHT * spread}


@torch.no_grad()
def make_room(vae: Any, pixels: Tensor) -> Directions:
    """Let an `AutoencoderKL` say something in the empty directions of the latents of some pictures.

    Its kept directions stay as they are; it reads of the free ones at random, draws by them a
    little, and is certain of its latents.
    """
    latents = vae.encode(pixels).latent_dist.mean.float()
    room = Directions(latents)
    channels = latents.shape[1]
    into, out = vae.quant_conv, vae.post_quant_conv
    read, free = vae.encoder.conv_out, room.free
    weight = into.weight[:channels, :, 0, 0]
    mean_of = torch.einsum("ij,jabc->iabc", weight, read.weight)
    bias_of = weight @ read.bias + into.bias[:channels]
    keeping = room.kept.T @ room.kept
    some = torch.randn(len(free), *read.weight.shape[1:], device=read.weight.device)

    def read_by(some: Tensor) -> None:
        kept = torch.einsum("ij,jabc->iabc", keeping, mean_of)
        added = torch.einsum("kc,kabd->cabd", free, some)
        read.weight.copy_(torch.cat([kept + added, torch.zeros_like(kept)]))
        certain = torch.full_like(bias_of, _LOG_VARIANCE)
        read.bias.copy_(torch.cat([keeping @ bias_of, certain]))

    into.weight.copy_(torch.eye(2 * channels)[:, :, None, None])
    into.bias.zero_()
    read_by(some)
    spread = room.along(free, vae.encode(pixels).latent_dist.mean.float()).std(1)
    read_by(some / spread.view(-1, 1, 1, 1))
    drawn = out.weight[:, :, 0, 0].clone()
    size = 0.3 * drawn.norm(dim=0).mean() / channels**0.5
    noise = size * torch.randn(channels, len(free), device=drawn.device)
    mean = latents.mean((0, 2, 3))
    out.bias.add_(drawn @ (mean - keeping @ mean))
    out.weight.copy_((drawn @ keeping + noise @ free)[:, :, None, None])
    return room

"""What denoising begins with: noise, or a picture with noise (img2img), of which a part may stay.

SDEdit (Meng et al. 2022, arXiv 2108.01073) as diffusers has it; what a mask leaves is put back
after each step with the noise of the next one (RePaint, arXiv 2201.09865, algorithm 1, without its
resampling), unless the base model is an inpainting model, which sees it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (everyone's name for it)

from ..models.backbone import Backbone, Posterior, SamplingScheduler
from ..models.pixels import GREY
from .init_request import ReadInit, hard


@dataclass(frozen=True, slots=True)
class Start:
    """A picture to begin with, encoded, and what of it is redrawn.

    `redrawn` (H, W), 0 to 1, are the shares of drawn pixels, `cells` (1, 1, h, w) are 1 where
    latents are redrawn: all that hold any of them. `surroundings` is the picture, grey there.
    """

    image: Image.Image
    strength: float
    posterior: Posterior
    redrawn: Image.Image | None = None
    cells: Tensor | None = None
    surroundings: Posterior | None = None

    @classmethod
    def of(cls, backbone: Backbone, read: ReadInit) -> "Start":
        """Encode a picture that was read."""
        image, factor = read.image.convert("RGB"), backbone.latent_factor
        posterior = backbone.encode_images([image])
        if read.mask is None:
            return cls(image, read.used.strength, posterior)
        redrawn = hard(read.mask).filter(ImageFilter.GaussianBlur(factor / 2))
        pixels = torch.from_numpy(np.array(redrawn, dtype=np.float32) / 255)[None, None]
        cells = (F.max_pool2d(pixels, factor) > 0).float()
        surroundings = None
        if backbone.is_inpainting:
            inside = Image.fromarray(
                (255 * F.interpolate(cells, scale_factor=factor)[0, 0].numpy()).astype(np.uint8)
            )
            without = Image.composite(Image.new("RGB", image.size, GREY), image, inside)
            surroundings = backbone.encode_images([without])
        return cls(image, read.used.strength, posterior, redrawn, cells, surroundings)

    def finished(self, drawn: Image.Image) -> Image.Image:
        """A drawn picture, in which what is not redrawn has the pixels that it had."""
        if self.redrawn is None:
            return drawn
        return Image.composite(drawn.convert("RGB"), self.image, self.redrawn)


@dataclass(frozen=True, slots=True)
class Beginning:
    """The noise (B, C, h, w) of a batch, and the encoded pictures that it is added to, if any.

    `cells` (1, 1, h, w) are 1 where latents are redrawn, if not everywhere; `redrawn` is what an
    inpainting model gets (see `Backbone.redrawing`).
    """

    noise: Tensor
    picture: Tensor | None = None
    strength: float = 1.0
    cells: Tensor | None = None
    redrawn: Tensor | None = None

    def begin(self, scheduler: SamplingScheduler, num_steps: int) -> tuple[Tensor, Tensor]:
        """The latents (B, C, h, w) of the first step, and the timesteps of all that are taken.

        The scheduler's steps have been set, to `num_steps`. Where a part is redrawn with strength
        1, nothing of that part is in the latents, as in diffusers.
        """
        first = num_steps - min(int(num_steps * self.strength), num_steps)
        first *= getattr(scheduler, "order", 1)
        timesteps = scheduler.timesteps[first:]
        if self.picture is not None and (set_first := getattr(scheduler, "set_begin_index", None)):
            set_first(first)
        if self.picture is None or (self.strength == 1 and self.cells is not None):
            return self.noise * scheduler.init_noise_sigma, timesteps
        return self._noised(self.picture, scheduler, timesteps[0]), timesteps

    def kept(
        self, latents: Tensor, scheduler: SamplingScheduler, next_timestep: Tensor | None
    ) -> Tensor:
        """Latents after a step, in which what is not redrawn is the picture with its noise."""
        if self.cells is None or self.redrawn is not None or self.picture is None:
            return latents
        picture = self.picture
        if next_timestep is not None:
            picture = self._noised(picture, scheduler, next_timestep)
        return self.cells * latents + (1 - self.cells) * picture

    def _noised(self, picture: Tensor, scheduler: SamplingScheduler, timestep: Tensor) -> Tensor:
        return scheduler.add_noise(picture, self.noise, timestep.expand(len(picture)))


def beginning_of(
    backbone: Backbone,
    start: Start | None,
    seeds: Sequence[int],
    size: tuple[int, int],
    dtype: torch.dtype,
) -> tuple[Beginning, list[torch.Generator]]:
    """How pictures of a size (width, height) begin, each by its own seed; and their generators.

    What is random is drawn in diffusers' order: the encoded picture, noise, what is around it.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    width, height = (side // backbone.latent_factor for side in size)
    shape = (len(seeds), backbone.latent_channels, height, width)

    def noise(dtype: torch.dtype) -> Tensor:
        return randn_tensor(shape, generator=generators, device=backbone.device, dtype=dtype)

    def sampled(posterior: Posterior) -> Tensor:
        return (posterior.mean + posterior.std * noise(posterior.mean.dtype)).to(dtype)

    if start is None:
        return Beginning(noise(dtype)), generators
    cells = None if start.cells is None else start.cells.to(backbone.device, dtype)
    is_blank = start.surroundings is not None and start.strength == 1
    picture = None if is_blank else sampled(start.posterior)
    added = noise(dtype)
    redrawn = None
    if start.surroundings and cells is not None:
        around = sampled(start.surroundings)
        redrawn = torch.cat([cells.expand(len(around), -1, -1, -1), around], 1)
    return Beginning(added, picture, start.strength, cells, redrawn), generators

"""The rules of DreamTuner's relatives, which draw after references without training too.

Written anew from what their papers and code say, for the sampler of this project: all are
classifier-free guidance, in which layers of self-attention see references in another way.

masactrl      keys and values are those of the reference, in the last layers and but for the first
              steps (Cao et al. 2023, section 3.2). The reference is inverted by DDIM without a
              prompt, and drawn again beside the picture
freecustom    keys of masked references stand beside the picture's own, in the last layers; a weight
              of 3 is added to their scores, which multiplies their attention by e³; passes without
              the prompt see none (Ding et al. 2024, section 3.3; `style_fidelity` of 1)
community     keys of the reference stand beside the picture's own in all layers, without a mask;
              the reference passes under the picture's prompts. Without the prompt, outputs are
              half with and half without the reference (`style_fidelity` of 0.5). With `adain`,
              means and deviations of channels in the inner blocks become the reference's as well
              (diffusers' community pipeline `stable_diffusion_reference`)

Layers and steps of Stable Diffusion, 16 and 50, are taken in proportion.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from conceptry.generation import sampler, starts
from conceptry.generation.guidance import ClassifierFree, Denoising
from conceptry.generation.request import SamplingSettings
from conceptry.kernels.observation import SELF_ATTENTION, FurtherKeys
from conceptry.models.backbone import Backbone
from conceptry.models.conditioning import Conditioning
from conceptry.models.references import Reference
from conceptry.models.seeds import seed_of
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (everyone's name for it)

LAST_LAYERS = 10 / 16
"""Where MasaCtrl and FreeCustom begin, as a share of the layers."""
FIRST_STEPS = 4 / 50
"""Where MasaCtrl begins, as a share of the steps."""
ADDED_WEIGHT = 3.0
"""FreeCustom's, of each reference."""
STYLE_FIDELITY = 0.5
"""The community pipeline's: how much of a pass without the prompt sees no reference."""
_LEAST_VARIANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Drawing:
    """What a batch is drawn with: prompts, settings, and the size in pixels."""

    backbone: Backbone
    prompts: Sequence[str]
    settings: SamplingSettings
    width: int
    height: int

    def encoded(self, prompts: Sequence[str]) -> Conditioning:
        """Other prompts for pictures of this size."""
        return self.backbone.encode_prompts(prompts, self.width, self.height)


class Relative(ClassifierFree, ABC):
    """Classifier-free guidance in which pictures see references by a rule."""

    start: Tensor | None = None
    """The noise (1, C, h, w) that all pictures start from; None for that of their seeds."""

    def __init__(self, drawing: Drawing, references: Sequence[Reference]) -> None:
        backbone, settings = drawing.backbone, drawing.settings
        negatives = [settings.negative] * len(drawing.prompts) if settings.negative else None
        both = backbone.encode_guided(drawing.prompts, negatives, drawing.width, drawing.height)
        super().__init__(*both, settings.guidance, Denoising())
        self.references = references
        self.step = 0
        self.num_steps = settings.steps

    def predict(self, backbone: Backbone, latents: Tensor, timestep: Tensor) -> Tensor:
        """The noise in latents (B, C, h, w)."""
        with self.seeing(backbone, len(latents), timestep):
            predicted = super().predict(backbone, latents, timestep)
        self.step += 1
        return predicted

    @abstractmethod
    def seeing(
        self, backbone: Backbone, count: int, timestep: Tensor
    ) -> AbstractContextManager[None]:
        """References are seen by a batch of `count` rows without the prompt, then as many with."""

    def noised(self, backbone: Backbone, timestep: Tensor) -> Tensor:
        """References (R, C, h, w) with the noise of a time, which is another in each step."""
        latents = torch.stack([each.latents for each in self.references])
        generator = torch.Generator().manual_seed(seed_of(self.step, "noise of references"))
        noise = torch.randn(latents.shape, generator=generator)
        noisy = backbone.training_scheduler().add_noise(latents, noise, timestep.reshape(1).cpu())
        return noisy.to(backbone.device, self.conditioning.states.dtype)


MakeRelative = Callable[[Drawing], Relative]


@contextmanager
def drawn_by(make: MakeRelative) -> Iterator[None]:
    """Pictures are drawn by a relative inside the context, whatever references are injected."""
    plain_noise: Callable[..., Tensor] = starts.randn_tensor
    drawing: list[Relative] = []

    def guidance_for(
        backbone: Backbone,
        prompts: Sequence[str],
        settings: SamplingSettings,
        seeds: Sequence[int],
        width: int,
        height: int,
        **options: object,
    ) -> Relative:
        del seeds, options
        drawing[:] = [make(Drawing(backbone, prompts, settings, width, height))]
        return drawing[0]

    def randn_tensor(shape: tuple[int, ...], **options: Any) -> Tensor:
        start = drawing[0].start
        return plain_noise(shape, **options) if start is None else start.expand(shape)

    with (
        patch.object(sampler, "guidance_for", guidance_for),
        patch.object(starts, "randn_tensor", randn_tensor),
    ):
        yield


# --- rules of attention ---------------------------------------------------------------------------

Attend = Callable[[Tensor, Tensor], Tensor]
"""(states (B, N, C), states (B, M, C) of keys and values) -> a layer's output (B, N, C)."""
Rule = Callable[[Attend, Tensor, Tensor], Tensor]
"""(attend, a batch's states, the references' states) -> a layer's output."""


def layers_of(backbone: Backbone, share: float = 0.0) -> list[str]:
    """The layers of self-attention in the order of a pass, from a share of them on."""
    order = ("down_blocks", "mid_block", "up_blocks")
    names = [name for name in backbone.attention.layers if re.fullmatch(SELF_ATTENTION, name)]
    names.sort(key=lambda name: order.index(name.partition(".")[0]))
    return names[math.ceil(share * len(names)) :]


@contextmanager
def ruled(backbone: Backbone, states: Mapping[str, Tensor], rule: Rule) -> Iterator[None]:
    """Layers attend by a rule inside the context; `states` are the references' in each layer."""
    unet: Any = backbone.denoiser
    before = dict(unet.attn_processors)
    names = {f"{layer}.processor": kept for layer, kept in states.items()}
    changed = {name: _Ruled(before[name], kept, rule) for name, kept in names.items()}
    unet.set_attn_processor(before | changed)
    try:
        yield
    finally:
        unet.set_attn_processor(before)


@dataclass(frozen=True, slots=True)
class _Ruled:
    """A diffusers attention processor that attends by a rule."""

    own: Callable[..., Tensor]
    states: Tensor
    rule: Rule

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        assert encoder_hidden_states is None
        assert attention_mask is None

        def attend(states: Tensor, context: Tensor) -> Tensor:
            return self.own(attn, states, encoder_hidden_states=context)

        return self.rule(attend, hidden_states, self.states)


# --- MasaCtrl -------------------------------------------------------------------------------------


class MasaCtrl(Relative):
    """Keys and values are the reference's, which is drawn beside the picture.

    With `from_reference`, as in its code for real pictures, pictures start from the reference's own
    noise and are the same for all seeds; else each starts from the noise of its seed.
    """

    def __init__(
        self, drawing: Drawing, references: Sequence[Reference], *, from_reference: bool = True
    ) -> None:
        super().__init__(drawing, references)
        backbone = drawing.backbone
        self._prompt = drawing.encoded([""])
        self._scheduler = backbone.sampling_scheduler("ddim")
        self._scheduler.set_timesteps(self.num_steps, device=backbone.device)
        self._latents = inverted(
            backbone, references[0].latents[None], self._scheduler.timesteps, self._prompt
        )
        self.start = self._latents if from_reference else None

    @contextmanager
    def seeing(self, backbone: Backbone, count: int, timestep: Tensor) -> Iterator[None]:
        """Both halves see the reference without a prompt."""
        del count
        with backbone.attention.record() as states:
            noise = backbone.denoise(self._latents, timestep, self._prompt)
        self._latents = self._scheduler.step(
            noise, timestep, self._latents, eta=0.0, return_dict=False
        )[0]
        if self.step < math.ceil(FIRST_STEPS * self.num_steps):
            yield
            return
        last = {layer: states[layer] for layer in layers_of(backbone, LAST_LAYERS)}
        with ruled(backbone, last, replaced):
            yield


def replaced(attend: Attend, own: Tensor, reference: Tensor) -> Tensor:
    """Keys and values of the reference (1, M, C) alone."""
    return attend(own, reference.expand(len(own), -1, -1))


def inverted(
    backbone: Backbone, latents: Tensor, timesteps: Tensor, prompt: Conditioning
) -> Tensor:
    """The noise from which DDIM draws latents (1, C, h, w) (Song et al. 2021, section 4.3).

    `timesteps` are those of drawing, the first of which has the most noise.
    """
    kept = backbone.training_scheduler().alphas_cumprod.to(backbone.device)
    latents = latents.to(backbone.device, prompt.states.dtype)
    alpha = kept[0]  # as the last step of drawing has it
    for timestep in timesteps.flip(0):
        noise = backbone.denoise(latents, timestep, prompt)
        clean = (latents - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        alpha = kept[timestep]
        latents = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    return latents


# --- FreeCustom -----------------------------------------------------------------------------------


class FreeCustom(Relative):
    """Masked references beside the picture's own keys, with a weight added to their scores."""

    def __init__(self, drawing: Drawing, references: Sequence[Reference]) -> None:
        super().__init__(drawing, references)
        self._prompts = drawing.encoded([each.prompt for each in references])

    @contextmanager
    def seeing(self, backbone: Backbone, count: int, timestep: Tensor) -> Iterator[None]:
        """The half with the prompt sees them, in the last layers."""
        with backbone.attention.record() as states:
            backbone.denoise(self.noised(backbone, timestep), timestep, self._prompts)
        last = {layer: states[layer] for layer in layers_of(backbone, LAST_LAYERS)}
        sees = torch.arange(2 * count, device=backbone.device) >= count
        hidden = torch.where(sees, 0.0, -torch.inf)[:, None, None]
        biases = {
            layer: hidden + added_weight(self.references, kept.shape[1]).to(kept.device)
            for layer, kept in last.items()
        }
        with backbone.attention.attend_also([FurtherKeys(last, biases)]):
            yield


def added_weight(references: Sequence[Reference], positions: int) -> Tensor:
    """What is added to scores (R, M): the weight inside masks, -inf outside."""
    masks = torch.stack([each.mask for each in references])[:, None].float()
    side = math.isqrt(positions)
    inside = F.interpolate((masks >= 0.5).float(), (side, side), mode="nearest").flatten(1) > 0
    return torch.where(inside, ADDED_WEIGHT, -torch.inf)


# --- the community pipeline -----------------------------------------------------------------------


class Community(Relative):
    """The reference beside the picture's own keys in all layers, without a mask."""

    def __init__(
        self, drawing: Drawing, references: Sequence[Reference], *, adain: bool = False
    ) -> None:
        super().__init__(drawing, references)
        self._both = Conditioning.cat([self.negative, self.conditioning])
        self._adain = adain

    @contextmanager
    def seeing(self, backbone: Backbone, count: int, timestep: Tensor) -> Iterator[None]:
        """Each row sees the reference as it passes under the row's own prompt."""
        noisy = self.noised(backbone, timestep).expand(2 * count, -1, -1, -1)
        moments: dict[nn.Module, _Moments] = {}
        modules = _inner_modules(backbone.denoiser) if self._adain else []
        recording = {module: partial(_recorded, moments, module) for module in modules}
        with backbone.attention.record() as states, _hooked(recording):
            backbone.denoise(noisy, timestep, self._both)
        kept = {layer: states[layer] for layer in layers_of(backbone)}
        changing = {module: partial(_with_moments, wanted) for module, wanted in moments.items()}
        with ruled(backbone, kept, beside), _hooked(changing):
            yield


def beside(attend: Attend, own: Tensor, reference: Tensor) -> Tensor:
    """Own keys and the reference's; in the first half, without the prompt, only in part."""
    with_it = attend(own, torch.cat([own, reference], 1))
    without_prompt = own.chunk(2)[0]
    return _mixed(attend(without_prompt, without_prompt), with_it)


def _mixed(without: Tensor, with_it: Tensor) -> Tensor:
    """The first half of rows is mixed with what it is without the reference."""
    first, second = with_it.chunk(2)
    return torch.cat([torch.lerp(first, without, STYLE_FIDELITY), second])


@dataclass(frozen=True, slots=True)
class _Moments:
    """Means and standard deviations of channels (B, C, 1, 1)."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, states: Tensor) -> "_Moments":
        variance, mean = torch.var_mean(states, dim=(2, 3), keepdim=True, correction=0)
        return cls(mean, variance.clamp(min=_LEAST_VARIANCE).sqrt())


def _inner_modules(unet: Any) -> list[nn.Module]:
    """The middle block, and the parts of the inner half of blocks: after each layer's attention."""
    downs, ups = list(unet.down_blocks), list(unet.up_blocks)
    inner = [block for i, block in enumerate(downs) if 2 * (len(downs) - i) <= len(downs)]
    inner += [block for i, block in enumerate(ups) if 2 * i <= len(ups)]
    parts = [part for block in inner for part in getattr(block, "attentions", block.resnets)]
    return [*parts, unet.mid_block]


@contextmanager
def _hooked(hooks: Mapping[nn.Module, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Change what modules put out inside the context."""

    def hook(module: nn.Module, given: object, output: Any) -> Any:
        del given
        change = hooks[module]
        return (change(output[0]),) if isinstance(output, tuple) else change(output)

    with ExitStack() as stack:
        for module in hooks:
            stack.callback(module.register_forward_hook(hook).remove)
        yield


def _recorded(moments: dict[nn.Module, _Moments], module: nn.Module, output: Tensor) -> Tensor:
    moments[module] = _Moments.of(output)
    return output


def _with_moments(wanted: _Moments, output: Tensor) -> Tensor:
    """Output with other moments (Huang and Belongie 2017, eq. 8)."""
    own = _Moments.of(output)
    changed = (output - own.mean) / own.std * wanted.std + wanted.mean
    return _mixed(output.chunk(2)[0], changed)

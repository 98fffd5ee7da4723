"""Train the miniature from nothing.

    python -m conceptry.models.miniature.recipe.train all --out runs/miniature
    python -m conceptry.models.miniature.recipe.train unet --out runs/miniature --images 1000000

The stages, in order: `clip` (text and picture encoders, contrastive), `vae`, `decoder` (the
autoencoder's second half goes on alone, in the latent space that is there), `unet` (with the text
encoder), `clip-tune` (the picture encoder anew, against the text encoder that the U-Net left),
`identity`, `control` (a ControlNet for layouts) and `subject-encoder` (DreamTuner's); for the last
two the U-Net stays as it is. Each writes a resume point every few minutes and goes on from it when
started again; a run that was killed ends bit-equal to one that was not, on a CPU of the same kind.

The U-Net can go on from an earlier one's weights, also in the latents of another autoencoder, whose
number of channels may differ: its first and last layer then begin anew.

    … unet --out runs/new --start runs/old/unet.safetensors

So can the autoencoder, and beside it the U-Net as it is: latents that vary in some directions only
go on saying in these what they said, and the others take up what was lost.

    … vae --out runs/new --start runs/old/decoder.safetensors --keep-latents
"""

import argparse
import copy
import dataclasses
import json
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.resnet import ResnetBlock2D
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812 (everyone's name for it)
from transformers import CLIPTokenizer

from ....registry.files import replacing
from ....registry.hashes import sha256_of
from ...compiling import compile_blocks
from ...reference_augmentation import augmented
from ...seeds import seed_of
from ...subject_encoder import SubjectEncoder, SubjectTokens
from ...vision import VisionEncoder
from ..architecture import (
    LATENT_SIZE,
    SIZE,
    SMALL_SIZE,
    Discriminator,
    make_clip,
    make_control,
    make_scheduler,
    make_unet,
    make_vae,
)
from ..identity import IdentityEncoder
from ..tokenizer import make_tokenizer
from ..world.layouts import PALETTE
from .data import Batch, layouts_batch, pairs_batch, prefetched, scenes_batch
from .muon import Muon
from .room import Directions, make_room
from .subject_encoder import REFERENCES, subjects_batch

CAPTION_DROPOUT = 0.1
CONTROL_CAPTION_DROPOUT = 0.5
"""So that the ControlNet learns what a layout says without words (Zhang et al. 2023, 3.3)."""
MAX_SNR, MORE_SNR = 5.0, 0.25
STRUCTURE = 400
"""Below this timestep it is settled what is where: see `settling` of `bench/miniature.py`."""
CONTROL_STRUCTURE = 0.5
"""The share of timesteps that a ControlNet for layouts has from there on alone."""
FOREGROUND_WEIGHT, FACE_WEIGHT = 4.0, 10.0
"""How much more they count than the place, in pixels and in noise: a fifth of a picture, nearly all
that it is about, and where one looks first."""
LATENT_NOISE = 0.3
"""At most, as a share of latents' own deviation."""
FEATURE_WEIGHT, ADVERSARY_WEIGHT = 1.0, 0.05
DECODER = ("vae.decoder", "vae.post_quant_conv")
SAVE_EVERY_SECONDS = 180.0
LOG_EVERY_STEPS = 25
MANY_STEPS = 1_000_000


@dataclass
class Context:
    """Where a training happens and what earlier stages left there."""

    folder: Path
    device: torch.device
    seed: int = 0
    tokenizer: CLIPTokenizer = field(default_factory=make_tokenizer)

    def generator(self, stage: str, step: int) -> torch.Generator:
        """The randomness of one step; it depends on nothing else but the kind of device."""
        return torch.Generator(self.device).manual_seed(seed_of(self.seed, stage, step))

    def pixels(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, size, size) of bytes, in -1..1."""
        images = images.to(self.device, non_blocking=True)
        return (images.float() / 127.5 - 1).to(memory_format=torch.channels_last)

    def weights(self, batch: Batch) -> Tensor:
        """How much places count (B, 1, 16, 16), from 1."""
        foregrounds, faces = (
            each.to(self.device, non_blocking=True)[:, None] / 255
            for each in (batch.foregrounds, batch.faces)
        )
        return 1 + FOREGROUND_WEIGHT * foregrounds + FACE_WEIGHT * faces

    def tokens(self, captions: list[str], *, padding: str = "max_length") -> Tensor:
        """Token ids (B, 77), or as many as the longest caption has with `padding="longest"`."""
        encoded = self.tokenizer(captions, padding=padding, truncation=True, return_tensors="pt")
        return encoded.input_ids.to(self.device)

    @cached_property
    def no_words(self) -> Tensor:
        """Token ids (1, 77) of an empty caption."""
        return self.tokens([""])

    @cached_property
    def palette(self) -> Tensor:
        """The colours of layouts, (13, 3) in 0..1."""
        return torch.from_numpy(PALETTE).to(self.device) / 255

    @cached_property
    def signal(self) -> Tensor:
        """ᾱ of each timestep, (1000,)."""
        return make_scheduler().alphas_cumprod.to(self.device)

    def autocast(self) -> AbstractContextManager[object]:
        """bfloat16 where a matrix product may use it, and the processor has it.

        One with AVX2 alone takes seven times as long for it as for float32 (the autoencoder).
        """
        has_it = self.device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
        return torch.autocast(self.device.type, torch.bfloat16, enabled=has_it)

    def load(self, stage: str, module: nn.Module, part: str) -> None:
        """Fill a module from the weights that a finished stage left."""
        path = self.folder / f"{stage}.safetensors"
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: train the stage {stage!r} first")
        module.load_state_dict(parameters_of(load_file(path), part))


def _move(module: nn.Module, device: torch.device) -> None:
    """To a device, and its convolutions to the layout that is fast there."""
    layout = torch.channels_last
    nn.Module.to(module, device, memory_format=layout)  # pyright: ignore[reportCallIssue]


def parameters_of(weights: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The tensors of one part of a stage's weights, by the names that they have in it."""
    prefix = f"{part}."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in weights.items()
        if name.startswith(prefix)
    }


Losses = dict[str, Tensor]
Encoded = dict[str, Tensor]
"""Tensors whose first dimension is the scene."""
Control = Callable[[Tensor, Tensor, Tensor, Encoded], Mapping[str, object]]
"""(noisy latents, timesteps, text states, scenes) -> what the U-Net gets besides: a ControlNet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One training. The loss that is minimised is the sum of what `losses` returns."""

    name: str
    images: int
    batch: int
    learning_rate: float
    make_batch: Callable[..., Any]
    """A `Batch`, or whatever `encode` and `losses` take."""
    offset: int
    build: Callable[[Context], nn.ModuleDict]
    losses: Callable[..., Losses]
    """Of the modules, a `Batch` or what `encode` makes of one, the context and a generator."""
    learns: tuple[str, ...]
    size: int = SIZE
    encode: Callable[[nn.ModuleDict, Batch, Context], Encoded] | None = None
    window: int = 1
    """Minibatches are drawn from the last so many batches of encoded scenes, ..."""
    reuse: int = 1
    """... and so many of them until the next batch is rendered."""
    crowds: tuple[float, float, float] | None = None
    """Shares of scenes with one, two and three subjects, if not the world's own."""
    references: str | None = None
    """Of the subject encoder, one of `REFERENCES`."""
    keeps_latents: bool = False
    """Of the autoencoder: whether what it goes on from stays what latents say; see `room`."""
    control: bool | None = None
    """Of the subject encoder: whether the ControlNet shows the U-Net the layout meanwhile."""
    split: str = "taught"
    """Whose identities it sees; see `identities.SPLITS`."""
    slow: Mapping[str, float] = field(default_factory=dict)
    """Parts that learn at a fraction of the rate."""
    muon: tuple[str, ...] = ()
    """Parts whose matrices and convolutions learn by Muon, and only the rest by AdamW."""
    ema: float = 0.999
    weight_decay: float = 0.01
    warmup_steps: int = 200


# --- what the stages minimise ---------------------------------------------------------------------


def build_clip(context: Context) -> nn.ModuleDict:
    """Both encoders, from nothing."""
    return nn.ModuleDict({"clip": make_clip(context.tokenizer)})


def clip_losses(
    modules: nn.ModuleDict, batch: Batch, context: Context, generator: torch.Generator
) -> Losses:
    """Symmetric cross-entropy over all pairs of a batch (Radford et al. 2021, figure 3).

    The text encoder is causal and read at the end token: padding after it changes nothing.
    """
    del generator
    with context.autocast():
        output = modules["clip"](
            input_ids=context.tokens(batch.captions, padding="longest"),
            pixel_values=context.pixels(batch.images),
        )
    logits = output.logits_per_text.float()
    target = torch.arange(len(logits), device=logits.device)
    return {"clip": (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2}


def build_clip_tune(context: Context) -> nn.ModuleDict:
    """The encoders as they are, the text encoder as the U-Net's training left it."""
    modules = build_clip(context)
    context.load("clip", modules["clip"], "clip")
    context.load("unet", modules["clip"].get_submodule("text_model"), "text")
    return modules


def build_vae(context: Context) -> nn.ModuleDict:
    """The autoencoder, from nothing."""
    del context
    return nn.ModuleDict({"vae": make_vae()})


def _vae_of(modules: nn.ModuleDict) -> ModelMixin:
    vae = modules["vae"]
    assert isinstance(vae, ModelMixin)
    return vae


def keep_pictures(modules: nn.ModuleDict, batch: Batch, context: Context) -> Encoded:
    """What the autoencoder needs of scenes."""
    del modules
    images = batch.images.to(context.device, non_blocking=True)
    return {"images": images, "weights": context.weights(batch)}


def vae_losses(
    modules: nn.ModuleDict, scenes: Encoded, context: Context, generator: torch.Generator
) -> Losses:
    """How far what comes back is from what went in, and a touch of KL.

    Of a quarter of each picture, which costs a quarter, where most is that counts. Latents are as
    noisy as they may be when a U-Net draws them, so that near ones mean pictures that are alike.
    """
    pixels, weights = quarters(context.pixels(scenes["images"]), scenes["weights"], generator)
    vae = _vae_of(modules)
    with context.autocast():
        posterior = vae.encode(pixels).latent_dist
        decoded = vae.decode(_noisy(posterior.mean, posterior.std, generator)).sample
    kl = 1e-6 * posterior.kl().float().mean()
    losses = _reconstruction_losses(decoded, pixels, weights) | {"kl": kl}
    if "room" in modules:
        losses |= _losses_of_room(modules, pixels, posterior.mean.float(), context)
    return losses


def _losses_of_room(
    modules: nn.ModuleDict, pixels: Tensor, latents: Tensor, context: Context
) -> Losses:
    room, former = modules["room"], modules["former"]
    assert isinstance(room, Directions)
    with torch.no_grad(), context.autocast():
        before = former.encode(pixels).latent_dist.mean  # pyright: ignore[reportCallIssue]
    return room.losses(latents, before.float())


def _same_pixels(context: Context) -> Tensor:
    """256 pictures, the same in every run, that tell of latents."""
    batch = scenes_batch(0, split="taught", offset=9, batch=256, size=SIZE)
    return context.pixels(batch.images)


def keep_latents(modules: nn.ModuleDict, context: Context) -> None:
    """Let the autoencoder go on beside itself as it was; see `room`."""
    vae = modules["vae"]
    modules["former"] = copy.deepcopy(vae)
    modules["room"] = make_room(vae, _same_pixels(context))


def quarters(pixels: Tensor, weights: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A square of half the width out of each picture, rather there where weights are large.

    Pictures (B, 3, n·m, n·m) and weights (B, 1, m, m) of their places, of which squares have whole
    ones; drawn by the squares of the weights' means.
    """
    places = weights.shape[-1]
    width, pitch = places // 2, pixels.shape[-1] // places
    odds = 2 * F.avg_pool2d(weights, width, stride=1).log()
    device = odds.device
    chance = torch.rand(odds.shape, generator=generator, device=device)
    chosen = (odds - (-chance.log()).log()).flatten(1).argmax(1)[:, None]
    steps = torch.arange(width, device=device)
    top, left = chosen // odds.shape[-1] + steps, chosen % odds.shape[-1] + steps
    fine = torch.arange(pitch, device=device)
    down, across = ((each[..., None] * pitch + fine).flatten(1) for each in (top, left))
    of_each = torch.arange(len(pixels), device=device)[:, None, None]
    cut = pixels.permute(0, 2, 3, 1)[of_each, down[:, :, None], across[:, None]]
    return cut.permute(0, 3, 1, 2), weights[:, 0][of_each, top[:, :, None], left[:, None]][:, None]


def _noisy(mean: Tensor, std: Tensor, generator: torch.Generator) -> Tensor:
    """Latents (B, C, h, w) with noise of their own and, for each picture, up to `LATENT_NOISE`."""
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    share = torch.rand(len(mean), 1, 1, 1, generator=generator, device=mean.device)
    return mean + (std + LATENT_NOISE * share * mean.std()) * noise


def build_decoder(context: Context) -> nn.ModuleDict:
    """The autoencoder as it is, and who tells its pictures from renders."""
    modules = build_vae(context)
    context.load("vae", modules["vae"], "vae")
    modules["discriminator"] = Discriminator()
    return modules


def decoder_losses(
    modules: nn.ModuleDict, scenes: Encoded, context: Context, generator: torch.Generator
) -> Losses:
    """The same of whole pictures, without the KL, against a discriminator (Esser et al. 2021).

    That is their eq. 4. The latent space stays, so that a U-Net can be trained beside it.
    `adversary` and `features` (Wang et al. 2018, eq. 3) teach the decoder alone, and
    `discriminator`, the hinge loss, the discriminator alone.
    """
    pixels, vae = context.pixels(scenes["images"]), _vae_of(modules)
    with context.autocast():
        with torch.no_grad():
            posterior = vae.encode(pixels).latent_dist
            latents = _noisy(posterior.mean, posterior.std, generator)
        decoded = vae.decode(latents).sample
        discriminator = modules["discriminator"]
        unchanged = {name: value.detach() for name, value in discriminator.named_parameters()}
        *features, verdict = functional_call(discriminator, unchanged, (decoded,))
        *of_renders, true_verdict = discriminator(pixels)
        *_, false_verdict = discriminator(decoded.detach())
    matched = [
        F.l1_loss(ours.float(), theirs.detach().float())
        for ours, theirs in zip(features, of_renders, strict=True)
    ]
    hinge = F.relu(1 - true_verdict.float()).mean() + F.relu(1 + false_verdict.float()).mean()
    return _reconstruction_losses(decoded, pixels, scenes["weights"]) | {
        "features": FEATURE_WEIGHT * torch.stack(matched).mean(),
        "adversary": -ADVERSARY_WEIGHT * verdict.float().mean(),
        "discriminator": hinge,
    }


def _reconstruction_losses(decoded: Tensor, pixels: Tensor, weights: Tensor) -> Losses:
    """L1 and squares of pixels, and L1 of their differences.

    L1 alone settles for the median of two colours; the squares do not.
    """
    weight = F.interpolate(weights, size=pixels.shape[-2:], mode="bilinear")
    weight = weight / weight.mean()
    error = decoded.float() - pixels
    across, down = error.diff(dim=3), error.diff(dim=2)
    return {
        "pixels": (error.abs() * weight).mean(),
        "squares": 2 * (error.square() * weight).mean(),
        "edges": (across.abs() * weight[..., :-1]).mean()
        + (down.abs() * weight[..., :-1, :]).mean(),
    }


def build_unet(context: Context) -> nn.ModuleDict:
    """The U-Net from nothing, the text encoder from `clip`, and the frozen autoencoder."""
    clip = make_clip(context.tokenizer)
    context.load("clip", clip, "clip")
    vae = make_vae()
    context.load("vae", vae, "vae")
    vae.register_to_config(scaling_factor=scaling_factor(vae, context))
    unet = make_unet()
    if context.device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())  # the fused one is slow there for small heads
    return nn.ModuleDict({"unet": unet, "text": clip.text_model, "vae": vae})


@torch.no_grad()
def scaling_factor(vae: ModelMixin, context: Context) -> float:
    """One over the standard deviation of latents, rounded so that every run agrees."""
    nn.Module.to(vae, context.device)
    latents = vae.encode(_same_pixels(context)).latent_dist.mean
    return round(1 / float(latents.std()), 4)


@torch.no_grad()
def encode_scenes(modules: nn.ModuleDict, batch: Batch, context: Context) -> Encoded:
    """What the U-Net needs of scenes, so small that many of them stay in memory."""
    vae = _vae_of(modules)
    with context.autocast():
        latents = vae.encode(context.pixels(batch.images)).latent_dist.mean
    return {
        "latents": latents.float() * vae.config.scaling_factor,
        "tokens": context.tokens(batch.captions),
        "weights": context.weights(batch),
    }


def unet_losses(
    modules: nn.ModuleDict,
    scenes: Encoded,
    context: Context,
    generator: torch.Generator,
    control: Control | None = None,
    dropout: float = CAPTION_DROPOUT,
    structure: float = 0.0,
) -> Losses:
    """The diffusion loss on noise (Ho et al. 2020, eq. 14), some captions left out.

    Each timestep weighs (min(SNR, 5) + 1/4) / SNR: nearly clean pictures do not take the model's
    attention from what they show (Hang et al. 2023, section 3.4), and the noisiest steps, where it
    is decided which colour goes where, count as much as those in between. Places weigh as in
    pictures. `control` is what a ControlNet adds; a share of timesteps, `structure`, is drawn from
    `STRUCTURE` on.
    """
    device, latents = context.device, scenes["latents"]
    count = len(latents)
    is_left_out = torch.rand(count, generator=generator, device=device) < dropout
    tokens = torch.where(is_left_out[:, None], context.no_words, scenes["tokens"])
    timesteps = _timesteps(count, structure, generator, device)
    noise = torch.randn(latents.shape, generator=generator, device=device)
    signal = context.signal[timesteps]
    share = signal[:, None, None, None]
    noisy = share.sqrt() * latents + (1 - share).sqrt() * noise
    with context.autocast():
        states = modules["text"](tokens).last_hidden_state
        more = {} if control is None else control(noisy, timesteps, states, scenes)
        predicted = modules["unet"](noisy, timesteps, states, **more).sample
    snr = signal / (1 - signal)
    weight = scenes["weights"]
    errors = ((predicted.float() - noise).square() * (weight / weight.mean())).mean((1, 2, 3))
    return {"noise": (errors * (snr.clamp(max=MAX_SNR) + MORE_SNR) / snr).mean()}


def _timesteps(
    count: int, structure: float, generator: torch.Generator, device: torch.device
) -> Tensor:
    """(count,) of 0..999, a share of them from `STRUCTURE` on."""
    drawn = torch.rand(2, count, generator=generator, device=device)
    first = STRUCTURE * (drawn[0] < structure)
    return (first + drawn[1] * (1000 - first)).long()


def learned_unet(context: Context) -> nn.ModuleDict:
    """All of the U-Net's stage as it was left, with the autoencoder that is there by now."""
    modules = build_unet(context)
    for part in ("unet", "text"):
        context.load("unet", modules[part], part)
    return modules


def build_control(context: Context) -> nn.ModuleDict:
    """The ControlNet from the U-Net's encoder, and all of the U-Net's stage, frozen."""
    modules = learned_unet(context)
    unet = modules["unet"]
    assert isinstance(unet, UNet2DConditionModel)
    modules["control"] = make_control(unet, SIZE // LATENT_SIZE)
    return modules


@torch.no_grad()
def encode_layouts(modules: nn.ModuleDict, batch: Batch, context: Context) -> Encoded:
    """What the ControlNet needs of scenes: what the U-Net does, and layouts."""
    assert batch.layouts is not None
    layouts = batch.layouts.to(context.device, non_blocking=True)
    return encode_scenes(modules, batch, context) | {"layouts": layouts}


def shown_layouts(
    modules: nn.ModuleDict,
    context: Context,
    noisy: Tensor,
    timesteps: Tensor,
    states: Tensor,
    scenes: Encoded,
) -> Mapping[str, object]:
    """What the ControlNet adds to the U-Net, which so sees the layouts of scenes."""
    pixels = context.palette[scenes["layouts"].long()].permute(0, 3, 1, 2)
    down, middle = modules["control"](noisy, timesteps, states, pixels, return_dict=False)
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}


def control_losses(
    modules: nn.ModuleDict, scenes: Encoded, context: Context, generator: torch.Generator
) -> Losses:
    """The U-Net's loss; the U-Net sees layouts through the ControlNet, which alone learns."""
    return unet_losses(
        modules,
        scenes,
        context,
        generator,
        partial(shown_layouts, modules, context),
        CONTROL_CAPTION_DROPOUT,
        CONTROL_STRUCTURE,
    )


def build_identity(context: Context) -> nn.ModuleDict:
    """The identity encoder, from nothing."""
    del context
    return nn.ModuleDict({"identity": IdentityEncoder()})


def identity_losses(
    modules: nn.ModuleDict, batch: Batch, context: Context, generator: torch.Generator
) -> Losses:
    """Each picture finds its partner among all others (Chen et al. 2020, NT-Xent, τ = 0.07)."""
    del generator
    with context.autocast():
        embedded = modules["identity"](context.pixels(batch.images)).float()
    similar = embedded @ embedded.T / 0.07
    similar = similar.masked_fill(
        torch.eye(len(similar), dtype=torch.bool, device=similar.device), -1e4
    )
    partner = torch.arange(len(similar), device=similar.device) ^ 1
    return {"identity": F.cross_entropy(similar, partner)}


def build_subject_encoder(context: Context, *, with_control: bool = True) -> nn.ModuleDict:
    """A subject encoder that has not learned, and all that draws and sees as it is."""
    modules = build_control(context) if with_control else learned_unet(context)
    if with_control:
        context.load("control", modules["control"], "control")
    clip = make_clip(context.tokenizer)
    context.load("clip-tune", clip, "clip")
    half = (0.5, 0.5, 0.5)
    vision = VisionEncoder(clip.vision_model, half, half)
    encoder = SubjectEncoder.for_denoiser(vision, modules["unet"])
    encoder.attention.copy_cross_attention(modules["unet"])
    modules["encoder"] = encoder
    return modules


def encode_references(modules: nn.ModuleDict, batch: Batch, context: Context) -> Encoded:
    """What the U-Net, and the ControlNet if it is there, need of scenes, and their references."""
    assert batch.references is not None
    references = batch.references.to(context.device, non_blocking=True)
    encode = encode_scenes if batch.layouts is None else encode_layouts
    return encode(modules, batch, context) | {"references": references}


def subject_encoder_losses(
    modules: nn.ModuleDict, scenes: Encoded, context: Context, generator: torch.Generator
) -> Losses:
    """`unet_losses` of the U-Net that attends to varied references, at β = 1 (certain).

    The ControlNet, if it is there, shows it the layout, so that the encoder need not learn that
    (certain).
    """
    encoder = modules["encoder"]
    assert isinstance(encoder, SubjectEncoder)
    references = augmented(context.pixels(scenes["references"]), generator)
    with context.autocast():
        tokens = encoder(references)
    control = partial(shown_layouts, modules, context) if "control" in modules else None
    with encoder.attention.insert(modules["unet"], SubjectTokens(tokens, 1.0)):
        return unet_losses(modules, scenes, context, generator, control)


STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            name="clip",
            images=400_000,
            batch=128,
            learning_rate=1e-3,
            make_batch=scenes_batch,
            offset=1,
            build=build_clip,
            size=SMALL_SIZE,
            losses=clip_losses,
            learns=("clip",),
        ),
        Stage(
            name="vae",
            images=480_000,
            batch=24,
            learning_rate=1e-3,
            make_batch=scenes_batch,
            offset=2,
            build=build_vae,
            encode=keep_pictures,
            window=128,
            reuse=6,
            losses=vae_losses,
            crowds=(0.6, 0.3, 0.1),
            learns=("vae",),
            muon=("vae",),
            weight_decay=0.0,
            warmup_steps=100,
        ),
        Stage(
            name="decoder",
            images=200_000,
            batch=8,
            learning_rate=1e-3,
            make_batch=scenes_batch,
            offset=6,
            build=build_decoder,
            encode=keep_pictures,
            losses=decoder_losses,
            learns=(*DECODER, "discriminator"),
            muon=("vae",),
            slow={"discriminator": 0.4},
            weight_decay=0.0,
            warmup_steps=100,
        ),
        Stage(
            name="unet",
            images=1_000_000,
            batch=32,
            learning_rate=5e-4,
            make_batch=scenes_batch,
            offset=3,
            build=build_unet,
            encode=encode_scenes,
            window=32,
            reuse=2,
            losses=unet_losses,
            crowds=(0.5, 0.3, 0.2),
            learns=("unet", "text"),
            slow={"text": 0.25},
        ),
        Stage(
            name="clip-tune",
            images=200_000,
            batch=128,
            learning_rate=5e-4,
            make_batch=scenes_batch,
            offset=4,
            build=build_clip_tune,
            size=SMALL_SIZE,
            losses=clip_losses,
            learns=(
                "clip.vision_model",
                "clip.visual_projection",
                "clip.text_projection",
                "clip.logit_scale",
            ),
        ),
        Stage(
            name="identity",
            images=400_000,
            batch=128,
            learning_rate=1e-3,
            make_batch=pairs_batch,
            offset=5,
            build=build_identity,
            size=SMALL_SIZE,
            losses=identity_losses,
            learns=("identity",),
        ),
        Stage(
            name="control",
            images=400_000,
            batch=32,
            learning_rate=5e-4,
            make_batch=layouts_batch,
            offset=7,
            build=build_control,
            encode=encode_layouts,
            window=32,
            reuse=4,
            losses=control_losses,
            crowds=(0.5, 0.3, 0.2),
            learns=("control",),
        ),
        Stage(
            name="subject-encoder",
            images=400_000,
            batch=16,
            learning_rate=2e-4,
            make_batch=subjects_batch,
            offset=11,
            build=build_subject_encoder,
            encode=encode_references,
            window=32,
            reuse=4,
            losses=subject_encoder_losses,
            crowds=(0.7, 0.25, 0.05),
            references="same",
            control=True,
            learns=("encoder.mapper", "encoder.attention"),
        ),
    )
}

ON_CUDA: dict[str, dict[str, float]] = {
    "vae": {"batch": 64, "window": 512, "reuse": 4},
    "decoder": {"batch": 64, "window": 512, "reuse": 4},
    "unet": {"batch": 512, "learning_rate": 1e-3, "window": 512, "reuse": 8},
    "control": {"batch": 512, "learning_rate": 1e-3, "window": 256, "reuse": 8},
    "subject-encoder": {"batch": 256, "learning_rate": 5e-4, "window": 512, "reuse": 8},
}
"""What a GPU does better: it learns faster than processors render, and from larger batches."""

_SETTINGS = (
    "batch",
    "size",
    "window",
    "reuse",
    "crowds",
    "references",
    "control",
    "keeps_latents",
    "learning_rate",
    "slow",
    "muon",
    "weight_decay",
    "warmup_steps",
    "ema",
    "split",
    "learns",
)


# --- the loop -------------------------------------------------------------------------------------


class Training:
    """One stage under way: modules, optimiser, moving average and the step it is at."""

    def __init__(
        self,
        stage: Stage,
        context: Context,
        *,
        start: Path | None = None,
        compiled: bool = False,
    ) -> None:
        self.stage = stage
        self.context = context
        with _seeded(seed_of(context.seed, stage.name, -1)):
            self.modules = stage.build(context)
        _move(self.modules, context.device)
        self.modules.requires_grad_(False)
        self._settings = _settings_of(stage, context.seed, start)
        if compiled:
            compile_blocks(self.modules, _to_compile(self.modules))
        self.learning: dict[str, nn.Parameter] = {}
        for name, parameter in self.modules.named_parameters():
            if _is_of(name, stage.learns):
                parameter.requires_grad_(True)
                self.learning[name] = parameter
        if start is not None:
            self._begin_from(load_file(start))
        if stage.keeps_latents:
            with _seeded(seed_of(context.seed, stage.name, -2)):
                keep_latents(self.modules, context)
        self._names: dict[Tensor, str] = {value: name for name, value in self.learning.items()}
        self.average = {name: value.detach().clone() for name, value in self.learning.items()}
        self.optimizers = self._optimizers()
        self.step = 0
        self._generator = torch.Generator(context.device)
        self._graph = (
            _Graph(self._update, self._generator) if context.device.type == "cuda" else None
        )

    def run(
        self,
        num_steps: int,
        num_workers: int,
        stop_at: int | None = None,
        seconds: float | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Train up to `num_steps` in all; `stop_at` ends sooner, as a kill would, with a save.

        So does `should_stop`, which is asked after each step.

        With `seconds`, for so long instead, of which the first batch is not yet a part. Raises
        `ValueError` for a resume point of other settings, or of more steps.
        """
        stage, folder = self.stage, self.context.folder
        self._resume()
        if self.step > num_steps and not seconds:
            raise ValueError(
                f"{self._resume_path} has {self.step * stage.batch} images behind it: as many, or "
                "more, or remove it"
            )
        last = MANY_STEPS if seconds else num_steps if stop_at is None else min(stop_at, num_steps)
        started = saved = None
        log = _Log(folder / f"{stage.name}.jsonl", stage.batch)
        for batch in self._minibatches(last, num_workers):
            now = time.monotonic()
            started, saved = started or now, saved or now
            done = (now - started) / seconds if seconds else self.step / max(1, num_steps)
            if seconds and done >= 1:
                num_steps = self.step
                break
            losses = self._learn(batch, min(1.0, done))
            self.step += 1
            log.add(self.step, losses)
            if should_stop():
                break
            if now - saved > SAVE_EVERY_SECONDS:
                self.save()
                saved = now
        self.save()
        if self.step == num_steps:
            self._write_settings(num_steps, seconds)
            self.export()

    def _minibatches(self, last: int, num_workers: int) -> Iterator[Batch | Encoded]:
        """What each step from here on learns from."""
        stage = self.stage
        asked = {name: getattr(stage, name) for name in ("crowds", "references", "control")}
        options = {name: value for name, value in asked.items() if value is not None}
        make = partial(
            stage.make_batch,
            split=stage.split,
            offset=stage.offset + 100 * self.context.seed,
            batch=stage.batch,
            size=stage.size,
            **options,
        )
        if stage.encode is None:
            yield from prefetched(make, range(self.step, last), num_workers)
            return
        first = max(0, self.step // stage.reuse - stage.window + 1)
        coming = prefetched(make, range(first, -(-last // stage.reuse)), num_workers)
        window, num_known = _Window(stage.window), first
        for step in range(self.step, last):
            while num_known <= step // stage.reuse:
                scenes = stage.encode(self.modules, next(coming), self.context)
                window.put(num_known, scenes)
                num_known += 1
            yield window.draw(self.context.generator(f"{stage.name} window", step))

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        stage, device = self.stage, self.context.device
        by: dict[tuple[bool, float], list[nn.Parameter]] = {}
        for name, parameter in self.learning.items():
            part, _, inside = name.partition(".")
            by_muon = part in stage.muon and parameter.ndim > 1 and "embedding" not in inside
            by.setdefault((by_muon, stage.slow.get(part, 1.0)), []).append(parameter)
        adamw, muon = (
            [
                # a rate of its own: groups would share the tensor of a default
                {"params": each, "share": share, "lr": torch.zeros((), device=device)}
                for (by_muon, share), each in by.items()
                if by_muon is wanted
            ]
            for wanted in (False, True)
        )
        others = torch.optim.AdamW(
            adamw,
            betas=(0.9, 0.99),
            weight_decay=stage.weight_decay,
            fused=True,
            capturable=device.type == "cuda",
        )
        return [others, Muon(muon)] if muon else [others]

    def _groups(self) -> Iterator[dict[str, Any]]:
        for optimizer in self.optimizers:
            yield from optimizer.param_groups

    def _begin_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take over what an earlier run learned, and what of it does not learn any more.

        Layers of another shape begin anew.
        """
        learned = STAGES[self.stage.name].learns
        for name, parameter in self.modules.named_parameters():
            is_known = name in weights and weights[name].shape == parameter.shape
            if is_known and (name in self.learning or _is_of(name, learned)):
                parameter.data.copy_(weights[name])

    def _write_settings(self, num_steps: int, seconds: float | None) -> None:
        stage = self.stage
        settings = {
            "stage": stage.name,
            "images": num_steps * stage.batch,
            "seconds": seconds,
            "device": self.context.device.type,
            "torch": torch.__version__,
            **self._settings,
            "parameters": sum(value.numel() for value in self.learning.values()),
        }
        text = json.dumps(settings, indent=2)
        (self.context.folder / f"{stage.name}.json").write_text(text + "\n")

    def _learn(self, batch: Batch | Encoded, done: float) -> Losses:
        rate = self.stage.learning_rate * _schedule(self.step, done, self.stage.warmup_steps)
        for group in self._groups():
            group["lr"].fill_(rate * group["share"])
        self._generator.manual_seed(seed_of(self.context.seed, self.stage.name, self.step))
        losses = self._graph(batch) if self._graph else self._update(batch)
        keep = min(self.stage.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.values()), list(self.learning.values()), 1 - keep
            )
        return losses

    def _update(self, batch: Batch | Encoded) -> Losses:
        """One step of the optimiser."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        losses = self.stage.losses(self.modules, batch, self.context, self._generator)
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(self.learning.values(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        return {name: value.detach() for name, value in losses.items()}

    def save(self) -> None:
        """Write the resume point; the former one stays until this one is complete."""
        state = {f"now.{name}": value for name, value in self.learning.items()}
        state |= {f"average.{name}": value for name, value in self.average.items()}
        for optimizer in self.optimizers:
            for parameter, moments in optimizer.state.items():
                name = self._names[parameter]
                state |= {f"{key}.{name}": value for key, value in moments.items()}
        about = {"step": str(self.step), "settings": json.dumps(self._settings)}
        _write(self._resume_path, state, about)

    def _resume(self) -> None:
        if not self._resume_path.exists():
            return
        with safe_open(self._resume_path, "pt") as opened:
            about = opened.metadata()
        begun, now = json.loads(about["settings"]), self._settings
        if others := [name for name in now if now[name] != begun[name]]:
            differing = ", ".join(f"{each} {begun[each]}, not {now[each]}" for each in others)
            raise ValueError(f"{self._resume_path} has {differing}: go on with that, or remove it")
        self.step = int(about["step"])
        state = load_file(self._resume_path)
        for name, parameter in self.learning.items():
            parameter.data.copy_(state[f"now.{name}"])
            self.average[name].copy_(state[f"average.{name}"])
        for optimizer in self.optimizers:
            moments = _MOMENTS[type(optimizer)]
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    optimizer.state[parameter] = {
                        key: _like(parameter, state[f"{key}.{self._names[parameter]}"])
                        for key in moments
                    }

    def export(self) -> None:
        """Write the averaged weights of all that this stage touched, for later stages."""
        weights = dict(self.modules.state_dict()) | self.average
        _write(self.context.folder / f"{self.stage.name}.safetensors", weights, {})

    @property
    def _resume_path(self) -> Path:
        return self.context.folder / f"{self.stage.name}.resume.safetensors"


def _settings_of(stage: Stage, seed: int, start: Path | None) -> dict[str, Any]:
    """What a training has to go on with, as JSON has it."""
    settings = {
        "seed": seed,
        "start_sha256": sha256_of(start.read_bytes()) if start else None,
        **{name: getattr(stage, name) for name in _SETTINGS},
    }
    return json.loads(json.dumps(settings, default=dict))


def _is_of(name: str, parts: Iterable[str]) -> bool:
    """Whether a parameter belongs to one of some parts."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)


class _Graph:
    """The same update over and over as one CUDA graph: a launch instead of thousands.

    Only for batches of tensors, whose shapes stay; others, and what CUDA cannot record, run as they
    are.
    """

    WARM_UP = 4

    def __init__(
        self, update: Callable[[Batch | Encoded], Losses], generator: torch.Generator
    ) -> None:
        self._update, self._generator = update, generator
        self._stream = torch.cuda.Stream()
        self._calls, self._graph = 0, torch.cuda.CUDAGraph()
        self._inputs: Encoded = {}
        self._losses: Losses | None = None

    def __call__(self, batch: Batch | Encoded) -> Losses:
        self._calls += 1
        if self._calls <= self.WARM_UP or not isinstance(batch, dict):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                losses = self._update(batch)
            torch.cuda.current_stream().wait_stream(self._stream)
            return losses
        if self._calls == self.WARM_UP + 1:
            self._record(batch)
        if self._losses is None:
            return self._update(batch)
        for name, value in batch.items():
            self._inputs[name].copy_(value)
        self._graph.replay()
        return self._losses

    def _record(self, batch: Encoded) -> None:
        self._inputs = {name: value.clone() for name, value in batch.items()}
        self._graph.register_generator_state(self._generator)
        try:
            with torch.cuda.graph(self._graph, stream=self._stream):
                self._losses = self._update(self._inputs)
        except RuntimeError as error:
            self._losses = None
            warnings.warn(f"no CUDA graph: {error}", stacklevel=2)


class _Window:
    """The last batches of encoded scenes, each where it replaces the oldest."""

    def __init__(self, size: int) -> None:
        self._size, self._filled = size, 0
        self._tensors: Encoded = {}
        self._batch = 0

    def put(self, number: int, scenes: Encoded) -> None:
        """Keep batch `number`; batches come in order."""
        if not self._tensors:
            self._batch = len(next(iter(scenes.values())))
            self._tensors = {
                name: value.new_empty((self._size * self._batch, *value.shape[1:]))
                for name, value in scenes.items()
            }
        place = number % self._size * self._batch
        for name, value in scenes.items():
            self._tensors[name][place : place + self._batch] = value
        self._filled = max(self._filled, place + self._batch)

    def draw(self, generator: torch.Generator) -> Encoded:
        """As many scenes as a batch has, at random; with a window of one batch, that batch."""
        if self._size == 1:
            return self._tensors
        chosen = torch.randint(
            self._filled, (self._batch,), generator=generator, device=generator.device
        )
        return {name: value[chosen] for name, value in self._tensors.items()}


def _to_compile(modules: nn.Module) -> tuple[type[nn.Module], ...]:
    """The kinds of blocks that may be compiled.

    A compiled transformer block would go on with a subject encoder's first tokens. On a CPU that
    computes in bfloat16 a U-Net learns half as fast again if they are, and its gradients are nearer
    to float32, as norms are fused in it.
    """
    has_hooks = any(isinstance(each, SubjectEncoder) for each in modules.modules())
    return (ResnetBlock2D,) if has_hooks else (ResnetBlock2D, BasicTransformerBlock)


class _Log:
    """Means of the losses, a line of JSON every few steps."""

    def __init__(self, path: Path, batch: int) -> None:
        self._path = path
        self._batch = batch
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._since = time.monotonic()

    def add(self, step: int, losses: Mapping[str, Tensor]) -> None:
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
        self._count += 1
        if step % LOG_EVERY_STEPS:
            return
        seconds = time.monotonic() - self._since
        line = {
            "step": step,
            "images": step * self._batch,
            **{name: round(float(total) / self._count, 5) for name, total in self._sums.items()},
            "images_per_second": round(self._count * self._batch / seconds, 1),
        }
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._sums, self._count, self._since = {}, 0, time.monotonic()


_MOMENTS: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"),
    Muon: ("momentum",),
}


def _like(parameter: Tensor, saved: Tensor) -> Tensor:
    """A moment, laid out like the parameter: fused optimisers go by memory, not by index."""
    if saved.shape != parameter.shape:
        return saved.to(parameter.device).clone()
    return torch.empty_like(parameter).copy_(saved)


def _schedule(step: int, done: float, warmup: int) -> float:
    """Linear warm-up, then, as the share of all steps that is done, a cosine down to 2 %."""
    cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(done * math.pi))
    return min(1.0, (step + 1) / warmup) * cosine


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as unfinished:
        save_file(whole, unfinished, metadata)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def train(
    stage: Stage | str,
    folder: Path,
    *,
    images: int | None = None,
    seed: int = 0,
    device: str | None = None,
    num_workers: int = 1,
    start: Path | None = None,
    references: str | None = None,
    with_control: bool = True,
    learns: tuple[str, ...] | None = None,
    learning_rate: float | None = None,
    compiled: bool = False,
    keeps_latents: bool = False,
    stop_at: int | None = None,
    seconds: float | None = None,
) -> None:
    """Run one stage, or go on with it; `images` overrides how many it sees in all.

    With `seconds`, it sees as many as there is time for, at a rate of learning that falls with
    time: for a machine that is there for minutes.

    `start` is what an earlier run of the stage left, to begin from instead of from nothing; layers
    that have another shape by now begin anew. `references` overrides the subject encoder's, which
    without `with_control` learns without the ControlNet, and `learns` and `learning_rate` the
    stage's: what goes on from earlier weights may leave the text encoder as it is, and with it all
    that was trained against it. An autoencoder that goes on and `keeps_latents` says in them what
    it said, and more where they were empty.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    recipe = STAGES[stage] if isinstance(stage, str) else stage
    if chosen.type == "cuda":
        torch.backends.cudnn.benchmark = True
        recipe = dataclasses.replace(recipe, **ON_CUDA.get(recipe.name, {}))
    if recipe.references and references:
        recipe = dataclasses.replace(recipe, references=references)
    if recipe.control and not with_control:
        build = partial(build_subject_encoder, with_control=False)
        recipe = dataclasses.replace(recipe, control=False, build=build)
    if learns:
        recipe = dataclasses.replace(recipe, learns=learns)
    if learning_rate:
        recipe = dataclasses.replace(recipe, learning_rate=learning_rate)
    if keeps_latents:
        if recipe.name != "vae" or start is None:
            raise ValueError("an autoencoder keeps latents that it goes on from: vae with --start")
        recipe = dataclasses.replace(recipe, keeps_latents=True)
    num_steps = (images or recipe.images) // recipe.batch
    context = Context(folder, chosen, seed)
    training = Training(recipe, context, start=start, compiled=compiled)
    training.run(num_steps, num_workers, stop_at, seconds)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=[*STAGES, "all"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int)
    parser.add_argument("--seconds", type=float, help="as many images as there is time for")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--start", type=Path, help="begin from an earlier run's weights")
    parser.add_argument("--references", choices=REFERENCES, help="of the subject encoder")
    parser.add_argument(
        "--without-control", action="store_true", help="of the subject encoder: no ControlNet"
    )
    parser.add_argument(
        "--keep-latents", action="store_true", help="of the autoencoder with --start, see above"
    )
    parser.add_argument("--learns", nargs="+", help="parts that learn, if not all of the stage's")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--compile", action="store_true", help="compile blocks, see the code")
    options = parser.parse_args()
    for stage in STAGES if options.stage == "all" else [options.stage]:
        train(
            stage,
            options.out,
            images=options.images,
            seconds=options.seconds,
            seed=options.seed,
            device=options.device,
            num_workers=options.workers,
            start=options.start,
            references=options.references,
            with_control=not options.without_control,
            learns=options.learns and tuple(options.learns),
            learning_rate=options.learning_rate,
            compiled=options.compile,
            keeps_latents=options.keep_latents,
        )


if __name__ == "__main__":
    main()

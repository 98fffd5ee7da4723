"""The sampler: previews, `generate`, `eval` and class pictures are all drawn here."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from ..models.backbone import Backbone
from ..models.compatibility import short
from ..models.conditioning import Control
from ..models.loading import LoadedBase
from ..models.weighted_prompts import tokens_in_chunks
from ..registry.errors import ConceptryError, InvalidInput, InvalidWeights, NotFinite
from .guidance import guidance_for
from .prediction import Guidance
from .regional import RegionalGuidance
from .regional_plan import RegionalPlan
from .request import SamplingSettings
from .starts import Start, beginning_of


@dataclass(slots=True)
class Step:
    """A finished denoising step, as observers get it."""

    backbone: Backbone
    guidance: Guidance
    timesteps: Tensor
    """Those of all steps that are taken, from noise to picture."""
    scaled: Callable[[Tensor, Tensor], Tensor]
    """(latents, timestep) -> latents scaled as the denoiser's input."""
    index: int
    """From 0."""
    latents: Tensor
    """(B, C, h, w), after the step."""


class Observer(Protocol):
    """Watches the denoising of a batch, or changes its latents."""

    def watching(self, backbone: Backbone) -> AbstractContextManager[object]:
        """A context that is open while a batch is drawn."""
        ...

    def after_prediction(self, guidance: Guidance, latents: Tensor) -> None:
        """Called after the denoiser ran on latents (B, C, h, w)."""
        ...

    def after_step(self, step: Step) -> Tensor:
        """Returns the latents (B, C, h, w) of the next step."""
        ...


@dataclass(frozen=True, slots=True)
class DrawnPicture:
    """A picture, its seed, and the seeds of the batch that it was drawn in.

    Pixels follow from seed and settings; in another batch they may differ in the last bit, as sums
    are then taken in another order.
    """

    image: Image.Image
    seed: int
    batch_seeds: tuple[int, ...]


def draw(
    base: LoadedBase,
    prompt: str,
    seeds: Sequence[int],
    settings: SamplingSettings,
    *,
    batch: int = 4,
    observers: Sequence[Observer] = (),
    names: Sequence[str] = (),
    control: Control | None = None,
    plan: RegionalPlan | None = None,
    start: Start | None = None,
) -> Iterator[DrawnPicture]:
    """Draw a prompt once for each seed, `batch` pictures at a time.

    `observers` watch or change each batch. `names` are the injected concepts, for error messages.
    `control`, of one row of pixels, is a ControlNet's part in all pictures. With a `plan` each of
    several subjects is drawn in its region; `prompt` is that of its first prediction. `start` is a
    picture of the settings' size that all begin with.

    Raises `InvalidInput` at the call for a prompt that the text encoder would truncate, and
    `NotFinite` instead of a black picture.
    """
    check_prompts(base.backbone, prompt, settings, plan)
    return _drawing(base, prompt, seeds, settings, batch, observers, names, control, plan, start)


def _drawing(
    base: LoadedBase,
    prompt: str,
    seeds: Sequence[int],
    settings: SamplingSettings,
    batch: int,
    observers: Sequence[Observer],
    names: Sequence[str],
    control: Control | None,
    plan: RegionalPlan | None,
    start: Start | None,
) -> Iterator[DrawnPicture]:
    for first in range(0, len(seeds), batch):
        chunk = tuple(seeds[first : first + batch])
        prompts = [prompt] * len(chunk)
        try:
            with reporting_broken_base(base):
                images = draw_batch(
                    base.backbone,
                    prompts,
                    chunk,
                    settings,
                    observers,
                    control=control,
                    plan=plan,
                    start=start,
                )
        except NotFinite:
            raise _not_drawn(base, names) from None
        for image, seed in zip(images, chunk, strict=True):
            yield DrawnPicture(image, seed, chunk)


@contextmanager
def reporting_broken_base(base: LoadedBase) -> Iterator[None]:
    """Raise `InvalidWeights` if the block fails because the base model is broken.

    It is, if it cannot draw by itself either: some damaged files only fail when they are used.
    """
    try:
        yield
    except (ConceptryError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if (fault := _fault_of(base.backbone)) is None:
            raise
        raise InvalidWeights(
            f"the base model {base.base.name} cannot be used: {short(fault)}",
            hint="get the base model's files again, or take another: concept bases",
        ) from error


def _fault_of(backbone: Backbone) -> Exception | None:
    """The exception that plain encoding and drawing raise; None if they work."""
    plain = Image.new("RGB", (backbone.size, backbone.size))
    try:
        backbone.encode_images([plain])
        draw_batch(backbone, ["a photo"], [0], SamplingSettings(steps=1))
    except (ConceptryError, MemoryError, torch.OutOfMemoryError):
        return None
    except Exception as error:  # noqa: BLE001 (any is the answer)
        return error
    return None


def _not_drawn(base: LoadedBase, names: Sequence[str]) -> NotFinite:
    """The error for a black picture: blames base model, concepts or guidance."""
    name = base.base.name
    if broken := base.backbone.non_finite_parameter(is_changed=bool(names)):
        return NotFinite(
            f"the base model {name} cannot draw: {broken} has values that are not finite",
            hint="get the base model's files again, or take another: concept bases",
        )
    if names:
        return NotFinite(
            f"{name} with {' and '.join(names)} gives no picture: its numbers overflow",
            hint="a lower strength, as <NAME:0.5>, or another version, as <NAME@1>",
        )
    return NotFinite(
        f"the base model {name} gives no picture: its numbers overflow",
        hint="a lower --guidance, or another base model: concept bases",
    )


def draw_batch(
    backbone: Backbone,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: SamplingSettings,
    observers: Sequence[Observer] = (),
    *,
    control: Control | None = None,
    plan: RegionalPlan | None = None,
    start: Start | None = None,
) -> list[Image.Image]:
    """Draw each prompt with its seed, all at once; raises `NotFinite` for a black picture."""
    width, height = settings.size or (backbone.size, backbone.size)
    with torch.no_grad(), backbone.weighing_words(settings.prompt_weights):
        guidance = guidance_for(
            backbone, prompts, settings, seeds, width, height, control=control, plan=plan
        )
        latents = _sampled(backbone, guidance, seeds, settings, (width, height), observers, start)
        images = backbone.decode_latents(latents)
    return [start.finished(image) for image in images] if start else images


def _sampled(
    backbone: Backbone,
    guidance: Guidance,
    seeds: Sequence[int],
    settings: SamplingSettings,
    size: tuple[int, int],
    observers: Sequence[Observer],
    start: Start | None,
) -> Tensor:
    """Denoised latents (B, C, h, w), each from the noise of its own seed."""
    scheduler = backbone.sampling_scheduler(settings.scheduler)
    scheduler.set_timesteps(settings.steps, device=backbone.device)
    dtype = guidance.conditioning.states.dtype
    beginning, generators = beginning_of(backbone, start, seeds, size, dtype)
    latents, timesteps = beginning.begin(scheduler, settings.steps)
    takes = signature(scheduler.step).parameters
    options = {"eta": 0.0} if "eta" in takes else {}
    options |= {"generator": generators} if "generator" in takes else {}
    with ExitStack() as stack:
        stack.enter_context(backbone.redrawing(beginning.redrawn))
        if isinstance(guidance, RegionalGuidance):
            guidance.place(backbone, beginning, settings.steps)
        for observer in observers:
            stack.enter_context(observer.watching(backbone))
        scale = scheduler.scale_model_input
        for i, timestep in enumerate(timesteps):
            scaled = scale(latents, timestep)
            predicted = guidance.predict(backbone, scaled, timestep)
            for observer in observers:
                observer.after_prediction(guidance, scaled)
            latents = scheduler.step(predicted, timestep, latents, **options, return_dict=False)[0]
            next_timestep = timesteps[i + 1] if i + 1 < len(timesteps) else None
            latents = beginning.kept(latents.to(dtype), scheduler, next_timestep)
            for observer in observers:
                step = Step(backbone, guidance, timesteps, scale, i, latents)
                latents = observer.after_step(step)
    return latents


def check_prompts(
    backbone: Backbone, prompt: str, settings: SamplingSettings, plan: RegionalPlan | None = None
) -> None:
    """Raise `InvalidInput` for a prompt that the text encoder would truncate, or a negative one."""
    for each in [*(plan.prompts if plan else [prompt]), settings.negative]:
        if settings.prompt_weights:
            tokens_in_chunks(backbone.text_encoders[0], each)
        else:
            check_length(backbone, each)


def check_length(backbone: Backbone, prompt: str) -> None:
    """Raise `InvalidInput` if a prompt has more tokens than the text encoder reads."""
    for encoder in backbone.text_encoders:
        tokenizer = encoder.tokenizer
        ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
        limit = tokenizer.model_max_length
        if len(ids) > limit:
            kept = tokenizer.decode(ids[1 : limit - 1], skip_special_tokens=True)
            raise InvalidInput(
                f"the prompt has {len(ids) - 2} tokens; the text encoder reads {limit - 2}",
                hint=f'shorten it: it would end after "…{kept[-40:]}"',
            )

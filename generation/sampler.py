"""The one way from a prompt to pictures: previews, `generate` and `eval` all draw here."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from PIL import Image

from ..models.latents import decoded, name_of_broken
from ..models.loading import LoadedBase
from ..registry.errors import InvalidInput, NotFinite
from .request import Settings

SCHEDULERS = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpm++": DPMSolverMultistepScheduler,
}


AfterStep = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]
"""Gets the pipeline, how many steps came before, the timestep and tensors; returns some anew."""
_TOLD_AFTER_STEP = ("latents", "prompt_embeds", "add_text_embeds", "add_time_ids")


@dataclass(frozen=True, slots=True)
class Drawn:
    """A picture with its seed and the seeds of the batch in which it was drawn.

    The pixels follow from seed and settings; drawn in another batch, they may differ in the last
    bit, as sums are then taken in another order.
    """

    image: Image.Image
    seed: int
    batch_seeds: tuple[int, ...]


def draw(
    base: LoadedBase,
    prompt: str,
    seeds: Sequence[int],
    settings: Settings,
    *,
    batch: int = 4,
    after_step: AfterStep | None = None,
    worn: Sequence[str] = (),
) -> Iterator[Drawn]:
    """Draw a prompt once for each seed, a batch at a time.

    `after_step` may change the latents after each denoising step, as diffusers' callbacks do.
    `worn` names what the pipeline wears, for the error if nothing can be drawn.

    Raises `InvalidInput`, before anything is asked for, where the text encoder would have to cut,
    and `NotFinite` instead of a black picture.
    """
    check_length(base.pipeline, prompt)
    check_length(base.pipeline, settings.negative)
    return _drawing(base, prompt, seeds, settings, batch, after_step, worn)


def _drawing(
    base: LoadedBase,
    prompt: str,
    seeds: Sequence[int],
    settings: Settings,
    batch: int,
    after_step: AfterStep | None,
    worn: Sequence[str],
) -> Iterator[Drawn]:
    for first in range(0, len(seeds), batch):
        chunk = tuple(seeds[first : first + batch])
        prompts = [prompt] * len(chunk)
        try:
            images = draw_batch(base.pipeline, prompts, chunk, settings, after_step)
        except NotFinite:
            raise _not_drawn(base, worn) from None
        for image, seed in zip(images, chunk, strict=True):
            yield Drawn(image, seed, chunk)


def _not_drawn(base: LoadedBase, worn: Sequence[str]) -> NotFinite:
    """What is at fault for a picture whose numbers are not finite."""
    name = base.base.name
    if broken := name_of_broken(base.pipeline, is_changed=bool(worn)):
        return NotFinite(
            f"the base model {name} cannot draw: {broken} has values that are not finite",
            hint="get the base model's files again, or take another: concept bases",
        )
    if worn:
        return NotFinite(
            f"{name} with {' and '.join(worn)} gives no picture: its numbers overflow",
            hint="a lower strength, as <NAME:0.5>, or another version, as <NAME@1>",
        )
    return NotFinite(
        f"the base model {name} gives no picture: its numbers overflow",
        hint="a lower --guidance, or another base model: concept bases",
    )


def draw_batch(
    pipeline: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: Settings,
    after_step: AfterStep | None = None,
) -> list[Image.Image]:
    """Draw each prompt with its seed, all at once; raises `NotFinite` for a black picture."""
    width, height = settings.size or (None, None)
    own_scheduler = pipeline.scheduler
    if settings.scheduler is not None:
        pipeline.scheduler = _scheduler(settings.scheduler, own_scheduler.config)
    try:
        latents = pipeline(
            output_type="latent",
            prompt=list(prompts),
            negative_prompt=[settings.negative] * len(prompts) if settings.negative else None,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            width=width,
            height=height,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            callback_on_step_end=after_step,
            callback_on_step_end_tensor_inputs=(
                [name for name in _TOLD_AFTER_STEP if name in pipeline._callback_tensor_inputs]
                if after_step
                else ["latents"]
            ),
        ).images
        pixels = decoded(pipeline, latents)
        return pipeline.image_processor.postprocess(pixels, output_type="pil")
    finally:
        pipeline.scheduler = own_scheduler


def _scheduler(name: str, config: Any) -> Any:
    """A scheduler on the base model's noise schedule; DDIM must not clip latents."""
    options = {"clip_sample": False} if name == "ddim" else {}
    return SCHEDULERS[name].from_config(config, **options)


def check_length(pipeline: Any, prompt: str) -> None:
    """Raise `InvalidInput` if a prompt has more tokens than the text encoder reads."""
    for tokenizer in (pipeline.tokenizer, getattr(pipeline, "tokenizer_2", None)):
        if tokenizer is None:
            continue
        ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
        limit = tokenizer.model_max_length
        if len(ids) > limit:
            kept = tokenizer.decode(ids[1 : limit - 1], skip_special_tokens=True)
            raise InvalidInput(
                f"the prompt has {len(ids) - 2} tokens; the text encoder reads {limit - 2}",
                hint=f'shorten it: it would end after "…{kept[-40:]}"',
            )

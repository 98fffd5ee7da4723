"""The one way from a prompt to pictures: previews, `generate` and `eval` all draw here."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from PIL import Image

from ..registry.errors import InvalidInput
from .loading import LoadedBase
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
) -> Iterator[Drawn]:
    """Draw a prompt once for each seed, a batch at a time.

    `after_step` may change the latents after each denoising step, as diffusers' callbacks do.

    Raises `InvalidInput`, before anything is asked for, where the text encoder would have to cut.
    """
    check_length(base.pipeline, prompt)
    check_length(base.pipeline, settings.negative)
    return _drawing(base.pipeline, prompt, seeds, settings, batch, after_step)


def _drawing(
    pipeline: Any,
    prompt: str,
    seeds: Sequence[int],
    settings: Settings,
    batch: int,
    after_step: AfterStep | None,
) -> Iterator[Drawn]:
    for first in range(0, len(seeds), batch):
        chunk = tuple(seeds[first : first + batch])
        images = draw_batch(pipeline, [prompt] * len(chunk), chunk, settings, after_step)
        for image, seed in zip(images, chunk, strict=True):
            yield Drawn(image, seed, chunk)


def draw_batch(
    pipeline: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: Settings,
    after_step: AfterStep | None = None,
) -> list[Image.Image]:
    """Draw each prompt with its seed, all at once."""
    width, height = settings.size or (None, None)
    own_scheduler = pipeline.scheduler
    if settings.scheduler is not None:
        pipeline.scheduler = _scheduler(settings.scheduler, own_scheduler.config)
    try:
        return pipeline(
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

"""The sampler path: what decides a picture, and what does not."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conceptry.generation.request import SamplingSettings
from conceptry.generation.sampler import DrawnPicture, draw, draw_batch
from conceptry.models.backbone import Backbone
from conceptry.models.loading import LoadedBase, backbone_of, load_base
from conceptry.models.sd import SCHEDULERS
from conceptry.registry import InvalidInput
from diffusers import StableDiffusionPAGPipeline, StableDiffusionXLPAGPipeline
from long import quick_for
from PIL import Image
from tiny_base import make_tiny_base, make_tiny_sdxl

PROMPT = "a photo of a red cat on the beach"


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> LoadedBase:
    return load_base(str(tiny_base))


def drawn(base: LoadedBase, seeds: list[int], batch: int = 4, **settings: Any) -> list[np.ndarray]:
    options = {"steps": 2, **settings}
    pictures: list[DrawnPicture] = list(
        draw(base, PROMPT, seeds, SamplingSettings(**options), batch=batch)
    )
    assert [picture.seed for picture in pictures] == seeds
    return [np.asarray(picture.image, dtype=np.int16) for picture in pictures]


# --- the reference --------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[make_tiny_base, make_tiny_sdxl], ids=["SD", "SDXL"])
def pipeline(request: pytest.FixtureRequest) -> Any:
    """Of diffusers, as it is: nothing of ours is in it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = request.param()
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def ours(pipeline: Any) -> Backbone:
    """The same weights."""
    return backbone_of(copy.deepcopy(pipeline))


@pytest.mark.parametrize("size", quick_for(1, [(32, 16), None]), ids=str)
@pytest.mark.parametrize(
    "guided",
    quick_for(2, [(1.0, ""), (5.0, "two blue dogs"), (1.0, "two blue dogs"), (5.0, "")]),
    ids=str,
)
@pytest.mark.parametrize("scheduler", [None, *SCHEDULERS])
def test_pixels_are_those_of_diffusers(
    pipeline: Any,
    ours: Backbone,
    scheduler: str | None,
    guided: tuple[float, str],
    size: tuple[int, int] | None,
) -> None:
    guidance, negative = guided
    options: dict[str, Any] = {"steps": 4, "guidance": guidance, "negative": negative}
    settings = SamplingSettings(**options, scheduler=scheduler, size=size)
    prompts, seeds = [PROMPT, "a dog"], [3, 4]
    found = draw_batch(ours, prompts, seeds, settings)
    expected = as_diffusers_draws(pipeline, prompts, seeds, settings)
    assert [each.tobytes() for each in found] == [each.tobytes() for each in expected]
    assert [each.size for each in found] == [size or (16, 16)] * 2


def as_diffusers_draws(
    pipeline: Any, prompts: list[str], seeds: list[int], settings: SamplingSettings
) -> list[Image.Image]:
    """What its own call gives; DDIM does not clip latents."""
    own, (width, height) = pipeline.scheduler, settings.size or (None, None)
    if settings.scheduler:
        unclipped = {"clip_sample": False} if settings.scheduler == "ddim" else {}
        pipeline.scheduler = SCHEDULERS[settings.scheduler].from_config(own.config, **unclipped)
    try:
        return pipeline(
            prompts,
            negative_prompt=[settings.negative] * len(prompts) if settings.negative else None,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            width=width,
            height=height,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        ).images
    finally:
        pipeline.scheduler = own


@pytest.mark.parametrize("layers", ["mid", "all"])
@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_perturbed_attention_is_that_of_diffusers(
    pipeline: Any, ours: Backbone, guidance: float, layers: Any
) -> None:
    settings = SamplingSettings(
        steps=4, guidance=guidance, perturbed_attention=2.5, perturbed_layers=layers
    )
    is_xl = hasattr(pipeline, "text_encoder_2")
    kind = StableDiffusionXLPAGPipeline if is_xl else StableDiffusionPAGPipeline
    theirs: Any = kind.from_pipe(
        copy.deepcopy(pipeline),
        pag_applied_layers=["mid"] if layers == "mid" else ["down", "mid", "up"],
    )
    theirs.set_progress_bar_config(disable=True)
    prompts, seeds = [PROMPT, "a dog"], [3, 4]
    found = draw_batch(ours, prompts, seeds, settings)
    expected = theirs(
        prompts,
        num_inference_steps=settings.steps,
        guidance_scale=guidance,
        pag_scale=settings.perturbed_attention,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
    ).images
    plain = draw_batch(ours, prompts, seeds, replace(settings, perturbed_attention=0))
    for ours_, theirs_, without in zip(found, expected, plain, strict=True):
        pixels = [np.asarray(each, dtype=np.int16) for each in (ours_, theirs_, without)]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1  # sums of other batches
        assert np.abs(pixels[0] - pixels[2]).max() > 1


def test_a_unet_without_attention_in_its_middle_is_told(ours: Backbone) -> None:
    backbone = copy.deepcopy(ours)
    kept = {name: each for name, each in ours.attention.layers.items() if "mid" not in name}
    backbone.attention.layers = kept
    settings = SamplingSettings(steps=1, perturbed_attention=2)
    with pytest.raises(InvalidInput, match="no self-attention in its U-Net's middle"):
        draw_batch(backbone, [PROMPT], [1], settings)


# --- seeds, settings ------------------------------------------------------------------------------


def test_a_seed_is_one_picture_whatever_is_drawn_beside_it(base: LoadedBase) -> None:
    one, two, three = drawn(base, [1, 2, 3])
    assert (drawn(base, [1, 2, 3])[1] == two).all()
    assert np.abs(drawn(base, [2], batch=1)[0] - two).max() <= 1
    assert np.abs(one - three).max() > 1


def test_it_is_told_which_batch_a_picture_was_in(base: LoadedBase) -> None:
    pictures = list(draw(base, PROMPT, [5, 6, 7], SamplingSettings(steps=1), batch=2))
    assert [picture.batch_seeds for picture in pictures] == [(5, 6), (5, 6), (7,)]


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 3},
        {"guidance": 9.0},
        {"negative": "a dog"},
        {"scheduler": "euler"},
        {"scheduler": "dpm++"},
        {"perturbed_attention": 3.0},
        {"perturbed_attention": 3.0, "guidance": 1.0},
    ],
    ids=str,
)
def test_every_setting_matters(base: LoadedBase, settings: dict[str, Any]) -> None:
    assert (drawn(base, [1], **settings)[0] != drawn(base, [1])[0]).any()


def test_a_scheduler_is_for_one_call(base: LoadedBase) -> None:
    own = base.backbone.pipeline.scheduler
    before = drawn(base, [1])[0]
    for name in SCHEDULERS:
        drawn(base, [1], scheduler=name)
    assert base.backbone.pipeline.scheduler is own
    assert (drawn(base, [1])[0] == before).all()
    assert (drawn(base, [1], scheduler="ddim")[0] == before).all()


def test_size(base: LoadedBase) -> None:
    assert drawn(base, [1], size=(32, 16))[0].shape == (16, 32, 3)


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 0},
        {"steps": 1001},
        {"guidance": -1},
        {"scheduler": "magic"},
        {"size": (15, 16)},
        {"size": (0, 16)},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        SamplingSettings(**settings)


def test_a_prompt_is_never_cut_in_silence(base: LoadedBase) -> None:
    list(draw(base, "cat " * 75, [1], SamplingSettings(steps=1)))
    with pytest.raises(InvalidInput, match="76 tokens; the text encoder reads 75"):
        list(draw(base, "cat " * 76, [1], SamplingSettings(steps=1)))
    with pytest.raises(InvalidInput, match="reads 75"):
        list(draw(base, "a cat", [1], SamplingSettings(steps=1, negative="dog " * 80)))

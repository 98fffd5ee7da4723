"""A base model as what trains and draws sees it: each has its own pipeline, unchanged."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conceptry.models.backbone import Backbone
from conceptry.models.loading import backbone_of
from conceptry.models.sd import StableDiffusion
from conceptry.models.sdxl import StableDiffusionXL
from conceptry.registry import InvalidInput
from diffusers import DDPMPipeline
from tiny_base import make_tiny_base, make_tiny_sdxl
from torch import Tensor

PROMPTS = ["a red cat", "a dog"]


@pytest.fixture(params=[make_tiny_base, make_tiny_sdxl], ids=["SD", "SDXL"])
def pipeline(request: pytest.FixtureRequest) -> Any:
    make: Callable[[], Any] = request.param
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def predicted(backbone: Backbone) -> Tensor:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    conditioning = backbone.encode_prompts(PROMPTS, backbone.size)
    return backbone.denoise(latents, torch.tensor([20, 700]), conditioning)


def watched(backbone: Backbone) -> list[str]:
    return [name for name in backbone.attention.layers if name.endswith("attn2")]


def test_the_family_is_found(pipeline: Any) -> None:
    is_xl = hasattr(pipeline, "text_encoder_2")
    assert type(backbone_of(pipeline)) is (StableDiffusionXL if is_xl else StableDiffusion)
    with pytest.raises(
        InvalidInput, match=r"DDPMPipeline is of an unknown family, not one of SD 1.x"
    ):
        backbone_of(DDPMPipeline(pipeline.unet, pipeline.scheduler))


@torch.no_grad()
def test_a_pipeline_computes_what_it_did(pipeline: Any) -> None:
    def drawn() -> list[bytes]:
        generator = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        images = pipeline(PROMPTS, num_inference_steps=2, generator=generator).images
        return [each.tobytes() for each in images]

    pipeline.set_progress_bar_config(disable=True)
    names, before = list(pipeline.unet.state_dict()), drawn()
    backbone = backbone_of(pipeline)
    assert drawn() == before
    with backbone.attention.observe(columns=[1, 2]) as seen:
        drawn()
    assert set(seen.moments) == set(watched(backbone))
    assert drawn() == before
    assert list(pipeline.unet.state_dict()) == names


@torch.no_grad()
def test_two_backbones_of_a_pipeline_share_who_watches(pipeline: Any) -> None:
    one, other = backbone_of(pipeline), backbone_of(pipeline)
    with one.attention.observe(columns=[1]) as seen:
        predicted(other)
    assert set(seen.moments) == set(watched(one))


@torch.no_grad()
def test_a_deep_copy_makes_a_backbone_of_its_own(pipeline: Any) -> None:
    one = backbone_of(pipeline)
    before = predicted(one)
    with one.attention.observe(columns=[1]):
        other = backbone_of(copy.deepcopy(pipeline))
    assert torch.equal(predicted(other), before)
    with (
        one.attention.observe(columns=[1]) as ours,
        other.attention.observe(columns=[1]) as theirs,
    ):
        predicted(one)
        assert set(ours.moments) == set(watched(one))
        assert not theirs.moments
        ours.clear()
        predicted(other)
        assert set(theirs.moments) == set(watched(other))
        assert not ours.moments
    for network in other.networks.values():
        for each in network.parameters():
            each.zero_()
    assert not predicted(other).any()
    assert torch.equal(predicted(one), before)

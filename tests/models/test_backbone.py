"""A base model as what trains and draws sees it: each has its own pipeline, unchanged."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conceptry.models.backbone import Backbone
from conceptry.models.latents import decoded
from conceptry.models.loading import backbone_of
from conceptry.models.sd import StableDiffusion
from conceptry.models.sdxl import StableDiffusionXL
from conceptry.registry import InvalidInput
from diffusers import DDPMPipeline
from PIL import Image
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
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"latents_mean": [0.5, -1.0, 0.0, 2.0], "latents_std": [2.0, 0.5, 1.0, 4.0]},
        {"shift_factor": 0.25},
    ],
    ids=["plain", "mean and std", "shift"],
)
def test_what_is_encoded_is_decoded_as_it_was(pipeline: Any, config: dict[str, Any]) -> None:
    """As diffusers has it: z = (E(x) - mean) · scale / std, and x = D(z · std / scale + mean)."""
    vae, backbone = pipeline.vae, backbone_of(pipeline)
    vae.register_to_config(**config)
    picture = Image.radial_gradient("L").resize((16, 16)).convert("RGB")
    pixels = pipeline.image_processor.preprocess([picture])
    with torch.no_grad():
        encoded = vae.encode(pixels).latent_dist.mean
        expected = vae.decode(encoded, return_dict=False)[0]
    latents = backbone.encode_images([picture]).mean
    middle = torch.tensor(config.get("latents_mean", [config.get("shift_factor", 0.0)]))
    spread = torch.tensor(config.get("latents_std", [1.0]))
    scaled = (encoded - middle[:, None, None]) * vae.config.scaling_factor / spread[:, None, None]
    torch.testing.assert_close(latents, scaled)
    torch.testing.assert_close(decoded(pipeline, latents), expected, rtol=1e-4, atol=1e-5)


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

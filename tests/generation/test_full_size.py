"""References and a ControlNet on models in their true shapes: two steps, and the memory of it."""

import resource
from typing import Any

import pytest
import torch
from conceptry.adapters.adapter import injected
from conceptry.adapters.references import References
from conceptry.generation.request import SamplingSettings
from conceptry.generation.sampler import draw_batch
from conceptry.models.backbone import Backbone
from conceptry.models.conditioning import Control
from conceptry.models.loading import backbone_of
from conceptry.models.references import Reference
from diffusers import ControlNetModel
from full_size import UNETS, make_full_size

pytestmark = pytest.mark.slow
SIDE = 256
SETTINGS = SamplingSettings(steps=2, size=(SIDE, SIDE), reference_share=0.5)
MEMORY_LIMIT = 14e9


@pytest.fixture(params=list(UNETS))
def backbone(request: pytest.FixtureRequest) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return backbone_of(make_full_size(request.param))


def test_two_references_and_a_controlnet(backbone: Backbone) -> None:
    side = SIDE // backbone.latent_factor
    generator = torch.Generator().manual_seed(0)
    references = [
        Reference(
            torch.randn(backbone.latent_channels, side, side, generator=generator),
            (torch.arange(side * side).view(side, side) % 3 > 0).float(),
            "a photo of a dog",
        )
        for _ in range(2)
    ]
    unet: Any = backbone.denoiser
    network = ControlNetModel.from_unet(unet).to(unet.dtype)
    control = Control(network, torch.rand(1, 3, SIDE, SIDE, generator=generator))
    with injected(backbone, [References(references)]):
        found = draw_batch(backbone, ["a dog on the beach"] * 2, [0, 1], SETTINGS, control=control)
    assert [each.size for each in found] == [(SIDE, SIDE)] * 2
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{type(backbone).__name__}: {peak / 1e9:.1f} GB at {SIDE} pixels")
    assert peak < MEMORY_LIMIT

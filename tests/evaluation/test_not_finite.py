"""What cannot be drawn is not scored (faults, 42)."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conceptry.evaluation.running import EvalRequest, score
from conceptry.generation.request import SamplingSettings
from conceptry.models.loading import LoadedBase, backbone_of
from conceptry.registry import NotFinite, Registry


@pytest.mark.parametrize("name", ["unet.conv_out.bias", "vae.decoder.conv_out.bias"])
def test_a_black_picture_is_never_scored(taught: Registry, base: LoadedBase, name: str) -> None:
    Path("mine.txt").write_text("a photo of a {} on the beach")
    broken = replace(base, backbone=backbone_of(copy.deepcopy(base.backbone.pipeline)))
    part, _, parameter = name.partition(".")
    with torch.no_grad():
        getattr(broken.backbone.pipeline, part).get_parameter(parameter)[0] = float("nan")
    settings = SamplingSettings(steps=1)
    request = EvalRequest(
        names=["rex"],
        suite="mine.txt",
        clip="miniature",
        dino="none",
        num_seeds=1,
        settings=settings,
    )
    with pytest.raises(NotFinite, match="cannot draw") as told:
        list(score(taught, request, base=broken))
    assert base.base.name in told.value.message
    assert name in told.value.message
    assert taught.evaluations("rex") == []
    assert not list(taught.location.cache.rglob("*.png"))


def test_photos_that_a_broken_base_cannot_see_get_no_mask(
    taught: Registry, base: LoadedBase
) -> None:
    Path("mine.txt").write_text("a photo of a {}")
    broken = replace(base, backbone=backbone_of(copy.deepcopy(base.backbone.pipeline)))
    with torch.no_grad():
        broken.backbone.pipeline.vae.encoder.conv_in.bias[0] = float("nan")
    request = EvalRequest(
        names=["rex"], suite="mine.txt", clip="miniature", dino="none", num_seeds=1
    )
    with pytest.raises(NotFinite, match="cannot see the photos") as told:
        list(score(taught, request, base=broken))
    assert base.base.name in told.value.message

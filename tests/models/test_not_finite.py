"""Numbers that are not finite: an error with the cause, never a black picture (faults, 42)."""

import copy
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conceptry.generation.request import SamplingSettings
from conceptry.generation.sampler import draw
from conceptry.models.latents import in_float32
from conceptry.models.loading import LoadedBase, backbone_of, load_base
from conceptry.registry import NotFinite
from long import quick_for
from tiny_base import make_tiny_sdxl

ONCE = SamplingSettings(steps=2)


@pytest.fixture(scope="module")
def sd(tiny_base: Path) -> LoadedBase:
    return load_base(str(tiny_base))


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> LoadedBase:
    folder = tmp_path_factory.mktemp("bases") / "xl"
    make_tiny_sdxl().save_pretrained(folder)
    return load_base(str(folder))


@pytest.fixture(params=["sd", "xl"])
def base(request: pytest.FixtureRequest) -> LoadedBase:
    """A base model of each kind, to be broken."""
    found: LoadedBase = request.getfixturevalue(request.param)
    return copied(found)


def copied(base: LoadedBase) -> LoadedBase:
    return replace(base, backbone=backbone_of(copy.deepcopy(base.backbone.pipeline)))


def pixels(base: LoadedBase, **options: Any) -> np.ndarray:
    (drawn,) = draw(base, "a photo of a cat", [3], ONCE, **options)
    return np.asarray(drawn.image, dtype=np.int16)


def overflowing(vae: Any) -> None:
    """Make an autoencoder whose last numbers are too large for half precision."""
    with torch.no_grad():
        vae.decoder.conv_norm_out.weight.mul_(3e3)
        vae.decoder.conv_norm_out.bias.mul_(3e3)
        vae.decoder.conv_out.weight.mul_(60).abs_()


PARAMETERS = (
    "unet.conv_in.weight",
    "unet.up_blocks.0.resnets.0.conv1.bias",
    "vae.decoder.conv_out.bias",
    "text_encoder.encoder.layers.0.mlp.fc1.bias",
)


@pytest.mark.parametrize("value", quick_for(1, map(float, ("nan", "inf", "-inf"))))
@pytest.mark.parametrize("name", PARAMETERS)
def test_broken_weights_are_named(base: LoadedBase, name: str, value: float) -> None:
    part, _, parameter = name.partition(".")
    with torch.no_grad():
        getattr(base.backbone.pipeline, part).get_parameter(parameter).view(-1)[0] = value
    with pytest.raises(NotFinite, match="cannot draw: ") as told:
        pixels(base)
    assert base.base.name in told.value.message
    assert name in told.value.message


def test_pictures_of_earlier_batches_stay(sd: LoadedBase) -> None:
    base = copied(sd)
    drawing = draw(base, "a photo of a cat", [1, 2], ONCE, batch=1)
    assert next(drawing).seed == 1
    with torch.no_grad():
        base.backbone.pipeline.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(NotFinite):
        next(drawing)


def test_what_overflows_is_told_with_what_is_worn(base: LoadedBase) -> None:
    with torch.no_grad():
        base.backbone.pipeline.unet.conv_in.weight.mul_(1e30)
        base.backbone.pipeline.unet.conv_out.weight.mul_(1e30)
    with pytest.raises(NotFinite, match=r"with rex@3 at strength 4 gives no picture") as told:
        pixels(base, names=["rex@3 at strength 4"])
    assert base.base.name in told.value.message
    assert "lower strength" in (told.value.hint or "")
    with pytest.raises(NotFinite, match="gives no picture: its numbers overflow"):
        pixels(base)


def test_an_autoencoder_that_overflows_in_half_precision_is_float32(base: LoadedBase) -> None:
    overflowing(base.backbone.pipeline.vae)
    half, vae = base.backbone.pipeline.to(torch.float16), base.backbone.pipeline.vae
    own = {name: value.data_ptr() for name, value in vae.named_parameters()}
    assert vae.decode(torch.randn(1, 4, 8, 8).half()).sample.isfinite().all().item() is False
    dtypes: list[torch.dtype] = []
    hook = vae.decoder.register_forward_pre_hook(lambda _, given: dtypes.append(given[0].dtype))
    drawn = pixels(base)
    hook.remove()
    is_xl = hasattr(half, "text_encoder_2")
    assert dtypes == ([] if is_xl else [torch.float16]) + [torch.float32]
    assert drawn.max() > 0
    assert vae.dtype == torch.float16
    assert own == {name: value.data_ptr() for name, value in vae.named_parameters()}


def test_an_autoencoder_that_does_not_overflow_stays_in_half_precision(base: LoadedBase) -> None:
    base.backbone.pipeline.vae.register_to_config(force_upcast=False)
    base.backbone.pipeline.to(torch.float16)
    dtypes: list[torch.dtype] = []
    base.backbone.pipeline.vae.decoder.register_forward_pre_hook(
        lambda _, given: dtypes.append(given[0].dtype)
    )
    pixels(base)
    assert dtypes == [torch.float16]


def test_it_decodes_as_diffusers_does(base: LoadedBase) -> None:
    generator = [torch.Generator().manual_seed(3)]
    pipeline: Any = base.backbone.pipeline
    theirs = pipeline(
        ["a photo of a cat"], num_inference_steps=2, guidance_scale=5.0, generator=generator
    ).images[0]
    assert (pixels(base) == np.asarray(theirs, dtype=np.int16)).all()


def test_float32_ends_whatever_happens(base: LoadedBase) -> None:
    vae = base.backbone.pipeline.vae.half()
    with suppress(KeyboardInterrupt), in_float32(vae):
        assert vae.dtype == torch.float32
        raise KeyboardInterrupt
    assert {each.dtype for each in vae.parameters()} == {torch.float16}

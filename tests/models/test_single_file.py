"""Base models as one file, read back by diffusers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conceptry.adapters.tensor_file import write_tensors
from conceptry.models.loading import backbone_of
from conceptry.models.single_file import original_tensors, unet_names
from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from full_size import UNETS, make_full_size
from tiny_base import make_tiny_base, make_tiny_sdxl
from torch import Tensor


def weights(pipeline: Any) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": tensor
        for part in ("unet", "vae", "text_encoder", "text_encoder_2")
        if getattr(pipeline, part, None) is not None
        for name, tensor in getattr(pipeline, part).state_dict().items()
    }


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not tensor.equal(found[name])] == []


@pytest.mark.parametrize("middle", [False, True], ids=["plain VAE", "VAE with attention"])
@pytest.mark.parametrize("kind", ["SD", "SDXL"])
def test_diffusers_reads_it_back(tmp_path: Path, kind: str, middle: bool) -> None:
    made = make_tiny_base() if kind == "SD" else make_tiny_sdxl()
    if middle:
        config: dict[str, Any] = dict(made.vae.config) | {"mid_block_add_attention": True}
        made.vae = AutoencoderKL.from_config(config)
    made.save_pretrained(tmp_path / "base")
    write_tensors(tmp_path / "one.safetensors", original_tensors(backbone_of(made)), {})
    loaders: Any = {"SD": StableDiffusionPipeline, "SDXL": StableDiffusionXLPipeline}
    back = loaders[kind].from_single_file(
        tmp_path / "one.safetensors", config=str(tmp_path / "base"), local_files_only=True
    )
    assert_same(weights(back), weights(made))


@pytest.mark.parametrize("name", UNETS)
def test_full_size_names_are_those_that_diffusers_knows(name: str) -> None:
    with torch.device("meta"):
        made = make_full_size(name)
    tensors = original_tensors(backbone_of(made))
    back = convert_ldm_unet_checkpoint(dict(tensors), made.unet.config)
    assert back.keys() == made.unet.state_dict().keys()
    vae = convert_ldm_vae_checkpoint(dict(tensors), made.vae.config)
    assert {key: value.shape for key, value in vae.items()} == {
        key: value.shape for key, value in made.vae.state_dict().items()
    }
    known = {
        "SD 1.5": "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
        "SD 2.1": "cond_stage_model.model.transformer.resblocks.23.attn.in_proj_weight",
        "SDXL": "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias",
    }
    assert known[name] in tensors
    if name != "SD 1.5":
        encoder = made.text_encoder if name == "SD 2.1" else made.text_encoder_2
        prefix = known[name].partition("transformer.")[0]
        text = convert_open_clip_checkpoint(encoder, dict(tensors), prefix=prefix)
        own = encoder.state_dict().items()
        assert {key.removeprefix("text_model."): value.shape for key, value in text.items()} == {
            key.removeprefix("text_model."): value.shape for key, value in own
        }


def test_an_upsampler_stands_after_what_is_in_its_block() -> None:
    names = [
        "down_blocks.0.resnets.0.conv1.weight",
        "down_blocks.0.resnets.1.conv1.weight",
        "up_blocks.0.upsamplers.0.conv.weight",
        "up_blocks.1.attentions.0.norm.weight",
        "up_blocks.1.upsamplers.0.conv.weight",
    ]
    assert list(unet_names(names).values())[2:] == [
        "model.diffusion_model.output_blocks.2.1.conv.weight",
        "model.diffusion_model.output_blocks.3.1.norm.weight",
        "model.diffusion_model.output_blocks.5.2.conv.weight",
    ]


def test_what_is_predicted_is_said_by_empty_tensors() -> None:
    made = make_tiny_base()
    assert not {"v_pred", "ztsnr"} & original_tensors(backbone_of(made)).keys()
    options = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    made.scheduler = type(made.scheduler).from_config(made.scheduler.config, **options)
    assert {"v_pred", "ztsnr"} <= original_tensors(backbone_of(made)).keys()

"""Folders and files that are no base model for us: each is one clear line (faults, 38 and 52)."""

import codecs
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conceptry.adapters.tensor_file import write_tensors
from conceptry.generation.request import SamplingSettings
from conceptry.generation.sampler import draw
from conceptry.models.loading import LoadedBase, load_base
from conceptry.models.sd import SCHEDULERS
from conceptry.models.single_file import original_tensors
from conceptry.registry import InvalidInput
from conceptry.registry.errors import InvalidWeights
from long import quick_for
from safetensors.torch import load_file, save_file
from tiny_base import make_tiny_sdxl

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@pytest.fixture
def folder(tiny_base: Path, tmp_path: Path) -> Path:
    """The tiny base, to be made unfit."""
    return shutil.copytree(tiny_base, tmp_path / "tiny")


@pytest.fixture(scope="module")
def _single(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("single") / "one.safetensors"
    write_tensors(file, original_tensors(load_base(str(tiny_base)).backbone), {})
    shutil.copytree(tiny_base, file.with_suffix(""), ignore=shutil.ignore_patterns("*.safetensors"))
    return file


@pytest.fixture
def single(_single: Path, tmp_path: Path) -> Path:
    """A single file with its configuration beside it, to be made unfit."""
    shutil.copytree(_single.parent, tmp_path / "single")
    return tmp_path / "single" / "one.safetensors"


def refused(path: Path) -> str:
    """What is said of it, on one line."""
    with pytest.raises(InvalidInput) as told:
        load_base(str(path), offline=True)
    assert "\n" not in told.value.message
    assert len(told.value.message) < 400
    return f"{told.value.message} | {told.value.hint}"


def picture(base: LoadedBase, **settings: Any) -> np.ndarray:
    (drawn,) = draw(base, "a photo of a cat", [3], SamplingSettings(steps=2, **settings))
    return np.asarray(drawn.image, dtype=np.int16)


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def rename_weights(folder: Path, ending: str) -> None:
    for path in list(folder.rglob("*.safetensors")):
        path.rename(path.with_suffix(ending))


# --- folders --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "kind"), [(8, "edits pictures"), (5, "depth"), ("4", "another")]
)
def test_a_u_net_that_takes_more_than_latents_is_named(
    folder: Path, channels: object, kind: str
) -> None:
    change(folder / "unet/config.json", in_channels=channels)
    assert kind in (told := refused(folder))
    assert f"takes {channels!r} channels" in told


@pytest.mark.parametrize(
    ("named", "kind"),
    [
        ("FluxPipeline", "FLUX"),
        ("StableDiffusion3Pipeline", "Stable Diffusion 3"),
        ("StableDiffusionInstructPix2PixPipeline", "edits pictures"),
        ("StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLImg2ImgPipeline"),
        (["my_code", "Mine"], "without a name"),
        (None, "without a name"),
    ],
)
def test_another_family_is_named_before_its_weights_are_read(
    folder: Path, named: object, kind: str
) -> None:
    change(folder / "model_index.json", _class_name=named)
    (folder / UNET).write_bytes(b"never read")
    assert kind in (told := refused(folder))
    assert "only SD 1.x, 2.x and SDXL are known" in told


def test_half_precision_alone_is_loaded(folder: Path) -> None:
    whole = picture(load_base(str(folder)))
    for name in (UNET, VAE, TEXT):
        change_tensors(
            folder / name, lambda each: each.update({k: v.half() for k, v in each.items()})
        )
    rename_weights(folder, ".fp16.safetensors")
    base = load_base(str(folder))
    assert base.backbone.pipeline.unet.dtype == torch.float32
    assert np.abs(picture(base) - whole).max() <= 4


def test_a_part_in_half_precision_alone_is_loaded_beside_whole_ones(folder: Path) -> None:
    unet = folder / UNET
    unet.rename(unet.with_suffix(".fp16.safetensors"))
    shutil.copy(folder / VAE, (folder / VAE).with_suffix(".fp16.safetensors"))
    change_tensors((folder / VAE).with_suffix(".fp16.safetensors"), lambda each: each.clear())
    load_base(str(folder))  # the whole VAE is taken


def test_half_precision_alone_of_sdxl_is_loaded(tmp_path: Path) -> None:
    make_tiny_sdxl().save_pretrained(tmp_path / "xl", variant="fp16")
    assert picture(load_base(str(tmp_path / "xl"))).shape == (16, 16, 3)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_pickles_alone_are_told_with_how_to_convert(folder: Path, part: str) -> None:
    (weights,) = (folder / part).glob("*.safetensors")
    weights.rename(weights.with_suffix(".bin"))
    assert f"has its {part} as {weights.stem}.bin alone" in (told := refused(folder))
    assert "convert it" in told
    assert "save_pretrained" in told


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"[]", "no JSON object"),
        (b'"a"', "no JSON object"),
        (b"null", "no JSON object"),
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (codecs.BOM_UTF8 + b"{}", "byte order mark"),
    ],
)
@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json"])
def test_a_file_that_is_no_json_object_is_named(
    folder: Path, name: str, data: bytes, why: str
) -> None:
    (folder / name).write_bytes(data)
    assert f"{name} " in (told := refused(folder))
    assert why in told


@pytest.mark.parametrize("name", ["vae/config.json", "text_encoder/config.json"])
@pytest.mark.parametrize("data", [b"[]", b"{", codecs.BOM_UTF8 + b"{}", b"\xff", b'{"a": "'])
def test_a_part_whose_configuration_is_damaged_is_told(
    folder: Path, name: str, data: bytes
) -> None:
    (folder / name).write_bytes(data)
    refused(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_part_that_is_not_there_is_named(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    assert f"has no {part}" in refused(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
@pytest.mark.parametrize("value", [[None, None], None, 3, [], ["diffusers"], ["a", "b"], {}])
def test_a_part_that_the_index_does_not_name_is_told(
    folder: Path, part: str, value: object
) -> None:
    change(folder / "model_index.json", **{part: value})
    refused(folder)


@pytest.mark.parametrize("part", ["tokenizer", "scheduler", "unet", "vae", "text_encoder"])
def test_an_empty_part_is_told(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    (folder / part).mkdir()
    refused(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "merges.txt"])
def test_a_damaged_tokenizer_is_told(folder: Path, name: str) -> None:
    for path in (folder / "tokenizer").iterdir():
        if path.name != "tokenizer_config.json":
            path.unlink()
    (folder / "tokenizer" / name).write_text('{"version": ')
    refused(folder)


def test_a_tokenizer_that_names_no_limit_has_that_of_its_encoder(folder: Path) -> None:
    path = folder / "tokenizer/tokenizer_config.json"
    told = json.loads(path.read_text())
    del told["model_max_length"]
    path.write_text(json.dumps(told))
    base = load_base(str(folder))
    with pytest.raises(InvalidInput, match="the text encoder reads 75"):
        draw(base, "cat " * 76, [1], SamplingSettings(steps=1))


@pytest.mark.parametrize("name", [UNET, VAE, TEXT])
@pytest.mark.parametrize("fault", ["missing", "shape", "dtype", "truncated", "no file", "a link"])
def test_damaged_weights_are_told(folder: Path, name: str, fault: str) -> None:
    path = folder / name

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        first = min(each for each in tensors if tensors[each].dim() > 1)
        if fault == "missing":
            del tensors[first]
        elif fault == "shape":
            tensors[first] = torch.zeros(3, 5)
        else:
            tensors[first] = tensors[first].int()

    if fault in ("missing", "shape", "dtype"):
        change_tensors(path, spoil)
    elif fault == "truncated":
        path.write_bytes(path.read_bytes()[:-7])
    else:
        path.unlink()
        if fault == "a link":  # as of the hub's cache, whose blob is gone
            path.symlink_to(folder / ("0" * 64))
    assert folder.name in refused(folder)


def test_parts_that_do_not_fit_together_are_told(folder: Path) -> None:
    make_tiny_sdxl().text_encoder_2.save_pretrained(folder / "text_encoder")
    encoder = ["transformers", "CLIPTextModelWithProjection"]
    change(folder / "model_index.json", text_encoder=encoder)
    assert "text encoders" in refused(folder)


@pytest.mark.parametrize("names", [["../../outside.safetensors"], ["/etc/passwd"], [3], [], [".x"]])
def test_an_index_of_shards_that_leads_elsewhere_is_refused(
    folder: Path, names: list[object]
) -> None:
    weights = folder / UNET
    weights.with_name(f"{weights.name}.index.json").write_text(
        json.dumps({"weight_map": {str(i): name for i, name in enumerate(names)}})
    )
    assert "does not say in which files" in refused(folder)


def test_velocity_prediction_is_honoured(folder: Path) -> None:
    noise = load_base(str(folder))
    change(folder / "scheduler/scheduler_config.json", prediction_type="v_prediction")
    velocity = load_base(str(folder))
    for name in (None, *SCHEDULERS):
        chosen = {"scheduler": name} if name else {}
        assert (picture(velocity, **chosen) != picture(noise, **chosen)).any()
    change(folder / "scheduler/scheduler_config.json", prediction_type="flow")
    refused(folder)


def test_a_folder_that_is_something_else_is_named(folder: Path, tmp_path: Path) -> None:
    assert "UNet2DConditionModel" in refused(folder / "unet")
    assert "AutoencoderKL" in refused(folder / "vae")
    assert "CLIPTextModel" in refused(folder / "text_encoder")
    lora = tmp_path / "style"
    lora.mkdir()
    (lora / "pytorch_lora_weights.safetensors").touch()
    assert "a LoRA" in refused(lora)


# --- single files ---------------------------------------------------------------------------------

IN = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.mark.parametrize(("channels", "kind"), [(8, "edits pictures"), (5, "depth")])
def test_a_single_file_that_takes_more_than_latents_is_named(
    single: Path, channels: int, kind: str
) -> None:
    change_tensors(single, lambda each: each.update({IN: torch.zeros(16, channels, 3, 3)}))
    assert kind in refused(single)


@pytest.mark.parametrize(
    "part", ["model.diffusion_model.", "first_stage_model.", "cond_stage_model."]
)
@pytest.mark.parametrize("fault", quick_for(2, ["shape", "missing", "dtype", "all"]))
def test_damaged_single_files_are_told(single: Path, part: str, fault: str) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        names = [each for each in tensors if each.startswith(part) and tensors[each].dim() > 1]
        for name in list(tensors) if fault == "all" else names[5:6]:
            if fault == "missing" or (fault == "all" and name.startswith(part)):
                del tensors[name]
            elif fault == "shape":
                tensors[name] = torch.zeros(3, 5)
            elif fault == "dtype":
                tensors[name] = tensors[name].int()

    change_tensors(single, spoil)
    assert single.name in refused(single)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lora_unet_down_blocks_0.lora_down.weight", "a LoRA"),
        ("unet.down_blocks.0.attn2.to_k.lora_A.weight", "a LoRA"),
        ("decoder.conv_in.weight", "a VAE"),
        ("text_model.encoder.layers.0.mlp.fc1.weight", "a text encoder"),
        ("model.diffusion_model.double_blocks.0.img_attn.proj.weight", "a FLUX model"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.proj.weight", "a Stable Diffusion 3"),
        ("down_blocks.0.resnets.0.conv1.weight", "a U-Net alone"),
        ("control_model.input_blocks.0.0.weight", "a ControlNet"),
        ("emb_params", "a concept, or embedding"),
        ("anything", "not a whole base model"),
    ],
)
def test_a_file_that_is_something_else_is_named(tmp_path: Path, name: str, kind: str) -> None:
    save_file({name: torch.ones(2, 2)}, tmp_path / "file.safetensors")
    assert kind in refused(tmp_path / "file.safetensors")


def test_a_single_file_that_predicts_velocity_says_so(single: Path) -> None:
    tensors = load_file(single)
    assert load_base(str(single)).backbone.pipeline.scheduler.config.prediction_type == "epsilon"
    for found, metadata in (
        (tensors | {"v_pred": torch.zeros(0)}, None),
        (tensors, {"modelspec.prediction_type": "v"}),
    ):
        save_file(found, single, metadata)
        scheduler = load_base(str(single)).backbone.pipeline.scheduler
        assert scheduler.config.prediction_type == "v_prediction"
        assert not scheduler.config.get("rescale_betas_zero_snr")


def test_a_single_file_is_believed_against_the_folder_beside_it(single: Path) -> None:
    """The hub says velocity of all SD 2, of which some predict noise."""
    tensors = load_file(single)
    scheduler = single.with_suffix("") / "scheduler/scheduler_config.json"
    change(scheduler, prediction_type="v_prediction")
    assert load_base(str(single)).backbone.pipeline.scheduler.config.prediction_type == (
        "v_prediction"
    )
    save_file(tensors, single, {"modelspec.prediction_type": "epsilon"})
    assert load_base(str(single)).backbone.pipeline.scheduler.config.prediction_type == "epsilon"


def test_a_single_file_with_zero_terminal_snr_says_so(single: Path) -> None:
    """Also where the scheduler beside it is of a kind that knows nothing of it."""
    tensors = load_file(single) | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    save_file(tensors, single)
    folder = single.with_suffix("")
    for kind in ("DDIMScheduler", "PNDMScheduler"):
        change(folder / "model_index.json", scheduler=["diffusers", kind])
        change(folder / "scheduler" / "scheduler_config.json", _class_name=kind)
        backbone = load_base(str(single)).backbone
        assert type(backbone.pipeline.scheduler).__name__ == kind
        for scheduler in (backbone.training_scheduler(), backbone.sampling_scheduler(None)):
            assert scheduler.config["prediction_type"] == "v_prediction"  # pyright: ignore[reportAttributeAccessIssue]
            assert scheduler.alphas_cumprod[-1] == 0  # pyright: ignore[reportAttributeAccessIssue]


def test_a_byte_order_mark_in_the_configuration_beside_a_file_is_told(single: Path) -> None:
    index = single.with_suffix("") / "model_index.json"
    index.write_bytes(codecs.BOM_UTF8 + index.read_bytes())
    assert "byte order mark" in refused(single)


# --- what only shows when it is used --------------------------------------------------------------


@pytest.mark.parametrize("value", ["/etc/passwd", 0, None])
def test_a_schedule_that_cannot_be_run_is_the_base_models_fault(folder: Path, value: Any) -> None:
    change(folder / "scheduler/scheduler_config.json", timestep_spacing=value)
    base = load_base(str(folder))
    with pytest.raises(InvalidWeights, match="cannot be used") as told:
        picture(base)
    assert "\n" not in told.value.message


def test_a_network_that_does_not_fit_itself_is_the_base_models_fault(folder: Path) -> None:
    base = load_base(str(folder))
    base.backbone.pipeline.vae.decoder.conv_norm_out = torch.nn.GroupNorm(2, 2)
    with pytest.raises(InvalidWeights, match="cannot be used"):
        picture(base)


def test_a_fault_of_our_own_is_not_the_base_models(folder: Path) -> None:
    class Broken:
        def watching(self, _: object) -> None:
            raise ValueError("ours")

    base = load_base(str(folder))
    with pytest.raises(ValueError, match="ours"):
        list(draw(base, "a cat", [3], SamplingSettings(steps=1), observers=[Broken()]))  # pyright: ignore[reportArgumentType]

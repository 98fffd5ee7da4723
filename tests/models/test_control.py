"""ControlNets: found, loaded and checked; what they add is what diffusers adds."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conceptry.generation.request import SamplingSettings
from conceptry.generation.sampler import draw_batch
from conceptry.models.backbone import Backbone
from conceptry.models.bases import SHIPPED, Base, ControlSource, find_base, find_control
from conceptry.models.conditioning import Control
from conceptry.models.control import load_control
from conceptry.models.hashes import hash_of
from conceptry.models.loading import LoadedBase, backbone_of, load_base
from conceptry.models.miniature.architecture import make_control, make_unet
from conceptry.models.pixels import to_pixels
from conceptry.registry import InvalidInput, InvalidWeights, NotFound
from diffusers import StableDiffusionControlNetPipeline, StableDiffusionXLControlNetPipeline
from full_size import UNETS, make_full_size
from long import quick_for
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_base import make_tiny_base, make_tiny_sdxl
from tiny_control import control_picture, make_tiny_control, write_tiny_control
from torch import nn

PROMPT = "a photo of a red cat on the beach"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> LoadedBase:
    return load_base(str(tiny_base))


@pytest.fixture(scope="module")
def _control(base: LoadedBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    unet = base.backbone.pipeline.unet
    return write_tiny_control(tmp_path_factory.mktemp("controls") / "own", unet)


@pytest.fixture
def folder(_control: Path, tmp_path: Path) -> Path:
    """A ControlNet of the tiny base, to be made unfit."""
    return shutil.copytree(_control, tmp_path / "own")


def load(folder: Path, base: LoadedBase, **options: Any) -> Any:
    return load_control(ControlSource(str(folder), "folder", str(folder)), base, **options)


def refused(folder: Path, base: LoadedBase) -> str:
    """What is said of it, on one line."""
    with pytest.raises(InvalidInput) as told:
        load(folder, base)
    assert "\n" not in told.value.message
    assert len(told.value.message) < 400
    return told.value.message


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# --- what it adds ---------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[make_tiny_base, make_tiny_sdxl], ids=["SD", "SDXL"])
def pipeline(request: pytest.FixtureRequest) -> Any:
    """Of diffusers, as it is."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = request.param()
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def ours(pipeline: Any) -> Backbone:
    """The same weights."""
    return backbone_of(copy.deepcopy(pipeline))


def as_pixels(image: Image.Image) -> torch.Tensor:
    return to_pixels([image]) / 2 + 0.5


def drawn(
    backbone: Backbone, control: Control | None, *, seeds: tuple[int, ...] = (3, 4), **options: Any
) -> np.ndarray:
    settings = SamplingSettings(**({"steps": 4, "guidance": 5.0} | options))
    prompts = [PROMPT, "a dog", "a bird"][: len(seeds)]
    images = draw_batch(backbone, prompts, seeds, settings, control=control)
    return np.stack([np.asarray(each, dtype=np.int16) for each in images])


@pytest.mark.parametrize("size", quick_for(1, [(32, 16), (16, 16)]), ids=str)
@pytest.mark.parametrize("negative", ["", "two blue dogs"])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_pictures_are_those_of_diffusers(
    pipeline: Any, ours: Backbone, guidance: float, negative: str, size: Any, tmp_path: Path
) -> None:
    network: Any = make_tiny_control(pipeline.unet)
    is_xl = hasattr(pipeline, "text_encoder_2")
    kind = StableDiffusionXLControlNetPipeline if is_xl else StableDiffusionControlNetPipeline
    parts: dict[str, Any] = {**pipeline.components, "controlnet": network}
    if not is_xl:
        parts["requires_safety_checker"] = False
    theirs: Any = kind(**parts)
    theirs.set_progress_bar_config(disable=True)
    with Image.open(control_picture(tmp_path / "control.png", size)) as image:
        expected = theirs(
            [PROMPT, "a dog"],
            image=[image.convert("RGB")] * 2,
            negative_prompt=[negative] * 2 if negative else None,
            num_inference_steps=4,
            guidance_scale=guidance,
            controlnet_conditioning_scale=0.7,
            generator=[torch.Generator().manual_seed(seed) for seed in (3, 4)],
            width=size[0],
            height=size[1],
        ).images
        pixels = as_pixels(image.convert("RGB"))
    control = Control(network, pixels, 0.7)
    given: dict[str, Any] = {"guidance": guidance, "negative": negative, "size": size}
    found = drawn(ours, control, **given)
    difference = np.abs(found - np.stack([np.asarray(each, dtype=np.int16) for each in expected]))
    assert difference.max() <= 2
    assert np.abs(found - drawn(ours, None, **given)).max() > 2


def test_one_that_has_learned_nothing_and_scale_0_change_nothing(ours: Backbone) -> None:
    unet: Any = ours.denoiser
    pixels, plain = torch.rand(1, 3, 16, 16), drawn(ours, None)
    fresh = make_tiny_control(unet, seed=None)
    assert (drawn(ours, Control(fresh, pixels)) == plain).all()
    other = make_tiny_control(unet)
    assert (drawn(ours, Control(other, pixels, 0.0)) == plain).all()
    assert (drawn(ours, Control(other, pixels)) != plain).any()


def test_pixels_can_be_those_of_each_picture(ours: Backbone) -> None:
    network = make_tiny_control(ours.denoiser)
    pixels = torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)])
    both = drawn(ours, Control(network, pixels))
    for row, one in enumerate(both):
        alone = drawn(ours, Control(network, pixels[row : row + 1]))[row]
        assert np.abs(one - alone).max() <= 1
    swapped = drawn(ours, Control(network, pixels.flip(0)))
    assert (np.abs(both - swapped).max((1, 2, 3)) > 1).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", list(UNETS))
def test_one_of_full_size_is_taken(name: str) -> None:
    backbone = backbone_of(make_full_size(name))
    network = make_tiny_control(backbone.denoiser, factor=8)
    nn.Module.to(network, torch.bfloat16)
    size = 64
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    conditioning = backbone.encode_prompts(["a cat", "a dog"], size)
    control = Control(network, torch.rand(1, 3, size, size))
    with torch.no_grad():
        found = backbone.denoise(latents, torch.tensor(500), conditioning, control)
        plain = backbone.denoise(latents, torch.tensor(500), conditioning)
    assert found.shape == latents.shape
    assert found.isfinite().all()
    assert not found.equal(plain)


# --- which one ------------------------------------------------------------------------------------


def test_names_are_the_base_models_own(folder: Path) -> None:
    assert find_control(find_base("miniature")).source == str(SHIPPED / "layout")
    assert find_control(find_base("sd15"), "canny").kind == "hub"
    assert find_control(find_base("sdxl"), "canny") != find_control(find_base("sd15"), "canny")
    assert find_control(find_base("sd15"), str(folder)).kind == "folder"
    assert find_control(find_base("sd15"), "someone/else").kind == "hub"


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        (None, InvalidInput, "several ControlNets: canny, depth"),
        ("cany", NotFound, 'no ControlNet "cany"'),
        ("./gone", NotFound, "no ControlNet"),
        ("control.pth", InvalidInput, "only safetensors"),
        (".", InvalidInput, "has no config.json"),
    ],
)
def test_what_is_no_name_is_told(name: str | None, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        find_control(find_base("sd15"), name)


def test_a_base_model_may_have_none() -> None:
    with pytest.raises(InvalidInput, match="mine has no ControlNet of its own"):
        find_control(Base("mine", "folder", "mine"))


def test_aliases_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bases.yaml"
    monkeypatch.setenv("CONCEPT_BASES", str(path))
    path.write_text("mine: {source: ./mine, controls: {pose: ./pose, edges: me/edges}}")
    pose, edges = find_base("mine").controls
    assert pose == ControlSource("pose", "folder", str(tmp_path / "pose"))
    assert edges == ControlSource("edges", "hub", "me/edges")
    for text in ("{pose: 3}", "[pose]", "3"):
        path.write_text(f"mine: {{source: ./mine, controls: {text}}}")
        with pytest.raises(InvalidInput, match="controls"):
            find_base("mine")


# --- loading --------------------------------------------------------------------------------------


def test_a_folder_is_loaded(folder: Path, base: LoadedBase) -> None:
    found = load(folder, base)
    assert found.sha256 == hash_of(folder / WEIGHTS)
    assert not any(each.requires_grad for each in found.network.parameters())


def test_half_precision_alone_is_loaded(folder: Path, base: LoadedBase) -> None:
    whole = load(folder, base)
    halves = {name: value.half() for name, value in load_file(folder / WEIGHTS).items()}
    (folder / WEIGHTS).unlink()
    save_file(halves, folder / "diffusion_pytorch_model.fp16.safetensors", {"format": "pt"})
    half = load(folder, base)
    assert half.sha256 != whole.sha256
    assert next(half.network.parameters()).dtype == torch.float32


@pytest.mark.parametrize("name", [WEIGHTS, "diffusion_pytorch_model.fp16.safetensors"])
def test_a_repository_in_the_hubs_cache_is_loaded_offline(
    folder: Path, base: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--me--control"
    snapshot = shutil.copytree(folder, repository / "snapshots" / ("1" * 40))
    (snapshot / WEIGHTS).rename(snapshot / name)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("1" * 40)
    source = ControlSource("me/control", "hub", "me/control")
    base = replace(base, offline=True)
    assert load_control(source, base).sha256 == load(folder, base).sha256
    gone = ControlSource("me/nothing", "hub", "me/nothing")
    with pytest.raises(NotFound, match="me/nothing is not on this machine"):
        load_control(gone, base)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"cross_attention_dim": 64}, "cross-attention width 64, not 32"),
        ({"block_out_channels": [16, 64]}, "block channels 16, 64, not 16, 32"),
        ({"layers_per_block": 2}, "layers in a block"),
        ({"in_channels": 12}, "latent channels 12, not 4"),
        ({"addition_embed_type": "text_time"}, "added conditioning"),
        ({"conditioning_embedding_out_channels": [4, 8, 8]}, "pixels of a latent position 4"),
        ({"conditioning_channels": 1}, "channels of control pictures 1"),
        ({"_class_name": "T2IAdapter"}, "a T2IAdapter: expected a ControlNetModel"),
        ({"_class_name": 3}, "not a model of diffusers"),
        ({"global_pool_conditions": True}, "shuffles"),
    ],
    ids=str,
)
def test_one_of_another_base_model_is_refused_before_its_weights_are_read(
    folder: Path, base: LoadedBase, values: dict[str, object], text: str
) -> None:
    change(folder / "config.json", **values)
    (folder / WEIGHTS).write_bytes(b"never read")
    assert text in refused(folder, base)


def test_damaged_weights_are_told(folder: Path, base: LoadedBase) -> None:
    path = folder / WEIGHTS
    whole = path.read_bytes()
    tensors = load_file(path)
    some = dict(list(tensors.items())[1:])
    save_file(some, path, {"format": "pt"})
    assert "lacks tensors" in refused(folder, base)
    tensors["conv_in.bias"].fill_(float("nan"))
    save_file(tensors, path, {"format": "pt"})
    assert "conv_in.bias has values that are not finite" in refused(folder, base)
    path.write_bytes(whole[:-100])
    assert "cannot be loaded" in refused(folder, base)
    path.rename(folder / "diffusion_pytorch_model.bin")
    assert "only safetensors is read" in refused(folder, base)
    (folder / "diffusion_pytorch_model.bin").unlink()
    assert "there are no weights" in refused(folder, base)
    (folder / "config.json").write_text("[")
    assert "is not JSON" in refused(folder, base)


def test_one_that_is_not_there_is_told(tmp_path: Path, base: LoadedBase) -> None:
    with pytest.raises(NotFound, match="should be at"):
        load(tmp_path / "gone", base)


# --- the miniature's ------------------------------------------------------------------------------


def test_the_layout_is_compared_with_the_manifest_or_said_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_base("miniature")
    monkeypatch.setattr("conceptry.models.bases.SHIPPED", tmp_path)
    monkeypatch.setattr("conceptry.models.control.SHIPPED", tmp_path)
    source = ControlSource("layout", "folder", str(tmp_path / "layout"))
    with pytest.raises(NotFound, match="ControlNet layout is not there: its weights ship"):
        load_control(source, base)
    factor, size = base.backbone.latent_factor, base.backbone.size
    make_control(make_unet(), factor).save_pretrained(tmp_path / "layout")
    files = {f"layout/{WEIGHTS}": {"sha256": hash_of(tmp_path / "layout" / WEIGHTS)}}
    (tmp_path / "manifest.json").write_text(json.dumps({"files": files}))
    loaded = load_control(source, base)
    assert loaded.sha256 == hash_of(tmp_path / "layout" / WEIGHTS)
    (tmp_path / "manifest.json").write_text(json.dumps({"files": {}}))
    with pytest.raises(InvalidWeights, match="is damaged"):
        load_control(source, base)
    pixels = torch.rand(1, 3, size, size)
    settings = {"steps": 2, "seeds": (1,)}
    plain = drawn(base.backbone, None, **settings)
    assert (drawn(base.backbone, Control(loaded.network, pixels), **settings) == plain).all()


def test_a_base_model_by_another_name_is_named(folder: Path, base: LoadedBase) -> None:
    change(folder / "config.json", cross_attention_dim=64)
    named = replace(base, base=replace(base.base, name="mine"))
    assert "another base model than mine" in refused(folder, named)

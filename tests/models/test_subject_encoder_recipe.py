"""The miniature's subject encoder: its references, their variations, and the stage's result."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conceptry.models.compiling import compile_blocks
from conceptry.models.loading import load_base
from conceptry.models.miniature.architecture import make_clip, make_control, make_unet, make_vae
from conceptry.models.miniature.identity import IdentityEncoder
from conceptry.models.miniature.recipe import train
from conceptry.models.miniature.recipe.export import export, restore
from conceptry.models.miniature.recipe.subject_encoder import subjects_batch
from conceptry.models.miniature.tokenizer import make_tokenizer
from conceptry.models.miniature.world.layouts import random_layout
from conceptry.models.miniature.world.scenes import render
from conceptry.models.reference_augmentation import augmented
from conceptry.models.subject_encoder_file import FILE, load_subject_encoder
from conceptry.registry.errors import InvalidInput
from diffusers.models.attention import BasicTransformerBlock
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_base import make_tiny_base
from tiny_encoder import make_tiny_encoder
from torch import Tensor


def batch_of(references: str, count: int = 3, *, control: bool = False) -> Any:
    return subjects_batch(
        0,
        split="taught",
        offset=11,
        batch=count,
        size=64,
        crowds=(0.5, 0.5, 0.0),
        references=references,
        control=control,
    )


def test_a_reference_is_cut_out_of_its_own_scene() -> None:
    batch = batch_of("same")
    for scene, image, reference in zip(batch.scenes, batch.images, batch.references, strict=True):
        mask = torch.frombuffer(bytearray(render(scene, 64).masks[0].tobytes()), dtype=torch.uint8)
        mask = mask.view(64, 64)
        assert reference[:, mask == 255].equal(image[:, mask == 255])
        assert reference[:, mask == 0].eq(255).all()


def test_or_shows_the_same_individual_elsewhere() -> None:
    same, other = batch_of("same"), batch_of("other")
    assert same.images.equal(other.images)
    assert not any(
        ours.equal(theirs) for ours, theirs in zip(same.references, other.references, strict=True)
    )
    assert batch_of("other").references.equal(other.references)


def test_layouts_come_along_for_a_controlnet() -> None:
    plain, shown = batch_of("same"), batch_of("same", control=True)
    assert plain.layouts is None
    assert shown.images.equal(plain.images)
    for scene, layout in zip(shown.scenes, shown.layouts, strict=True):
        assert layout.equal(torch.from_numpy(random_layout(scene, render(scene, 64))))


def varied(references: Tensor, seed: int = 0) -> Tensor:
    return augmented(references, torch.Generator().manual_seed(seed))


def test_variations_keep_white_edges_and_follow_from_the_seed() -> None:
    white = torch.ones(4, 3, 32, 32)
    assert varied(white).allclose(white)
    references = white.clone()
    references[:, :, 10:22, 12:20] = torch.tensor([-1.0, 0.5, 1.0]).view(3, 1, 1)
    found = varied(references)
    assert found.shape == references.shape
    assert found[:, :, 0].allclose(white[:, :, 0])
    assert found.amin() >= -1.001
    assert found.equal(varied(references))
    assert len({each.numpy().tobytes() for each in found}) == 4
    darkness = (1 - found).sum((1, 2, 3)) / (1 - references).sum((1, 2, 3))
    assert all(0.35 < each < 1.6 for each in darkness.tolist())


def test_half_of_all_are_mirrored() -> None:
    references = torch.ones(64, 3, 32, 32)
    references[..., 8:24, 4:14] = -1
    found = (1 - varied(references)).sum((1, 2))
    on_the_left = found[:, :16].sum(1) > found[:, 16:].sum(1)
    assert 20 < int(on_the_left.sum()) < 44


def prefixed(part: str, module: torch.nn.Module) -> dict[str, Tensor]:
    return {f"{part}.{name}": value.contiguous() for name, value in module.state_dict().items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of the stage, after stages that learned nothing."""
    folder = tmp_path_factory.mktemp("stages")
    torch.manual_seed(0)
    clip = prefixed("clip", make_clip(make_tokenizer()))
    vae = prefixed("vae", make_vae())
    text = {
        name.replace("clip.text_model.", "text."): value.clone() for name, value in clip.items()
    }
    unet = vae | prefixed("unet", make_unet()) | text
    identity = prefixed("identity", IdentityEncoder())
    control = prefixed("control", make_control(make_unet()))
    stages = {"clip": clip, "clip-tune": clip, "vae": vae, "decoder": vae, "control": control}
    for name, weights in (stages | {"unet": unet, "identity": identity}).items():
        save_file(weights, folder / f"{name}.safetensors")
    learn(folder, references="other")
    return folder


def learn(folder: Path, **options: Any) -> list[Tensor]:
    """Two steps of the stage; returns the layouts that the U-Net was shown."""
    stage = dataclasses.replace(train.STAGES["subject-encoder"], batch=2, warmup_steps=1)
    show, shown = train.shown_layouts, list[Tensor]()

    def noted(*given: Any) -> Any:
        shown.append(given[-1]["layouts"])
        return show(*given)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(train, "scaling_factor", lambda *_: 0.2)
        patched.setattr(train, "LOG_EVERY_STEPS", 1)
        patched.setattr(train, "shown_layouts", noted)
        train.train(stage, folder, images=4, device="cpu", num_workers=0, **options)
    return shown


def test_only_resblocks_and_sublayers_learn(trained: Path) -> None:
    after = load_file(trained / "subject-encoder.safetensors")
    clip, unet = (load_file(trained / f"{name}.safetensors") for name in ("clip-tune", "unet"))
    for name, value in after.items():
        part, _, rest = name.partition(".")
        if part in ("unet", "text", "vae"):
            assert value.equal(unet[name]), name
        elif rest.startswith("vision.network."):
            place = rest.removeprefix("vision.network.")
            assert value.equal(clip[f"clip.vision_model.{place}"]), name
    outputs = [value for name, value in after.items() if name.endswith("to_out.0.weight")]
    learned = [value for name, value in after.items() if "attention.to_out.0.weight" in name]
    assert len(learned) == 7 < len(outputs)
    assert all(value.any() for value in learned)
    told = json.loads((trained / "subject-encoder.json").read_text())
    assert told["references"] == "other"
    assert len((trained / "subject-encoder.jsonl").read_text().splitlines()) == 2


def test_the_controlnet_is_there_unless_it_is_left_out(trained: Path, tmp_path: Path) -> None:
    told = json.loads((trained / "subject-encoder.json").read_text())
    assert told["control"] is True
    for name in ("clip", "clip-tune", "vae", "decoder", "control", "unet"):
        (tmp_path / f"{name}.safetensors").symlink_to(trained / f"{name}.safetensors")
    shown = learn(tmp_path)
    assert [each.shape for each in shown] == [(2, 128, 128)] * 2
    (tmp_path / "subject-encoder.resume.safetensors").unlink()
    (tmp_path / "control.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="train the stage 'control' first"):
        learn(tmp_path)
    before = (tmp_path / "subject-encoder.safetensors").read_bytes()
    assert learn(tmp_path, with_control=False) == []
    assert (tmp_path / "subject-encoder.safetensors").read_bytes() != before
    assert json.loads((tmp_path / "subject-encoder.json").read_text())["control"] is False


def test_it_ships_beside_the_base_model_and_is_for_it_alone(trained: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("conceptry.models.miniature.recipe.export.scaling_factor", lambda *_: 0.2)
        export(trained, tmp_path / "exported")
    path = tmp_path / "exported" / FILE
    assert path.stat().st_size < 4_000_000
    manifest = json.loads((tmp_path / "exported/manifest.json").read_text())
    assert FILE in manifest["files"]
    base = load_base(str(tmp_path / "exported"))
    loaded = load_subject_encoder(base)
    assert loaded.sha256 == manifest["files"][FILE]["sha256"]
    pixels = loaded.encoder.prepare([Image.new("RGB", (128, 128))])
    assert loaded.encoder(pixels).shape == (1, 64, 160)
    other = dataclasses.replace(base, sha256="0" * 64)
    with pytest.raises(InvalidInput, match="for another base model than"):
        load_subject_encoder(other, str(path))
    restore(tmp_path / "again", tmp_path / "exported")
    again = load_file(tmp_path / "again/subject-encoder.safetensors")
    assert again.keys() == {f"encoder.{name}" for name in loaded.encoder.learned_state()}


def test_a_control_reaches_the_unet(tmp_path: Path) -> None:
    """What it adds is the U-Net's keyword arguments."""
    context = train.Context(tmp_path, torch.device("cpu"))
    seen: dict[str, object] = {}

    def unet(noisy: Tensor, timesteps: Tensor, states: Tensor, **more: object) -> Any:
        seen.update(more)
        return type("Output", (), {"sample": noisy})

    class Text(torch.nn.Module):
        def forward(self, tokens: Tensor) -> Any:
            return type("Output", (), {"last_hidden_state": tokens})

    modules: Any = {"unet": unet, "text": Text()}
    scenes = {
        "latents": torch.zeros(2, 12, 16, 16),
        "tokens": torch.zeros(2, 77, dtype=torch.long),
        "weights": torch.ones(2, 1, 16, 16),
    }
    generator = torch.Generator().manual_seed(0)
    train.unet_losses(modules, scenes, context, generator, lambda *_: {"extra": 1})
    assert seen == {"extra": 1}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch compiles with
def test_transformer_blocks_with_hooks_are_not_compiled() -> None:
    """What is compiled would go on with the tokens of the first step."""
    unet = make_tiny_base().unet
    modules = torch.nn.ModuleDict({"unet": unet, "encoder": make_tiny_encoder(unet)})
    compile_blocks(modules, train._to_compile(modules))
    compiled = [each for each in modules.modules() if each._compiled_call_impl is not None]
    assert compiled
    assert not any(isinstance(each, BasicTransformerBlock) for each in compiled)

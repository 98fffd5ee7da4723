"""Numbers that are not finite, where concepts are taught and drawn (faults, 42)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conceptry.adapters.file_format import AdapterMetadata, write_adapter
from conceptry.generation import Request, SamplingSettings, generate
from conceptry.generation.prompt_syntax import resolve_prompt
from conceptry.methods.method import find_method, resolve_settings
from conceptry.models.loading import LoadedBase
from conceptry.registry import Registry
from conceptry.registry.errors import NotFinite, RegistryCorrupt, TrainingFailed
from conceptry.registry.running import ADAPTER_FILE
from conceptry.training import loop, train
from conceptry.training.callbacks import Hooks, StepReport
from conceptry.training.checkpoints import read_resume_point
from conceptry.training.latents import encode_pictures
from conceptry.training.trainer import run_one
from conceptry.training.training import Subject, Training
from PIL import Image

SHORT = ("augmentation.crops=2", *(f"stage{i}.steps=2" for i in (1, 2, 3)))
NAN = float("nan")


def spoil(module: Any, name: str, value: float = NAN) -> None:
    with torch.no_grad():
        module.get_parameter(name).view(-1)[0] = value


def request(prompt: str) -> Request:
    return Request(prompt=prompt, seeds=(3,), settings=SamplingSettings(steps=2, guidance=3.0))


@pytest.fixture
def taught(rex: Registry, base: LoadedBase, tmp_path: Path) -> Registry:
    """rex has a version whose weights are too large for a strength above 1."""
    state = {"token.0": torch.randn(1, 32), "delta.conv_in.weight": torch.full((16, 4, 3, 3), 3e38)}
    fits = AdapterMetadata(
        base_sha256=base.sha256,
        method="attndreambooth",
        category="dog",
        num_tokens=1,
        names_category=True,
    )
    write_adapter(tmp_path / "rex.safetensors", state, fits)
    rex.add_version("rex", {ADAPTER_FILE: tmp_path / "rex.safetensors"})
    return rex


@pytest.mark.parametrize("with_maps", [False, True])
def test_a_strength_that_overflows_is_named_and_nothing_is_recorded(
    taught: Registry, base: LoadedBase, tmp_path: Path, with_maps: bool
) -> None:
    weight = base.backbone.parameters("denoiser")["conv_in.weight"]
    own = weight.detach().clone()
    drawing = generate(
        taught, base, [request("<rex:4> asleep")], tmp_path / "out", with_maps=with_maps
    )
    with pytest.raises(NotFinite, match="with rex@1 at strength 4 gives no picture"):
        list(drawing)
    assert not (tmp_path / "out").exists()
    assert weight.equal(own)


def test_a_base_model_that_is_broken_is_named_whoever_is_injected(
    taught: Registry, base: LoadedBase, tmp_path: Path
) -> None:
    spoil(base.backbone.autoencoder, "decoder.conv_out.bias")
    for prompt in ("<rex> asleep", "a cat"):
        with pytest.raises(NotFinite, match=r"cannot draw: vae\.decoder\.conv_out\.bias"):
            list(generate(taught, base, [request(prompt)], tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_weights_that_are_gone_are_the_registrys_fault(taught: Registry) -> None:
    """Faults, row 38: it was told as a bug."""
    (chosen,) = resolve_prompt(taught, "<rex>")
    Path(chosen.path).unlink()
    with pytest.raises(RegistryCorrupt, match="weights of rex cannot be read: No such file"):
        resolve_prompt(taught, "<rex>")


# --- while it is taught ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("unet", "mid_block.resnets.0.conv1.weight"),
        ("unet", "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"),
        ("text_encoder", "encoder.layers.0.mlp.fc1.bias"),
        ("vae", "encoder.conv_in.bias"),
    ],
)
@pytest.mark.parametrize("overrides", [SHORT, (*SHORT, "rank=2")], ids=["whole", "lora"])
def test_a_broken_base_model_is_named_by_a_training(
    rex: Registry, base: LoadedBase, part: str, name: str, overrides: tuple[str, ...]
) -> None:
    spoil(getattr(base.backbone.pipeline, part), name)
    with pytest.raises((TrainingFailed, NotFinite)) as told:
        train(rex, "rex", base, overrides=overrides)
    assert base.base.name in told.value.message
    assert ("VAE" if part == "vae" else f"{part}.{name}") in told.value.message
    assert rex.show("rex").versions == []
    assert rex.show("rex").runs[0].status == "failed"


def test_no_preview_is_black(rex: Registry, base: LoadedBase) -> None:
    spoil(base.backbone.autoencoder, "decoder.conv_out.bias")
    shown: list[Any] = []
    hooks = Hooks(preview_every=1, on_preview=lambda *strip: shown.append(strip))
    with pytest.raises(TrainingFailed, match=r"preview is not finite: vae\.decoder\.conv_out"):
        train(rex, "rex", base, overrides=SHORT, hooks=hooks)
    assert shown == []
    (run,) = rex.show("rex").runs
    assert not list(rex.run_folder(run.run).glob("*.png"))


def test_no_class_picture_is_black(rex: Registry, base: LoadedBase) -> None:
    spoil(base.backbone.autoencoder, "decoder.conv_out.bias")
    with pytest.raises(NotFinite, match="cannot draw"):
        train(rex, "rex", base, method="dreambooth", overrides=("prior.num_images=1",))
    assert not list(rex.location.cache.rglob("*.png"))


def test_what_is_not_finite_is_never_saved(
    base: LoadedBase, pictures: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last point stays, whose numbers are; also where the last step of all broke them."""
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", -1.0)
    path = tmp_path / "resume.safetensors"
    settings = resolve_settings(find_method("attndreambooth"), base="tiny", overrides=SHORT)
    subject = Subject(photos=pictures, category="dog", tokens=("<v>", "<w>"))

    def ruin(report: StepReport) -> None:
        if (report.stage, report.step) == ("stage3", 2):
            spoil(base.backbone.denoiser, "conv_in.weight", float("inf"))

    training = Training(
        base.backbone,
        find_method("attndreambooth"),
        settings,
        subject,
        seed=7,
        hooks=Hooks(on_step=ruin),
    )
    with pytest.raises(TrainingFailed, match="stage3, what was learned is not finite") as told:
        run_one(training, path)
    assert "learning_rate" in (told.value.hint or "")
    kept = read_resume_point(path)
    assert (kept.stage, kept.step) == ("stage3", 1)
    assert all(value.isfinite().all() for value in kept.learned.values())


def test_a_version_that_half_precision_cannot_hold_is_none(rex: Registry, base: LoadedBase) -> None:
    def ruin(report: StepReport) -> None:
        if (report.stage, report.step) == ("stage3", 2):
            spoil(base.backbone.denoiser, "conv_in.weight", 1e6)  # more than 65504

    with pytest.raises(TrainingFailed, match="rex: what was learned is not finite"):
        train(rex, "rex", base, overrides=SHORT, hooks=Hooks(on_step=ruin))
    assert rex.show("rex").versions == []


def test_photos_are_encoded_in_float32_where_half_precision_overflows(
    base: LoadedBase, pictures: list[Image.Image]
) -> None:
    vae: Any = base.backbone.autoencoder.half()
    with torch.no_grad():
        vae.encoder.conv_in.weight.mul_(3e4)
        vae.encoder.conv_in.bias.mul_(3e4)
    small = [each.resize((16, 16)) for each in pictures]
    assert encode_pictures(base.backbone, small).mean.isfinite().all()
    assert vae.dtype == torch.float16
    spoil(vae, "encoder.conv_in.bias")
    with pytest.raises(NotFinite, match="cannot see the photos"):
        encode_pictures(base.backbone, small)

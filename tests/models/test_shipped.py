"""The weights that ship: whole, small, loaded by plain diffusers, and good for something."""

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conceptry.adapters.adapter import injected
from conceptry.adapters.subject_encoding import SubjectEncoding
from conceptry.evaluation import judge, judge_recipe
from conceptry.generation.request import SamplingSettings
from conceptry.generation.sampler import draw
from conceptry.models import bases, hashes
from conceptry.models.conditioning import Control
from conceptry.models.control import load_control
from conceptry.models.loading import load_base
from conceptry.models.miniature import shipped
from conceptry.models.miniature.architecture import SMALL_SIZE
from conceptry.models.miniature.recipe.export import LAYOUT, MAX_BYTES, restore
from conceptry.models.miniature.recipe.train import STAGES
from conceptry.models.miniature.world.identities import CATEGORIES
from conceptry.models.miniature.world.layouts import layout_picture
from conceptry.models.miniature.world.scenes import describe, render, sample_scene
from conceptry.models.pixels import reduced, to_pixels
from conceptry.models.subject_encoder_file import FILE, load_subject_encoder
from conceptry.registry import InvalidWeights
from long import quick_for
from PIL import Image
from safetensors.torch import load_file

SAMPLE = bases.SHIPPED.parent / "sample"
MANIFEST = json.loads((bases.SHIPPED / "manifest.json").read_text())


def test_every_file_is_the_one_in_the_manifest() -> None:
    found = {
        path.relative_to(bases.SHIPPED).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in bases.SHIPPED.rglob("*.safetensors")
    }
    assert found == {name: file["sha256"] for name, file in MANIFEST["files"].items()}
    total = sum(path.stat().st_size for path in bases.SHIPPED.rglob("*.safetensors"))
    assert total == MANIFEST["bytes"]
    assert total + judge.SHIPPED.stat().st_size <= MAX_BYTES


def trained_stages() -> set[str]:
    """Those whose weights ship."""
    waiting = {"control": LAYOUT, "subject-encoder": FILE}
    missing = {stage for stage, name in waiting.items() if not (bases.SHIPPED / name).exists()}
    return STAGES.keys() - missing


def test_the_loss_curves_and_settings_are_kept_beside_the_weights() -> None:
    for stage in trained_stages():
        folder = bases.SHIPPED / "training"
        settings = json.loads((folder / f"{stage}.json").read_text())
        lines = [json.loads(line) for line in (folder / f"{stage}.jsonl").read_text().splitlines()]
        assert settings["stage"] == stage
        assert lines[-1]["images"] > 0.9 * settings["images"]


def test_plain_diffusers_loads_and_runs_it() -> None:
    from diffusers import StableDiffusionPipeline

    pipeline: Any = StableDiffusionPipeline.from_pretrained(bases.SHIPPED)
    assert {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {
        torch.float32
    }
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 4, "generator": torch.Generator().manual_seed(1)}
    picture = pipeline("a photo of a red cat on the beach", guidance_scale=5.0, **options).images[0]
    settings = SamplingSettings(steps=4, guidance=5.0)
    (ours,) = draw(load_base(), "a photo of a red cat on the beach", [1], settings)
    gap = np.asarray(picture, dtype=int) - np.asarray(ours.image, dtype=int)
    assert np.abs(gap).max() <= 1


@pytest.mark.long
def test_a_subject_is_drawn_where_a_layout_has_it() -> None:
    base = load_base()
    network = load_control(bases.find_control(base.base, LAYOUT), base).network
    found: list[float] = []
    for left in (0.05, 0.5):
        picture = layout_picture([("dog", (left, 0.35, left + 0.45, 0.9))], base.backbone.size)
        control = Control(network, to_pixels([picture]) / 2 + 0.5)
        settings = SamplingSettings(steps=12)
        (drawn,) = draw(base, "a photo of a dog on the beach", [1], settings, control=control)
        found.append(middle_of(drawn.image, "dog"))
    assert found[0] < 0.45
    assert found[1] > 0.55


@pytest.mark.long
def test_with_the_subject_encoder_pictures_are_more_like_the_photo() -> None:
    base, identity = load_base(), shipped.load_identity_encoder()
    photo = Image.open(SAMPLE / "00.png").convert("RGB")
    settings = SamplingSettings(steps=12)
    like: list[float] = []
    for strength in (0.0, 0.5):
        encoding = SubjectEncoding.of(load_subject_encoder(base), [photo], strength)
        with injected(base.backbone, [encoding]):
            drawn = list(draw(base, "a photo of a dog", range(4), settings))
        vectors = identity.embed([photo, *(one.image for one in drawn)])
        like.append(float((vectors[1:] @ vectors[0]).mean()))
    assert like[1] > like[0]


@torch.no_grad()
def middle_of(image: Image.Image, category: str) -> float:
    """Where the judge looks for a category, as a share of the picture's width."""
    where = judge.load_judge()(to_pixels([reduced(image, SMALL_SIZE)]))["where"][
        0, CATEGORIES.index(category)
    ]
    columns = where.exp().unflatten(-1, (16, 16)).sum(0)
    return float((columns * (torch.arange(16) + 0.5)).sum() / columns.sum() / 16)


@pytest.mark.parametrize("place", quick_for(1, ["on the beach", "in the snow", "in space"]))
def test_a_prompt_is_followed(place: str) -> None:
    drawn = draw(
        load_base(), f"a photo of a red house {place}", range(4), SamplingSettings(steps=15)
    )
    seen = judge.load_judge().classify([one.image for one in drawn])
    assert Counter(one.place for one in seen).most_common(1)[0][0] == place


def test_a_corrupted_weight_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(bases.SHIPPED, tmp_path / "weights")
    monkeypatch.setattr(bases, "SHIPPED", folder)
    monkeypatch.setattr(shipped, "SHIPPED", folder)
    for name in MANIFEST["files"]:
        path = folder / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with pytest.raises(InvalidWeights, match="is damaged: its hash is not that of the manifest"):
        load_base()
    for load in (shipped.load_clip, shipped.load_identity_encoder):
        with pytest.raises(InvalidWeights, match="is damaged"):
            load()


def test_a_corrupted_judge_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in judge.SHIPPED.parent.iterdir():
        shutil.copyfile(path, tmp_path / path.name)
    weights = tmp_path / judge.SHIPPED.name
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    monkeypatch.setattr(judge, "SHIPPED", weights)
    with pytest.raises(InvalidWeights, match="is damaged"):
        judge.load_judge()


@pytest.mark.long
def test_the_judge_is_as_good_as_is_said_of_it() -> None:
    promised = json.loads(judge.SHIPPED.with_suffix(".json").read_text())["accuracy"]
    measured = judge_recipe.measure(judge.load_judge(), 300)
    for name, accuracy in promised.items():
        assert abs(measured[name] - accuracy) < 0.06, name


def test_the_clip_pair_matches_pictures_with_their_sentences() -> None:
    clip, tokenizer = shipped.load_clip()
    scenes = [sample_scene(seed, "held-out") for seed in range(32)]
    pixels = to_pixels([render(scene, 64).image for scene in scenes])
    tokens = tokenizer(
        [describe(scene) for scene in scenes], padding="max_length", return_tensors="pt"
    )
    with torch.no_grad():
        logits = clip(input_ids=tokens.input_ids, pixel_values=pixels).logits_per_text
    assert (logits.argmax(-1) == torch.arange(32)).float().mean() > 0.5


def test_the_identity_encoder_knows_one_from_another() -> None:
    encoder = shipped.load_identity_encoder()
    scenes = [sample_scene(seed, "held-out", num_subjects=1, style="photo") for seed in range(24)]
    again = [
        sample_scene(
            1000 + i, "held-out", identity=scene.subjects[0].identity, num_subjects=1, style="photo"
        )
        for i, scene in enumerate(scenes)
    ]
    first, second = (
        encoder.embed([render(scene, 64).image for scene in group]) for group in (scenes, again)
    )
    assert ((first @ second.T).argmax(-1) == torch.arange(24)).float().mean() > 0.7


def test_the_identity_encoder_sees_the_same_at_any_size() -> None:
    scene = sample_scene(0, "held-out", num_subjects=1, style="photo")
    small, *others = shipped.load_identity_encoder().embed(
        [render(scene, size).image for size in (64, 128, 512)]
    )
    assert all(float(small @ each) > 0.98 for each in others)


def test_the_weights_can_be_trained_further(tmp_path: Path) -> None:
    restore(tmp_path)
    ours = load_file(tmp_path / "unet.safetensors")
    shipped_unet = load_file(bases.SHIPPED / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(ours[f"unet.{name}"].equal(value.float()) for name, value in shipped_unet.items())
    assert hashes.MANIFEST not in {path.name for path in tmp_path.iterdir()}
    assert {path.stem for path in tmp_path.iterdir()} == trained_stages()

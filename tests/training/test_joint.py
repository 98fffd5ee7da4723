"""Stages that train tokens and text encoders beside the denoiser, and pictures after references."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conceptry.adapters.file_format import read_adapter
from conceptry.adapters.weight_delta import WeightDelta
from conceptry.generation import Request, SamplingSettings, generate
from conceptry.generation.injection import inject_concepts
from conceptry.generation.prompt_syntax import resolve_prompt
from conceptry.methods import find_method
from conceptry.methods.method import resolve_settings
from conceptry.models.loading import LoadedBase, backbone_of
from conceptry.registry import Registry
from conceptry.registry.errors import InvalidInput, TrainingInterrupted
from conceptry.training import resume, train
from conceptry.training.callbacks import Hooks
from conceptry.training.class_pictures import class_pictures
from conceptry.training.subjects import references_of, subject_of
from PIL import Image
from tiny_base import make_tiny_sdxl
from torch import Tensor

SHORT = ("augmentation.crops=2", "prior.num_images=2", "unet.steps=2", "unet.batch=2")
RATES = ("unet.embedding_rate=0.01", "unet.text_encoder_rate=0.002")


def state_of(registry: Registry, number: int) -> dict[str, Tensor]:
    (version,) = resolve_prompt(registry, f"<rex@{number}>")
    return read_adapter(Path(version.path))[0]


def weights(base: LoadedBase) -> dict[str, bytes]:
    return {
        name: value.detach().numpy().tobytes() for name, value in base.backbone.weights().items()
    }


@pytest.mark.parametrize("rank", [0, 2])
def test_tokens_and_text_encoders_learn_beside_the_denoiser(
    rex: Registry, base: LoadedBase, tmp_path: Path, rank: int
) -> None:
    before = weights(base)
    for rates in ((), RATES):
        overrides = [*SHORT, *rates, f"rank={rank}", "unet.learning_rate=0.001"]
        train(rex, "rex", base, method="dreambooth", overrides=overrides, seed=1)
    assert weights(base) == before
    alone, together = (state_of(rex, number) for number in (1, 2))
    assert not torch.equal(alone["token.0"], together["token.0"])
    names = together.keys() - alone.keys()
    assert names
    kinds = {"up", "down"} if rank else {"delta"}
    assert {name.split(".text_encoder.0.")[0] for name in names} == kinds
    assert not any("embedding" in name for name in names)
    assert all(together[name].any() for name in names if name.endswith("q_proj.weight"))
    with inject_concepts(base, resolve_prompt(rex, "<rex>")):
        assert weights(base) != before
        changed = base.backbone.text_encoder_parameters()
        name = next(name for name in changed if name.endswith("q_proj.weight"))
        original = np.frombuffer(before[name], np.float32)
        change = changed[name].detach().flatten() - torch.tensor(original)
        up, down = (together.get(f"{kind}.{name}") for kind in ("up", "down"))
        expected = together[f"delta.{name}"] if up is None or down is None else up @ down
        assert torch.allclose(change, expected.float().flatten(), atol=1e-6)
    assert weights(base) == before
    request = Request(prompt="<rex>", seeds=(1,), settings=SamplingSettings(steps=2))
    assert len(list(generate(rex, base, [request], tmp_path))) == 1


def test_rates_are_those_of_each_part(rex: Registry, base: LoadedBase) -> None:
    """AdamW's first step is as large as its rate."""
    overrides = [*SHORT, *RATES, "unet.steps=1", "unet.learning_rate=0.0005", "weight_decay=0"]
    train(rex, "rex", base, method="dreambooth", overrides=overrides, seed=1)
    delta = WeightDelta.from_state(state_of(rex, 1)).deltas
    sizes = {
        "text": max(float(d.abs().max()) for n, d in delta.items() if n.startswith("text_enc")),
        "denoiser": max(
            float(d.abs().max()) for n, d in delta.items() if not n.startswith("text_enc")
        ),
    }
    assert sizes["text"] == pytest.approx(0.002, rel=0.01)
    assert sizes["denoiser"] == pytest.approx(0.0005, rel=0.01)


def test_resume_is_exact(rex: Registry, base: LoadedBase) -> None:
    overrides = [*SHORT, *RATES, "unet.steps=4"]
    train(rex, "rex", base, method="dreambooth", overrides=overrides, seed=1)
    calls = iter(range(100))
    stopping = Hooks(should_stop=lambda: next(calls) >= 1)
    with pytest.raises(TrainingInterrupted):
        train(rex, "rex", base, method="dreambooth", overrides=overrides, seed=1, hooks=stopping)
    resume(rex, "rex", base)
    whole, resumed = state_of(rex, 1), state_of(rex, 2)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


@pytest.mark.parametrize(
    ("method", "overrides", "message"),
    [
        ("textual-inversion", ["embedding.text_encoder_rate=1e-6"], "trains tokens alone"),
        ("attndreambooth", ["stage1.embedding_rate=1e-3"], "trains tokens alone"),
        ("attndreambooth", ["rank=4", "stage1.rank=2"], "stage1 trains tokens alone"),
        ("attndreambooth", ["stage3.rank=2"], "stage3.rank is for LoRA, but rank is 0"),
        ("sefi", ["fused_backward=true"], "which sefi does not train"),
        ("dreambooth", ["lora.dora=true"], "lora.dora are for LoRA, but rank is 0"),
        ("dreamtuner", ["optimizer=prodigy", "unet.learning_rate=1"], "learning rates of its own"),
        ("dreambooth", ["prior.after_references=true"], "needs references"),
    ],
)
def test_settings_that_contradict_each_other(
    method: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        resolve_settings(find_method(method), base="", overrides=tuple(overrides))


# --- dreamtuner's pictures ------------------------------------------------------------------------


def test_dreamtuner_trains_all_of_it(rex: Registry, base: LoadedBase, tmp_path: Path) -> None:
    trained = train(rex, "rex", base, method="dreamtuner", overrides=SHORT, seed=1)
    assert [(stage.name, stage.steps) for stage in trained.stages] == [("unet", 2)]
    kinds = {name.partition(".")[0] for name in state_of(rex, 1)}
    assert kinds == {"token", "delta", "reference"}
    request = Request(prompt="<rex>", seeds=(1,), settings=SamplingSettings(steps=2))
    (picture,) = generate(rex, base, [request], tmp_path)
    assert picture.image.size == (16, 16)


def test_regular_images_are_drawn_after_all_of_the_photo(rex: Registry, base: LoadedBase) -> None:
    concept = rex.show("rex")
    settings = resolve_settings(find_method("dreamtuner"), base="")
    after = references_of(rex, base, concept, settings.reference)
    plain = class_pictures(rex, base, "dog", 2)
    regular = class_pictures(rex, base, "dog", 2, after=after)
    assert [each.tobytes() for each in regular] != [each.tobytes() for each in plain]
    again = class_pictures(rex, base, "dog", 2, after=after)
    assert [each.tobytes() for each in again] == [each.tobytes() for each in regular]
    assert len(list(rex.location.cache.rglob("*.png"))) == 16, "kept, eight at a time"
    assert base.backbone.references == []
    assert float(after.unmasked().references[0].mask.min()) == 1.0
    alone = class_pictures(rex, base, "dog", 2, after=after.leading(0.0))
    assert [each.tobytes() for each in alone] == [each.tobytes() for each in regular], (
        "the photo leads as many of their steps as is published, whatever the version's share"
    )


def test_photos_are_cut_out_on_white(rex: Registry, base: LoadedBase, tmp_path: Path) -> None:
    """By their masks, or by those that attention finds."""
    photo = rex.show("rex").images[0]
    mask = Image.new("L", (photo.width, photo.height))
    mask.paste(255, (0, 0, photo.width // 2, photo.height))
    masks = tmp_path / "masks"
    masks.mkdir()
    path = rex.path_of(photo.sha256)
    mask.save(masks / f"{path.name}.png")
    rex.add("rex", [path], masks=masks)
    words = ("augmentation.white_background=true",)
    for method in ("dreambooth", "dreamtuner"):
        settings = resolve_settings(find_method(method), base="", overrides=words)
        subject = subject_of(rex, base, rex.show("rex"), find_method(method), settings)
        first, second, *_ = (np.asarray(each) for each in subject.photos)
        assert (first[:, -2:] == 255).all()
        assert not (first[:, :2] == 255).all()
        assert (second == 255).all(-1).any()


def test_what_sdxl_does_not_read_of_its_first_text_encoder_does_not_learn() -> None:
    """It would have no gradient, which several GPUs would wait for."""
    backbone = backbone_of(make_tiny_sdxl())
    for encoder in backbone.text_encoders:
        encoder.network.requires_grad_(True)
    found = backbone.encode_prompts(["a photo of a dog"], 16)
    (found.states.sum() + found.added["text_embeds"].sum()).backward()
    every = backbone.text_encoder_parameters()
    read = backbone.read_text_parameters()
    assert read.keys() == {name for name, each in every.items() if each.grad is not None}
    assert read.keys() < every.keys()

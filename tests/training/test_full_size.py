"""Every method on models in their true shapes: one step of each stage, then a picture."""

import resource
from pathlib import Path

import pytest
import torch
from conceptry.adapters.adapter import Adapter, injected
from conceptry.adapters.timestep_tokens import timestep_routing
from conceptry.generation.request import SamplingSettings
from conceptry.generation.sampler import draw_batch
from conceptry.methods.method import all_methods, find_method, resolve_settings
from conceptry.models.backbone import Backbone
from conceptry.models.loading import backbone_of
from conceptry.training.callbacks import StepReport
from conceptry.training.trainer import run_one
from conceptry.training.training import Subject, Training
from full_size import UNETS, make_full_size
from PIL import Image

pytestmark = pytest.mark.slow
MEMORY_LIMIT = 20e9
WORDS = ("augmentation.crops=2", "resolution=128", "mixed_precision=bf16")


@pytest.fixture(scope="module", params=list(UNETS))
def whole(request: pytest.FixtureRequest) -> tuple[str, Backbone]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return request.param, backbone_of(make_full_size(request.param))


@pytest.mark.parametrize("name", list(all_methods()))
def test_one_step_of_each_stage_and_a_picture(
    whole: tuple[str, Backbone], name: str, tmp_path: Path
) -> None:
    """Whole weights; of SDXL, whose optimiser would not fit, LoRA."""
    shape, backbone = whole
    method = find_method(name)
    words = [
        *WORDS,
        *(
            f"{stage.name}.{word}"
            for stage in method.stages
            for word in ("steps=1", "batch=1", "text_encoder_rate=0")
        ),
    ]
    words += ["rank=8"] if shape == "SDXL" else []
    settings = resolve_settings(method, base=shape, overrides=tuple(words))
    photos = [Image.radial_gradient("L").convert("RGB")] * 2
    classes = [photo.resize((128, 128)) for photo in photos]
    tokens = tuple(f"<v{i}>" for i in range(method.count_tokens(backbone, settings)))
    subject = Subject(photos=photos, category="dog", tokens=tokens, class_pictures=classes)
    seen: list[StepReport] = []
    training = Training(backbone, method, settings, subject, seed=0)
    training.hooks.on_step = seen.append
    learned = run_one(training, tmp_path / "resume.safetensors")
    assert [report.stage for report in seen] == [stage.name for stage in method.stages]
    assert learned.embedding is not None
    adapters: list[Adapter] = [learned.embedding, *timestep_routing([learned.embedding])]
    adapters += [learned.weights] if learned.weights else []
    with injected(backbone, adapters):
        settings = SamplingSettings(steps=2, guidance=3.0, size=(128, 128))
        (picture,) = draw_batch(backbone, ["a photo of <v> dog"], [0], settings)
    assert picture.size == (128, 128)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < MEMORY_LIMIT

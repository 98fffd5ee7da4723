"""Pictures that begin with another one: as diffusers draws them, and what a mask leaves."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conceptry.adapters.tensor_file import write_tensors
from conceptry.generation import (
    PromptDefaults,
    Request,
    SamplingSettings,
    generate,
    read_prompts,
    read_provenance,
    reproduce,
)
from conceptry.generation.in_regions import draw_in_regions
from conceptry.generation.init_request import InitRequest, parse_init, read_init
from conceptry.generation.regional_plan import plan_regions
from conceptry.generation.sampler import draw_batch
from conceptry.generation.starts import Start, beginning_of
from conceptry.models.backbone import Backbone
from conceptry.models.loading import LoadedBase, backbone_of, load_base
from conceptry.models.single_file import original_tensors
from conceptry.registry import InvalidInput, NotFound, Registry
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    UNet2DConditionModel,
)
from long import quick_for
from PIL import Image, ImageDraw
from tiny_base import make_tiny_base, make_tiny_sdxl

PROMPT = "a photo of a red cat"
SEEDS = (3, 4)
TOLERANCE = 2
"""Of 255."""
IMG2IMG: Any = {
    "StableDiffusionPipeline": StableDiffusionImg2ImgPipeline,
    "StableDiffusionXLPipeline": StableDiffusionXLImg2ImgPipeline,
}
INPAINT: Any = {
    "StableDiffusionPipeline": StableDiffusionInpaintPipeline,
    "StableDiffusionXLPipeline": StableDiffusionXLInpaintPipeline,
}


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Squares of many colours."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.NEAREST)


def mask_of(size: tuple[int, int]) -> Image.Image:
    """White on the right half."""
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).rectangle((size[0] // 2, 0, *size), fill=255)
    return mask


def furthest(ours: Image.Image, theirs: Image.Image) -> int:
    one, other = (np.asarray(each.convert("RGB"), dtype=np.int16) for each in (ours, theirs))
    return int(np.abs(one - other).max())


def made(kind: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make_tiny_base() if kind == "SD" else make_tiny_sdxl()


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    path = tmp_path / "begun.png"
    picture((16, 16)).save(path)
    return path


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    path = tmp_path / "mask.png"
    mask_of((16, 16)).save(path)
    return path


def ours(backbone: Backbone, settings: SamplingSettings, asked: InitRequest) -> list[Image.Image]:
    start = Start.of(backbone, read_init(asked, None, backbone.size))
    settings = replace(settings, size=start.image.size)
    return draw_batch(backbone, [PROMPT] * 2, SEEDS, settings, start=start)


def theirs(pipeline: Any, settings: SamplingSettings, **inputs: Any) -> list[Image.Image]:
    """With the scheduler that is ours."""
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(each) for each in SEEDS]
    return pipeline(
        [PROMPT] * 2,
        generator=generators,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance,
        **inputs,
    ).images


# --- img2img --------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", quick_for(1, [0.4, 1.0]))
@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpm++"])
@pytest.mark.parametrize("kind", ["SD", "SDXL"])
def test_it_is_what_diffusers_draws(
    kind: str, scheduler: str, strength: float, begun: Path
) -> None:
    backbone = backbone_of(made(kind))
    settings = SamplingSettings(steps=5, guidance=3.0, scheduler=scheduler)
    own = backbone.pipeline
    found = ours(backbone, settings, InitRequest(picture=begun, strength=strength))
    plain = draw_batch(backbone, [PROMPT] * 2, SEEDS, settings)
    components = own.components | {"scheduler": backbone.sampling_scheduler(scheduler)}
    pipeline = IMG2IMG[type(own).__name__](**components)
    expected = theirs(pipeline, settings, image=Image.open(begun), strength=strength)
    for mine, other in zip(found, expected, strict=True):
        assert furthest(mine, other) <= TOLERANCE
    assert furthest(found[0], plain[0]) > TOLERANCE
    assert furthest(found[0], found[1]) > TOLERANCE


def test_the_miniature_does_as_diffusers_does(tmp_path: Path) -> None:
    base = load_base(device="cpu")
    backbone, side = base.backbone, base.backbone.size
    path = tmp_path / "begun.png"
    picture((side, side)).save(path)
    settings = SamplingSettings(steps=4, guidance=5.0, scheduler="ddim")
    found = ours(backbone, settings, InitRequest(picture=path, strength=0.5))
    own: dict[str, Any] = backbone.pipeline.components
    components: dict[str, Any] = own | {"scheduler": backbone.sampling_scheduler("ddim")}
    pipeline = StableDiffusionImg2ImgPipeline(**components, requires_safety_checker=False)
    expected = theirs(pipeline, settings, image=Image.open(path), strength=0.5)
    for mine, other in zip(found, expected, strict=True):
        assert furthest(mine, other) <= TOLERANCE


def test_with_strength_1_all_steps_are_taken_and_a_mask_begins_with_noise(
    base: LoadedBase, begun: Path, mask: Path
) -> None:
    backbone, dtype = base.backbone, torch.float32
    latents: dict[str, torch.Tensor] = {}
    for name, asked in {
        "nothing": None,
        "all": InitRequest(picture=begun, strength=1.0),
        "a part": InitRequest(picture=begun, strength=1.0, mask=mask),
    }.items():
        start = Start.of(backbone, read_init(asked, None, 16)) if asked else None
        beginning, _ = beginning_of(backbone, start, SEEDS, (16, 16), dtype)
        scheduler = backbone.sampling_scheduler("euler")
        scheduler.set_timesteps(6)
        latents[name], timesteps = beginning.begin(scheduler, 6)
        assert len(timesteps) == 6
        if name == "a part":  # diffusers' inpainting: noise alone
            assert torch.equal(latents[name], beginning.noise * scheduler.init_noise_sigma)
        if name == "all":  # diffusers' img2img: the picture, with as much noise as there is
            times = timesteps[:1].expand(2)
            assert beginning.picture is not None
            noised = scheduler.add_noise(beginning.picture, beginning.noise, times)
            assert torch.equal(latents[name], noised)
    assert not torch.equal(latents["nothing"], latents["all"])


@pytest.mark.long
def test_less_strength_stays_nearer(tmp_path: Path) -> None:
    backbone = load_base(device="cpu").backbone
    path = tmp_path / "begun.png"
    picture((backbone.size, backbone.size)).save(path)
    settings = SamplingSettings(steps=10, guidance=1.0)
    before = np.asarray(Image.open(path), dtype=np.float32)
    far = [
        float(np.abs(np.asarray(drawn[0], dtype=np.float32) - before).mean())
        for strength in (0.1, 0.5, 0.9)
        if (drawn := ours(backbone, settings, InitRequest(picture=path, strength=strength)))
    ]
    assert far == sorted(far)


# --- inpainting -----------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpm++"])
def test_what_the_mask_leaves_keeps_its_pixels_and_the_rest_is_as_diffusers_draws_it(
    scheduler: str, strength: float, begun: Path, mask: Path
) -> None:
    backbone = backbone_of(made("SD"))
    settings = SamplingSettings(steps=5, guidance=3.0, scheduler=scheduler)
    asked = InitRequest(picture=begun, strength=strength, mask=mask)
    read = read_init(asked, None, 16)
    start = Start.of(backbone, read)
    assert start.redrawn is not None
    assert start.cells is not None
    found = ours(backbone, settings, asked)
    before = np.asarray(read.image)
    outside = np.asarray(start.redrawn) == 0
    whole = np.asarray(start.redrawn) == 255
    assert outside.any()
    assert whole.any()
    assert not outside[:, 8:].any(), "all that is white is redrawn, or at the soft edge"
    components = backbone.pipeline.components
    components |= {"scheduler": backbone.sampling_scheduler(scheduler)}
    pipeline = StableDiffusionInpaintPipeline(**components, requires_safety_checker=False)
    cells = Image.fromarray((start.cells[0, 0].numpy() * 255).astype(np.uint8))
    expected = theirs(
        pipeline,
        settings,
        image=[read.image] * 2,
        mask_image=[cells.resize(read.image.size, Image.Resampling.NEAREST)] * 2,
        strength=strength,
        height=16,
        width=16,
    )
    for mine, other in zip(found, expected, strict=True):
        assert (np.asarray(mine)[outside] == before[outside]).all()
        drawn = np.abs(np.asarray(mine, dtype=np.int16) - np.asarray(other, dtype=np.int16))
        assert drawn[whole].max() <= TOLERANCE
        assert (np.asarray(mine)[whole] != before[whole]).any()


@pytest.mark.parametrize("kind", ["SD", "SDXL"])
def test_an_inpainting_model_sees_what_is_around(
    kind: str, begun: Path, mask: Path, tmp_path: Path
) -> None:
    plain = made(kind)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        unet = UNet2DConditionModel.from_config(plain.unet.config, in_channels=9)
    components = plain.components | {"unet": unet}
    options = {"requires_safety_checker": False} if kind == "SD" else {}
    INPAINT[type(plain).__name__](**components, **options).save_pretrained(tmp_path / "base")
    backbone = load_base(str(tmp_path / "base"), device="cpu").backbone
    assert backbone.is_inpainting
    assert backbone.latent_channels == 4
    if kind == "SD":
        write_tensors(tmp_path / "base.safetensors", original_tensors(backbone), {})
        single = load_base(str(tmp_path / "base.safetensors"), device="cpu", offline=True).backbone
        assert single.is_inpainting
        assert type(single.pipeline) is type(backbone.pipeline)
    settings = SamplingSettings(steps=3, guidance=3.0, scheduler="ddim")
    asked = InitRequest(picture=begun, strength=0.7, mask=mask)
    start = Start.of(backbone, read_init(asked, None, 16))
    assert start.redrawn is not None
    assert start.cells is not None
    found = ours(backbone, settings, asked)
    cells = Image.fromarray((start.cells[0, 0].numpy() * 255).astype(np.uint8))
    pipeline = backbone.pipeline
    pipeline.scheduler = backbone.sampling_scheduler("ddim")
    expected = theirs(
        pipeline,
        settings,
        image=[start.image] * 2,
        mask_image=[cells.resize((16, 16), Image.Resampling.NEAREST)] * 2,
        strength=0.7,
        height=16,
        width=16,
    )
    whole = np.asarray(start.redrawn) == 255
    for mine, other in zip(found, expected, strict=True):
        drawn = np.abs(np.asarray(mine, dtype=np.int16) - np.asarray(other, dtype=np.int16))
        assert drawn[whole].max() <= TOLERANCE
    (all_of_it, _) = draw_batch(backbone, [PROMPT] * 2, SEEDS, settings)
    assert furthest(all_of_it, found[0]) > TOLERANCE, "without a mask it draws from the prompt"


# --- files ----------------------------------------------------------------------------------------


def test_a_picture_keeps_what_it_began_with_and_is_drawn_again(
    registry: Registry, base: LoadedBase, begun: Path, mask: Path, tmp_path: Path
) -> None:
    init = InitRequest(picture=begun, strength=0.7, mask=mask)
    settings = SamplingSettings(steps=3, guidance=3.0)
    asked = Request(prompt=PROMPT, seeds=(3, 4), settings=settings, init=init)
    _, drawn = generate(registry, base, [asked], tmp_path / "out", with_maps=True)
    used = read_provenance(drawn.path)
    assert used.init is not None
    assert used.init.strength == 0.7
    assert used.settings.size == (16, 16)
    again = InitRequest(picture=begun, mask=mask)
    found, is_same = reproduce(registry, base, drawn.path, tmp_path / "out", init=again)
    assert is_same
    assert found.path.read_bytes() == drawn.path.read_bytes()
    other = tmp_path / "other.png"
    picture((16, 16), 1).save(other)
    for wrong, told in (
        (None, "has to be given again"),
        (InitRequest(picture=begun), "redrew a part"),
        (InitRequest(picture=other, mask=mask), "another picture than"),
        (InitRequest(picture=begun, mask=other), "another mask than"),
    ):
        with pytest.raises(InvalidInput, match=told):
            reproduce(registry, base, drawn.path, tmp_path / "out", init=wrong)


def test_subjects_keep_their_boxes_or_are_looked_for(base: LoadedBase, begun: Path) -> None:
    for layout in ("auto", {"cat": (0.0, 0.0, 0.5, 1.0), "dog": (0.5, 0.0, 1.0, 1.0)}):
        plan = plan_regions(
            base.backbone, "a cat and a dog", [], layout, {"rex": "cat", "max": "dog"}
        )
        assert plan is not None
        start = Start.of(
            base.backbone, read_init(InitRequest(picture=begun, strength=0.5), None, 16)
        )
        settings = SamplingSettings(steps=4, guidance=3.0, size=(16, 16))
        with_start, without = (
            next(draw_in_regions(base, plan, [], [3], settings, start=each))
            for each in (start, None)
        )
        assert furthest(with_start.drawn.image, without.drawn.image) > TOLERANCE


@pytest.mark.parametrize(
    ("size", "wanted", "expected"),
    [
        ((16, 16), None, (16, 16)),
        ((21, 18), None, (16, 16)),
        ((64, 32), None, (32, 16)),
        ((64, 32), (16, 8), (16, 8)),
    ],
)
def test_the_size_is_that_of_the_picture(
    size: tuple[int, int], wanted: tuple[int, int] | None, expected: tuple[int, int], tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    whole = picture(size)
    whole.save(path)
    read = read_init(InitRequest(picture=path), wanted, 16)
    assert read.image.size == expected
    if size == (21, 18):
        assert read.image.tobytes() == whole.crop((2, 1, 18, 17)).tobytes()


def test_what_cannot_begin_is_told(tmp_path: Path, begun: Path) -> None:
    with pytest.raises(NotFound, match="there is no mask gone"):
        parse_init(str(begun), mask="gone.png")
    with pytest.raises(InvalidInput, match="another shape than the 32x16"):
        read_init(InitRequest(picture=begun), (32, 16), 16)
    settings = SamplingSettings(steps=4)
    with pytest.raises(InvalidInput, match="leaves none of 4 steps"):
        Request(
            prompt="a", seeds=[1], settings=settings, init=InitRequest(picture=begun, strength=0.2)
        )


def test_a_mask_of_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    picture((512, 512)).save(tmp_path / "large.png")
    dot = Image.new("L", (512, 512))
    dot.putpixel((100, 100), 255)
    dot.save(tmp_path / "dot.png")
    asked = InitRequest(picture=tmp_path / "large.png", mask=tmp_path / "dot.png")
    with pytest.raises(InvalidInput, match=r"redraws nothing: .* reduced to 32x32"):
        read_init(asked, None, 16)
    assert read_init(asked, None, 256).mask is not None


def test_a_picture_too_thin_is_refused(tmp_path: Path) -> None:
    picture((1000, 10)).save(tmp_path / "thin.png")
    with pytest.raises(InvalidInput, match="another shape than the 32x8"):
        read_init(InitRequest(picture=tmp_path / "thin.png"), None, 16)


def test_prompt_files_have_them(tmp_path: Path, begun: Path, mask: Path) -> None:
    listed = tmp_path / "wanted.yaml"
    listed.write_text(
        "- {prompt: a, init: begun.png, strength: 0.5, inpaint: mask.png}\n- b\n"
        "- {prompt: c, strength: 0.3}\n"
    )
    default = InitRequest(picture=mask, strength=0.6, mask=begun)
    defaults = PromptDefaults(n=1, seed=0, settings=SamplingSettings(), init=default)
    first, second, third = (each.init for each in read_prompts(listed, defaults))
    assert first == InitRequest(picture=begun, strength=0.5, mask=mask)
    assert second == default
    assert third == replace(default, strength=0.3)
    with pytest.raises(InvalidInput, match="entry 3: strength is for a picture with an init"):
        read_prompts(listed, replace(defaults, init=None))

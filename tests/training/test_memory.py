"""What is counted of a GPU's memory, and which networks stay on it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conceptry.methods.method import all_methods, find_method, read_presets, resolve_settings
from conceptry.models.backbone import Backbone, Lora
from conceptry.models.bases import find_base
from conceptry.models.loading import LoadedBase
from conceptry.models.shapes import FAMILIES, shapes_of, usual_shapes
from conceptry.registry import Registry
from conceptry.training import loop as training_loop
from conceptry.training import train, trainer, training
from conceptry.training.callbacks import Hooks
from conceptry.training.memory import (
    Live,
    MemoryCount,
    StageMemory,
    count_memory,
    less_memory,
    memory_of,
)
from conceptry.training.placement import all_on_device, keep_on_device
from conceptry.training.queue import batch_size
from diffusers.models.attention_processor import AttnProcessor2_0
from full_size import UNETS, make_full_unet
from long import quick_for
from tiny_base import write_tiny_base

FULL_SIZE = dict(zip(FAMILIES, UNETS, strict=True))


def counted(base: LoadedBase, *words: str, method: str = "dreambooth") -> dict[str, StageMemory]:
    settings = resolve_settings(find_method(method), base="", overrides=words)
    shapes = shapes_of(base.base)
    assert shapes is not None
    found = count_memory(shapes, find_method(method), settings)
    assert found.peak == max(stage.peak for stage in found.stages)
    return {stage.name: stage for stage in found.stages}


@pytest.mark.parametrize("family", FAMILIES)
def test_usual_shapes_are_those_of_the_models(family: str) -> None:
    with torch.device("meta"):
        expected = make_full_unet(FULL_SIZE[family])
    shapes = usual_shapes(family)
    found = {name: each.shape for name, each in shapes.make_unet().named_parameters()}
    assert found == {name: each.shape for name, each in expected.named_parameters()}
    sizes = {"SD 1.x": [123], "SD 2.x": [340], "SDXL": [123, 695]}[family]  # millions
    encoders = [sum(each.numel() for each in e.parameters()) for e in shapes.make_text_encoders()]
    assert [round(each / 1e6) for each in encoders] == sizes
    autoencoder = sum(each.numel() for each in shapes.make_autoencoder().parameters())
    assert autoencoder == 83_653_863


def test_a_base_model_in_a_folder_has_the_shapes_of_its_networks(base: LoadedBase) -> None:
    shapes = shapes_of(base.base)
    assert shapes is not None
    assert shapes.size == base.backbone.size
    assert shapes.factor == base.backbone.latent_factor
    made = (shapes.make_unet(), shapes.make_autoencoder(), *shapes.make_text_encoders())
    for network, own in zip(made, base.backbone.networks.values(), strict=True):
        expected = {name: each.shape for name, each in own.named_parameters()}
        assert {name: each.shape for name, each in network.named_parameters()} == expected


def test_what_is_not_here_is_not_counted() -> None:
    settings = resolve_settings(find_method("dreambooth"), base="")
    assert memory_of(find_base("someone/else"), find_method("dreambooth"), settings) is None


@pytest.mark.long
def test_weights_and_states_are_what_they_are(base: LoadedBase) -> None:
    """In float32, so that all of them are sums of parameters' sizes."""
    sizes = {
        name: sum(4 * each.numel() for each in network.parameters())
        for name, network in base.backbone.networks.items()
    }
    unet, texts = sizes["denoiser"], sizes["text encoder 0"]
    plain = counted(base, "mixed_precision=no")
    assert plain["loading"].peak == sum(sizes.values()) / 2
    blocks = 1.2  # small parameters take a whole block each
    assert unet <= plain["unet"].weights < blocks * unet + 400_000
    assert plain["unet"].learning == 2 * unet + 4 * len(list(base.backbone.denoiser.parameters()))
    with_texts = counted(base, "mixed_precision=no", "unet.text_encoder_rate=1e-6")["unet"]
    assert with_texts.weights > plain["unet"].weights + texts
    factors = counted(base, "mixed_precision=no", "rank=2")["unet"]
    assert 0 < factors.learning < plain["unet"].learning / 5


@pytest.mark.long
@pytest.mark.parametrize(
    "case",
    [
        ("gradient_checkpointing=true", 0.05),
        ("fused_backward=true", 0.03),
        ("optimizer=adafactor", 0.1),
        ("rank=2", 0.3),
        ("gradient_accumulation=4", 0.2),
        ("prior.weight=0", 0.1),
    ],
    ids=str,
)
def test_what_is_meant_to_save_memory_does(base: LoadedBase, case: tuple[str, float]) -> None:
    words, saves = case
    small = "fused" in words or "optimizer" in words or "rank" in words
    start = ("unet.batch=1", "resolution=8") if small else ("unet.batch=4", "resolution=32")
    plain, less = counted(base, *start), counted(base, *start, words)
    assert less["unet"].peak < (1 - saves) * plain["unet"].peak


@pytest.mark.parametrize(
    "words",
    quick_for(
        1,
        [
            ("rank=2", "quantize=4bit", "gradient_checkpointing=true"),
            (),
            ("gradient_checkpointing=true",),
            ("rank=2", "quantize=8bit"),
        ],
    ),
    ids=str,
)
def test_a_step_that_is_really_done_takes_what_is_counted(
    base: LoadedBase, words: tuple[str, ...]
) -> None:
    """The same U-Net on the CPU, with values, in float32: what is alive at most."""
    if "quantize=4bit" in words:
        pytest.importorskip("bitsandbytes")
    batch, side = 3, 32
    found = counted(
        base,
        *words,
        *("mixed_precision=no", f"unet.batch={batch}", f"resolution={side}", "prior.weight=0"),
    )["unet"]
    unet: Any = base.backbone.pipeline.unet
    unet.set_attn_processor(AttnProcessor2_0())
    unet.requires_grad_("rank=2" not in words).train()
    if "rank=2" in words:
        base.backbone.quantize("4bit" if "quantize=4bit" in words else "8bit")
        base.backbone.add_lora(Lora(rank=2))
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_(".lora_" in name)
    if "gradient_checkpointing=true" in words:
        unet.enable_gradient_checkpointing()
    latents = torch.randn(batch, 4, side // 2, side // 2)
    states = torch.randn(batch, 77, 32)
    with Live([*unet.parameters(), *unet.buffers()]) as live:
        predicted = unet(latents.clone(), torch.zeros(batch, dtype=torch.long), states).sample
        (predicted - latents).square().mean().backward()
    assert found.peak - found.learning == pytest.approx(live.peak, rel=0.1)


def test_live_counts_what_is_alive() -> None:
    with Live() as live:
        first = torch.empty(1024)
        view = first[:10]
        assert live.bytes == 4096
        second = torch.empty(1)
        assert live.bytes == 4096 + 512
        del first
        assert live.bytes == 4096 + 512, "the view holds it"
        del view, second
    assert live.bytes == 0
    assert live.peak == 4096 + 512


@pytest.mark.long
@pytest.mark.parametrize(
    "case",
    [
        ("attndreambooth", "8gb", "SD 1.x", 8),
        ("dreambooth", "8gb-sdxl", "SDXL", 8),
        ("attndreambooth", "8gb-sdxl", "SDXL", 8),
        ("sefi", "8gb-sdxl", "SDXL", 8),
        ("textual-inversion", "8gb-sdxl", "SDXL", 8),
        ("attndreambooth", "8gb", "SD 2.x", 8),
        ("attndreambooth", "12gb", "SDXL", 12),
        ("attndreambooth", "24gb", "SDXL", 24),
        ("dreambooth", "8gb", "SDXL", 12),
        ("sefi", "12gb", "SDXL", 12),
        ("textual-inversion", "12gb", "SDXL", 12),
        ("textual-inversion", "24gb", "SDXL", 24),
    ],
    ids=str,
)
def test_presets_fit_their_cards(case: tuple[str, str, str, int]) -> None:
    """With as many concepts at once as there are if nothing else is said."""
    name, preset, family, card = case
    method = find_method(name)
    settings = read_presets(method)[preset].settings
    together = batch_size(preset, None) if method.keeps_base else 1
    found = count_memory(usual_shapes(family), method, settings, together=together)
    assert card in found.fits


def test_presets_of_cards_train_one_concept_at_a_time() -> None:
    presets = {name for method in all_methods().values() for name in read_presets(method)}
    one = {name for name in presets if batch_size(name, None) == 1}
    assert one == {"8gb", "8gb-sdxl", "12gb", "24gb"}
    assert batch_size("24gb", 3) == 3


def peak_of_stages(found: MemoryCount) -> int:
    """Without loading and encoding, which come first, and whose networks no setting makes small."""
    return max(stage.peak for stage in found.stages[2:])


@pytest.mark.long
@pytest.mark.parametrize(
    "case",
    [
        ("attndreambooth", "paper", "SD 1.x", 1),
        ("attndreambooth", "8gb", "SD 1.x", 1),
        ("attndreambooth", "24gb", "SDXL", 1),
        ("dreambooth", "8gb-sdxl", "SDXL", 1),
        ("dreamtuner", "24gb", "SD 1.x", 1),
        ("sefi", "8gb-sdxl", "SDXL", 1),
        ("textual-inversion", "paper", "SDXL", 8),
    ],
    ids=str,
)
def test_what_is_said_to_need_less_memory_does(case: tuple[str, str, str, int]) -> None:
    name, preset, family, together = case
    method, shapes = find_method(name), usual_shapes(family)
    plain = resolve_settings(method, preset=preset, base="")
    before = peak_of_stages(count_memory(shapes, method, plain, together=together))
    hint = less_memory(method, plain, is_sdxl=family == "SDXL", together=together)
    assert preset not in hint.split()
    for way in hint.split(", or "):
        words = way.replace("… lower", f"{shapes.size // 2}").split()
        options = dict(zip(words[::2], words[1::2], strict=True))
        changed = resolve_settings(
            method,
            preset=options.get("--preset", preset),
            base="",
            overrides=tuple(word for word in words if "=" in word),
        )
        fewer = int(options.get("--together", together))
        found = count_memory(shapes, method, changed, together=fewer)
        assert peak_of_stages(found) < before, way


def test_nothing_that_is_on_already_is_said_to_need_less_memory() -> None:
    cases = {
        ("attndreambooth", "8gb", False): "--set quantize=8bit",
        ("attndreambooth", "24gb", True): "--preset 8gb-sdxl",
        ("dreamtuner", "24gb", True): "--preset 8gb",
        ("sefi", "8gb-sdxl", True): "--set resolution=… lower",
        ("dreamtuner", "instant", False): "end what else is on the GPU",
        ("dreambooth", "paper", False): "--preset 8gb, or --set gradient_checkpointing=true",
    }
    for (name, preset, is_sdxl), expected in cases.items():
        settings = read_presets(find_method(name))[preset].settings
        assert less_memory(find_method(name), settings, is_sdxl=is_sdxl) == expected


@pytest.mark.long
def test_attndreambooth_trains_all_of_sd_2_in_16_gb() -> None:
    words = ("gradient_checkpointing=true", "fused_backward=true")
    settings = resolve_settings(find_method("attndreambooth"), base="", overrides=words)
    found = count_memory(usual_shapes("SD 2.x"), find_method("attndreambooth"), settings)
    assert 16 in found.fits


@pytest.mark.long
def test_the_bench_counts_as_the_program_does() -> None:
    path = Path(__file__).parents[2] / "bench/results/memory.json"
    rows = json.loads(path.read_text())["rows"]
    (told,) = (
        row["stages"]
        for row in rows
        if (row["method"], row["preset"], row["base"]) == ("dreambooth", "8gb", "SD 1.x")
    )
    settings = read_presets(find_method("dreambooth"))["8gb"].settings
    found = count_memory(usual_shapes("SD 1.x"), find_method("dreambooth"), settings)
    expected = {stage.name: stage.peak / 1e9 for stage in found.stages}
    assert told == pytest.approx(expected, rel=0.02, abs=0.02)


# --- what stays on the device ---------------------------------------------------------------------


def test_networks_are_on_the_device_while_they_are_used(
    rex: Registry, base: LoadedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[str] = []

    def keep_on_device(_: Backbone, __: torch.device, names: Any) -> None:
        kept.append(" ".join(sorted(name.split()[0] for name in names)))

    for module in (training, trainer, training_loop):
        monkeypatch.setattr(module, "keep_on_device", keep_on_device)
    words = [f"stage{i}.{word}" for i in (1, 2) for word in ("steps=1", "batch=1")]
    words += ["stage3.steps=0", "augmentation.crops=2"]
    train(rex, "rex", base, overrides=words, hooks=Hooks(preview_every=1))
    stages = ["denoiser text", "denoiser text", "denoiser text", "denoiser"]
    assert kept == ["autoencoder", "denoiser", *stages]


class Elsewhere(torch.nn.Module):
    """A network that says where it is."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def parameters(self, recurse: bool = True) -> Any:
        del recurse
        return iter([torch.empty(0, device=self.device)])

    def to(self, *args: Any, **_: Any) -> Any:
        self.device = str(args[0])


def test_pictures_on_the_way_have_all_networks() -> None:
    networks = {"denoiser": Elsewhere("meta"), "text encoder 0": Elsewhere("cpu")}
    backbone: Any = SimpleNamespace(networks=networks, device=torch.device("meta"))

    def where() -> list[str]:
        return [network.device for network in networks.values()]

    with all_on_device(backbone):
        assert where() == ["meta", "meta"]
    assert where() == ["meta", "cpu"], "as before"
    keep_on_device(backbone, backbone.device, ["text encoder 0"])
    assert where() == ["cpu", "meta"]


def test_what_cannot_be_counted_is_left_to_loading(tmp_path: Path) -> None:
    write_tiny_base(tmp_path / "odd")
    path = tmp_path / "odd" / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"in_channels": 9}))
    method = find_method("dreambooth")
    settings = resolve_settings(method, base="")
    assert memory_of(find_base(str(tmp_path / "odd")), method, settings) is None


@pytest.mark.long
def test_concepts_that_share_a_batch_are_counted(base: LoadedBase) -> None:
    shapes, method = shapes_of(base.base), find_method("textual-inversion")
    assert shapes is not None
    settings = resolve_settings(method, base="")
    one, eight = (count_memory(shapes, method, settings, together=n).peak for n in (1, 8))
    assert eight > 3 * one


@pytest.mark.long
def test_what_any_stage_learns_is_float32_from_the_first_on(base: LoadedBase) -> None:
    words = ("stage1.steps=1", "stage2.steps=0")
    whole = counted(base, *words, method="attndreambooth")
    first = counted(base, *words, "stage3.steps=0", method="attndreambooth")
    wide = sum(2 * each.numel() for each in base.backbone.denoiser.parameters())
    grown = whole["stage1"].weights - first["stage1"].weights
    assert grown == pytest.approx(wide, rel=0.3)

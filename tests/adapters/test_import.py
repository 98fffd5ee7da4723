"""Other tools' files, imported: the same pictures as plain diffusers draws with them."""

from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import pytest
import torch
from conceptry.adapters.formats.importing import (
    ImportedFile,
    ImportOptions,
    _of_pattern,
    _patterns,
    import_path,
)
from conceptry.adapters.formats.layouts import diffusers_tensors, kohya_tensors
from conceptry.adapters.formats.reading import _Layers
from conceptry.adapters.formats.recognising import recognise
from conceptry.adapters.weight_delta import WeightDelta
from conceptry.generation import Request, generate
from conceptry.models.loading import backbone_of
from conceptry.models.single_file import unet_names
from conceptry.registry.errors import InvalidInput
from conceptry.registry.tensors import Header
from conceptry.registry.tensors import Tensor as HeaderTensor
from exported import SETTINGS, Taught, add_embedding, plain
from foreign_files import write_embedding
from full_size import UNETS, make_full_size
from long import quick_for
from safetensors.torch import save_file
from torch import Tensor

TOLERANCE = 2
"""Of 255, between two programs that draw the same."""


def brought(taught: Taught, path: Path, **options: Any) -> ImportedFile:
    (found,) = import_path(taught.registry, path, ImportOptions(**options))
    return found


def drawn(taught: Taught, prompt: str) -> np.ndarray:
    request = Request(prompt=prompt, seeds=(3,), settings=SETTINGS)
    (picture,) = generate(taught.registry, taught.base, [request], taught.folder / "drawn")
    return np.asarray(picture.image, dtype=np.int16)


def assert_alike(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(found - expected).max() <= TOLERANCE


def assert_changed(taught: Taught, found: np.ndarray, prompt: str) -> None:
    assert np.abs(found - plain(taught.reloaded(), prompt)).max() > 4 * TOLERANCE


@pytest.mark.parametrize(
    ("patterns", "value"),
    [
        ({}, 4),
        ({"to_q": 7}, 4),
        ({"to_k": 1, "attn2.to_k": 2}, 1),
        ({"attn2.to_k": 2, "to_k": 1}, 2),
        ({"2_to_k": 1}, 4),
        ({"^blocks.0.attn2.to_k$": 3}, 3),
        ({"text_model.to_k": 5}, 5),
    ],
)  # fmt: skip
def test_the_first_of_peft_s_patterns_that_fits_counts(
    patterns: dict[str, int], value: int
) -> None:
    assert _of_pattern(_patterns(patterns), "blocks_0_attn2_to_k", 4) == value


def test_many_patterns_of_peft_take_no_longer_for_each_layer() -> None:
    patterns = _patterns({f"layers.{i}.to_k": i for i in range(30_000)})
    began = process_time()
    found = [_of_pattern(patterns, f"blocks_0_layers_{i}_to_k", 4) for i in range(30_000)]
    assert found == list(range(30_000))
    assert process_time() - began < 10


# --- what we export -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    quick_for(
        4,
        [
            ("embedding", ""),
            ("lora-kohya", "factors"),
            ("lora-diffusers", "directed"),
            ("diff", "deltas"),
            ("lora-kohya", "text_factors"),
            ("lora-diffusers", "text_factors"),
            ("lora-diffusers", "factors"),
        ],
    ),
    ids=str,
)
def test_what_is_exported_and_imported_draws_the_same_pixels(
    taught: Taught, case: tuple[str, str]
) -> None:
    form, learned = case
    state = getattr(taught, learned)() if learned else {}
    taught.add(taught.vectors(2) | state)
    taught.export(form, "max.safetensors")
    found = brought(taught, taught.folder / "max.safetensors")
    assert (found.concept, found.outcome, found.warnings) == ("max", "imported", [])
    assert np.array_equal(drawn(taught, "a photo of a <max>"), taught.drawn())
    assert taught.registry.show("max").category == "dog"


# --- what other tools write -----------------------------------------------------------------------

PROMPT = "a photo of a dog"
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
BLOCKS = [*ATTENTION, "conv1", "ff.net.0.proj", "proj_in", "time_emb_proj"]


def randomise(network: Any, scale: float = 0.3) -> None:
    """Give a network's adapter random weights, so that it is seen."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in network.named_parameters():
        if any(part in name for part in ("lora_", "hada_", "lokr_")):
            noise = torch.randn(parameter.shape, generator=generator)
            is_magnitude = "magnitude" in name
            parameter.data = parameter.data * (1 + 0.1 * noise) if is_magnitude else scale * noise


def peft_config(way: str) -> Any:
    from peft import LoHaConfig, LoKrConfig, LoraConfig

    ways: dict[str, Any] = {
        "lora": lambda: LoraConfig(r=4, lora_alpha=2, target_modules=BLOCKS),
        "rslora": lambda: LoraConfig(r=4, lora_alpha=2, use_rslora=True, target_modules=ATTENTION),
        "dora": lambda: LoraConfig(r=4, lora_alpha=2, use_dora=True, target_modules=ATTENTION),
        "ranks": lambda: LoraConfig(
            r=4,
            lora_alpha=2,
            rank_pattern={"attn2.to_k": 2},
            alpha_pattern={"attn2.to_k": 3},
            target_modules=ATTENTION,
        ),
        "loha": lambda: LoHaConfig(r=3, alpha=2, target_modules=BLOCKS),
        "loha-core": lambda: LoHaConfig(
            r=3, alpha=2, use_effective_conv2d=True, target_modules=BLOCKS
        ),
        "lokr": lambda: LoKrConfig(r=3, alpha=2, target_modules=BLOCKS),
        "lokr-core": lambda: LoKrConfig(
            r=2,
            alpha=2,
            use_effective_conv2d=True,
            decompose_both=True,
            decompose_factor=4,
            target_modules=BLOCKS,
        ),
    }
    return ways[way]()


@pytest.mark.parametrize(
    "way",
    quick_for(3, ["lora", "dora", "loha-core", "lokr-core", "ranks", "rslora", "loha", "lokr"]),
)
def test_a_folder_of_peft_draws_as_peft_does(taught: Taught, way: str) -> None:
    from peft import get_peft_model

    pipeline = taught.reloaded()
    adapted = get_peft_model(pipeline.unet, peft_config(way))
    randomise(adapted, 0.5 if way.startswith("lo") else 0.3)
    adapted.save_pretrained(taught.folder / "Rex LoRA")
    found = brought(taught, taught.folder / "Rex LoRA/adapter_model.safetensors")
    assert found.concept == "rex-lora"
    expected = plain(pipeline, PROMPT)
    assert_alike(drawn(taught, "a photo of a dog<rex-lora>"), expected)
    assert_changed(taught, expected, PROMPT)


@pytest.mark.parametrize("alpha", quick_for(1, [2, 8]))
def test_what_training_scripts_of_diffusers_write(taught: Taught, kind: str, alpha: int) -> None:
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoraConfig, get_peft_model_state_dict

    pipeline = taught.reloaded()
    texts = {"text_encoder": pipeline.text_encoder}
    texts |= {"text_encoder_2": pipeline.text_encoder_2} if kind == "SDXL" else {}
    config = LoraConfig(r=4, lora_alpha=alpha, target_modules=ATTENTION)
    pipeline.unet.add_adapter(config)
    randomise(pipeline.unet)
    layers = {"unet_lora_layers": get_peft_model_state_dict(pipeline.unet)}
    for name, network in texts.items():
        network.add_adapter(LoraConfig(r=3, lora_alpha=3, target_modules=["q_proj", "v_proj"]))
        randomise(network)
        layers[f"{name}_lora_layers"] = get_peft_model_state_dict(network)
    told = _collate_lora_metadata({"unet": pipeline.unet, **texts})
    type(pipeline).save_lora_weights(taught.folder / "mine", **layers, **told)
    path = taught.folder / "mine/pytorch_lora_weights.safetensors"
    brought(taught, path, trigger="shiny")
    fresh = taught.reloaded()
    fresh.load_lora_weights(path)
    expected = plain(fresh, "a photo of a shiny dog")
    assert_alike(drawn(taught, "a photo of a <mine> dog"), expected)
    assert_changed(taught, expected, "a photo of a shiny dog")


def kohya_file(taught: Taught, kind: str, *, convolutions: bool) -> dict[str, Tensor]:
    """As kohya's scripts write it: SDXL's U-Net has the names of its first release."""
    from conceptry.models.single_file import unet_names

    unet = taught.base.backbone.parameters("denoiser")
    originals = unet_names(unet.keys())
    found: dict[str, Tensor] = {}
    for name, weight in unet.items():
        is_matrix = ".to_" in name or "proj_in" in name
        is_kernel = convolutions and ".conv1." in name
        if not name.endswith(".weight") or not (is_matrix or is_kernel):
            continue
        known = originals[name].removeprefix("model.diffusion_model.") if kind == "SDXL" else name
        layer = "lora_unet_" + known.removesuffix(".weight").replace(".", "_")
        ones = (1,) * (weight.ndim - 2)
        found[f"{layer}.lora_down.weight"] = taught.random(4, *weight.shape[1:], scale=0.3)
        found[f"{layer}.lora_up.weight"] = taught.random(len(weight), 4, *ones, scale=0.3)
        found[f"{layer}.alpha"] = torch.tensor(3.0)
    for name, weight in taught.base.backbone.text_encoder_parameters().items():
        if "self_attn" not in name or "_proj.weight" not in name:
            continue
        _, number, path = name.removesuffix(".weight").split(".", 2)
        prefix = f"lora_te{int(number) + 1}" if kind == "SDXL" else "lora_te"
        path = path.removeprefix("text_model.").replace(".", "_")
        layer = f"{prefix}_text_model_{path}"
        found[f"{layer}.lora_down.weight"] = taught.random(2, weight.shape[1], scale=0.3)
        found[f"{layer}.lora_up.weight"] = taught.random(len(weight), 2, scale=0.3)
        found[f"{layer}.alpha"] = torch.tensor(1.0)
    return found


@pytest.mark.parametrize("convolutions", [False, True])
def test_kohyas_names_and_scales(taught: Taught, kind: str, convolutions: bool) -> None:
    tensors = kohya_file(taught, kind, convolutions=convolutions)
    half = {name: each.half().contiguous() for name, each in tensors.items()}
    path = taught.folder / "Ohwx Dog (v2).safetensors"
    save_file(half, path)
    found = brought(taught, path)
    assert (found.concept, found.holds) == ("ohwx-dog-v2", "a LoRA")
    pipeline = taught.reloaded()
    pipeline.load_lora_weights(path)
    expected = plain(pipeline, PROMPT)
    assert_alike(drawn(taught, "a photo of a dog<ohwx-dog-v2>"), expected)
    assert_changed(taught, expected, PROMPT)


EMBEDDINGS = {
    "kohya": lambda vectors: {"emb_params": vectors},
    "OneTrainer": lambda vectors: {"emp_params": vectors, "emp_params_out": vectors + 1},
    "A1111": lambda vectors: {"string_to_param.*": vectors},
    "diffusers": lambda vectors: {"<rex>": vectors},
    "one vector": lambda vectors: {"<rex>": vectors[0].clone()},
}


@pytest.mark.parametrize("kind", ["SD"])
@pytest.mark.parametrize("writer", EMBEDDINGS)
def test_embeddings_of_other_tools(taught: Taught, writer: str) -> None:
    vectors = taught.vectors(3)["token.0"]
    written = EMBEDDINGS[writer](vectors)
    path = taught.folder / "shiny.safetensors"
    save_file(written, path)
    found = brought(taught, path)
    assert found.holds == "an embedding"
    assert len(found.warnings) == (writer == "OneTrainer")
    pipeline = taught.reloaded()
    first = next(iter(written.values()))
    pipeline.load_textual_inversion({"<it>": first}, token="<it>")
    expected = plain(pipeline, "a photo of a <it> dog")
    assert_alike(drawn(taught, "a photo of a <shiny> dog"), expected)
    assert_changed(taught, expected, PROMPT)


@pytest.mark.parametrize("kind", ["SDXL"])
@pytest.mark.parametrize(
    "names", [("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")], ids=str
)
def test_embeddings_of_two_text_encoders(taught: Taught, names: tuple[str, str]) -> None:
    vectors = list(taught.vectors(2).values())
    save_file(dict(zip(names, vectors, strict=True)), taught.folder / "shiny.safetensors")
    save_file({"clip_l": vectors[0], "clip_g": vectors[1]}, taught.folder / "expected.safetensors")
    brought(taught, taught.folder / "shiny.safetensors")
    pipeline = taught.reloaded()
    add_embedding(pipeline, taught.folder / "expected.safetensors", "<it>")
    assert_alike(
        drawn(taught, "a photo of a <shiny> dog"), plain(pipeline, "a photo of a <it> dog")
    )


def test_an_embedding_within_a_lora(taught: Taught, kind: str) -> None:
    vectors = list(taught.vectors(2).values())
    keys = ("clip_l", "clip_g") if kind == "SDXL" else ("string_to_param.*",)
    bundled = {f"bundle_emb.ohwx.{key}": own for key, own in zip(keys, vectors, strict=True)}
    tensors = kohya_file(taught, kind, convolutions=False)
    save_file(tensors | bundled, taught.folder / "both.safetensors")
    save_file(tensors, taught.folder / "lora.safetensors")
    found = brought(taught, taught.folder / "both.safetensors", trigger="ohwx dog")
    assert found.holds == "a LoRA and an embedding"
    alone = ("clip_l", "clip_g") if kind == "SDXL" else ("emb_params",)
    save_file(dict(zip(alone, vectors, strict=True)), taught.folder / "word.safetensors")
    pipeline = taught.reloaded()
    add_embedding(pipeline, taught.folder / "word.safetensors", "<it>")
    pipeline.load_lora_weights(taught.folder / "lora.safetensors")
    assert_alike(drawn(taught, "a photo of a <both>"), plain(pipeline, "a photo of a <it> dog"))


@pytest.mark.parametrize("kind", ["SD"])
def test_lycoris_factors_are_multiplied_out(taught: Taught) -> None:
    """With kohya's prefix, and alpha / rank beside them; cores of kernels too."""
    weights = taught.base.backbone.weights()
    matrix, kernel = (
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
        "mid_block.resnets.0.conv1",
    )
    out, into = weights[f"{matrix}.weight"].shape
    wide, narrow = weights[f"{kernel}.weight"].shape[:2]
    unet = "lora_unet_"
    first, second = unet + matrix.replace(".", "_"), unet + kernel.replace(".", "_")

    def random(*shape: int) -> Tensor:
        return taught.random(*shape, scale=0.5)

    a, b, c, d = random(out, 3), random(3, into), random(out, 3), random(3, into)
    up, mid, down = random(wide, 2, 1, 1), random(2, 2, 3, 3), random(2, narrow, 1, 1)
    norm = random(*weights["mid_block.resnets.0.norm1.weight"].shape)
    tensors = {
        f"{first}.hada_w1_a": a,
        f"{first}.hada_w1_b": b,
        f"{first}.hada_w2_a": c,
        f"{first}.hada_w2_b": d,
        f"{first}.alpha": torch.tensor(1.5),
        f"{second}.lora_up.weight": up,
        f"{second}.lora_mid.weight": mid,
        f"{second}.lora_down.weight": down,
        f"{second}.alpha": torch.tensor(1.0),
        f"{unet}mid_block_resnets_0_norm1.w_norm": norm,
        f"{unet}mid_block_resnets_0_norm1.b_norm": norm.clone(),
        f"{unet}conv_out.diff_b": random(4),
    }
    tensors["lora_unet_mid_block_attentions_0_proj_in.lokr_w1"] = random(2, 2)
    core = weights["mid_block.attentions.0.proj_in.weight"].shape
    tensors["lora_unet_mid_block_attentions_0_proj_in.lokr_w2"] = random(
        core[0] // 2, core[1] // 2, *core[2:]
    )
    save_file(tensors, taught.folder / "mixed.safetensors")
    brought(taught, taught.folder / "mixed.safetensors")
    pipeline = taught.reloaded()
    parameters = dict(pipeline.unet.named_parameters())
    probe = torch.einsum("orkl,rqxy,qikl->oixy", up, mid, down)
    changes = {
        f"{matrix}.weight": 1.5 / 3 * (a @ b) * (c @ d),
        f"{kernel}.weight": 1.0 / 2 * probe,
        "mid_block.resnets.0.norm1.weight": norm,
        "mid_block.resnets.0.norm1.bias": norm,
        "conv_out.bias": tensors["lora_unet_conv_out.diff_b"],
        "mid_block.attentions.0.proj_in.weight": torch.kron(
            tensors["lora_unet_mid_block_attentions_0_proj_in.lokr_w1"].reshape(
                2, 2, *(1,) * (len(core) - 2)
            ),
            tensors["lora_unet_mid_block_attentions_0_proj_in.lokr_w2"],
        ),
    }
    for name, change in changes.items():
        parameters[name].data += change
    expected = plain(pipeline, PROMPT)
    assert_alike(drawn(taught, "a photo of a dog<mixed>"), expected)
    assert_changed(taught, expected, PROMPT)


# --- in true shapes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [pytest.param(e, marks=pytest.mark.long if "XL" in e else ()) for e in UNETS]
)
def test_all_layers_are_found_by_all_their_names(name: str) -> None:
    with torch.device("meta"):
        backbone = backbone_of(make_full_size(name))
    layers, weights = _Layers.of(backbone), backbone.weights()
    one = torch.ones(1, 1)
    matrices = {each: (one, one) for each, weight in weights.items() if weight.ndim > 1}
    change = WeightDelta({}, matrices)
    expected = {each.removesuffix(".weight") for each in matrices}
    unet = unet_names(backbone.parameters("denoiser").keys())
    originals = [unet[each].removeprefix("model.") for each in matrices if each in unet]
    for tensors in (
        kohya_tensors(change, len(backbone.text_encoders)).keys(),
        diffusers_tensors(change).keys(),
        [each.replace(".weight", f".lora_{end}.weight") for each in originals for end in "AB"],
    ):
        shapes = {each: HeaderTensor("F16", (1, 1)) for each in tensors}
        found = {layers.find(layer, {}) for layer in recognise("x", Header({}, shapes, 8)).layers}
        texts = {each for each in expected if each.startswith("text_encoder.")}
        assert found in (expected, expected - texts)


# --- hostile files --------------------------------------------------------------------------------

LAYER = "lora_unet_mid_block_resnets_0_conv1"
KERNEL = (32, 32, 3, 3)


def zeros(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {f"{LAYER}.{name}": torch.zeros(shape) for name, shape in shapes.items()}


LARGE = {
    "a LoRA": {"lora_up.weight": (32, 5000), "lora_down.weight": (5000, 32, 3, 3)},
    "a thin one": {"lora_up.weight": (90_000, 1), "lora_down.weight": (1, 90_000)},
    "a core": {
        "lora_up.weight": (32, 1),
        "lora_mid.weight": (1, 1, 300, 300),
        "lora_down.weight": (1, 90_000),
    },
    "a Hadamard product": {
        "hada_w1_a": (90_000, 1),
        "hada_w1_b": (1, 90_000),
        "hada_w2_a": (90_000, 1),
        "hada_w2_b": (1, 90_000),
    },
    "a core of one": {
        "hada_t1": (1, 9000, 3, 3),
        "hada_w1_a": (1, 32),
        "hada_w1_b": (9000, 32),
        "hada_t2": (1, 1, 3, 3),
        "hada_w2_a": (1, 32),
        "hada_w2_b": (1, 32),
    },
    "a Kronecker product": {"lokr_w1": (3000, 3000), "lokr_w2": (3000, 3000)},
    "ranks of none": {"lokr_w1": (0, 4), "lokr_w2": (3, 3)},
    "a difference": {"diff": (64, 32, 3, 3)},
    "two numbers as alpha": {
        "alpha": (2,),
        "lora_up.weight": (32, 4),
        "lora_down.weight": (4, 32, 3, 3),
    },
    "magnitudes of inputs": {
        "dora_scale": (1, 31),
        "lora_up.weight": (32, 4),
        "lora_down.weight": (4, 32, 3, 3),
    },
}


@pytest.mark.parametrize("kind", ["SD"])
@pytest.mark.parametrize("case", LARGE)
def test_what_fits_no_layer_is_refused_before_it_is_multiplied_out(
    taught: Taught, case: str
) -> None:
    assert taught.base.backbone.weights()["mid_block.resnets.0.conv1.weight"].shape == KERNEL
    path = taught.folder / "large.safetensors"
    save_file(zeros(**LARGE[case]), path)
    before = {name: each.clone() for name, each in taught.base.backbone.weights().items()}
    brought(taught, path)
    with pytest.raises(InvalidInput, match=r"large@1, .* does not fit"):
        drawn(taught, "a <large>")
    assert all(each.equal(before[n]) for n, each in taught.base.backbone.weights().items())


UNEQUAL = {
    "a LoRA": {"lora_up.weight": (32, 8), "lora_down.weight": (4, 32, 3, 3)},
    "a row": {"hada_w1_a": (3,), "hada_w1_b": (3,), "hada_w2_a": (3,), "hada_w2_b": (3,)},
    "a Hadamard product": {
        "hada_w1_a": (32, 2),
        "hada_w1_b": (3, 288),
        "hada_w2_a": (32, 2),
        "hada_w2_b": (2, 288),
    },
}


@pytest.mark.parametrize("case", UNEQUAL)
def test_factors_of_different_ranks_are_refused(taught: Taught, case: str) -> None:
    path = taught.folder / "unequal.safetensors"
    save_file(zeros(**UNEQUAL[case]), path)
    with pytest.raises(InvalidInput, match="ranks that differ"):
        brought(taught, path)


def test_trigger_words_have_room_for_no_embedding(taught: Taught) -> None:
    path = taught.folder / "man.safetensors"
    save_file(zeros(**{"lora_up.weight": (32, 4), "lora_down.weight": (4, 32, 3, 3)}), path)
    with pytest.raises(InvalidInput, match="no words of its own") as caught:
        brought(taught, path, trigger="{} man")
    assert caught.value.hint == "--trigger man"


def test_trigger_words_and_the_embedding_s_are_not_too_long(taught: Taught) -> None:
    path = write_embedding(taught.folder / "long.safetensors", 1)
    with pytest.raises(InvalidInput, match="has 1,002 characters, more than 1,000"):
        brought(taught, path, trigger="x" * 999)

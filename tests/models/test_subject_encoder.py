"""The subject encoder: S-E-A stands where it should, and changes nothing before it has learned."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conceptry.models.loading import LoadedBase
from conceptry.models.subject_encoder import (
    SubjectAttention,
    SubjectEncoder,
    SubjectTokens,
    transformer_blocks,
)
from conceptry.models.subject_encoder_file import (
    FILE,
    SubjectEncoderMetadata,
    load_subject_encoder,
    metadata_for,
    write_subject_encoder,
)
from conceptry.models.vision import VisionEncoder, hidden_layers, load_vision
from conceptry.registry.errors import InvalidInput, InvalidWeights, NotFinite, NotFound
from full_size import make_full_unet
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_base import make_tiny_base, make_tiny_sdxl
from tiny_encoder import let_it_act, make_tiny_encoder, make_tiny_vision, write_tiny_vision
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel


def make_unet(make: Callable[[], Any], dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(0)
    return make().unet.to(dtype).requires_grad_(False)


def inputs(unet: Any, rows: int = 2) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(4)

    def random(*shape: int) -> Tensor:
        return torch.randn(rows, *shape, generator=generator, dtype=unet.dtype)

    more = {"text_embeds": random(20), "time_ids": random(6)}
    return {
        "sample": random(4, 8, 8),
        "timestep": 7,
        "encoder_hidden_states": random(9, unet.config.cross_attention_dim),
        "added_cond_kwargs": more if unet.config.addition_embed_type else None,
    }


def with_sublayers(unet: Any, attention: SubjectAttention, subject: SubjectTokens) -> None:
    """Replace each block's forward by what diffusers computes, written out, with S-E-A in it."""
    for name, block in transformer_blocks(unet).items():
        layer = attention.layers[name.replace(".", "_")]

        def forward(
            states: Tensor,
            *,
            encoder_hidden_states: Tensor,
            block: Any = block,
            layer: Any = layer,
            **_: object,
        ) -> Tensor:
            states = states + block.attn1(block.norm1(states))
            states = states + subject.strength * layer(states, subject.tokens)
            states = states + block.attn2(block.norm2(states), encoder_hidden_states)
            return states + block.ff(block.norm3(states))

        vars(block)["forward"] = forward


BASES = pytest.mark.parametrize("make", [make_tiny_base, make_tiny_sdxl], ids=["sd", "sdxl"])


@BASES
def test_what_the_hooks_compute_is_the_sublayer_in_its_place(make: Callable[[], Any]) -> None:
    unet = make_unet(make)
    encoder = let_it_act(make_tiny_encoder(unet)).double()
    subject = SubjectTokens(torch.randn(1, 5, encoder.attention.width).double(), 0.7)
    plain = unet(**inputs(unet)).sample
    with encoder.attention.insert(unet, subject):
        found = unet(**inputs(unet)).sample
    assert (found - plain).abs().max() > 0.01
    assert unet(**inputs(unet)).sample.equal(plain)
    with_sublayers(unet, encoder.attention, subject)
    torch.testing.assert_close(found, unet(**inputs(unet)).sample, rtol=1e-12, atol=1e-12)


@BASES
def test_before_it_has_learned_and_at_strength_0_nothing_changes(make: Callable[[], Any]) -> None:
    unet = make_unet(make)
    encoder = make_tiny_encoder(unet).double()
    subject = SubjectTokens(torch.randn(1, 5, encoder.attention.width).double(), 1.0)
    plain = unet(**inputs(unet)).sample
    with encoder.attention.insert(unet, subject):
        assert unet(**inputs(unet)).sample.equal(plain)
        let_it_act(encoder)
        assert not unet(**inputs(unet)).sample.equal(plain)
        subject.strength = 0.0
        assert unet(**inputs(unet)).sample.equal(plain)


@BASES
def test_gradients_are_the_same_with_checkpointing(make: Callable[[], Any]) -> None:
    unet = make_unet(make).train()
    encoder = let_it_act(make_tiny_encoder(unet)).double()
    pixels = torch.rand(2, 3, 16, 16)

    def gradients() -> dict[str, Tensor]:
        encoder.zero_grad()
        with encoder.attention.insert(unet, SubjectTokens(encoder(pixels), 1.0)):
            unet(**inputs(unet)).sample.square().mean().backward()
        learned = encoder.named_parameters()
        return {name: each.grad.clone() for name, each in learned if each.grad is not None}

    whole = gradients()
    assert whole.keys() == encoder.learned_state().keys()
    assert all(value.any() for value in whole.values())
    unet.enable_gradient_checkpointing()
    again = gradients()
    torch.testing.assert_close(again, whole, rtol=1e-12, atol=1e-14)
    assert all(each.grad is None for each in unet.parameters())


def test_tokens_may_be_those_of_each_row() -> None:
    unet = make_unet(make_tiny_base)
    encoder = let_it_act(make_tiny_encoder(unet)).double()
    tokens = torch.randn(2, 5, encoder.attention.width).double()
    given = inputs(unet)
    with encoder.attention.insert(unet, SubjectTokens(tokens, 1.0)):
        both = unet(**given).sample
        with pytest.raises(ValueError, match="for 2 rows: expected 1 or 3"):
            unet(**inputs(unet, rows=3))
    for row in range(2):
        with encoder.attention.insert(unet, SubjectTokens(tokens[row : row + 1], 1.0)):
            torch.testing.assert_close(unet(**given).sample[row], both[row])


def test_two_subjects_each_add_theirs() -> None:
    unet = make_unet(make_tiny_base)
    encoder = let_it_act(make_tiny_encoder(unet)).double()
    some, other = torch.randn(2, 1, 5, encoder.attention.width).double()
    plain = unet(**inputs(unet)).sample
    with encoder.attention.insert(unet, SubjectTokens(some, 1.0)):
        alone = unet(**inputs(unet)).sample
        with encoder.attention.insert(unet, SubjectTokens(other, 1.0)):
            assert not unet(**inputs(unet)).sample.equal(alone)
        assert unet(**inputs(unet)).sample.equal(alone)
    assert unet(**inputs(unet)).sample.equal(plain)


@pytest.mark.long
def test_what_a_reference_shows_can_be_learned() -> None:
    """Two references, each with a prediction of its own, from the same noise and text."""
    unet = make_unet(make_tiny_base, torch.float32)
    encoder = make_tiny_encoder(unet)
    plain, ramp = torch.full((3, 16, 16), -0.8), torch.linspace(-1, 1, 768).view(3, 16, 16)
    pixels = torch.stack([plain, ramp])
    twice = {
        name: value.expand(2, *value.shape[1:]) if isinstance(value, Tensor) else value
        for name, value in inputs(unet, rows=1).items()
    }
    with torch.no_grad():
        target = unet(**twice).sample + 0.3 * torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1)

    def error(references: Tensor) -> Tensor:
        with encoder.attention.insert(unet, SubjectTokens(encoder(references), 1.0)):
            return (unet(**twice).sample - target).square().mean()

    learning = [each for each in encoder.parameters() if each.requires_grad]
    optimizer = torch.optim.Adam(learning, lr=1e-2)
    first = error(pixels).item()
    for _ in range(40):
        optimizer.zero_grad()
        error(pixels).backward()
        optimizer.step()
    assert error(pixels).item() < 0.3 * first
    assert error(pixels.flip(0)).item() > first


def test_layers_are_those_of_elite_or_in_proportion() -> None:
    assert hidden_layers(32) == (25, 4, 8, 12, 16)
    assert hidden_layers(24) == (24, 4, 8, 12, 16)
    assert hidden_layers(12) == (12, 2, 4, 6, 8)
    assert hidden_layers(4) == (4, 1, 2, 3)


def test_features_are_the_patches_in_their_places() -> None:
    network = make_tiny_vision()
    encoder = VisionEncoder(network, (0.5,) * 3, (0.25,) * 3)
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    found = encoder(pixels)
    states = network(pixels * 2, output_hidden_states=True).hidden_states
    assert states is not None
    assert found.shape == (1, 3 * 16, 4, 4)
    assert encoder.layers == (2, 0, 1)
    torch.testing.assert_close(found[0, :16, 1, 2], states[2][0, 1 + 4 + 2])
    torch.testing.assert_close(found[0, 16:32, 3, 0], states[0][0, 1 + 12])


def test_a_picture_that_is_not_square_gets_white_edges() -> None:
    pixels = VisionEncoder(make_tiny_vision()).prepare([Image.new("RGB", (32, 16))])
    assert pixels.shape == (1, 3, 16, 16)
    assert pixels[..., 0, :].eq(1).all()
    assert pixels[..., 8, :].eq(-1).all()


# --- picture encoders -----------------------------------------------------------------------------


def test_a_picture_encoder_in_a_folder_is_the_one_that_was_saved(tmp_path: Path) -> None:
    loaded = load_vision(str(write_tiny_vision(tmp_path)))
    ours = make_tiny_vision().state_dict()
    assert all(
        value.equal(ours[name]) for name, value in loaded.encoder.network.state_dict().items()
    )
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0, 0, 0], "image_std": [1, 1, 1]})
    )
    again = load_vision(str(tmp_path))
    assert again.sha256 == loaded.sha256
    assert not again.encoder.get_buffer("mean").any()


def test_the_one_that_ships_reads_small_pictures() -> None:
    encoder = load_vision("miniature").encoder
    assert encoder(encoder.prepare([Image.new("RGB", (128, 128))])).shape == (1, 512, 8, 8)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"num_hidden_layers": 10**9}, "other sizes"),
        ({"hidden_size": 10**9}, "other sizes"),
        ({"image_size": 64}, "other sizes"),
        ({"patch_size": 0}, "other sizes"),
        ({"image_size": "large"}, "other sizes"),
        ({"model_type": "bert"}, "no CLIP"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_sizes_are_checked_before_anything_is_made(
    tmp_path: Path, change: dict[str, object], why: str
) -> None:
    config = write_tiny_vision(tmp_path) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(InvalidInput, match=why):
        load_vision(str(tmp_path))


def test_pickles_and_damaged_files_are_refused(tmp_path: Path) -> None:
    weights = write_tiny_vision(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(InvalidWeights, match="not sound safetensors"):
        load_vision(str(tmp_path))
    weights.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(InvalidWeights, match="no weights as safetensors"):
        load_vision(str(tmp_path))
    with pytest.raises(NotFound, match="no picture encoder"):
        load_vision("nowhere")


# --- files ----------------------------------------------------------------------------------------


@pytest.fixture
def vision(tmp_path: Path) -> str:
    """The folder of a picture encoder."""
    return str(write_tiny_vision(tmp_path / "vision"))


@pytest.fixture
def written(base: LoadedBase, vision: str, tmp_path: Path) -> Path:
    """The file of a subject encoder for the tiny base model."""
    encoder = let_it_act(make_tiny_encoder(base.backbone.denoiser))
    path = tmp_path / FILE
    metadata = metadata_for(base, load_vision(vision))
    assert metadata.vision == ""
    write_subject_encoder(path, encoder.learned_state(), metadata)
    return path


@pytest.mark.parametrize("by", ["file", "folder"])
def test_what_was_written_is_read(base: LoadedBase, vision: str, written: Path, by: str) -> None:
    source = str(written if by == "file" else written.parent)
    loaded = load_subject_encoder(base, source, vision=vision)
    ours = let_it_act(make_tiny_encoder(base.backbone.denoiser)).learned_state()
    found = loaded.encoder.learned_state()
    assert found.keys() == ours.keys()
    assert all(value.equal(ours[name].half().float()) for name, value in found.items())
    assert not any(each.requires_grad for each in loaded.encoder.parameters())
    tokens = loaded.encoder(loaded.encoder.prepare([Image.new("RGB", (16, 16))]))
    assert tokens.shape == (1, 16, 32)
    assert tokens.isfinite().all()


def test_the_one_beside_a_base_model_is_found(base: LoadedBase, vision: str, written: Path) -> None:
    beside = Path(base.base.source) / FILE
    with pytest.raises(NotFound, match=r"has no subject encoder: .* has to be 0"):
        load_subject_encoder(base)
    written.rename(beside)
    try:
        assert load_subject_encoder(base, vision=vision).sha256
    finally:
        beside.unlink()


def test_another_base_model_or_picture_encoder_is_refused(
    base: LoadedBase, vision: str, written: Path, tmp_path: Path
) -> None:
    other = replace(base, sha256="0" * 64)
    with pytest.raises(InvalidInput, match="for another base model than"):
        load_subject_encoder(other, str(written), vision=vision)
    with pytest.raises(InvalidInput, match="picture encoder in a folder: name that"):
        load_subject_encoder(base, str(written))
    with pytest.raises(InvalidInput, match="with another picture encoder than miniature"):
        load_subject_encoder(base, str(written), vision="miniature")
    with pytest.raises(NotFound, match="there is no"):
        load_subject_encoder(base, str(tmp_path / "nowhere"))


def test_a_name_in_a_file_is_no_path(
    base: LoadedBase, vision: str, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where a folder of that name exists."""
    monkeypatch.chdir(written.parent)
    write_tiny_vision(Path("some/one"))
    metadata = replace(metadata_for(base, load_vision(vision)), vision="some/one")
    write_subject_encoder(written, load_file(written), metadata)
    with pytest.raises(NotFound, match="the picture encoder some/one is not on this machine"):
        load_subject_encoder(replace(base, offline=True), str(written))


METADATA = SubjectEncoderMetadata(
    base="tiny", base_sha256="0" * 64, vision="", vision_sha256="0" * 64
)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"base_sha256": "x"}, "base_sha256"),
        ({"vision": "/etc/passwd"}, "vision"),
        ({"vision": "a/../../b"}, "vision"),
        ({"more": 1}, "more"),
        ({"base": "a\nb"}, "base"),
    ],
    ids=str,
)
def test_odd_metadata_is_refused(
    base: LoadedBase, tmp_path: Path, change: dict[str, object], why: str
) -> None:
    path = tmp_path / FILE
    text = json.dumps(asdict(METADATA) | change)
    save_file({"a": torch.zeros(1)}, path, {"conceptry_subject_encoder": text})
    with pytest.raises(InvalidWeights, match=f"no subject encoder that can be used: .*{why}"):
        load_subject_encoder(base, str(path))


def test_odd_tensors_are_refused(base: LoadedBase, vision: str, written: Path) -> None:
    metadata = metadata_for(base, load_vision(vision))
    state = load_file(written)
    name = "mapper.reduce.weight"
    for changed, why in (
        (state | {"vision.a": torch.zeros(1)}, "has a tensor 'vision.a'"),
        ({key: value for key, value in state.items() if key != name}, f"lacks a tensor '{name}'"),
        (state | {name: torch.zeros(3)}, "another shape"),
        (state | {name: state[name] * torch.nan}, "not finite"),
    ):
        save_file(changed, written, {"conceptry_subject_encoder": json.dumps(asdict(metadata))})
        with pytest.raises(InvalidWeights, match=why):
            load_subject_encoder(base, str(written), vision=vision)
    with pytest.raises(NotFinite):
        write_subject_encoder(written, state | {name: torch.full((2,), 1e6)}, metadata)
    save_file(state, written)
    with pytest.raises(InvalidWeights, match="does not say what it was trained with"):
        load_subject_encoder(base, str(written), vision=vision)
    written.write_bytes(written.read_bytes()[:-3])
    with pytest.raises(InvalidWeights, match="not sound safetensors"):
        load_subject_encoder(base, str(written), vision=vision)


# --- full size ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SD 1.5", "SD 2.1", "SDXL"])
def test_full_size_models_have_a_sublayer_in_each_block(name: str) -> None:
    """With CLIP ViT-L/14, as shapes alone."""
    with torch.device("meta"):
        unet: Any = make_full_unet(name)
        config = CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=224,
            patch_size=14,
        )
        encoder = SubjectEncoder.for_denoiser(VisionEncoder(CLIPVisionModel(config)), unet)
        encoder.attention.copy_cross_attention(unet)
        width = unet.config.cross_attention_dim
        tokens = encoder(torch.zeros(1, 3, 224, 224))
        assert tokens.shape == (1, 256, width)
        more = {"text_embeds": torch.zeros(2, 1280), "time_ids": torch.zeros(2, 6)}
        with encoder.attention.insert(unet, SubjectTokens(tokens, 0.2)):
            found = unet(
                torch.zeros(2, 4, 32, 32),
                torch.zeros(2),
                torch.zeros(2, 77, width),
                added_cond_kwargs=more if name == "SDXL" else None,
            ).sample
    assert found.shape == (2, 4, 32, 32)
    assert len(encoder.attention.layers) == (70 if name == "SDXL" else 16)

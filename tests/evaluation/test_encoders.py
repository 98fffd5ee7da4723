"""CLIP and DINO against transformers' own computation, from folders that are written here."""

import json
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conceptry.evaluation.encoder_names import SHIPPED, check_there, encoder_names_for
from conceptry.evaluation.encoders import ClipEncoder, DinoEncoder, load_encoders
from conceptry.models.bases import find_base
from conceptry.models.miniature.tokenizer import make_tokenizer
from conceptry.registry.errors import InvalidInput, NotFound
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

SMALL: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
DINO_STATISTICS: dict[str, Any] = {
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def pictures() -> list[Image.Image]:
    wide = Image.radial_gradient("L").resize((300, 200)).convert("RGB")
    return [wide, wide.rotate(90, expand=True), Image.new("RGB", (224, 224), "red")]


def write_clip(folder: Path, *, full: bool = False) -> CLIPModel:
    """ViT-B/32 in its true shape, or small."""
    tokenizer: Any = make_tokenizer()
    ids: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "vocab_size": len(tokenizer),
    }
    text = CLIPTextConfig(**ids) if full else CLIPTextConfig(**SMALL, **ids, num_attention_heads=2)
    vision = CLIPVisionConfig() if full else CLIPVisionConfig(**SMALL, num_attention_heads=2)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict())
    model = CLIPModel(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    return model


def write_dino(folder: Path, kind: str, *, full: bool = False) -> Any:
    """ViT-S/16, or DINOv2, in its true shape or small."""
    sizes: dict[str, Any] = {
        "num_attention_heads": 6,
        "hidden_size": 384,
        "intermediate_size": 1536,
    }
    sizes = sizes if full else {**SMALL, "num_attention_heads": 2}
    if kind == "dino":
        model: Any = ViTModel(ViTConfig(**sizes, patch_size=16), add_pooling_layer=False)
    else:
        del sizes["intermediate_size"]
        model = Dinov2Model(Dinov2Config(**sizes, patch_size=14, image_size=518))
    model.eval().save_pretrained(folder)
    ViTImageProcessor(**DINO_STATISTICS).save_pretrained(folder)
    return model


SIZES = [False, pytest.param(True, marks=pytest.mark.slow)]


@pytest.mark.parametrize("full", SIZES, ids=["small", "full"])
def test_clip_is_transformers_own(tmp_path: Path, full: bool) -> None:
    model = write_clip(tmp_path, full=full)
    encoder = ClipEncoder.load(str(tmp_path), offline=True)
    texts = ["a photo of a dog", "a red cat on the beach"]
    tokens: Any = make_tokenizer()(texts, padding="max_length", return_tensors="pt")
    pixels = CLIPImageProcessor()(images=pictures(), return_tensors="pt").pixel_values
    with torch.no_grad():
        output = model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=pixels
        )
    torch.testing.assert_close(encoder.embed(pictures()), output.image_embeds)
    torch.testing.assert_close(encoder.embed_texts(texts), output.text_embeds)


@pytest.mark.parametrize("full", SIZES, ids=["small", "full"])
@pytest.mark.parametrize("kind", ["dino", "dinov2"])
def test_dino_is_the_class_token(tmp_path: Path, kind: str, full: bool) -> None:
    model = write_dino(tmp_path, kind, full=full)
    encoder = DinoEncoder.load(str(tmp_path), offline=True)
    processor = ViTImageProcessor(**DINO_STATISTICS)
    pixels = processor(images=pictures(), return_tensors="pt").pixel_values
    with torch.no_grad():
        tokens = model(pixel_values=pixels).last_hidden_state[:, 0]
    expected = torch.nn.functional.normalize(tokens, dim=-1)
    torch.testing.assert_close(encoder.embed(pictures()), expected)


@pytest.mark.parametrize("kind", ["clip", "dino"])
def test_weights_of_another_revision_are_found_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """As transformers leaves them where the main branch has no safetensors."""
    cache = tmp_path / "models--org--name"
    main, other = cache / "snapshots/aa", cache / "snapshots/bb"
    model = write_clip(main) if kind == "clip" else write_dino(main, kind)
    other.mkdir()
    (main / "model.safetensors").rename(other / "model.safetensors")
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("aa")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    encoder = (ClipEncoder if kind == "clip" else DinoEncoder).load("org/name", offline=True)
    state = encoder.model.state_dict()
    assert all(state[name].equal(value) for name, value in model.state_dict().items())


def test_the_hash_is_of_the_weights(tmp_path: Path) -> None:
    write_clip(tmp_path / "a").save_pretrained(tmp_path / "b")
    write_clip(tmp_path / "c")
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (tmp_path / "b" / name).write_bytes((tmp_path / "a" / name).read_bytes())
    hashes = [ClipEncoder.load(str(tmp_path / name)).sha256 for name in "abc"]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_pooler_that_is_not_there_is_not_invented(tmp_path: Path) -> None:
    """As in DINO's own files; the invented one would be another at each load, and so the hash."""
    write_dino(tmp_path, "dino")
    loaded = [DinoEncoder.load(str(tmp_path)) for _ in range(2)]
    assert loaded[0].sha256 == loaded[1].sha256
    assert not [name for name in loaded[0].model.state_dict() if "pooler" in name]


@pytest.mark.parametrize("kind", ["clip", "dino"])
def test_missing_tensors_are_told(tmp_path: Path, kind: str) -> None:
    (write_clip if kind == "clip" else partial(write_dino, kind=kind))(tmp_path)
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    gone = sorted(name for name in tensors if "layers.1." in name or "layer.1." in name)
    assert gone
    save_file({name: x for name, x in tensors.items() if name not in gone}, weights)
    with pytest.raises(NotFound, match=rf"lacks tensors: .* \({len(gone)} in all"):
        (ClipEncoder if kind == "clip" else DinoEncoder).load(str(tmp_path))


@pytest.mark.parametrize("named", ["config", "preprocessor_config", "tokenizer_config"])
def test_what_a_folder_brings_along_is_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("it asks"))
    write_clip(tmp_path)
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'was-run')!r}, 'w')")
    path = tmp_path / f"{named}.json"
    told = json.loads(path.read_text())
    told |= {"model_type": "own"} if named == "config" else {}
    kinds = ("AutoConfig", "AutoModel", "AutoImageProcessor", "AutoTokenizer")
    told["auto_map"] = dict.fromkeys(kinds, "own.Own")
    told["auto_map"]["AutoTokenizer"] = ["own.Own", "own.Own"]
    for class_of in ("image_processor_type", "tokenizer_class"):
        if class_of in told:
            told[class_of] = "Own"
    path.write_text(json.dumps(told))
    with suppress(InvalidInput, NotFound):  # or it is what transformers knows
        ClipEncoder.load(str(tmp_path))
    assert not (tmp_path / "was-run").exists()


def test_vectors_do_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    encoder = ClipEncoder.load(SHIPPED)
    many = pictures() * 14
    torch.testing.assert_close(encoder.embed(many)[:3], encoder.embed(pictures()))


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="is not on this machine") as caught:
        DinoEncoder.load("facebook/dino-vits16", offline=True)
    assert "--dino none" in (caught.value.hint or "")
    write_dino(tmp_path, "dino")
    with pytest.raises(InvalidInput, match="not a CLIP"):
        ClipEncoder.load(str(tmp_path))


def test_the_miniature_is_scored_by_what_ships() -> None:
    names = encoder_names_for(find_base("miniature"))
    encoders = load_encoders(names)
    assert encoders.judge is not None
    assert encoders.dino is None
    assert encoders.hashes() == names.known_hashes()


def test_a_clip_without_its_tokenizer_is_refused(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip")
    for each in ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"):
        (tmp_path / "clip" / each).unlink(missing_ok=True)
    with pytest.raises(InvalidInput, match="has no tokenizer"):
        ClipEncoder.load(str(tmp_path / "clip"))


def test_how_pictures_and_texts_are_prepared_counts_too(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip")
    hashes = {ClipEncoder.load(str(tmp_path / "clip")).sha256}
    assert ClipEncoder.load(str(tmp_path / "clip")).sha256 in hashes
    CLIPImageProcessor(do_center_crop=False).save_pretrained(tmp_path / "clip")
    hashes.add(ClipEncoder.load(str(tmp_path / "clip")).sha256)
    assert len(hashes) == 2


@pytest.mark.parametrize("kind", ["clip", "resnet"])
def test_what_is_no_dino_is_refused_before_anything_is_drawn(tmp_path: Path, kind: str) -> None:
    if kind == "clip":
        write_clip(tmp_path / "other")
    else:
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
        ResNetModel(config).save_pretrained(tmp_path / "other")
        ViTImageProcessor().save_pretrained(tmp_path / "other")
    with pytest.raises(InvalidInput, match="not a DINO"):
        DinoEncoder.load(str(tmp_path / "other"))


def test_a_dino_that_is_damaged_is_refused(tmp_path: Path) -> None:
    model = write_dino(tmp_path / "dino", "dino")
    model.layernorm.weight.data[0] = float("nan")
    model.save_pretrained(tmp_path / "dino")
    with pytest.raises(InvalidInput, match="dino gives numbers that are not finite"):
        DinoEncoder.load(str(tmp_path / "dino"))


def test_names_of_no_encoder_are_refused() -> None:
    base = find_base("sd15")
    with pytest.raises(InvalidInput, match="a CLIP scores all pictures"):
        encoder_names_for(base, clip="none")
    with pytest.raises(InvalidInput, match="no DINO ships"):
        encoder_names_for(base, dino="miniature")
    with pytest.raises(NotFound, match="there is no encoder nosuch"):
        check_there(encoder_names_for(base, clip="nosuch"))
    check_there(encoder_names_for(base, clip="some/clip", dino="none"))

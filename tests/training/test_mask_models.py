"""Models of transformers that find subjects: tiny ones, of random weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conceptry.models.bases import SHIPPED
from conceptry.models.loading import LoadedBase
from conceptry.registry.errors import InvalidInput, InvalidWeights
from conceptry.training import mask_models
from conceptry.training.mask_models import ByLabel, load_mask_model, trimap_of
from drawing import draw
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    CLIPTokenizer,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    ViTImageProcessor,
)

PHOTO = draw(1, (96, 64))


def no_base() -> LoadedBase:
    raise AssertionError("no base model is needed")


@pytest.fixture(scope="module")
def segformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("segformer")
    torch.manual_seed(0)
    config = SegformerConfig(
        hidden_sizes=[4, 4, 8, 8],
        num_attention_heads=[1, 1, 2, 2],
        depths=[1, 1, 1, 1],
        decoder_hidden_size=8,
        id2label={0: "wall", 1: "dog, domestic dog", 2: "hot dog stand"},
        label2id={"wall": 0, "dog, domestic dog": 1, "hot dog stand": 2},
    )
    SegformerForSemanticSegmentation(config).save_pretrained(folder)
    SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clipseg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clipseg")
    tokenizer = CLIPTokenizer.from_pretrained(SHIPPED / "tokenizer")
    torch.manual_seed(0)
    part = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    part |= {"intermediate_size": 16}
    config = CLIPSegConfig(
        text_config=part | {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id},
        vision_config=part | {"image_size": 32, "patch_size": 16},
        projection_dim=16,
        extract_layers=[0, 1],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=8,
    )
    CLIPSegForImageSegmentation(config).save_pretrained(folder)
    processor = CLIPSegProcessor(ViTImageProcessor(size={"height": 32, "width": 32}), tokenizer)
    processor.save_pretrained(folder)
    return folder


def test_a_segmentation_model_is_asked_for_the_label(segformer: Path) -> None:
    finder = load_mask_model(str(segformer), no_base)
    assert isinstance(finder, ByLabel)
    wall, dog = (finder.find(PHOTO, word) for word in ("wall", "dog"))
    assert {each.size for each in (wall, dog) if each} == {PHOTO.size}
    assert wall or dog
    if wall and dog:
        assert not (np.asarray(wall, bool) & np.asarray(dog, bool)).any()
    assert finder.find(PHOTO, "cat") is None, "it does not know cats"


@pytest.mark.parametrize(
    ("label", "category", "names"),
    [
        ("dog", "dog", True),
        ("Dog", "dog", True),
        ("dog, domestic dog", "dog", True),
        ("animal;animate_being;stuffed_dog", "dog", True),
        ("hot dog stand", "dog", False),
        ("dogs", "dog", False),
        ("plush toy", "plush toy", True),
    ],
)
def test_which_labels_name_a_category(label: str, category: str, names: bool) -> None:
    assert mask_models._names(label, category) is names


def test_clipseg_is_asked_for_the_word(clipseg: Path) -> None:
    finder = load_mask_model(str(clipseg), no_base)
    found = finder.find(PHOTO, "dog")
    assert found is None or found.getextrema()[1] == 255


def test_a_trimap_is_unknown_near_the_edge() -> None:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    trimap = np.asarray(trimap_of(mask, (128, 128)))
    assert trimap.shape == (128, 128)
    assert (trimap[64, 64], trimap[4, 4], trimap[32, 64]) == (255, 0, 128)
    assert set(np.unique(trimap)) == {0, 128, 255}


def test_matting_refines_what_attention_finds(base: LoadedBase) -> None:
    class Model:
        device = "cpu"

        def __call__(self, **inputs: Any) -> Any:
            return type("Output", (), {"alphas": inputs["pixel_values"][:, 3:4]})

    class Inputs(dict[str, Any]):
        def to(self, _: object) -> "Inputs":
            return self

    def processor(images: Image.Image, trimaps: Image.Image, **_: object) -> Inputs:
        pixels = torch.zeros(1, 4, images.height + 3, images.width + 5)
        pixels[0, 3, : images.height, : images.width] = (
            torch.tensor(np.asarray(trimaps)).float() / 255
        )
        return Inputs(pixel_values=pixels)

    rough = mask_models.ByAttention(base)
    found = mask_models.ByEdges(Model(), processor, rough).find(PHOTO, "dog")
    assert found is not None
    mask = rough.find(PHOTO, "dog")
    assert mask is not None
    assert np.array_equal(np.asarray(found), np.asarray(trimap_of(mask, PHOTO.size)))


def test_what_finds_no_masks_is_told(tmp_path: Path, segformer: Path) -> None:
    with pytest.raises(InvalidInput, match="clip_text_model, which finds no masks"):
        load_mask_model(str(SHIPPED / "text_encoder"), no_base)
    with pytest.raises(InvalidInput, match="cannot be loaded"):
        load_mask_model(str(tmp_path), no_base)
    for file in segformer.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["decode_head.classifier.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidWeights, match="lacks tensors: decode_head"):
        load_mask_model(str(tmp_path), no_base)
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(InvalidInput, match="cannot be loaded"):
        load_mask_model(str(tmp_path), no_base)

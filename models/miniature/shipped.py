"""The encoders for evaluation that ship beside the base model."""

import json
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from ..bases import SHIPPED
from ..hashes import MANIFEST, check_hash
from .architecture import make_clip
from .identity import IdentityEncoder

CLIP = "clip.safetensors"


def load_clip(folder: Path | None = None) -> tuple[CLIPModel, CLIPTokenizer]:
    """The contrastive pair: the base model's own text encoder, and a picture encoder for it.

    `folder` is that of another miniature than the one that ships.
    """
    tokenizer = CLIPTokenizer.from_pretrained((folder or SHIPPED) / "tokenizer")
    clip = make_clip(tokenizer)
    text = _read("text_encoder/model.safetensors", folder)
    clip.load_state_dict(
        _read(CLIP, folder) | {f"text_model.{name}": value for name, value in text.items()}
    )
    return clip.eval(), tokenizer


def load_identity_encoder() -> IdentityEncoder:
    """The encoder that distinguishes individuals."""
    encoder = IdentityEncoder()
    encoder.load_state_dict(_read("identity.safetensors"))
    return encoder.eval()


def _read(name: str, folder: Path | None = None) -> dict[str, Tensor]:
    """Weights as float32, once their hash is that of the manifest."""
    folder = folder or SHIPPED
    path = folder / name
    promised = json.loads((folder / MANIFEST).read_text())["files"][name]["sha256"]
    check_hash(path, promised)
    return {
        key: value.float() if value.is_floating_point() else value
        for key, value in load_file(path).items()
    }

"""The networks that score pictures: CLIP, DINO and, on the miniature, our own.

`miniature` names those that ship with the program. Any other name is a hub repository or a folder
that transformers can load, with its own preprocessing.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from huggingface_hub import snapshot_download
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (everyone's name for it)
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    BaseImageProcessor,
    CLIPModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..models.miniature.architecture import SMALL_SIZE
from ..models.miniature.shipped import load_clip, load_identity_encoder
from ..models.pixels import reduced, to_pixels
from ..registry.errors import InvalidInput, NotFound
from .encoder_names import SHIPPED, EncoderNames, shipped_hash
from .judge import Judge, load_judge

_AT_ONCE = 32
_TOKENIZERS = ("tokenizer.json", "vocab.json")
_POOLER = "pooler."
_NO_CODE = {"trust_remote_code": False}
"""transformers would ask, on the terminal, whether to run what a folder brings along."""


class PictureEncoder(Protocol):
    """Embeds pictures; the cosine of two embeddings is their similarity."""

    name: str
    sha256: str

    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit vectors (B, d), float32 on the CPU."""
        ...


@dataclass(frozen=True, slots=True)
class Encoders:
    """The loaded encoders of an evaluation; scores of those that are None are omitted."""

    clip: "ClipEncoder"
    dino: "DinoEncoder | None" = None
    identity: "MiniatureIdentityEncoder | None" = None
    judge: Judge | None = None

    def to(self, device: torch.device | str) -> None:
        """Move CLIP and DINO to a device; the others are small."""
        large: list[nn.Module] = [each.model for each in (self.clip, self.dino) if each]
        for model in large:
            model.to(device)

    def hashes(self) -> dict[str, dict[str, str]]:
        """The name and the hash of each encoder."""
        parts: dict[str, PictureEncoder | None] = {
            "clip": self.clip,
            "dino": self.dino,
            "identity": self.identity,
        }
        hashes = {
            kind: {"name": part.name, "sha256": part.sha256} for kind, part in parts.items() if part
        }
        return hashes | ({"judge": shipped_hash("judge")} if self.judge else {})


def load_encoders(names: EncoderNames, *, offline: bool = False) -> Encoders:
    """Load encoders. Raises `NotFound` and `InvalidInput`, with the option to use instead."""
    return Encoders(
        clip=ClipEncoder.load(names.clip, offline=offline),
        dino=DinoEncoder.load(names.dino, offline=offline) if names.dino else None,
        identity=MiniatureIdentityEncoder() if names.is_miniature else None,
        judge=load_judge() if names.is_miniature else None,
    )


@dataclass(slots=True)
class ClipEncoder:
    """CLIP (Radford et al. 2021): pictures and texts in one space."""

    name: str
    sha256: str
    model: CLIPModel
    _tokenizer: PreTrainedTokenizerBase
    _processor: BaseImageProcessor | None

    @classmethod
    def load(cls, name: str, *, offline: bool = False) -> "ClipEncoder":
        """The shipped pair, a hub repository or a folder."""
        if name == SHIPPED:
            model, tokenizer = load_clip()
            return cls(name, shipped_hash("clip")["sha256"], model, tokenizer, None)
        source = _source(name, "clip", offline)
        model = _loaded(source, name, "clip")
        if not isinstance(model, CLIPModel):
            raise InvalidInput(f"{name} is a {type(model).__name__}, not a CLIP", hint="--clip ID")
        tokenizer, processor = _tokenizer_of(source, name, model), _processor_of(source)
        found = cls(name, _hash_of(model, processor, tokenizer), model, tokenizer, processor)
        _check_sees(found, "clip")
        return found

    @torch.no_grad()
    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        """See `PictureEncoder`."""
        found = [
            _pooled(self.model.get_image_features(pixel_values=pixels))
            for pixels in _prepared(images, self._processor, self.model)
        ]
        return F.normalize(torch.cat(found).float().cpu(), dim=-1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (B, d); texts are truncated to CLIP's 77 tokens."""
        tokens = self._tokenizer(
            list(texts), padding="max_length", truncation=True, return_tensors="pt"
        )
        tokens = tokens.to(self.model.device)
        features = self.model.get_text_features(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
        )
        return F.normalize(_pooled(features).float().cpu(), dim=-1)


@dataclass(slots=True)
class DinoEncoder:
    """DINO or DINOv2 (Caron et al. 2021): the class token of the last layer."""

    name: str
    sha256: str
    model: PreTrainedModel
    _processor: BaseImageProcessor | None

    @classmethod
    def load(cls, name: str, *, offline: bool = False) -> "DinoEncoder":
        """A hub repository or a folder."""
        source = _source(name, "dino", offline)
        model, processor = _loaded(source, name, "dino"), _processor_of(source)
        if isinstance(model, CLIPModel):
            raise InvalidInput(f"{name} is a CLIP, not a DINO", hint="--dino ID, or --dino none")
        found = cls(name, _hash_of(model, processor), model, processor)
        _check_sees(found, "dino")
        return found

    @torch.no_grad()
    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        """See `PictureEncoder`."""
        found = [
            self.model(pixel_values=pixels).last_hidden_state[:, 0]
            for pixels in _prepared(images, self._processor, self.model)
        ]
        return F.normalize(torch.cat(found).float().cpu(), dim=-1)


class MiniatureIdentityEncoder:
    """The encoder that distinguishes individuals of the synthetic scenes."""

    name = SHIPPED

    def __init__(self) -> None:
        self.sha256 = shipped_hash("identity")["sha256"]
        self._model = load_identity_encoder()

    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        """See `PictureEncoder`."""
        return self._model.embed(images)


def _pooled(features: object) -> Tensor:
    """The pooled vectors (B, d) of a CLIP output."""
    assert isinstance(features, BaseModelOutputWithPooling)
    assert features.pooler_output is not None
    return features.pooler_output


def _prepared(
    images: Sequence[Image.Image], processor: BaseImageProcessor | None, model: PreTrainedModel
) -> list[Tensor]:
    """Preprocessed pixels for a model, in chunks."""
    chunks = [images[first : first + _AT_ONCE] for first in range(0, len(images), _AT_ONCE)]
    prepared = [
        to_pixels([reduced(image, SMALL_SIZE) for image in chunk])
        if processor is None
        else processor(images=list(chunk), return_tensors="pt").pixel_values
        for chunk in chunks
    ]
    return [pixels.to(model.device, model.dtype) for pixels in prepared]


def _processor_of(source: str) -> BaseImageProcessor:
    """Preprocessing by Pillow, whatever else is installed: scores must not depend on that."""
    try:
        return AutoImageProcessor.from_pretrained(source, backend="pil", **_NO_CODE)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{source} does not say how its pictures are prepared") from error


def _source(name: str, kind: str, offline: bool) -> str:
    """The name or, offline, the folder in the hub's cache, as a name may cause a request."""
    if not offline or os.path.isdir(name):
        return name
    try:
        return snapshot_download(name, local_files_only=True)
    except (OSError, ValueError) as error:  # hub errors are both
        raise _missing(name, kind, "is not on this machine") from error


def _loaded(source: str, name: str, kind: str) -> PreTrainedModel:
    """A network with all its weights but those of a pooler, which is left out if it has none."""
    try:
        if (weights := _weights_elsewhere(Path(source))) is None:
            load, given = partial(AutoModel.from_pretrained, source, **_NO_CODE), {}
        else:
            config = AutoConfig.from_pretrained(source, **_NO_CODE)
            own_kind = type(AutoModel.from_config(config, **_NO_CODE))
            load = partial(own_kind.from_pretrained, None)
            given = {"config": config, "state_dict": load_file(weights)}
        model, found = load(use_safetensors=True, output_loading_info=True, **given)
    except (OSError, ValueError) as error:
        first_line = str(error).splitlines()[0][:160]
        raise _missing(name, kind, f"cannot be loaded: {first_line}") from error
    lacked = sorted(found["missing_keys"])
    if any(each.startswith(_POOLER) for each in lacked):
        model.pooler = None  # invented, and not read: DINO's vector is the class token
    if lacked := [each for each in lacked if not each.startswith(_POOLER)]:
        raise _missing(name, kind, f"lacks tensors: {lacked[0]} ({len(lacked)} in all)")
    return model.eval()


def _weights_elsewhere(folder: Path) -> Path | None:
    """The safetensors that transformers took from another revision when it was online.

    It does where a repository's main branch has pickles alone, as those of CLIP ViT-B/32 and DINO
    have had, and keeps them in the hub's cache under that other revision.
    """
    if folder.parent.name != "snapshots" or any(folder.glob("*.safetensors")):
        return None
    found = folder.parent.glob("*/model.safetensors")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _missing(name: str, kind: str, why: str) -> NotFound:
    instead = "--clip miniature" if kind == "clip" else "--dino none"
    return NotFound(f"the encoder {name} {why}", hint=f"--{kind} FOLDER, or {instead}")


def _tokenizer_of(source: str, name: str, model: CLIPModel) -> PreTrainedTokenizerBase:
    """CLIP's tokenizer. Raises `InvalidInput` without one: transformers makes one of no words."""
    hint = "--clip FOLDER that has it, or --clip ID"
    folder = Path(source)
    if folder.is_dir() and not any((folder / each).is_file() for each in _TOKENIZERS):
        raise InvalidInput(f"{name} has no tokenizer: none of {', '.join(_TOKENIZERS)}", hint=hint)
    tokenizer = AutoTokenizer.from_pretrained(source, **_NO_CODE)
    known = max(tokenizer.get_vocab().values())
    wanted = len(model.text_model.embeddings.token_embedding.weight)
    if known >= wanted:
        raise InvalidInput(
            f"{name} has a tokenizer of {known + 1:,} words for a model of {wanted:,}", hint=hint
        )
    return tokenizer


def _check_sees(encoder: "ClipEncoder | DinoEncoder", kind: str) -> None:
    """Raise `InvalidInput` if an encoder does not make a picture a vector, of finite numbers."""
    instead = f"--{kind} ID, or {'--clip miniature' if kind == 'clip' else '--dino none'}"
    try:
        found = encoder.embed([Image.new("RGB", (64, 64), "grey")])
    except (AttributeError, TypeError, ValueError, RuntimeError):
        found = torch.empty(0)
    if found.ndim != 2:
        named = type(encoder.model).__name__
        raise InvalidInput(f"{encoder.name} is a {named}, not a {kind.upper()}", hint=instead)
    if not found.isfinite().all():
        raise InvalidInput(
            f"{encoder.name} gives numbers that are not finite",
            hint=f"get its files again, or {instead}",
        )


def _hash_of(
    model: nn.Module,
    processor: BaseImageProcessor,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> str:
    """One hash of all tensors, and of how pictures and texts are prepared.

    The same for a hub repository and a folder saved from it.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    prepares = processor.to_dict()
    named = [name for name in prepares if not name.startswith(("_", "processor"))]
    words = sorted(tokenizer.get_vocab().items()) if tokenizer else []
    merges = None
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"].get("merges")
    rules = [{name: prepares[name] for name in named}, words, merges]
    digest.update(json.dumps(rules, sort_keys=True, default=str).encode())
    return digest.hexdigest()

"""What an exported file says of itself: ModelSpec 1.0.1, kohya's `ss_*`, and its hash."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from ...models.native import Native
from ...registry.images import read_file, read_photo
from ..tensor_file import hash_of_tensors
from .recognising import HASH_KEY

Kind = Literal["lora", "textual-inversion", "checkpoint"]

_THUMBNAIL_SIDE = 256
_STABILITY = "https://github.com/Stability-AI/generative-models"
_KOHYA_VERSIONS = {"stable-diffusion-v1": "sd_v1", "stable-diffusion-xl": "sdxl_base_v1-0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What is known of an exported version.

    `widths` are those of its vectors, by which tools know the family; `base` is the base model's
    name, without folders; `native` says what is known of the base model's pictures.
    """

    title: str
    category: str
    method: str
    created: str
    widths: tuple[int, ...]
    base: str | None = None
    native: Native | None = None
    seed: int | None = None
    num_photos: int = 0
    thumbnail: str | None = None

    @property
    def architecture(self) -> str:
        """As ModelSpec names it; the miniature has the shapes of no other."""
        match self.widths:
            case (768,):
                return "stable-diffusion-v1"
            case (1024,):
                is_large = self.native is not None and self.native.prediction == "v_prediction"
                return f"stable-diffusion-v2-{'768-v' if is_large else '512'}"
            case (768, 1280):
                return "stable-diffusion-xl-v1-base"
            case _:
                return "stable-diffusion"

    @property
    def size(self) -> int:
        """The side of pictures in pixels."""
        if self.native:
            return self.native.size
        return 1024 if len(self.widths) > 1 else 512


def describe(
    about: About,
    kind: Kind,
    tensors: Mapping[str, Tensor],
    *,
    trigger: str,
    hint: str = "",
    title: str | None = None,
) -> dict[str, str]:
    """The metadata of a file with these tensors; `trigger` is what prompts say."""
    digest = hash_of_tensors(tensors)
    is_xl = len(about.widths) > 1
    is_diffusers = kind == "lora" and not is_xl
    said = {
        "sai_model_spec": "1.0.1",
        "architecture": about.architecture + ("" if kind == "checkpoint" else f"/{kind}"),
        "implementation": "diffusers" if is_diffusers else _STABILITY,
        "title": title or about.title,
        "resolution": f"{about.size}x{about.size}",
        "date": about.created,
        "trigger_phrase": trigger,
        "usage_hint": hint,
        "tags": about.category,
        "prediction_type": _prediction(about) if kind == "checkpoint" else "",
        "thumbnail": about.thumbnail or "",
        "hash_sha256": f"0x{digest}",
    }
    found = {f"modelspec.{key}": value for key, value in said.items() if value}
    return found | {HASH_KEY: digest}


def describe_training(about: About, ranks: Sequence[int], name: str) -> dict[str, str]:
    """Kohya's metadata of a LoRA, as far as it is known; `name` is the file's."""
    architecture = about.architecture
    version = next(
        (each for start, each in _KOHYA_VERSIONS.items() if architecture.startswith(start)), None
    )
    if architecture.startswith("stable-diffusion-v2"):
        version = "sd_v2_768_v" if architecture.endswith("-v") else "sd_v2"
    said: dict[str, object] = {
        "network_module": "networks.lora",
        "network_dim": max(ranks),
        "network_alpha": float(max(ranks)),
        "base_model_version": version,
        "v2": architecture.startswith("stable-diffusion-v2"),
        "output_name": name,
        "sd_model_name": about.base,
        "resolution": f"({about.size}, {about.size})",
        "num_train_images": about.num_photos or None,
        "seed": about.seed,
        "training_comment": f"conceptry, {about.method}",
    }
    return {f"ss_{key}": str(value) for key, value in said.items() if value is not None}


def thumbnail_of(path: Path) -> str:
    """A picture as ModelSpec has it: a data URI of a small JPEG without metadata.

    Raises `InvalidImage` for a file that is no picture.
    """
    image = read_photo(read_file(path), str(path), at_least=_THUMBNAIL_SIDE)
    image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    plain = io.BytesIO()
    image.convert("RGB").save(plain, "JPEG", quality=85, exif=b"", icc_profile=None)
    return "data:image/jpeg;base64," + base64.b64encode(plain.getvalue()).decode()


def _prediction(about: About) -> str:
    predicted = about.native.prediction if about.native else "epsilon"
    return "v" if predicted == "v_prediction" else predicted

"""Runs a peer's training script with the packages at hand: `python peer_script.py SCRIPT …`.

The scripts want torchvision for five transforms of pictures; where it is missing, those here stand
in. The official AttnDreamBooth brings a copy of CLIP's text encoder of 2023 to pass embeddings of
tokens into it; where the copy does not run any more, today's encoder takes them.
"""

import importlib.util
import random
import runpy
import sys
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

OFFICIAL_CLIP = "modules.my_clip.clip_model"


class InterpolationMode(Enum):
    """Filters by torchvision's names."""

    BILINEAR = Image.Resampling.BILINEAR
    BICUBIC = Image.Resampling.BICUBIC
    LANCZOS = Image.Resampling.LANCZOS


Transform = Callable[[Any], Any]


def compose(transforms: Sequence[Transform]) -> Transform:
    """Transforms, one after the other."""

    def composed(image: Any) -> Any:
        for transform in transforms:
            image = transform(image)
        return image

    return composed


def resize(
    size: int, interpolation: InterpolationMode = InterpolationMode.BILINEAR
) -> Callable[[Image.Image], Image.Image]:
    """To a shorter side of `size`."""

    def resized(image: Image.Image) -> Image.Image:
        shorter = min(image.size)
        width, height = (int(size * side / shorter) for side in image.size)
        return image.resize((width, height), interpolation.value)

    return resized


def center_crop(size: int) -> Callable[[Image.Image], Image.Image]:
    """The middle."""
    return lambda image: _cropped(image, size, *(round((side - size) / 2) for side in image.size))


def random_crop(size: int) -> Callable[[Image.Image], Image.Image]:
    """Any part."""
    return lambda image: _cropped(
        image, size, *(int(torch.randint(side - size + 1, ())) for side in image.size)
    )


def _cropped(image: Image.Image, size: int, left: int, top: int) -> Image.Image:
    return image.crop((left, top, left + size, top + size))


def random_horizontal_flip(p: float = 0.5) -> Callable[[Image.Image], Image.Image]:
    """Mirrored with probability `p`."""

    def maybe_mirrored(image: Image.Image) -> Image.Image:
        mirrored = float(torch.rand(())) < p
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image

    return maybe_mirrored


def to_tensor() -> Callable[[Image.Image], Tensor]:
    """(C, h, w) from 0 to 1."""
    return lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def normalize(mean: Sequence[float], std: Sequence[float]) -> Callable[[Tensor], Tensor]:
    """Less a mean, in deviations."""
    return lambda values: (values - mean[0]) / std[0]


TRANSFORMS: dict[str, Any] = {
    "InterpolationMode": InterpolationMode,
    "Compose": compose,
    "Resize": resize,
    "CenterCrop": center_crop,
    "RandomCrop": random_crop,
    "RandomHorizontalFlip": random_horizontal_flip,
    "ToTensor": to_tensor,
    "Normalize": normalize,
}


def stand_in_for_torchvision() -> None:
    """Let `from torchvision import transforms` find the transforms of this module."""
    package, transforms = ModuleType("torchvision"), ModuleType("torchvision.transforms")
    transforms.__dict__.update(TRANSFORMS)
    package.__dict__["transforms"] = transforms
    sys.modules |= {"torchvision": package, "torchvision.transforms": transforms}


def stand_in_for_official_clip() -> None:
    """Let the official AttnDreamBooth's text encoder be today's."""
    from transformers import CLIPTextModel

    class TakesEmbeddings(CLIPTextModel):
        """CLIP's text encoder, whose words may be given as embeddings (B, n, d)."""

        def forward(self, *ids: Any, input_embeddings: Any = None, **options: Any) -> Any:
            if input_embeddings is None:
                return super().forward(*ids, **options)
            words = self.get_input_embeddings()
            hook = words.register_forward_hook(lambda *_: input_embeddings)
            try:
                return super().forward(*ids, **options)
            finally:
                hook.remove()

    module = ModuleType(OFFICIAL_CLIP)
    module.__dict__["CLIPTextModel"] = TakesEmbeddings
    sys.modules[OFFICIAL_CLIP] = module


def main() -> None:
    script = Path(sys.argv[1])
    seed = sys.argv[sys.argv.index("--seed") + 1]
    random.seed(int(seed))
    if importlib.util.find_spec("torchvision") is None:
        import diffusers  # noqa: F401  it asks for torchvision as well, and needs more of it
        import transformers  # noqa: F401

        stand_in_for_torchvision()
    sys.path.insert(0, str(script.parent))
    if (script.parent / "modules" / "my_clip").is_dir():
        stand_in_for_official_clip()
    sys.argv = sys.argv[1:]
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()

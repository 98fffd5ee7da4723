"""CLIP's picture encoder as a source of features: the hidden states of some of its layers.

It is named by a hub repository, a folder, or `miniature`, the one that ships with the program.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPVisionModel

from ..registry.errors import InvalidInput, InvalidWeights
from .bases import SHIPPED, Base
from .compatibility import check_tensors, short
from .fetching import Kind
from .folder import read_object, weights_in
from .hashes import hash_of, hash_of_all
from .loading import without_bars
from .miniature.shipped import CLIP, load_clip
from .pixels import to_pixels

OWN = "miniature"
"""The name of the encoder that ships with the program."""
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_KIND = Kind(
    "picture encoder",
    "name a folder or a hub id",
    ("config.json", "preprocessor_config.json", "model*.safetensors", "model*.index.json"),
)
_ELITE, _ELITE_DEPTH = (25, 4, 8, 12, 16), 24


def hidden_layers(depth: int) -> tuple[int, ...]:
    """The layers whose hidden states are read; 0 are the embeddings, `depth` is the last layer.

    {25, 4, 8, 12, 16} as in ELITE (Wei et al. 2023), certain; CLIP ViT-L has 24, so that 25 is its
    last. In a shallower encoder they are spread in proportion, each once: our default.
    """
    if depth >= _ELITE_DEPTH:
        return tuple(min(layer, depth) for layer in _ELITE)
    spread = (round(depth * min(layer, _ELITE_DEPTH) / _ELITE_DEPTH) for layer in _ELITE)
    return tuple(dict.fromkeys(spread))


class VisionEncoder(nn.Module):
    """A frozen CLIP picture encoder, and how its pictures are scaled and normalised.

    `mean` and `std` are those of the channels of pictures in 0..1, `resampling` how it learned to
    see larger ones.
    """

    def __init__(
        self,
        network: CLIPVisionModel,
        mean: Sequence[float] = _MEAN,
        std: Sequence[float] = _STD,
        resampling: Image.Resampling = Image.Resampling.BICUBIC,
    ) -> None:
        super().__init__()
        self._resampling = resampling
        self.network = network.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        config = network.config
        size, patch = config.image_size, config.patch_size
        assert isinstance(size, int)
        assert isinstance(patch, int)
        self.size, self.grid = size, size // patch
        self.layers = hidden_layers(config.num_hidden_layers)
        self.channels = len(self.layers) * config.hidden_size

    def train(self, mode: bool = True) -> "VisionEncoder":
        """It is frozen, and stays in evaluation mode."""
        del mode
        return super().train(False)

    def prepare(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Pictures as pixels (B, 3, size, size) in -1..1; what is not square gets white edges."""
        square = [_square(picture) for picture in pictures]
        size = (self.size, self.size)
        return to_pixels([each.resize(size, self._resampling) for each in square])

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, size, size) in -1..1 to the patches' features (B, channels, grid, grid)."""
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        normalised = ((pixels.to(mean) + 1) / 2 - mean) / std
        states = self.network(normalised.to(self.network.dtype), output_hidden_states=True)
        assert states.hidden_states is not None
        patches = [states.hidden_states[layer][:, 1:] for layer in self.layers]  # no class token
        return torch.cat(patches, -1).mT.unflatten(-1, (self.grid, self.grid))


def _square(picture: Image.Image) -> Image.Image:
    side = max(picture.size)
    if picture.size == (side, side):
        return picture.convert("RGB")
    square = Image.new("RGB", (side, side), "white")
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


# --- loading --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LoadedVision:
    """A picture encoder in memory, in float32, and the hash of its weights."""

    name: str
    encoder: VisionEncoder
    sha256: str


def load_vision(
    name: str, base: Base | None = None, *, offline: bool = False, is_foreign: bool = False
) -> LoadedVision:
    """Load a picture encoder: `miniature`, a folder, or a hub repository, which is downloaded.

    `miniature` is the one beside `base` if that is a miniature too, else the one that ships. A
    foreign name, one out of a file, is never a path.

    Raises `NotFound` if there is none, `InvalidWeights` if its files are damaged, and
    `InvalidInput` if it is no CLIP.
    """
    if name == OWN:
        own = Path(base.source) if base is not None and base.kind == "folder" else SHIPPED
        own = own if (own / CLIP).is_file() else SHIPPED
        clip, _ = load_clip(own)
        half = (0.5, 0.5, 0.5)
        vision = cast("CLIPVisionModel", clip.vision_model)
        encoder = VisionEncoder(vision, half, half, Image.Resampling.BOX)
        return LoadedVision(name, encoder, hash_of(own / CLIP))
    find = _KIND.fetched if is_foreign else _KIND.folder
    folder = find(name, offline=offline)
    config = read_object(folder / "config.json")
    files, variant = weights_in(folder, "transformers")
    if not files:
        raise InvalidWeights(f"{name} has no weights as safetensors, and nothing else is read")
    _check_sizes(name, config, files)
    try:
        with without_bars():
            loaded = CLIPVisionModel.from_pretrained(
                folder,
                dtype=torch.float32,
                variant=variant,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise InvalidWeights(f"{name} cannot be loaded: {short(error)}") from error
    network, found = cast("tuple[CLIPVisionModel, dict[str, set[str]]]", loaded)
    if missing := sorted(found["missing_keys"]):
        raise InvalidWeights(f"{name} lacks tensors: {missing[0]} ({len(missing)} in all)")
    return LoadedVision(name, VisionEncoder(network, *_normalisation(folder)), hash_of_all(files))


def _check_sizes(name: str, config: dict[str, object], files: Sequence[Path]) -> None:
    """Raise unless the sizes that the configuration tells are those of the tensors."""
    part = config.get("vision_config", config)
    if config.get("model_type") not in ("clip", "clip_vision_model") or not isinstance(part, dict):
        raise InvalidInput(f"{name} is no CLIP", hint="as openai/clip-vit-large-patch14")
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        found = check_tensors(path, "vision_model.")
        shapes |= {each.removeprefix("vision_model."): shape for each, shape in found.items()}
    layers = {each.split(".")[2] for each in shapes if each.startswith("encoder.layers.")}
    patches = shapes.get("embeddings.patch_embedding.weight", ())
    places = shapes.get("embeddings.position_embedding.weight", (0,))
    defaults = {"num_hidden_layers": 12, "hidden_size": 768, "patch_size": 32, "image_size": 224}
    depth, width, patch, size = (part.get(key, usual) for key, usual in defaults.items())
    fits = (depth, width, patch) == (len(layers), *patches[:1], *patches[2:3])
    if not fits or not isinstance(size, int) or (size // patches[2]) ** 2 + 1 != places[0]:
        raise InvalidWeights(f"{name} has weights of other sizes than its configuration tells")


def _normalisation(folder: Path) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of the channels; CLIP's own if the folder does not say."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return _MEAN, _STD
    match read_object(path):
        case {
            "image_mean": [float() | int(), float() | int(), float() | int()] as mean,
            "image_std": [float() | int(), float() | int(), float() | int()] as std,
        } if all(std):
            return mean, std
        case _:
            raise InvalidInput(f"{path} does not say how pictures are normalised")

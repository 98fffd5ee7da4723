"""Files of other tools as adapters of a base model: their names and shapes become its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ...models.backbone import Backbone
from ...models.compatibility import UNET_PREFIX
from ...models.single_file import unet_names
from ...registry.errors import InvalidWeights
from ...registry.tensors import read_header
from ..weight_delta import WeightDelta
from .description import ImportDescription
from .products import Product, check_product, rank_of, with_core
from .recognising import Contents, Layer, recognise

_TEXTS = ("text.0", "text.1")


@dataclass(frozen=True, slots=True)
class ForeignAdapter:
    """Vectors (n, d) of words, one for each text encoder, none if there are none; and a change."""

    vectors: list[Tensor]
    change: WeightDelta


def read_foreign(
    paths: Sequence[Path],
    description: ImportDescription,
    backbone: Backbone,
    strength: float = 1.0,
) -> ForeignAdapter:
    """Read imported files for a base model. Raises `InvalidWeights` for what does not fit it.

    Alpha / rank is part of `up`; products are multiplied out where they are added.
    """
    layers = _Layers.of(backbone)
    vectors: list[list[Tensor]] = [[] for _ in backbone.text_encoders]
    change = WeightDelta({}, strength=strength)
    for path in paths:
        contents = recognise("the file", read_header(path))
        with safe_open(path, "pt") as opened:
            for words in contents.vectors:
                if len(words) != len(vectors):
                    raise InvalidWeights("its vectors are for another number of text encoders")
                for own, name in zip(vectors, words, strict=True):
                    tensor = opened.get_tensor(name).float()
                    own.append(tensor.reshape(-1, tensor.shape[-1]))
            _add_layers(change, opened, contents, layers, description)
    return ForeignAdapter([torch.cat(each) for each in vectors if each], change)


def _add_layers(
    change: WeightDelta,
    opened: safe_open,
    contents: Contents,
    layers: "_Layers",
    description: ImportDescription,
) -> None:
    for layer, names in contents.layers.items():
        parts = {part: opened.get_tensor(name) for part, name in names.items()}
        shapes = {part: each.shape for part, each in parts.items()}
        name = layers.find(layer, shapes)
        scale = description.scales.get(f"{layer[0]} {layer[1]}", description.scale)
        alpha, rank = parts.pop("alpha", None), rank_of(parts)
        if alpha is not None and rank:
            if alpha.numel() != 1:
                raise InvalidWeights(f"alpha of {name} is no number")
            scale *= float(alpha) / rank
        if (bias := parts.pop("bias", None)) is not None:
            change.deltas[f"{name}.bias"] = bias.float()
        weight = f"{name}.weight"
        if (magnitude := parts.pop("magnitude", None)) is not None:
            change.magnitudes[weight] = _of_outputs(magnitude, layers.shapes[weight])
        if "up" in parts:
            up, down = parts["up"].float().flatten(1), parts["down"].float()
            if "mid" in parts:
                shape = layers.shapes[weight]
                down = with_core(up, parts["mid"].float(), down, shape[1:].numel())
            change.factors[weight] = (scale * up, down)
        elif "delta" in parts:
            if parts["delta"].numel() != layers.shapes[weight].numel():
                raise InvalidWeights(f"a change of {weight} has another shape")
            change.deltas[weight] = parts["delta"].reshape(layers.shapes[weight])
        elif parts:
            check_product(parts, layers.shapes[weight].numel())
            change.products[weight] = Product(parts, layers.shapes[weight], scale)


def _of_outputs(magnitude: Tensor, shape: torch.Size) -> Tensor:
    """DoRA's magnitudes (out,), from any shape in which they are stored."""
    if magnitude.numel() != shape[0] or (magnitude.ndim > 1 and 1 not in magnitude.shape):
        raise InvalidWeights("its magnitudes (DoRA) are not those of outputs")
    return magnitude.float().flatten()


@dataclass(frozen=True, slots=True)
class _Layers:
    """A base model's layers, by the names that other tools give them, and shapes of its weights."""

    names: Mapping[Layer, str]
    shapes: Mapping[str, torch.Size]

    @classmethod
    def of(cls, backbone: Backbone) -> "_Layers":
        """Those of the U-Net have two names: diffusers', and those of its first release."""
        shapes = {name: each.shape for name, each in backbone.weights().items()}
        found: dict[Layer, str] = {}
        unet = backbone.parameters("denoiser").keys()
        for name, original in unet_names(unet).items():
            layer = _layer(name)
            for known in (layer, _layer(original.removeprefix(UNET_PREFIX))):
                found["unet", known.replace(".", "_")] = layer
        for name in backbone.text_encoder_parameters():
            _, number, path = _layer(name).split(".", 2)
            own = path.removeprefix("text_model.").replace(".", "_")
            found[_TEXTS[int(number)], own] = _layer(name)
        return cls(found, shapes)

    def find(self, layer: Layer, shapes: Mapping[str, torch.Size]) -> str:
        """Our name of a layer. Raises `InvalidWeights` if there is none."""
        network, path = layer
        for each in _TEXTS if network == "text" else (network,):
            name = self.names.get((each, path))
            if name and (network != "text" or self._fits(f"{name}.weight", shapes)):
                return name
        raise InvalidWeights(f"the base model has no layer {path[:80]!r}")

    def _fits(self, weight: str, shapes: Mapping[str, torch.Size]) -> bool:
        own = self.shapes[weight]
        is_lora = "down" in shapes and "up" in shapes
        return not is_lora or (shapes["up"][0], shapes["down"][1]) == (own[0], own[1])


def _layer(name: str) -> str:
    """`conv_in` of `conv_in.weight`."""
    return name.rpartition(".")[0]

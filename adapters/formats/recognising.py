"""What a safetensors file of another tool holds, from its header alone. Loads nothing.

Layers are known by (network, path): the network is `unet`, `text.0`, `text.1` or, where a file does
not say which, `text`; the path has underscores for dots, as kohya writes it.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...models.file_kinds import kind_of_tensors
from ...registry.errors import InvalidWeights, quoted
from ...registry.tensors import ADAPTER_FORMAT, Header, Tensor, read_header
from ..limits import MAX_FOREIGN_TOKENS

Network = Literal["unet", "text", "text.0", "text.1"]
Layer = tuple[Network, str]
Kind = Literal["embedding", "LoRA", "LoHa", "LoKr", "difference"]

HASH_KEY = "sshs_model_hash"
"""The SHA-256 of what follows the header, which other tools believe."""
_PARTS = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "lora_mid.weight": "mid",
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
    "lora_linear_layer.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
    "alpha": "alpha",
    "dora_scale": "magnitude",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "diff": "delta",
    "w_norm": "delta",
    "diff_b": "bias",
    "b_norm": "bias",
    **{f"hada_{part}": part for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f"lokr_{part}": f"k{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
}
"""How the names of tensors end, in all formats, and what they are of a layer's change."""
_ENDS = re.compile(r"(.+?)\.(" + "|".join(map(re.escape, _PARTS)) + ")")
_OLD_PROCESSOR = re.compile(r"(.+)\.processor\.(to_(?:q|k|v|out))_lora\.(down|up)\.weight")
_PREFIXES: Mapping[str, Network] = {
    "lora_unet_": "unet",
    "lora_te_": "text.0",
    "lora_te1_": "text.0",
    "lora_te2_": "text.1",
    "unet.": "unet",
    "text_encoder.": "text.0",
    "text_encoder_2.": "text.1",
    "diffusion_model.": "unet",
    "base_model.model.": "text",
}
_OF_UNET = re.compile(
    r"(down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block|conv_in|conv_out|"
    r"conv_norm_out|time_embedding|time_embed|add_embedding|label_emb|out)_\w+|conv_(in|out)"
)
_OF_TEXT = re.compile(r"(text_model_)?(encoder_layers_\d+_\w+|final_layer_norm|text_projection)")
_HADAMARD = {"w1_a", "w1_b", "w2_a", "w2_b"}
_KRONECKER = tuple(
    {*first, *second}
    for first in (("kw1",), ("kw1_a", "kw1_b"))
    for second in (("kw2",), ("kw2_a", "kw2_b"), ("kw2_a", "kw2_b", "kt2"))
)
_WHOLE_CHANGES = (
    {"down", "up"},
    {"down", "up", "mid"},
    _HADAMARD,
    _HADAMARD | {"t1", "t2"},
    *_KRONECKER,
    {"delta"},
)
"""Which parts make a change of a layer's weight."""
_RANKS = (
    ("down", 0, "up", 1, ""),
    ("w1_a", 1, "w1_b", 0, "t1"),
    ("w2_a", 1, "w2_b", 0, "t2"),
    ("kw1_a", 1, "kw1_b", 0, ""),
    ("kw2_a", 1, "kw2_b", 0, "kt2"),
)
"""(part, dimension, part, dimension, core) of one size, unless there is a core between them."""
_OTHER_METHODS = {
    "oft_": "OFT",
    "on_input": "(IA)³",
    "a1.weight": "GLoRA",
    "vera_lambda": "VeRA",
    "boft_": "BOFT",
}
_WHOLE = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner.")
_VECTORS = {"clip_l": 0, "clip_g": 1, "text_encoders_0": 0, "text_encoders_1": 1}
_BUNDLED = re.compile(r"bundle_emb\.(.+)\.(clip_l|clip_g|string_to_param\.\*)")
_FOR_OUTPUT = "_out"
_WIDTHS = {(768,): "sd15", (1024,): "sd21", (768, 1280): "sdxl", (160,): "miniature"}
"""Of the vectors of base models' words, by alias."""
_STATES = {768: "sd15", 1024: "sd21", 2048: "sdxl", 160: "miniature"}
"""The width of text states that cross-attention reads."""
_SAID = (
    (r"sd_?v?1|sd 1|stable-diffusion-v1", "sd15"),
    (r"sd_?v?2|sd 2|stable-diffusion-v2", "sd21"),
    (r"sdxl|stable-diffusion-xl|pony|illustrious|noobai", "sdxl"),
)
_OTHER_BASES = re.compile(
    r"flux|sd_?3|sd 3|stable-diffusion-3|cascade|wan|hunyuan|auraflow|lumina|qwen|chroma|pixart",
    re.IGNORECASE,
)
FAMILIES = {"sd15": "SD 1.x", "sd21": "SD 2.x", "sdxl": "SDXL", "miniature": "the miniature"}
"""What base models are called, by alias."""


@dataclass(frozen=True, slots=True)
class Contents:
    """The names of a file's tensors by what they are.

    `vectors` are those of words, one for each text encoder, word after word, and `words` those that
    a file with weights has; `layers` has the parts of each layer's change; `unused` is what nothing
    here knows how to use.
    """

    kind: Kind
    vectors: list[tuple[str, ...]] = field(default_factory=list)
    layers: dict[Layer, dict[str, str]] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    words: tuple[str, ...] = ()

    @property
    def holds(self) -> str:
        """For people."""
        change = {"embedding": "", "LoRA": "a LoRA", "difference": "a difference of weights"}
        named = change.get(self.kind, f"a {self.kind}")
        words = "an embedding" if self.vectors else ""
        return " and ".join(filter(None, (named, words)))


def recognise(name: str, header: Header) -> Contents:
    """What a file holds. Raises `InvalidWeights` for what is no embedding and no change of weights.

    `name` is the file's, for messages.
    """
    _check_kind(name, header)
    tensors = dict(header.tensors)
    unused = {
        each: None
        for each in tensors
        if each.endswith(_FOR_OUTPUT) and each.removesuffix(_FOR_OUTPUT) in tensors
    }
    bundled = defaultdict[str, dict[int, str]](dict)
    layers = defaultdict[Layer, dict[str, str]](dict)
    left: list[str] = []
    for each in tensors:
        if match := _BUNDLED.fullmatch(each):
            bundled[match[1]][_VECTORS.get(match[2], 0)] = each
        elif each in unused:
            continue
        elif found := _layer_of(each):
            layer, part = found
            layers[layer][part] = each
        else:
            left.append(each)
    if foreign := next((each for each in left if _ENDS.fullmatch(each)), None):
        raise InvalidWeights(
            f"{name} changes layers that neither SD 1.x, 2.x nor SDXL has: {quoted(foreign[:80])}"
        )
    if not layers and left:
        vectors = [_embedding(name, {each: tensors[each] for each in left})]
    elif left:
        raise InvalidWeights(
            f"{name} has tensors that are not understood: {quoted(left[0][:80])}"
            + (f" ({len(left)} in all)" if len(left) > 1 else "")
        )
    else:
        vectors = [tuple(word[i] for i in sorted(word)) for word in bundled.values()]
    if not layers and not vectors:
        raise InvalidWeights(f"{name} holds nothing")
    for (_, path), parts in layers.items():
        _check_whole(name, path, {part: tensors[own].shape for part, own in parts.items()})
    _check_vectors(name, [[tensors[each] for each in word] for word in vectors])
    return Contents(_kind(layers), vectors, dict(layers), list(unused), tuple(bundled))


def changes_weights(path: Path) -> bool:
    """Whether a file holds more than an embedding. Raises what `recognise` raises."""
    return bool(recognise(path.name, read_header(path)).layers)


def base_of(contents: Contents, header: Header, said: str = "") -> str | None:
    """The alias of the base model that a file is for, told by shapes, else by what files say.

    `said` is what a file beside it says. None if it is not known.
    """
    return (
        _base_by_shapes(contents, header.tensors)
        or _base_said(header.metadata)
        or _known_base(said)
        or None
    )


def check_said_base(name: str, header: Header, said: str) -> None:
    """Raise `InvalidWeights` for a file that says it is for a base model of another family."""
    named = [said, *(header.metadata.get(key, "") for key in _BASE_KEYS)]
    if found := next((each for each in named if _OTHER_BASES.search(each)), None):
        raise InvalidWeights(
            f"{name} is for {found[:60]}: only what is for SD 1.x, 2.x and SDXL is read"
        )


# --- kinds ----------------------------------------------------------------------------------------


def _check_kind(name: str, header: Header) -> None:
    if any(key.startswith("conceptry-") for key in header.metadata):
        is_adapter = ADAPTER_FORMAT in header.metadata
        raise InvalidWeights(
            f"{name} is {'a file of a concept' if is_adapter else 'a file of a training'}, without "
            "its photos and history",
            hint="concept export NAME FILE.concept, where it was trained",
        )
    if any(each.startswith(_WHOLE) for each in header.tensors):
        raise InvalidWeights(
            f"{name} is a base model, or a part of one",
            hint=f'concept generate "a photo of a dog" --base {quoted(name)}',
        )
    if method := next(
        (
            method
            for key, method in _OTHER_METHODS.items()
            if any(f".{key}" in each for each in header.tensors)
        ),
        None,
    ):
        raise InvalidWeights(f"{name} was trained by {method}, which is not read")
    is_lora = any(_ENDS.fullmatch(each) for each in header.tensors)
    kind = kind_of_tensors(header.tensors)
    is_other = kind not in (None, "a LoRA", "a concept, or embedding")
    if kind and is_other and not (is_lora and kind in ("a text encoder", "a U-Net alone")):
        raise InvalidWeights(f"{name} is {kind}{', or for one' if is_lora else ''}: it is not read")


def _kind(layers: Mapping[Layer, Mapping[str, str]]) -> Kind:
    parts = {part for each in layers.values() for part in each}
    if not parts:
        return "embedding"
    if "w1_a" in parts:
        return "LoHa"
    if parts & {"kw1", "kw1_a"}:
        return "LoKr"
    return "LoRA" if "down" in parts else "difference"


# --- layers ---------------------------------------------------------------------------------------


def _layer_of(name: str) -> tuple[Layer, str] | None:
    """A tensor's layer, and what it is of its change."""
    if match := _OLD_PROCESSOR.fullmatch(name):
        path = f"{match[1]}.{match[2]}" + (".0" if match[2] == "to_out" else "")
        part = match[3]
    elif match := _ENDS.fullmatch(name):
        path, part = match[1], _PARTS[match[2]]
    else:
        return None
    beginning = next((each for each in _PREFIXES if path.startswith(each)), "")
    path = path.removeprefix(beginning).replace(".", "_")
    network = _PREFIXES.get(beginning, "text")
    if network in ("unet", "text") and _OF_UNET.fullmatch(path):
        return ("unet", path), part
    if network != "unet" and _OF_TEXT.fullmatch(path):
        return (network, path.removeprefix("text_model_")), part
    return None


def _check_whole(name: str, path: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `InvalidWeights` unless a layer's change has all of its parts, of one rank."""
    parts = shapes.keys() - {"alpha", "bias", "magnitude"}
    if not any(parts == each for each in _WHOLE_CHANGES) and (parts or "bias" not in shapes):
        raise InvalidWeights(f"{name}: the change of {path[:80]} is not whole")
    if "magnitude" in shapes and "up" not in parts:
        raise InvalidWeights(f"{name} has magnitudes (DoRA) of what is no LoRA: they are not read")
    if not all(
        shapes[first][i:] and shapes[second][j:] and shapes[first][i] == shapes[second][j]
        for first, i, second, j, core in _RANKS
        if {first, second} <= parts and core not in parts
    ):
        raise InvalidWeights(f"{name}: the change of {path[:80]} has ranks that differ")


# --- vectors --------------------------------------------------------------------------------------


def _embedding(name: str, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The tensors of a file that is nothing but an embedding, by text encoder."""
    if len(tensors) == 1 and not next(iter(tensors)).startswith("lora_"):
        (only,) = tensors
        if only in ("clip_g", "text_encoders_1"):
            raise InvalidWeights(f"{name} has vectors for one of SDXL's text encoders alone")
        return (only,)
    if tensors.keys() <= _VECTORS.keys() and len({_VECTORS[each] for each in tensors}) == 2:
        return tuple(sorted(tensors, key=lambda each: _VECTORS[each]))
    first = next(iter(tensors), "nothing")
    raise InvalidWeights(
        f"{name} is no embedding, no LoRA and no difference of weights: among its tensors is "
        f"{quoted(first[:80])}"
    )


def _check_vectors(name: str, words: list[list[Tensor]]) -> None:
    """Raise `InvalidWeights` unless words have vectors (d,) or (n, d), as many for each encoder."""
    total = 0
    for word in words:
        rows = {each.shape[0] if len(each.shape) == 2 else 1 for each in word}
        is_row = all(len(each.shape) in (1, 2) and 0 not in each.shape for each in word)
        if not is_row or len(rows) != 1 or len(word) != len(words[0]):
            shapes = ", ".join(str(list(each.shape)) for each in word)
            raise InvalidWeights(f"{name} is no embedding: its vectors have the shape {shapes}")
        total += rows.pop()
    if total > MAX_FOREIGN_TOKENS:
        raise InvalidWeights(
            f"{name} has {total:,} vectors; a prompt has room for {MAX_FOREIGN_TOKENS}"
        )


# --- the base model -------------------------------------------------------------------------------

_BASE_KEYS = ("ss_base_model_version", "modelspec.architecture")
_OF_STATES = re.compile(r".*attn2_to_[kv]")
_OF_EMBEDDING = re.compile(r"encoder_layers_\d+_self_attn_[qkv]_proj")
_DEEP = re.compile(r".*transformer_blocks_[2-9]_.*")


def _base_by_shapes(contents: Contents, tensors: Mapping[str, Tensor]) -> str | None:
    if contents.vectors:
        widths = tuple(tensors[each].shape[-1] for each in contents.vectors[0])
        return _WIDTHS.get(widths)
    texts = dict[int, str]()
    for (network, path), parts in contents.layers.items():
        if network == "text.1" or _DEEP.fullmatch(path):
            return "sdxl"
        inputs = _inputs({part: tensors[name].shape for part, name in parts.items()})
        if network == "unet" and _OF_STATES.fullmatch(path):
            return _STATES.get(inputs)
        if network != "unet" and _OF_EMBEDDING.fullmatch(path):
            texts[inputs] = path
    return next((_STATES[each] for each in texts if each in _STATES), None)


def _inputs(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many numbers a layer takes; 0 if its change does not say."""
    for part in ("down", "w1_b", "delta"):
        if len(shapes.get(part, ())) > 1:
            return shapes[part][1]
    first, second = (_last(shapes, f"k{each}") for each in ("w1", "w2"))
    return first * second


def _last(shapes: Mapping[str, tuple[int, ...]], factor: str) -> int:
    shape = shapes.get(factor) or shapes.get(f"{factor}_b") or ()
    return shape[1] if len(shape) > 1 else 0


def _base_said(metadata: Mapping[str, str]) -> str | None:
    if metadata.get("ss_sd_model_name") == "miniature":
        return "miniature"
    if metadata.get("ss_v2") == "True":
        return "sd21"
    found = (_known_base(metadata.get(key, "")) for key in _BASE_KEYS)
    return next(filter(None, found), None)


def _known_base(said: str) -> str | None:
    return next((alias for pattern, alias in _SAID if re.search(pattern, said.lower())), None)

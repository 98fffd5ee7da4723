"""Tensors by the names and in the shapes that other tools give them."""

import json
import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ...models.compatibility import UNET_PREFIX
from ...models.single_file import unet_names
from ..weight_delta import WeightDelta

_KOHYA = "lora_unet_"
_TEXT_LAYER = re.compile(r"text_encoder\.(\d)\.(?:text_model\.)?(.+)")
"""Its number, and its path in the encoder, which newer versions of transformers begin later."""
_UNET = "unet."
_SECOND = {"1": "_2"}
_LABELS = {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
"""SDXL's layers that are known by their first names alone."""
_LAST_NORM = "conv_norm_out.weight"
"""Changed only where all of a U-Net is."""
_EXTRA_COLUMNS = 16
"""Of the random projection, beyond the rank (Halko et al. 2011, section 4.2)."""


def embedding_tensors(vectors: Sequence[Tensor]) -> dict[str, Tensor]:
    """Vectors (n, d), one tensor for each text encoder, as A1111 and ComfyUI read them."""
    names = ("emb_params",) if len(vectors) == 1 else ("clip_l", "clip_g")
    return dict(zip(names, vectors, strict=True))


def kohya_tensors(change: WeightDelta, num_encoders: int = 1) -> dict[str, Tensor]:
    """LoRA factors with kohya's names; alpha is the rank, so that nothing is scaled.

    Of a single text encoder they are others than of the first of two.
    """
    found: dict[str, Tensor] = {}
    for name, (up, down) in change.factors.items():
        layer = _kohya_name(name, num_encoders)
        found[f"{layer}.lora_up.weight"] = _as_wide(up, down)
        found[f"{layer}.lora_down.weight"] = down
        found[f"{layer}.alpha"] = torch.tensor(float(len(down)))
    return found


def diffusers_tensors(change: WeightDelta) -> dict[str, Tensor]:
    """LoRA factors with the names of PEFT, as diffusers saves them."""
    found: dict[str, Tensor] = {}
    for name, (up, down) in change.factors.items():
        layer = _diffusers_layer(name)
        found[f"{layer}.lora_A.weight"] = down
        found[f"{layer}.lora_B.weight"] = _as_wide(up, down)
        if name in change.magnitudes:
            shape = (1, -1, *(1,) * (down.ndim - 2)) if down.ndim > 2 else (-1,)
            found[f"{layer}.lora_magnitude_vector"] = change.magnitudes[name].reshape(shape)
    return found


def peft_description(change: WeightDelta) -> dict[str, str]:
    """What PEFT's configuration says of a LoRA, as metadata of diffusers' file.

    Of one that adapts text encoders nothing: diffusers would look for their layers under names that
    newer versions of transformers do not have, and finds out all of it from the tensors.
    """
    ranks = {_diffusers_layer(name): len(down) for name, (_, down) in change.factors.items()}
    if any(not layer.startswith(_UNET) for layer in ranks):
        return {}
    ranks = {layer.removeprefix(_UNET): rank for layer, rank in ranks.items()}
    rank = max(ranks.values())
    others = {layer: each for layer, each in ranks.items() if each != rank}
    config = {
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(ranks),
        "use_dora": bool(change.magnitudes),
    }
    said = {f"{_UNET}{key}": value for key, value in config.items()}
    return {"lora_adapter_metadata": json.dumps(said, sort_keys=True)}


def difference_tensors(change: WeightDelta) -> dict[str, Tensor]:
    """Whole differences as ComfyUI, Forge and A1111 read them, without loss.

    LoRA factors are multiplied out in float32. Of a whole U-Net, layers have their original names:
    A1111 does not find all by those of diffusers.
    """
    deltas = _deltas(change)
    names = dict(zip(deltas, deltas, strict=True))
    if _LAST_NORM in deltas:
        originals = unet_names(deltas.keys()).items()
        names = {name: each.removeprefix(UNET_PREFIX) for name, each in originals}
    return {
        _kohya_name(names[name]) + (".diff_b" if name.endswith(".bias") else ".diff"): delta
        for name, delta in deltas.items()
    }


def low_rank(
    change: WeightDelta,
    rank: int | Mapping[str, int],
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[WeightDelta, float]:
    """The nearest factors of a rank to differences of matrices and kernels, by SVD.

    With ranks by name, what has none, or 0, is left out. Returns them beside the factors that there
    were, and the share of the differences' squared norm that they keep; what is no matrix (biases,
    norms) is left out. Equal input gives equal factors. `on_progress` gets (done, total).
    """
    factors = dict(change.factors)
    kept = total = 0.0
    for done, (name, delta) in enumerate(change.deltas.items(), 1):
        whole = delta.float()
        total += squared_norm(whole)
        if on_progress:
            on_progress(done, len(change.deltas))
        own = rank if isinstance(rank, int) else rank.get(name, 0)
        if delta.ndim < 2 or not own:
            continue
        left, values, right = _leading(whole.flatten(1), own)
        kept += squared_norm(values)
        root = values.sqrt()
        down = (root[:, None] * right.T).reshape(len(root), *delta.shape[1:])
        factors[name] = ((left * root).contiguous(), down.contiguous())
    return WeightDelta({}, factors, change.magnitudes), min(kept / total, 1.0) if total else 1.0


def squared_norm(tensor: Tensor) -> float:
    """The sum of its squares, in float64, so that large numbers do not overflow."""
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2


def _leading(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading singular vectors and values: (m, r), (r,), (n, r)."""
    rank = min(rank, *matrix.shape)
    if (rank + _EXTRA_COLUMNS) * 4 >= min(matrix.shape):
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        right = right.T
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            left, values, right = torch.svd_lowrank(matrix, rank + _EXTRA_COLUMNS, niter=4)
    return left[:, :rank], values[:rank], right[:, :rank]


def _deltas(change: WeightDelta) -> Mapping[str, Tensor]:
    products = {
        name: (up.float() @ down.float().flatten(1)).reshape(len(up), *down.shape[1:])
        for name, (up, down) in change.factors.items()
    }
    return change.deltas | products


def _layer(name: str) -> str:
    """`conv_in` of `conv_in.weight`."""
    return name.rpartition(".")[0]


def _diffusers_layer(name: str) -> str:
    """`unet.conv_in`, or `text_encoder_2.text_model.encoder.layers.0.mlp.fc1`."""
    if text := _TEXT_LAYER.fullmatch(_layer(name)):
        return f"text_encoder{_SECOND.get(text[1], '')}.text_model.{text[2]}"
    return _UNET + _layer(name)


def _kohya_name(name: str, num_encoders: int = 1) -> str:
    layer = _layer(name)
    if text := _TEXT_LAYER.fullmatch(layer):
        number = str(int(text[1]) + 1) if num_encoders > 1 else ""
        return f"lora_te{number}_text_model_{text[2].replace('.', '_')}"
    return _KOHYA + _LABELS.get(layer, layer).replace(".", "_")


def _as_wide(up: Tensor, down: Tensor) -> Tensor:
    """`up` (out, r) with as many dimensions as `down`: a 1x1 convolution after another."""
    return up.reshape(*up.shape, *(1,) * (down.ndim - 2))

"""Files as other tools write them, small, without a deep-learning library."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

WIDTH = 768
"""Of SD 1.x."""


def write_embedding(path: Path, seed: int = 0, *, width: int = WIDTH, **said: str) -> Path:
    """One of kohya's, of two vectors."""
    return _write(path, {"emb_params": _random(seed, 2, width)}, said)


def write_lora(path: Path, seed: int = 0, *, width: int = WIDTH, **said: str) -> Path:
    """One of kohya's, of one layer of cross-attention; `said` without its prefix `ss_`."""
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {
        f"{layer}.lora_down.weight": _random(seed, 4, width),
        f"{layer}.lora_up.weight": _random(seed + 1, 1280, 4),
        f"{layer}.alpha": np.array(4.0, np.float32),
    }
    return _write(path, tensors, {f"ss_{key}": text for key, text in said.items()})


def _random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16)


def _write(path: Path, tensors: Mapping[str, np.ndarray], said: Mapping[str, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), path, metadata=dict(said) or None)
    return path

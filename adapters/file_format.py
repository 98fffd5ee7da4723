"""What a version of a concept is on disk: one safetensors file that says what it fits."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..registry.errors import InvalidWeights, NotFinite, StorageError
from .tensor_file import write_tensors

FORMAT = "conceptry-adapter 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterMetadata:
    """What an adapter was made for: a base model's weights, a category, tokens in a prompt."""

    base_sha256: str
    method: str
    category: str
    num_tokens: int
    names_category: bool
    stage_order: str = ""
    """Of a staged token: which end of time its first stage is."""


def write_adapter(path: Path, state: Mapping[str, Tensor], fits: AdapterMetadata) -> None:
    """Write an adapter's tensors; equal ones give equal files.

    Raises `NotFinite`
    for what could not be read again, and `StorageError` if the disk refuses; leaves no half of a
    file.
    """
    if not all(tensor.isfinite().all() for tensor in state.values()):
        raise NotFinite(
            "what was learned is not finite",
            hint="a lower learning rate, as --set stage3.learning_rate=1e-6",
        )
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    try:
        write_tensors(path, tensors, {FORMAT: json.dumps(asdict(fits))})
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error}", hint="make room, and go on") from error


def read_adapter(path: Path) -> tuple[dict[str, Tensor], AdapterMetadata]:
    """The tensors and what they fit. Raises `InvalidWeights` for another kind of file."""
    try:
        with safe_open(path, "pt") as opened:
            metadata = opened.metadata() or {}
            if FORMAT not in metadata:
                raise InvalidWeights(f"{path.name} is no adapter that this program can read")
            fits = AdapterMetadata(**json.loads(metadata[FORMAT]))
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InvalidWeights(f"{path.name} is no sound adapter: {error}") from error
    if not all(torch.isfinite(tensor).all() for tensor in state.values()):
        raise InvalidWeights(f"{path.name} holds values that are not finite")
    return state, fits

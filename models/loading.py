"""From a base model's name to a pipeline in memory, and the hash that says which one it was."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open
from transformers.utils import logging as transformers_logging

from ..registry.errors import InvalidInput, InvalidWeights, NotFound
from .bases import DEFAULT_BASE, Base, find_base
from .hashes import hash_of, hash_of_folder


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """A base model in memory.

    `sha256` identifies its weights: the hash of a single file, or of the hashes of a folder's
    files in the order of their names.
    """

    base: Base
    pipeline: Any
    sha256: str


def load_base(
    name: str = DEFAULT_BASE, *, device: str | None = None, offline: bool = False
) -> LoadedBase:
    """Load a base model for drawing: float16 on a CUDA GPU, float32 elsewhere.

    What a hub has to send is fetched, unless `offline`. Raises `NotFound` if there is no such
    model, `InvalidWeights` if its files are damaged, `InvalidInput` if it is none of SD 1.x, 2.x
    or SDXL.
    """
    base = find_base(name)
    _check_is_there(base)
    chosen = torch.device(device or _best_device())
    dtype = torch.float16 if chosen.type == "cuda" else torch.float32
    with _without_bars():
        if base.kind == "file":
            pipeline, sha256 = _from_file(base, dtype, offline), hash_of(Path(base.source))
        else:
            folder = Path(base.source if base.kind == "folder" else _fetched(base, offline))
            sha256 = hash_of_folder(folder)
            pipeline = _from_folder(base, folder, dtype)
    _check_kind(base, pipeline)
    pipeline.to(chosen)
    if chosen.type == "cuda":
        pipeline.vae.enable_slicing()  # a batch of SDXL's decoder would take tens of gigabytes
    pipeline.set_progress_bar_config(disable=True)
    return LoadedBase(base, pipeline, sha256)


def _check_is_there(base: Base) -> None:
    if base.kind != "hub" and not base.is_at_hand():
        raise NotFound(
            f"the base model {base.name} should be at {base.source}: there is none",
            hint="concept bases lists what is at hand",
        )


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _from_folder(base: Base, folder: Path, dtype: torch.dtype) -> Any:
    try:
        return DiffusionPipeline.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            safety_checker=None,
            feature_extractor=None,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InvalidWeights(f"{base.name} cannot be loaded: {_short(error)}") from error


def _from_file(base: Base, dtype: torch.dtype, offline: bool) -> Any:
    path = Path(base.source)
    names = _tensor_names(path)
    is_xl = any(name.startswith("conditioner.embedders.1.") for name in names)
    if not any(name.startswith("model.diffusion_model.") for name in names):
        raise InvalidInput(
            f"{base.name} is not a whole base model: it has no U-Net",
            hint="name the checkpoint that a LoRA or an embedding was made for",
        )
    kind = StableDiffusionXLPipeline if is_xl else StableDiffusionPipeline
    options = {"config": base.config} if base.config else {}
    try:
        return kind.from_single_file(
            path,
            dtype=dtype,
            local_files_only=offline or base.config is not None,
            safety_checker=None,
            **options,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InvalidInput(
            f"{base.name} cannot be loaded: {_short(error)}",
            hint=f"its configuration and tokenizer may stand as a folder at {path.with_suffix('')}",
        ) from error


def _tensor_names(path: Path) -> list[str]:
    try:
        with safe_open(path, "pt") as opened:
            return list(opened.keys())
    except SafetensorError as error:
        raise InvalidWeights(f"{path} is not sound safetensors: {_short(error)}") from error


def _fetched(base: Base, offline: bool) -> str:
    """The folder of a hub repository in the cache, downloaded if it has to be."""
    try:
        return str(
            DiffusionPipeline.download(base.source, use_safetensors=True, local_files_only=offline)
        )
    except (OSError, ValueError) as error:  # hub errors are OSErrors
        why = "is not on this machine" if offline else f"cannot be fetched: {_short(error)}"
        raise NotFound(
            f"the base model {base.source} {why}",
            hint="concept bases lists what is at hand; --base also takes a folder or file",
        ) from error


def _check_kind(base: Base, pipeline: Any) -> None:
    if not isinstance(pipeline, (StableDiffusionPipeline, StableDiffusionXLPipeline)):
        raise InvalidInput(
            f"{base.name} is a {type(pipeline).__name__}: only SD 1.x, 2.x and SDXL are known"
        )


def _short(error: Exception) -> str:
    """The beginning of what a library says."""
    return re.split(r"\n| \(|\. ", str(error).strip())[0][:200]


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep the libraries' progress bars and deprecations off the terminal."""
    transformers_logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.enable_progress_bar()
        diffusers_logging.enable_progress_bar()

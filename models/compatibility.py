"""Checks that files are a base model that can be used here; each fault is one clear line."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from diffusers import (
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from safetensors import SafetensorError, safe_open

from ..registry.errors import InvalidInput, InvalidWeights
from .bases import Base
from .file_kinds import kind_of_tensors

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PIPELINES = {
    "StableDiffusionPipeline": StableDiffusionPipeline,
    "StableDiffusionXLPipeline": StableDiffusionXLPipeline,
    "StableDiffusionInpaintPipeline": StableDiffusionInpaintPipeline,
    "StableDiffusionXLInpaintPipeline": StableDiffusionXLInpaintPipeline,
}
_FAMILIES = {
    "Flux": "FLUX",
    "StableDiffusion3": "Stable Diffusion 3",
    "InstructPix2Pix": "a model that edits pictures",
}
_CHANNELS = {
    5: "a depth model",
    7: "an upscaling model",
    8: "a model that edits pictures, as InstructPix2Pix",
}
_DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_NO_WEIGHTS = ("position_ids",)
_PREDICTIONS = ("epsilon", "v_prediction", "sample")


class Named(Protocol):
    """A base model or a ControlNet, as errors name it."""

    @property
    def name(self) -> str:
        """Its name."""
        ...


def pipeline_class_of(base: Base, index: Mapping[str, object]) -> "type[DiffusionPipeline]":
    """The class that a pipeline's index names. Raises `InvalidInput` for an unknown one."""
    named = index.get("_class_name")
    if isinstance(named, str) and named in _PIPELINES:
        return _PIPELINES[named]
    named = named[:60] if isinstance(named, str) else "pipeline without a name"
    family = next((f" ({name})" for word, name in _FAMILIES.items() if word in named), "")
    raise InvalidInput(
        f"{base.name} is a {named}{family}: only SD 1.x, 2.x and SDXL are known",
        hint="concept bases lists what is at hand",
    )


def check_channels(base: Base, found: object, of_latents: object) -> None:
    """Raise `InvalidInput` for a U-Net whose input is not latents, with a mask or without.

    Inpainting models get a mask and further latents beside them.
    """
    if found != of_latents and not takes_mask(found, of_latents):
        kind = _CHANNELS.get(found) if isinstance(found, int) else None
        raise InvalidInput(
            f"{base.name} is {kind or 'another kind of model'}: its U-Net takes {found!r} channels "
            f"and not the {of_latents!r} of latents, so it does not draw from a prompt alone",
            hint="name the base model that it was made from, or one of: concept bases",
        )


def takes_mask(channels: object, of_latents: object) -> bool:
    """Whether a U-Net of so many channels gets latents, a mask, and what is outside it."""
    return isinstance(of_latents, int) and channels == 2 * of_latents + 1


# --- weights files --------------------------------------------------------------------------------

UNET_PREFIX, VAE_PREFIX, TEXT_PREFIX, TEXT_PREFIX_OF_XL = (
    "model.diffusion_model.",
    "first_stage_model.",
    "cond_stage_model.",
    "conditioner.embedders.",
)
SINGLE_FILE = (UNET_PREFIX, VAE_PREFIX, TEXT_PREFIX, TEXT_PREFIX_OF_XL)
"""How the names of a base model's tensors begin in a single file."""
_IN = f"{UNET_PREFIX}input_blocks.0.0.weight"
_LATENTS_IN = f"{VAE_PREFIX}decoder.conv_in.weight"


def check_tensors(path: Path, used: str | tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """The shapes of a file's tensors, by name, those that begin with `used` being numbers."""
    try:
        if not path.is_file():
            raise InvalidWeights(
                f"{path} cannot be loaded: it is missing", hint="get the model's files again"
            )
        with safe_open(path, "pt") as opened:
            tensors = {
                name: opened.get_slice(name)
                for name in opened.keys()  # noqa: SIM118 (not a mapping)
            }
            for name, tensor in tensors.items():
                dtype = tensor.get_dtype()
                if dtype in _DTYPES or name.endswith(_NO_WEIGHTS) or not name.startswith(used):
                    continue
                raise InvalidWeights(
                    f"{path}: tensor {name} is {dtype}: only floating-point weights are read",
                    hint="look for the model in half or full precision",
                )
            return {name: tuple(tensor.get_shape()) for name, tensor in tensors.items()}
    except (SafetensorError, OSError) as error:
        raise InvalidWeights(
            f"{path} cannot be loaded: it is not sound safetensors: {short(error)}",
            hint="get the file again: it is damaged, or was not written to its end",
        ) from error


def check_is_whole(base: Base, tensors: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a single file is SDXL. Raises `InvalidInput` if it is no complete base model."""

    def has(beginning: str) -> bool:
        return any(name.startswith(beginning) for name in tensors)

    is_xl = has(f"{TEXT_PREFIX_OF_XL}1.")
    if _IN not in tensors:
        kind = kind_of_tensors(tensors) or "not a whole base model"
        raise InvalidInput(
            f"{base.name} is {kind}: it has no U-Net of SD 1.x, 2.x or SDXL with text encoder and "
            "VAE",
            hint="name the checkpoint that it was made for, or one of: concept bases",
        )
    if has(TEXT_PREFIX_OF_XL) and not is_xl:
        raise InvalidInput(f"{base.name} is SDXL's refiner: it does not draw from a prompt alone")
    for what, is_there in (("VAE", has(VAE_PREFIX)), ("text encoder", has(TEXT_PREFIX) or is_xl)):
        if not is_there:
            raise InvalidInput(
                f"{base.name} is not a whole base model: it has no {what}",
                hint="look for a checkpoint that has it, or a diffusers folder",
            )
    check_channels(base, *_channels_of(tensors))
    return is_xl


def file_takes_mask(tensors: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a single file's U-Net is an inpainting model's."""
    return takes_mask(*_channels_of(tensors))


def _channels_of(tensors: Mapping[str, tuple[int, ...]]) -> tuple[int | None, int]:
    """The channels that a single file's U-Net takes, and those of its latents."""
    taken, latents = (tensors.get(name, ()) for name in (_IN, _LATENTS_IN))
    return taken[1] if len(taken) == 4 else None, latents[1] if latents[1:] else 4


def prediction_type_of(path: Path, tensors: Collection[str]) -> str | None:
    """What a tensor's name or the metadata (stability.ai's ModelSpec) says that a file predicts.

    In diffusers' words, `epsilon` or `v_prediction`; None if neither is said.
    """
    with safe_open(path, "pt") as opened:
        metadata = opened.metadata() or {}
    if "v_pred" in tensors:
        return "v_prediction"
    kind = metadata.get("modelspec.prediction_type", "").lower()
    return {"v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon"}.get(kind)


def missing_tensors(model: Named, missing: Sequence[str]) -> InvalidWeights:
    """The error for missing tensors."""
    return InvalidWeights(
        f"{model.name} lacks tensors: {missing[0]} ({len(missing)} in all)",
        hint="get its files again",
    )


# --- what was loaded ------------------------------------------------------------------------------


def check_fits(base: Base, pipeline: "DiffusionPipeline") -> None:
    """Raise `InvalidInput` if parts of a pipeline are not made for each other."""
    unet, encoders = pipeline.unet.config, list(_text_encoders(pipeline))
    is_xl = len(encoders) > 1
    for tokenizer, encoder in encoders:
        _check_tokenizer(base, tokenizer, encoder)
    width = sum(encoder.config.hidden_size for _, encoder in encoders)
    latents = pipeline.vae.config.latent_channels
    fits = (
        ("text encoders", width, unet.cross_attention_dim),
        ("VAE", latents, unet.out_channels),
        ("U-Net", takes_mask(unet.in_channels, latents) or unet.in_channels == latents, True),
        ("U-Net", unet.addition_embed_type, "text_time" if is_xl else None),
        ("scheduler", pipeline.scheduler.config.get("prediction_type") in _PREDICTIONS, True),
    )
    for part, found, expected in fits:
        if found != expected:
            raise InvalidInput(f"{base.name} has parts that do not fit together: its {part}")
    noise = pipeline.scheduler.config
    if noise.get("rescale_betas_zero_snr") and noise["prediction_type"] == "epsilon":
        raise InvalidInput(
            f"{base.name} predicts noise, which says nothing of a picture at zero terminal SNR",
            hint="in scheduler_config.json: prediction_type v_prediction, "
            "or rescale_betas_zero_snr false",
        )
    if not isinstance(unet.sample_size, int):
        raise InvalidInput(f"{base.name}: its U-Net does not say how large its pictures are")


def _text_encoders(
    pipeline: "DiffusionPipeline",
) -> Iterator["tuple[PreTrainedTokenizerBase | None, PreTrainedModel]"]:
    for ending in ("", "_2"):
        if encoder := getattr(pipeline, f"text_encoder{ending}", None):
            yield getattr(pipeline, f"tokenizer{ending}"), encoder


def _check_tokenizer(
    base: Base, tokenizer: "PreTrainedTokenizerBase | None", encoder: "PreTrainedModel"
) -> None:
    """Raise `InvalidInput` if a tokenizer has no words, or others than its text encoder."""
    if tokenizer is None:
        raise InvalidInput(f"{base.name} has no tokenizer")
    vocabulary = len(encoder.get_input_embeddings().get_parameter("weight"))
    ids = tokenizer("a photo of a dog", add_special_tokens=False).input_ids
    is_known = any(each != tokenizer.unk_token_id for each in ids) and max(ids) < vocabulary
    if not is_known or len(tokenizer) > vocabulary:
        raise InvalidInput(
            f"{base.name} has a tokenizer that does not fit its text encoder",
            hint="get the base model's files again: vocab.json and merges.txt, or tokenizer.json",
        )
    longest = encoder.config.max_position_embeddings
    tokenizer.model_max_length = min(tokenizer.model_max_length, longest)


@contextmanager
def as_invalid_weights(model: Named, hint: str | None = None) -> Iterator[None]:
    """Turn what libraries raise over a model's files into `InvalidWeights`."""
    try:
        yield
    except (InvalidInput, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if isinstance(error, NotImplementedError) and "meta tensor" in str(error):
            raise InvalidWeights(f"{model.name} lacks tensors") from error
        raise InvalidWeights(f"{model.name} cannot be loaded: {short(error)}", hint=hint) from error


def short(error: Exception) -> str:
    """The beginning of a library's error message."""
    return re.split(r"\n| \(|\. ", str(error).strip())[0][:200] or type(error).__name__

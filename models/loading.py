"""Loading a base model by name, and the hash that identifies its weights."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import hf_hub_download
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection
from transformers.utils import logging as transformers_logging

from ..registry.errors import InvalidInput, InvalidWeights, NotFound, quoted
from .backbone import Backbone
from .bases import DEFAULT_BASE, Base, find_base
from .compatibility import (
    SINGLE_FILE,
    Named,
    as_invalid_weights,
    check_channels,
    check_fits,
    check_is_whole,
    check_tensors,
    file_takes_mask,
    missing_tensors,
    pipeline_class_of,
    prediction_type_of,
)
from .fetching import fetching
from .folder import PICKLES, PIPELINE_FILE, Part, how_to_convert, parts_of, read_index, read_object
from .hashes import hash_of, hash_of_configuration, hash_of_folder
from .sd import StableDiffusion
from .sdxl import StableDiffusionXL


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """A base model in memory.

    `sha256` identifies its weights: the hash of a single file, or of the hashes of a folder's
    files in the order of their names. `offline` says that nothing is to be downloaded for it.
    `configuration_sha256` is that of what its folder says beside weights.
    """

    base: Base
    backbone: Backbone
    sha256: str
    offline: bool = False
    configuration_sha256: str = ""

    def check_is(self, sha256: str, name: str | None, made: str, *, otherwise: str) -> None:
        """Raise `InvalidInput` unless what was `made` with a base model was made with this one.

        `name` is what that was called, if it is known; under the same name it may have had other
        weights. `made` begins the message: `rex@1 was trained on`.
        """
        if sha256 == self.sha256:
            return
        if name == self.base.name:
            raise InvalidInput(f"{made} {name} when that had other weights", hint=otherwise)
        raise InvalidInput(
            f"{made} another base model than {self.base.name}",
            hint=f"--base {quoted(name)}" if name else otherwise,
        )


FAMILIES: tuple[type[Backbone], ...] = (StableDiffusion, StableDiffusionXL)
"""The known families of base models; a new one is a file, and an entry here."""


def backbone_of(pipeline: DiffusionPipeline) -> Backbone:
    """What a pipeline has to offer. Raises `InvalidInput` if its family is not known."""
    for family in FAMILIES:
        if family.accepts(pipeline):
            return family(pipeline)
    known = ", ".join(family.family for family in FAMILIES)
    raise InvalidInput(f"{type(pipeline).__name__} is of an unknown family, not one of {known}")


def load_base(
    name: str = DEFAULT_BASE, *, device: str | None = None, offline: bool = False
) -> LoadedBase:
    """Load a base model: float16 on a CUDA GPU, float32 elsewhere.

    Downloads from the hub, unless `offline`. Raises `NotFound` if there is no such
    model, `InvalidWeights` if its files are damaged, `InvalidInput` if it is none of SD 1.x, 2.x
    or SDXL.
    """
    base = find_base(name)
    _check_is_there(base)
    chosen = torch.device(device or best_device())
    dtype = torch.float16 if chosen.type == "cuda" else torch.float32
    with without_bars():
        if base.kind == "file":
            folder = base.configuration
            pipeline, sha256 = _from_file(base, dtype, offline), hash_of(Path(base.source))
        else:
            folder = base.configuration or _fetched(base, offline)
            pipeline, sha256 = _from_folder(base, Path(folder), dtype)
        configuration = hash_of_configuration(folder)
    with as_invalid_weights(base):
        check_fits(base, pipeline)
    pipeline.to(chosen)
    if chosen.type == "cuda":
        pipeline.vae.enable_slicing()  # a batch of SDXL's decoder would take tens of gigabytes
    pipeline.set_progress_bar_config(disable=True)
    return LoadedBase(base, backbone_of(pipeline), sha256, offline, configuration)


def _check_is_there(base: Base) -> None:
    if base.kind != "hub" and not base.is_at_hand():
        raise NotFound(
            f"the base model {base.name} should be at {base.source}: there is none",
            hint="concept bases lists what is at hand",
        )


def best_device() -> str:
    """Where networks are put if nobody says where: a GPU, if there is one."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


# --- a folder -------------------------------------------------------------------------------------

_TEXT_ENCODERS = {
    "CLIPTextModel": CLIPTextModel,
    "CLIPTextModelWithProjection": CLIPTextModelWithProjection,
}
_NETWORKS = {
    "unet": {"UNet2DConditionModel": UNet2DConditionModel},
    "vae": {"AutoencoderKL": AutoencoderKL},
    "text_encoder": _TEXT_ENCODERS,
    "text_encoder_2": _TEXT_ENCODERS,
}
"""The parts that have weights, and the classes that they may be of."""
_NOT_LOADED = ("safety_checker", "feature_extractor", "image_encoder")


def _from_folder(base: Base, folder: Path, dtype: torch.dtype) -> tuple[DiffusionPipeline, str]:
    """The pipeline and its weights' hash; cheap checks come first."""
    pipeline_class = pipeline_class_of(base, read_index(folder))
    parts = parts_of(folder)
    is_xl = pipeline_class in (StableDiffusionXLPipeline, StableDiffusionXLInpaintPipeline)
    networks = [name for name in _NETWORKS if is_xl or not name.endswith("_2")]
    others = ["scheduler", "tokenizer", *(["tokenizer_2"] if is_xl else [])]
    for name in (*networks, *others):
        if name not in parts or not parts[name].folder.is_dir():
            raise InvalidWeights(f"{base.name} cannot be loaded: it has no {name}")
    unet, vae = (read_object(parts[name].folder / "config.json") for name in ("unet", "vae"))
    check_channels(base, unet.get("in_channels", 4), vae.get("latent_channels", 4))
    sha256 = hash_of_folder(folder)
    with as_invalid_weights(base):
        loaded = {name: _network(base, name, parts[name], dtype) for name in networks}
        left_out = dict.fromkeys(_NOT_LOADED if not is_xl else _NOT_LOADED[1:])
        pipeline = pipeline_class.from_pretrained(
            folder, **loaded, **left_out, local_files_only=True
        )
    return pipeline, sha256


def _network(base: Base, name: str, part: Part, dtype: torch.dtype) -> nn.Module:
    known = _NETWORKS[name]
    if part.class_name not in known:
        raise InvalidInput(
            f"{base.name} has a {part.class_name[:60]} as its {name}: expected {' or '.join(known)}"
        )
    convert = how_to_convert(part.folder.parent)
    load = known[part.class_name].from_pretrained
    return load_network(base, name, part, load, dtype, convert)


def load_network(
    model: Named,
    name: str,
    part: Part,
    from_pretrained: Callable[..., object],
    dtype: torch.dtype,
    convert: str,
) -> nn.Module:
    """A part with weights, all of them; raises `InvalidWeights` if they are not.

    `from_pretrained` is its class's, and `convert` says how pickles become safetensors.
    """
    if not part.files:
        names = sorted(path.name for path in part.folder.iterdir())
        if pickles := [each for each in names if each.endswith(PICKLES)]:
            raise InvalidWeights(
                f"{model.name} has its {name} as {pickles[0]} alone, which may run code when it is "
                "loaded; only safetensors is read",
                hint=convert,
            )
        raise InvalidWeights(f"{model.name} cannot be loaded: there are no weights of its {name}")
    for path in part.files:
        check_tensors(path, "")
    loaded = from_pretrained(
        part.folder,
        dtype=dtype,
        variant=part.variant,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    network, found = cast("tuple[nn.Module, dict[str, list[str]]]", loaded)
    if missing := sorted(found["missing_keys"]):
        raise missing_tensors(model, [f"{name}.{each}" for each in missing])
    return network


# --- a single file --------------------------------------------------------------------------------


_SINGLE = {
    (False, False): StableDiffusionPipeline,
    (True, False): StableDiffusionXLPipeline,
    (False, True): StableDiffusionInpaintPipeline,
    (True, True): StableDiffusionXLInpaintPipeline,
}
"""(whether it is SDXL, whether it is an inpainting model) -> pipeline."""


def _from_file(base: Base, dtype: torch.dtype, offline: bool) -> DiffusionPipeline:
    path = Path(base.source)
    tensors = check_tensors(path, SINGLE_FILE)
    is_xl = check_is_whole(base, tensors)
    kind = _SINGLE[is_xl, file_takes_mask(tensors)]
    options = {"config": base.config} if base.config else {}
    if base.config:
        read_index(Path(base.config))
    beside = f"its configuration and tokenizer may stand as a folder at {path.with_suffix('')}"
    with as_invalid_weights(base, hint=beside):
        pipeline = kind.from_single_file(
            path,
            dtype=dtype,
            local_files_only=offline or base.config is not None,
            safety_checker=None,
            **options,
        )
    missing = [
        f"{part}.{name}"
        for part in _NETWORKS
        if (network := getattr(pipeline, part, None)) is not None
        for name, parameter in network.named_parameters()
        if parameter.is_meta
    ]
    if missing:
        raise missing_tensors(base, missing)
    if (said := prediction_type_of(path, tensors)) is not None:
        changed: dict[str, str | bool] = {"prediction_type": said}
        if said == "v_prediction" and "ztsnr" in tensors:
            changed |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        config: dict[str, Any] = dict(pipeline.scheduler.config) | changed
        # among them also what its kind does not know, but others do
        defaults = [name for name in config.get("_use_default_values", ()) if name not in changed]
        config["_use_default_values"] = defaults
        pipeline.scheduler = type(pipeline.scheduler).from_config(config)
    return pipeline


# --- a hub ----------------------------------------------------------------------------------------


def _fetched(base: Base, offline: bool) -> str:
    """The folder of a hub repository in the cache, downloaded if it has to be.

    Its index is checked before the rest is downloaded.
    """
    hint = "concept bases lists what is at hand; --base also takes a folder or file"
    with fetching(f"the base model {base.source}", offline=offline, hint=hint):
        index = hf_hub_download(base.source, PIPELINE_FILE, local_files_only=offline)
        pipeline_class_of(base, read_index(Path(index).parent))
        try:
            return _downloaded(base, offline)
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                return _downloaded(base, offline, "fp16")
            raise


def _downloaded(base: Base, offline: bool, variant: str | None = None) -> str:
    folder = DiffusionPipeline.download(
        base.source, use_safetensors=True, local_files_only=offline, variant=variant
    )
    return str(folder)


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep the libraries' progress bars, reports and deprecations off the terminal."""
    libraries = (transformers_logging, diffusers_logging)
    said = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.disable_progress_bar()
        library.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for library, verbosity in zip(libraries, said, strict=True):
            library.enable_progress_bar()
            library.set_verbosity(verbosity)

"""ControlNets (Zhang et al. 2023): pictures that say where things are, beside the prompt."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from diffusers import ControlNetModel
from huggingface_hub import hf_hub_download

from ..registry.errors import InvalidInput, InvalidWeights, NotFound
from .bases import SHIPPED, ControlSource
from .compatibility import as_invalid_weights
from .fetching import fetching
from .folder import CONFIG_FILE, Part, how_to_convert, read_object, weights_in
from .hashes import MANIFEST, check_hash, hash_of_all
from .loading import LoadedBase, load_network, without_bars

CLASS = "ControlNetModel"
_HUB_WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
)


@dataclass(frozen=True, slots=True)
class LoadedControl:
    """A ControlNet in memory; `sha256` is that of its weights file, or of several files' hashes."""

    name: str
    network: ControlNetModel
    sha256: str


def load_control(source: ControlSource, base: LoadedBase) -> LoadedControl:
    """Load a ControlNet onto the base model's device, in its precision.

    Downloads from the hub, unless the base model was loaded offline. Raises `NotFound` if there is
    none, `InvalidWeights` if its files are damaged, `InvalidInput` if it is none, or one of another
    base model.
    """
    folder = _folder_of(source, base.offline)
    config = read_object(folder / CONFIG_FILE)
    _check_kind(source, config)
    _check_fits(source, config, base)
    files, variant = weights_in(folder, "diffusers")
    part = Part(folder, "diffusers", CLASS, files, variant)
    denoiser = base.backbone.denoiser
    with without_bars(), as_invalid_weights(source):
        convert = how_to_convert(folder, CLASS)
        load = ControlNetModel.from_pretrained
        network = load_network(source, "network", part, load, denoiser.dtype, convert)
    for name, parameter in network.named_parameters():
        if not parameter.isfinite().all():
            raise InvalidWeights(
                f"the ControlNet {source.name} cannot be used: {name} has values that are not "
                "finite",
                hint="get its files again",
            )
    network.to(base.backbone.device).requires_grad_(False).eval()
    return LoadedControl(source.name, cast("ControlNetModel", network), _hash(source, files))


def hash_of_control(source: ControlSource, *, offline: bool = False) -> str:
    """The `sha256` that a ControlNet has once it is loaded. Raises as `load_control`."""
    files, _ = weights_in(_folder_of(source, offline), "diffusers")
    with as_invalid_weights(source):
        return _hash(source, files)


def _folder_of(source: ControlSource, offline: bool) -> Path:
    folder = Path(source.source) if source.kind == "folder" else _fetched(source, offline)
    _check_is_there(source, folder)
    return folder


def _check_is_there(source: ControlSource, folder: Path) -> None:
    if (folder / CONFIG_FILE).is_file():
        return
    if source.is_shipped:
        raise NotFound(
            f"the miniature's ControlNet {source.name} is not there: its weights ship with the "
            "program",
            hint="install it again, or name another: IMAGE:FOLDER",
        )
    raise NotFound(f"the ControlNet {source.name} should be at {folder}: there is none")


def _check_kind(source: ControlSource, config: dict[str, object]) -> None:
    named = config.get("_class_name")
    if named != CLASS:
        known = f"a {named[:60]}" if isinstance(named, str) else "not a model of diffusers"
        raise InvalidInput(f"{source.name} is {known}: expected a {CLASS}")
    if config.get("global_pool_conditions"):
        raise InvalidInput(
            f"{source.name} is a ControlNet that shuffles: only those that say where things are "
            "can be used"
        )


def _check_fits(source: ControlSource, config: dict[str, object], base: LoadedBase) -> None:
    """Raise `InvalidInput` if its outputs are not of the U-Net's shapes, or its inputs of others.

    It may have fewer attention layers than the U-Net.
    """
    default = {
        "in_channels": 4,
        "layers_per_block": 2,
        "block_out_channels": [320, 640, 1280, 1280],
    }
    default |= {"cross_attention_dim": 1280, "conditioning_channels": 3}
    default |= {"conditioning_embedding_out_channels": [16, 32, 96, 256]}
    found = {**default, **config}
    unet = base.backbone.denoiser.config
    stages = found["conditioning_embedding_out_channels"]
    factor = 2 ** (len(stages) - 1) if isinstance(stages, (list, tuple)) else None
    expected = (
        ("cross-attention width", found["cross_attention_dim"], unet.cross_attention_dim),
        ("block channels", found["block_out_channels"], unet.block_out_channels),
        ("layers in a block", found["layers_per_block"], unet.layers_per_block),
        ("latent channels", found["in_channels"], unet.out_channels),
        ("added conditioning", found.get("addition_embed_type"), unet.addition_embed_type),
        (
            "width of added conditioning",
            found.get("projection_class_embeddings_input_dim"),
            unet.projection_class_embeddings_input_dim,
        ),
        ("pixels of a latent position", factor, base.backbone.latent_factor),
        ("channels of control pictures", found["conditioning_channels"], 3),
    )
    for what, its, ours in expected:
        if _plain(its) != _plain(ours):
            raise InvalidInput(
                f"{source.name} is a ControlNet of another base model than {base.base.name}: "
                f"{what} {_shown(its)}, not {_shown(ours)}",
                hint="name one that was trained for this base model",
            )


def _plain(value: object) -> object:
    return list(value) if isinstance(value, (list, tuple)) else value


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)[:60]


def _hash(source: ControlSource, files: tuple[Path, ...]) -> str:
    """Of the weights; a shipped file's is compared with the manifest."""
    if source.is_shipped:
        promised = json.loads((SHIPPED / MANIFEST).read_text(encoding="utf-8"))["files"]
        for path in files:
            check_hash(path, promised.get(path.relative_to(SHIPPED).as_posix(), {}).get("sha256"))
    return hash_of_all(files)


def _fetched(source: ControlSource, offline: bool) -> Path:
    """The folder of a hub repository in the cache; downloaded if it has to be."""
    hint = "a ControlNet can also be a folder, with config.json and safetensors"
    with fetching(f"the ControlNet {source.source}", offline=offline, hint=hint):
        path = hf_hub_download(source.source, CONFIG_FILE, local_files_only=offline)
        _check_kind(source, read_object(Path(path)))
        whole, half = _HUB_WEIGHTS
        try:
            hf_hub_download(source.source, whole, local_files_only=offline)
        except (OSError, ValueError):
            hf_hub_download(source.source, half, local_files_only=offline)
        return Path(path).parent

"""The parts of a diffusers folder, and the weights files that are loaded of each. Loads none."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..registry.errors import InvalidInput, InvalidWeights

PIPELINE_FILE = "model_index.json"
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
_LARGEST = 1 << 24
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SHARD = re.compile(r"\w[\w.-]*\.safetensors")


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a pipeline, with the library and the class that its index names.

    `files` are the weights that are loaded, in the order of their names, none for a part that has
    none; `variant` is the one that they are of, as `fp16`, where there are no plain ones.
    """

    folder: Path
    library: str
    class_name: str
    files: tuple[Path, ...]
    variant: str | None


def read_index(folder: Path) -> dict[str, object]:
    """What a pipeline's index says. Raises `InvalidInput`."""
    return read_object(folder / PIPELINE_FILE)


def parts_of(folder: Path) -> dict[str, Part]:
    """The parts that a folder's index names. Raises `InvalidInput` and `InvalidWeights`."""
    found: dict[str, Part] = {}
    for name, value in sorted(read_index(folder).items()):
        match value:
            case [str(library), str(class_name)] if re.fullmatch(r"\w+", name):
                files, variant = weights_in(folder / name, library)
                found[name] = Part(folder / name, library, class_name, files, variant)
            case _:
                """A setting, or a part that is left out."""
    return found


def read_object(path: Path) -> dict[str, object]:
    """The object in a JSON file of a base model. Raises `InvalidInput` if there is none."""
    if not path.is_file():
        raise InvalidInput(f"{path} is no file")
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > _LARGEST:
        raise InvalidInput(f"{path} is larger than {_LARGEST >> 20} MiB")
    if data.startswith(_BYTE_ORDER_MARK):
        raise InvalidInput(
            f"{path} begins with a byte order mark", hint="save it as UTF-8 without one (no BOM)"
        )
    try:
        found = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise InvalidInput(f"{path} holds no JSON object")
    return found


def kind_of_folder(folder: Path) -> str:
    """What a folder without an index seems to be, as an error says it; empty if nobody knows."""
    names = set(os.listdir(folder)) if folder.is_dir() else set[str]()
    if "adapter_config.json" in names or any("lora" in name.lower() for name in names):
        return "a LoRA"
    if "config.json" not in names:
        return ""
    config = read_object(folder / "config.json")
    architectures = config.get("architectures")
    named = [config.get("_class_name"), *(architectures if isinstance(architectures, list) else ())]
    found = next((each for each in named if isinstance(each, str)), "")
    return f"a part alone ({found[:60]})" if found else ""


def how_to_convert(path: Path) -> str:
    """The command that makes safetensors of a folder or file of pickles."""
    load = "from_pretrained" if path.is_dir() else "from_single_file"
    made = f"{path.stem or path.name}-safetensors"
    return (
        "convert it, if you trust it: python -c 'from diffusers import StableDiffusionPipeline as "
        f'P; P.{load}("{path}").save_pretrained("{made}")\''
    )


def weights_in(folder: Path, library: str) -> tuple[tuple[Path, ...], str | None]:
    """The weights that diffusers and transformers take, and their variant.

    Plain ones go before others, of which fp16 is the first.
    """
    stem = "diffusion_pytorch_model" if library == "diffusers" else "model"
    try:
        names = os.listdir(folder)
    except OSError:
        return (), None
    pattern = re.compile(rf"{stem}\.(?:(\w+)\.safetensors|safetensors\.index\.(\w+)\.json)")
    others = {match[1] or match[2] for name in names if (match := pattern.fullmatch(name))}
    for variant in (None, *sorted(others, key=lambda each: (each != "fp16", each))):
        word = f".{variant}" if variant else ""
        whole = folder / f"{stem}{word}.safetensors"
        index = folder / f"{stem}.safetensors.index{word}.json"
        both = (index, whole) if library == "diffusers" else (whole, index)
        if chosen := next((path for path in both if path.name in names), None):
            return (_shards(index) if chosen == index else (whole,)), variant
    return (), None


def _shards(index: Path) -> tuple[Path, ...]:
    """The files among which an index spreads the tensors; all stand beside it."""
    places = read_object(index).get("weight_map")
    names = set(map(str, places.values())) if isinstance(places, dict) else set[str]()
    if not names or not all(map(_SHARD.fullmatch, names)):
        raise InvalidWeights(f"{index} does not say in which files the weights are")
    return tuple(index.with_name(name) for name in sorted(names))

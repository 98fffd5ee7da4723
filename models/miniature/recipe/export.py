"""Exporting finished trainings as the weights that ship: half precision, hashes, loss curves.

    python -m conceptry.models.miniature.recipe.export runs/miniature
    python -m conceptry.models.miniature.recipe.export runs/more --restore

`--restore` goes the other way: it lays out the shipped weights as if their stages had just ended,
so that any later stage, or `unet` with `--start`, can go on from them.
"""

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...bases import DEFAULT_BASE, SHIPPED
from ...hashes import MANIFEST, hash_of, hash_of_folder
from ...subject_encoder import learned_part
from ...subject_encoder_file import FILE, SubjectEncoderMetadata, write_subject_encoder
from ...vision import OWN
from ..architecture import make_clip, make_control, make_scheduler, make_unet, make_vae
from ..shipped import CLIP
from ..tokenizer import make_tokenizer
from .train import STAGES, Context, parameters_of, scaling_factor

MAX_BYTES = 45_000_000
LAYOUT = "layout"
"""The folder of the ControlNet for layouts, and its short name in `bases.yaml`."""


def export(miniature: Path, target: Path = SHIPPED) -> None:
    """Write a diffusers folder, with the encoders for evaluation and the loss curves beside it.

    Raises `ValueError` if it would be larger than `MAX_BYTES`.
    """
    tokenizer = make_tokenizer()
    unet_stage = load_file(miniature / "unet.safetensors")
    clip = make_clip(tokenizer)
    parts = {"text_encoder": clip.text_model, "unet": make_unet(), "vae": make_vae()}
    parts["text_encoder"].load_state_dict(parameters_of(unet_stage, "text"))
    parts["unet"].load_state_dict(parameters_of(unet_stage, "unet"))
    parts["vae"].load_state_dict(parameters_of(load_file(miniature / "decoder.safetensors"), "vae"))
    factor = scaling_factor(parts["vae"], Context(miniature, torch.device("cpu")))
    parts["vae"].register_to_config(scaling_factor=factor)
    for part in parts.values():
        part.half()
    pipeline = StableDiffusionPipeline(
        **parts,
        tokenizer=tokenizer,
        scheduler=make_scheduler(),  # pyright: ignore[reportArgumentType]
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    shutil.rmtree(target, ignore_errors=True)
    pipeline.save_pretrained(target)
    _let_plain_diffusers_load_float32(target)
    clip_stage = parameters_of(load_file(miniature / "clip-tune.safetensors"), "clip")
    picture_side = {k: v for k, v in clip_stage.items() if not k.startswith("text_model.")}
    _save_half(picture_side, target / CLIP)
    identity = parameters_of(load_file(miniature / "identity.safetensors"), "identity")
    _save_half(identity, target / "identity.safetensors")
    if (learned := miniature / "control.safetensors").exists():
        control = make_control(make_unet())
        control.load_state_dict(parameters_of(load_file(learned), "control"))
        control.half().save_pretrained(target / LAYOUT)
    _export_subject_encoder(miniature / "subject-encoder.safetensors", target)
    for name in STAGES:
        for ending in (".jsonl", ".json"):
            source = miniature / f"{name}{ending}"
            if source.exists():
                (target / "training").mkdir(exist_ok=True)
                shutil.copyfile(source, target / "training" / source.name)
    write_manifest(target)


def _export_subject_encoder(stage: Path, target: Path) -> None:
    """Write it, if it was trained, as made for the base model and picture encoder beside it."""
    if stage.exists():
        metadata = SubjectEncoderMetadata(
            base=DEFAULT_BASE,
            base_sha256=hash_of_folder(target),
            vision=OWN,
            vision_sha256=hash_of(target / CLIP),
        )
        learned = learned_part(parameters_of(load_file(stage), "encoder"))
        write_subject_encoder(target / FILE, learned, metadata)


def _let_plain_diffusers_load_float32(folder: Path) -> None:
    """Transformers loads what the configuration says, diffusers float32: let them agree."""
    path = folder / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "float32"}, indent=2))


def _save_half(weights: Mapping[str, Tensor], path: Path) -> None:
    save_file(
        {
            name: (value.half() if value.is_floating_point() else value).contiguous()
            for name, value in weights.items()
        },
        path,
    )


def write_manifest(folder: Path) -> None:
    """List every weights file with its hash, size and number of parameters."""
    files: dict[str, dict[str, str | int]] = {}
    total = 0
    for path in sorted(folder.rglob("*.safetensors")):
        path.chmod(0o644)
        tensors = load_file(path)
        size = path.stat().st_size
        total += size
        files[path.relative_to(folder).as_posix()] = {
            "sha256": hash_of(path),
            "bytes": size,
            "parameters": sum(tensor.numel() for tensor in tensors.values()),
        }
    if total > MAX_BYTES:
        raise ValueError(f"{total:,} bytes of weights are more than {MAX_BYTES:,}")
    (folder / MANIFEST).write_text(json.dumps({"bytes": total, "files": files}, indent=2) + "\n")


def restore(folder: Path, source: Path = SHIPPED) -> None:
    """Write the files that the stages left, from the weights that ship."""
    folder.mkdir(parents=True, exist_ok=True)
    text = _prefixed("text", load_file(source / "text_encoder" / "model.safetensors"))
    unet = load_file(source / "unet" / "diffusion_pytorch_model.safetensors")
    vae = _prefixed("vae", load_file(source / "vae" / "diffusion_pytorch_model.safetensors"))
    clip = _prefixed("clip", load_file(source / CLIP))
    layout = source / LAYOUT / "diffusion_pytorch_model.safetensors"
    control = [("control", _prefixed("control", load_file(layout)))] if layout.exists() else []
    clip |= {f"clip.text_model.{name.removeprefix('text.')}": v for name, v in text.items()}
    encoder = {"subject-encoder": source / FILE} if (source / FILE).exists() else {}
    for name, weights in (
        *((name, _prefixed("encoder", load_file(path))) for name, path in encoder.items()),
        ("clip", clip),
        ("clip-tune", clip),
        ("vae", vae),
        ("decoder", vae),
        ("unet", text | vae | _prefixed("unet", unet)),
        ("identity", _prefixed("identity", load_file(source / "identity.safetensors"))),
        *control,
    ):
        single = {
            key: value.float() if value.is_floating_point() else value
            for key, value in weights.items()
        }
        save_file(single, folder / f"{name}.safetensors")


def _prefixed(part: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{part}.{name}": value for name, value in weights.items()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--restore", action="store_true")
    options = parser.parse_args()
    (restore if options.restore else export)(options.folder)


if __name__ == "__main__":
    main()

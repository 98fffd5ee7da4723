"""Versions to export, and readers of what was exported that follow other tools' rules."""

import json
import re
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conceptry.adapters.file_format import AdapterMetadata, write_adapter
from conceptry.adapters.formats.exporting import ExportReport, export_version
from conceptry.adapters.formats.options import ExportOptions, parse_format
from conceptry.adapters.weight_delta import WeightDelta
from conceptry.generation import Request, SamplingSettings, generate
from conceptry.generation.prompt_syntax import resolve_version
from conceptry.models.loading import LoadedBase, load_base
from conceptry.models.single_file import unet_names
from conceptry.registry import Registry
from conceptry.registry.running import ADAPTER_FILE
from safetensors.torch import load_file
from torch import Tensor

SETTINGS = SamplingSettings(steps=3, guidance=3.0)
PREFIX = "model.diffusion_model."


@dataclass(slots=True)
class Taught:
    """A registry whose rex has versions for a base model, made without a training."""

    registry: Registry
    base: LoadedBase
    folder: Path
    seed: int = 0

    def random(self, *shape: int, scale: float) -> Tensor:
        """Other numbers each time."""
        self.seed += 1
        return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(self.seed))

    def vectors(self, *leading: int, name: str = "token") -> dict[str, Tensor]:
        """Of a new token, for each text encoder."""
        widths = [
            encoder.network.get_input_embeddings().get_parameter("weight").shape[1]
            for encoder in self.base.backbone.text_encoders
        ]
        return {
            f"{name}.{i}": self.random(*leading, width, scale=0.5) for i, width in enumerate(widths)
        }

    def factors(self, rank: int = 2) -> dict[str, Tensor]:
        """LoRA of all attention projections."""
        state: dict[str, Tensor] = {}
        for name, weight in self.base.backbone.parameters("denoiser").items():
            if ".to_" in name and name.endswith(".weight"):
                state[f"up.{name}"] = self.random(len(weight), rank, scale=0.3)
                state[f"down.{name}"] = self.random(rank, weight.shape[1], scale=0.3)
        return state

    def directed(self) -> dict[str, Tensor]:
        """The same, and of a convolution, with magnitudes (DoRA)."""
        state = self.factors()
        name = "mid_block.resnets.0.conv1.weight"
        shape = self.base.backbone.weights()[name].shape
        state[f"up.{name}"] = self.random(shape[0], 2, scale=0.3)
        state[f"down.{name}"] = self.random(2, *shape[1:], scale=0.3)
        for name, (up, down) in WeightDelta.from_state(state).factors.items():
            weight = self.base.backbone.weights()[name].detach().flatten(1)
            norms = (weight + up @ down.flatten(1)).norm(dim=1)
            state[f"magnitude.{name}"] = norms * (1 + self.random(len(norms), scale=0.1))
        return state

    def text_factors(self) -> dict[str, Tensor]:
        """LoRA of the text encoders' attention too."""
        state = self.factors()
        for name, weight in self.base.backbone.text_encoder_parameters().items():
            if "_proj.weight" in name and "self_attn" in name:
                state[f"up.{name}"] = self.random(len(weight), 3, scale=0.3)
                state[f"down.{name}"] = self.random(3, weight.shape[1], scale=0.3)
        return state

    def deltas(self, scale: float = 0.03) -> dict[str, Tensor]:
        """Differences of all the denoiser's weights, in float16 as trainings leave them."""
        parameters = self.base.backbone.parameters("denoiser").items()
        return {
            f"delta.{name}": self.random(*weight.shape, scale=scale).half()
            for name, weight in parameters
        }

    def texts(self) -> dict[str, Tensor]:
        """Differences of the text encoders' weights, beside some of the denoiser's."""
        parameters = self.base.backbone.text_encoder_parameters().items()
        return self.deltas() | {
            f"delta.{name}": self.random(*weight.shape, scale=0.1).half()
            for name, weight in parameters
        }

    def add(
        self, state: Mapping[str, Tensor], num_tokens: int = 2, *, to: str = "rex", **said: Any
    ) -> int:
        """Add a version to a concept; returns its number."""
        metadata: dict[str, Any] = {
            "base_sha256": self.base.sha256,
            "method": "attndreambooth",
            "category": "dog",
            "num_tokens": num_tokens,
            "names_category": True,
        }
        file = self.folder / "adapter.safetensors"
        write_adapter(file, state, AdapterMetadata(**metadata | said))
        run = self.registry.begin_run(
            to,
            method="attndreambooth",
            config={},
            base=self.base.base.name,
            base_sha256=self.base.sha256,
            seed=7,
            packages={},
        )
        self.registry.end_run(run, "done")
        return self.registry.add_version(to, {ADAPTER_FILE: file}, run=run)

    def export(self, form: str, name: str = "rex.safetensors", **options: Any) -> ExportReport:
        """Export the latest version, as `concept export` does."""
        chosen = resolve_version(self.registry, self.registry.show("rex"))
        return export_version(
            self.registry,
            chosen.concept,
            chosen.version,
            Path(chosen.path),
            self.folder / name,
            ExportOptions(format=parse_format(form), **options),
        )

    def drawn(self, prompt: str = "a photo of a <rex>") -> np.ndarray:
        """A picture as `concept generate` draws it."""
        request = Request(prompt=prompt, seeds=(3,), settings=SETTINGS)
        (picture,) = generate(self.registry, self.base, [request], self.folder / "drawn")
        return np.asarray(picture.image, dtype=np.int16)

    def reloaded(self) -> Any:
        """The base model's pipeline, loaded again."""
        return load_base(self.base.base.name).backbone.pipeline


def plain(pipeline: Any, prompt: str) -> np.ndarray:
    """A picture as diffusers draws it, with the same seed and settings."""
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        prompt,
        num_inference_steps=SETTINGS.steps,
        guidance_scale=SETTINGS.guidance,
        generator=torch.Generator().manual_seed(3),
    )
    return np.asarray(drawn.images[0], dtype=np.int16)


def header(path: Path) -> tuple[dict[str, str], bytes]:
    """A safetensors file's metadata, and what follows the header."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length])["__metadata__"], data[8 + length :]


def add_embedding(pipeline: Any, path: Path, token: str) -> None:
    """Read an embedding by A1111's rule: one tensor, or `clip_l` and `clip_g`."""
    tensors = load_file(path)
    if len(tensors) == 1:
        pipeline.load_textual_inversion(path, token=token)
        return
    assert tensors.keys() == {"clip_l", "clip_g"}
    for key, ending in (("clip_l", ""), ("clip_g", "_2")):
        pipeline.load_textual_inversion(
            tensors[key],
            token=token,
            text_encoder=getattr(pipeline, f"text_encoder{ending}"),
            tokenizer=getattr(pipeline, f"tokenizer{ending}"),
        )


def comfyui_layers(names: Collection[str]) -> dict[str, str]:
    """A U-Net's layers by the names that ComfyUI knows in LoRA: diffusers' and the original."""
    originals = unet_names(names)
    return {
        f"lora_unet_{_layer(known).replace('.', '_')}": _layer(name)
        for name in names
        for known in (name, originals[name].removeprefix(PREFIX))
    }


A1111_RESNET = {
    "conv1": "in_layers_2",
    "conv2": "out_layers_3",
    "norm1": "in_layers_0",
    "norm2": "out_layers_0",
    "time_emb_proj": "emb_layers_1",
    "conv_shortcut": "skip_connection",
}


def a1111_layers(layers: Collection[str], names: Collection[str]) -> dict[str, str]:
    """LoRA's layers as A1111 finds them, by its rules, which count three layers to a block."""
    own = {_layer(each).replace(".", "_"): _layer(name) for name, each in unet_names(names).items()}
    return {
        layer: own["model_diffusion_model_" + _by_a1111(layer.removeprefix("lora_unet_"))]
        for layer in layers
    }


def _by_a1111(layer: str) -> str:
    def block(match: re.Match[str]) -> str:
        is_down, is_resnet = match[1] == "down", match[3] == "resnets"
        number = int(match[2]) * 3 + int(match[4]) + is_down
        side = "input" if is_down else "output"
        return f"{side}_blocks_{number}_{int(not is_resnet)}_{inner(match)}"

    def middle(match: re.Match[str]) -> str:
        place = 1 if match[3] == "attentions" else int(match[4]) * 2
        return f"middle_block_{place}_{inner(match)}"

    def inner(match: re.Match[str]) -> str:
        return A1111_RESNET.get(match[5], match[5]) if match[3] == "resnets" else match[5]

    def upsampler(match: re.Match[str]) -> str:
        return f"output_blocks_{int(match[1]) * 3 + 2}_{2 if int(match[1]) else 1}_conv"

    rules = {
        r"conv_in": "input_blocks_0_0",
        r"conv_out": "out_2",
        r"time_embedding_linear_(\d)": lambda match: f"time_embed_{int(match[1]) * 2 - 2}",
        r"(down|up)_blocks_(\d)_(attentions|resnets)_(\d)_(.+)": block,
        r"(mid)_(block)_(attentions|resnets)_(\d)_(.+)": middle,
        r"down_blocks_(\d)_downsamplers_0_conv": lambda match: (
            f"input_blocks_{int(match[1]) * 3 + 3}_0_op"
        ),
        r"up_blocks_(\d)_upsamplers_0_conv": upsampler,
    }
    for pattern, name in rules.items():
        if match := re.fullmatch(pattern, layer):
            return name if isinstance(name, str) else name(match)
    return layer


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


@torch.no_grad()
def patch_as_comfyui(unet: Any, path: Path) -> None:
    """Add kohya's factors and whole differences to a U-Net, by ComfyUI's names for its layers."""
    tensors = load_file(path)
    parameters = dict(unet.named_parameters())
    layers = comfyui_layers(parameters.keys())
    for key in list(tensors):
        layer, _, kind = key.partition(".")
        weight = parameters[f"{layers[layer]}.weight"]
        match kind:
            case "diff":
                weight += tensors.pop(key).reshape(weight.shape)
            case "diff_b":
                parameters[f"{layers[layer]}.bias"] += tensors.pop(key)
            case "lora_up.weight":
                up, down = tensors.pop(key), tensors.pop(f"{layer}.lora_down.weight")
                scale = tensors.pop(f"{layer}.alpha").item() / len(down)
                product = up.flatten(1).float() @ down.flatten(1).float()
                weight += scale * product.reshape(weight.shape)
    assert not tensors, "what is left over is not loaded"

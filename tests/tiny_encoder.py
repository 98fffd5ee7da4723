"""A subject encoder that is quick to make, and one whose sublayers do something."""

from dataclasses import replace
from pathlib import Path

import torch
from conceptry.models.loading import LoadedBase
from conceptry.models.subject_encoder import SubjectEncoder
from conceptry.models.subject_encoder_file import (
    FILE,
    LoadedSubjectEncoder,
    metadata_for,
    write_subject_encoder,
)
from conceptry.models.vision import VisionEncoder, load_vision
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel


def make_tiny_vision() -> CLIPVisionModel:
    """Pictures of 16x16 in 4x4 patches, two layers."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=16,
                patch_size=4,
            )
        )


def write_tiny_vision(folder: Path) -> Path:
    """Save it as transformers does."""
    make_tiny_vision().save_pretrained(folder)
    return folder


def make_tiny_encoder(denoiser: nn.Module) -> SubjectEncoder:
    """For a U-Net, as pre-training begins."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        encoder = SubjectEncoder.for_denoiser(VisionEncoder(make_tiny_vision()), denoiser)
    encoder.attention.copy_cross_attention(denoiser)
    return encoder


def let_it_act(encoder: SubjectEncoder) -> SubjectEncoder:
    """Give the sublayers outputs other than zero, as training does."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for layer in encoder.attention.layers.values():
            for parameter in layer.get_submodule("attention.to_out.0").parameters():
                nn.init.normal_(parameter, std=0.2)
    return encoder


def as_loaded(encoder: SubjectEncoder) -> LoadedSubjectEncoder:
    """As if it came from a file."""
    return LoadedSubjectEncoder(encoder, "e" * 64)


def with_encoder(base: LoadedBase, folder: Path) -> LoadedBase:
    """The base model with a subject encoder, as an alias names both."""
    vision = str(write_tiny_vision(folder / "vision"))
    encoder = let_it_act(make_tiny_encoder(base.backbone.denoiser))
    path = folder / FILE
    write_subject_encoder(path, encoder.learned_state(), metadata_for(base, load_vision(vision)))
    return replace(
        base,
        base=replace(base.base, subject_encoder=("folder", str(path)), vision=("folder", vision)),
    )

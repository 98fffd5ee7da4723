"""A subject encoder that is quick to make, and one whose sublayers do something."""

from pathlib import Path

import torch
from conceptry.models.subject_encoder import SubjectEncoder
from conceptry.models.vision import VisionEncoder
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

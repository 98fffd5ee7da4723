"""Which networks of a base model are on the device; the others wait in main memory."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch

from ..models.backbone import Backbone

DENOISER, AUTOENCODER = "denoiser", "autoencoder"
"""Their names among a base model's networks."""


def keep_on_device(backbone: Backbone, device: torch.device, names: Collection[str]) -> None:
    """Move the named networks to a device, and all others away from it."""
    for name, network in backbone.networks.items():
        network.to(device if name in names else "cpu")


def texts_of(backbone: Backbone) -> list[str]:
    """The names of the text encoders."""
    return [name for name in backbone.networks if name.startswith("text encoder")]


@contextmanager
def all_on_device(backbone: Backbone) -> Iterator[None]:
    """Let all networks be where the denoiser is, and put them back in the end."""
    before = {
        name: next(network.parameters()).device for name, network in backbone.networks.items()
    }
    try:
        keep_on_device(backbone, backbone.device, before.keys())
        yield
    finally:
        for name, network in backbone.networks.items():
            network.to(before[name])

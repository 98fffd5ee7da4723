"""Room in a latent space: what latents said stays, and empty directions take up more."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from conceptry.models.miniature.recipe import train
from conceptry.models.miniature.recipe.room import Directions, make_room
from safetensors.torch import load_file, save_file
from small_networks import SMALL, small_vae
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (everyone's name for it)

EMPTY = 3


def cramped_vae() -> Any:
    """An autoencoder whose latents vary in all directions but three, about another mean than 0."""
    torch.manual_seed(0)
    vae: Any = small_vae()
    channels = vae.config.latent_channels
    directions, _ = torch.linalg.qr(torch.randn(channels, channels))
    keeping = directions[:, EMPTY:] @ directions[:, EMPTY:].T
    with torch.no_grad():
        weight = vae.quant_conv.weight[:channels, :, 0, 0].clone()
        vae.quant_conv.weight[:channels] = (keeping @ weight)[:, :, None, None]
        vae.quant_conv.bias += 0.5
    return vae


def pictures(seed: int = 0) -> Tensor:
    return torch.randn(16, 3, SMALL, SMALL, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_empty_directions_say_something_and_the_others_what_they_said() -> None:
    vae = cramped_vae()
    before = vae.encode(pictures()).latent_dist.mean
    drawn = vae.decode(before).sample
    room = make_room(vae, pictures())
    assert len(room.free) == EMPTY
    after = vae.encode(pictures()).latent_dist.mean
    assert torch.allclose(room.along(room.kept, after), room.along(room.kept, before), atol=1e-4)
    assert torch.allclose(room.along(room.free, after).std(1), torch.ones(EMPTY), atol=1e-3)
    assert float(vae.encode(pictures()).latent_dist.std.max()) < 0.05
    keeping = (room.kept.T @ room.kept)[:, :, None, None]
    nothing_new = F.conv2d(after, keeping)
    assert torch.allclose(vae.decode(nothing_new).sample, drawn, atol=1e-3)
    assert not torch.allclose(vae.decode(after).sample, drawn, atol=1e-3)


def test_losses_are_nothing_where_kept_is_kept_and_free_is_free() -> None:
    generator = torch.Generator().manual_seed(0)
    former = torch.randn(64, 4, 16, 16, generator=generator)
    former[:, 1] = 0.5
    room = Directions(former)
    assert room.free.abs().round(decimals=3).tolist() == [[0, 1, 0, 0]]
    good = former.clone()
    good[:, 1] = room.scale * torch.randn(64, 16, 16, generator=generator)
    losses = room.losses(good, former)
    assert float(losses["kept"]) < 1e-9
    assert float(losses["free"]) < 1e-3
    moved = good + torch.tensor([0.5, 0.0, 0.0, 0.0]).view(1, 4, 1, 1)
    assert float(room.losses(moved, former)["kept"]) > 0.05
    copied = good.clone()
    copied[:, 1] = good[:, 0]
    assert float(room.losses(copied, former)["free"]) > 0.005


def test_an_autoencoder_goes_on_in_its_latents_and_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "SIZE", SMALL)
    monkeypatch.setattr(train, "make_vae", small_vae)
    former = {f"vae.{name}": value for name, value in cramped_vae().state_dict().items()}
    save_file(former, tmp_path / "former.safetensors")
    stage = dataclasses.replace(train.STAGES["vae"], batch=4, size=SMALL, window=2, reuse=2)

    def run(folder: Path, stop_at: int | None = None) -> dict[str, Tensor]:
        options: Any = {"images": 16, "start": tmp_path / "former.safetensors", "stop_at": stop_at}
        train.train(stage, folder, device="cpu", num_workers=0, keeps_latents=True, **options)
        path = folder / "vae.safetensors"
        return train.parameters_of(load_file(path), "vae") if path.exists() else {}

    whole = run(tmp_path / "whole")
    run(tmp_path / "stopped", stop_at=2)
    assert all(value.equal(whole[name]) for name, value in run(tmp_path / "stopped").items())
    assert '"keeps_latents": true' in (tmp_path / "whole/vae.json").read_text()
    with pytest.raises(ValueError, match="vae with --start"):
        train.train(stage, tmp_path, images=4, keeps_latents=True)

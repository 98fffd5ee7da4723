"""The rules of DreamTuner's relatives in bench/relatives.py, and the counting of suns."""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conceptry.generation.request import SamplingSettings
from conceptry.generation.sampler import draw_batch
from conceptry.generation.self_subject_attention import ReferencePass
from conceptry.kernels.observation import FurtherKeys
from conceptry.models.backbone import Backbone
from conceptry.models.loading import backbone_of
from conceptry.models.miniature.world.scenes import render, sample_scene
from conceptry.models.references import Reference
from PIL import Image, ImageChops, ImageDraw
from program import ROOT
from tiny_base import make_tiny_base
from torch import Tensor


@contextmanager
def importing_from(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


with importing_from(ROOT / "bench"):
    import relatives
    from references import SUNS, count_suns
    from relatives import Community, Drawing, FreeCustom, MasaCtrl, drawn_by

SETTINGS = SamplingSettings(steps=5, guidance=3.0)


@pytest.fixture
def exact() -> Backbone:
    """A base model in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline: Any = make_tiny_base()
    return backbone_of(pipeline.to(torch.float64))


def some_reference(backbone: Backbone, weight: float = 3.0) -> Reference:
    side = backbone.size // backbone.latent_factor
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(backbone.latent_channels, side, side, generator=generator)
    mask = torch.zeros(side, side)
    mask[1:-1, 2:-2] = 1
    return Reference(latents, mask, "a photo of a dog", weight)


def drawn(backbone: Backbone, prompt: str, make: Any) -> list[Image.Image]:
    with drawn_by(partial(make, references=[some_reference(backbone)])):
        return draw_batch(backbone, [prompt] * 2, [3, 4], SETTINGS)


def is_same(one: Image.Image, other: Image.Image) -> bool:
    return ImageChops.difference(one, other).getbbox() is None


def test_masactrl_after_a_picture_itself_is_that_picture(
    exact: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    itself, _ = drawn(exact, "", MasaCtrl)
    another, same = drawn(exact, "a red cat in space", MasaCtrl)
    assert is_same(another, same)  # whatever the seed
    monkeypatch.setattr(relatives, "FIRST_STEPS", 1.0)  # it never begins
    assert is_same(drawn(exact, "", MasaCtrl)[0], itself)
    assert not is_same(drawn(exact, "a red cat in space", MasaCtrl)[0], another)


@pytest.mark.long
def test_inversion_draws_the_latents_again(exact: Backbone) -> None:
    """With small steps; errors of few are large, as the noise is predicted a step too early."""
    prompt = exact.encode_prompts([""], exact.size)
    latents = some_reference(exact).latents[None].double()
    scheduler: Any = exact.sampling_scheduler("ddim")
    errors: list[float] = []
    for steps in (10, 500):
        scheduler.set_timesteps(steps)
        with torch.no_grad():
            found = relatives.inverted(exact, latents, scheduler.timesteps, prompt)
            for timestep in scheduler.timesteps:
                noise = exact.denoise(found, timestep, prompt)
                found = scheduler.step(noise, timestep, found, eta=0.0, return_dict=False)[0]
        errors.append(float((found - latents).abs().max()))
    assert errors[1] < errors[0] / 10


def test_keys_and_values_are_replaced(exact: Backbone) -> None:
    """In the layer itself: the output is that of attention to the reference alone."""
    layer, states, reference = a_layer(exact)
    attention: Any = exact.denoiser.get_submodule(layer)
    with torch.no_grad():
        with relatives.ruled(exact, {layer: reference}, relatives.replaced):
            found = attention(states)
        own = weighted(attention, states, reference, torch.ones(1, reference.shape[1]))
        assert float((found - own).abs().max()) < 1e-12
        assert float((attention(states) - own).abs().max()) > 1e-6


def a_layer(backbone: Backbone) -> tuple[str, Tensor, Tensor]:
    """The last layer of self-attention, some states (2, N, C), and a reference's (1, N, C)."""
    layer = relatives.layers_of(backbone)[-1]
    module: Any = backbone.denoiser.get_submodule(layer)
    generator = torch.Generator().manual_seed(1)
    positions = (backbone.size // backbone.latent_factor) ** 2
    shape = (3, positions, module.to_q.in_features)
    some = torch.randn(shape, generator=generator, dtype=torch.float64)
    return layer, some[:2], some[2:]


def weighted(attention: Any, states: Tensor, context: Tensor, weights: Tensor) -> Tensor:
    """Attention in which each key's exponential is multiplied by a weight (1, M)."""
    context = context.expand(len(states), -1, -1)
    query, key, value = (
        each.unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        for each in (attention.to_q(states), attention.to_k(context), attention.to_v(context))
    )
    scores = (query @ key.mT * attention.scale).exp() * weights[:, None, None]
    output = (scores / scores.sum(-1, keepdim=True)) @ value
    return attention.to_out[0](output.transpose(1, 2).flatten(2))


def test_freecustoms_three_is_our_weight_of_e_cubed(exact: Backbone) -> None:
    """In one layer, as it is computed, and as self-subject-attention sees the same states."""
    layer, states, reference = a_layer(exact)
    attention: Any = exact.denoiser.get_submodule(layer)
    one = some_reference(exact, weight=math.exp(relatives.ADDED_WEIGHT))
    bias = relatives.added_weight([one], reference.shape[1]).double()
    ours = bias_of_ours(exact, one, layer)
    assert torch.allclose(bias.exp(), ours.exp(), rtol=1e-6)
    with torch.no_grad():
        rows = bias.expand(len(states), 1, -1)
        with exact.attention.attend_also([FurtherKeys({layer: reference}, {layer: rows})]):
            found = attention(states)
        weights = torch.cat(
            [torch.ones(1, states.shape[1]), math.e**3 * one.mask.flatten()[None]], 1
        )
        both = torch.cat([states, reference.expand_as(states)], 1)
        assert (
            float((found - weighted(attention, states, both, weights.double())).abs().max()) < 1e-6
        )


def bias_of_ours(backbone: Backbone, reference: Reference, layer: str) -> Tensor:
    """What self-subject-attention adds to the scores of a layer (1, M)."""
    seen: list[Tensor] = []
    with torch.no_grad():
        references = ReferencePass(backbone, [reference])
        with references.seen_at(backbone, [torch.tensor(400)], [torch.ones(1, dtype=torch.bool)]):
            seen += [each.bias[layer] for each in backbone.attention.further_of(layer)]
    return seen[0][0]


@pytest.mark.parametrize("make", [FreeCustom, Community, partial(Community, adain=True)])
def test_each_changes_pictures_and_leaves_no_trace(exact: Backbone, make: Any) -> None:
    prompts, seeds = ["a cat"] * 2, [3, 4]
    plain = draw_batch(exact, prompts, seeds, SETTINGS)
    after = drawn(exact, "a cat", make)
    assert not any(map(is_same, plain, after))
    assert all(map(is_same, after, drawn(exact, "a cat", make)))
    assert all(map(is_same, plain, draw_batch(exact, prompts, seeds, SETTINGS)))


def test_freecustom_hides_references_without_the_prompt(exact: Backbone) -> None:
    """At a guidance of 0 only the pass without the prompt counts."""
    settings = SamplingSettings(steps=3, guidance=0.0)
    drawing = Drawing(exact, ["a cat"], settings, exact.size, exact.size)
    side = exact.size // exact.latent_factor
    latents = torch.randn(1, exact.latent_channels, side, side, dtype=torch.float64)
    time = torch.tensor(500)
    with torch.no_grad():
        nothing = exact.encode_prompts([""], exact.size)
        plain = exact.denoise(latents, time, nothing)
        found = {
            make: make(drawing, [some_reference(exact)]).predict(exact, latents, time)
            for make in (FreeCustom, Community)
        }
    assert float((found[FreeCustom] - plain).abs().max()) < 1e-12
    assert float((found[Community] - plain).abs().max()) > 1e-6


def test_a_community_reference_with_the_pictures_own_states_changes_no_attention(
    exact: Backbone,
) -> None:
    """Keys that are there twice count as if they were there once."""
    layer, states, _ = a_layer(exact)
    attention: Any = exact.denoiser.get_submodule(layer)
    with torch.no_grad():
        plain = attention(states)
        with relatives.ruled(exact, {layer: states}, relatives.beside):
            found = attention(states)
    assert float((found - plain).abs().max()) < 1e-12


@pytest.mark.parametrize("place", SUNS)
def test_suns_are_counted(place: str) -> None:
    sun = SUNS[place]
    scenes = [
        sample_scene(seed, "held-out", num_subjects=1, place=place, style="photo")
        for seed in range(6)
    ]
    counts = [count_suns(render(scene, 128).image, sun) for scene in scenes]
    assert set(counts) <= {0, 1}  # some are hidden
    assert sum(counts) >= 4
    sky = Image.new("RGB", (128, 128), (150, 215, 245))
    pen = ImageDraw.Draw(sky)
    for number, x in enumerate((10, 50, 90)):
        assert count_suns(sky, sun) == number
        pen.ellipse((x, 4, x + 22, 26), sun.colour)
    pen.rectangle((95, 20, 110, 100), sun.colour)  # a subject of that colour in front of one
    assert count_suns(sky, sun) == 2

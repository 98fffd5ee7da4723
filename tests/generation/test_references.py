"""Drawing after references: self-subject-attention, interleaved guidance, and what is asked for."""

import copy
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conceptry.adapters.adapter import injected
from conceptry.adapters.references import References
from conceptry.generation import Request, SamplingSettings, generate, read_provenance, reproduce
from conceptry.generation.control_request import read_control
from conceptry.generation.guidance import guidance_for
from conceptry.generation.reference_syntax import (
    ReferenceRequest,
    choose_reference,
    parse_reference,
    resolve_references,
)
from conceptry.generation.references import check_reference, make_reference
from conceptry.generation.sampler import draw_batch
from conceptry.generation.self_subject_attention import ReferencePass
from conceptry.kernels.observation import AttentionStack, FurtherKeys
from conceptry.models.backbone import Backbone
from conceptry.models.conditioning import Control
from conceptry.models.loading import LoadedBase
from conceptry.models.references import Reference
from conceptry.registry import Registry
from conceptry.registry.errors import ConceptNotFound, InvalidInput, NotFound
from PIL import Image
from tiny_control import make_tiny_control
from torch import Tensor

SETTINGS = SamplingSettings(steps=3, guidance=3.0)


def some_reference(backbone: Backbone, weight: float = 3.0, *, seed: int = 0) -> Reference:
    side = backbone.size // backbone.latent_factor
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(backbone.latent_channels, side, side, generator=generator)
    mask = torch.zeros(side, side)
    mask[1:-1, 1:-1] = 1
    return Reference(latents, mask, "a photo of a dog", weight)


def noise_in(
    backbone: Backbone,
    references: list[Reference],
    settings: SamplingSettings,
    control: Control | None = None,
) -> Tensor:
    """What two pictures' guidance predicts in the middle."""
    side = backbone.size // backbone.latent_factor
    shape = (2, backbone.latent_channels, side, side)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    with torch.no_grad(), injected(backbone, [References(references)]):
        prompts = ["a red dog on the beach", "a cat"]
        size = backbone.size
        guidance = guidance_for(backbone, prompts, settings, [3, 4], size, size, control=control)
        return guidance.predict(backbone, latents, torch.tensor(500))


# --- attention ------------------------------------------------------------------------------------


def test_it_is_one_softmax_over_own_and_further_keys(exact: Backbone) -> None:
    """Equal to a materialised matrix: log ω m is added to the scores of further keys."""
    unet, side = exact.denoiser, exact.size // exact.latent_factor
    stack = exact.attention
    layer = next(name for name in stack.layers if name.endswith("attn1"))
    attention: Any = unet.get_submodule(layer)
    generator = torch.Generator().manual_seed(0)
    width: int = attention.to_q.in_features

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    states, further = normal(2, side * side, width), normal(3, 5, width)
    bias = normal(2, 3, 5).masked_fill(normal(2, 3, 5) > 1, -torch.inf)
    with torch.no_grad():
        with stack.attend_also([FurtherKeys({layer: further}, {layer: bias})]):
            found = attention(states)
        expected = materialised(attention, states, further.flatten(0, 1), bias.flatten(1))
    assert float((found - expected).abs().max()) < 1e-12


def materialised(attention: Any, states: Tensor, further: Tensor, bias: Tensor) -> Tensor:
    both = torch.cat([states, further.expand(len(states), -1, -1)], 1)
    query, key, value = (
        each.unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        for each in (attention.to_q(states), attention.to_k(both), attention.to_v(both))
    )
    scores = query @ key.mT * attention.scale
    scores[..., states.shape[1] :] += bias[:, None, None]
    output = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
    return attention.to_out[0](output)


def test_weight_k_is_each_key_k_times(exact: Backbone) -> None:
    one = some_reference(exact)
    settings = replace(SETTINGS, reference_share=0.5)
    three_times = noise_in(exact, [replace(one, weight=1.0)] * 3, settings)
    assert float((noise_in(exact, [one], settings) - three_times).abs().max()) < 1e-12


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_perturbed_attention_leads_beside_references(exact: Backbone, share: float) -> None:
    """What is added is scale times what the prompt's prediction loses, whoever leads the step."""
    plain = replace(SETTINGS, reference_share=share, perturbed_layers="all")
    one = some_reference(exact)
    without, once, twice = (
        noise_in(exact, [one], replace(plain, perturbed_attention=scale)) for scale in (0, 1, 2)
    )
    assert float((twice - without - 2 * (once - without)).abs().max()) < 1e-12
    assert float((once - without).abs().amax((1, 2, 3)).min()) > 1e-6
    unled = replace(plain, guidance=1.0, reference_guidance=1.0, perturbed_attention=1)
    lost = noise_in(exact, [one], unled) - noise_in(
        exact, [one], replace(unled, perturbed_attention=0)
    )
    assert float((once - without - lost).abs().max()) < 1e-12


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_empty_mask_or_no_weight_is_plain_attention(exact: Backbone, share: float) -> None:
    settings = replace(SETTINGS, reference_share=share)
    one = some_reference(exact)
    empty = noise_in(exact, [replace(one, mask=torch.zeros_like(one.mask))], settings)
    plain = noise_in(exact, [], SETTINGS)
    if share == 0:
        assert float((empty - plain).abs().max()) < 1e-12
    else:  # led away from itself: not led at all
        unguided = noise_in(exact, [], replace(SETTINGS, guidance=1.0))
        assert float((empty - unguided).abs().max()) < 1e-12
    assert float((noise_in(exact, [replace(one, weight=0.0)], settings) - plain).abs().max()) == 0


def test_each_reference_follows_a_control_net_by_its_own_layout(exact: Backbone) -> None:
    """Their order is the same to a softmax over all of them."""
    side = exact.size
    one = some_reference(exact)
    here, there = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    network = make_tiny_control(exact.denoiser).double()
    control = Control(network, torch.full((1, 3, side, side), 0.5), 0.7)

    def noise(*layouts: Tensor | None, control: Control | None = control) -> Tensor:
        references = [replace(one, control=each) for each in layouts]
        return noise_in(exact, references, SETTINGS, control)

    assert float((noise(here, there) - noise(there, here)).abs().max()) < 1e-12
    assert float((noise(here, None) - noise(None, here)).abs().max()) < 1e-12
    found = [noise(here, there), noise(here, here), noise(here, None), noise(None, None)]
    for i, each in enumerate(found):
        for other in found[:i]:
            assert float((each - other).abs().max()) > 1e-6
    none = noise(None, None, control=None)
    assert float((noise(here, there, control=None) - none).abs().max()) == 0


def test_scales_of_one_are_the_conditional_prediction(exact: Backbone) -> None:
    one = some_reference(exact)
    scales = SamplingSettings(guidance=1.0, reference_guidance=1.0)
    found = [
        noise_in(exact, [one], replace(scales, reference_share=share)) for share in (0.0, 0.5, 1.0)
    ]
    assert float((found[0] - found[1]).abs().max()) < 1e-12
    assert float((found[0] - found[2]).abs().max()) < 1e-12
    plain = noise_in(exact, [], replace(scales, reference_share=None))
    assert float((found[0] - plain).abs().max()) > 1e-3


def test_each_row_sees_the_references_at_its_time_or_not_at_all(exact: Backbone) -> None:
    """Rows that see nothing predict what they predict alone."""
    one = some_reference(exact)
    side = exact.size // exact.latent_factor
    latents = torch.randn(3, exact.latent_channels, side, side, dtype=torch.float64)
    time = torch.tensor(400)
    with torch.no_grad():
        prompts = exact.encode_prompts(["a cat"] * 3, exact.size)
        plain = exact.denoise(latents, time, prompts)
        seen = ReferencePass(exact, [one])
        rows = [torch.tensor([True, False, False]), torch.tensor([False, False, True])]
        with seen.seen_at(exact, [torch.tensor(399), torch.tensor(401)], rows):
            mixed = exact.denoise(latents, time, prompts)
        with seen.seen_at(exact, [torch.tensor(401)], [torch.ones(3, dtype=torch.bool)]):
            late = exact.denoise(latents, time, prompts)
    gaps = (mixed - plain).abs().amax((1, 2, 3)).tolist()
    assert gaps[0] > 1e-6
    assert gaps[1] < 1e-12
    assert float((mixed - late)[2].abs().max()) < 1e-12
    assert float((mixed - late)[0].abs().max()) > 1e-9


@contextmanager
def counted(backbone: Backbone, calls: list[int]) -> Iterator[None]:
    handle = backbone.denoiser.register_forward_pre_hook(
        lambda _, given, **__: calls.append(len(given[0]))
    )
    try:
        yield
    finally:
        handle.remove()


def test_one_pass_of_the_references_serves_a_batch(backbone: Backbone) -> None:
    """A row of each reference in a step; another where a picture is led by its prompt."""
    calls: list[int] = []
    references = References([some_reference(backbone, seed=seed) for seed in (0, 1)])
    with injected(backbone, [references]), counted(backbone, calls):
        draw_batch(backbone, ["a dog"] * 4, range(4), replace(SETTINGS, reference_share=1.0))
        assert calls == [2, 8] * SETTINGS.steps
        calls.clear()
        draw_batch(backbone, ["a dog"] * 4, range(4), replace(SETTINGS, reference_share=0.0))
        assert calls == [4, 8] * SETTINGS.steps


def test_references_of_other_shapes_go_together(backbone: Backbone) -> None:
    wide = some_reference(backbone)
    wide = replace(wide, latents=wide.latents.repeat(1, 1, 2), mask=wide.mask.repeat(1, 2))
    found = drawn(backbone, [some_reference(backbone), wide], [0])
    assert found[0] != drawn(backbone, [some_reference(backbone)], [0])[0]


def drawn(backbone: Backbone, references: list[Reference], seeds: list[int]) -> list[bytes]:
    with injected(backbone, [References(references)]):
        pictures = draw_batch(backbone, ["a dog"] * len(seeds), seeds, SETTINGS)
    return [each.tobytes() for each in pictures]


def test_a_picture_does_not_depend_on_its_batch(backbone: Backbone) -> None:
    """λ is drawn from each picture's own seed."""
    one = [some_reference(backbone)]
    together = drawn(backbone, one, [1, 2, 3])
    assert drawn(backbone, one, [1, 2, 3]) == together
    alone = [drawn(backbone, one, [seed])[0] for seed in (1, 2, 3)]
    for first, second in zip(together, alone, strict=True):
        gap = np.frombuffer(first, np.uint8).astype(int) - np.frombuffer(second, np.uint8)
        assert np.abs(gap).max() <= 1
    assert drawn(backbone, [], [1]) != [together[0]]


def test_nothing_stays(backbone: Backbone) -> None:
    before = drawn(backbone, [], [0])
    names = [name for name, _ in backbone.denoiser.named_modules()]
    adapter = References([some_reference(backbone)])
    adapter.inject(backbone)
    with pytest.raises(RuntimeError, match="already"):
        adapter.inject(backbone)
    adapter.eject(backbone)
    assert drawn(backbone, [], [0]) == before
    assert [name for name, _ in backbone.denoiser.named_modules()] == names
    assert AttentionStack.of(backbone.denoiser) is backbone.attention
    copied = copy.deepcopy(backbone.attention)
    assert not any(copied.further_of(layer) for layer in copied.layers)


# --- photos ---------------------------------------------------------------------------------------


def of_photo(base: LoadedBase, photo: Image.Image, mask: Image.Image) -> Reference:
    return make_reference(
        base, photo, mask, prompt="a photo of a dog", weight=3.0, share=0.9, guidance=2.5
    )


@pytest.mark.parametrize(("size", "latents"), [((64, 64), (8, 8)), ((300, 150), (6, 12))])
def test_a_photo_keeps_its_shape(
    base: LoadedBase, size: tuple[int, int], latents: tuple[int, int]
) -> None:
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    found = of_photo(base, Image.radial_gradient("L").resize(size), mask)
    assert tuple(found.latents.shape[1:]) == latents
    assert found.mask.mean() == pytest.approx(0.5)
    assert found.mask[:, 0].min() == 1


def test_photos_that_cannot_be_drawn_after(base: LoadedBase) -> None:
    photo = Image.new("RGB", (64, 64))
    with pytest.raises(InvalidInput, match="mask is empty"):
        of_photo(base, photo, Image.new("L", (64, 64)))
    with pytest.raises(InvalidInput, match="500x100, which is too narrow"):
        of_photo(base, photo.resize((500, 100)), Image.new("L", (64, 64), 255))


# --- what is asked for ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rex", ReferenceRequest("rex")),
        ("rex:2.5", ReferenceRequest("rex", None, 2.5)),
        ("rex=2", ReferenceRequest("rex", "2")),
        ("rex=front view.jpg:.5", ReferenceRequest("rex", "front view.jpg", 0.5)),
        (" rex=a:1 ", ReferenceRequest("rex", "a", 1.0)),
    ],
)
def test_words(text: str, expected: ReferenceRequest) -> None:
    assert parse_reference(text) == expected


@pytest.mark.parametrize("text", ["", "=2", "Rex!", "rex:-1", "rex:nan", "<rex>"])
def test_words_that_are_no_reference(text: str) -> None:
    with pytest.raises(InvalidInput, match="is no reference"):
        parse_reference(text)
    with pytest.raises(InvalidInput, match="between 0 and 100"):
        parse_reference("rex:101")


def test_a_photo_is_found_by_number_hash_or_name(rex: Registry) -> None:
    images = rex.show("rex").images
    asked = ["rex", "rex=2", f"rex={images[2].sha256[:8]}", f"rex={images[1].filename}"]
    found = resolve_references(rex, [parse_reference(each) for each in asked], "a dog")
    assert [each.image for each in found] == [images[i] for i in (0, 1, 2, 1)]
    for text in ("rex=9", "rex=0", "rex=zzzzzz", "rex=../x"):
        with pytest.raises(NotFound, match="has no photo"):
            resolve_references(rex, [parse_reference(text)], "a dog")
    with pytest.raises(ConceptNotFound):
        resolve_references(rex, [parse_reference("max")], "a dog")


@pytest.mark.parametrize(
    ("prompt", "share"),
    [("a dog", 0.9), ("<rex>", 0.0), ("<rex@best:0.5> in snow", 0.0), ("<mia> and a dog", 0.9)],
)
def test_photos_of_what_the_prompt_names_lead_no_steps(
    rex: Registry, photos: Path, prompt: str, share: float
) -> None:
    rex.add("mia", [photos], category="cat")
    assert [each.share for each in resolve_references(rex, [parse_reference("rex")], prompt)] == [
        share
    ]
    both = [parse_reference("rex"), parse_reference("mia")]
    assert {each.share for each in resolve_references(rex, both, prompt)} == {0.9}
    assert {each.share for each in resolve_references(rex, both, "<rex> and <mia>")} == {0.0}


def test_a_picture_says_what_it_was_drawn_after(
    rex: Registry, base: LoadedBase, tmp_path: Path
) -> None:
    rex.edit("rex", category="dog")
    asked = Request(
        prompt="a dog in the snow",
        seeds=(3, 4),
        settings=replace(SETTINGS, reference_share=0.5),
        references=(ReferenceRequest("rex", "2", 2.0), ReferenceRequest("rex")),
    )
    first, second = generate(rex, base, [asked], tmp_path)
    images = rex.show("rex").images
    made = read_provenance(first.path)
    assert [(each.photo, each.weight) for each in made.references] == [
        (images[1].sha256, 2.0),
        (images[0].sha256, 3.0),
    ]
    assert made.settings == asked.settings
    rex.edit("rex", category="red cat")
    other = next(generate(rex, base, [asked], tmp_path / "other"))
    assert other.image.tobytes() != first.image.tobytes(), "its references are of red cats"
    rex.rename("rex", "max")
    for picture in (first, second):
        again, is_same = reproduce(rex, base, picture.path, tmp_path)
        assert is_same
        assert read_provenance(again.path).references[0].concept == "max"


def test_a_photo_is_not_looked_for_in_all_concepts(
    rex: Registry, base: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Request(
        prompt="a dog", seeds=(3,), settings=SETTINGS, references=(ReferenceRequest("rex"),)
    )
    (picture,) = generate(rex, base, [asked], tmp_path)
    rex.add("ada", [rex.path_of(rex.show("rex").images[1].sha256)], category="dog")
    show, shown = Registry.show, list[object]()

    def noted(registry: Registry, name: str | int) -> object:
        shown.append(name)
        return show(registry, name)

    monkeypatch.setattr(Registry, "show", noted)
    _, is_same = reproduce(rex, base, picture.path, tmp_path)
    assert is_same
    assert shown == ["rex"]


def test_a_reference_that_is_gone_or_has_another_mask_now(
    rex: Registry, base: LoadedBase, tmp_path: Path
) -> None:
    asked = Request(
        prompt="a dog", seeds=(3,), settings=SETTINGS, references=(ReferenceRequest("rex"),)
    )
    (picture,) = generate(rex, base, [asked], tmp_path)
    with Image.open(picture.path) as opened:
        text: str = opened.text["conceptry"]  # pyright: ignore[reportAttributeAccessIssue]
    assert json.loads(text)["settings"]["references"][0]["mask"] is None
    photo = rex.show("rex").images[0]
    path = rex.path_of(photo.sha256)
    (tmp_path / "masks").mkdir()
    half = Image.new("L", (photo.width, photo.height))
    half.paste(255, (0, 0, photo.width // 2, photo.height))
    half.save(tmp_path / "masks" / f"{path.name}.png")
    rex.add("rex", [path], masks=tmp_path / "masks")
    assert reproduce(rex, base, picture.path, tmp_path)[1]  # it is found again without the mask
    (masked,) = generate(rex, base, [asked], tmp_path)
    assert reproduce(rex, base, masked.path, tmp_path)[1]
    Image.new("L", (photo.width, photo.height), 255).save(tmp_path / "masks" / f"{path.name}.png")
    rex.add("rex", [path], masks=tmp_path / "masks")
    with pytest.raises(NotFound, match="of rex that has another mask, or none, in this registry"):
        reproduce(rex, base, masked.path, tmp_path)
    rex.remove(["rex"])
    with pytest.raises(NotFound, match="a photo of rex that is not in this registry"):
        reproduce(rex, base, picture.path, tmp_path)


# --- where points look ----------------------------------------------------------------------------


def test_maps_of_points_are_rows_of_a_materialised_matrix(exact: Backbone) -> None:
    stack, side = exact.attention, exact.size // exact.latent_factor
    layer = next(name for name in stack.layers if name.endswith("attn1"))
    attention: Any = exact.denoiser.get_submodule(layer)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    states = normal(2, side * side, attention.to_q.in_features)
    further, bias = normal(3, 5, attention.to_q.in_features), normal(2, 3, 5)
    with (
        torch.no_grad(),
        stack.attend_also([FurtherKeys({layer: further}, {layer: bias}, owners=["mine"])]),
        stack.observe_further(lambda count: [1, count - 1]) as seen,
    ):
        attention(states)
        both = torch.cat([states, further.flatten(0, 1).expand(2, -1, -1)], 1)
        query, key = (
            each.unflatten(-1, (attention.heads, -1)).transpose(1, 2)
            for each in (attention.to_q(states[:, [1, -1]]), attention.to_k(both))
        )
        scores = query @ key.mT * attention.scale
        scores[..., side * side :] += bias.flatten(1)[:, None, None]
        expected = scores.softmax(-1)[..., side * side :].mean(1)
    ((owners, found),) = seen.maps
    assert owners == ["mine"]
    assert found.shape == (2, 2, 3, 5)
    assert float((found.flatten(2) - expected).abs().max()) < 1e-6


def test_sheets_show_where_points_look(rex: Registry, base: LoadedBase, tmp_path: Path) -> None:
    """A row for each reference, and the pixels of a picture without maps."""
    asked = Request(
        prompt="a dog",
        seeds=(3, 4),
        settings=SETTINGS,
        references=(ReferenceRequest("rex"), ReferenceRequest("rex", "2")),
    )
    plain = list(generate(rex, base, [asked], tmp_path))
    points = [(0.1, 0.2), (1.0, 1.0)]
    found = list(generate(rex, base, [asked], tmp_path, batch=1, with_maps=True, points=points))
    for one, other in zip(plain, found, strict=True):
        gap = np.asarray(one.image, dtype=int) - np.asarray(other.image)
        assert np.abs(gap).max() <= 1
        assert other.maps is not None
        with Image.open(other.maps) as sheet:
            assert sheet.height > 3 * 128
    assert read_provenance(found[0].path).points == tuple(points)
    again, is_same = reproduce(rex, base, found[1].path, tmp_path)
    assert is_same
    assert again.maps is not None
    assert found[1].maps is not None
    with Image.open(again.maps) as sheet, Image.open(found[1].maps) as before:
        assert sheet.tobytes() == before.tobytes()


def test_a_photo_is_loaded_once_for_many_prompts(
    rex: Registry, base: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    plain = Registry.read_photo

    def counted_read(self: Registry, image: Any, **options: Any) -> Image.Image:
        read.append(image.sha256)
        return plain(self, image, **options)

    monkeypatch.setattr(Registry, "read_photo", counted_read)
    after = (ReferenceRequest("rex"),)
    requests = [
        Request(prompt=prompt, seeds=(1,), settings=SETTINGS, references=after)
        for prompt in ("a dog", "a cat", "a red dog")
    ]
    assert len(list(generate(rex, base, requests, tmp_path))) == 3
    assert read == [rex.show("rex").images[0].sha256]


# --- what is checked -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(100, 70), (40, 30), (16, 9)])
def test_a_control_picture_of_a_photo_has_its_shape(
    base: LoadedBase, tmp_path: Path, size: tuple[int, int]
) -> None:
    photo = Image.radial_gradient("L").resize(size).convert("RGB")
    path = tmp_path / "control.png"
    photo.resize((2 * size[0], 2 * size[1])).save(path)
    found = make_reference(
        base,
        photo,
        Image.new("L", size, 255),
        prompt="a photo",
        weight=1.0,
        share=0.0,
        guidance=1.0,
        control=read_control(path),
    )
    factor = base.backbone.latent_factor
    assert found.control is not None
    assert found.control.shape[1:] == tuple(factor * each for each in found.latents.shape[1:])


def test_the_reference_pass_is_seen_by_nobody_else(base: LoadedBase) -> None:
    """Columns beyond the reference's own 77 tokens are of a longer prompt."""
    backbone = base.backbone
    reference = of_photo(base, Image.new("RGB", (16, 16)), Image.new("L", (16, 16), 255))
    passed = ReferencePass(backbone, [reference])
    rows = torch.ones(1, dtype=torch.bool)
    with (
        torch.no_grad(),
        backbone.attention.observe(columns=[93], want="maps") as seen,
        passed.seen_at(backbone, [torch.tensor(500)], [rows]),
    ):
        pass
    assert not seen.maps


def test_guidance_below_one_is_the_prompt_s_own_prediction(
    rex: Registry, base: LoadedBase, tmp_path: Path
) -> None:
    def drawn(prompt: str, guidance: float) -> str:
        settings = replace(SETTINGS, guidance=guidance, reference_share=0.0)
        request = Request(
            prompt=prompt, seeds=(3,), settings=settings, references=(ReferenceRequest("rex"),)
        )
        (picture,) = generate(rex, base, [request], tmp_path)
        return hashlib.sha256(picture.image.tobytes()).hexdigest()

    assert drawn("a dog", 0.0) != drawn("a red cat on a beach", 0.0)
    assert drawn("a dog", 0.0) == drawn("a dog", 1.0)


def test_a_reference_s_text_is_checked_as_it_is_read(rex: Registry, base: LoadedBase) -> None:
    concept = rex.show("rex")
    chosen = choose_reference(concept, concept.images[0], 1.0)
    chosen = replace(chosen, prompt=f"{'a ' * 70}{{}}")
    check_reference(base.backbone, chosen, "dog")
    with pytest.raises(InvalidInput, match=f"the photo {concept.images[0].filename} of rex: the "):
        check_reference(base.backbone, chosen, f"{'a ' * 8}dog")

"""Control pictures: read, fitted and recorded; ControlNets that follow concepts."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conceptry.adapters.weight_delta import WeightDelta
from conceptry.generation import (
    PromptDefaults,
    Request,
    SamplingSettings,
    generate,
    read_prompts,
    read_provenance,
    reproduce,
)
from conceptry.generation.control_request import (
    ControlRequest,
    ReadControl,
    parse_control,
)
from conceptry.generation.controls import boxes_picture, check_controls, transferred
from conceptry.generation.injection import InjectedConcept, inject_concepts
from conceptry.generation.prompt_syntax import Mention, resolve_prompt
from conceptry.generation.reference_syntax import ReferenceRequest
from conceptry.models.backbone import Backbone
from conceptry.models.bases import ControlSource
from conceptry.models.loading import LoadedBase
from conceptry.models.miniature.world.layouts import LAYOUT_COLOURS, NOTHING
from conceptry.registry import Registry
from conceptry.registry.errors import InvalidImage, InvalidInput, NotFound
from conceptry.training import train
from PIL import Image
from tiny_control import control_picture, make_tiny_control, write_tiny_control
from torch import nn

SETTINGS = SamplingSettings(steps=2, guidance=3.0)
SHORT = ("augmentation.crops=2", "num_tokens=2", *(f"stage{i}.steps=1" for i in (1, 2, 3)))


@pytest.fixture
def folder(base: LoadedBase, tmp_path: Path) -> Path:
    """A ControlNet of the base model."""
    return write_tiny_control(tmp_path / "net", base.backbone.pipeline.unet)


@pytest.fixture
def control(folder: Path, tmp_path: Path) -> ControlRequest:
    picture = control_picture(tmp_path / "control.png")
    return ControlRequest(picture=picture, kind=str(folder), scale=0.8)


def request(prompt: str = "a cat", *, seeds: Sequence[int] = (3,), **options: Any) -> Request:
    return Request(prompt=prompt, seeds=seeds, settings=SETTINGS, **options)


# --- pictures -------------------------------------------------------------------------------------


def test_a_picture_has_its_control_and_is_drawn_again_with_it(
    registry: Registry, base: LoadedBase, tmp_path: Path, control: ControlRequest
) -> None:
    (plain,) = generate(registry, base, [request()], tmp_path)
    wanted = [request(seeds=(3, 4, 5), control=control)]
    first, _, third = generate(registry, base, wanted, tmp_path, batch=2)
    assert first.image.tobytes() != plain.image.tobytes()
    used = read_provenance(third.path).control
    assert used is not None
    assert used.image_sha256 == hashlib.sha256(control.picture.read_bytes()).hexdigest()
    assert (used.network, used.scale, used.transfers) == (control.kind, 0.8, True)
    recorded: Any = registry.trace(third.sha256).settings["control"]
    assert recorded["network_sha256"] == used.network_sha256
    assert read_provenance(plain.path).control is None
    again, is_same = reproduce(
        registry, base, third.path, tmp_path, control=replace(control, scale=1.0)
    )
    assert is_same
    assert again.path.read_bytes() == third.path.read_bytes()


def test_what_cannot_be_drawn_again_is_told(
    registry: Registry, base: LoadedBase, tmp_path: Path, control: ControlRequest
) -> None:
    (plain,) = generate(registry, base, [request()], tmp_path)
    (picture,) = generate(registry, base, [request(control=control)], tmp_path)
    with pytest.raises(InvalidInput, match="drawn with a control picture"):
        reproduce(registry, base, picture.path, tmp_path)
    with pytest.raises(InvalidInput, match="drawn without a control picture"):
        reproduce(registry, base, plain.path, tmp_path, control=control)
    other = replace(control, picture=control_picture(tmp_path / "other.png", (32, 32)))
    with pytest.raises(InvalidInput, match="another control picture"):
        reproduce(registry, base, picture.path, tmp_path, control=other)
    net = write_tiny_control(tmp_path / "other", base.backbone.pipeline.unet, seed=2)
    with pytest.raises(InvalidInput, match="another ControlNet"):
        reproduce(registry, base, picture.path, tmp_path, control=replace(control, kind=str(net)))


def test_nothing_is_drawn_where_one_control_is_wrong(
    registry: Registry, base: LoadedBase, tmp_path: Path, control: ControlRequest
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(control.picture.read_bytes()[:60])
    wide = control_picture(tmp_path / "wide.png", (32, 16))
    for changed, error, text in (
        ({"picture": broken}, InvalidImage, "damaged"),
        ({"picture": wide}, InvalidInput, "32x16, which is another shape than the 16x16"),
        ({"kind": None}, InvalidInput, "no ControlNet of its own"),
        ({"kind": "gone"}, NotFound, 'no ControlNet "gone"'),
    ):
        wrong = request(control=replace(control, **changed))
        with pytest.raises(error, match=text):
            next(generate(registry, base, [request(), wrong], tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_control_picture_of_the_shape_is_resized_and_said_to_be(
    base: LoadedBase, tmp_path: Path, control: ControlRequest
) -> None:
    large = control_picture(tmp_path / "large.png", (48, 48))
    wanted = [request(control=replace(control, picture=each)) for each in (large, large)]
    assert check_controls(base.base, 16, [*wanted, request(control=control)]) == [
        f"{large} is 48x48: resized to 16x16"
    ]
    read = ReadControl(large, Image.new("RGB", (101, 67)), "")
    assert read.fitted((50, 33)).size == (50, 33)
    with pytest.raises(InvalidInput, match="another shape"):
        read.fitted((50, 40))


def test_transparency_becomes_white_and_grey_is_read(
    registry: Registry, base: LoadedBase, tmp_path: Path, control: ControlRequest
) -> None:
    Image.new("L", (16, 16), 255).save(tmp_path / "grey.png")
    Image.new("RGBA", (16, 16), (9, 9, 9, 0)).save(tmp_path / "clear.png")
    wanted = [
        request(control=replace(control, picture=tmp_path / f"{name}.png"))
        for name in ("grey", "clear")
    ]
    grey, clear = generate(registry, base, wanted, tmp_path)
    assert grey.image.tobytes() == clear.image.tobytes()


def test_concepts_are_kept_apart_under_the_control(
    rex: Registry,
    base: LoadedBase,
    tmp_path: Path,
    control: ControlRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each pass of the U-Net has it, also those in which only attention is looked at."""
    rex.add("mia", [control.picture], category="cat")
    for name in ("rex", "mia"):
        train(rex, name, base, overrides=SHORT, seed=1)
    apart = replace(
        request("<rex> and <mia>", control=control),
        settings=replace(SETTINGS, separate=True, steps=6),
    )
    denoise, passes = base.backbone.denoise, list[bool]()

    def recorded(*arguments: Any) -> torch.Tensor:
        passes.append(len(arguments) == 4 and arguments[-1] is not None)
        return denoise(*arguments)

    monkeypatch.setattr(base.backbone, "denoise", recorded)
    list(generate(rex, base, [apart], tmp_path))
    assert len(passes) > 6
    assert all(passes)


# --- boxes of a layout ----------------------------------------------------------------------------

BOXES = {"cat": (0.0, 0.25, 0.5, 1.0), "dog": (0.5, 0.25, 1.0, 1.0)}
IN_BOXES = replace(SETTINGS, layout=BOXES, layout_control=True)


def knowing_layouts(base: LoadedBase, folder: Path) -> LoadedBase:
    """The base model with a ControlNet for layouts."""
    own = ControlSource("layout", "folder", str(folder))
    return replace(base, base=replace(base.base, controls=(own,)))


def test_a_control_net_is_shown_the_boxes_of_a_layout(
    registry: Registry, base: LoadedBase, folder: Path, tmp_path: Path
) -> None:
    knowing = knowing_layouts(base, folder)
    wanted = [
        Request(prompt="a cat and a dog", seeds=(3,), settings=settings)
        for settings in (IN_BOXES, replace(IN_BOXES, layout_control=False))
    ]
    picture, plain = generate(registry, knowing, wanted, tmp_path)
    assert picture.image.tobytes() != plain.image.tobytes()
    made = read_provenance(picture.path)
    assert (made.settings, made.control_picture) == (IN_BOXES, None)
    assert made.control is not None
    assert made.control.network == "layout"
    again, is_same = reproduce(registry, knowing, picture.path, tmp_path)
    assert is_same
    assert again.path.read_bytes() == picture.path.read_bytes()
    asked = ControlRequest(picture=control_picture(tmp_path / "control.png"))
    with pytest.raises(InvalidInput, match="drawn without a control picture"):
        reproduce(registry, knowing, picture.path, tmp_path, control=asked)
    other = write_tiny_control(tmp_path / "other", base.backbone.pipeline.unet, seed=2)
    with pytest.raises(InvalidInput, match="another ControlNet than layout"):
        reproduce(registry, knowing_layouts(base, other), picture.path, tmp_path)


def test_boxes_are_drawn_again_with_the_categories_of_then(
    rex: Registry, base: LoadedBase, folder: Path, tmp_path: Path
) -> None:
    knowing = knowing_layouts(base, folder)
    settings = replace(SETTINGS, layout={"rex": (0.0, 0.25, 0.5, 1.0)}, layout_control=True)
    rex.edit("rex", category="cat")
    asked = Request(
        prompt="a cat", seeds=(3,), settings=settings, references=(ReferenceRequest("rex"),)
    )
    (picture,) = generate(rex, knowing, [asked], tmp_path)
    rex.edit("rex", category="dog")
    _, is_same = reproduce(rex, knowing, picture.path, tmp_path)
    assert is_same


def test_boxes_have_the_colours_of_their_categories() -> None:
    layout = {"rex": (0.0, 0.0, 0.5, 1.0), "car": (0.25, 0.5, 1.0, 1.0)}
    drawn = boxes_picture(layout, {"rex": "dog"}, (32, 16))
    assert drawn.size == (32, 16)
    places = {(4, 8): LAYOUT_COLOURS["dog"], (12, 12): LAYOUT_COLOURS["car"], (24, 4): NOTHING}
    assert {place: drawn.getpixel(place) for place in places} == places


def test_boxes_that_no_control_net_can_be_shown_are_told(
    registry: Registry, base: LoadedBase, folder: Path, tmp_path: Path
) -> None:
    knowing = knowing_layouts(base, folder)
    picture = ControlRequest(picture=control_picture(tmp_path / "control.png"), kind=str(folder))
    sun = {**BOXES, "sun": (0.0, 0.0, 0.5, 0.25)}
    for given, text, loaded in (
        ({"settings": replace(IN_BOXES, layout=None)}, "there are none", knowing),
        ({"settings": replace(IN_BOXES, layout="auto")}, "there are none", knowing),
        ({"control": picture}, "do not go together", knowing),
        ({}, "no ControlNet for layouts of boxes", base),
        ({"settings": replace(IN_BOXES, layout=sun)}, "layout knows no 'sun'", knowing),
    ):
        wrong = replace(
            Request(prompt="a cat, a dog and a sun", seeds=(3,), settings=IN_BOXES), **given
        )
        with pytest.raises(InvalidInput, match=text):
            next(generate(registry, loaded, [request(), wrong], tmp_path / "out"))
    assert not (tmp_path / "out").exists(), "all are checked before the first is drawn"


# --- asking ---------------------------------------------------------------------------------------


def test_an_image_and_a_kind(tmp_path: Path) -> None:
    plain, odd = (control_picture(tmp_path / name) for name in ("a.png", "b:c.png"))
    assert parse_control(str(plain)) == ControlRequest(picture=plain)
    assert parse_control(f"{plain}:me/net").kind == "me/net"
    assert parse_control(str(odd)) == ControlRequest(picture=odd)
    assert parse_control(f"{odd}:canny").kind == "canny"
    assert parse_control("a.png:canny", folder=tmp_path).picture == plain
    for text in ("gone.png", "gone.png:canny", ":canny", ""):
        with pytest.raises(NotFound, match="no control picture"):
            parse_control(text)
    with pytest.raises(InvalidInput, match="names no ControlNet after the colon"):
        parse_control(f"{plain}:")
    for scale in (-0.1, 2.1, float("nan")):
        with pytest.raises(InvalidInput, match="scale"):
            ControlRequest(picture=plain, scale=scale)


def test_a_prompt_file_names_pictures_beside_it(tmp_path: Path) -> None:
    one, two = (control_picture(tmp_path / f"{name}.png") for name in ("one", "two"))
    file = tmp_path / "prompts.csv"
    file.write_text("prompt,control,control_scale\na,one.png:pose,0.5\nb,one.png,\nc,,\n")
    mine = ControlRequest(picture=two)
    defaults = PromptDefaults(n=1, seed=0, settings=SETTINGS, control=mine, control_scale=0.25)
    assert [each.control for each in read_prompts(file, defaults)] == [
        ControlRequest(picture=one, kind="pose", scale=0.5),
        ControlRequest(picture=one, scale=0.25),
        mine,
    ]
    for cells, error, text in (
        ("gone.png,", NotFound, "line 2: there is no control picture gone.png"),
        ("~gone.png,", NotFound, "line 2: there is no control picture ~gone.png"),
        ("one.png,7", InvalidInput, "line 2: control_scale is 7"),
        ("one.png,much", InvalidInput, "line 2: control_scale is 'much'"),
    ):
        file.write_text(f"prompt,control,control_scale\na,{cells}\n")
        with pytest.raises(error, match=text):
            read_prompts(file, defaults)


# --- model transfer -------------------------------------------------------------------------------


def concept(change: WeightDelta | None) -> InjectedConcept:
    return InjectedConcept(
        Mention("<rex>", "rex", None, 1.0), "dog", ("<rex>",), "<rex>", "rex@1", change
    )


def state_of(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_changes_of_weights_are_added_to_the_copy_and_undone(backbone: Backbone) -> None:
    network = make_tiny_control(backbone.denoiser)
    parameters = backbone.parameters("denoiser")
    generator = torch.Generator().manual_seed(0)
    deltas = {n: torch.randn(p.shape, generator=generator) for n, p in parameters.items()}
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    factors = {name: (torch.ones(16, 2), torch.ones(2, 16))}
    full, lora = WeightDelta(deltas, {}, strength=0.5), WeightDelta({}, factors, strength=2.0)
    before = state_of(network)
    copied = before.keys() & parameters.keys()
    assert {each.partition(".")[0] for each in copied} == {
        "conv_in",
        "time_embedding",
        "down_blocks",
        "mid_block",
    }
    assert all(each.startswith("controlnet_") for each in before.keys() - copied)
    inside: dict[str, torch.Tensor] = {}

    def fail() -> None:
        with transferred(network, [concept(each) for each in (full, None, lora)]):
            inside.update(state_of(network))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    for each, value in before.items():
        added = 0.5 * deltas[each] if each in copied else torch.zeros_like(value)
        added = added + (4.0 if each == name else 0.0)
        torch.testing.assert_close(inside[each], value + added)
    assert all(value.equal(before[each]) for each, value in network.state_dict().items())


def test_a_concept_changes_the_network_for_its_pictures_only(
    rex: Registry, base: LoadedBase, tmp_path: Path, control: ControlRequest
) -> None:
    """What the U-Net gains, the copy does: their difference stays what it was."""
    overrides = (*SHORT, "stage3.learning_rate=0.01")
    train(rex, "rex", base, overrides=overrides, seed=1)
    with_it, without = generate(
        rex,
        base,
        [
            request("<rex>", control=control),
            request("<rex>", control=replace(control, transfers=False)),
        ],
        tmp_path,
    )
    assert with_it.image.tobytes() != without.image.tobytes()
    used = read_provenance(without.path).control
    assert used is not None
    assert not used.transfers
    _, is_same = reproduce(rex, base, without.path, tmp_path, control=control)
    assert is_same
    unet = base.backbone.denoiser
    network = make_tiny_control(unet, seed=None)
    names = [name for name, _ in network.named_parameters() if not name.startswith("controlnet_")]
    with inject_concepts(base, resolve_prompt(rex, "<rex>")) as concepts:
        assert concepts[0].change is not None
        with transferred(network, concepts):
            own, tuned = network.state_dict(), unet.state_dict()
            assert all(own[name].equal(tuned[name]) for name in names)


def test_a_concept_whose_tokens_follow_the_timestep_is_drawn(
    rex: Registry, base: LoadedBase, tmp_path: Path, control: ControlRequest
) -> None:
    """Its text states are wider than the ControlNet's layers."""
    train(rex, "rex", base, method="sefi", overrides=("embedding.steps=1",), seed=1)
    (plain,) = generate(rex, base, [request("<rex>")], tmp_path)
    (picture,) = generate(rex, base, [request("<rex>", control=control)], tmp_path)
    assert np.asarray(picture.image).std() > 0
    assert picture.image.tobytes() != plain.image.tobytes()

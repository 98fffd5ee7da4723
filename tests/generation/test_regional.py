"""Several subjects in a picture, each in its region: words, references, weights and LoRA."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conceptry.adapters.adapter import injected
from conceptry.adapters.lora_branch import LoraBranch
from conceptry.adapters.references import References
from conceptry.adapters.weight_delta import WeightDelta
from conceptry.generation import Request, SamplingSettings, generate, read_provenance, reproduce
from conceptry.generation.control_request import UsedControl
from conceptry.generation.controls import PreparedControl, followed, following
from conceptry.generation.guidance import guidance_for
from conceptry.generation.injection import inject_concepts
from conceptry.generation.layout import parse_layout
from conceptry.generation.prompt_syntax import resolve_prompt
from conceptry.generation.reference_syntax import ReferenceRequest
from conceptry.generation.regional import SHARED, RegionalGuidance, Sight, _changes
from conceptry.generation.regional_plan import PlannedPart, RegionalPlan, plan_regions
from conceptry.generation.regions import SubjectColumns
from conceptry.generation.starts import Beginning
from conceptry.generation.subject_regions import box_regions, regions_of
from conceptry.models.backbone import Backbone
from conceptry.models.conditioning import Control
from conceptry.models.loading import LoadedBase
from conceptry.models.references import Reference
from conceptry.registry import Registry
from conceptry.registry.errors import InvalidInput
from conceptry.training import train
from copies import copied, made_with_rex
from long import quick_for
from PIL import Image
from tiny_control import make_tiny_control
from torch import Tensor

SETTINGS = SamplingSettings(steps=2, guidance=3.0)
LEFT, RIGHT, ALL = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0)
SHORT = ("augmentation.crops=2", "num_tokens=2", *(f"stage{i}.steps=1" for i in (1, 2, 3)))


@pytest.fixture(scope="module")
def made(_one_base: LoadedBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def teach(registry: Registry, photos: Path) -> None:
        for name, category in (("mia", "cat"), ("tom", "bear")):
            registry.add(name, [photos], category=category)
        words = ("embedding.steps=1",)
        train(registry, "rex", _one_base, overrides=SHORT)
        train(registry, "mia", _one_base, overrides=(*SHORT, "rank=2"))
        train(registry, "tom", _one_base, method="textual-inversion", overrides=words)

    return made_with_rex(tmp_path_factory.mktemp("made"), teach)


@pytest.fixture
def both(made: Path, tmp_path: Path) -> Iterator[Registry]:
    """rex changes all weights, mia has LoRA, tom only words."""
    with copied(made, tmp_path) as registry:
        yield registry


def asked(prompt: str, layout: Any, *seeds: int, **others: Any) -> Request:
    return Request(
        prompt=prompt, seeds=seeds or (3, 4), settings=replace(SETTINGS, layout=layout), **others
    )


# --- predictions ----------------------------------------------------------------------------------


def latents_of(backbone: Backbone) -> Tensor:
    side = backbone.size // backbone.latent_factor
    generator = torch.Generator().manual_seed(7)
    return torch.randn(2, backbone.latent_channels, side, side, generator=generator).double()


def change_of(backbone: Backbone, rank: int | None = None) -> WeightDelta:
    """Random changes of the U-Net's attention, whole or of a rank."""
    generator = torch.Generator().manual_seed(5)
    names = [n for n in backbone.parameters("denoiser") if ".to_" in n and n.endswith("weight")]
    parameters = backbone.weights()

    def some(*shape: int) -> Tensor:
        return 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)

    if rank is None:
        return WeightDelta({name: some(*parameters[name].shape) for name in names})
    shapes = {name: parameters[name].shape for name in names}
    factors = {n: (some(shape[0], rank), some(rank, shape[1])) for n, shape in shapes.items()}
    return WeightDelta({}, factors, strength=0.5)


@torch.no_grad()
def predicted(
    backbone: Backbone, prompt: str, plan: RegionalPlan | None = None, guidance: float = 3.0
) -> Tensor:
    latents = latents_of(backbone)
    settings = replace(SETTINGS, guidance=guidance)
    found = guidance_for(
        backbone, [prompt] * 2, settings, [3, 4], backbone.size, backbone.size, plan=plan
    )
    if isinstance(found, RegionalGuidance):
        found.place(backbone, Beginning(latents), settings.steps)
    return found.predict(backbone, latents, torch.tensor(500))


def plan_of(parts: Sequence[PlannedPart], box: tuple[float, ...] = ALL) -> RegionalPlan:
    return RegionalPlan(["rex"], parts, [box], parts[0])  # pyright: ignore[reportArgumentType]


DOG = [SubjectColumns((3,), (3,))]


def test_a_region_that_is_everywhere_changes_nothing(exact: Backbone) -> None:
    plan = plan_of([PlannedPart("a red dog", DOG)])
    gap = predicted(exact, "a red dog", plan) - predicted(exact, "a red dog")
    assert float(gap.abs().max()) < 1e-12


@torch.no_grad()
def test_words_are_seen_from_their_region_alone(exact: Backbone) -> None:
    """Equal to a whole mask in a materialised softmax; rows without the prompt see as ever."""
    layer = next(name for name in exact.attention.layers if name.endswith("attn2"))
    attention: Any = exact.denoiser.get_submodule(layer)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    states = normal(2, 64, attention.to_q.in_features)
    text = normal(2, 7, attention.to_k.in_features)
    sight = Sight(["rex"], [SubjectColumns((2,), (2, 3))])
    sight.set(box_regions([LEFT], (8, 8)).expand(1, -1, -1, -1).double())
    with sight.words(exact, torch.tensor([False, True]), 7):
        found = attention(states, encoder_hidden_states=text)
    mask = torch.zeros(2, 64, 7, dtype=torch.float64)
    mask[1, :, 2:4] = sight.masks.flatten().clamp(min=1e-3).log()[:, None]  # pyright: ignore[reportOptionalMemberAccess]
    query, key, value = (
        each.unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        for each in (attention.to_q(states), attention.to_k(text), attention.to_v(text))
    )
    scores = query @ key.mT * attention.scale + mask[:, None]
    expected = attention.to_out[0]((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
    assert float((found - expected).abs().max()) < 1e-6
    plain = attention(states, encoder_hidden_states=text)
    assert float((found[0] - plain[0]).abs().max()) < 1e-12


def test_a_concept_s_weights_are_blended_in_where_its_region_is(exact: Backbone) -> None:
    change = change_of(exact)
    plan = plan_of(
        [PlannedPart("a red dog", DOG), PlannedPart("a dog", DOG, change.computed(exact), 0)]
    )
    before = {name: each.clone() for name, each in exact.weights().items()}
    found = predicted(exact, "", plan)
    assert all(each.equal(before[name]) for name, each in exact.weights().items())
    whole = predicted(exact, "a red dog")
    with injected(exact, [change]):
        own = predicted(exact, "a dog")
    assert float((found - (whole + (1 - SHARED) * (own - whole))).abs().max()) < 1e-12
    nowhere = replace(plan, boxes=[(0.0, 0.0, 0.0, 0.0)])
    masked = predicted(exact, "", replace(nowhere, parts=[plan.parts[0]]))
    assert float((predicted(exact, "", nowhere) - masked).abs().max()) < 1e-12


@torch.no_grad()
@pytest.mark.parametrize(
    ("timestep", "num_steps", "num_subjects", "is_early"),
    [
        (999, 4, 2, True),
        (650, 4, 2, True),
        (649, 4, 2, False),
        (999, 1, 2, False),
        (999, 4, 1, False),
    ],
)
def test_several_see_no_references_in_noisy_steps(
    exact: Backbone, timestep: int, num_steps: int, num_subjects: int, is_early: bool
) -> None:
    """Changed weights count in them."""
    noise, side, change = latents_of(exact), exact.size, change_of(exact)
    latent, now = side // exact.latent_factor, torch.tensor(timestep)
    seen: Any = {"guidance": 3.0, "weight": 3.0, "share": 0.0}
    reference = Reference(noise[0], torch.ones(latent, latent), "a dog", subject="ada", **seen)
    subjects = ["rex", "mia"][:num_subjects]
    columns = [*DOG, SubjectColumns((), ())][:num_subjects]
    boxes = [ALL, (0.0, 0.0, 0.0, 0.0)][:num_subjects]

    def guided(prompt: str, *parts: PlannedPart) -> Tensor:
        plan = RegionalPlan(subjects, parts, boxes, None) if parts else None
        found = guidance_for(exact, [prompt] * 2, SETTINGS, [3, 4], side, side, plan=plan)
        if isinstance(found, RegionalGuidance):
            found.place(exact, Beginning(noise), num_steps)
        return found.predict(exact, noise, now)

    part = PlannedPart("a red dog", columns)
    own = PlannedPart("a dog", columns, change.computed(exact), 0, sees_references=False)
    without = guided("a red dog")
    with injected(exact, [change]):
        changed = guided("a dog")
    with injected(exact, [References([reference])]):
        base = guided("a red dog")
        assert float((base - without).abs().max()) > 1e-3
        base = without if is_early else base
        assert float((guided("", part) - base).abs().max()) < 1e-9
        expected = base + (1 - SHARED) * (changed - base)
        assert float((guided("", part, own) - expected).abs().max()) < 1e-9


def test_lora_beside_its_layers_is_lora_in_their_weights(exact: Backbone) -> None:
    change = change_of(exact, rank=2)
    branch = LoraBranch.of(change, exact)
    assert branch is not None
    with torch.no_grad(), branch.beside(exact, lambda shape, is_text: torch.ones(1, 1, 1)):
        beside = predicted(exact, "a red dog")
    with injected(exact, [change]):
        inside = predicted(exact, "a red dog")
    plain = predicted(exact, "a red dog")
    assert float((beside - inside).abs().max()) < 1e-6 * float(inside.abs().max())
    assert float((inside - plain).abs().max()) > 1e-3
    assert LoraBranch.of(change_of(exact), exact) is None


def test_lora_counts_in_its_region(exact: Backbone) -> None:
    branch = LoraBranch.of(change_of(exact, rank=2), exact)
    assert branch is not None
    parts = [PlannedPart("a red dog", DOG, branches=[(0, branch)])]
    plain = predicted(exact, "a red dog")
    gap = predicted(exact, "", plan_of(parts)) - plain
    assert float(gap.abs().max()) > 1e-3
    nowhere = plan_of(parts, (0.0, 0.0, 0.0, 0.0))
    without = plan_of([replace(parts[0], branches=())], (0.0, 0.0, 0.0, 0.0))
    hidden = predicted(exact, "", nowhere) - predicted(exact, "", without)
    assert float(hidden.abs().max()) < 1e-2 * float(gap.abs().max())


def test_a_reference_is_seen_from_its_subject_s_region(exact: Backbone) -> None:
    side = exact.size // exact.latent_factor
    latents = torch.randn(exact.latent_channels, side, side)
    one = Reference(latents, torch.ones(side, side), "a dog", weight=3.0, subject="rex")
    part = PlannedPart("a red dog", DOG)
    with injected(exact, [References([one])]):
        everywhere = predicted(exact, "", plan_of([part]))
        seen = predicted(exact, "a red dog")
        left = predicted(exact, "", plan_of([part], (0.0, 0.0, 0.3, 1.0)))
    with injected(exact, [References([replace(one, subject="mia")])]):
        others = predicted(exact, "", plan_of([part]))
    assert float((everywhere - seen).abs().max()) < 1e-12
    assert others.equal(everywhere)
    assert float((left - everywhere).abs().max()) > 1e-3


def test_the_bias_of_a_region_is_its_logarithm_at_each_layer() -> None:
    sight = Sight(["rex", "mia"], [])
    sight.set(box_regions([LEFT, RIGHT], (8, 8)).expand(2, -1, -1, -1))
    bias = sight.of_references(["mia", "nobody", "rex"], 4)
    assert bias is not None
    found = bias(5, 16)
    assert found.groups[0].tolist() == [1] * 5 + [-1] * 5 + [0] * 5
    assert found.groups.shape == (4, 15)
    shares = found.values.exp()
    assert shares.shape == (4, 2, 16)
    assert torch.allclose(shares.sum(1), torch.ones(4, 16), atol=2e-3)
    assert float(shares[0, 0, 0]) > 0.99
    assert float(shares[0, 0, 3]) == pytest.approx(1e-3)


# --- regions --------------------------------------------------------------------------------------


def test_regions_of_maps_are_where_each_is_strongest() -> None:
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")

    def blob(row: float, column: float) -> Tensor:
        return torch.exp(-((y - row) ** 2 + (x - column) ** 2) / 18)

    maps = torch.stack([blob(8, 4) + 0.3 * blob(8, 12), 0.1 * blob(8, 12)])[None]
    regions = regions_of(maps)
    assert (regions.sum(1) <= 1 + 1e-6).all()
    assert regions[0, 0, 8, 4] > 0.9
    assert regions[0, 1, 8, 12] > 0.9
    assert regions[0, :, 0, 0].sum() < 0.1
    assert torch.allclose(regions_of(1e-3 * maps), regions, atol=1e-5)


def test_boxes_share_what_they_have_in_common() -> None:
    masks = box_regions([(0.0, 0.0, 0.75, 1.0), (0.25, 0.0, 1.0, 1.0)], (8, 8))
    assert masks.shape == (2, 8, 8)
    assert torch.allclose(masks[:, 4, 4], torch.tensor([0.5, 0.5]))
    assert float(masks[0, 4, 0]) == 1
    assert float(masks[1, 4, 0]) == 0


# --- plans ----------------------------------------------------------------------------------------


def test_a_plan_has_a_prediction_for_each_who_changes_weights(
    both: Registry, base: LoadedBase
) -> None:
    prompt = "<tom>, <rex> and <mia> in the snow"
    chosen = resolve_prompt(both, prompt)
    with inject_concepts(base, chosen, apart=True) as concepts:
        plan = plan_regions(base.backbone, prompt, concepts, "auto", {})
        assert plan is not None
        texts = [part.prompt for part in plan.parts]
        tom, rex, mia = (each.phrase for each in concepts)
        assert texts == [
            f"{tom}, dog and {mia} in the snow",
            f"{tom}, {rex} and {mia} in the snow",
        ]
        assert plan.plain is not None
        assert plan.plain.prompt == "bear, dog and cat in the snow"
        assert not plan.plain.branches
        assert [part.subject for part in plan.parts] == [None, 1]
        assert [[number for number, _ in part.branches] for part in plan.parts] == [[2], [2]]
        ids = base.backbone.text_encoders[0].ids(texts[1])
        words = base.backbone.text_encoders[0].tokenizer.convert_ids_to_tokens(ids)
        own = plan.parts[1].columns[1]
        assert [words[column] for column in own.own] == list(concepts[1].tokens)
        assert words[own.all[-1]] == "dog</w>"
        assert plan.plain.columns == [
            SubjectColumns((1,), (1,)),
            SubjectColumns((3,), (3,)),
            SubjectColumns((5,), (5,)),
        ]


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"rex": LEFT}, "the layout has no box for mia"),
        ({"rex": LEFT, "mia": RIGHT, "tree": ALL}, "'tree', which the prompt does not name"),
        ({"rex": (0.5, 0.0, 0.5, 1.0), "mia": RIGHT}, "the box 0.5,0,0.5,1 of 'rex' is empty"),
        ({"rex": (0.5, 0.0, 1.5, 1.0), "mia": RIGHT}, "no box for 'rex': left, top, right"),
        ({"rex": (0.5, 0.0, float("nan"), 1.0), "mia": RIGHT}, "no box for 'rex'"),
        ({"rex": (0.5, 0.0), "mia": RIGHT}, "no box for 'rex'"),
    ],
)
def test_a_wrong_layout_is_told_before_anything_is_drawn(
    both: Registry, base: LoadedBase, tmp_path: Path, layout: Any, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        list(generate(both, base, [asked("<rex> and <mia>", layout)], tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "layout"),
    [
        ([], None),
        (["auto"], "auto"),
        (
            ["rex=0,.3,.5,1", "<mia> = 0.5, .3, 1, 1"],
            {"rex": (0, 0.3, 0.5, 1), "mia": (0.5, 0.3, 1, 1)},
        ),
    ],
)
def test_layouts_are_read(words: list[str], layout: Any) -> None:
    assert parse_layout(words) == layout


@pytest.mark.parametrize(
    "words", [["rex"], ["rex=0,1"], ["=0,0,1,1"], ["auto", "rex=0,0,1,1"], ["rex=0,0,1,1"] * 2]
)
def test_what_is_no_layout_is_told(words: list[str]) -> None:
    with pytest.raises(InvalidInput, match=r"layout|box"):
        parse_layout(words)


# --- pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout", quick_for(1, ["auto", {"rex": LEFT, "mia": RIGHT, "tom": ALL}]), ids=str
)
def test_a_picture_of_several_is_drawn_again(
    both: Registry, base: LoadedBase, tmp_path: Path, layout: Any
) -> None:
    wanted = asked("<rex> and <mia> and <tom>", layout)
    pictures = list(generate(both, base, [wanted], tmp_path, with_maps=True, with_leaks=True))
    assert [(leak.of, leak.on) for leak in pictures[0].leaks][:2] == [
        ("rex", "mia"),
        ("rex", "tom"),
    ]
    assert read_provenance(pictures[0].path).settings.layout == layout
    others = [
        next(generate(both, base, [asked(wanted.prompt, other)], tmp_path))
        for other in ("none", None)
    ]
    assert read_provenance(others[0].path).settings.layout is None
    assert others[0].image.tobytes() != pictures[0].image.tobytes()
    assert (others[1].image.tobytes() == pictures[0].image.tobytes()) == (layout == "auto")
    for rename in (False, True):
        if rename:
            both.rename("rex", "max")
        again, is_same = reproduce(both, base, pictures[1].path, tmp_path / "again")
        assert is_same
        assert again.maps is not None


def test_several_are_drawn_again_with_perturbed_attention(
    both: Registry, base: LoadedBase, tmp_path: Path
) -> None:
    """Words and LoRA, weights and references of a subject each."""
    wanted = asked("<rex> and <mia> and <tom>", "auto", references=(ReferenceRequest("tom"),))
    perturbed = replace(wanted, settings=replace(wanted.settings, perturbed_attention=2.0))
    plain = next(generate(both, base, [wanted], tmp_path))
    picture = next(generate(both, base, [perturbed], tmp_path, with_maps=True))
    assert picture.image.tobytes() != plain.image.tobytes()
    assert read_provenance(picture.path).settings.perturbed_attention == 2
    assert reproduce(both, base, picture.path, tmp_path / "again")[1]
    assert "perturbed" not in json.dumps(plain.image.info | wanted.settings.to_mapping())


def test_a_single_concept_found_by_itself_is_drawn_as_ever(
    both: Registry, base: LoadedBase, tmp_path: Path
) -> None:
    for name in ("rex", "mia", "tom"):
        plain, found = (
            next(generate(both, base, [asked(f"<{name}> asleep", layout)], tmp_path))
            for layout in (None, "auto")
        )
        assert plain.image.tobytes() == found.image.tobytes()


def test_a_picture_s_regions_do_not_depend_on_its_batch(
    both: Registry, base: LoadedBase, tmp_path: Path
) -> None:
    wanted = asked("<rex> and <mia>", "auto", 3, 4)
    alone, together = (
        list(generate(both, base, [wanted], tmp_path, batch=batch)) for batch in (1, 2)
    )
    for one, other in zip(alone, together, strict=True):
        gaps = [abs(a - b) for a, b in zip(one.image.tobytes(), other.image.tobytes(), strict=True)]
        assert max(gaps) <= 1


def test_references_have_regions_and_may_be_all_there_is(
    both: Registry, base: LoadedBase, tmp_path: Path
) -> None:
    references = (ReferenceRequest("rex", None, 3.0), ReferenceRequest("mia", None, 3.0))
    boxes = {"dog": LEFT, "mia": RIGHT}
    drawn = [
        next(generate(both, base, [asked(text, layout, references=references)], tmp_path))
        for text, layout in (
            ("a dog and a cat", None),
            ("a dog and a cat", "auto"),
            ("a dog and <mia>", boxes),
        )
    ]
    assert len({each.image.tobytes() for each in drawn}) == 3
    again, is_same = reproduce(both, base, drawn[1].path, tmp_path)
    assert is_same
    assert again.seed == 3


def test_sheets_show_references_that_subjects_of_their_own_predictions_have(
    both: Registry, base: LoadedBase, tmp_path: Path
) -> None:
    """Each prediction sees the references of its own subject alone, a photo of another shape."""
    (tmp_path / "wide").mkdir()
    Image.new("RGB", (96, 48), "red").save(tmp_path / "wide" / "1.png")
    train(both, "rex", base, overrides=("reference.photos=1", *SHORT))
    both.add("ann", [tmp_path / "wide"], category="cat")
    train(both, "ann", base, overrides=("reference.photos=1", *SHORT))
    request = asked("<rex> and <ann>", {"rex": LEFT, "ann": RIGHT})
    points = [(0.2, 0.5), (0.8, 0.5)]
    found = list(generate(both, base, [request], tmp_path, with_maps=True, points=points))
    plain = list(generate(both, base, [request], tmp_path))
    for one, other in zip(found, plain, strict=True):
        gap = np.asarray(one.image, dtype=int) - np.asarray(other.image)
        assert np.abs(gap).max() <= 1
        assert one.maps is not None
        with Image.open(one.maps) as sheet:
            assert sheet.height > 3 * 128  # a row of regions, and one for each reference


# --- whose word is whose --------------------------------------------------------------------------


def words_at(base: LoadedBase, part: PlannedPart, subject: int) -> list[str]:
    """The words of a subject in a prediction's prompt."""
    encoder = base.backbone.text_encoders[0]
    words = encoder.tokenizer.convert_ids_to_tokens(encoder.ids(part.prompt))
    return [words[column] for column in part.columns[subject].all]


@pytest.mark.parametrize("boxes", [{"rex": LEFT, "dog": RIGHT}, {"dog": RIGHT, "rex": LEFT}])
def test_a_word_is_no_part_of_what_a_concept_is_called(
    both: Registry, base: LoadedBase, boxes: Any
) -> None:
    prompt = "<rex> and a dog"
    with inject_concepts(base, resolve_prompt(both, prompt), apart=True) as concepts:
        plan = plan_regions(base.backbone, prompt, concepts, boxes, {})
        assert plan is not None
        rex, dog = (plan.subjects.index(name) for name in ("rex", "dog"))
        for part in plan.parts:
            own, other = part.columns[rex].all, part.columns[dog].all
            assert not {*own} & {*other}
            assert other == (max(own) + 3,)
            assert words_at(base, part, dog) == ["dog</w>"]


def test_a_word_that_only_a_concept_has_has_no_box(both: Registry, base: LoadedBase) -> None:
    prompt = "<rex> in the snow"
    with (
        inject_concepts(base, resolve_prompt(both, prompt), apart=True) as concepts,
        pytest.raises(InvalidInput, match="'dog', which the prompt does not name"),
    ):
        plan_regions(base.backbone, prompt, concepts, {"rex": LEFT, "dog": RIGHT}, {})


def test_references_take_the_words_of_their_kind_in_turn(both: Registry, base: LoadedBase) -> None:
    def subjects(prompt: str, referenced: dict[str, str]) -> tuple[list[str], list[Any]]:
        with inject_concepts(base, resolve_prompt(both, prompt), apart=True) as concepts:
            plan = plan_regions(base.backbone, prompt, concepts, "auto", referenced)
            if plan is None:
                return [], []
            return list(plan.subjects), [each.all for each in plan.parts[0].columns]

    two = {"one": "dog", "two": "dog"}
    assert subjects("a dog and a dog", two) == (["one", "two"], [(2,), (5,)])
    assert subjects("a dog", two) == ([], [])
    assert subjects("<rex> and <mia>", {"ada": "dog"})[0] == ["rex", "mia"]
    # from left to right, in the order of the prompt
    assert subjects("a dog and <tom>", {"ada": "dog"})[0] == ["ada", "tom"]


def test_a_box_of_a_word_is_for_all_of_them(base: LoadedBase) -> None:
    plan = plan_regions(base.backbone, "a dog, a dog and a cat", [], {"dog": LEFT}, {})
    assert plan is not None
    (dogs,) = plan.parts[0].columns
    assert dogs.all == (2, 5)


def test_a_plain_prompt_that_is_too_long_is_told(
    both: Registry, base: LoadedBase, tmp_path: Path
) -> None:
    both.edit("tom", category="purple plush elephant toy")
    train(both, "tom", base, method="textual-inversion", overrides=("embedding.steps=1",))
    prompt = f"<tom> {'a ' * 68}<rex>"
    with pytest.raises(InvalidInput, match="the prompt has"):
        list(generate(both, base, [asked(prompt, None, 3)], tmp_path))
    with pytest.raises(InvalidInput, match="the prompt has"):
        list(generate(both, base, [asked(f"{'a ' * 80}<tom> <rex>", None, 3)], tmp_path))
    boxes = {"tom": LEFT, "rex": RIGHT}
    list(generate(both, base, [asked(prompt, boxes, 3)], tmp_path))  # nobody looks for it


# --- a ControlNet beside --------------------------------------------------------------------------


def test_a_controlnet_follows_each_prediction_s_own_concept(
    both: Registry, base: LoadedBase
) -> None:
    train(both, "tom", base, overrides=SHORT)
    network = make_tiny_control(base.backbone.pipeline.unet)
    used = UsedControl("0" * 64, "net", "1" * 64, 1.0)
    prepared = PreparedControl(Control(network, torch.zeros(1, 3, 16, 16)), used)
    prompt = "<rex>, <tom> and <mia>"
    name = next(n for n, _ in network.named_parameters() if n.endswith("attn2.to_q.weight"))
    module = network.get_submodule(name.removesuffix(".weight"))
    plain = network.get_parameter(name).clone()
    changes: dict[int | None, Tensor] = {}
    with inject_concepts(base, resolve_prompt(both, prompt), apart=True) as concepts:
        plan = plan_regions(base.backbone, prompt, concepts, "auto", {})
        plan = followed(plan, prepared, concepts)
        assert plan is not None
        with following(prepared, concepts, plan):
            assert network.get_parameter(name).equal(plain)  # also of the base model's prediction
            for part in plan.parts:
                with injected(base.backbone, _changes(part)):
                    changes[part.subject] = network.get_parameter(name) - plain
                    assert part.beside == [network]
                ((_, branch),) = part.branches
                sight = Sight(plan.subjects, part.columns, part.branches, part.beside)
                sight.set(torch.ones(1, 3, 8, 8))
                before = len(module._forward_hooks)
                here = torch.ones(1, dtype=torch.bool)
                with sight.words(base.backbone, here, 77):
                    assert name.removesuffix(".weight") in branch.layers
                    assert len(module._forward_hooks) == before + 1
        own = {each.mention.name: each.change for each in concepts}
        for subject, found in changes.items():
            change = own[plan.subjects[subject]] if subject is not None else None
            wanted = change.added_to(name, plain) - plain if change else torch.zeros_like(plain)
            assert torch.allclose(found, wanted, atol=1e-6)
    assert network.get_parameter(name).equal(plain)

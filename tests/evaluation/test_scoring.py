"""Scores with known answers."""

import random

import pytest
import torch
from conceptry.evaluation.encoders import Encoders
from conceptry.evaluation.record import (
    PictureScores,
    PromptScores,
    harmonic_mean,
    mean_scores,
    summary,
)
from conceptry.evaluation.scoring import ObservedPicture, Scorer, diversity, embed_references
from conceptry.evaluation.suites import SuitePrompt
from conceptry.generation.photo_regions import as_mask, regions_of_photos
from conceptry.generation.regions import region, share_inside, subject_columns
from conceptry.models.loading import load_base
from conceptry.models.miniature.world.scenes import Rendered, Scene, describe, render, sample_scene
from conceptry.models.pixels import grey_outside
from conceptry.registry.errors import InvalidInput
from PIL import Image, ImageChops

SHARP = [0] * 128 + [255] * 128
ANYTHING = SuitePrompt("a photo of a {}")


def scenes(count: int, first: int = 0) -> list[Scene]:
    return [
        sample_scene(first + i, "held-out", num_subjects=1, style="photo") for i in range(count)
    ]


def whole(image: Image.Image) -> ObservedPicture:
    """A picture that is all subject."""
    return ObservedPicture(
        image, torch.rand(1, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    )


def white(images: list[Image.Image]) -> list[Image.Image]:
    return [Image.new("L", image.size, 255) for image in images]


def test_identical_pictures_score_one(encoders: Encoders) -> None:
    (photo,) = [render(scene, 64).image for scene in scenes(1)]
    scorer = Scorer(encoders, [embed_references(encoders, "dog", [photo], white([photo]))])
    (row,), _ = scorer.score(ANYTHING, [whole(photo)])
    assert row["clip_i"] == row["identity"] == row["replay"] == 1.0


def test_another_individual_scores_less_than_another_picture(encoders: Encoders) -> None:
    scene, other = scenes(2)
    who = scene.subjects[0].identity
    again = sample_scene(77, "held-out", identity=who, num_subjects=1, style="photo")
    photos = [render(scene, 64).image]
    scorer = Scorer(encoders, [embed_references(encoders, who.category, photos, white(photos))])
    pictures = [whole(render(each, 64).image) for each in (again, other)]
    (same, different), _ = scorer.score(ANYTHING, pictures)
    assert same["identity"] > different["identity"] + 0.2
    assert same["identity"] < 1


@pytest.mark.long
def test_shuffled_prompts_lower_clip_t(encoders: Encoders) -> None:
    drawn = scenes(24)
    shuffled = random.Random(1).sample(drawn, len(drawn))

    def mean(described: list[Scene]) -> float:
        total = 0.0
        for scene, said in zip(drawn, described, strict=True):
            category = said.subjects[0].identity.category
            text = describe(said).replace(f" {category}", " {}", 1)
            image = render(scene, 64).image
            scorer = Scorer(
                encoders, [embed_references(encoders, category, [image], white([image]))]
            )
            (row,), _ = scorer.score(SuitePrompt(text), [whole(image)])
            total += row["clip_t"]
        return total / len(drawn)

    assert mean(drawn) > mean(shuffled) + 0.2


@pytest.mark.long
def test_the_judge_sees_in_renders_what_is_there(encoders: Encoders) -> None:
    """Its stated accuracy on pictures of ground truth: at least 0.95 of everything."""
    seen: list[float] = []
    for scene in scenes(60, first=400):
        (subject,) = scene.subjects
        sees = {"place": scene.place, "colour": subject.identity.colour}
        sees |= {"accessory": subject.accessory} if subject.accessory else {}
        image = render(scene, 64).image
        scorer = Scorer(
            encoders,
            [embed_references(encoders, subject.identity.category, [image], white([image]))],
        )
        prompt = SuitePrompt("a photo of a {}", sees=sees)
        (row,), _ = scorer.score(prompt, [whole(image)])
        seen.append(row["seen"])
        wrong = SuitePrompt("a photo of a {}", sees={"style": "pencil sketch"})
        (row,), _ = scorer.score(wrong, [whole(image)])
        assert row["seen_style"] == 0
    assert sum(seen) / len(seen) > 0.95


def test_identity_is_not_asked_of_other_looks(encoders: Encoders) -> None:
    (photo,) = [render(scene, 64).image for scene in scenes(1)]
    scorer = Scorer(encoders, [embed_references(encoders, "dog", [photo], white([photo]))])
    (row,), _ = scorer.score(SuitePrompt("a red {}", keeps_looks=False), [whole(photo)])
    assert not [name for name in row if name.startswith(("identity", "dino", "clip_i"))]
    assert {"clip_t", "seen", "replay"} <= set(row)


# --- regions --------------------------------------------------------------------------------------


def test_what_is_outside_a_mask_does_not_count(encoders: Encoders) -> None:
    """The same subject on two backgrounds is one inside its mask, and two outside."""
    drawn = render(scenes(1)[0], 64)
    mask = drawn.masks[0].point(SHARP)
    elsewhere = Image.composite(drawn.image, Image.new("RGB", (64, 64), "yellow"), mask)
    cut = [grey_outside(image, mask) for image in (drawn.image, elsewhere)]
    assert ImageChops.difference(*cut).getbbox() is None
    vectors = encoders.clip.embed([drawn.image, elsewhere])
    assert float(vectors[0] @ vectors[1]) < 0.99
    outside = grey_outside(drawn.image, ImageChops.invert(mask))
    vectors = encoders.clip.embed([cut[0], outside])
    assert float(vectors[0] @ vectors[1]) < 0.9


def test_a_region_is_what_is_above_the_level() -> None:
    attention = torch.tensor([[[0.1, 0.2], [0.6, 1.1]], [[5.0, 5.0], [5.0, 6.0]]])
    assert region(attention).tolist() == [
        [[False, False], [True, True]],
        [[False] * 2, [False, True]],
    ]
    assert share_inside(attention[0], region(attention)[0]) == pytest.approx(0.85)


def test_leak_is_the_share_on_the_other_subject(encoders: Encoders) -> None:
    left, right = torch.zeros(4, 4), torch.zeros(4, 4)
    left[:, 0], right[:, 3] = 1, 1
    straying = 0.75 * left + 0.25 * right
    photo = Image.new("RGB", (64, 64), "white")
    subjects = [
        embed_references(encoders, word, [photo], white([photo])) for word in ("dog", "cat")
    ]
    maps = torch.stack([torch.stack([left, straying]), torch.stack([right, right])])
    prompt = SuitePrompt("a photo of a {} and a {other}")
    (row,), _ = Scorer(encoders, subjects).score(prompt, [ObservedPicture(photo, maps)])
    assert (row["leak"], row["leak_other"]) == (0.25, 0.0)
    pair = [row["identity_subject"], row["identity_subject_other"]]
    assert row["identity_subjects"] == pytest.approx(sum(pair) / 2, abs=1e-4)
    merged = torch.stack([torch.stack([left, left])] * 2)
    (row,), _ = Scorer(encoders, subjects).score(prompt, [ObservedPicture(photo, merged)])
    assert (row["leak"], row["leak_other"]) == (1.0, 1.0), "both look at one place"
    assert "identity" not in row, "of two subjects, only their own regions tell"


def test_attention_finds_the_subject_of_photos() -> None:
    """The masks of renders are known: most of what either covers is covered by both."""
    base = load_base()
    assert base.backbone.localising_layers == r"up_blocks\.1\..*\.attn2"
    overlaps: list[float] = []
    for scene in scenes(12, first=800):
        drawn: Rendered = render(scene, 64)
        category = scene.subjects[0].identity.category
        (found,) = regions_of_photos(base, [drawn.image], category)
        ours = found.resize((64, 64)).point(SHARP)
        true = drawn.masks[0].point(SHARP)
        both = ImageChops.multiply(ours, true).histogram()[255]
        either = ImageChops.lighter(ours, true).histogram()[255]
        overlaps.append(both / either)
    assert sum(overlaps) / len(overlaps) > 0.65  # without self-attention it would be 0.6


def test_columns_of_categories_of_several_tokens() -> None:
    backbone = load_base().backbone
    (looks,) = subject_columns(backbone, "a photo of a red house", ["red house"])
    assert looks.own == looks.all == (5, 6)
    with pytest.raises(InvalidInput, match="does not have 'cat' as a word"):
        subject_columns(backbone, "a photo of a dog", ["cat"])


def test_masks_are_white_inside() -> None:
    assert as_mask(torch.tensor([[True, False]])).tobytes() == b"\xff\x00"


# --- sums -----------------------------------------------------------------------------------------


def test_diversity_of_equal_pictures_is_none_at_all() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(3, 8), dim=-1)
    assert diversity(vectors[:1].expand(4, -1)) == pytest.approx(0, abs=1e-6)
    assert diversity(vectors[:1]) is None
    assert diversity(torch.eye(3)) == 1


def test_every_prompt_counts_once_and_the_interval_holds_the_mean() -> None:
    prompts = [
        PromptScores("p", "t", {"seen": value, "identity": value / 2}, []) for value in (0.2, 1.0)
    ] + [PromptScores("p", "t", {"seen": 0.6}, [])]
    found = summary(prompts, "seen", "identity")
    assert found["seen"].mean == 0.6
    assert found["identity"].mean == pytest.approx(0.3)
    assert found["both"].mean == pytest.approx(0.4)
    for score in found.values():
        assert score.low <= score.mean <= score.high
    assert found["seen"].low < 0.5
    assert found["seen"].high > 0.8
    assert summary(prompts, "seen", "identity") == found


def test_means_are_over_pictures_that_have_the_score() -> None:
    pictures = [PictureScores(0, "a", {"x": 1.0}), PictureScores(1, "b", {"x": 0.0, "y": 0.5})]
    assert mean_scores(pictures) == {"x": 0.5, "y": 0.5}


def test_the_harmonic_mean_is_nothing_where_a_part_is_nothing() -> None:
    assert harmonic_mean(0.5, 0.5) == 0.5
    assert harmonic_mean(1.0, 0.0) == harmonic_mean(-0.2, 0.9) == 0

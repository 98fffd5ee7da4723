"""The drawn world: the same everywhere, with masks that fit and words that are true."""

import numpy as np
import pytest
from conceptry.models.miniature.tokenizer import MAX_TOKENS, make_tokenizer
from conceptry.models.miniature.world.figures import draw_subject
from conceptry.models.miniature.world.identities import (
    CATEGORIES,
    COLOURS,
    PATTERNS,
    SPLITS,
    identity_seed,
    make_identity,
    split_of,
)
from conceptry.models.miniature.world.places import ACCESSORIES, PLACES
from conceptry.models.miniature.world.scenes import (
    RELATIONS,
    STYLES,
    Rendered,
    describe,
    render,
    sample_scene,
)


def pixels(rendered: Rendered) -> np.ndarray:
    return np.asarray(rendered.image, dtype=np.int16)


def test_the_world_is_as_large_as_promised() -> None:
    assert len(CATEGORIES) >= 12
    assert len(PLACES) >= 10
    assert len(ACCESSORIES) >= 6
    assert len(COLOURS) == 11
    assert len(PATTERNS) >= 3 + 1
    assert len(STYLES) == 2
    assert {"next to", "to the left of", "on top of"} <= set(RELATIONS)


@pytest.mark.parametrize("seed", range(5))
def test_a_seed_is_one_picture(seed: int) -> None:
    scene = sample_scene(seed)
    assert scene == sample_scene(seed)
    assert (pixels(render(scene, 64)) == pixels(render(scene, 64))).all()
    assert describe(scene) == describe(scene)


def test_other_seeds_are_other_pictures() -> None:
    pictures = {render(sample_scene(seed), 64).image.tobytes() for seed in range(50)}
    assert len(pictures) == 50


@pytest.mark.parametrize("size", [32, 64, 128])
def test_a_scene_can_be_drawn_at_any_size(size: int) -> None:
    rendered = render(sample_scene(3), size)
    assert rendered.image.size == (size, size)
    assert {mask.size for mask in rendered.masks} == {(size, size)}


@pytest.mark.parametrize("seed", range(40))
def test_masks_are_apart_and_boxes_hold_them(seed: int) -> None:
    scene = sample_scene(seed)
    rendered = render(scene, 64)
    masks = np.stack([np.asarray(mask) for mask in rendered.masks]) / 255
    assert len(masks) == len(scene.subjects)
    assert (masks.sum(axis=0) <= 1.05).all(), "no pixel belongs to two subjects"
    for mask, (left, top, right, bottom) in zip(masks, rendered.boxes(), strict=True):
        assert mask.sum() > 30, "nobody is hidden"
        rows, columns = np.nonzero(mask > 0.5)
        assert left <= columns.min() / 64 <= columns.max() / 64 < right
        assert top <= rows.min() / 64 <= rows.max() / 64 < bottom


def test_a_mask_is_where_the_subject_is() -> None:
    scene = sample_scene(11, num_subjects=1, place="on a white background", style="photo")
    rendered = render(scene, 64)
    inside = np.asarray(rendered.masks[0]) > 200
    not_white = (pixels(rendered).min(axis=2) < 200) & (np.asarray(rendered.masks[0]) < 20)
    assert not_white.sum() < 0.1 * inside.sum() or scene.subjects[0].accessory is not None


@pytest.mark.parametrize("category", CATEGORIES)
def test_no_two_identities_look_the_same(category: str) -> None:
    figures = [np.asarray(draw_subject(make_identity(seed, category), 48)) for seed in range(12)]
    for i, first in enumerate(figures):
        for second in figures[:i]:
            different = np.abs(first.astype(int) - second).max(axis=2) > 24
            assert different.sum() > 60


def test_identities_of_different_splits_never_meet() -> None:
    import random

    rng = random.Random(0)
    for split in SPLITS:
        assert {split_of(identity_seed(rng, split)) for _ in range(50)} == {split}
        scene_splits = {
            split_of(subject.identity.seed)
            for seed in range(20)
            for subject in sample_scene(seed, split).subjects
        }
        assert scene_splits == {split}


def test_an_identity_can_be_put_into_any_scene() -> None:
    rex = make_identity(7, "dog")
    scenes = [sample_scene(seed, "held-out", identity=rex) for seed in range(30)]
    assert all(scene.subjects[0].identity == rex for scene in scenes)
    assert len({scene.place for scene in scenes}) > 5
    for scene in scenes:
        categories = [subject.identity.category for subject in scene.subjects]
        assert len(set(categories)) == len(categories)


def test_a_sentence_says_nothing_that_is_not_there() -> None:
    for seed in range(300):
        scene = sample_scene(seed)
        sentence = describe(scene)
        words = set(sentence.replace(",", "").split())
        shown = {subject.identity.category for subject in scene.subjects}
        assert words & set(CATEGORIES) == shown, sentence
        colours = {
            colour
            for subject in scene.subjects
            for colour in (subject.identity.colour, subject.identity.second)
        }
        places = {place for place in PLACES if place in sentence}
        assert words & set(COLOURS) <= colours | ({"white"} if places else set()), sentence
        assert places <= {scene.place}, sentence
        worn = {accessory for accessory in ACCESSORIES if accessory in sentence}
        assert worn <= {subject.accessory for subject in scene.subjects}, sentence


def test_some_sentences_are_bare() -> None:
    sentences = {describe(sample_scene(seed, num_subjects=1)) for seed in range(400)}
    assert sentences & {f"a photo of a {category}" for category in CATEGORIES}


def test_words_of_the_world_are_whole_tokens() -> None:
    tokenizer = make_tokenizer()
    longest = 0
    for seed in range(500):
        sentence = describe(sample_scene(seed))
        longest = max(longest, len(tokenizer(sentence).input_ids))
        for word in sentence.replace(",", "").split():
            assert len(tokenizer(word).input_ids) == 3, word
    assert longest < MAX_TOKENS // 2


@pytest.mark.parametrize("text", ["", "zyzzyva", "日本の犬", "café 🐶 <rex>!", "a" * 500, "\0"])
def test_any_text_can_be_tokenized(text: str) -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer(text, padding="max_length", truncation=True).input_ids
    assert len(ids) == MAX_TOKENS
    assert max(ids) < len(tokenizer)


def test_the_tokenizer_survives_saving(tmp_path: object) -> None:
    from transformers import CLIPTokenizer

    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(str(tmp_path))
    loaded = CLIPTokenizer.from_pretrained(str(tmp_path))
    text = "a photo of a red teapot in the snow, zyzzyva"
    assert loaded(text).input_ids == tokenizer(text).input_ids
    assert loaded.model_max_length == MAX_TOKENS

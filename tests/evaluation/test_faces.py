"""The head that knows faces: from spoiled ones, and from blurred ones."""

import random

import pytest
from conceptry.evaluation import faces_recipe
from conceptry.evaluation.faces import FACED, load_faces
from conceptry.models.miniature.world.identities import split_of
from conceptry.models.miniature.world.scenes import render
from PIL import Image, ImageChops, ImageFilter

SIZE = 64


def whole_faces(count: int) -> list[Image.Image]:
    made = (faces_recipe.example(seed, "held-out", SIZE) for seed in range(10**6))
    found: list[Image.Image] = []
    while len(found) < count:
        _, picture, is_whole = next(made)
        if is_whole:
            found.append(picture)
    return found


@pytest.mark.long
def test_a_face_is_found_and_a_spoiled_one_is_not() -> None:
    accuracy = faces_recipe.measure(load_faces(), 200)
    assert min(accuracy.values()) > 0.8


def test_a_blurred_picture_has_no_face() -> None:
    blurred = [each.filter(ImageFilter.GaussianBlur(2.5)) for each in whole_faces(40)]
    seen = load_faces().has_face(blurred)
    assert sum(seen) < 0.25 * len(seen)


@pytest.mark.parametrize("way", faces_recipe.SPOILS, ids=lambda way: way.__name__.strip("_"))
def test_spoiling_changes_a_face_and_nothing_beside_it(
    way: faces_recipe.Spoil, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faces_recipe, "SPOILS", (way,))
    scene, _, _ = faces_recipe.example(3, "held-out", SIZE)
    picture = render(scene, 2 * SIZE).image
    box = faces_recipe.face_of(scene.subjects[0], picture.width)
    spoiled = picture.copy()
    faces_recipe.spoil(spoiled, box, random.Random(0))
    changed = ImageChops.difference(picture, spoiled).getbbox()
    assert changed is not None
    assert all(a >= b for a, b in zip(changed[:2], box[:2], strict=True))
    assert all(a <= b for a, b in zip(changed[2:], box[2:], strict=True))


def test_examples_are_of_one_animal_and_the_same_every_time() -> None:
    batch, again = (
        faces_recipe.faces_batch(3, split="judge", offset=8, batch=16, size=SIZE) for _ in range(2)
    )
    assert batch.images.equal(again.images)
    assert set(batch.captions) == {faces_recipe.FACE, faces_recipe.SPOILED}
    for scene in batch.scenes:
        (subject,) = scene.subjects
        assert subject.identity.category in FACED
        assert split_of(subject.identity.seed) == "judge"

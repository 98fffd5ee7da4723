"""Layout pictures: what they say of a scene, and that a person can draw one."""

from itertools import pairwise

import numpy as np
import pytest
from conceptry.models.miniature.world.identities import CATEGORIES, make_identity
from conceptry.models.miniature.world.layouts import (
    LAYOUT_COLOURS,
    NOTHING,
    as_picture,
    categories_of,
    layout_picture,
    random_layout,
    walk,
)
from conceptry.models.miniature.world.scenes import render, sample_scene
from program import ROOT


def test_the_layout_of_a_scene_is_its_subjects_in_their_colours() -> None:
    scene = sample_scene(3, num_subjects=2)
    layout = np.asarray(layout_picture(scene, 64))
    rendered = render(scene, 64)
    is_nothing = np.ones((64, 64), dtype=bool)
    for name, mask in zip(categories_of(scene), rendered.masks, strict=True):
        inside = np.asarray(mask) >= 128
        assert (layout[inside] == LAYOUT_COLOURS[name]).all()
        is_nothing &= ~inside
    assert (layout[is_nothing] == NOTHING).all()
    assert 0 < is_nothing.sum() < 64 * 64
    boxes = list(zip(categories_of(scene), rendered.boxes(), strict=True))
    assert layout_picture(scene, 64, boxes=True).tobytes() == layout_picture(boxes, 64).tobytes()


def test_a_layout_can_be_given_as_boxes() -> None:
    boxes = [("cat", (0.0, 0.0, 0.5, 0.5)), ("dog", (0.25, 0.25, 2.0, 0.75)), ("mug", (0, 1, 0, 1))]
    layout = layout_picture(boxes, 16)
    assert layout.size == (16, 16)
    found = {place: layout.getpixel(place) for place in ((0, 0), (7, 3), (4, 4), (15, 11), (8, 12))}
    cat, dog = LAYOUT_COLOURS["cat"], LAYOUT_COLOURS["dog"]
    assert list(found.values()) == [cat, cat, dog, dog, NOTHING]
    with pytest.raises(ValueError, match="unicorn"):
        layout_picture([("unicorn", (0, 0, 1, 1))], 16)


def test_random_layouts_follow_from_the_scene_and_are_near_it() -> None:
    kinds: set[bool] = set()
    for seed in range(30):
        scene = sample_scene(seed, num_subjects=1)
        rendered = render(scene, 64)
        layout = random_layout(scene, rendered)
        assert (layout == random_layout(scene, rendered)).all()
        index = 1 + CATEGORIES.index(categories_of(scene)[0])
        assert set(np.unique(layout)) <= {0, index}
        inside = np.asarray(rendered.masks[0]) >= 128
        if layout.any():
            shared = (layout > 0) & inside
            assert shared.sum() > 0.6 * inside.sum()
        kinds.add(bool(layout.any()))
        assert as_picture(layout).mode == "RGB"
    assert kinds == {True, False}  # some are left out


def test_who_walks_goes_from_left_to_right_and_bobs() -> None:
    layouts = [np.asarray(each) for each in walk(make_identity(1, "dog"), 64, 6)]
    inside = [(each == LAYOUT_COLOURS["dog"]).all(-1) for each in layouts]
    rows, columns = zip(*(np.nonzero(each) for each in inside), strict=True)
    middles = [float(each.mean()) for each in columns]
    assert all(after > before for before, after in pairwise(middles))
    assert middles[0] < 24
    assert middles[-1] > 40
    feet = [int(each.max()) for each in rows]
    assert all(feet[i] > feet[i + 1] for i in (0, 2, 4))
    assert len(set(feet[::2])) == 1
    assert min(each.min() for each in columns) > 0
    assert max(each.max() for each in columns) < 63
    boxes = walk(make_identity(1, "dog"), 64, 6, boxes=True)
    assert all(
        (np.asarray(each) != NOTHING).sum() >= (one != NOTHING).sum()
        for each, one in zip(boxes, layouts, strict=True)
    )
    assert len(walk(make_identity(1, "dog"), 16, 1)) == 1


def test_each_kind_has_a_colour_of_its_own_which_the_page_says() -> None:
    assert set(LAYOUT_COLOURS) == set(CATEGORIES)
    assert len({NOTHING, *LAYOUT_COLOURS.values()}) == 1 + len(CATEGORIES)
    page = (ROOT / "docs/drawing.md").read_text()
    for name, colour in LAYOUT_COLOURS.items():
        assert f"| {', '.join(map(str, colour))} | {name} |" in page

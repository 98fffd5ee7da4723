"""The pictures of a script: drawn once, in order, from files where they are there."""

import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from conceptry.generation import PromptDefaults, Request, SamplingSettings, Story, read_prompts
from conceptry.generation.resuming import find_shots
from conceptry.models.loading import LoadedBase
from conceptry.registry import Registry
from PIL import Image

SETTINGS = SamplingSettings(steps=1)
DEFAULTS = PromptDefaults(n=1, seed=0, settings=SETTINGS)
DAY = """
title: A day
scenes:
- {scene: one, prompt: a cat}
- {scene: two, prompt: a dog, seeds: [0, 3]}
- {scene: one, prompt: a cat}
"""


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry.open(tmp_path / "concepts.db", create=True) as opened:
        yield opened


def story_of(registry: Registry, base: LoadedBase, text: str = DAY) -> Story:
    folder = registry.location.database.parent
    script = folder / "day.yaml"
    script.write_text(text)
    return Story(registry, base, script, read_prompts(script, DEFAULTS), folder / "out")


def test_only_what_is_not_there_is_drawn_in_order(registry: Registry, base: LoadedBase) -> None:
    story = story_of(registry, base)
    assert story.num_left == 3
    found = list(story.draw())
    names = ["one-0.png", "two-0.png", "two-3.png", "one-0.png"]
    assert [(each.path.name, each.is_new) for each in found] == [
        *((name, True) for name in names[:3]),
        (names[3], False),
    ]
    page = story.page.read_text()
    assert "<h1>A day</h1>" in page
    assert page.count("<img") == 4
    found[1].path.unlink()
    again = story_of(registry, base)
    assert (again.num_left, again.page) == (1, story.page)
    drawn = list(again.draw())
    assert [each.is_new for each in drawn] == [False, True, False, False]
    assert [each.path for each in drawn] == [each.path for each in found]


def test_the_pixels_of_earlier_pictures_are_let_go(registry: Registry, base: LoadedBase) -> None:
    """Also those of a picture that comes again."""
    scenes = [f"a {name}" for name in ("cat", "dog", "mug", "car", "cat", "dog")]
    images: list[weakref.ref[Image.Image]] = []
    num_held: list[int] = []
    for picture in story_of(registry, base, f"scenes: {scenes}").draw(batch=1):
        images.append(weakref.ref(picture.image))
        num_held.append(sum(each() is not None for each in images))
    assert len(num_held) == 6
    assert max(num_held) <= 2  # the last one that was drawn, and that of now


def test_shots_say_what_is_there_and_what_is_the_same(registry: Registry, base: LoadedBase) -> None:
    folder = registry.location.database.parent / "out"
    (cat, *_) = story_of(registry, base, "scenes: [{scene: one, prompt: a cat}]").draw()
    scene = Request(prompt="a cat", seeds=[0, 1], settings=SETTINGS, scene="another name")
    plain = Request(prompt="a cat", seeds=[0, 0], settings=SETTINGS)
    shots = find_shots(registry, base.base, [scene, scene, plain], folder, loaded=base)
    assert [each.kept.path if each.kept else None for each in shots] == [
        *(cat.path, None, cat.path, None),
        *(None, None),  # without a scene it is drawn each time
    ]
    assert len({each.key for each in shots}) == 4
    assert find_shots(None, base.base, [scene], folder)[0].kept is None

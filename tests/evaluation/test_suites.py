"""Prompt suites: those that ship, and files of one's own."""

from pathlib import Path

import pytest
from conceptry.evaluation.suites import SuitePrompt, find_suite, shipped_suites, suite_for
from conceptry.generation.prompt_syntax import mentions
from conceptry.models.miniature.world.identities import CATEGORIES, COLOURS
from conceptry.models.miniature.world.places import ACCESSORIES, PLACES
from conceptry.models.miniature.world.scenes import RELATIONS, STYLES
from conceptry.registry.errors import InvalidInput, NotFound

LENGTHS = {"miniature": 16, "miniature-pairs": 8, "miniature-triples": 8}
NUM_SUBJECTS = {"multi-subject": 2, "miniature-pairs": 2, "miniature-triples": 3}


@pytest.mark.parametrize("name", shipped_suites())
def test_shipped_suites_are_whole(name: str) -> None:
    suite = find_suite(name)
    assert len(suite.prompts) == LENGTHS.get(name, 25)
    assert len({prompt.text for prompt in suite.prompts}) == len(suite.prompts)
    assert suite.num_subjects == NUM_SUBJECTS.get(name, 1)
    assert all(prompt.tests for prompt in suite.prompts)
    for prompt in suite.prompts:
        text = prompt.filled("<rex@1>", "<mia@2>", "<leo>", category="dog")
        named = ["rex", "mia", "leo"][: suite.num_subjects]
        assert [each.name for each in mentions(text)] == named
        assert "{" not in text


@pytest.mark.parametrize("name", LENGTHS)
def test_the_judge_knows_what_the_drawn_suites_ask_for(name: str) -> None:
    known = {"place": PLACES, "accessory": ACCESSORIES, "colour": COLOURS, "style": STYLES}
    known["relation"] = RELATIONS
    for prompt in find_suite(name).prompts:
        for what, value in prompt.sees.items():
            assert value in known[what]
            assert value in prompt.text
        assert set(prompt.second) <= set(CATEGORIES)


def test_looks_are_other_where_the_prompt_says_so() -> None:
    for suite in shipped_suites().values():
        for prompt in suite.prompts:
            if prompt.tests in ("colour", "style", "material"):
                assert not prompt.keeps_looks, prompt.text


@pytest.mark.parametrize(
    ("text", "phrase", "filled"),
    [
        ("a photo of a {} asleep", "dog", "a photo of a dog asleep"),
        ("a photo of a {} asleep", "owl", "a photo of an owl asleep"),
        ("A {} and its {}", "owl", "An owl and its owl"),
        ("a photo of a {} asleep", "<owl@1>", "a photo of a <owl@1> asleep"),
        ("a red {}", "owl", "a red owl"),
    ],
)
def test_slots_are_filled(text: str, phrase: str, filled: str) -> None:
    assert SuitePrompt(text).filled(phrase, category="dog") == filled


def test_a_subject_does_not_meet_its_own_kind() -> None:
    prompt = SuitePrompt("a {} next to a {second}", second=("mug", "house"))
    assert prompt.filled("<x>", category="dog") == "a <x> next to a mug"
    assert prompt.filled("<x>", category="mug") == "a <x> next to a house"


def test_a_suite_is_chosen_by_category() -> None:
    assert suite_for("dog").name == "living"
    assert suite_for("teapot").name == "objects"


def test_own_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text('prompts:\n  - "a {} in Rome"\n  - {text: "a blue {}", looks: other}\n')
    first, second = find_suite(str(path)).prompts
    assert (first.text, first.keeps_looks, second.keeps_looks) == ("a {} in Rome", True, False)
    lines = tmp_path / "mine.txt"
    lines.write_text("# places\na {} in Rome\n\na {} in Oslo\n")
    assert [prompt.text for prompt in find_suite(str(lines)).prompts] == [
        "a {} in Rome",
        "a {} in Oslo",
    ]
    assert find_suite(str(path)).sha256 != find_suite(str(lines)).sha256


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no prompts"),
        ("prompts: []", "holds no prompts"),
        ("prompts: [a dog]", "prompt 1 has no slot"),
        ("prompts: ['a {} in Rome', 'a {name}, {}']", "prompt 2 has an unknown slot"),
        ("prompts: [{tests: place}]", "prompt 1: there is no text"),
        ("prompts: [{text: 'a {}', weight: 3}]", 'there is no key "weight"'),
        (
            "prompts: [{text: 'a {}', looks: odd}]",
            "prompt 1: looks is 'odd': expected own or other",
        ),
        ("prompts: [{text: 'a {}', sees: {weather: rain}}]", 'there is no key "sees.weather"'),
        ("prompts: [{text: 'a {}', sees: {place: the beach}}]", "knows no place 'the beach'"),
        (
            "prompts: [{text: 'a {} by a {second}', second: mug}]",
            "second is 'mug': expected a list of texts",
        ),
        ("{fits: 3, prompts: ['a {}']}", "fits is 3: expected a list of texts"),
        ("prompts: [{text: 'a {} and a {second}'}]", "go together"),
        ("prompts: ['a {}', 'a {} and a {other}']", "stands in some prompts only"),
        ("prompts: [3]", "prompt 1: text is 3: expected a text"),
        ("prompts: [{text: 'a {}', sees: {relation: and}}]", "knows no relation 'and'"),
        ("prompts: [{text: 'a {}', sees: {relation: next to}}]", "the text has neither"),
        ("prompts: [{text: 'a {}', sees: rain}]", "sees is a group of keys, not 'rain'"),
        ("prompts: [{text: 'a {}', fits: [a, 3]}]", 'no key "fits"'),
        ("{fits: [a, 3], prompts: ['a {}']}", "fits.1. is 3: expected a text"),
        ("prompts: [", "cannot be read as a suite"),
        ("{seeds: 8, prompts: ['a {}']}", 'there is no key "seeds"'),
        ("prompts: ['a {}', 'one {}', 'a {}']", "prompt 3 is prompt 1 again"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=message):
        find_suite(str(path))


def test_an_unknown_suite_gets_a_hint() -> None:
    with pytest.raises(NotFound) as caught:
        find_suite("livin")
    assert caught.value.hint == "did you mean living?"
    with pytest.raises(NotFound) as caught:
        find_suite("zzz")
    assert "objects" in (caught.value.hint or "")

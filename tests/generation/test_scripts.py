"""Wildcards, and scripts: what they stand for, and what is refused."""

import random
import re
from pathlib import Path

import pytest
from conceptry.generation import PromptDefaults, Request, SamplingSettings, read_prompts
from conceptry.generation.wildcards import Expansion, Pattern, Wildcards, names_in
from conceptry.registry.errors import InvalidInput, NotFound

DEFAULTS = PromptDefaults(n=4, seed=9, settings=SamplingSettings())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Wildcards."""
    made = tmp_path / "words"
    made.mkdir()
    (made / "places.txt").write_text("beach\n# no place\n\n{snowy|sunny} street\n")
    (made / "loop.txt").write_text("a __loop__\n")
    (made / "up.txt").write_text("__places__ at noon\n3::moon\n")
    (made / "empty.txt").write_text("# nothing\n")
    (made / "b0.txt").write_text("xxxx xxxx\n")
    (made / "link.txt").symlink_to(made / "places.txt")
    for i in range(1, 12):
        (made / f"b{i}.txt").write_text(f"__b{i - 1}__ __b{i - 1}__ __b{i - 1}__\n")
    return made


def every(text: str, folder: Path | None = None) -> list[str]:
    found = Wildcards(folder).parse(text)
    texts = [each.text for each in found.every()]
    assert found.count == len(texts)
    return texts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat | a dog", ["a cat | a dog"]),
        ("a {red|blue} cat", ["a red cat", "a blue cat"]),
        ("{a|{b|c} d}{|!}", ["a", "a!", "b d", "b d!", "c d", "c d!"]),
        ("{2$$a|b|c}", ["a, b", "a, c", "b, c"]),
        ("{2$$ and $$a|b|{c|d}}", ["a and b", "a and c", "a and d", "b and c", "b and d"]),
        ("{0-1$$a|b}", ["", "a", "b"]),
        ("{2-$$a|b|c}", ["a, b", "a, c", "b, c", "a, b, c"]),
        ("__places__", ["beach", "snowy street", "sunny street"]),
        ("{2$$-$$__places__}", ["beach-snowy street", "beach-sunny street"]),
    ],
)
def test_every_text_of_wildcards(text: str, expected: list[str], folder: Path) -> None:
    assert every(text, folder) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a {b|c", 'a "}" is missing'),
        ("a b|c}", 'a "{" is missing'),
        ("{3$$a|b}", "chooses among 2"),
        ("{0::a|0::b}", "weight 0"),
        ("__../places__", "no name of a wildcard"),
        ("__/etc/passwd__", "no name of a wildcard"),
        ("__loop__", "loop stands for itself"),
        ("__link__", "is a link"),
        ("__empty__", "no lines to choose from"),
        ("__b11__", "more than 10,000 characters"),
        ("{" * 20 + "a" + "}" * 20, "nested deeper"),
        ("{2$$" + "a|" * 200 + "b}", "at most 100"),
    ],
)
def test_bad_wildcards_are_told(text: str, message: str, folder: Path) -> None:
    with pytest.raises(InvalidInput, match=message.replace("{", r"\{")):
        Wildcards(folder).parse(text)


def test_a_wildcard_without_a_file_is_told(folder: Path) -> None:
    with pytest.raises(NotFound, match=r"colours\.txt"):
        Wildcards(folder).parse("__colours__")
    with pytest.raises(NotFound, match="no wildcard colours"):
        Wildcards().parse("__colours__")


def test_one_text_is_chosen_by_weight(folder: Path) -> None:
    pattern = Wildcards(folder).parse("{0::a|b|2$$}")
    rng = random.Random(0)
    assert {pattern.one(rng).text for _ in range(50)} == {"b", "2$$"}
    assert Wildcards(folder).parse("__up__").has_weights
    assert Wildcards().parse("{2$$a|b|c}").one(random.Random(1)).text in ("a, b", "a, c", "b, c")


# --- scripts --------------------------------------------------------------------------------------


def read(folder: Path, text: str) -> list[Request]:
    path = folder.parent / "day.yaml"
    path.write_text(text)
    return read_prompts(path, DEFAULTS)


SCRIPT = """
title: A day
wildcards: words
concepts: {hero: "{rex|mia}", friend: "{rex|mia@2}"}
steps: 7
scenes:
- scene: morning
  prompt: <hero> and <friend:0.8> on the __places__
  layout: {hero: [0, .3, .5, 1], friend: [.5, .3, 1, 1]}
  reference: hero=2
  seeds: [3, 5]
- a photo of <hero>
- prompt: a {2$$ and $$red|blue} house
  n: 2
  steps: 9
"""


def test_scenes_with_roles_and_places(folder: Path) -> None:
    with pytest.raises(InvalidInput, match="both say which version or strength"):
        read(folder, SCRIPT)
    requests = read(folder, SCRIPT.replace("friend:0.8", "friend"))
    prompts = [each.prompt for each in requests]
    assert prompts[0] == "<rex> and <mia@2> on the beach"
    assert prompts[3] == "<mia> and <rex> on the beach"
    assert prompts[6:] == ["a photo of <rex>", "a photo of <mia>", "a red and blue house"]
    assert len(requests) == 9  # nobody takes both roles
    first, last = requests[0], requests[-1]
    assert first.settings.layout == {"rex": (0, 0.3, 0.5, 1), "mia": (0.5, 0.3, 1, 1)}
    assert (first.references[0].name, first.references[0].photo) == ("rex", "2")
    assert first.scene == "morning rex mia@2 beach"
    assert (list(first.seeds), list(last.seeds)) == ([3, 5], [0, 1])
    assert (first.settings.steps, last.settings.steps) == (7, 9)


def test_one_of_the_choices_for_each_seed(folder: Path) -> None:
    text = SCRIPT.replace("friend:0.8", "friend").replace("steps: 7", "choose: one")
    text = text.replace('"{rex|mia@2}"', "leo")
    requests = read(folder, text)
    assert [list(each.seeds) for each in requests] == [[3], [5], [0], [0], [1]]
    assert requests == read(folder, text)
    many = read(folder, text.replace("[3, 5]", str(list(range(30)))))
    assert len({each.prompt for each in many[:30]}) == 6


NEXT_TO = """
choose: CHOOSE
concepts: {hero: "{rex|mia}", friend: FRIEND}
seeds: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
scenes:
- prompt: <hero> next to <friend>
  layout: {hero: [0, .3, .5, 1], friend: [.5, .3, 1, 1]}
- <hero> alone
"""


@pytest.mark.parametrize(
    ("friend", "pairs"),
    [
        ("'{rex|mia}'", {"<rex> next to <mia>", "<mia> next to <rex>"}),
        ("'{rex|mia@2}'", {"<rex> next to <mia@2>", "<mia> next to <rex>"}),
        ("rex", {"<mia> next to <rex>"}),
    ],
)
@pytest.mark.parametrize("choose", ["one", "each"])
def test_nobody_takes_two_roles(folder: Path, choose: str, friend: str, pairs: set[str]) -> None:
    requests = read(folder, NEXT_TO.replace("CHOOSE", choose).replace("FRIEND", friend))
    both = [each for each in requests if "next to" in each.prompt]
    assert {each.prompt for each in both} == pairs
    layouts = [each.settings.layout for each in both]
    assert all(isinstance(each, dict) and {*each} == {"rex", "mia"} for each in layouts)
    if choose == "one":  # and a role is taken by the same one in all scenes of a seed
        heroes = [each.prompt.split()[0] for each in requests]
        assert heroes[:10] == heroes[10:]


@pytest.mark.parametrize("choose", ["one", "each"])
def test_roles_of_a_scene_alone_and_names_count_too(folder: Path, choose: str) -> None:
    text = NEXT_TO.replace("CHOOSE", choose).replace(", friend: FRIEND", "")
    own = text.replace("  layout:", "  concepts: {friend: '{rex|mia}'}\n  layout:")
    requests = read(folder, own)
    assert {each.prompt for each in requests if "next" in each.prompt} == {
        "<rex> next to <mia>",
        "<mia> next to <rex>",
    }
    fixed = read(folder, own.replace("'{rex|mia}'", "mia"))
    assert {each.prompt for each in fixed if "next" in each.prompt} == {"<rex> next to <mia>"}
    called = read(folder, text.replace("to <friend>", "to <mia>").replace("friend:", "mia:"))
    assert {each.prompt for each in called if "next" in each.prompt} == {"<rex> next to <mia>"}


@pytest.mark.parametrize("choose", ["one", "each"])
@pytest.mark.parametrize(
    ("concepts", "prompt"),
    [
        ("{hero: rex, friend: rex}", "<hero> next to <friend>"),
        ("{hero: rex, friend: rex@2}", "<hero> next to <friend>"),
        ("{hero: rex}", "<hero> next to <rex>"),
    ],
)
def test_a_scene_that_stands_for_nothing_is_told(
    folder: Path, choose: str, concepts: str, prompt: str
) -> None:
    text = f"choose: {choose}\nconcepts: {concepts}\nscenes: [a cat, {prompt}]"
    with pytest.raises(InvalidInput, match="no other concept is left for one of hero"):
        read(folder, text)


@pytest.mark.parametrize(
    ("script", "scene", "seeds"),
    [
        ("seed: 100", "n: 2", [100, 101]),
        ("n: 2", "seed: 100", [100, 101]),
        ("{seed: 5, n: 3}", "n: 2", [5, 6]),
        ("{seed: 5, n: 3}", "seed: 8", [8, 9, 10]),
        ("seed: 100", "seeds: [3, 1]", [3, 1]),
        ("n: 2", "steps: 3", [0, 1]),
        ("seeds: [100, 101]", "steps: 3", [100, 101]),
        ("seeds: [100, 101]", "n: 1", [100]),
        ("seeds: [100, 101]", "seed: 7", [7, 8]),
        ("seeds: [100, 101]", "{seed: 7, n: 3}", [7, 8, 9]),
        ("seeds: [100, 101]", "seeds: [2]", [2]),
    ],
)
def test_seeds_of_a_scene_and_of_its_script_go_together(
    folder: Path, script: str, scene: str, seeds: list[int]
) -> None:
    common, own = script.strip("{}").replace(", n", "\nn"), scene.strip("{}")
    (found,) = read(folder, f"{common}\nscenes: [{{prompt: a, {own}}}]")
    assert list(found.seeds) == seeds


def test_what_a_scene_leaves_empty_is_as_the_script_says(folder: Path) -> None:
    (found,) = read(folder, "steps: 7\nscenes: [{prompt: a, steps: null}]")
    assert found.settings.steps == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scenes: []", "scenes is an empty list"),
        ("scenes: [{scene: a}]", "scene 1: there is no prompt"),
        ("scenes: [{prompt: a, promt: b}]", 'scene 1: there is no setting "promt"'),
        ("scene: a\nscenes: [{prompt: a}]", 'no setting "scene"'),
        ("concepts: [rex]\nscenes: [{prompt: a}]", "no scene has the concept rex"),
        ("scenes: [{prompt: a, concepts: [rex]}]", "has the concept rex, which neither its prompt"),
        ("concepts: {hero: ../x}\nscenes: [{prompt: <hero>}]", "the concept hero is '../x'"),
        ("scenes: [{prompt: '{2::a|b}'}]", "wildcards with weights"),
        ("scenes: [{prompt: a, seeds: [1], n: 2}]", "seeds says them all"),
        ("scenes: [{prompt: a, seeds: [1, 1]}]", "listed twice"),
        ("seeds: [1]\nn: 2\nscenes: [{prompt: a, n: 1}]", "the script: seeds says them all"),
        ("seeds: [1, 2]\nscenes: [{prompt: a, n: 3}]", "n is 3, but 2 seeds are listed"),
        ("scenes: [{prompt: '" + "{a|b|c|d}" * 9 + "'}]", "more than 10,000 pictures"),
        ("scenes: [{prompt: a, n: 9999}, {prompt: b, n: 9999}]", "more than 10,000 pictures"),
        ("wildcards: ../words\nscenes: [{prompt: a}]", "has to lie in the script's folder"),
        ("wildcards: /etc\nscenes: [{prompt: a}]", "has to lie in the script's folder"),
        ("wildcards: away\nscenes: [{prompt: a}]", "is a link"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nscenes: [*b]", "the script: "),
        (
            "concepts: {hero: rex}\nscenes: [{prompt: <hero>, layout: {hero: [0, 0, 1, 1], "
            "rex: [0, 0, 1, 1]}}]",
            "scene 1: the layout has two boxes for one concept",
        ),
        ("scenes:\n- prompt: a\n  size: 64x64\n  layout: [3]", "scene 1"),
        ("scenes: [a, 5]", "scene 2 of scenes is 5"),
        ("scenes: [null]", "scene 1 of scenes is"),
        ("concepts: {Hero: rex}\nscenes: [a <hero>]", "'Hero' in concepts is no name"),
        ("concepts: {hero: 5}\nscenes: [a <hero>]", "hero in concepts is 5"),
        ("steps: 0\nscenes: [a, b]", "day.yaml, the script: steps is 0"),
        ("control: nope.png\nscenes: [a, b]", "day.yaml, the script: there is no control picture"),
        ("scenes: [a, a __places__]", "day.yaml, scene 2: there is no wildcard places"),
        ("concepts: {hero: rex@1}\nscenes: [a, <hero@1>]", "scene 2: <hero@1> and hero"),
        ("scenes: [{promt: a}]", 'scene 1: there is no setting "promt"'),
        ("control_scale: 5\nscenes: [a]", "control_scale is 5: expected 0 to 2"),
    ],
)
def test_bad_scripts_are_told_in_a_line(text: str, message: str, folder: Path) -> None:
    (folder.parent / "away").symlink_to(folder)
    with pytest.raises((InvalidInput, NotFound)) as told:
        read(folder, text)
    assert message in told.value.message, told.value.message
    assert "\n" not in told.value.message


@pytest.mark.parametrize("friend", ["{rex@1|rex@2}", "{0::leo|rex}", "{rex|rex|rex}"])
def test_one_who_is_found_in_several_ways_leaves_room_for_others(folder: Path, friend: str) -> None:
    """A role whose options are all of one name is drawn to the end, for each hero anew."""
    text = (
        f'concepts: {{hero: "{{rex|mia}}", friend: "{friend}"}}\nchoose: one\n'
        "seeds: [0, 1, 2, 3, 4, 5]\nscenes: ['<hero> and <friend>']\n"
    )
    for each in read(folder, text):
        assert each.prompt.startswith("<mia> and <rex")


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is drawn from wildcards; fails where that does not end."""
    found: list[str] = []
    really = Pattern.one

    def noted(pattern: Pattern, rng: random.Random) -> Expansion:
        assert len(found) < 20_000
        found.append((one := really(pattern, rng)).text)
        return one

    monkeypatch.setattr(Pattern, "one", noted)
    return found


def many_roles(num_names: int, scenes: list[str]) -> str:
    names = "|".join(f"c{i}" for i in range(num_names))
    roles = ", ".join(f'r{i}: "{{{names}}}"' for i in range(16))
    return f"choose: one\nconcepts: {{{roles}}}\nscenes: {scenes}\n".replace("'", '"')


TOGETHER = " ".join(f"<r{i}>" for i in range(16))
IN_PAIRS = [f"<r{i}> <r{j}>" for i in range(16) for j in range(i)]


def test_as_many_concepts_as_roles_are_found(folder: Path, draws: list[str]) -> None:
    (all_at_once,) = read(folder, many_roles(16, [TOGETHER]))
    assert len({*all_at_once.prompt.split()}) == 16
    assert len(read(folder, many_roles(16, IN_PAIRS))) == len(IN_PAIRS)
    narrow = re.sub(r'(r1[45]): "[^"]*"', r'\1: "{c0|c1}"', many_roles(16, [TOGETHER]))
    (found,) = read(folder, narrow)
    assert {*found.prompt.split()[14:]} == {"<c0>", "<c1>"}


@pytest.mark.parametrize(
    ("scenes", "message"),
    [
        ([TOGETHER], "no other concept is left for one of r0"),
        (IN_PAIRS, "1,000 tries found nobody for one of r0"),
    ],
    ids=["one scene", "pairs"],
)
def test_too_few_concepts_for_many_roles_are_told(
    folder: Path, draws: list[str], scenes: list[str], message: str
) -> None:
    """Without trying all ways to take them, of which there are 16 factorial."""
    with pytest.raises(InvalidInput, match=message):
        read(folder, many_roles(15, scenes))


def test_a_role_of_a_reference_alone(folder: Path) -> None:
    text = "concepts: {hero: '{rex|mia}'}\nreference: hero=2:3.5\nscenes: [<hero> in snow, a dog]"
    found = [(each.prompt, each.references[0].name) for each in read(folder, text)]
    assert found == [
        ("<rex> in snow", "rex"),
        ("<mia> in snow", "mia"),
        ("a dog", "rex"),
        ("a dog", "mia"),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<rex> <mia@2> <leo:0.5>", {"rex", "mia", "leo"}),
        ("<rexy> < rex> <Rex> rex>", set[str]()),
        ("<{rex|leo}>", {"rex", "leo"}),
        ("{<|}{r|m}{e{x|}|ia}{>|@2>}", {"rex", "mia"}),
        ("{<{m|<}|x}{ia|rex}{{:|-}1>|}", {"rex", "mia"}),
        ("{2$$$$<re|mi|x>|a>}", {"rex"}),
        ("{1$$$$<re|x>}", set[str]()),
        ("{2-3$$e$$<r|<l|x>|o>}", {"rex", "leo"}),
        ("{0-1$$<|a}mia>", {"mia"}),
        ("<__names__>", {"rex"}),
    ],
)
def test_names_in_brackets_are_found_without_making_a_text(
    folder: Path, text: str, expected: set[str]
) -> None:
    """Those of the texts, and also in more of them than could be made."""
    (folder / "names.txt").write_text("rex\nsomebody\n")
    names = ("rex", "mia", "leo")
    pattern = Wildcards(folder).parse(text)
    made = {name for each in pattern.every() for name in names if is_in(each.text, name)}
    assert names_in(pattern, names) == made == expected
    many = "{a|b|c|d}" * 20
    assert names_in(Wildcards(folder).parse(f"{many} {text} {many}"), names) == expected


def is_in(text: str, name: str) -> bool:
    return re.search(rf"<{name}[@:>]", text) is not None


def test_a_role_that_wildcards_build_is_found_in_any_number_of_texts(folder: Path) -> None:
    (folder / "many.txt").write_text("\n".join(f"place {i}" for i in range(5000)))
    heads = "concepts: {hero: rex, friend: mia}\nchoose: one\nseeds: [0, 1, 2, 3, 4, 5]\n"
    prompt = "a <{hero|friend}> at __many__ and __many__"
    found = read(folder, f"{heads}wildcards: words\nscenes: ['{prompt}']\n")
    assert {each.prompt.split()[1] for each in found} == {"<rex>", "<mia>"}


def test_wildcards_may_bring_a_role(folder: Path) -> None:
    (folder / "who.txt").write_text("<hero>\n")
    heads = 'concepts: {hero: "{rex|mia}"}\nwildcards: words\n'
    found = read(folder, f"{heads}scenes: ['__who__ sits', '<{{hero|leo}}> runs']\n")
    assert [each.prompt for each in found] == [
        "<rex> sits",
        "<mia> sits",
        "<rex> runs",
        "<leo> runs",
        "<mia> runs",
        "<leo> runs",
    ]

"""Files of prompts: what each format says, and what is told where one is wrong."""

from dataclasses import replace
from pathlib import Path

import pytest
from conceptry.generation import PromptDefaults, Request, SamplingSettings, read_prompts
from conceptry.generation.control_request import ControlRequest
from conceptry.generation.init_request import InitRequest
from conceptry.generation.reference_syntax import ReferenceRequest
from conceptry.registry.errors import InvalidInput, NotFound
from drawing import draw_file

DEFAULTS = PromptDefaults(n=2, seed=7, settings=SamplingSettings(steps=10))
PLAIN = Request(prompt="a <rex> asleep", seeds=range(7, 9), settings=SamplingSettings(steps=10))
OWN = Request(
    prompt="a red cat, sitting",
    seeds=range(3, 4),
    settings=SamplingSettings(
        steps=5,
        guidance=2.5,
        negative="blurred",
        scheduler="ddim",
        size=(64, 32),
        perturbed_attention=1.5,
    ),
    references=(ReferenceRequest("rex"), ReferenceRequest("mia", "2", 1.5)),
)
FILES = {
    "a.txt": "# two of them\na <rex> asleep\n\n  a <rex> asleep  \n",
    "a.yaml": """
- a <rex> asleep
- prompt: a red cat, sitting
  n: 1
  seed: 3
  steps: 5
  guidance: 2.5
  negative: blurred
  scheduler: ddim
  size: 64x32
  perturbed_attention: 1.5
  reference: [rex, mia=2:1.5]
""",
    "a.csv": """prompt,n,seed,steps,guidance,negative,scheduler,size,reference,perturbed_attention
a <rex> asleep,,,,,,,,,
"a red cat, sitting",1,3,5,2.5,blurred,ddim,64x32,rex mia=2:1.5,1.5
""",
    "a.jsonl": """"a <rex> asleep"
{"prompt": "a red cat, sitting", "n": 1, "seed": 3, "steps": 5, "guidance": 2.5,\
 "negative": "blurred", "scheduler": "ddim", "size": "64x32", "reference": ["rex", "mia=2:1.5"],\
 "perturbed_attention": 1.5}
""",
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_says_the_same(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(FILES[name], encoding="utf-8-sig")  # as spreadsheets save it
    expected = [PLAIN, PLAIN] if name == "a.txt" else [PLAIN, OWN]
    assert read_prompts(path, DEFAULTS) == expected


def test_a_scene_has_the_seeds_of_scenes_in_every_format(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,scene,n\na cat,noon,\na dog,night,2\na bird,,\n")
    noon, night, plain = read_prompts(tmp_path / "a.csv", DEFAULTS)
    assert (noon.seeds, night.seeds) == (range(1), range(2))
    assert plain.seeds == range(DEFAULTS.seed, DEFAULTS.seed + DEFAULTS.n)


@pytest.mark.parametrize(
    ("text", "seed"), [("010", 10), ("-0", 0), ("1_000", 1000), ("0x10", 16), ("+7", 7)]
)
def test_numbers_of_yaml_are_what_people_mean(tmp_path: Path, text: str, seed: int) -> None:
    (tmp_path / "a.yaml").write_text(f"- {{prompt: a cat, seed: {text}, n: 1}}\n")
    [request] = read_prompts(tmp_path / "a.yaml", DEFAULTS)
    assert list(request.seeds) == [seed]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "- {prompt: a cat, seed: 1:30}", "entry 1: seed is '1:30': expected a whole"),
        ("a.txt", "# nothing\n", "has no prompts"),
        ("a.doc", "a cat", "not have the suffix of a prompt file"),
        ("a.yaml", "prompt: a cat", "a list of prompts"),
        ("a.yaml", "- [", "not YAML"),
        ("a.yaml", "- 3", "entry 1: prompt is 3: expected a text"),
        ("a.jsonl", '"a cat"\n{', "line 2 is not JSON"),
        ("a.jsonl", '{"prompt": "a cat", "step": 3}', 'line 1: there is no setting "step"'),
        ("a.jsonl", '{"prompt": "a cat", "n": [1]}', "line 1: "),
        ("a.jsonl", '{"prompt": "a cat", "n": 0}', "line 1: n is 0: expected 1 to 10,000"),
        ("a.jsonl", '{"prompt": "a", "n": 1, "n": 2}', 'line 1 is not JSON .* the key "n" twice'),
        ("a.jsonl", '{"prompt": "a", "layout": {"b": [0], "b": [1]}}', 'the key "b" twice'),
        ("a.csv", "prompt,steps\na cat,0\n", "line 2: steps is 0: expected 1 to 1,000"),
        ("a.csv", "prompt;guidance\na cat;2,5\n", "line 2: guidance is '2,5': expected a number"),
        (
            "a.yaml",
            "- {prompt: a cat, size: 7x8}",
            "entry 1: size is 7x8: width and height have to be multiples of 8",
        ),
        ("a.yaml", "- {prompt: a cat, size: big}", "size is 'big': expected 512 or 768x512"),
        (
            "a.jsonl",
            '{"prompt": "a cat", "n": 2.7}',
            "line 1: n is 2.7: expected a whole number, 1 to 10,000",
        ),
        (
            "a.jsonl",
            '{"prompt": "a cat", "seed": true}',
            "line 1: seed is True: expected a whole number",
        ),
        (
            "a.yaml",
            "- {prompt: a cat, negative: no}",
            "entry 1: negative is False: expected a text",
        ),
        ("a.jsonl", '{"prompt": "a cat", "seed": -1}', "line 1: the seed -1"),
        ("a.jsonl", '{"prompt": "a cat", "scheduler": "magic"}', "no scheduler"),
        ("a.csv", "prompt,steps\na cat,many\n", "line 2: "),
        ("a.csv", "prompt\na cat, a dog\n", "line 2 has more cells"),
        ("a.csv", 'prompt\n"a cat\n', "not CSV"),
        ("a.csv", "prompt,n\n" + "a,5000\n" * 3, "stands for more than 10,000 pictures"),
        ("a.txt", "a\n" * 5001, "stands for more than 10,000 pictures"),
        ("a.jsonl", '{"prompt": "a", "n": 10000}\n"b"', "stands for more than 10,000 pictures"),
        ("a.csv", "steps\n3\n", "line 2: there is no prompt"),
        ("a.yaml", "- {prompt: a, control_scale: 0.5}", "entry 1: control_scale is for a control"),
        ("a.csv", "prompt,seeds,n\na,3,2\n", "^[^:]*line 2: seeds says them all"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InvalidInput, match=message) as raised:
        read_prompts(path, DEFAULTS)
    assert str(path) in raised.value.message


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="is no file"):
        read_prompts(tmp_path / "gone.txt", DEFAULTS)
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_prompts(tmp_path / "bytes.txt", DEFAULTS)


@pytest.fixture
def begun(tmp_path: Path) -> PromptDefaults:
    """A command line that says all that entries may do without."""
    for name in ("mine", "own"):
        (tmp_path / f"{name}.png").touch()
    mine = tmp_path / "mine.png"
    return replace(
        DEFAULTS,
        settings=SamplingSettings(steps=10, negative="blurry"),
        references=(ReferenceRequest("rex"),),
        control=ControlRequest(picture=mine, kind="pose"),
        init=InitRequest(picture=mine, mask=mine),
    )


EMPTY = {
    "a.yaml": "- {prompt: a, negative: '', reference: '', control: '', init: ''}",
    "a.jsonl": '{"prompt": "a", "negative": "", "reference": "", "control": "", "init": ""}',
    "a.csv": "prompt,negative,reference,control,init\na,,, ,\n",
}


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_text_asks_for_none_and_an_empty_cell_for_nothing(
    tmp_path: Path, name: str, begun: PromptDefaults
) -> None:
    (tmp_path / name).write_text(EMPTY[name])
    (found,) = read_prompts(tmp_path / name, begun)
    said = (found.settings.negative, found.references, found.control, found.init)
    if name == "a.csv":
        assert said == ("blurry", begun.references, begun.control, begun.init)
    else:
        assert said == ("", (), None, None)


def test_an_entry_changes_only_what_it_says_of_pictures(
    tmp_path: Path, begun: PromptDefaults
) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        "- {prompt: a, control_scale: 0.3}\n- {prompt: b, init: own.png}\n"
        "- {prompt: c, inpaint: ''}\n"
    )
    first, second, third = read_prompts(path, begun)
    assert begun.control
    assert begun.init
    assert first.control == replace(begun.control, scale=0.3)
    assert second.control == begun.control
    assert second.init == replace(begun.init, picture=tmp_path / "own.png")
    assert third.init == replace(begun.init, mask=None)


def test_defaults_say_how_an_entry_begins_with_its_own_picture(tmp_path: Path) -> None:
    for name in ("dog.png", "mask.png"):
        draw_file(tmp_path / name)
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"prompt": "a", "init": "dog.png"}\n{"prompt": "b"}\n'
        '{"prompt": "c", "init": "dog.png", "strength": 0.9}\n'
    )
    defaults = replace(DEFAULTS, strength=0.4, mask=tmp_path / "mask.png")
    one, two, three = read_prompts(path, defaults)
    assert (one.init and (one.init.strength, one.init.mask)) == (0.4, tmp_path / "mask.png")
    assert two.init is None
    assert three.init
    assert three.init.strength == 0.9


def test_control_pictures_of_references_go_to_an_entry_s_own_unless_it_wants_none(
    tmp_path: Path,
) -> None:
    usual, own = tmp_path / "usual.png", tmp_path / "own.png"
    for path in (usual, own):
        draw_file(path, 1)
    path = tmp_path / "a.yaml"
    path.write_text(
        "- {prompt: a}\n- {prompt: b, reference: mia}\n- {prompt: c, control: ''}\n"
        "- {prompt: d, reference_control: ''}\n- {prompt: e, reference_control: own.png}\n"
        "- {prompt: f, reference: ''}\n"
    )
    control = ControlRequest(picture=usual)
    references = (ReferenceRequest("rex", control=usual),)
    found = read_prompts(path, replace(DEFAULTS, control=control, references=references))
    assert [[(one.name, one.control) for one in each.references] for each in found] == [
        [("rex", usual)],
        [("mia", usual)],
        [("rex", None)],
        [("rex", None)],
        [("rex", own)],
        [],
    ]
    path.write_text("- {prompt: a, reference: rex, reference_control: ~gone.png}\n")
    with pytest.raises(NotFound, match=r"no control picture .*~gone\.png"):
        read_prompts(path, DEFAULTS)

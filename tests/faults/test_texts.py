"""Texts that people bring, and what is told of them: faults, rows 35, 38, 39, 50 and 53."""

import csv
import json
import os
import pickle
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conceptry.evaluation.record import Evaluation, Interval, PictureScores, PromptScores
from conceptry.evaluation.report import _csv
from conceptry.evaluation.suites import find_suite
from conceptry.generation import PromptDefaults, SamplingSettings, read_prompts
from conceptry.generation.other_tools import find_other_tool_syntax
from conceptry.generation.prompt_syntax import mentions
from conceptry.generation.provenance import read_provenance
from conceptry.methods.method import find_method, resolve_settings
from conceptry.methods.settings import TrainingSettings
from conceptry.models.bases import read_aliases
from conceptry.registry import Registry
from conceptry.registry.documents import parse_json, parse_yaml
from conceptry.registry.errors import InvalidImage, InvalidInput, InvalidWeights
from conceptry.training.checkpoints import FORMAT, copy_values, read_position, read_resume_point
from drawing import draw
from long import quick_for
from odd import BOMB
from PIL.PngImagePlugin import PngInfo
from program import invoke, program, run_python
from raw_safetensors import raw_safetensors
from safetensors.torch import save_file

DEFAULTS = PromptDefaults(n=1, seed=0, settings=SamplingSettings())
MERGES = "a: &a {k: 1, l: 2}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}]}}\n"
    for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)
ODD_YAML = {
    "bomb": BOMB,
    "bomb of merges": MERGES,
    "chain": "- &a0 [x]\n" + "".join(f"- &a{i + 1} [*a{i}]\n" for i in range(500)),
    "deep": "[" * 50_000,
    "deep mapping": "{a: " * 20_000,
    "of itself": "&a [*a]",
    "long number": "9" * 50_000,
    "long hexadecimal": "0x" + "f" * 50_000,
    "base 60": "1:" * 20_000 + "1",
    "list as a key": "{[1]: a}",
    "key twice": "{a: 1, a: 2}",
    "tag of Python": "!!python/object/apply:os.system [ls]",
    "binary": "!!binary abc",
    "no number": "!!int ''",
    "no truth": "!!bool x",
    "no digits": "0b_",
    "NUL": "a\0b",
}


# --- row 35 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ODD_YAML.values(), ids=ODD_YAML)
def test_odd_yaml_is_refused_in_a_short_line(text: str) -> None:
    """Faults, row 35."""
    with pytest.raises(InvalidInput) as caught:
        parse_yaml(text)
    assert len(caught.value.message) < 500


def test_too_many_values_of_yaml_are_refused_in_a_short_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Faults, row 35."""
    monkeypatch.setattr("conceptry.registry.documents.MAX_VALUES", 1_000)
    with pytest.raises(InvalidInput) as caught:
        parse_yaml("[" + "1," * 1_500 + "]")
    assert len(caught.value.message) < 500


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 2024-99-99", {"a": "2024-99-99"}),
        ("2024-01-01", "2024-01-01"),
        ("{1: a, yes: b, null: c}", {"1": "a", "yes": "b", "null": "c"}),
        ("a: &a {x: 1}\nb: {<<: *a, x: 2}", {"a": {"x": 1}, "b": {"x": 2}}),
        ("- &word sofa\n- *word", ["sofa", "sofa"]),
        ("[1, 2.5, no, ~]", [1, 2.5, False, None]),
    ],
)
def test_yaml_is_read_as_json_would_say_it(text: str, value: Any) -> None:
    """Faults, row 35."""
    assert parse_yaml(text) == value


@pytest.mark.parametrize("text", ["[" * 50_000, "9" * 5000, "NaN", "[" * 70 + "]" * 70, "{"])
def test_odd_json_is_refused(text: str) -> None:
    """Faults, row 35."""
    with pytest.raises(InvalidInput):
        parse_json(text)


@pytest.mark.parametrize("text", [BOMB, "9" * 50_000, "{1: 2}", "2024-99-99", "[" * 5000])
@pytest.mark.parametrize("name", ["suite.yaml", "prompts.yaml", "bases.yaml"])
def test_odd_documents_end_as_unusable_input(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faults, row 35."""
    Path(name).write_text(f"about: {text}\n" if text.startswith("2024") else text)
    if name == "bases.yaml":
        monkeypatch.setenv("CONCEPT_BASES", name)
    words = {
        "suite.yaml": ["suites", name],
        "prompts.yaml": ["generate", "--prompts", name],
        "bases.yaml": ["bases"],
    }
    result = invoke(*words[name])
    assert (result.exit_code, result.output.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    "value",
    ["2024-99-99", "1.2.3e5", "9" * 5000, "[" * 5000, "&a [*a]", "!!int ''", "{1: 2}", '["\\0{}"]'],
)
@pytest.mark.parametrize("name", ["prompts", "stage3.steps", "optimizer", "stage3"])
def test_odd_settings_are_refused(name: str, value: str) -> None:
    """Faults, row 35."""
    with pytest.raises(InvalidInput):
        resolve_settings(find_method("attndreambooth"), base="", overrides=(f"{name}={value}",))


def test_values_are_not_written_out_before_they_are_checked(tmp_path: Path) -> None:
    """Faults, row 35: `str()` of what an alias stands for a million times."""
    for key in ("about", "fits"):
        (tmp_path / "a.yaml").write_text(f"x: &x [1, 2]\n{key}: {{a: *x}}\nprompts: ['a {{}}']\n")
        with pytest.raises(InvalidInput, match=key):
            find_suite(str(tmp_path / "a.yaml"))
    (tmp_path / "b.yaml").write_text("- {prompt: a, size: [1, 2]}\n")
    with pytest.raises(InvalidInput, match="size is a list: expected 512 or 768x512"):
        read_prompts(tmp_path / "b.yaml", DEFAULTS)
    with pytest.raises(InvalidInput):
        TrainingSettings(prompts=("a {} \x1b[31m",))


def test_aliases_of_base_models_are_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults, row 35."""
    path = tmp_path / "bases.yaml"
    monkeypatch.setenv("CONCEPT_BASES", str(path))
    path.write_text("15: {source: ./a, about: }\n")
    assert read_aliases()["15"].about == ""
    for entry in (
        "{source: 3}",
        "{source: ./a, about: [x]}",
        '{source: "./a\\0"}',
        "{source: [a]}",
    ):
        path.write_text(f"mine: {entry}\n")
        with pytest.raises(InvalidInput):
            read_aliases()


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "a" * 5000, "a/" * 3000])
def test_names_that_no_file_can_have(name: str) -> None:
    """Faults, row 35."""
    assert invoke("generate", "a cat", "--base", name).exit_code in (2, 3)
    assert invoke("suites", name).exit_code == 3
    assert invoke("generate", "a cat", "--size", "9" * 5000).exit_code == 2


# --- row 38 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a <b> {}", "a {} <rex", "\x1b[31m {}", "a {} \0"])
def test_a_suite_names_no_concept(tmp_path: Path, text: str) -> None:
    """Faults, rows 38 and 39."""
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps({"prompts": [text]}))
    with pytest.raises(InvalidInput):
        find_suite(str(path))


def _made(path: Path, **settings: Any) -> dict[str, Any]:
    drawn = {"steps": 2, "guidance": 5.0, "negative": "", "scheduler": None, "size": [8, 8]}
    drawn |= {"batch_seeds": [1], "maps": False}
    top = {"prompt": "a", "seed": 1, "base": "miniature", "base_sha256": "0" * 64, "versions": []}
    return top | {"settings": drawn | settings}


def _with_text(path: Path, text: str) -> Path:
    info = PngInfo()
    info.add_itxt("conceptry", text)
    draw(0, (8, 8)).save(path, pnginfo=info)
    return path


ODD_MAKING: dict[str, Any] = {
    "100,000 seeds": {"batch_seeds": list(range(100_000))},
    "a large seed": {"batch_seeds": [1, 1 << 70]},
    "no seed": {"batch_seeds": []},
    "another size": {"size": [4096, 4096]},
    "text for a number": {"steps": "2"},
    "a list": {"negative": ["x"]},
    "unknown": {"foo": 1},
    "many steps": {"steps": 10**6},
}


@pytest.mark.parametrize("settings", ODD_MAKING.values(), ids=ODD_MAKING)
def test_odd_words_of_a_picture_about_its_making(tmp_path: Path, settings: Any) -> None:
    """Faults, row 38."""
    sound = _with_text(tmp_path / "a.png", json.dumps(_made(tmp_path)))
    assert read_provenance(sound).batch_seeds == (1,)
    with pytest.raises(InvalidImage):
        read_provenance(_with_text(tmp_path / "b.png", json.dumps(_made(tmp_path, **settings))))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 50_000,
        '{"settings": ' + "9" * 50_000 + "}",
        '{"settings": null}',
        '{"settings": {}, "versions": {"a": 1}}',
        json.dumps(_made(Path()) | {"prompt": "\ud800"}),
        json.dumps(_made(Path()) | {"versions": [{"concept": 1, "version": True, "sha256": "x"}]}),
        json.dumps(_made(Path()) | {"base": None}),
    ],
)
def test_odd_metadata_is_unusable_input(tmp_path: Path, text: str) -> None:
    """Faults, rows 35 and 38."""
    path = _with_text(tmp_path / "odd.png", text)
    assert invoke("reproduce", path).exit_code == 2
    assert invoke("reproduce", tmp_path).exit_code == 3


def test_scores_of_another_form_are_none() -> None:
    """Faults, rows 26 and 38: imported evaluations of wrong types, a picture that is a path."""
    found = _evaluation("a photo")
    sound = found.document()
    assert Evaluation.from_document(sound) == found
    for odd in (
        sound | {"prompts": {"a": 1}},
        sound | {"scores": [1]},
        sound | {"scores": {"both": {"mean": "0.5", "low": 0, "high": 1}}},
        sound | {"others": "rex"},
        json.loads(json.dumps(sound).replace("a" * 64, "../../photo")),
    ):
        with pytest.raises(InvalidInput):
            Evaluation.from_document(odd)


def test_a_database_of_no_known_format_is_damaged(rex: Registry, database: Path) -> None:
    """Faults, row 38."""
    rex.close()
    data = bytearray(database.read_bytes())
    data[44:48] = (9).to_bytes(4, "big")  # the schema's format, 1 to 4
    database.write_bytes(data)
    result = invoke("--registry", database, "list")
    assert (result.exit_code, "is damaged" in result.stderr) == (4, True)


# --- row 39 ---------------------------------------------------------------------------------------


def _evaluation(prompt: str) -> Evaluation:
    picture = PictureScores(0, "a" * 64, {"clip_t": -0.5})
    row = PromptScores(prompt, "place", {"clip_t": 0.5}, [picture])
    made_by: dict[str, object] = {"chosen_by": ["clip_t", "dino"]}
    scores = {"both": Interval(0.5, 0.0, 1.0)}
    return Evaluation("rex", 1, [], "mine", scores, [row], made_by)


@pytest.mark.parametrize(
    "text", ["=1+1", "@SUM(1)", "+1", "-1", "\t=1", "\r=1", " =1", "＝1", "\x1b=1"]
)
def test_a_spreadsheet_finds_no_formula(text: str) -> None:
    """Faults, row 39."""
    rows = list(csv.reader(_csv([_evaluation(text)]).splitlines()))
    assert rows[1][2][0] not in "=+-@\t\r "
    assert rows[1][-1] == "-0.5"


def test_a_terminal_finds_nothing_to_obey(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults, row 39."""
    Path("mine.yaml").write_text('prompts: [{text: "a {} \\u202e on", tests: "\\u202eecalp"}]\n')
    Path("bases.yaml").write_text('mine: {source: ./a, about: "\\u202eon"}\n')
    monkeypatch.setenv("CONCEPT_BASES", "bases.yaml")
    for words in (["suites", "mine.yaml"], ["bases"]):
        for flags in ([], ["--json"]):
            result = invoke(*flags, *words)
            assert result.exit_code == 0
            assert "\u202e" not in result.stdout
    assert "\u202eon" in [each["about"] for each in json.loads(result.stdout)["bases"]]
    Path("bases.yaml").write_text('mine: {source: ./a, about: "\\e[31m"}\n')
    assert invoke("bases").exit_code == 2


@pytest.fixture
def _usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.skipif(os.name == "nt", reason="no permissions of this kind")
@pytest.mark.usefixtures("_usual_umask")
def test_photos_are_for_those_whose_registry_it_is(database: Path, photos: Path) -> None:
    """Faults, row 39."""
    with Registry.open(database, create=True) as registry:
        registry.add("rex", [photos], category="dog")
    blobs = database.with_suffix(".blobs")
    for path in (database, *blobs.rglob("*")):
        if path.name.startswith("lock"):
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path
    assert stat.S_IMODE(blobs.stat().st_mode) == 0o700
    for path in (blobs, *blobs.iterdir()):
        path.chmod(path.stat().st_mode | 0o070)  # shared with a group
    with Registry.open(database) as registry:
        registry.add("mia", [_with_text(photos.parent / "x.png", "x")], category="cat")
        (photo,) = registry.show("mia").images
        mode = stat.S_IMODE(registry.path_of(photo.sha256).stat().st_mode)
    assert mode & 0o040


@pytest.mark.skipif(os.name == "nt", reason="no permissions of this kind")
@pytest.mark.usefixtures("_usual_umask")
@pytest.mark.parametrize("mode", [0o600, 0o640])
def test_copies_are_for_those_whose_registry_it_is(
    database: Path, photos: Path, tmp_path: Path, mode: int
) -> None:
    with Registry.open(database, create=True) as registry:
        registry.add("rex", [photos], category="dog")
    database.chmod(mode)
    with Registry.open(database) as registry:
        registry.backup(tmp_path / "backup")
        with registry._store.lock.exclusive():
            registry._store.database.upgrade()
    backup = tmp_path / "backup"
    for folder in (backup, backup / "concepts.blobs"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (former,) = database.parent.glob("*before-upgrade*")
    for copy in (backup / "concepts.db", former):
        assert stat.S_IMODE(copy.stat().st_mode) == mode


# --- row 50 ---------------------------------------------------------------------------------------

NAMES = ["rex", "mia", "dog"]


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("(rex:1.2)", "<rex:1.2>"),
        ("a photo of rex on a beach", "<rex>"),
        ("a photo of Rex", "<rex>"),
        ("<rex> and mia", "<mia>"),
        ("a cat BREAK a dog", "leave it out"),
        ("a {red|blue} car", "scenes of a script"),
        ("a dog in __place__", "scenes of a script"),
        ("embedding:rex", "<rex>"),
        ("bad, embedding:easynegative", "<NAME>"),
        ("a cat --n blurry", "--negative"),
        ("a cat --w 512", "--size"),
        ("a cat AND a dog", "write and"),
        ("[a:b:0.5]", "in the end"),
        ("[cat:dog:10]", "in the end"),
        ("[cat|dog]", "one of them"),
        ("((masterpiece)), a cat", "no weights"),
        ("(masterpiece:1.4), <rex:0.8>", "no weights"),
        ("sks cat", "<NAME>"),
    ],
)
def test_other_tools_words_are_pointed_out(prompt: str, says: str) -> None:
    """Faults, row 50."""
    (found,) = find_other_tool_syntax(prompt, NAMES, is_category=lambda word: word == "dog")
    assert says in found.advice
    assert found.text in prompt


@pytest.mark.parametrize(
    "prompt",
    [
        "a photo (2019)",
        "a well-known t-rex",
        "a photo of a dog",
        "a dog -- happy",
        "a picture (16:9)",
        "the clock (at 12:30)",
        "A DOG AND A CAT",
        'a sign that says "BREAK"',
        "rock and roll, a break",
        "snake_case, dunder __init",
        "<rex> at 5:30, [16:9]",
        "a mia-like cat",
        "10-year-old, red-haired",
        "a <rex@2:0.5>'s friend",
        "a cat: a film (by Ann)",
    ],
)
def test_ordinary_prompts_are_left_alone(prompt: str) -> None:
    """Faults, row 50."""
    assert not list(find_other_tool_syntax(prompt, NAMES, is_category=lambda word: word == "dog"))


LONG = 20_000


@pytest.mark.parametrize(
    ("prompt", "count"),
    [
        ("[" + "a" * LONG + ":" * LONG + "b" * LONG, 1),
        ("[" * LONG + "a:" * LONG, 0),
        ("(a:" + "1" * LONG, 0),
        ("{" + "|" * LONG, 0),
        ("a" * LONG + ":", 0),
        ("/__" * LONG, 0),
        ("“" * LONG + " a", 0),
        ("(cat:1.2) " * LONG, 50),
    ],
)
def test_a_long_prompt_is_read_once(prompt: str, count: int) -> None:
    """Time grew with the square or the cube of its length: minutes for one of these."""
    assert len(list(find_other_tool_syntax(prompt, NAMES))) == count


def test_a_strict_call_refuses_them_before_anything_is_loaded(database: Path) -> None:
    """Faults, row 50."""
    words = ("--registry", database, "generate", "a (cat:1.2)", "--strict")
    result = invoke(*words)
    assert (result.exit_code, "no weights" in result.stderr) == (2, True)
    assert "loading" not in result.stderr
    with pytest.raises(InvalidInput) as caught:
        mentions("a cat <lora:rex:0.8>")
    assert caught.value.hint == "<rex:0.8>"


# --- row 53 ---------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
@pytest.mark.parametrize("flags", quick_for(1, [["--json"], []]), ids=str)
def test_an_output_that_cannot_be_written(flags: list[str]) -> None:
    """Faults, row 53."""
    shell = """
import subprocess, sys
words = [sys.executable, "-c", sys.argv[1], *sys.argv[2:]]
for end in (">/dev/full", ">&-", "2>&-", "2>/dev/full", "<&-", "| true"):
    line = ["bash", "-c", f'set -o pipefail; "$@" {end}', "bash", *words]
    done = subprocess.run(line, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    print(end, done.returncode, "Traceback" in done.stderr, "No space left" in done.stderr)
"""
    told = run_python(shell, program(), "suites", *flags).splitlines()
    assert told == [
        ">/dev/full 4 False True",
        ">&- 0 False False",
        "2>&- 0 False False",
        "2>/dev/full 0 False False",
        "<&- 0 False False",
        "| true 0 False False",
    ]


@pytest.mark.parametrize("separator", [",", ";", "\t"], ids=["comma", "semicolon", "tab"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_prompts_as_spreadsheets_save_them(tmp_path: Path, separator: str, encoding: str) -> None:
    """Faults, row 53."""
    rows = (("Prompt ", "N", "SEED", ""), ("a café", "2", "5", ""), ("", "", "", ""))
    text = "\r\n".join(separator.join(row) for row in rows)
    for head in ("", f"sep={separator}\r\n"):
        (tmp_path / "a.csv").write_bytes((head + text).encode(encoding))
        (request,) = read_prompts(tmp_path / "a.csv", DEFAULTS)
        assert (request.prompt, list(request.seeds)) == ("a café", [5, 6])


def test_other_files_are_named_where_an_export_is_wanted(tmp_path: Path, database: Path) -> None:
    """Faults, row 53."""
    tensor = ("F32", [1], bytes(4))
    files = {
        "base.safetensors": raw_safetensors({"model.diffusion_model.x": tensor}),
        "lora.safetensors": raw_safetensors({"lora_unet_x": tensor}),
        "old.ckpt": pickle.dumps({"state_dict": 1}),
        "registry.db": b"SQLite format 3\0" + bytes(100),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with zipfile.ZipFile(tmp_path / "new.ckpt", "w") as made:
        made.writestr("archive/data.pkl", b"x")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as made:
        made.writestr("rex/01.JPG", b"x")
    draw(0, (8, 8)).save(tmp_path / "photo.webp")
    told = {
        "base.safetensors": ("a base model", "--base"),
        "lora.safetensors": ("no embedding, no LoRA", ""),
        "old.ckpt": ("a pickle", "safetensors"),
        "new.ckpt": ("a pickle", "safetensors"),
        "registry.db": ("a registry", "--registry"),
        "photos.zip": ("a zip of pictures", "concept add"),
        "photo.webp": ("a picture", "concept add"),
    }
    for name, (what, hint) in told.items():
        result = invoke("--registry", database, "import", tmp_path / name)
        assert result.exit_code == 2, name
        assert what in result.stderr, name
        assert hint in result.stderr, name
        assert not database.exists()


# --- resume points --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    [[], {}, {"done": 1, "stage": "a", "step": 1}, {"done": [], "stage": None, "step": 1}]
    + [{"done": [], "stage": "a", "step": step} for step in (-1, True, "1", 1.5)],
)
def test_an_odd_place_in_a_training_is_refused(tmp_path: Path, place: Any) -> None:
    """Faults, row 38."""
    metadata = {"format": FORMAT, "place": json.dumps(place)}
    save_file({"learned.a": torch.zeros(2)}, tmp_path / "resume.safetensors", metadata)
    for read in (read_position, read_resume_point):
        with pytest.raises(InvalidWeights):
            read(tmp_path / "resume.safetensors")


def test_saved_tensors_have_to_fit() -> None:
    """Faults, row 38: another name, and a shape that would be spread out in silence."""
    into = {"a": torch.zeros(2, 2)}
    for odd in ({"b": torch.ones(2, 2)}, {"a": torch.ones(2)}, {"a": torch.ones(())}):
        with pytest.raises(InvalidWeights):
            copy_values(odd, into)
    copy_values({"a": torch.ones(2, 2)}, into)
    assert into["a"].sum() == 4

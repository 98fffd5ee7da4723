"""The tables in `docs/results.md` have the numbers that were measured."""

import json
import re
from typing import Any

import pytest
from program import ROOT

RESULTS = (ROOT / "docs/results.md").read_text(encoding="utf-8")
METHODS = {
    "base model": "base model",
    "AttnDreamBooth": "attndreambooth",
    "DreamBooth": "dreambooth",
    "SeFi-IDE": "sefi",
    "Textual Inversion": "textual-inversion",
    "DreamTuner": "dreamtuner",
}
_CELL = re.compile(r"([\d.]+)( %)? \(([\d.]+) to ([\d.]+)\)")
_ROUNDED = 0.0056
"""Numbers are shown with two digits, some of them rounded to three before."""


def measured(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "bench/results" / name).read_text(encoding="utf-8"))


def rows(section: str) -> dict[str, list[str]]:
    """Cells by the first one, of the first table in a section."""
    text = RESULTS.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    (table, *_) = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    cells = [line.strip("| ").split(" | ") for line in table.replace("**", "").splitlines()[2:]]
    return {first.strip(" |"): rest for first, *rest in cells}


def is_shown(cell: str, interval: dict[str, float]) -> bool:
    match = _CELL.search(cell)
    assert match, cell
    scale = 100 if match[2] else 1
    shown = [float(match[i]) / scale for i in (1, 3, 4)]
    wanted = [interval[name] for name in ("mean", "low", "high")]
    return all(abs(a - b) < _ROUNDED for a, b in zip(shown, wanted, strict=True))


def key_of(label: str) -> str:
    """What a row is called in the results."""
    method, _, rest = label.partition(", ")
    if weight := re.search(r"λ ([\d.]+)", rest):
        return f"{METHODS[method]}, λ {weight[1]}"
    if rest == "`instant`":
        return "dreamtuner, instant"
    return METHODS[method]


def test_methods() -> None:
    found = measured("methods.json")
    shown = rows("The methods")
    assert {key_of(label) for label in shown} == set(found["methods"])
    for label, cells in shown.items():
        scores = found["methods"][key_of(label)]["scores"]
        for cell, name in zip(cells, ("seen", "likeness", "recognised"), strict=False):
            assert is_shown(cell, scores[name]), f"{label}: {name}"
        if cost := found["cost"].get(key_of(label)):
            gigabytes = cost["peak_memory_bytes"] / 1e9
            seconds = int(cells[3].split(" s")[0])
            assert abs(seconds - cost["seconds"]) <= 0.5
            assert f", {gigabytes:.2f} GB" in cells[3]


def test_from_one_photo() -> None:
    found = measured("one-photo.json")["methods"]
    shown = rows("From one photo")
    assert {key_of(label) for label in shown} == set(found)
    for label, cells in shown.items():
        for cell, name in zip(cells, ("seen", "identity", "likeness", "recognised"), strict=True):
            assert is_shown(cell, found[key_of(label)]["scores"][name]), f"{label}: {name}"


def test_several_concepts_in_a_picture() -> None:
    found = measured("company.json")["miniature-pairs"]["methods"]
    shown = {company_key(label): cells for label, cells in rows(COMPANY).items()}
    assert set(shown) == set(found)
    for key, cells in shown.items():
        scores = found[key]["scores"]
        for cell, name in zip(cells, ("seen", "present", "all_there", "relation"), strict=True):
            assert is_shown(cell, scores[name]), f"{key}: {name}"


COMPANY = "Several concepts in a picture"
_COMPANY_KEYS = {"`--separate`": "separate", "`--layout auto`": "auto", "ControlNet": "control"}


def company_key(label: str) -> str:
    """What a way and its mode are called in the results."""
    way, *mode = label.split(", ")
    if mode == ["categories alone"]:
        return way
    of_way = METHODS.get(way) or way.replace("DreamTuner `instant`", "dreamtuner instant")
    return f"{of_way} {', '.join(_COMPANY_KEYS.get(word, word) for word in mode)}"


def test_the_weight_of_the_loss() -> None:
    found = measured("subject-wise.json")["by_weight"]
    shown = rows("SeFi-IDE's loss, by its weight")
    for name, cells in shown.items():
        for cell, each in zip(cells, found.values(), strict=True):
            number = float(cell.strip(" |%")) / (100 if "%" in cell else 1)
            assert abs(number - each["scores"][name]["mean"]) < _ROUNDED


def test_what_choosing_says() -> None:
    page = (ROOT / "docs/choosing-a-method.md").read_text(encoding="utf-8")
    scores = {
        name: {key: f"{100 * each['mean']:.0f} %" for key, each in found["scores"].items()}
        for name, found in measured("methods.json")["methods"].items()
    }
    sefi, dream, attention = (scores[name] for name in ("sefi", "dreambooth", "attndreambooth"))
    for sentence in (
        f"the colour is seen in {sefi['seen_colour']} of such pictures; DreamBooth "
        f"{dream['seen_colour']}, AttnDreamBooth {attention['seen_colour']}",
        f"seen in {sefi['seen_second']}; DreamBooth {dream['seen_second']}, "
        f"AttnDreamBooth {attention['seen_second']}",
        f"{sefi['seen']} of what prompts name is seen, {sefi['recognised']} of pictures",
    ):
        assert sentence in page


@pytest.mark.parametrize(
    ("part", "section"),
    [
        ("taught", "Taught, and drawn after photos"),
        ("ways", "Drawn after one photo, without any training"),
    ],
)
def test_drawn_after_photos(part: str, section: str) -> None:
    found = measured("references.json")[part]["ways"]
    shown = rows(section)
    assert len(shown) == len(found)
    for (label, cells), way in zip(shown.items(), found.values(), strict=True):
        for cell, name in zip(cells, ("seen", "likeness", "recognised"), strict=True):
            assert is_shown(cell, way["scores"][name]), f"{label}: {name}"


def test_what_a_subject_encoder_sees() -> None:
    found = measured("subject-encoder.json")["encoders"]
    for strength, cells in rows("What a subject encoder sees").items():
        told = [found[way][strength]["gains"] for way in ("with", "without")]
        wanted = [each[name] for each in told for name in ("identity", "follows")]
        for cell, interval in zip(cells, wanted, strict=True):
            said = [float(number) for number in re.findall(r"-?\d+\.\d+", cell)]
            numbers = [interval[name] for name in ("mean", "low", "high")]
            assert said == pytest.approx(numbers, abs=_ROUNDED)


def test_frames_of_an_animation() -> None:
    found = measured("frames.json")
    shown = rows("Frames of an animation")
    ways = [way for part in ("places", "walk") for way in found[part]["ways"].values()]
    assert len(shown) == len(ways)
    for (label, cells), way in zip(shown.items(), ways, strict=True):
        for cell, name in zip(cells, ("neighbours", "photo"), strict=False):
            assert is_shown(cell, way["scores"][name]), f"{label}: {name}"


def test_what_a_reference_costs() -> None:
    cost = measured("references.json")["cost"]
    ratios = [each["ratio"] for each in cost["drawing"].values()]
    for sentence in (
        f"takes {cost['pass']['ratio']:.2f} times as long as a call with one picture",
        f"take {ratios[1]:.1f} times as long after one photo",
        f"{ratios[2]:.1f} times where it leads nine tenths",
        f"and {ratios[3]:.1f} times after three photos",
    ):
        assert sentence in RESULTS, sentence


def test_options_of_training() -> None:
    document = measured("options.json")
    names = ("seen", "seen_colour", "likeness", "recognised", "drift", "diversity")
    preset = document["ways"]["attndreambooth"]["scores"]
    found = [preset, *(each["scores"] for each in document["differences"])]
    shown = rows("Options of training")
    assert len(shown) == len(found)
    for (label, cells), scores in zip(shown.items(), found, strict=True):
        for cell, name in zip(cells, names, strict=True):
            said = [float(number) for number in re.findall(r"-?\d+\.\d+", cell)]
            wanted = [scores[name][key] for key in ("mean", "low", "high")]
            assert said == pytest.approx(wanted, abs=_ROUNDED), f"{label}: {name}"


def test_small_files() -> None:
    document = measured("compress.json")
    shown = rows("Small files")
    ways = ["AttnDreamBooth", *(f"`{way}`" for way in list(document["ways"])[1:])]
    assert list(shown) == ways
    for (label, cells), way in zip(shown.items(), document["ways"].values(), strict=True):
        share = float(cells[0].removesuffix(" %")) / 100
        assert share == pytest.approx(way["scores"]["share_of_bytes"]["mean"], abs=6e-4)
        for cell, name in zip(cells[1:], ("seen", "likeness", "recognised", "both"), strict=True):
            assert is_shown(cell, way["scores"][name]), f"{label}: {name}"
    (small,) = [each for each in document["differences"] if each["of"] == "svd:24:int4"]
    assert document["ways"]["svd:24:int4"]["scores"]["share_of_bytes"]["mean"] <= 0.05
    assert small["scores"]["both"]["mean"] >= -0.01


def test_masks_and_captions() -> None:
    document = measured("masks.json")
    found = [
        scores["scores"] for part in ("place", "hat") for scores in document[part]["ways"].values()
    ]
    shown = rows("Masks and captions")
    assert len(shown) == len(found)
    for (label, cells), scores in zip(shown.items(), found, strict=True):
        for cell, name in zip(cells, ("unasked", "asked", "likeness"), strict=True):
            assert is_shown(cell, scores[name]), f"{label}: {name}"

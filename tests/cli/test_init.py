"""`concept generate` from a picture, in other formats and with weights; other tools' pictures."""

from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from program import Ask, Run, error_of
from tiny_base import write_tiny_base
from tiny_control import control_picture, write_base_and_control

PROMPT = "a photo of a red cat"
WORDS = ("-n", "1", "--seed", "1", "--steps", "2")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_base(tmp_path_factory.mktemp("bases") / "tiny"))


@pytest.fixture(autouse=True)
def _pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture to begin with, a mask, and one that is no mask."""
    monkeypatch.chdir(tmp_path)
    Image.radial_gradient("L").resize((24, 16)).convert("RGB").save("begun.png")
    mask = Image.new("L", (24, 16))
    ImageDraw.Draw(mask).rectangle((0, 0, 7, 15), fill=255)
    mask.save("mask.png")
    Path("notes.png").write_text("no picture")


def test_a_picture_is_begun_with_another_and_drawn_again(ask: Ask, run: Run, tiny: str) -> None:
    base, begun = ("--base", tiny), ("--init", "begun.png", "--inpaint", "mask.png")
    drawn = ask("generate", PROMPT, *base, *WORDS, *begun, "--strength", "0.9", "--maps")
    path = drawn["images"][0]["path"]
    with Image.open(path) as now, Image.open("begun.png") as before:
        assert now.size == (24, 16)
        assert now.crop((16, 0, 24, 16)).tobytes() == before.crop((16, 0, 24, 16)).tobytes()
        assert now.crop((0, 0, 8, 16)).tobytes() != before.crop((0, 0, 8, 16)).tobytes()
    assert ask("reproduce", path, *begun)["is_same"]
    told = error_of(run("--json", "reproduce", path))
    assert "--init IMAGE" in told["hint"]
    told = error_of(run("--json", "reproduce", path, "--init", "begun.png"))
    assert "--inpaint MASK" in told["hint"]


@pytest.mark.parametrize(
    ("words", "exit_code", "text"),
    [
        (["--strength", "0.5"], 2, "--strength is for a picture to begin with"),
        (["--inpaint", "mask.png"], 2, "--inpaint is for a picture to begin with"),
        (["--init", "gone.png"], 3, "there is no picture to begin with gone.png"),
        (["--init", "~gone/a.png"], 3, "there is no picture to begin with ~gone/a.png"),
        (["--init", "begun.png", "--inpaint", "~m.png"], 3, "there is no mask ~m.png"),
        (["--init", "notes.png"], 2, "notes.png"),
        (["--init", "begun.png", "--inpaint", "notes.png"], 2, "notes.png"),
        (["--init", "begun.png", "--size", "16"], 2, "another shape"),
        (["--init", "begun.png", "--strength", "0.1"], 2, "leaves none of 2 steps"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_what_cannot_begin_is_one_line_and_leaves_nothing(
    run: Run, tiny: str, words: list[str], exit_code: int, text: str
) -> None:
    done = run("--json", "generate", PROMPT, "--base", tiny, *WORDS, "--out", "album", *words)
    assert done.exit_code == exit_code, done.output
    assert text in error_of(done)["message"]
    assert not Path("album").exists()


def test_a_large_picture_is_reduced_and_that_is_said(run: Run, tiny: str) -> None:
    Image.new("RGB", (96, 64)).save("large.png")
    done = run("generate", PROMPT, "--base", tiny, *WORDS, "--init", "large.png")
    assert done.exit_code == 0, done.output
    assert "large.png is 96x64: drawn in 32x16" in done.stderr


def test_it_goes_along_with_a_control(ask: Ask, tmp_path: Path) -> None:
    tiny, net = write_base_and_control(tmp_path / "bases")
    control = control_picture(Path("control.png"), (24, 16))
    words = ("--base", tiny, *WORDS, "--init", "begun.png", "--strength", "1")
    one = ask("generate", PROMPT, *words)["images"][0]
    other = ask("generate", PROMPT, *words, "--control", f"{control}:{net}")["images"][0]
    assert one["sha256"] != other["sha256"]
    again = ("reproduce", other["path"], "--init", "begun.png", "--control", str(control))
    assert ask(*again)["is_same"]


def test_pictures_of_all_formats_are_drawn_again(ask: Ask, run: Run, tiny: str) -> None:
    for name in ("webp", "jpg"):
        words = ("--base", tiny, *WORDS, "--format", name, "--grid")
        drawn = ask("generate", PROMPT, *words)
        path = drawn["images"][0]["path"]
        assert path.endswith(f".{name}")
        assert drawn["grid"].endswith(".png")
        document = ask("reproduce", path)
        assert document["is_same"]
        assert document["unused"] == []
    Path("two.txt").write_text("a\nb\n")
    frames = ("--animate", "--prompts", "two.txt", "--format", "jpg", "--base", tiny, *WORDS)
    assert "a JPEG loses some" in error_of(run("--json", "generate", *frames))["message"]


@pytest.mark.long
def test_words_have_weights_where_it_is_asked_for(run: Run, ask: Ask, tiny: str) -> None:
    words = ("--base", tiny, *WORDS)
    plain = run("generate", "a (red:1.5) cat", *words)
    assert (
        '"(red:1.5)" is drawn as plain words: words have no weights without --prompt-weights'
        in plain.stderr
    )
    weighed = run("generate", "a (red:1.5) cat", *words, "--prompt-weights", "--strict")
    assert (weighed.exit_code, "plain words" in weighed.stderr) == (0, False)
    long = "a photo of " + "a red cat " * 40
    assert (
        "tokens; the text encoder reads 75"
        in error_of(run("--json", "generate", long, *words))["message"]
    )
    drawn = ask("generate", long, *words, "--prompt-weights", "--maps")["images"][0]
    assert ask("reproduce", drawn["path"])["is_same"]


def test_the_like_of_another_tools_picture_is_drawn(run: Run, ask: Ask, tiny: str) -> None:
    info = PngInfo()
    fields = "Steps: 2, Sampler: Euler a, Seed: 5, Size: 16x16, Model: dr\x1b[2J, ENSD: 1"
    info.add_text("parameters", f"a (red:1.3) cat\n{fields}")
    Image.new("RGB", (16, 16)).save("theirs.png", pnginfo=info)
    told = error_of(run("--json", "reproduce", "theirs.png"))
    assert told["hint"] == "concept reproduce theirs.png --base BASE"
    done = run("reproduce", "theirs.png", "--base", tiny)
    assert done.exit_code == 0, done.output
    assert "not used: its sampler Euler a: the base model's is taken" in done.stderr
    assert "not used: ENSD: 1" in done.stderr
    assert "\x1b[2J" not in done.stderr + told["message"]
    control = run("--json", "reproduce", "theirs.png", "--base", tiny, "--control", "begun.png")
    assert "drawn by another tool" in error_of(control)["message"]


SCRIPT = """
steps: 2
init: begun.png
scenes:
- scene: red
  prompt: a (red:1.2) cat
  prompt_weights: yes
- scene: part
  prompt: a {cat|dog}
  inpaint: mask.png
  strength: 1
"""


def test_scenes_that_begin_with_a_picture_are_drawn_once(ask: Ask, tiny: str) -> None:
    Path("day.yaml").write_text(SCRIPT)
    words = ("generate", "--prompts", "day.yaml", "--base", tiny, "--out", "day")
    assert ask(*words, "--format", "webp", "--dry-run")["to_draw"] == 3
    drawn = ask(*words, "--format", "webp")["images"]
    names = ["red-0.webp", "part-cat-0.webp", "part-dog-0.webp"]
    assert [Path(each["path"]).name for each in drawn] == names
    plan = ask(*words, "--format", "webp", "--dry-run")
    assert [each["path"] for each in plan["planned"]] == [each["path"] for each in drawn]
    assert plan["to_draw"] == 0
    again = ask(*words, "--format", "webp")["images"]
    assert [each["is_new"] for each in again] == [False, False, False]
    assert ask(*words, "--dry-run")["to_draw"] == 3  # as PNGs
    Image.open("mask.png").rotate(180).save("mask.png")
    assert ask(*words, "--format", "webp", "--dry-run")["to_draw"] == 2
    Image.open("begun.png").rotate(180).save("begun.png")
    assert ask(*words, "--format", "webp", "--dry-run")["to_draw"] == 3

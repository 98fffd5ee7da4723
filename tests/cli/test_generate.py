"""`concept generate` and `concept bases`."""

import hashlib
import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conceptry.generation.provenance import read_metadata
from conceptry.registry import Registry
from drawing import draw_file
from forked import INTERRUPTED_AFTER_TWO, run_forked
from PIL import Image
from program import Ask, Run, error_of, run_concept
from safetensors.torch import load_file, save_file
from tiny_base import write_tiny_base

PROMPT = "a photo of a red cat on the beach"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_base(tmp_path_factory.mktemp("bases") / "tiny"))


def test_pictures_are_written_told_and_recorded(ask: Ask, tiny: str, database: Path) -> None:
    words = ("-n", "3", "--seed", "7", "--steps", "2", "--batch", "2", "--out", "album")
    document = ask("generate", PROMPT, "--base", tiny, *words)
    assert document["base"] == tiny
    assert [image["seed"] for image in document["images"]] == [7, 8, 9]
    assert document["grid"] is None
    for image in document["images"]:
        path = Path(image["path"])
        assert path.parent == Path("album")
        assert hashlib.sha256(path.read_bytes()).hexdigest() == image["sha256"]
        told: Any = read_metadata(path)
        assert (told["prompt"], told["seed"]) == (PROMPT, image["seed"])
        assert told["base_sha256"] == document["base_sha256"]
        assert image["seed"] in told["settings"]["batch_seeds"]
        with Registry.open(database) as registry:
            record = registry.trace(image["sha256"])
        assert (record.prompt, record.seed, record.base) == (PROMPT, image["seed"], tiny)
        assert record.settings == told["settings"]
        assert record.settings["steps"] == 2


def test_the_same_call_draws_the_same_pixels(ask: Ask, tiny: str) -> None:
    words = ("generate", PROMPT, "--base", tiny, "-n", "2", "--seed", "1", "--steps", "2")
    first, second = (ask(*words)["images"] for _ in range(2))
    for one, two in zip(first, second, strict=True):
        assert one["path"] != two["path"]
        assert Image.open(one["path"]).tobytes() == Image.open(two["path"]).tobytes()


def test_without_a_seed_every_call_is_another_picture(ask: Ask, tiny: str) -> None:
    words = ("generate", PROMPT, "--base", tiny, "-n", "1", "--steps", "1")
    assert ask(*words)["images"][0]["seed"] != ask(*words)["images"][0]["seed"]


def test_a_grid_holds_all_pictures(ask: Ask, tiny: str) -> None:
    words = ("-n", "9", "--seed", "0", "--steps", "1", "--grid", "--size", "24x16")
    document = ask("generate", PROMPT, "--base", tiny, *words)
    with Image.open(document["images"][0]["path"]) as picture:
        assert picture.size == (24, 16)
    with Image.open(document["grid"]) as grid:
        assert grid.width == 8 * 136 + 8  # eight in a row, the ninth below
        assert grid.height > 2 * 136


def test_people_are_told_the_paths(run: Run, tiny: str) -> None:
    result = run("generate", PROMPT, "--base", tiny, "-n", "2", "--seed", "3", "--steps", "1")
    stem = "pictures/a-photo-of-a-red-cat-on-the-beach"
    assert result.stdout == f"{stem}-3.png\n{stem}-4.png\n"
    assert "2 pictures, seeds 3 to 4" in result.stderr


@pytest.mark.parametrize(
    ("words", "exit_code", "code", "text"),
    [
        (["--base", "sd12"], 3, "not_found", "no base model"),
        (["--base", "model.ckpt"], 2, "invalid_input", "only safetensors"),
        (["--base", "gone.safetensors"], 3, "not_found", "does not exist"),
        (["--size", "big"], 2, "invalid_input", "is not a size"),
        (["--steps", "0"], 2, "usage", "--steps"),
        (["--scheduler", "magic"], 2, "usage", "--scheduler"),
        (["-n", "0"], 2, "usage", "-n"),
        (["--seed", "99999999999999999999"], 2, "invalid_input", "63 bits"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_wrong_call_is_told_and_leaves_nothing(
    run: Run, database: Path, words: list[str], exit_code: int, code: str, text: str
) -> None:
    result = run("--json", "generate", PROMPT, *words)
    assert (result.exit_code, error_of(result)["code"]) == (exit_code, code)
    assert text in error_of(result)["message"]
    assert not Path("pictures").exists()
    assert not database.exists()


def test_a_prompt_or_a_file_of_prompts_is_needed(run: Run) -> None:
    for words in ([], ["a cat", "--prompts", "prompts.txt"]):
        result = run("--json", "generate", *words)
        assert (result.exit_code, error_of(result)["code"]) == (2, "usage")


def test_a_file_of_prompts_is_drawn(ask: Ask, run: Run, tiny: str) -> None:
    Path("wanted.csv").write_text("prompt,n,seed\na cat,,\na dog,1,9\n")
    words = ("generate", "--prompts", "wanted.csv", "-n", "2", "--seed", "5", "--steps", "1")
    document = ask(*words, "--base", tiny, "--grid")
    told = [(image["prompt"], image["seed"]) for image in document["images"]]
    assert told == [("a cat", 5), ("a cat", 6), ("a dog", 9)]
    with Image.open(document["grid"]) as grid:
        assert grid.height > 2 * 136
    assert "3 pictures, seeds as the file says" in run(*words, "--base", tiny).stderr


def test_a_picture_is_drawn_again(ask: Ask, run: Run, tiny: str, database: Path) -> None:
    words = ("generate", PROMPT, "--base", tiny, "-n", "3", "--seed", "1", "--steps", "2")
    picture = ask(*words, "--maps")["images"][2]
    assert Path(picture["maps"]).exists()
    again = ask("reproduce", picture["path"], "--out", "again")
    assert again["is_same"]
    assert again["image"]["sha256"] == picture["sha256"]
    assert Path(again["image"]["path"]).parent == Path("again")
    assert "the same pixels" in run("reproduce", picture["path"]).stderr
    shutil.rmtree(database.parent)
    unknown = run("--json", "reproduce", picture["path"])  # faults, row 26: it may be a stranger's
    assert unknown.exit_code == 2
    assert f"--base {tiny}" in error_of(unknown)["hint"]
    again = ask("reproduce", picture["path"], "--base", tiny)
    assert again["is_same"]  # no concept, so no former registry is needed


def test_a_picture_of_another_origin_is_told(run: Run, database: Path) -> None:
    Image.new("RGB", (8, 8)).save("mine.png")
    for path, exit_code, text in (("mine.png", 2, "does not say"), ("gone.png", 3, "not exist")):
        result = run("--json", "reproduce", path)
        assert result.exit_code == exit_code
        assert text in error_of(result)["message"]
    assert not database.exists()


def test_a_long_prompt_is_told(run: Run, tiny: str) -> None:
    result = run("--json", "generate", "cat " * 90, "--base", tiny)
    assert result.exit_code == 2
    assert "90 tokens" in error_of(result)["message"]


@pytest.mark.long
def test_pictures_drawn_before_an_interruption_stay(tiny: str, database: Path) -> None:
    """Ctrl-C while the third picture is being drawn."""
    words = ("-n", "4", "--batch", "1", "--steps", "1", "--seed", "1", "--base", tiny)
    done = run_forked(
        "--registry", database, "generate", PROMPT, *words, prelude=INTERRUPTED_AFTER_TWO
    )
    assert done.returncode == 130, done.stderr
    found = sorted(Path("pictures").iterdir())
    assert len(found) == 2
    with Registry.open(database) as registry:
        first = hashlib.sha256(found[0].read_bytes()).hexdigest()
        assert registry.trace(first).seed == 1


@pytest.mark.long
def test_libraries_stay_silent(tiny: str, database: Path) -> None:
    words = ("-n", "1", "--steps", "1", "--seed", "1", "--base", tiny)
    done = run_concept("--registry", database, "generate", PROMPT, *words)
    assert done.stderr.splitlines() == [f"loading {tiny}", "1 picture, seed 1"]


def test_bases_lists_aliases_and_what_is_at_hand(
    ask: Ask, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bases.yaml").write_text(json.dumps({"mine": {"source": "./tiny"}}))
    monkeypatch.setenv("CONCEPT_BASES", str(tmp_path / "bases.yaml"))
    found = {base["name"]: base for base in ask("bases")["bases"]}
    assert {"miniature", "sd15", "sd21", "sdxl", "mine"} <= set(found)
    assert not found["mine"]["at_hand"]
    write_tiny_base(tmp_path / "tiny")
    assert {base["name"]: base["at_hand"] for base in ask("bases")["bases"]}["mine"]
    assert [name for name, base in found.items() if base["is_default"]] == ["miniature"]
    assert "sd2-community" in run("bases").stdout


def test_pictures_are_drawn_as_the_base_model_says(
    ask: Ask, run: Run, database: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless asked otherwise; what no file says is for Stable Diffusion."""
    mine = {"source": tiny, "steps": 2, "guidance": 3.5, "scheduler": "own"}
    mine |= {"perturbed_attention": 1.5, "perturbed_layers": "all"}
    (tmp_path / "bases.yaml").write_text(json.dumps({"mine": mine}))
    monkeypatch.setenv("CONCEPT_BASES", str(tmp_path / "bases.yaml"))
    known = {
        base["name"]: tuple(base[key] for key in ("steps", "guidance", "scheduler"))
        for base in ask("bases")["bases"]
    }
    assert known["mine"] == (2, 3.5, None)
    assert known["miniature"] == (25, 5, None)
    assert known["sd15"] == known["sd21"] == (25, 7.5, "dpm++")
    assert known["sdxl"] == (25, 5, "dpm++")
    monkeypatch.setenv("COLUMNS", "200")
    assert "2 steps, guidance 3.5, of perturbed attention 1.5" in run("bases").stdout
    listed = tmp_path / "prompts.yaml"
    listed.write_text(json.dumps([{"prompt": PROMPT, "scheduler": "own", "steps": 1}]))
    (image,) = ask("generate", "--prompts", listed, "-n", "1", "--seed", "1", "--base", tiny)[
        "images"
    ]
    with Registry.open(database) as registry:
        assert registry.trace(image["sha256"]).settings["scheduler"] is None
    drawn = {
        "its own": (["--base", tiny, "--steps", "1", "--scheduler", "own"], (1, 7.5, None)),
        "as it says": (["--base", "mine"], (2, 3.5, None)),
        "otherwise": (["--base", "mine", "--guidance", "1", "--scheduler", "ddim"], (2, 1, "ddim")),
        "by a path": (["--base", tiny, "--steps", "1"], (1, 7.5, "dpm++")),
    }
    for words, settings in drawn.values():
        (image,) = ask("generate", PROMPT, "-n", "1", "--seed", "1", *words)["images"]
        with Registry.open(database) as registry:
            record = registry.trace(image["sha256"]).settings
        assert tuple(record[key] for key in ("steps", "guidance", "scheduler")) == settings
        perturbed = (1.5, "all") if "mine" in words else (None, None)
        assert (record.get("perturbed_attention"), record.get("perturbed_layers")) == perturbed
    off = ("--base", "mine", "--perturbed-attention", "0", "--steps", "1", "-n", "1", "--seed", "1")
    (plain,) = ask("generate", PROMPT, *off)["images"]
    with Registry.open(database) as registry:
        assert "perturbed_attention" not in registry.trace(plain["sha256"]).settings


@pytest.mark.parametrize("fault", ["NaN", "inpainting", "no tokenizer", "byte order mark"])
def test_an_unfit_base_is_one_line_and_nothing_is_recorded(
    run: Run, tiny: str, database: Path, fault: str
) -> None:
    """Faults, 38, 42 and 52: it was a bug, or a black picture with exit 0."""
    base = Path(shutil.copytree(tiny, "unfit"))
    if fault == "NaN":
        weights = base / "vae/diffusion_pytorch_model.safetensors"
        tensors = load_file(weights)
        tensors["decoder.conv_out.bias"].fill_(float("nan"))
        save_file(tensors, weights, {"format": "pt"})
    elif fault == "inpainting":
        config = base / "unet/config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"in_channels": 9}))
    elif fault == "no tokenizer":
        shutil.rmtree(base / "tokenizer")
    else:
        index = base / "model_index.json"
        index.write_bytes(b"\xef\xbb\xbf" + index.read_bytes())
    done = run("generate", PROMPT, "--base", "./unfit", "--steps", "1", "--out", "album")
    assert done.exit_code == 2, done.output
    assert "unfit" in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("album").exists()
    if database.exists():
        with closing(sqlite3.connect(database)) as opened:
            assert opened.execute("SELECT count(*) FROM generation").fetchone() == (0,)


# --- references -----------------------------------------------------------------------------------


def test_an_untrained_concept_is_drawn_after(ask: Ask, tiny: str, photos: Path) -> None:
    ask("add", "rex", str(photos), "--category", "dog")
    words = ("--base", tiny, "-n", "1", "--seed", "7", "--steps", "2")
    plain = ask("generate", "a dog", *words)["images"][0]
    after = ask("generate", "a dog", *words, "--reference", "rex=2:2.5", "--reference", "rex")
    (image,) = after["images"]
    assert Image.open(image["path"]).tobytes() != Image.open(plain["path"]).tobytes()
    again = ask("reproduce", image["path"])
    assert again["is_same"]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--reference", "rex!"], 2, "'rex!' is no reference"),
        (["--reference", "max"], 3, "max"),
        (["--reference", "rex=7"], 3, "rex has no photo '7'"),
        (["--reference-share", "2", "--reference", "rex"], 2, "--reference-share"),
    ],
    ids=str,
)
def test_references_that_cannot_be_drawn_after(
    run: Run, tiny: str, photos: Path, words: list[str], status: int, message: str
) -> None:
    run("add", "rex", str(photos), "--category", "dog")
    done = run("generate", "a dog", "--base", tiny, *words)
    assert done.exit_code == status
    assert message in done.stderr


SCRIPT = """
title: Cats & <dogs>
steps: 1
scenes:
- scene: morning
  prompt: a {cat|dog} on the beach
  seeds: [3, 5]
- a house
"""


def test_scenes_are_drawn_once_and_shown_on_a_page(
    ask: Ask, run: Run, tiny: str, tmp_path: Path
) -> None:
    script = tmp_path / "day.yaml"
    script.write_text(SCRIPT)
    words = ("generate", "--prompts", script, "--base", tiny, "--out", "story")
    plan = ask(*words, "--dry-run")
    assert (plan["to_draw"], Path("story").exists()) == (5, False)
    first = ask(*words)
    names = ["morning-cat-3", "morning-cat-5", "morning-dog-3", "morning-dog-5", "a-house-0"]
    assert [Path(each["path"]).stem for each in first["images"]] == names
    assert all(each["is_new"] for each in first["images"])
    assert [each["path"] for each in plan["planned"]] == [each["path"] for each in first["images"]]
    page = Path(first["page"]).read_text()
    assert "<h1>Cats &amp; &lt;dogs&gt;</h1>" in page
    places = [page.index(f'src="{name}.png"') for name in names]
    assert places == sorted(places)
    Image.open("story/a-house-0.png").rotate(90).save("story/a-house-0.png")  # no longer ours
    script.write_text(SCRIPT.replace("dog}", "bear}"))
    assert [each["is_there"] for each in ask(*words, "--dry-run")["planned"]] == [
        True,
        True,
        False,
        False,
        False,
    ]
    again = ask(*words)
    assert [each["is_new"] for each in again["images"]] == [False, False, True, True, True]
    assert again["images"][:2] == [{**each, "is_new": False} for each in first["images"][:2]]
    assert "morning-dog-3" not in Path(again["page"]).read_text()
    assert Path("story/morning-dog-3.png").exists()
    assert ask(*words, "--dry-run")["to_draw"] == 0
    Path(first["page"]).write_text("mine")
    assert error_of(run("--json", *words))["code"] == "already_exists"
    assert run(*words, "--leak").exit_code == 2


def test_a_sheet_of_heat_maps_belongs_to_its_picture_and_is_made_again(
    ask: Ask, tiny: str, tmp_path: Path
) -> None:
    script = tmp_path / "day.yaml"
    scenes = ("{scene: same, prompt: a cat}", "{scene: same, prompt: a dog}")
    script.write_text(f"steps: 1\nscenes: [{', '.join(scenes)}]")
    words = ("generate", "--prompts", script, "--base", tiny, "--out", "story", "--maps")
    first = ask(*words)["images"]
    assert [(Path(each["path"]).name, Path(each["maps"]).name) for each in first] == [
        ("same-0.png", "same-0-maps.png"),
        ("same-0-2.png", "same-0-maps-2.png"),
    ]
    assert ask(*words)["images"] == [{**each, "is_new": False} for each in first]
    Path(first[1]["maps"]).unlink()
    assert ask(*words, "--dry-run")["to_draw"] == 1
    again = ask(*words)["images"]
    assert [each["is_new"] for each in again] == [False, True]
    assert Path(again[1]["maps"]).name == "same-0-maps-2.png"
    assert ask(*words, "--format", "webp")["images"][0]["is_new"]
    webp = ask(*words, "--format", "webp")["images"]
    assert [(Path(each["path"]).suffix, each["is_new"]) for each in webp] == [(".webp", False)] * 2
    assert all(each["maps"] for each in webp)


def test_the_folder_that_a_user_names_may_be_a_link(ask: Ask, tiny: str, tmp_path: Path) -> None:
    script = tmp_path / "day.yaml"
    script.write_text("steps: 1\nscenes: [a cat, a dog]")
    Path("away").mkdir()
    Path("story").symlink_to("away")
    words = ("generate", "--prompts", script, "--base", tiny, "--out", "story")
    first = ask(*words)
    assert [each["path"] for each in first["images"]] == ["story/a-cat-0.png", "story/a-dog-0.png"]
    assert [each["path"] for each in ask(*words)["images"] if not each["is_new"]] == [
        "story/a-cat-0.png",
        "story/a-dog-0.png",
    ]
    Path("story/a-dog-0.png").rename("elsewhere.png")
    Path("story/a-dog-0.png").symlink_to(Path("elsewhere.png").absolute())
    assert [each["is_new"] for each in ask(*words)["images"]] == [False, True]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("a (red:1.3) cat", "--strict"), "(red:1.3)"),
        (("a cat", "--negative", "a (red:1.3) dog", "--strict"), "(red:1.3)"),
        (("a cat", "--negative", "<rex>"), "a negative prompt names no concept"),
        (("é" * 7_000, "--format", "jpg"), "too long for what a JPEG says"),
        (("a cat", "--encoder-strength", "1"), "none is named"),
    ],
)
@pytest.mark.parametrize("has_registry", [False, True])
def test_a_dry_run_refuses_what_is_refused(
    run: Run, tiny: str, database: Path, has_registry: bool, words: tuple[str, ...], text: str
) -> None:
    if has_registry:
        Registry.open(database, create=True).close()
    for more in (["--dry-run"], []):
        refused = run("--json", "generate", *words, "--base", tiny, *more)
        assert (refused.exit_code, error_of(refused)["code"]) in {
            (2, "usage"),
            (2, "invalid_input"),
        }
        assert text in error_of(refused)["message"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("<rex> and <mia>", "--layout", "rex=0,.3,.5,1"), "no box for mia"),
        (("a cat in a street", "--layout", "tree=0,0,.5,1"), "'tree', which the prompt does"),
        (("<rex@1>", "--layout", "rex@1=0,0,.5,1"), "'rex@1', which the prompt does not"),
        (("<rex> alone", "--layout", "rex=0,0,.5,1", "--layout", "dog=.5,0,1,1"), "'dog'"),
        (("a cat", "--layout", "cat=.5,.3,.2,1"), "box 0.5,0.3,0.2,1 of 'cat' is empty"),
        (("a cat", "--layout", "cat=-.1,0,.2,1"), "-0.1,0,0.2,1 is no box for 'cat'"),
        (("a cat", "--layout", "cat=0,0,.5,1 dog=.5,0,1,1"), "is no box of a layout"),
        (("a cat", *(w for i in range(9) for w in ("--layout", f"c{i}=0,0,1,1"))), "not 9"),
        (("a cat", "--reference", "nar"), "is 100x20, which is too narrow"),
        (("a cat", *(w for _ in range(17) for w in ("--point", ".5,.5")), "--maps"), "16 places"),
    ],
)
def test_a_dry_run_refuses_what_does_not_fit_a_prompt(
    words: tuple[str, ...], text: str, run: Run, rex: Registry, tiny: str
) -> None:
    rex.add("mia", [rex.path_of(rex.show("rex").images[1].sha256)], category="cat")
    Image.new("RGB", (100, 20)).save("narrow.png")
    rex.add("nar", [Path("narrow.png")], category="dog")
    taught = [name for name in ("rex", "mia") if f"<{name}" in words[0]]
    method = ("--method", "textual-inversion", "--set", "embedding.steps=1")
    assert not taught or run("train", *taught, "--base", tiny, *method).exit_code == 0
    for more in (["--dry-run"], []):
        refused = run("--json", "generate", *words, "--base", tiny, "--steps", "1", *more)
        assert refused.exit_code == 2, refused.output
        assert text in error_of(refused)["message"]


def test_a_dry_run_names_the_files_of_frames(ask: Ask, tiny: str, tmp_path: Path) -> None:
    (tmp_path / "day.txt").write_text("a cat\na dog\n")
    words = ("generate", "--prompts", tmp_path / "day.txt", "--animate", "--base", tiny)
    words = (*words, "-n", "2", "--seed", "7", "--steps", "1")
    plan = ask(*words, "--dry-run")
    paths = [each["path"] for each in plan["planned"]]
    assert paths == [f"pictures/a-{n}.png" for n in FRAMES]
    assert [each["path"] for each in ask(*words)["images"]] == paths
    Path(paths[3]).unlink()
    plan = ask(*words, "--dry-run")
    assert [each["is_there"] for each in plan["planned"]] == [True, True, True, False]
    assert plan["to_draw"] == 1
    assert [each["path"] for each in plan["planned"]] == paths


FRAMES = ("cat-7-frame-001", "cat-7-frame-002", "cat-8-frame-001", "cat-8-frame-002")


def test_a_dry_run_names_each_file_once_and_counts_what_is_drawn(
    ask: Ask, tiny: str, tmp_path: Path
) -> None:
    script = tmp_path / "day.yaml"
    cat, dog = ("{scene: same, prompt: a %s}" % each for each in ("cat", "dog"))  # noqa: UP031
    script.write_text(f"steps: 1\nscenes: [{cat}, {dog}, {cat}]")
    Path("story").mkdir()
    Path("story/same-0-2.png").write_text("mine")
    words = ("generate", "--prompts", script, "--base", tiny, "--out", "story")
    plan = ask(*words, "--dry-run")
    paths = [each["path"] for each in plan["planned"]]
    assert (plan["to_draw"], paths) == (
        2,
        ["story/same-0.png", "story/same-0-3.png", "story/same-0.png"],
    )
    assert [each["path"] for each in ask(*words)["images"]] == paths


def test_every_script_has_a_page_of_its_own(ask: Ask, tiny: str, tmp_path: Path) -> None:
    names = ("日.yaml", "本.yaml", "My Day.yaml", "my-day.yaml", "my-day.yml", "cats/my-day.yml")
    pages: dict[str, str] = {}
    (tmp_path / "cats").mkdir()
    for name in (*names, *names):
        (tmp_path / name).write_text(f"title: {name} <&>\nsteps: 1\nscenes: [a cat]")
        words = ("--prompts", tmp_path / name, "--base", tiny, "--out", "story")
        page = ask("generate", *words)["page"]
        assert pages.setdefault(name, page) == page, "the same one again"
    assert [Path(each).name for each in pages.values()] == [
        "picture.html",
        "picture-2.html",
        "my-day.html",
        "my-day-2.html",
        "my-day-3.html",
        "my-day-4.html",
    ]
    for name, page in pages.items():
        assert f"<h1>{name} &lt;&amp;&gt;</h1>" in Path(page).read_text()


@pytest.mark.parametrize("what", ["fifo", "link", "folder", "large"])
def test_what_is_no_page_is_not_read(run: Run, tiny: str, tmp_path: Path, what: str) -> None:
    (tmp_path / "day.yaml").write_text("steps: 1\nscenes: [a cat]")
    page = Path("story/day.html")
    page.parent.mkdir()
    if what == "fifo":
        os.mkfifo(page)
    elif what == "link":
        page.symlink_to("elsewhere.html")
    elif what == "folder":
        page.mkdir()
    else:
        with page.open("wb") as file:
            file.truncate(1 << 40)
    words = ("--prompts", tmp_path / "day.yaml", "--base", tiny, "--out", "story")
    refused = run("--json", "generate", *words)
    assert error_of(refused)["code"] == "already_exists"
    assert [each.name for each in page.parent.iterdir()] == ["day.html"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--reference-share", "0.5"], "--reference-share is for pictures with a --reference"),
        (["--reference-guidance", "9"], "--reference-guidance is for pictures with a --reference"),
        (
            ["--reference", "rex", "--reference-share", "0", "--reference-guidance", "9"],
            "--reference-guidance is for pictures with a --reference-share above 0",
        ),
        (["--control-scale", "0.3"], "--control-scale is for pictures with a --control"),
        (["--maps", "--point", "0.1,0.1"], "--point is for pictures with a --reference"),
        (["--negative", "snow", "--guidance", "1"], "--negative is for pictures with a --guidance"),
        (["--reference", "rex", "--separate"], "--separate is for prompts with several concepts"),
        (["--reference", "rex", "--leak"], "--leak is for prompts with several concepts"),
        (
            ["--reference", "rex:0", "--reference-share", "0.5"],
            "--reference-share is for pictures with a --reference whose weight is above 0",
        ),
    ],
)
def test_what_is_asked_for_in_vain_is_said(
    rex: Registry, run: Run, words: list[str], line: str
) -> None:
    """Whoever gives it learns so before anything is loaded."""
    found = run("generate", "a dog in the snow", "--dry-run", *words)
    assert (found.exit_code, line in found.stderr) == (0, True), found.output
    assert " is for p" not in run("generate", "a dog in the snow", "--dry-run").stderr


def test_what_a_file_says_itself_is_said(rex: Registry, run: Run) -> None:
    """Options whose place all prompts of a file take; scripts that say no seeds use --seed."""
    words = ("-n", "3", "--steps", "4", "--seed", "9", "--guidance", "3", "--dry-run")
    Path("p.jsonl").write_text('{"prompt": "a dog", "steps": 2, "seeds": [1]}\n')
    told = run("generate", "--prompts", "p.jsonl", *words).stderr
    for option in ("-n", "--steps", "--seed"):
        assert f"{option} is said by every prompt of the file itself" in told
    assert "--guidance is" not in told
    Path("p.yaml").write_text("scenes: [{scene: a, prompt: a dog}]")
    assert "is said by every" not in run("generate", "--prompts", "p.yaml", *words).stderr


@pytest.mark.parametrize(
    ("name", "text", "in_vain"),
    [
        ("p.yaml", "seed: 5\nn: 2\nscenes: [a dog, a cat]", {"--seed", "-n"}),
        ("p.yaml", "seeds: [5, 6]\nscenes: [a dog, a cat]", {"--seed", "-n"}),
        ("p.yaml", "seed: 5\nchoose: one\nscenes: ['a {dog|cat}']", {"--seed"}),
        ("p.yaml", "n: 2\nscenes: [a dog, {prompt: a cat, seed: 5}]", {"-n"}),
        ("p.yaml", "scenes: [a dog, {prompt: a cat, seeds: [5]}]", set[str]()),
        ("p.csv", "prompt,scene,seeds\na dog,one,5\n", {"--seed", "-n"}),
    ],
)
def test_seeds_that_scenes_say_themselves_are_said(
    rex: Registry, run: Run, name: str, text: str, in_vain: set[str]
) -> None:
    Path(name).write_text(text)
    told = run("generate", "--prompts", name, "--seed", "9", "-n", "4", "--dry-run").stderr
    said = {option for option in ("--seed", "-n") if f"{option} is said by every" in told}
    assert said == in_vain, told


@pytest.mark.parametrize(
    ("words", "is_in_vain"),
    [
        (("--reference", "rex"), False),
        (("--reference", "rex", "--reference-share", "0"), True),
        (("--previous-frame", "0"), True),
        ((), False),
    ],
)
def test_guidance_of_frames_in_vain_is_said(
    rex: Registry, run: Run, words: tuple[str, ...], is_in_vain: bool
) -> None:
    Path("walk.txt").write_text("a dog\na dog asleep\n")
    more = ("--animate", "--reference-guidance", "9", "--dry-run")
    told = run("generate", "--prompts", "walk.txt", *more, *words).stderr
    assert ("--reference-guidance is for" in told) == is_in_vain, told


def test_with_leaks_all_frames_are_to_draw(ask: Ask, tiny: str) -> None:
    Path("walk.txt").write_text("a dog\na dog asleep\n")
    words = ("generate", "--prompts", "walk.txt", "--animate", "--base", tiny, "--seed", "7")
    words = (*words, "--steps", "1")
    ask(*words)
    assert ask(*words, "--dry-run")["to_draw"] == 0
    assert ask(*words, "--leak", "--dry-run")["to_draw"] == 2
    assert all(each["is_new"] for each in ask(*words, "--leak")["images"])


def test_a_scene_is_drawn_again_when_its_concept_is_of_another_kind(
    ask: Ask, rex: Registry, tiny: str
) -> None:
    Path("day.yaml").write_text("scenes: [{scene: a, prompt: a dog, reference: rex}]")
    words = ("generate", "--prompts", "day.yaml", "--base", tiny, "--steps", "1")
    assert [ask(*words)["images"][0]["is_new"] for _ in range(2)] == [True, False]
    rex.edit("rex", category="cat")
    assert ask(*words, "--dry-run")["to_draw"] == 1
    assert ask(*words)["images"][0]["is_new"]


def test_a_dry_run_refuses_frames_that_would_be_jpegs(rex: Registry, run: Run) -> None:
    words = ("--animate", "--prompts", "walk.txt", "--format", "jpg")
    Path("walk.txt").write_text("a dog\na dog asleep\n")
    found = run("generate", *words, "--dry-run")
    assert (found.exit_code, "JPEG loses" in found.stderr) == (2, True), found.output


def test_a_file_says_what_to_begin_with_and_the_command_how(rex: Registry, run: Run) -> None:
    draw_file(Path("dog.png"))
    Path("p.jsonl").write_text('{"prompt": "a dog", "init": "dog.png"}\n{"prompt": "a cat"}\n')
    words = ("--prompts", "p.jsonl", "--strength", "0.4", "--dry-run")
    assert run("generate", *words).exit_code == 0
    Path("p.jsonl").write_text('{"prompt": "a dog"}')
    assert "--strength is for a picture to begin with" in run("generate", *words).stderr


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"prompt": "<nobody>"}, 'no concept is named "nobody"'),
        ({"reference": "nobody"}, 'no concept is named "nobody"'),
        ({"prompt": "<rex>"}, "rex has not been trained"),
        ({"layout": "cat=0,0,.5,1"}, "the layout has a box for 'cat'"),
        ({"layout": {"dog": [0, 0, 2, 1]}}, "0,0,2,1 is no box for 'dog'"),
        ({"layout_control": True}, "there are none"),
        ({"negative": "<rex>"}, "a negative prompt names no concept"),
        ({"control": "wide.png:nix"}, 'has no ControlNet "nix"'),
        ({"control": "wide.png", "size": "64"}, "another shape"),
        ({"init": "wide.png", "size": "64"}, "another shape"),
        ({"init": "wide.png", "strength": 0.001}, "strength"),
        ({"prompt": "a dog " * 200}, "the text encoder reads 75"),
        ({"prompt": "a <rex:9>"}, "a strength lies between"),
        ({"prompt": "a <rex"}, 'a ">" is missing'),
        ({"control": "wide.png"}, "another shape than the 128x128"),
        ({"init": "bad.png"}, "bad.png is not a photo"),
        ({"control": "bad.png"}, "bad.png is not a photo"),
        ({"init": "wide.png", "inpaint": "black.png"}, "black all over"),
        ({"size": "128x"}, "size"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["", "dry"])
def test_what_is_wrong_in_a_file_is_said_with_its_place(
    rex: Registry, run: Run, entry: dict[str, object], text: str, more: list[str]
) -> None:
    if more and "the text encoder" in text:
        pytest.skip("only a base model that is loaded knows its tokens")
    draw_file(Path("wide.png"), size=(96, 48))
    Image.new("L", (96, 48)).save("black.png")
    Path("bad.png").write_text("no picture")
    entries = [{"prompt": "a dog"}, {"prompt": "a dog", **entry}]
    Path("p.jsonl").write_text("\n".join(json.dumps(each) for each in entries))
    found = run("--json", "generate", "--prompts", "p.jsonl", "--steps", "2", *more)
    assert found.exit_code in (2, 3), found.output
    message = error_of(found)["message"]
    assert message.startswith("p.jsonl, line 2: "), message
    assert message.count("line 2") == 1
    assert text in message


def test_a_dry_run_refuses_a_box_of_what_the_prompt_does_not_name(rex: Registry, run: Run) -> None:
    found = run("generate", "a dog in snow", "--layout", "cat=0,0,1,1", "--dry-run")
    assert (found.exit_code, "which the prompt does not name" in found.stderr) == (2, True)
    assert run("generate", "a dog in snow", "--layout", "Dog=0,0,1,1", "--dry-run").exit_code == 0

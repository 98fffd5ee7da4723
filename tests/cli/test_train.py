"""`concept train`, and `concept generate` with what came of it."""

import json
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conceptry.generation.provenance import read_metadata
from conceptry.registry import Registry
from drawing import draw_folder, draw_masks
from forked import Forked
from long import quick_for
from PIL import Image
from program import Ask, Run, error_of, wait_until
from tiny_base import write_tiny_base

SHORT = ["--set", "augmentation.crops=2"]
SHORT += [word for i in (1, 2, 3) for word in ("--set", f"stage{i}.steps=2")]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_base(tmp_path_factory.mktemp("bases") / "tiny"))


def test_from_photos_to_pictures(rex: Registry, run: Run, ask: Ask, tiny: str) -> None:
    result = run("train", "rex", "--base", tiny, *SHORT)
    assert (result.exit_code, result.stdout) == (0, "rex@1\n")
    assert 'next: concept generate "a photo of <rex>"' in result.stderr
    drawn = ask("generate", "a photo of <rex>", "--base", tiny, "-n", "1", "--steps", "2")
    (picture,) = drawn["images"]
    told: Any = read_metadata(Path(picture["path"]))
    assert [(each["concept"], each["version"]) for each in told["versions"]] == [("rex", 1)]
    lineage = rex.trace(picture["sha256"])
    assert [source.concept for source in lineage.sources] == ["rex"]


def test_one_that_fails_does_not_stop_the_rest(rex: Registry, run: Run, tiny: str) -> None:
    rex.add("mia", [draw_folder(Path("cats"), 2)], category="cat", tags=["pets"])
    rex.edit("mia", remove_images=[image.sha256 for image in rex.show("mia").images])
    result = run("--json", "train", "--all", "--tag", "pets", "--base", tiny, *SHORT)
    document = json.loads(result.stdout)
    assert result.exit_code == 2
    assert [done["concept"] for done in document["runs"]] == ["rex"]
    assert [(each["concept"], each["code"]) for each in document["failed"]] == [
        ("mia", "invalid_input")
    ]


@pytest.mark.long
def test_concepts_are_taught_in_one_batch_and_meet(
    rex: Registry, ask: Ask, run: Run, tiny: str
) -> None:
    """By a method that keeps the base model; by another one they are taught one after another."""
    rex.add("mia", [draw_folder(Path("cats"), 1)], category="cat")
    words = ["--base", tiny, "--set", "augmentation.crops=2", "--set", "embedding.steps=2"]
    done = ask("train", "rex", "mia", "--method", "sefi", *words)["runs"]
    assert [(each["concept"], each["together"]) for each in done] == [("rex", 2), ("mia", 2)]
    done = ask("train", "rex", "mia", "--method", "sefi", *words, "--together", "1")["runs"]
    assert [(each["version"], each["together"]) for each in done] == [(2, 1), (2, 1)]
    drawn = ask("generate", "<rex> and <mia>", "--base", tiny, "-n", "1", "--leak", "--separate")
    (picture,) = drawn["images"]
    assert [(leak["of"], leak["on"]) for leak in picture["leaks"]] == [
        ("rex", "mia"),
        ("mia", "rex"),
    ]
    told: Any = read_metadata(Path(picture["path"]))
    assert told["settings"]["separate"] is True
    result = run("generate", "<rex> and <mia>", "--base", tiny, "-n", "1", "--leak")
    assert "of the attention to rex falls on mia" in result.stderr
    done = ask(
        "train",
        "rex",
        "mia",
        "--method",
        "dreambooth",
        *words[:4],
        "--set",
        "unet.steps=1",
        "--set",
        "prior.num_images=1",
    )["runs"]
    assert [each["together"] for each in done] == [1, 1]


@pytest.mark.long
def test_previews_are_kept_until_the_concept_goes(
    rex: Registry, ask: Ask, run: Run, tiny: str
) -> None:
    (done,) = ask("train", "rex", "--base", tiny, *SHORT, "--preview-every", "1")["runs"]
    with Image.open(done["previews"]) as sheet:
        assert sheet.width == 4 * (128 + 8) + 8
        assert sheet.height > 6 * 128  # two steps of three stages
    ask("gc", "--grace", "0")
    assert Path(done["previews"]).exists()
    assert (
        ask("train", "rex", "--base", tiny, *SHORT, "--preview-every", "0")["runs"][0]["previews"]
        is None
    )
    ask("rm", "rex", "--yes")
    assert ask("gc", "--grace", "0")["temporary"] == 1
    assert not Path(done["previews"]).parent.exists()


@pytest.mark.long
def test_losses_are_written_for_tensorboard(
    rex: Registry, ask: Ask, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[str, int]] = []

    class Writer:
        def __init__(self, log_dir: str) -> None:
            assert log_dir == "events/rex"

        def add_scalar(self, name: str, value: float, step: int) -> None:
            assert value > 0
            written.append((name, step))

        def close(self) -> None:
            written.append(("closed", 0))

    module: Any = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    ask("train", "rex", "--base", tiny, *SHORT, "--tensorboard", "events")
    assert ("stage1/diffusion", 1) in written
    assert ("stage3/steps per second", 2) in written
    assert written[-1] == ("closed", 0)


def test_tensorboard_that_is_not_installed_is_told(
    rex: Registry, run: Run, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    result = run("train", "rex", "--base", tiny, *SHORT, "--tensorboard", "events")
    assert result.exit_code == 2
    assert "pip install tensorboard" in result.stderr
    assert not rex.show("rex").runs


@pytest.mark.parametrize(
    ("words", "exit_code", "text"),
    [
        ([], 2, "name concepts, or ask for all"),
        (["rex", "--all"], 2, "name concepts, or ask for all"),
        (["rex", "--tag", "pets"], 2, "--tag goes with --all"),
        (["--all", "--tag", "cars"], 2, "no concept fits"),
        (["rexx"], 3, "did you mean rex?"),
        (["rex", "--method", "dreamboth"], 3, "did you mean dreambooth"),
        (["rex", "--preset", "papre"], 3, "there are paper"),
        (["rex", "--set", "stage3.stepz=1"], 2, "did you mean stage3.steps?"),
        (["rex", "--set", "stage3.steps"], 2, "--set NAME=VALUE"),
        (["rex", "--set", "stage3.learning_rate=fast"], 2, "expected a number"),
        (["rex", "--base", "sd12"], 3, "no base model"),
        (["rex", "--resume"], 3, "concept train rex"),
    ],
)
def test_wrong_words_are_told_before_anything_is_loaded(
    words: list[str], exit_code: int, text: str, rex: Registry, run: Run
) -> None:
    result = run("train", *words)
    assert result.exit_code == exit_code
    assert text in result.stderr
    assert "loading" not in result.stderr
    assert not rex.show("rex").runs


def test_a_concept_in_a_prompt_has_to_be_trained(rex: Registry, run: Run) -> None:
    for prompt, exit_code, text in (
        ("a photo of <rex>", 3, "concept train rex"),
        ("a photo of <rexx>", 3, "did you mean rex?"),
        ("a photo of <rex@>", 2, "names no concept"),
        ("a photo of <Rex>", 2, "names no concept"),
        ("", 2, "the prompt is empty"),
    ):
        result = run("generate", prompt)
        assert (result.exit_code, text in result.stderr) == (exit_code, True), prompt


def test_a_concept_beyond_the_text_encoders_limit_is_told(
    rex: Registry, run: Run, tiny: str
) -> None:
    run("train", "rex", "--base", tiny, *SHORT)
    result = run("--json", "generate", "cat " * 74 + "<rex>", "--base", tiny)
    assert result.exit_code == 2
    assert "the prompt has 76 tokens; the text encoder reads 75" in error_of(result)["message"]


TELLS_OF_A_STEP = """
from pathlib import Path
from conceptry.training import loop
step = loop._Loop._step
def told(self, number):
    step(self, number)
    Path("in a step").touch()
loop._Loop._step = told
"""


@pytest.mark.long
def test_row_54_a_dry_run_tells_what_is_kept_and_not_used(
    rex: Registry, run: Run, tiny: str
) -> None:
    line = ("train", "rex", "--base", tiny, "--dry-run", *SHORT)
    captions, masks = ("--set", "captions.share=0.5"), ("--set", "mask.use=stored")
    assert "not used without" not in run(*line).stderr
    (image, *_) = rex.show("rex").images
    rex.edit("rex", captions={image.sha256: "a dog on a sofa"})
    assert "rex has captions: not used without --set captions.share=0.5\n" in run(*line).stderr
    photo = draw_folder(Path("masked"), 1, seed=7)
    rex.add("rex", [photo], masks=draw_masks(Path("masks"), 1))
    told = run(*line)
    assert told.exit_code == 0
    both = "--set captions.share=0.5 --set mask.use=stored"
    assert f"rex has captions and masks: not used without {both}\n" in told.stderr
    told = run(*line, *captions)
    assert "rex has masks: not used without --set mask.use=stored\n" in told.stderr
    assert "not used without" not in run(*line, *captions, *masks).stderr


def test_a_dry_run_of_what_takes_no_step(rex: Registry, run: Run, tiny: str) -> None:
    line = ("train", "rex", "--base", tiny, "--method", "dreamtuner", "--preset", "instant")
    result = run(*line, "--set", "reference.encoder_strength=0", "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert not rex.show("rex").versions


@pytest.mark.parametrize("dry", quick_for(1, [False, True]))
def test_what_is_asked_for_and_not_there_is_told(
    dry: bool, rex: Registry, run: Run, tiny: str
) -> None:
    words = ("--set", "captions.share=0.5", "--set", "mask.use=stored")
    line = ("train", "rex", "--base", tiny, *SHORT, *words, *(["--dry-run"] if dry else []))
    told = run(*line)
    assert told.exit_code == 0
    assert "rex has no masks: mask.use=stored changes nothing (concept mask rex" in told.stderr
    assert "rex has no captions: captions.share changes nothing (concept caption" in told.stderr


def interrupted(*words: str) -> str:
    """What a command says that Ctrl-C stops while it teaches: its document, or else its notes.

    It has to end with the exit code of an interruption.
    """
    with Forked(*words, prelude=TELLS_OF_A_STEP) as process:
        wait_until(Path("in a step").exists, process)
        process.send_signal(signal.SIGINT)
        document, notes = process.communicate()
    assert process.returncode == 130, notes
    return document or notes


def test_ctrl_c_saves_and_the_training_goes_on(rex: Registry, run: Run, tiny: str) -> None:
    many = [*SHORT, "--set", "stage3.steps=2000"]
    told = interrupted("train", "rex", "--base", tiny, *many)
    assert "-> concept train rex --resume" in told
    (stopped_run,) = rex.show("rex").runs
    assert stopped_run.status == "interrupted"
    folder = rex.run_folder(stopped_run.run)
    assert (folder / "resume.safetensors").exists()
    anew = run("train", "rex", "--base", tiny, "--dry-run", *SHORT)
    assert "did not end" not in anew.stderr, "a dry run replaces nothing"
    stopped = run("train", "rex", "--base", tiny, "--resume", "--set", "stage3.steps=1")
    assert stopped.exit_code == 2
    assert "--resume keeps the settings it began with" in stopped.stderr
    assert run("train", "rex", "--base", tiny, "--resume", "--seed", "1").exit_code == 2


@pytest.mark.long
def test_ctrl_c_in_a_queue_tells_who_was_not_begun(rex: Registry, run: Run, tiny: str) -> None:
    for name in ("mia", "leo"):
        rex.add(name, [draw_folder(Path(name), 1)], category="cat")
    words = ["--json", "train", "rex", "mia", "leo", "--base", tiny, *SHORT]
    words += ["--preview-every", "0", "--keep-every", "500", "--offline"]
    told = interrupted(*words, "--set", "stage3.steps=2000", "--seed", "7")
    failed = {each["concept"]: each for each in json.loads(told)["failed"]}
    beside = " --preview-every 0 --keep-every 500 --offline"
    assert failed["rex"]["hint"] == f"concept train rex --resume{beside}"
    assert failed["mia"]["hint"].endswith(beside)
    assert failed["mia"] == failed["leo"] | {"concept": "mia"}
    assert failed["mia"]["message"] == "mia, leo: not begun"
    assert failed["mia"]["hint"].startswith(f"concept train mia leo --base {tiny} --method")
    assert "--seed 7" in failed["mia"]["hint"]
    anew = run("train", "rex", "--base", tiny, *SHORT)
    assert "rex has a training that did not end; this one replaces it" in anew.stderr


def test_a_step_that_never_comes_is_told_before(rex: Registry, run: Run, tiny: str) -> None:
    for option in ("--eval-every", "--keep-every"):
        result = run("train", "rex", "--base", tiny, *SHORT, option, "2")
        assert result.exit_code == 2
        assert f"stage3 has 2 steps: none to keep every 2 -> {option} 1" in result.stderr
    assert not rex.show("rex").runs


def test_a_step_that_never_comes_again_is_told_before(rex: Registry, run: Run, tiny: str) -> None:
    config = {"stage2": {"steps": 9}, "stage3": {"steps": 5}}
    rex.begin_run(
        "rex",
        method="attndreambooth",
        config=config,
        base=tiny,
        base_sha256="0" * 64,
        seed=0,
        packages={},
    )
    result = run("train", "rex", "--resume", "--keep-every", "5")
    assert result.exit_code == 2
    assert "stage3 has 5 steps: none to keep every 5 -> --keep-every 1" in result.stderr
    assert "loading" not in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rex", "--together", "2"], "attndreambooth changes the base model: --together is for"),
        (
            ["rex", "--method", "sefi", "--together", "2", "--set", "augmentation.buckets=true"],
            "--together is without augmentation.buckets",
        ),
        (
            ["rex", "--method", "dreamtuner", "--preset", "instant", "--preview-every", "5"],
            "nothing to show -> leave --preview-every out",
        ),
        (["rex", "--eval-every", "1", "--suite", "nobody"], "nobody"),
        (["rex", "--set", "optimizer=came"], "optimizer=came needs the package"),
        (["bare"], "bare has no photos -> concept add bare PHOTO…"),
    ],
    ids=str,
)
def test_what_cannot_be_is_told_before_the_base_model_is_loaded(
    rex: Registry, run: Run, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    rex.add("bare", [draw_folder(Path("bare"), 1)], category="dog")
    rex.edit("bare", remove_images=[rex.show("bare").images[0].sha256])
    monkeypatch.setattr("conceptry.training.packages.find_spec", lambda _: None)
    result = run("train", *words)
    assert result.exit_code in (2, 3)
    assert message in result.stderr
    assert "loading" not in result.stderr
    assert not rex.show("rex").runs


@pytest.mark.long
def test_a_training_goes_on_with_the_base_it_began_with(rex: Registry, run: Run, tiny: str) -> None:
    rex.add("mia", [draw_folder(Path("cats"), 1)], category="cat")
    begun = run("train", "rex", "--base", tiny, *SHORT)
    assert begun.exit_code == 0
    (done,) = rex.show("rex").runs
    rex.begin_run(
        "rex",
        method=done.method,
        config=done.config,
        base=done.base,
        base_sha256=done.base_sha256,
        seed=done.seed,
        packages={},
    )
    resumed = run("train", "--all", "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    assert resumed.stdout == "rex@2\n"
    assert "nothing was saved of rex: it begins again" in resumed.stderr
    assert run("train", "--all", "--resume").exit_code == 2


@pytest.mark.long
def test_what_is_kept_is_scored_and_the_best_is_marked(
    rex: Registry, run: Run, ask: Ask, tiny: str
) -> None:
    Path("one.txt").write_text("a photo of a {}")
    words = ("--base", tiny, "--suite", "one.txt", "--clip", "miniature", "--dino", "none")
    done = run("train", "rex", *SHORT, *words, "--eval-every", "1")
    assert done.exit_code == 0, done.output
    assert "stage3-000001: clip_t" in done.stderr
    (best,) = [version.number for version in rex.show("rex").versions if version.aliases]
    assert f"best of rex is version {best}" in done.stderr
    document = ask("eval", "rex", "--all-checkpoints", *words, "--steps", "1")
    assert len(document["results"]) == 2
    assert [each["concept"] for each in document["best"]] == ["rex"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stop-early"], "needs scores"),
        (["--eval-every", "50", "--stop-early"], "needs 3 scored checkpoints before the end"),
        (["--keep-every", "2", "--eval-every", "2"], "keeps what it scores"),
        (["--suite", "objects"], "are for scores"),
        (["--dino", "none", "--keep-every", "2"], "are for scores"),
        (["--dry-run", "--resume"], "a whole training in one process"),
        (["--dry-run", "--processes", "2"], "a whole training in one process"),
    ],
    ids=str,
)
def test_words_about_checkpoints_have_to_make_sense(
    rex: Registry, run: Run, words: list[str], message: str
) -> None:
    done = run("--json", "train", "rex", *words)
    assert done.exit_code == 2
    assert message in error_of(done)["message"]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["rex", "--photo", "9"], 3, "rex has no photo '9'"),
        (["rex", "mia", "--photo", "1"], 2, "--photo is for one concept"),
        (["--all", "--photo", "1"], 2, "--photo is for one concept"),
        (["rex", "--resume", "--photo", "1"], 2, "--resume keeps the settings"),
        (["rex", "--preset", "instant", "--keep-every", "5"], 2, "instant has 0 steps"),
    ],
    ids=str,
)
def test_photos_and_steps_that_do_not_fit(
    run: Run, photos: Path, words: list[str], status: int, message: str
) -> None:
    run("add", "rex", str(photos), "--category", "dog")
    run("add", "mia", str(photos), "--category", "cat")
    done = run("train", *words, "--method", "dreamtuner")
    assert message in done.stderr
    assert done.exit_code == status


def test_what_comes_next_names_the_new_version_where_another_is_the_best(
    rex: Registry, run: Run, tiny: str
) -> None:
    words = ("train", "rex", "--base", tiny, "--method", "dreamtuner", "--preset", "instant")
    assert 'next: concept generate "a photo of <rex>"' in run(*words).stderr
    rex.set_alias("rex", 1, "best")
    said = run(*words).stderr
    assert "<rex> is rex@1, the best so far" in said
    assert 'next: concept generate "a photo of <rex@2>"' in said


def test_notes_are_on_the_photos_that_are_learned(rex: Registry, run: Run, tiny: str) -> None:
    words = ("train", "rex", "--base", tiny, "--method", "dreamtuner", "--preset", "instant")
    said = run(*words, "--set", "reference.photos=2").stderr
    assert "holds no more" not in said
    said = run(*words, "--set", "reference.photos=2", "--photo", "1").stderr
    assert "rex has 1 photo: reference.photos=2 holds no more" in said

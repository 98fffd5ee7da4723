"""`concept export` in the formats of other tools."""

import json
import os
import stat
from pathlib import Path

import pytest
from conceptry.models.backbone import Backbone
from conceptry.models.loading import load_base
from conceptry.registry import Registry
from drawing import draw_file
from exported import Taught
from program import Ask, Run
from safetensors import SafetensorError
from tiny_base import write_tiny_base


@pytest.fixture
def taught(rex: Registry, tmp_path: Path) -> Taught:
    """rex@1 is a word, rex@2 a LoRA, rex@3 whole differences."""
    made = Taught(rex, load_base(str(write_tiny_base(tmp_path / "tiny"))), tmp_path)
    made.add(made.vectors(2))
    made.add(made.vectors(2) | made.factors())
    made.add(made.vectors(2) | made.deltas())
    return made


def test_a_version_is_chosen(taught: Taught, run: Run) -> None:
    result = run("export", "rex@2", "dog.safetensors", "--format", "lora-kohya")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "wrote rex@2 as weights to dog.safetensors",
        "wrote rex@2 as embedding to dog-embedding.safetensors",
        "in prompts: dog-embedding dog",
    ]
    taught.registry.set_alias("rex", 1, "best")
    result = run("export", "rex", "word.safetensors", "--format", "embedding")
    assert result.stdout.splitlines() == [
        "wrote rex@1 as embedding to word.safetensors",
        "in prompts: word dog",
    ]


def test_what_is_lost_is_said(taught: Taught, run: Run) -> None:
    result = run("export", "rex", "dog.safetensors", "--format", "svd:4")
    assert "of the change of weights" in result.stdout.splitlines()[2]


def test_what_does_not_fit_names_what_does(taught: Taught, run: Run) -> None:
    result = run("export", "rex", "dog.safetensors", "--format", "lora-kohya")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: rex@3 has whole differences of weights, which a LoRA cannot hold -> concept export "
        "rex@3 dog.safetensors --format diff (without loss) or svd:64 (a LoRA, with loss)\n"
    )
    assert not list(Path().glob("dog*"))


WRONG = {
    "unknown": (["rex", "a.safetensors", "--format", "onnx"], 'no format "onnx"'),
    "several": (
        ["rex", "mia", "a.safetensors", "--format", "embedding"],
        "embedding holds one concept",
    ),
    "no file": (["rex", "--format", "diff"], "name the concepts and then the file"),
    "a bundle in half": (["rex", "a.concept", "--half"], "a bundle takes no --base, --half"),
    "half of a LoRA": (["rex@2", "a.safetensors", "--format", "diff", "--half"], "--half is for"),
    "no version": (["rex@9", "a.safetensors", "--format", "diff"], "rex has no version 9"),
    "no concept": (["rxe", "a.safetensors", "--format", "diff"], 'no concept is named "rxe"'),
    "no base": (
        ["rex", "a.safetensors", "--format", "checkpoint", "--base", ""],
        'there is no base model ""',
    ),
    "another base": (
        ["rex", "a.safetensors", "--format", "checkpoint", "--base", "minature"],
        "did you mean miniature",
    ),
    "no thumbnail": (
        ["rex", "a.safetensors", "--format", "diff", "--thumbnail", "none.png"],
        "none.png",
    ),
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_usage_is_one_line(taught: Taught, run: Run, words: str) -> None:
    arguments, message = WRONG[words]
    result = run("export", *arguments)
    assert result.exit_code in (2, 3)
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(Path().glob("a.*"))


@pytest.mark.parametrize(
    "words", [["rex@2"], ["rex@2", "--force", "--half"], ["rex@2", "mia"]], ids=" ".join
)
def test_a_place_that_is_taken_is_told_before_weights_are_read(
    taught: Taught, run: Run, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    read = "conceptry.adapters.formats.exporting.read_adapter"
    monkeypatch.setattr(read, lambda _: pytest.fail("it was read"))
    taught.registry.add("mia", [draw_file(Path("mia.png"), 9)], category="dog")
    taught.add(taught.vectors(2), to="mia")
    (Path("out") / "mine.txt").parent.mkdir()
    Path("out/mine.txt").touch()
    names = [each for each in words if not each.startswith("--")]
    options = [each for each in words if each.startswith("--")]
    result = run("export", *names, "out", "--format", "diffusers", *options)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: out ")
    assert [each.name for each in Path("out").iterdir()] == ["mine.txt"]


def test_an_untrained_concept_is_refused(rex: Registry, run: Run) -> None:
    result = run("export", "rex", "a.safetensors", "--format", "diff")
    assert (result.exit_code, result.stderr) == (
        3,
        "error: rex has not been trained -> concept train rex\n",
    )


def test_the_document(taught: Taught, ask: Ask) -> None:
    done = ask("export", "rex@2", "dog.safetensors", "--format", "lora-diffusers")
    assert json.dumps(done["kept"]) == "null"
    assert [each["holds"] for each in done["files"]] == ["weights", "embedding"]
    assert done["trigger"] == "dog-embedding dog"


def test_what_is_no_file_is_not_replaced(rex: Registry, run: Run) -> None:
    os.mkfifo("pipe.concept")
    found = run("export", "rex", "pipe.concept", "--force")
    assert (found.exit_code, "nothing takes its place" in found.stderr) == (2, True)
    assert stat.S_ISFIFO(Path("pipe.concept").stat().st_mode)


def test_a_bundle_is_not_called_as_other_files_are(rex: Registry, run: Run) -> None:
    found = run("export", "rex", "rex.safetensors")
    assert (found.exit_code, "concept export rex rex.concept" in found.stderr) == (2, True)
    assert not Path("rex.safetensors").exists()


def test_a_full_disk_is_no_bug(taught: Taught, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: File too large (os error 27)")

    monkeypatch.setattr(Backbone, "save", full)
    found = run("export", "rex@3", "whole", "--format", "diffusers")
    assert (found.exit_code, "File too large" in found.stderr) == (4, True), found.output
    assert not list(Path().glob("whole*"))

"""One file is enough: a toy method and a toy base family, which the product knows nothing of.

And what `docs/extending.md` says can be followed: its files and changes, in a copy of the program.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import conceptry.methods
import pytest
from conceptry.generation import generate
from conceptry.generation.request import Request
from conceptry.methods.method import all_methods, resolve_settings
from conceptry.models import loading
from conceptry.models.loading import LoadedBase, backbone_of
from conceptry.registry import Registry
from conceptry.training import train
from conceptry.training.callbacks import Hooks, StepReport
from docs_pages import Block, blocks
from drawing import draw_folder
from forked import Forked
from program import ROOT, invoke
from test_floors import FLOORS
from tiny_base import write_tiny_base
from tiny_fixtures import _one_base, base
from toy_family import RenamedPipeline, ToyFamily

__all__ = ["_one_base", "base"]


@pytest.fixture
def _toy_method(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    toys = str(ROOT / "tests/toys/methods")
    monkeypatch.setattr(conceptry.methods, "__path__", [*conceptry.methods.__path__, toys])
    all_methods.cache_clear()
    yield
    all_methods.cache_clear()


@pytest.fixture
def rex(registry: Registry, tmp_path: Path) -> Registry:
    registry.add("rex", [draw_folder(tmp_path / "photos", 2)], category="dog")
    return registry


@pytest.mark.usefixtures("_toy_method")
def test_a_method_is_a_module_and_a_preset(rex: Registry, base: LoadedBase) -> None:
    assert "frozen-word" in invoke("methods").stdout
    settings = resolve_settings(all_methods()["frozen-word"], base="tiny")
    assert settings.stages()["word"].steps == 2
    done = train(rex, "rex", base, method="frozen-word", overrides=["augmentation.crops=1"])
    assert (done.method, done.version) == ("frozen-word", 1)
    request = Request(prompt="a photo of <rex>", seeds=[1])
    (picture,) = generate(rex, base, [request], Path("drawn"))
    assert picture.path.exists()


@pytest.mark.usefixtures("_toy_method")
def test_a_loss_on_attention_is_a_class_of_its_method(rex: Registry, base: LoadedBase) -> None:
    """Beside others, each of which sees the columns that it asked for."""
    few = ["augmentation.crops=1", "word.mean_weight=1", "loss.subject_wise=0.1"]
    told: list[dict[str, float]] = []
    for weight in (0.1, 0.2):
        reports: list[StepReport] = []
        words = [*few, f"focus={weight}"]
        hooks = Hooks(on_step=reports.append)
        train(rex, "rex", base, method="focused-word", overrides=words, hooks=hooks)
        told.append(reports[0].losses)
    once, twice = told
    assert list(once) == ["diffusion", "attention", "subject-wise", "focus"]
    assert twice.pop("focus") == pytest.approx(2 * once.pop("focus"), rel=1e-5)
    assert twice == pytest.approx(once, rel=1e-5)


def test_a_base_family_is_a_file(
    rex: Registry, base: LoadedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "FAMILIES", (*loading.FAMILIES, ToyFamily))
    toy = LoadedBase(base.base, backbone_of(RenamedPipeline(base.backbone.pipeline)), base.sha256)
    assert toy.backbone.family == "toy"
    for method in ("attndreambooth", "sefi"):
        short = [f"{name}.steps=1" for name in all_methods()[method].settings().stages()]
        train(rex, "rex", toy, method=method, overrides=["augmentation.crops=1", *short])
    request = Request(prompt="a photo of <rex@1>", seeds=[1])
    (ours,) = generate(rex, toy, [request], Path("toy"), with_maps=True)
    (theirs,) = generate(rex, base, [request], Path("sd"), with_maps=True)
    assert ours.image.tobytes() == theirs.image.tobytes()
    shutil.rmtree("toy")


# --- following the page ---------------------------------------------------------------------------


def follow(block: Block, folder: Path) -> None:
    """Put a file where a block says, or change the one that is there."""
    path = folder / block.title
    if block.language != "diff":
        assert not path.exists()
        path.write_text(block.text)
        return
    text = path.read_text(encoding="utf-8")
    for hunk in block.text.split("@@\n"):
        lines = [line.partition("\n")[0] or " " for line in hunk.splitlines(keepends=True)]
        before = "".join(f"{line[1:]}\n" for line in lines if line[0] in " -")
        after = "".join(f"{line[1:]}\n" for line in lines if line[0] in " +")
        assert text.count(before) == 1, f"{block.title} has no longer, or more than once:\n{before}"
        text = text.replace(before, after)
    path.write_text(text, encoding="utf-8")


@pytest.mark.long
def test_what_the_page_says_can_be_followed(
    rex: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy" / "conceptry"
    for package in FLOORS:
        shutil.copytree(
            ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    page = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    shown = [each for each in blocks(page) if each.title]
    followed = [each for each in shown if not each.title.startswith("tests/")]
    assert len(shown) - len(followed) == 3
    assert len(followed) == 7
    for block in followed:
        follow(block, copy)
    monkeypatch.setenv("CONCEPT_REGISTRY", str(rex.location.database))
    base = write_tiny_base(tmp_path / "tiny")
    Path("mine.txt").write_text("a photo of a {}\n")

    def ask(*words: str) -> dict[str, object]:
        prelude = f"import sys; sys.path.insert(0, {str(copy.parent)!r})"
        with Forked("--json", *words, prelude=prelude) as process:
            out, err = process.communicate()
        assert process.returncode == 0, f"{out}{err}"
        return json.loads(out)

    assert ask("tags") == {"tags": []}
    rex.edit("rex", tag=["pets"])
    assert ask("tags") == {"tags": [{"tag": "pets", "concepts": 1}]}

    short = [word for i in (1, 2, 3) for word in ("--set", f"stage{i}.steps=1")]
    ask("train", "rex", "--base", str(base), "--set", "loss.overshadow=1000", *short)
    (run,) = rex.show("rex").runs
    assert "overshadow" in {name for _, _, name, _ in rex.metrics(run.run)}

    words = ("--suite", "mine.txt", "--clip", "miniature", "--dino", "none", "--steps", "1")
    (scored,) = ask("eval", "rex", *words)["results"]  # pyright: ignore[reportGeneralTypeIssues]
    assert 0 < scored["scores"]["coverage"]["mean"] < 1

"""A queue of trainings: who shares a batch, what fails alone, and what a stop leaves."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from conceptry.cli.errors import ExitCode, explain
from conceptry.evaluation import CheckpointChooser
from conceptry.models.loading import LoadedBase
from conceptry.registry import Registry
from conceptry.registry.errors import InvalidInput, NotFound, TrainingFailed, TrainingInterrupted
from conceptry.registry.records import Concept
from conceptry.training import Hooks, Outcome, train_queue
from conceptry.training.callbacks import StepReport, ignore
from drawing import draw_folder

SHORT = ("augmentation.crops=2", *(f"stage{i}.steps=2" for i in (1, 2, 3)))
EMBEDDING = ("augmentation.crops=2", "embedding.steps=2")


@pytest.fixture
def three(rex: Registry, tmp_path: Path) -> Registry:
    for name in ("mia", "leo"):
        rex.add(name, [draw_folder(tmp_path / name, 1)], category="cat")
    return rex


def told(outcomes: list[Outcome]) -> dict[str, int | str]:
    """The version or the error of each concept."""
    return {
        each.name: each.trained.version if each.trained else type(each.error).__name__
        for each in outcomes
    }


def test_a_method_that_keeps_the_base_shares_batches(three: Registry, base: LoadedBase) -> None:
    batches: list[list[str]] = []
    found = list(
        train_queue(
            three,
            ["rex", "mia", "leo"],
            base,
            method="textual-inversion",
            overrides=EMBEDDING,
            together=2,
            on_batch=lambda batch: batches.append([each.name for each in batch]),
        )
    )
    assert batches == [["rex", "mia"], ["leo"]]
    assert [told(each) for each in found] == [{"rex": 1, "mia": 1}, {"leo": 1}]


def test_what_fails_stops_no_other(three: Registry, base: LoadedBase, tmp_path: Path) -> None:
    """Taught by somebody else, by its hooks, or removed since the queue began."""
    three.add("kim", [draw_folder(tmp_path / "kim", 1)], category="dog")
    ids = {three.show(name).id: name for name in ("rex", "mia", "leo", "kim")}

    def hooks(concept: int) -> Hooks:
        if ids[concept] == "rex":
            raise InvalidInput("nobody can watch this one")
        return Hooks()

    def remove_leo(batch: Sequence[Concept]) -> None:
        if [each.name for each in batch] == ["mia"]:
            three.remove(["leo"])

    queue = train_queue(
        three,
        ["rex", "kim", "mia", "leo"],
        base,
        overrides=SHORT,
        hooks=hooks,
        on_batch=remove_leo,
    )
    with three.training_lock(three.show("kim").id):
        found = {name: result for batch in queue for name, result in told(batch).items()}
    assert (found["rex"], found["kim"]) == ("InvalidInput", "RegistryBusy")
    assert (found["mia"], found["leo"]) == (1, "ConceptNotFound")


@pytest.mark.parametrize("when", ["before its losses are recorded", "after the last of them"])
def test_one_that_is_removed_while_it_is_taught_stops_no_other(
    three: Registry, base: LoadedBase, when: str
) -> None:
    """Losses are recorded every 50 steps, and when a stage is saved."""
    mia = three.show("mia").id

    def remove(report: StepReport | Path) -> None:
        if isinstance(report, Path) or report.step == 49:
            three.remove(["mia"])

    def hooks(concept: int) -> Hooks:
        if concept != mia:
            return Hooks()
        return Hooks(on_step=remove) if when.startswith("before") else Hooks(on_saved=remove)

    words = (*EMBEDDING, "embedding.steps=50", "embedding.batch=1")
    (ended,) = train_queue(
        three, ["rex", "mia", "leo"], base, method="textual-inversion", overrides=words, hooks=hooks
    )
    assert told(ended) == {"rex": 1, "mia": "ConceptNotFound", "leo": 1}
    assert [run.status for name in ("rex", "leo") for run in three.show(name).runs] == ["done"] * 2
    (error,) = (each.error for each in ended if each.error)
    assert explain(error).exit_code == ExitCode.NOT_FOUND
    assert explain(error).message == "mia: the concept was removed"


def test_a_stop_begins_nothing_more_and_resume_goes_on(three: Registry, base: LoadedBase) -> None:
    steps: list[str] = []

    def stopping() -> bool:
        return len(steps) >= 3

    def hooks(_: int) -> Hooks:
        return Hooks(on_step=lambda report: steps.append(report.stage), should_stop=stopping)

    queue = train_queue(
        three, ["rex", "mia"], base, overrides=SHORT, seed=4, hooks=hooks, should_stop=stopping
    )
    (rex,), (mia,) = queue
    assert isinstance(rex.error, TrainingInterrupted)
    assert rex.error.hint == "concept train rex --resume"
    assert isinstance(mia.error, TrainingInterrupted)
    assert mia.error.message == "mia: not begun"
    assert "concept train mia --base" in (mia.error.hint or "")
    assert "--seed 4 --set augmentation.crops=2" in (mia.error.hint or "")
    ((again,),) = train_queue(three, ["rex"], base, resume=True)
    assert again.trained
    assert again.trained.run == three.show("rex").runs[0].run


def test_a_stop_hides_no_failure(three: Registry, base: LoadedBase) -> None:
    ids = {three.show(name).id: name for name in ("rex", "mia")}

    def fail(_: StepReport) -> None:
        raise TrainingFailed("no more of this")

    def hooks(concept: int) -> Hooks:
        return Hooks(should_stop=lambda: True, on_step=fail if ids[concept] == "mia" else ignore)

    (ended,) = train_queue(
        three, ["rex", "mia"], base, method="sefi", overrides=EMBEDDING, hooks=hooks
    )
    assert told(ended) == {"rex": "TrainingInterrupted", "mia": "TrainingFailed"}
    rex, mia = ended
    assert rex.error
    assert "rex: stopped in embedding" in rex.error.message
    assert rex.error.hint == "concept train rex --resume"
    assert "no more of this" in str(mia.error)
    assert [three.show(name).runs[0].status for name in ("rex", "mia")] == ["interrupted", "failed"]


def test_a_stop_hides_nothing_that_was_done_before(three: Registry, base: LoadedBase) -> None:
    """Crops in their photos' shapes: one after another, in what the queue has as one batch."""
    rex = three.show("rex").id

    def hooks(concept: int) -> Hooks:
        return Hooks(should_stop=lambda: concept != rex)

    words = (*EMBEDDING, "augmentation.buckets=true")
    names = ["rex", "mia", "leo"]
    (ended,) = train_queue(three, names, base, method="sefi", overrides=words, hooks=hooks)
    assert told(ended) == {"rex": 1, "mia": "TrainingInterrupted", "leo": "TrainingInterrupted"}
    assert ended[1].error
    assert ended[1].error is ended[2].error
    assert ended[1].error.hint == "concept train mia leo --resume"


def test_names_are_looked_up_before_anything_begins(three: Registry, base: LoadedBase) -> None:
    with pytest.raises(NotFound, match="nobody"):
        next(train_queue(three, ["rex", "nobody"], base, overrides=SHORT))
    assert not three.show("rex").runs


@pytest.mark.long
def test_the_best_of_each_is_chosen(three: Registry, base: LoadedBase, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a photo of a {}")
    scored: list[str | None] = []
    chooser = CheckpointChooser(
        registry=three,
        base=base,
        every=1,
        suite=str(tmp_path / "one.txt"),
        clip="miniature",
        dino="none",
        on_score=lambda found: scored.append(found.checkpoint),
    )
    queue = train_queue(three, ["rex", "mia"], base, overrides=SHORT, hooks=chooser.hooks)
    for outcomes in queue:
        for each in outcomes:
            assert each.trained
            best = chooser.choose(each.concept_id)
            (marked,) = [one for one in three.show(each.name).versions if one.aliases]
            assert best.version == marked.number
    assert scored == ["stage3-000001", "stage3-000001"]

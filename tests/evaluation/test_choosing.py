"""Checkpoints: kept on the way, scored, and the best of them made a version."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conceptry.evaluation import patience, running
from conceptry.evaluation.choosing import CheckpointScorer
from conceptry.evaluation.encoder_names import EncoderNames
from conceptry.evaluation.record import Evaluation, Interval
from conceptry.evaluation.running import EvalRequest, mark_best, score
from conceptry.generation.prompt_syntax import resolve_prompt
from conceptry.generation.request import SamplingSettings
from conceptry.models.loading import LoadedBase
from conceptry.registry import Registry
from conceptry.registry.errors import InvalidInput, NotFound
from conceptry.training import Hooks, train
from long import quick_for
from to_score import MINIATURE

SHORT = ("augmentation.crops=2", "stage1.steps=2", "stage2.steps=1", "stage3.learning_rate=1e-3")


def request(folder: Path, **options: Any) -> EvalRequest:
    """A suite of one prompt."""
    (folder / "one.txt").write_text("a photo of a {}")
    return EvalRequest(names=["rex"], suite=str(folder / "one.txt"), num_seeds=1, **options)


def teach(registry: Registry, base: LoadedBase, steps: int, hooks: Hooks, *more: str) -> int:
    overrides = (*SHORT, f"stage3.steps={steps}", *more)
    return train(registry, "rex", base, overrides=overrides, seed=1, hooks=hooks).version


def stored(registry: Registry, number: int) -> bytes:
    (chosen,) = resolve_prompt(registry, f"<rex@{number}>")
    return Path(chosen.path).read_bytes()


def kept(registry: Registry, number: int) -> list[Path]:
    versions = {version.number: version.run for version in registry.show("rex").versions}
    return registry.checkpoints(versions[number] or "")


@pytest.fixture(autouse=True)
def _shipped_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    def shipped(*_: Any, **__: Any) -> EncoderNames:
        return MINIATURE

    for module in ("choosing", "running"):
        monkeypatch.setattr(f"conceptry.evaluation.{module}.encoder_names_for", shipped)


@pytest.mark.parametrize("more", quick_for(1, [("ema=0.5",), (), ("rank=2",)]), ids=str)
def test_a_checkpoint_is_what_a_shorter_training_ends_with(
    rex: Registry, base: LoadedBase, more: tuple[str, ...]
) -> None:
    """To the bit; and keeping it changes nothing of what comes after."""
    long = teach(rex, base, 5, Hooks(checkpoint_every=2), *more)
    assert [path.name for path in kept(rex, long)] == [
        "checkpoint-stage3-000002.safetensors",
        "checkpoint-stage3-000004.safetensors",
    ]
    plain = teach(rex, base, 5, Hooks(), *more)
    short = teach(rex, base, 2, Hooks(checkpoint_every=2), *more)
    assert stored(rex, long) == stored(rex, plain)
    assert kept(rex, long)[0].read_bytes() == stored(rex, short)
    assert kept(rex, short) == kept(rex, plain) == []


@pytest.mark.long
def test_scoring_on_the_way_changes_nothing(
    rex: Registry, base: LoadedBase, tmp_path: Path
) -> None:
    plain = teach(rex, base, 4, Hooks())
    watch = CheckpointScorer(rex, base, request(tmp_path), 2)
    watched = teach(rex, base, 4, watch.hooks(Hooks()))
    assert stored(rex, plain) == stored(rex, watched)
    assert [each.label for each in watch.found] == ["rex@stage3-000002"]
    assert watch.found[0].scores["seen"].mean >= 0
    assert not (rex.location.cache / "evaluations").exists()


@pytest.mark.long
def test_what_is_drawn_on_the_way_is_what_the_checkpoint_draws(
    rex: Registry, base: LoadedBase, tmp_path: Path
) -> None:
    """But for the rounding of what is stored."""
    watch = CheckpointScorer(rex, base, request(tmp_path), 2)
    number = teach(rex, base, 4, watch.hooks(Hooks()))
    (before,) = watch.found
    wanted = request(tmp_path, all_checkpoints=True, base=base.base.name)
    found, last = score(rex, wanted, base=base)
    assert (found.checkpoint, last.version) == ("stage3-000002", number)
    now, of_checkpoint, of_version = (each.prompts[0].scores for each in (before, found, last))
    assert of_checkpoint.pop("focus")
    assert of_version.pop("focus"), "which the base model alone can tell, not in a training"
    assert of_checkpoint == pytest.approx(now, abs=0.01)
    assert of_version.keys() == now.keys()
    assert of_version != pytest.approx(now, abs=0.01)


def scored(both: float, **changes: Any) -> Evaluation:
    base = {"concept": "rex", "version": 1, "others": [], "suite": "s", "prompts": []}
    scores = {"both": Interval(both, both, both)}
    return Evaluation(**{**base, "scores": scores, "made_by": {}, **changes})


def test_a_training_has_had_enough_when_scores_do_not_rise(
    rex: Registry, base: LoadedBase, tmp_path: Path
) -> None:
    watch = CheckpointScorer(rex, base, request(tmp_path), 1)
    enough: list[bool] = []
    for both in (0.1, 0.3, 0.2, 0.4, 0.39, 0.4):
        watch.found.append(scored(both))
        enough.append(watch.has_plateaued)
    assert enough == [False, False, False, False, False, True]


@pytest.mark.parametrize("text", ["a photo of a {} and a {other}", "a sketch of a {}"])
def test_a_suite_that_cannot_choose_is_refused_before_the_training(
    rex: Registry, base: LoadedBase, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"prompts: [{{text: '{text}', looks: other}}]")
    with pytest.raises(InvalidInput, match="the suite mine cannot say which version is best"):
        CheckpointScorer(rex, base, EvalRequest(names=["rex"], suite=str(path)), 1)


def test_stopped_early_it_is_done_and_its_version_is_of_that_step(
    rex: Registry, base: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "PATIENCE", 1)
    watch = CheckpointScorer(rex, base, request(tmp_path), 1, stop_early=True)
    hooks = watch.hooks(Hooks())

    def score_it(checkpoint: Any) -> None:
        watch.found.append(scored(0.5 if checkpoint.step < 3 else 0.1))

    number = teach(rex, base, 9, replace(hooks, on_checkpoint=score_it))
    assert len(watch.found) == 2, "the second was no better"
    assert [run.status for run in rex.show("rex").runs] == ["done"]
    assert stored(rex, number) == stored(rex, teach(rex, base, 2, Hooks()))


def test_the_best_checkpoint_becomes_a_version(
    rex: Registry, base: LoadedBase, tmp_path: Path
) -> None:
    first = teach(rex, base, 3, Hooks(checkpoint_every=1))
    settings = SamplingSettings(steps=1)
    wanted = request(tmp_path, all_checkpoints=True, base=base.base.name, settings=settings)
    found = list(score(rex, wanted))
    assert [each.label for each in found] == ["rex@stage3-000001", "rex@stage3-000002", "rex@1"]
    top = scored(9.0).scores["both"]
    found[1] = replace(found[1], scores=found[1].scores | {"both": top})
    (best,) = mark_best(rex, found)
    assert (first, best.version) == (1, 2)
    assert stored(rex, 2) == kept(rex, 1)[1].read_bytes()
    (chosen,) = resolve_prompt(rex, "<rex>")
    assert (chosen.version.number, chosen.version.aliases) == (2, ["best"])
    again = list(score(rex, wanted))
    assert [each.label for each in again] == ["rex@stage3-000001", "rex@1", "rex@2"]
    assert again[2].prompts[0].prompt.endswith("<rex@2>")
    assert again[2].scores["both"] == top, "told from the record"
    (best,) = mark_best(rex, found)
    assert best.version == 2, "no second version of the same weights"
    teach(rex, base, 3, Hooks(checkpoint_every=1), "stage3.learning_rate=2e-3")
    labels = [each.label for each in score(rex, wanted)]
    assert len(set(labels)) == len(labels) == 6, "checkpoints of several trainings are told apart"


def test_versions_without_checkpoints_are_compared_too(
    rex: Registry, base: LoadedBase, tmp_path: Path
) -> None:
    teach(rex, base, 1, Hooks())
    teach(rex, base, 3, Hooks(checkpoint_every=2))
    settings = SamplingSettings(steps=1)
    found = list(score(rex, request(tmp_path, all_checkpoints=True, settings=settings)))
    assert [each.label for each in found] == ["rex@1", "rex@stage3-000002", "rex@2"]
    equal = scored(0.5).scores["both"]
    found = [replace(each, scores=each.scores | {"both": equal}) for each in found]
    (best,) = mark_best(rex, [found[2], found[1], found[0]])
    assert best.version == 2, "of equal ones the latest, whatever their order"


def test_versions_of_different_base_models_are_refused_before_anything_is_drawn(
    rex: Registry, base: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teach(rex, base, 1, Hooks())
    teach(rex, base, 2, Hooks())
    bases = {"<rex@1>": base.base, "<rex@2>": replace(base.base, name="another")}
    task_of = running._Task.of

    def on_its_own(registry: Registry, wanted: EvalRequest, chosen: Any, *more: Any) -> Any:
        made = task_of(registry, wanted, chosen, *more)
        return replace(made, base=bases[chosen[0].mention.text])

    monkeypatch.setattr(running._Task, "of", on_its_own)
    wanted = request(tmp_path, versions="all", marks_best=True)
    with pytest.raises(InvalidInput, match="rex@1 and rex@2 are of different base models") as told:
        list(score(rex, wanted))
    assert "--versions 1" in (told.value.hint or "")


def test_without_checkpoints_there_is_a_line(rex: Registry, base: LoadedBase) -> None:
    teach(rex, base, 1, Hooks())
    with pytest.raises(NotFound, match="kept checkpoints") as caught:
        list(score(rex, EvalRequest(names=["rex"], all_checkpoints=True)))
    assert "--keep-every" in (caught.value.hint or "")


def test_checkpoints_stay_until_they_are_asked_to_go(rex: Registry, base: LoadedBase) -> None:
    number = teach(rex, base, 3, Hooks(checkpoint_every=1))
    assert rex.gc(grace=0).temporary == 0
    assert len(kept(rex, number)) == 2
    assert rex.gc(grace=0, checkpoints=True).temporary == 2
    assert kept(rex, number) == []

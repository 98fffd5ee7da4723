"""Versions are scored, remembered, and drawn only once."""

import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conceptry import evaluation
from conceptry.evaluation import evaluating, running
from conceptry.evaluation.encoders import Encoders
from conceptry.evaluation.evaluating import EvalSubject, Evaluator, evaluate
from conceptry.evaluation.picture_cache import PictureCache
from conceptry.evaluation.plan import BASE_MODEL
from conceptry.evaluation.record import Evaluation, Interval
from conceptry.evaluation.running import EvalRequest, keep, mark_best, score
from conceptry.evaluation.suites import Suite, SuitePrompt
from conceptry.generation.injection import inject_concepts
from conceptry.generation.photo_regions import category_regions
from conceptry.generation.prompt_syntax import resolve_prompt
from conceptry.generation.request import SamplingSettings
from conceptry.generation.sampler import draw
from conceptry.models.bases import ControlSource
from conceptry.models.loading import LoadedBase
from conceptry.registry import Registry
from conceptry.registry.errors import InvalidInput, NotFound
from conceptry.training import train
from drawing import draw_file
from long import quick_for
from PIL import Image
from safetensors.torch import save
from tiny_control import write_tiny_control
from to_score import ALONE, TOGETHER, plan_of
from torch import Tensor


def test_the_second_time_nothing_is_drawn_and_the_numbers_are_the_same(
    taught: Registry, base: LoadedBase, encoders: Encoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(taught, base, "<rex>")
    progress: list[tuple[int, int]] = []
    first = evaluate(
        taught, base, encoders, plan, on_progress=lambda *numbers: progress.append(numbers)
    )
    assert progress == [(5, 20), (10, 20), (15, 20), (20, 20)], "and drift, with and without it"
    assert [len(prompt.pictures) for prompt in first.prompts] == [5, 5]

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something is drawn")

    monkeypatch.setattr(evaluating, "draw", refuse)
    monkeypatch.setattr(evaluating, "inject_concepts", refuse)
    assert evaluate(taught, base, encoders, plan) == first
    assert plan.recorded(taught, encoders.hashes()) is None
    keep(taught, first)
    assert plan.recorded(taught, encoders.hashes()) == first
    assert taught.evaluations("rex")[0].version == 2


def test_drift_is_what_a_version_does_to_its_category(
    taught: Registry, base: LoadedBase, encoders: Encoders
) -> None:
    """Its pictures are those of the plain category, drawn by weights that the version changed."""
    rex = evaluate(taught, base, encoders, plan_of(taught, base, "<rex@1>"))
    (told,) = rex.drift
    assert (told.prompt, told.tests) == ("a photo of a dog", "drift")
    cache = PictureCache.of(taught)
    photos = EvalSubject.of(taught, resolve_prompt(taught, "<rex@1>")[0])
    assert encoders.identity is not None
    vectors = encoders.identity.embed(photos.photos)

    def likeness(images: list[Image.Image]) -> list[float]:
        assert encoders.identity is not None
        return (encoders.identity.embed(images) @ vectors.T).mean(1).tolist()

    def drawn() -> list[Image.Image]:
        settings = SamplingSettings(steps=2, guidance=2.0)
        seeds = range(4), range(4, 5)  # in batches, as they are scored
        return [
            each.image for some in seeds for each in draw(base, "a photo of a dog", some, settings)
        ]

    plain = drawn()
    with inject_concepts(base, resolve_prompt(taught, "<rex@1>")):
        changed = drawn()
    kept = [cache.get(each.picture, num_subjects=1) for each in told.pictures]
    assert [each.image.tobytes() for each in kept if each] == [each.tobytes() for each in changed]
    assert [each.scores["drift"] for each in told.pictures] == pytest.approx(
        likeness(changed), abs=1e-4
    )
    assert told.scores["drift_base"] == pytest.approx(statistics.fmean(likeness(plain)), abs=1e-4)
    assert rex.scores["drift"].mean == told.scores["drift"]
    assert rex.scores["drift_base"].mean == told.scores["drift_base"]
    assert base.backbone.references == []


@pytest.mark.long
def test_prompts_that_bend_the_category_show_no_drift(
    taught: Registry, base: LoadedBase, encoders: Encoders
) -> None:
    """Of "dogs" it is not known where the dog is."""
    bent = Suite("bent", "", (SuitePrompt("two {}s"), SuitePrompt("a {} in the snow")))
    found = evaluate(taught, base, encoders, plan_of(taught, base, "<rex@1>", bent))
    assert [each.prompt for each in found.drift] == ["a dog in the snow"]
    alone = Suite("alone", "", bent.prompts[:1])
    assert evaluate(taught, base, encoders, plan_of(taught, base, "<rex@1>", alone)).drift == []


@pytest.mark.long
def test_tokens_alone_do_not_drift(taught: Registry, base: LoadedBase, encoders: Encoders) -> None:
    words = ["embedding.steps=1", "augmentation.crops=2"]
    train(taught, "mia", base, method="textual-inversion", overrides=words)
    found = evaluate(taught, base, encoders, plan_of(taught, base, "<mia@2>"))
    assert found.drift == []
    assert "drift" not in found.scores


def test_imported_scores_are_no_result_and_decide_nothing(
    taught: Registry, base: LoadedBase, encoders: Encoders, tmp_path: Path
) -> None:
    """A stranger may say of a version whatever is wished for."""
    plan = plan_of(taught, base, "<rex@1>")
    found = evaluate(taught, base, encoders, plan)
    best = {name: Interval(1.0, 1.0, 1.0) for name in found.scores}
    keep(taught, replace(found, scores=best))
    taught.export_bundle(["rex"], tmp_path / "rex.concept")
    taught.rename("rex", "max")
    taught.import_bundle(tmp_path / "rex.concept")
    plan = plan_of(taught, base, "<rex@1>")
    (record,) = taught.evaluations("rex")
    assert record.config == plan.made_by(encoders.hashes())
    assert plan.recorded(taught, encoders.hashes()) is None
    keep(taught, replace(found, concept_id=taught.show("rex").id))
    again = plan.recorded(taught, encoders.hashes())
    assert again
    assert again.scores == found.scores


def test_a_damaged_or_missing_picture_is_drawn_again(
    taught: Registry, base: LoadedBase, encoders: Encoders
) -> None:
    plan = plan_of(taught, base, "<rex>")
    first = evaluate(taught, base, encoders, plan)
    cache = PictureCache(taught.location.cache / "evaluations")
    keys = [picture.picture for prompt in first.prompts for picture in prompt.pictures]
    cache.path(keys[0]).write_bytes(b"\x89PNG")
    cache.path(keys[7]).with_suffix(".safetensors").unlink()
    assert evaluate(taught, base, encoders, plan) == first


ODD_MAPS = {
    "no maps": {"map": torch.zeros(1, 2, 4, 4)},
    "of two subjects": {"maps": torch.zeros(2, 2, 4, 4)},
    "flat": {"maps": torch.zeros(32)},
    "empty": {"maps": torch.zeros(1, 2, 0, 4)},
    "vast": {"maps": torch.zeros(1, 2, 1, 20_000)},
    "not finite": {"maps": torch.full((1, 2, 4, 4), float("nan"))},
}


@pytest.mark.parametrize("odd", quick_for(1, ODD_MAPS))
def test_maps_that_are_not_ours_are_drawn_again(
    taught: Registry, base: LoadedBase, encoders: Encoders, odd: str
) -> None:
    """Faults, row 38: caches."""
    plan = replace(plan_of(taught, base, "<rex>"), seeds=(0,))
    first = evaluate(taught, base, encoders, plan)
    key = first.prompts[0].pictures[0].picture
    path = PictureCache.of(taught).path(key).with_suffix(".safetensors")
    sound = path.read_bytes()
    path.write_bytes(save(ODD_MAPS[odd]))
    assert evaluate(taught, base, encoders, plan) == first
    assert path.read_bytes() == sound


@pytest.mark.long
def test_a_picture_of_another_size_is_drawn_again(
    taught: Registry, base: LoadedBase, encoders: Encoders
) -> None:
    """Faults, row 38: caches."""
    plan = replace(plan_of(taught, base, "<rex>"), seeds=(0,))
    first = evaluate(taught, base, encoders, plan)
    path = PictureCache.of(taught).path(first.prompts[0].pictures[0].picture)
    draw_file(path, 3, (16, 24))
    assert evaluate(taught, base, encoders, plan) == first


@pytest.mark.parametrize(
    "change",
    quick_for(1, ["version", "seeds", "photos", "settings", "suite", "category", "encoders"]),
)
def test_what_scores_depend_on_is_part_of_the_record(
    taught: Registry, base: LoadedBase, encoders: Encoders, tmp_path: Path, change: str
) -> None:
    plan = plan_of(taught, base, "<rex>")
    keep(taught, evaluate(taught, base, encoders, plan))
    assert plan.recorded(taught, encoders.hashes())
    hashes = encoders.hashes()
    if change == "version":
        plan = plan_of(taught, base, "<rex@1>")
    elif change == "seeds":
        plan = replace(plan, seeds=(0,))
    elif change == "settings":
        plan = replace(plan, settings=SamplingSettings(steps=3))
    elif change == "configuration":
        plan = replace(plan, configuration_sha256="0" * 64)
    elif change == "suite":
        plan = replace(plan, suite=replace(ALONE, prompts=ALONE.prompts[:1]))
    elif change == "photos":
        taught.add("rex", [draw_file(tmp_path / "new.png", seed=99)])
        plan = plan_of(taught, base, "<rex>")
    elif change == "category":
        taught.edit("rex", category="corgi")
        plan = plan_of(taught, base, "<rex>")
    else:
        hashes = hashes | {"clip": {"name": "other", "sha256": "0" * 64}}
    assert plan.recorded(taught, hashes) is None


def test_another_configuration_draws_anew(
    taught: Registry, base: LoadedBase, encoders: Encoders
) -> None:
    """Of a scheduler, say: the weights are the same, and the pictures are not."""
    plan = plan_of(taught, base, "<rex>")
    mended = replace(base, configuration_sha256="0" * 64)
    before, after = (
        {row.picture for prompt in found.all_prompts for row in prompt.pictures}
        for found in (evaluate(taught, each, encoders, plan) for each in (base, mended))
    )
    assert not before & after


def test_how_masks_are_found_is_part_of_the_record(taught: Registry, base: LoadedBase) -> None:
    """Where some are to be found; so scores by another way to find them are not reused."""
    plan = plan_of(taught, base, "<rex>")
    assert plan.made_by({})["found_masks"]
    (rex,) = plan.chosen
    images = [replace(image, mask="0" * 64) for image in rex.concept.images]
    masked = replace(rex, concept=replace(rex.concept, images=images))
    assert "found_masks" not in replace(plan, chosen=(masked,)).made_by({})


def test_the_picture_is_the_one_that_generate_draws(
    taught: Registry, base: LoadedBase, encoders: Encoders, tmp_path: Path
) -> None:
    from conceptry.generation import Request, generate

    plan = replace(plan_of(taught, base, "<rex>"), seeds=(0, 1, 2, 3))
    found = evaluate(taught, base, encoders, plan)
    cache = PictureCache(taught.location.cache / "evaluations")
    request = Request(prompt="a photo of a <rex>", seeds=plan.seeds, settings=plan.settings)
    drawn = list(generate(taught, base, [request], tmp_path, with_maps=True))
    for one, other in zip(found.prompts[0].pictures, drawn, strict=True):
        with Image.open(cache.path(one.picture)) as image:
            assert image.tobytes() == other.image.tobytes()


def test_two_concepts_in_a_picture(taught: Registry, base: LoadedBase, encoders: Encoders) -> None:
    plan = plan_of(taught, base, "<rex> <mia>", TOGETHER)
    found = evaluate(taught, base, encoders, plan)
    assert found.label == "rex@2 and mia@1"
    assert {"leak", "leak_other", "seen_second", "identity_subject_other"} <= set(found.scores)
    assert "focus" not in found.scores, "the base model cannot tell two of a category apart"
    assert found.headlines == ["seen", "identity_subjects", "both"]
    keep(taught, found)
    assert plan.recorded(taught, encoders.hashes()) == found
    with pytest.raises(InvalidInput, match="is for 2 concepts"):
        plan_of(taught, base, "<rex>", TOGETHER)
    with pytest.raises(InvalidInput, match="is for 1 concepts"):
        plan_of(taught, base, "<rex> <mia>")


def test_the_bare_base_model_is_scored_by_its_category(
    taught: Registry, base: LoadedBase, encoders: Encoders
) -> None:
    concept = taught.show("rex")
    photos = [taught.read_photo(image) for image in concept.images]
    plan = replace(plan_of(taught, base, "<rex>"), chosen=())
    cache = PictureCache(taught.location.cache / "evaluations")
    subject = EvalSubject("dog", photos, [None] * len(photos))
    found = Evaluator(base, encoders, cache, plan, [subject]).run()
    assert found.concept == BASE_MODEL
    assert found.prompts[0].prompt == "a photo of a dog"
    assert found.scores["focus"].mean > 0


def test_focus_is_where_the_base_model_sees_the_category(
    taught: Registry, base: LoadedBase, encoders: Encoders
) -> None:
    """A map that is compact, but not on the subject, has no focus."""
    plan = plan_of(taught, base, "<rex>")
    cache = PictureCache.of(taught)

    def focus_with(change: Callable[[Tensor, Tensor], Tensor]) -> float:
        for prompt in evaluate(taught, base, encoders, plan).prompts:
            for row in prompt.pictures:
                kept = cache.get(row.picture, num_subjects=1)
                assert kept
                (inside,) = category_regions(base, [kept.image], "dog")
                cache.put(row.picture, replace(kept, maps=change(kept.maps, inside)))
        return evaluate(taught, base, encoders, plan).scores["focus"].mean

    assert focus_with(lambda maps, inside: inside.expand_as(maps).float()) == 1
    assert focus_with(lambda maps, inside: (~inside).expand_as(maps).float()) == 0


def test_records_survive_json(taught: Registry, base: LoadedBase, encoders: Encoders) -> None:
    found = evaluate(taught, base, encoders, plan_of(taught, base, "<mia>"))
    assert Evaluation.from_document(found.document()) == found


# --- by request -----------------------------------------------------------------------------------


def request(base: LoadedBase, *names: str, **options: Any) -> EvalRequest:
    options = {"clip": "miniature", "dino": "none", "suite": "objects", "num_seeds": 1} | options
    settings = SamplingSettings(steps=1, guidance=1.0)
    return EvalRequest(names=names, base=base.base.name, settings=settings, **options)


@pytest.mark.long
def test_versions_are_named_as_in_prompts(taught: Registry, base: LoadedBase) -> None:
    def labels(versions: str | None) -> list[str]:
        return [each.label for each in score(taught, request(base, "rex", versions=versions))]

    assert labels(None) == ["rex@2"]
    assert labels("all") == ["rex@1", "rex@2"]
    taught.set_alias("rex", 1, "best")
    assert labels("best, 2") == ["rex@1", "rex@2"]
    assert labels(None) == ["rex@1"]


def test_the_best_version_gets_the_alias(taught: Registry, base: LoadedBase) -> None:
    found = list(score(taught, request(base, "rex", "mia", versions="all")))
    marked = {each.concept: each.version for each in mark_best(taught, found)}
    assert set(marked) == {"rex", "mia"}
    mine = [each for each in found if each.concept == "rex"]
    best = max(mine, key=lambda each: (each.harmonic_mean, each.version))
    assert resolve_prompt(taught, "<rex@best>")[0].version.number == best.version == marked["rex"]


@pytest.mark.long
def test_another_control_net_for_boxes_draws_other_pictures(
    taught: Registry, base: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes = {"rex": (0.0, 0.25, 0.5, 1.0), "mia": (0.5, 0.25, 1.0, 1.0)}
    settings = SamplingSettings(steps=1, guidance=1.0, layout=boxes, layout_control=True)
    suite = tmp_path / "two.yaml"
    suite.write_text("prompts: ['a photo of a {} and a {other}']\n")
    drawn: list[Evaluation] = []
    for seed in (1, 2, 1):
        folder = write_tiny_control(tmp_path / str(seed), base.backbone.pipeline.unet, seed=seed)
        own = replace(base.base, controls=(ControlSource("layout", "folder", str(folder)),))
        monkeypatch.setattr(running, "find_base", lambda _, own=own: own)
        wanted = replace(request(base, "rex", "mia", suite=str(suite)), settings=settings)
        drawn += score(taught, wanted, base=replace(base, base=own))
    one, other, again = (
        [picture.picture for prompt in each.prompts for picture in prompt.pictures]
        for each in drawn
    )
    assert one == again
    assert not set(one) & set(other)
    assert drawn[0] == drawn[2]
    assert drawn[0].made_by != drawn[1].made_by


@pytest.mark.parametrize(("name", "versions"), [("rex:0.5", None), ("rex", "1:0.5,2")])
def test_scores_are_of_whole_strength(
    taught: Registry, base: LoadedBase, name: str, versions: str | None
) -> None:
    with pytest.raises(InvalidInput, match="full strength"):
        list(score(taught, request(base, name, versions=versions)))


@pytest.mark.long
def test_scores_on_other_ground_are_not_compared(taught: Registry, base: LoadedBase) -> None:
    one, two = score(taught, request(base, "rex", versions="all"))
    other = replace(two, made_by=two.made_by | {"base_sha256": "0" * 64})
    with pytest.raises(InvalidInput, match="not scored on the same base model"):
        mark_best(taught, [one, other])
    assert not any(version.aliases for version in taught.show("rex").versions)


def test_a_suite_that_asks_for_other_looks_alone_cannot_choose(
    taught: Registry, base: LoadedBase, encoders: Encoders
) -> None:
    suite = Suite("styles", "", (SuitePrompt("a sketch of a {}", keeps_looks=False),))
    found = evaluate(taught, base, encoders, plan_of(taught, base, "<rex>", suite))
    with pytest.raises(InvalidInput, match="cannot say which version is best"):
        mark_best(taught, [found])
    assert not any(version.aliases for version in taught.show("rex").versions)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"versions": "9"}, NotFound, "has no version 9"),
        ({"versions": ""}, InvalidInput, "names no versions"),
        ({"suite": "nothing"}, NotFound, "there is no suite"),
        ({"suite": "multi-subject"}, InvalidInput, "for 2 concepts"),
        ({"suite": ""}, NotFound, "there is no suite"),
        ({"clip": "nobody/clip"}, NotFound, "nobody/clip is not on this machine"),
        ({"dino": "nobody/dino"}, NotFound, "nobody/dino is not on this machine"),
    ],
    ids=str,
)
def test_nothing_is_left_of_a_wish_that_cannot_be(
    taught: Registry, base: LoadedBase, options: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        list(score(taught, request(base, "rex", **options), offline=True))
    assert taught.evaluations("rex") == []
    assert not (taught.location.cache / "evaluations").exists()


def test_whether_it_can_choose_is_asked_before_anything_is_drawn(
    taught: Registry, base: LoadedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(base, "rex", versions="all")
    monkeypatch.setattr(running, "check_can_choose", cannot)
    assert next(score(taught, asked))
    with pytest.raises(InvalidInput, match="objects cannot choose"):
        next(score(taught, replace(asked, marks_best=True)))


def cannot(suite: Suite) -> None:
    raise InvalidInput(f"{suite.name} cannot choose")


def test_every_call_that_is_promised_is_there() -> None:
    for name in evaluation.__all__:
        assert callable(getattr(evaluation, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        evaluation.nothing  # noqa: B018


def test_boxes_are_those_of_the_concepts_of_a_picture(
    taught: Registry, base: LoadedBase, tmp_path: Path
) -> None:
    suite = tmp_path / "two.yaml"
    suite.write_text("prompts: ['a photo of a {} and a {other}']\n")
    boxes = {"rex": (0.0, 0.0, 0.5, 1.0), "mia": (0.5, 0.0, 1.0, 1.0), "ada": (0.0, 0.0, 1.0, 1.0)}
    settings = SamplingSettings(steps=1, guidance=1.0, layout=boxes)
    wanted = replace(request(base, "rex", "mia", "ada", suite=str(suite)), settings=settings)
    chosen = tuple(resolve_prompt(taught, "<rex> <mia>"))
    plan = running._Task.of(taught, wanted, chosen, []).plan(wanted, "")
    assert plan.settings.layout == {name: boxes[name] for name in ("rex", "mia")}
    without = replace(settings, layout={"rex": boxes["rex"]})
    with pytest.raises(InvalidInput, match="the layout has no box for mia"):
        running._Task.of(taught, wanted, chosen, []).plan(replace(wanted, settings=without), "")


def test_scores_whose_pictures_are_gone_are_measured_again_for_a_report(
    taught: Registry, base: LoadedBase
) -> None:
    asked = replace(request(base, "rex"), shows_pictures=True)
    (first,) = score(taught, asked, base=base)
    picture = PictureCache.of(taught).path(first.prompts[0].pictures[0].picture)
    picture.unlink()
    (told,) = score(taught, request(base, "rex"), base=base)
    assert not picture.exists()
    (again,) = score(taught, asked, base=base)
    assert picture.exists()
    assert again.scores == told.scores == first.scores

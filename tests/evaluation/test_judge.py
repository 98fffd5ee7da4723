"""The judge: its targets are the ground truth, and it learns."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from conceptry.evaluation import judge, judge_recipe
from conceptry.models.miniature.recipe import train
from conceptry.models.miniature.world.identities import CATEGORIES, split_of
from conceptry.models.miniature.world.scenes import RELATIONS, render, sample_scene


def test_targets_are_the_ground_truth() -> None:
    scenes = [sample_scene(seed, "judge") for seed in range(60)]
    targets = judge_recipe.targets_of(scenes)
    for row, scene in enumerate(scenes):
        present = {CATEGORIES[i] for i in targets["present"][row].nonzero().flatten()}
        assert present == {subject.identity.category for subject in scene.subjects}
        assert targets["count"][row] + 1 == len(scene.subjects)
        assert judge.PLACES[targets["place"][row]] == scene.place
        for subject in scene.subjects:
            who = subject.identity
            colour = int(targets["colour"][row, CATEGORIES.index(who.category)])
            if scene.style == "photo":
                assert judge.COLOUR_NAMES[colour] == who.colour
            else:
                assert colour == judge_recipe.IGNORED


def test_it_sees_how_two_things_stand_to_each_other() -> None:
    """In renders, as they were made: on top of each other is never side by side."""
    scenes = [sample_scene(seed, "held-out", num_subjects=2) for seed in range(90)]
    seen = judge.load_judge().classify([render(scene, 128).image for scene in scenes])
    right: list[bool] = []
    for scene, each in zip(scenes, seen, strict=True):
        first, second = (subject.identity.category for subject in scene.subjects)
        if {first, second} <= set(each.categories):
            is_upper = scene.relation == "on top of"
            is_left = not is_upper and scene.subjects[0].x < scene.subjects[1].x
            found = [each.stands(relation, first, second) for relation in RELATIONS[:3]]
            right.append(found == [not is_upper, is_left, is_upper])
    assert len(right) > 70
    assert sum(right) / len(right) > 0.95
    assert not seen[0].stands("next to", "a thing", "another")


def test_the_judge_never_meets_an_identity_of_the_base_model() -> None:
    assert judge_recipe.STAGE.split == "judge"
    scenes = [sample_scene(seed, judge_recipe.STAGE.split) for seed in range(50)]
    splits = {split_of(subject.identity.seed) for scene in scenes for subject in scene.subjects}
    assert splits == {"judge"}


def test_a_perfect_verdict_scores_one_and_a_wrong_one_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = judge.Judge()

    def cheat(wrong: bool) -> None:
        def classify(_images: object) -> list[judge.Prediction]:
            step = steps.pop(0)
            scenes = judge_recipe.scenes_batch(
                step, split="held-out", offset=7, batch=100, size=64
            ).scenes
            logits = judge_recipe.targets_of(scenes)
            return [_verdict(logits, row, wrong) for row in range(len(scenes))]

        steps = [0]
        monkeypatch.setattr(network, "classify", classify)

    cheat(wrong=False)
    assert set(judge_recipe.measure(network, 100).values()) == {1.0}
    cheat(wrong=True)
    assert judge_recipe.measure(network, 100)["place"] < 0.3


def _verdict(targets: dict[str, torch.Tensor], row: int, wrong: bool) -> judge.Prediction:
    logits = {
        "present": (targets["present"][row] - 0.5) * 20,
        "colour": _one_hot(targets["colour"][row].clamp(min=0), len(judge.COLOUR_NAMES)),
        "pattern": _one_hot(targets["pattern"][row].clamp(min=0), len(judge.PATTERNS)),
        "place": _one_hot((targets["place"][row] + wrong) % len(judge.PLACES), len(judge.PLACES)),
        "style": _one_hot(targets["style"][row], len(judge.STYLES)),
        "accessory": _one_hot(targets["accessory"][row], len(judge.WORN)),
        "count": _one_hot(targets["count"][row], judge.MAX_SUBJECTS),
        "where": torch.zeros(len(CATEGORIES), 256),
    }
    return judge._prediction(logits)


def _one_hot(index: torch.Tensor, count: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(index, count).float()


@pytest.mark.long
def test_fifty_steps_lower_its_loss_and_it_can_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "LOG_EVERY_STEPS", 10)
    stage = dataclasses.replace(judge_recipe.STAGE, batch=16, warmup_steps=5)
    train.train(stage, tmp_path, images=16 * 50, device="cpu", num_workers=0)
    lines = [json.loads(line) for line in (tmp_path / "judge.jsonl").read_text().splitlines()]
    names = lines[0].keys() - {"step", "images", "images_per_second"}
    first, *_, last = [sum(line[name] for name in names) for line in lines]
    assert last < first
    loaded = judge.load_judge(tmp_path / "judge.safetensors")
    seen = loaded.classify([render(sample_scene(0), 64).image, render(sample_scene(1), 128).image])
    assert len(seen) == 2
    assert seen[0].categories
    assert set(seen[0].confidence) == set(CATEGORIES)

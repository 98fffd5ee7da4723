"""Concepts that were taught a little, small suites, and plans to score them."""

from pathlib import Path

from conceptry.evaluation.encoder_names import EncoderNames
from conceptry.evaluation.plan import Plan
from conceptry.evaluation.suites import Suite, SuitePrompt
from conceptry.generation.prompt_syntax import resolve_prompt
from conceptry.generation.request import SamplingSettings
from conceptry.models.loading import LoadedBase
from conceptry.registry import Registry
from conceptry.training import train
from drawing import draw_folder

TAUGHT = ("augmentation.crops=2", *(f"stage{i}.steps=1" for i in (1, 2, 3)))
MINIATURE = EncoderNames("miniature", None, is_miniature=True)
ALONE = Suite(
    "alone", "", (SuitePrompt("a photo of a {}"), SuitePrompt("a red {}", keeps_looks=False))
)
TOGETHER = Suite("together", "", (SuitePrompt("a photo of a {} and a {other}"),))


def plan_of(registry: Registry, base: LoadedBase, names: str, suite: Suite = ALONE) -> Plan:
    """Five pictures of each prompt, for the versions that a prompt names."""
    return Plan(
        chosen=tuple(resolve_prompt(registry, names)),
        suite=suite,
        encoders=MINIATURE,
        base=base.base.name,
        base_sha256=base.sha256,
        seeds=(0, 1, 2, 3, 4),
        settings=SamplingSettings(steps=2, guidance=2.0),
    )


def write_bundle(folder: Path, base: LoadedBase) -> Path:
    """Teach rex, a dog, twice and mia, a cat, once; returns a file to import, which is quick."""
    photos = draw_folder(folder / "photos", 3)
    with Registry.open(folder / "concepts.db", create=True) as registry:
        for name, category in (("rex", "dog"), ("mia", "cat")):
            registry.add(name, [photos], category=category)
        for name, seed in (("rex", 1), ("rex", 2), ("mia", 3)):
            train(registry, name, base, overrides=TAUGHT, seed=seed)
        registry.export_bundle(["rex", "mia"], folder / "taught.concept")
    return folder / "taught.concept"

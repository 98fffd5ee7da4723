"""Concepts in one model: changes of weights added up, or merged by least squares.

    python bench/merging.py --out runs/merging      # the folder of another bench, or a new one

The tuning individuals, one of each category, two by default, each by AttnDreamBooth. Pictures of
three prompts that name one of them, and of three that name all, four seeds each, with

own       its own change of weights
added     all changes, added up
merged    the one that `concept export NAME NAME FILE` writes

`likeness` is the mean cosine between a picture and renders of the individual, `recognised` the
share of pictures nearer to it than to 20 others of its category. Of pictures of all, each is
compared whole. Writes bench/results/merging.json if there are two individuals.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conceptry.adapters.adapter import injected
from conceptry.adapters.merging import merged
from conceptry.adapters.weight_delta import WeightDelta
from conceptry.generation.injection import InjectedConcept, inject_concepts
from conceptry.generation.request import SamplingSettings
from conceptry.generation.sampler import draw
from environment import describe as describe_machine
from environment import is_as_published
from laboratory import Individual, Laboratory, Way, embed, opened, parser

RESULTS = Path(__file__).parent / "results"
WAY = Way("attndreambooth", "attndreambooth")
ALONE = ("a photo of {} on the beach", "a photo of {} in the snow", "{} on a red sofa")
TOGETHER = ("a photo of {} on the beach", "a photo of {}", "{} in the snow")
NUM_PUBLISHED = 2


def scores(
    laboratory: Laboratory, prompts: Sequence[str], people: Sequence[Individual]
) -> list[dict[str, float]]:
    """Likeness of each individual in pictures of prompts, with what is injected."""
    base, seeds = laboratory.base, laboratory.seeds
    settings = SamplingSettings.for_base(base.base)
    drawn = [each.image for prompt in prompts for each in draw(base, prompt, seeds, settings)]
    vectors = embed(drawn)
    return [
        {
            "likeness": round(float((vectors @ who.whole.references.T).mean()), 4),
            "recognised": round(float(who.whole.recognises(vectors).float().mean()), 4),
        }
        for who in people
    ]


def measured(laboratory: Laboratory, concepts: Sequence[InjectedConcept]) -> dict[str, Any]:
    """Scores by each way, of each individual alone and of all together."""
    people, backbone = laboratory.subjects, laboratory.base.backbone
    changes = [each.change or WeightDelta({}) for each in concepts]
    phrases = [each.phrase for each in concepts]
    ways = {"added": changes, "merged": [merged(backbone, changes, phrases)]}
    found: dict[str, Any] = {"own": {"alone": {}}, "added": {"alone": {}}, "merged": {"alone": {}}}
    for who, change, phrase in zip(people, changes, phrases, strict=True):
        for label, injecting in {"own": [change], **ways}.items():
            with injected(backbone, injecting):
                prompts = [each.format(phrase) for each in ALONE]
                (found[label]["alone"][who.name],) = scores(laboratory, prompts, [who])
    for label, injecting in ways.items():
        with injected(backbone, injecting):
            prompts = [each.format(" and ".join(phrases)) for each in TOGETHER]
            told = scores(laboratory, prompts, people)
        found[label]["together"] = {who.name: each for who, each in zip(people, told, strict=True)}
    return found


def main() -> None:
    asked = parser(__doc__)
    asked.set_defaults(concepts=NUM_PUBLISHED)
    options = asked.parse_args()
    with opened(options, "tuning") as laboratory:
        laboratory.teach(WAY)
        chosen = [laboratory.chosen(who, WAY) for who in laboratory.subjects]
        with inject_concepts(laboratory.base, chosen, apart=True) as concepts:
            found = measured(laboratory, concepts)
        document = {
            "environment": describe_machine(),
            "base_sha256": laboratory.base.sha256,
            "seeds": options.seeds,
            "ways": found,
        }
    print(json.dumps(found, indent=1))
    if is_as_published(asked, options):
        (RESULTS / "merging.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()

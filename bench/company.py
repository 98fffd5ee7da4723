"""Two or three concepts in a picture, and whether each is there and keeps to its place.

    python bench/company.py --out runs/methods        # the folder of bench/methods.py, or a new one

Individuals are those of bench/methods.py, each by SeFi-IDE, by AttnDreamBooth, by DreamTuner's
preset `instant`, which sees the first photo alone, and mixed; `--ways` may name Textual Inversion
and DreamBooth's LoRA as well. 12 pairs and 12 triples are drawn for the suites `miniature-pairs`
and `miniature-triples` in five modes: at once, with `--separate`, with the layout that is found,
and in boxes side by side, which a ControlNet may see too; and by the base model for the bare
categories. Scores are those of `concept eval`, and

leak         mean over the concepts; not where words are kept to regions, which decides it
present      share of the concepts that are recognised: within the concept's region the picture is
             nearer to the individual than to each of 20 others of its category (chance: 0.048).
             The region is that of the word's map, within its box where there is one
all_there    share of pictures in which all are recognised and the judge sees every category
relation     of pairs: share of pictures in which they stand to each other as the prompt says, which
             boxes side by side give away ("to the left of") or rule out ("on top of")

Interrupted, it goes on where it was; a second process for the other size may run beside it.
Intervals are from resampling pairs or triples, with their neighbours. Writes
bench/results/company.json, and company.png: a pair for each row, two photos, then a picture of two
prompts by each way. About three hours of one core with one seed, which is the default: there are
many pairs, and they tell more.
"""

import json
import shutil
import statistics
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from conceptry.evaluation.record import Evaluation
from conceptry.evaluation.suites import find_suite
from conceptry.generation.layout import AUTO as FOUND
from conceptry.generation.photo_regions import as_mask
from conceptry.generation.regions import region
from conceptry.generation.request import SamplingSettings
from conceptry.models.pixels import grey_outside
from environment import describe as describe_machine
from environment import is_as_published, keep_part
from laboratory import (
    BARE_WAY,
    Individual,
    Laboratory,
    Row,
    Way,
    differences,
    embed,
    name_of,
    opened,
    parser,
    save_sheet,
    summary,
    without_pictures,
)

RESULTS = Path(__file__).parent / "results"
WAYS = [
    Way("sefi", "sefi"),
    Way("textual-inversion", "textual-inversion"),
    Way("attndreambooth", "attndreambooth"),
    Way("dreambooth lora", "dreambooth", ("rank=16",)),
    Way("dreamtuner instant", "dreamtuner", preset="instant"),
]
MIXED = "mixed"
SUITES = {2: "miniature-pairs", 3: "miniature-triples"}
SHOWN = (0, 6)
MODES = ("at once", "separate", "auto", "boxes", "boxes, control")
AT_ONCE, SEPARATE, AUTO, BOXES, CONTROLLED = MODES
HEADLINES = ("seen", "leak", "present", "all_there")
LABELS = [*(way.label for way in WAYS), MIXED]
PUBLISHED = [WAYS[0].label, WAYS[2].label, WAYS[4].label, MIXED]
SEEDS = 1
COMPARED = [
    (f"{label} {one}", f"{label} {other}")
    for label in LABELS
    for one, other in (
        (SEPARATE, AT_ONCE),
        (AUTO, SEPARATE),
        (AUTO, AT_ONCE),
        (BOXES, AUTO),
        (CONTROLLED, BOXES),
    )
]
COMPARED += [(f"{label} {AUTO}", BARE_WAY.label) for label in LABELS]


def casts(subjects: Sequence[Individual], size: int) -> list[list[Individual]]:
    """As many as there are subjects: each with those that follow.

    So each is in `size` of them; intervals know of it.
    """
    count = len(subjects)
    return [[subjects[(i + k) % count] for k in range(size)] for i in range(count)]


def ways_of(label: str, size: int) -> list[Way]:
    """The way of each in a cast."""
    if label == MIXED:
        first, *others = (WAYS[2], WAYS[0], WAYS[4])
        return [first, *others[: size - 1]]
    return [next(way for way in [BARE_WAY, *WAYS] if way.label == label)] * size


def settings_of(mode: str, people: Sequence[Individual]) -> SamplingSettings:
    """How a cast is drawn."""
    if mode in (BOXES, CONTROLLED):
        share = 1 / len(people)
        layout = {who.name: (i * share, 0.25, (i + 1) * share, 1.0) for i, who in enumerate(people)}
        return SamplingSettings(layout=layout, layout_control=mode == CONTROLLED)
    return SamplingSettings(separate=mode == SEPARATE, layout=FOUND if mode == AUTO else None)


def row_of(laboratory: Laboratory, people: Sequence[Individual], label: str, mode: str) -> Row:
    """Scores of one cast by one way."""
    suite = find_suite(SUITES[len(people)])
    found = laboratory.evaluate(
        suite, people, ways_of(label, len(people)), settings=settings_of(mode, people)
    )
    scores = {name: score.mean for name, score in found.scores.items()}
    leaks = [name for name in scores if name.startswith("leak")]
    leak = statistics.fmean(scores.pop(name) for name in leaks)
    if mode in (AT_ONCE, SEPARATE):
        scores["leak"] = leak
    scores |= _presence(laboratory, people, found)
    name = label if label == BARE_WAY.label else f"{label} {mode}"
    print(
        name_of(people),
        name,
        {key: round(scores[key], 3) for key in HEADLINES if key in scores},
        flush=True,
    )
    return laboratory.row_of(people, name, scores, found, SHOWN)


def _presence(
    laboratory: Laboratory, people: Sequence[Individual], found: Evaluation
) -> dict[str, float]:
    present: list[float] = []
    all_there: list[float] = []
    for told in found.prompts:
        for each in told.pictures:
            picture = laboratory.pictures.get(each.picture, num_subjects=len(people))
            assert picture is not None
            regions = region(picture.maps[:, 0])
            cut = embed([grey_outside(picture.image, as_mask(inside)) for inside in regions])
            known = [
                bool(who.inside.recognises(vector[None])[0])
                for who, vector in zip(people, cut, strict=True)
            ]
            sees_all = each.scores["seen_category"] and each.scores["seen_second"]
            present.append(statistics.fmean(known))
            all_there.append(float(all(known) and bool(sees_all)))
    stands = [
        each.scores["seen_relation"]
        for told in found.prompts
        for each in told.pictures
        if "seen_relation" in each.scores
    ]
    return {
        "present": statistics.fmean(present),
        "all_there": statistics.fmean(all_there),
        **({"relation": statistics.fmean(stands)} if stands else {}),
    }


def main() -> None:
    asked = parser(__doc__)
    asked.add_argument("--sizes", type=int, nargs="*", default=list(SUITES))
    asked.set_defaults(seeds=SEEDS)
    asked.add_argument("--ways", nargs="*", default=PUBLISHED, choices=LABELS)
    asked.add_argument("--modes", nargs="*", default=MODES, choices=MODES)
    asked.add_argument("--split", choices=["measured", "tuning"], default="measured")
    options = asked.parse_args()
    results: dict[str, Any] = {}
    with opened(options, options.split) as laboratory:
        subjects = laboratory.subjects
        needed = {way for label in options.ways for way in ways_of(label, max(SUITES))}
        for way in WAYS:
            if way in needed:
                laboratory.teach(way)
        for size in options.sizes:
            people = casts(subjects, size)
            drawn = [(BARE_WAY.label, AT_ONCE), *product(options.ways, options.modes)]
            rows = [
                row_of(laboratory, cast, label, mode) for cast in people for label, mode in drawn
            ]
            results[SUITES[size]] = {
                "methods": summary(rows, block=size),
                "differences": differences(rows, COMPARED, HEADLINES, block=size),
                "rows": without_pictures(rows),
            }
            save_sheet(rows, people, options.out / f"{SUITES[size]}.png")
    told = {
        suite: {
            label: {name: each["scores"].get(name) for name in HEADLINES}
            for label, each in found["methods"].items()
        }
        for suite, found in results.items()
    }
    print(json.dumps(told, indent=1))
    if is_as_published(asked, options, but={"sizes"}):
        about = {
            "environment": describe_machine(),
            "base_sha256": laboratory.base.sha256,
            "seeds": options.seeds,
        }
        for suite, found in results.items():
            keep_part(RESULTS / "company.json", suite, found, about)
        if min(SUITES) in options.sizes:
            shutil.copyfile(options.out / f"{SUITES[min(SUITES)]}.png", RESULTS / "company.png")


if __name__ == "__main__":
    main()

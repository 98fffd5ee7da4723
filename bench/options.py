"""What options of training bring: each beside the preset without it, on the tuning individuals.

    python bench/options.py --out runs/options          # hours on two cores
    python bench/options.py --out runs/options --concepts 2 --only quantize=4bit

Individuals that no training has seen are taught from five renders by AttnDreamBooth's preset
`miniature` with one option set otherwise, drawn for the suite `miniature` and scored as by
bench/methods.py; each option is compared on the same individuals with the same preset as it is.
Options for LoRA are compared with `LORA`. Interrupted, it goes on where it was; a second
process on the same folder takes over individuals that nobody teaches (`--teach` leaves the scoring
to the first).

With six individuals of the split `tuning`, writes bench/results/options.json and options.png, an
individual for each row: its photos, then two prompts by each way. With others the same goes into
`--out`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from environment import is_as_published
from laboratory import (
    Laboratory,
    Row,
    Way,
    opened,
    parser,
    write_results,
)

RESULTS = Path(__file__).parent / "results"
NUM_INDIVIDUALS = 6
SHOWN = (4, 8)
HEADLINES = (
    "seen",
    "seen_colour",
    "seen_accessory",
    "seen_second",
    "likeness",
    "recognised",
    "both",
    "drift",
    "diversity",
)
LORA = ("rank=16", "lora.layers=attention+ff", "stage2.learning_rate=3e-4")
LORA += ("stage3.learning_rate=1e-3",)


@dataclass(frozen=True, slots=True)
class Trial:
    """A preset, and options that are set beside it, one at a time."""

    base: Way
    options: tuple[str, ...]

    def ways(self) -> Iterator[Way]:
        """The preset as it is, then with each option."""
        yield self.base
        for option in self.options:
            label = f"{self.base.label}, {option}"
            yield Way(label, self.base.method, (*self.base.overrides, option))


TRIALS = (
    Trial(
        Way("attndreambooth", "attndreambooth"),
        ("noise.highest=0.8", "mask.use=auto", "loss.min_snr_gamma=5"),
    ),
    Trial(
        Way("attndreambooth by LoRA", "attndreambooth", LORA),
        ("quantize=4bit",),
    ),
)


def main() -> None:
    asked = parser(__doc__)
    asked.set_defaults(concepts=NUM_INDIVIDUALS)
    asked.add_argument("--split", choices=["measured", "tuning"], default="tuning")
    asked.add_argument("--only", nargs="*", metavar="OPTION", help="of all options these")
    asked.add_argument("--teach", action="store_true", help="teach, and score nothing")
    options = asked.parse_args()
    trials = [
        Trial(each.base, kept)
        for each in TRIALS
        if (kept := tuple(o for o in each.options if options.only is None or o in options.only))
    ]
    chosen = [way for each in trials for way in each.ways()]
    with opened(options, options.split) as laboratory:
        for way in chosen:
            laboratory.teach(way)
        if options.teach:
            return
        rows = list(_scored(laboratory, chosen))
        compared = [(each.base.label, trials[0].base.label) for each in trials[1:]]
        compared += [(way.label, each.base.label) for each in trials for way in [*each.ways()][1:]]
        document = write_results(
            laboratory,
            rows,
            (RESULTS if is_as_published(asked, options) else options.out) / "options.json",
            key="ways",
            compared=compared,
            headlines=HEADLINES,
            about={"split": options.split, "lora": LORA},
        )
    print(json.dumps(document["differences"], indent=2))


def _scored(laboratory: Laboratory, chosen: list[Way]) -> Iterator[Row]:
    for who in laboratory.subjects:
        for way in chosen:
            row = laboratory.row(who, way, SHOWN)
            print(who.name, way.label, {n: round(row["scores"].get(n, 0), 3) for n in HEADLINES})
            yield row


if __name__ == "__main__":
    main()

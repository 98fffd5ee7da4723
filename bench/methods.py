"""The laboratory: every method, and the plain base model, on subjects it has never seen.

    python bench/methods.py --out runs/methods                      # hours on two cores
    python bench/methods.py --out runs/methods --concepts 2 --methods sefi dreambooth --seeds 2

To choose settings, on other individuals:

    python bench/methods.py --out runs/a --split tuning --methods dreambooth --set unet.steps=300

With one photo each (a folder for itself):

    python bench/methods.py --out runs/one-photo --photos 1

Individuals, one of each category in turn, are taught from five renders by each method with its
`miniature` preset, and drawn for the suite `miniature`; the base model gets the category's name
alone. With one photo it is every method, and subjects drawn after it without any training; with
five, `--methods all` adds DreamTuner, Textual Inversion, and that with SeFi-IDE's loss.
Interrupted, it goes on where it was; a second process on the same folder takes over individuals
that nobody teaches (`--teach` leaves the scoring to the first), but methods that teach all in one
batch hold them all. Scores are those of `concept eval`, and

likeness     cosine of the identity encoder between a picture and eight other renders of the
             individual, on prompts that leave its looks alone (no recolouring, no sketch)
recognised   share of those pictures that are nearer to the individual than to each of 20 others
             of its category (chance: 0.048)
both         harmonic mean of `seen` and `recognised`

Intervals are from resampling individuals. What a training takes is measured by itself, afterwards,
with all cores. Writes bench/results/methods.json (with one photo one-photo.json, and no costs) and,
beside it, a picture: an individual for each row, its photos, then a picture by each method. With
other methods, individuals or seeds the same goes into `--out`.
"""

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from conceptry.evaluation.suites import find_suite
from conceptry.methods import all_methods
from conceptry.methods.method import DEFAULT_METHOD
from conceptry.models.loading import load_base
from conceptry.registry import Registry
from conceptry.training import train
from environment import is_as_published
from laboratory import (
    BARE_WAY,
    INSTANT,
    NUM_PHOTOS,
    WITH_LOSS,
    Laboratory,
    Row,
    Way,
    individuals,
    opened,
    parser,
    ways,
    write_results,
)

RESULTS = Path(__file__).parent / "results"
FILES = {NUM_PHOTOS: "methods", 1: "one-photo"}
"""What results are called, by the number of photos; of others they go into --out alone."""
PUBLISHED = {
    NUM_PHOTOS: (BARE_WAY.label, "attndreambooth", "dreambooth", "sefi"),
    1: ("all",),
}
"""Which ways, by the number of photos."""
SHOWN = (0, 4, 8, 10, 12)
HEADLINES = ("seen", "likeness", "recognised", "both")
COMPARED = (
    (DEFAULT_METHOD, ()),
    ("sefi", ("textual-inversion",)),
    *((way.label, ("textual-inversion",)) for way in WITH_LOSS),
    ("dreamtuner", ("dreambooth", INSTANT.label)),
    (INSTANT.label, ("dreambooth",)),
)
"""Which ways are compared with which others, on the same individuals; () are all."""


def _compared(labels: Iterable[str]) -> Iterator[tuple[str, str]]:
    for ours, others in COMPARED:
        for other in others or [label for label in labels if label != ours]:
            yield ours, other


# --- what a training takes ------------------------------------------------------------------------


def cost_of(method: str) -> dict[str, float]:
    """Seconds of teaching the first individual, and the peak memory, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--out", "-", "--cost-of", method],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def tell_cost(method: str) -> None:
    """Teach the first individual in a registry that goes away again, and print what it took."""
    (who,) = individuals("measured", 1)
    base = load_base()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        with Registry.open(out / "concepts.db", create=True) as registry:
            Laboratory(registry, base, [who]).enter(out)
            trained = train(registry, who.name, base, method=method, preset="miniature")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": trained.seconds, "peak_memory_bytes": peak}))


def main() -> None:
    asked = parser(__doc__)
    asked.add_argument("--split", choices=["measured", "tuning"], default="measured")
    asked.add_argument("--methods", nargs="*", help="all, or some; else those that are published")
    asked.add_argument("--photos", type=int, default=NUM_PHOTOS, help="of each, the first ones")
    asked.add_argument("--teach", action="store_true", help="teach, and score nothing")
    asked.add_argument("--cost-of", metavar="METHOD", help="print what a training takes")
    asked.add_argument("--set", action="append", default=[], dest="overrides", metavar="K=V")
    options = asked.parse_args()
    if options.cost_of:
        tell_cost(options.cost_of)
        return
    if options.overrides and options.split == "measured":
        sys.exit("what is measured are the presets: --set goes with --split tuning")
    names = options.methods or PUBLISHED.get(options.photos, ["all"])
    chosen = ways(names, options.overrides, options.photos)
    with opened(options, options.split, options.photos) as laboratory:
        for way in chosen:
            laboratory.teach(way)
        if options.teach:
            return
        rows = list(_scored(laboratory, chosen))
        file = FILES.get(options.photos)
        is_whole = file is not None and is_as_published(asked, options, but=("photos",))
        measured = chosen if is_whole and options.photos == NUM_PHOTOS else []
        costs = {way.label: cost_of(way.label) for way in measured if way.label in all_methods()}
        document = write_results(
            laboratory,
            rows,
            (RESULTS if is_whole else options.out) / f"{file or 'methods'}.json",
            key="methods",
            compared=_compared([way.label for way in chosen]),
            headlines=HEADLINES,
            about={
                "prompts": [prompt.text for prompt in find_suite("miniature").prompts],
                "cost": costs,
            },
        )
    print(json.dumps(document["methods"], indent=2))


def _scored(laboratory: Laboratory, chosen: Sequence[Way]) -> Iterator[Row]:
    for who in laboratory.subjects:
        for way in chosen:
            row = laboratory.row(who, way, SHOWN)
            print(who.name, way.label, {n: round(row["scores"][n], 3) for n in HEADLINES})
            yield row


if __name__ == "__main__":
    main()

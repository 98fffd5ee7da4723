"""What compressed versions of AttnDreamBooth keep: the size of each, and its scores.

    python bench/compress.py --out runs/compress                       # hours on two cores
    python bench/compress.py --out runs/c --split tuning --concepts 2 --seeds 1

Individuals are taught by AttnDreamBooth with its preset for the miniature, unless the folder has
them from an earlier call, or from bench/methods.py; each version is compressed in each way, drawn
for the suite `miniature` and scored as by bench/methods.py, whose `both` is the harmonic mean of
`seen` and `recognised`. Interrupted, it goes on where it was: pictures that were drawn are kept.
 The goal: at most 5 % of the fp16 file, at most 1 % less of `both`.

With the twelve individuals of `measured`, writes bench/results/compress.json and compress.png, an
individual for each row: its photos, then the pictures of one prompt by each way. Of others the same
goes into `--out`.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from conceptry.adapters.compression import compress_version
from conceptry.adapters.ways import Way as Compression
from environment import is_as_published
from laboratory import (
    Individual,
    Laboratory,
    Row,
    Way,
    opened,
    parser,
    write_results,
)

RESULTS = Path(__file__).parent / "results"
WHOLE = Way("attndreambooth", "attndreambooth")
COMPRESSIONS = (
    "svd:2",
    "svd:4",
    "svd:8",
    "svd:16",
    "svd:16:int4",
    "svd:24:int4",
    "svd:50%",
    "svd:90%",
    "1bit",
    "fp8",
    "int8",
)
SHOWN = (4,)
HEADLINES = ("seen", "likeness", "recognised", "both")


def way_of(compression: str) -> Way:
    """The version that was compressed so, by its alias."""
    alias = compression.replace(":", "-").replace("%", "-percent")
    return Way(compression, WHOLE.method, alias=f"by-{alias}")


def compress(laboratory: Laboratory, who: Individual, compression: str) -> None:
    """Make the compressed version of an individual, unless there is one."""
    way = way_of(compression)
    if laboratory.version(who, way) is None:
        whole = laboratory.version(who, WHOLE)
        concept = laboratory.registry.show(who.name)
        (version,) = [each for each in concept.versions if each.number == whole]
        compress_version(
            laboratory.registry, concept, version, Compression.parse(compression), alias=way.alias
        )


def size_of(laboratory: Laboratory, who: Individual, way: Way) -> int:
    """The bytes of a version's file."""
    number = laboratory.version(who, way)
    versions = laboratory.registry.show(who.name).versions
    return next(each.artifacts[0].bytes for each in versions if each.number == number)


def rows(laboratory: Laboratory, compressions: list[str]) -> Iterator[Row]:
    """Scores and sizes of each individual by each way."""
    for who in laboratory.subjects:
        whole = size_of(laboratory, who, WHOLE)
        for way in (WHOLE, *map(way_of, compressions)):
            row = laboratory.row(who, way, SHOWN)
            row["scores"]["share_of_bytes"] = size_of(laboratory, who, way) / whole
            told = {name: round(row["scores"][name], 3) for name in (*HEADLINES, "share_of_bytes")}
            print(who.name, way.label, told, flush=True)
            yield row


def main() -> None:
    asked = parser(__doc__)
    asked.add_argument("--split", choices=["measured", "tuning"], default="measured")
    asked.add_argument("--to", nargs="*", default=list(COMPRESSIONS), metavar="WAY")
    options = asked.parse_args()
    with opened(options, options.split) as laboratory:
        laboratory.teach(WHOLE)
        for who in laboratory.subjects:
            for each in options.to:
                compress(laboratory, who, each)
        found = list(rows(laboratory, options.to))
        document = write_results(
            laboratory,
            found,
            (RESULTS if is_as_published(asked, options) else options.out) / "compress.json",
            key="ways",
            compared=[(each, WHOLE.label) for each in options.to],
            headlines=HEADLINES,
            about={"split": options.split},
        )
    print(json.dumps(document["ways"], indent=2))


if __name__ == "__main__":
    main()

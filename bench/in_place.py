"""A picture for the README: two individuals at once, each in its box, and each where it is found.

    python bench/in_place.py --out runs/merging     # the folder of bench/merging.py, or a new one

The first two tuning individuals, a cat and a dog, each taught by AttnDreamBooth with its preset for
the miniature: two photos of each, then pictures of one prompt with the first six seeds by each
`--layout`. Nothing is picked. Writes bench/results/in-place.png.
"""

import json
from pathlib import Path

from conceptry.generation import generate
from conceptry.generation.layout import AUTO, NONE, Layout
from conceptry.generation.pictures import contact_sheet
from conceptry.generation.request import Request, SamplingSettings
from laboratory import Laboratory, Way, opened, parser
from PIL import Image

RESULT = Path(__file__).parent / "results" / "in-place.png"
WAY = Way("attndreambooth", "attndreambooth")
PLACE = "on the beach"
SEEDS = range(6)
LEFT, RIGHT = (0.0, 0.3, 0.5, 1.0), (0.5, 0.3, 1.0, 1.0)
SIDE = 112


def drawn(laboratory: Laboratory, layout: Layout, folder: Path) -> list[Image.Image]:
    """The pictures of the prompt with a layout."""
    names = " and ".join(f"<{who.name}>" for who in laboratory.subjects)
    settings = SamplingSettings.for_base(laboratory.base.base, layout=layout)
    request = Request(prompt=f"a photo of {names} {PLACE}", seeds=SEEDS, settings=settings)
    pictures = generate(laboratory.registry, laboratory.base, [request], folder)
    return [each.image for each in pictures]


def main() -> None:
    asked = parser(__doc__)
    asked.set_defaults(concepts=2)
    options = asked.parse_args()
    with opened(options, "tuning") as laboratory:
        laboratory.teach(WAY)
        one, other = laboratory.subjects
        ways: dict[str, Layout] = {
            "both at once: --layout none": NONE,
            "each in a box: --layout CAT=0,.3,.5,1 --layout DOG=.5,.3,1,1": {
                one.name: LEFT,
                other.name: RIGHT,
            },
            "each where it is found: --layout auto": AUTO,
        }
        rows = [("two photos of each", [*one.photos[:2], *other.photos[:2]])]
        for number, (caption, layout) in enumerate(ways.items()):
            rows.append((caption, drawn(laboratory, layout, options.out / f"in-place-{number}")))
    sheet = contact_sheet(rows, side=SIDE)
    sheet.quantize(256, dither=Image.Dither.NONE).save(RESULT, optimize=True)
    print(json.dumps({"picture": str(RESULT), "bytes": RESULT.stat().st_size}))


if __name__ == "__main__":
    main()

"""The animation of the README: one photo of a subject, and layouts of somebody who walks.

    python bench/walk.py                              # the ControlNet that ships
    python bench/walk.py --layout runs/layout         # a diffusers folder

The first tuning individual is drawn after its first photo, without any training; each frame also
after the one before it. The first seed, nothing is picked. Writes bench/results/walk.webp: in each
frame the photo, the layout, and what was drawn.
"""

import argparse
import tempfile
from pathlib import Path

from conceptry.generation.frames import parse_controls
from conceptry.generation.generating import animate
from conceptry.generation.reference_syntax import ReferenceRequest
from conceptry.generation.request import Request, SamplingSettings
from conceptry.models.loading import load_base
from conceptry.models.miniature.world.layouts import walk
from conceptry.registry import Registry
from laboratory import individuals
from PIL import Image

RESULT = Path(__file__).parent / "results" / "walk.webp"
NUM_FRAMES = 16
MILLISECONDS = 160
WEIGHT = 3.0
"""ω of the photo."""
PLACE = "in the snow"


def frames(layout: str, folder: Path) -> list[Image.Image]:
    """The photo, a layout and a drawn picture beside each other, for each step of the walk."""
    (who,) = individuals("tuning", 1)
    photo, places = folder / "photo.png", folder / "layouts"
    who.photos[0].save(photo)
    places.mkdir()
    base = load_base()
    for i, each in enumerate(walk(who.identity, base.backbone.size, NUM_FRAMES)):
        each.save(places / f"{i}.png")
    with Registry.open(folder / "concepts.db", create=True) as registry:
        registry.add(who.name, [photo], category=who.identity.category)
        requests = [
            Request(
                prompt=f"a photo of a {who.identity.category} {PLACE}",
                seeds=(0,),
                settings=SamplingSettings.for_base(base.base),
                references=(ReferenceRequest(who.name, None, WEIGHT),),
                control=control,
            )
            for control in parse_controls(f"{places}:{layout}")
        ]
        drawn = [each.image for each in animate(registry, base, requests, folder / "drawn")]
    return [
        _beside(who.photos[0], Image.open(places / f"{i}.png"), image)
        for i, image in enumerate(drawn)
    ]


def _beside(*images: Image.Image) -> Image.Image:
    side = images[-1].width
    strip = Image.new("RGB", (side * len(images), side), "white")
    for i, image in enumerate(images):
        strip.paste(image.convert("RGB").resize((side, side)), (i * side, 0))
    return strip


def main() -> None:
    """The command line."""
    asked = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    asked.add_argument("--layout", default="layout", help="a diffusers folder")
    asked.add_argument("--out", type=Path, default=RESULT)
    options = asked.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        first, *others = frames(options.layout, Path(folder))
    first.save(
        options.out, save_all=True, append_images=others, duration=MILLISECONDS, loop=0, quality=85
    )
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

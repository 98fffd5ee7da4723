"""Whether frames look more alike with the previous frame as a reference beside the photo.

    python bench/frames.py --out runs/frames
    python bench/frames.py --out runs/frames --parts walk --layout runs/layout # a diffusers folder

places     a frame for each of eight places, which the prompt names
walk       a walk from left to right, by layout pictures

Individuals that no training has seen, each from one photo with weight 10; ways differ in nothing
but the weights of earlier frames. Subjects are cut out by the map of their category's word.

neighbours cosine of the identity encoder between each frame and the next
photo      the same between each frame and the photo: what holds frames together should not cost it

`gains` are differences from the photo alone, of the same individuals and seeds, with intervals from
resampling individuals. Interrupted, it goes on: frames that are there are not drawn again. Writes
bench/results/frames.json.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conceptry.generation.control_request import LAYOUT
from conceptry.generation.frames import PHOTO_WEIGHT, FrameWeights, parse_controls
from conceptry.generation.generating import animate
from conceptry.generation.photo_regions import regions_of_photos
from conceptry.generation.reference_syntax import ReferenceRequest
from conceptry.generation.request import Request, SamplingSettings
from conceptry.models.loading import LoadedBase
from conceptry.models.miniature.world.layouts import walk
from conceptry.models.miniature.world.scenes import PLACES
from conceptry.models.pixels import grey_outside
from environment import describe, is_as_published
from laboratory import Individual, Laboratory, differences, embed, opened, parser, summary
from PIL import Image
from torch import Tensor

RESULT = Path(__file__).parent / "results" / "frames.json"
NUM_FRAMES = 8
PHOTO = "photo"
WAYS = {
    PHOTO: FrameWeights(previous=0.0),
    "photo and previous": FrameWeights(),
    "photo, previous and first": FrameWeights(first=1.0),
}
PARTS = ("places", "walk")
SCORES = ("neighbours", "photo")


def frames_of(who: Individual, part: str, kind: str, folder: Path) -> list[tuple[str, Any]]:
    """Prompt and control of each frame."""
    thing = f"a photo of a {who.identity.category}"
    if part == "places":
        return [(f"{thing} {place}", None) for place in PLACES[:NUM_FRAMES]]
    folder = folder / "layouts" / who.name
    folder.mkdir(parents=True, exist_ok=True)
    for i, layout in enumerate(walk(who.identity, 128, NUM_FRAMES)):
        layout.save(folder / f"{i}.png")
    return [(thing, each) for each in parse_controls(f"{folder}:{kind}")]


def row_of(
    laboratory: Laboratory, who: Individual, way: str, frames: Sequence[tuple[str, Any]], out: Path
) -> dict[str, Any]:
    """Mean scores of one individual's animations, one for each seed."""
    requests = [
        Request(
            prompt=prompt,
            seeds=laboratory.seeds,
            settings=SamplingSettings(),
            references=(ReferenceRequest(who.name, None, PHOTO_WEIGHT),),
            control=control,
        )
        for prompt, control in frames
    ]
    drawn = animate(laboratory.registry, laboratory.base, requests, out, weights=WAYS[way])
    images = [each.image for each in drawn]
    category = who.identity.category
    vectors = cut_out(laboratory.base, images, category).unflatten(0, (-1, len(frames)))
    photo = cut_out(laboratory.base, who.photos[:1], category)[0]
    scores = {
        "neighbours": float((vectors[:, 1:] * vectors[:, :-1]).sum(-1).mean()),
        "photo": float((vectors @ photo).mean()),
    }
    print(who.name, way, {name: round(value, 3) for name, value in scores.items()}, flush=True)
    return {"individual": who.name, "method": way, "scores": scores}


def cut_out(base: LoadedBase, images: Sequence[Image.Image], category: str) -> Tensor:
    """Unit vectors (B, d) of what a category's map finds in pictures, on grey."""
    regions = regions_of_photos(base, images, category)
    cut = [grey_outside(*pair) for pair in zip(images, regions, strict=True)]
    return embed(cut)


def main() -> None:
    asked = parser(__doc__)
    asked.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    asked.add_argument("--layout", type=Path, help="a diffusers folder")
    options = asked.parse_args()
    results: dict[str, Any] = {}
    with opened(options) as laboratory:
        for part in options.parts:
            kind = "" if part == "places" else str(options.layout or LAYOUT)
            rows = [
                row_of(
                    laboratory,
                    who,
                    way,
                    frames_of(who, part, kind, options.out),
                    options.out / part / way.replace(" ", "-") / who.name,
                )
                for who in laboratory.subjects
                for way in WAYS
            ]
            results[part] = {
                "ways": summary(rows),
                "gains": differences(rows, [(way, PHOTO) for way in WAYS if way != PHOTO], SCORES),
                "rows": rows,
            }
            told = {name: each for name, each in results[part].items() if name != "rows"}
            print(part, json.dumps(told, indent=1), flush=True)
        base_sha256 = laboratory.base.sha256
    if is_as_published(asked, options):
        document = {
            "environment": describe(),
            "base_sha256": base_sha256,
            "seeds": options.seeds,
            "num_frames": NUM_FRAMES,
            **results,
        }
        RESULT.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()

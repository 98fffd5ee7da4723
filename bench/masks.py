"""Whether masks and captions keep out of a concept what its photos have in common.

    python bench/masks.py --out runs/masks found      # minutes; nothing is trained
    python bench/masks.py --out runs/masks            # all three parts: hours

found   IoU of the masks that attention finds in renders of held-out individuals with those of the
        renderer
place   individuals in five photos of one place, taught with mask.use none, auto and stored (the
        renderer's masks): share of pictures that show that place although another was asked for,
        and share that show the one that was asked for
hat     individuals in five photos with a hat on, whose captions name it, taught with captions.share
        0 and 0.5: share of pictures with a hat that nobody asked for, and of those with one where
        it was asked for

Each individual is taught by each way of a part; pictures are judged by the judge. `likeness` is the
identity encoder's mean cosine of pictures in which nothing is asked to be worn with renders of the
individual in other scenes. Interrupted, it goes on where it was, but for pictures. Intervals are
from resampling individuals (in `found`: renders). Writes bench/results/masks.json and, into
`--out`, masks-place.png and masks-hat.png: for each individual a photo and a picture by each way.
"""

import argparse
import json
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from conceptry.evaluation.judge import load_judge
from conceptry.generation.injection import expand_prompt, inject_concepts
from conceptry.generation.photo_regions import regions_of_photos
from conceptry.generation.pictures import contact_sheet
from conceptry.generation.prompt_syntax import resolve_prompt
from conceptry.generation.sampler import draw
from conceptry.models.loading import LoadedBase, load_base
from conceptry.models.miniature.architecture import SIZE
from conceptry.models.miniature.world.identities import (
    CATEGORIES,
    identity_seed,
    make_identity,
)
from conceptry.models.miniature.world.places import PLACES
from conceptry.models.miniature.world.scenes import Rendered, render, sample_scene
from conceptry.registry import Registry
from conceptry.training import train
from environment import describe as describe_machine
from environment import is_as_published, keep_part
from laboratory import (
    NUM_OTHERS,
    NUM_PHOTOS,
    Row,
    differences,
    embed,
    interval,
    renders_of,
    summary,
    without_pictures,
)
from miniature import SETTINGS
from PIL import Image

RESULTS = Path(__file__).parent / "results" / "masks.json"
NUM_RENDERS = 300
HAT = "wearing a hat"
PARTS = ("found", "place", "hat")
SCORES = ("unasked", "asked", "likeness")
WAYS: dict[str, dict[str, tuple[str, ...]]] = {
    "place": {use: (f"mask.use={use}",) for use in ("none", "auto", "stored")},
    "hat": {f"captions-{share}": (f"captions.share={share / 100}",) for share in (0, 50)},
}


@dataclass(frozen=True, slots=True)
class Sitter:
    """An individual with its photos, all in one place, and with a hat on in the part `hat`."""

    name: str
    category: str
    place: str
    photos: list[Rendered]
    captions: list[str]
    elsewhere: list[Image.Image]
    """Renders of it in other scenes."""

    @property
    def unmasked(self) -> str:
        """The name of the concept whose photos have no masks."""
        return f"{self.name}-unmasked"

    def enter(self, registry: Registry, folder: Path) -> None:
        """Add its photos, masks and captions to a registry, and photos without masks, once."""
        if self.unmasked in registry.names():
            return
        photos, masks = folder / "photos" / self.name, folder / "masks" / self.name
        for each in (photos, masks):
            each.mkdir(parents=True, exist_ok=True)
        for i, (photo, caption) in enumerate(zip(self.photos, self.captions, strict=True)):
            photo.image.save(photos / f"{i}.png")
            photo.masks[0].save(masks / f"{i}.png")
            (photos / f"{i}.txt").write_text(caption)
        registry.add(self.name, [photos], category=self.category, masks=masks)
        registry.add(self.unmasked, [photos], category=self.category)


def sitters(part: str, count: int) -> Iterator[Sitter]:
    """One of each category, in turn, each in another place; with a hat, in five places."""
    rng = random.Random(f"masks {part}")
    for i in range(count):
        category = CATEGORIES[i % len(CATEGORIES)]
        identity = make_identity(identity_seed(rng, "held-out"), category)
        places = [PLACES[i % len(PLACES)]] * NUM_PHOTOS
        if part == "hat":
            places = rng.sample(PLACES, NUM_PHOTOS)
        photos, captions = list[Rendered](), list[str]()
        for place in places:
            scene = sample_scene(
                rng.randrange(1 << 40),
                "held-out",
                identity=identity,
                num_subjects=1,
                place=place,
                style="photo",
            )
            worn = HAT if part == "hat" else None
            subjects = tuple(replace(each, accessory=worn) for each in scene.subjects)
            photos.append(render(replace(scene, subjects=subjects), SIZE))
            captions.append(f"a photo of a {' '.join(filter(None, (category, worn, place)))}")
        apart = random.Random(f"masks {part} {i} elsewhere")
        elsewhere = [each.image for each in renders_of(identity, apart, NUM_OTHERS)]
        yield Sitter(f"{part}-{category}-{i}", category, places[0], photos, captions, elsewhere)


def found(base: LoadedBase) -> dict[str, Any]:
    """IoU of found masks with the renderer's."""
    overlaps: list[float] = []
    for seed in range(8_000_000, 8_000_000 + NUM_RENDERS):
        scene = sample_scene(seed, "held-out", num_subjects=1, style="photo")
        rendered = render(scene, 256)
        (mask,) = regions_of_photos(base, [rendered.image], scene.subjects[0].identity.category)
        seen = np.asarray(mask.resize(rendered.image.size, Image.Resampling.BILINEAR)) > 127
        true = np.asarray(rendered.masks[0]) > 127
        overlaps.append(float((seen & true).sum() / (seen | true).sum()))
    return {
        "num_renders": NUM_RENDERS,
        "iou": interval(overlaps),
        "of_0.5_or_more": interval([float(each >= 0.5) for each in overlaps]),
    }


def taught(registry: Registry, base: LoadedBase, who: Sitter, way: str, method: str) -> str:
    """How a prompt names the version taught by a way; it is taught if there is none."""
    part = who.name.partition("-")[0]
    alias, name = f"{method}-{way}", who.unmasked if way == "auto" else who.name
    if not any(alias in version.aliases for version in registry.show(name).versions):
        words = WAYS[part][way]
        done = train(registry, name, base, method=method, preset="miniature", overrides=words)
        registry.set_alias(name, done.version, alias)
        print(name, way, done.seconds, flush=True)
    return f"<{name}@{alias}>"


def drawn(
    registry: Registry, base: LoadedBase, prompts: Sequence[str], seeds: Sequence[int]
) -> Iterator[list[Image.Image]]:
    """Pictures of each prompt, from each seed; all prompts name the same version."""
    with inject_concepts(base, resolve_prompt(registry, prompts[0])) as concepts:
        for prompt in prompts:
            words = expand_prompt(prompt, concepts)
            yield [each.image for each in draw(base, words, list(seeds), SETTINGS)]


def measured(
    registry: Registry, base: LoadedBase, who: Sitter, name: str, seeds: Sequence[int]
) -> Row:
    """Shares of pictures that show what was not asked for, and what was; and its likeness.

    With the first picture.
    """
    judge = load_judge()
    if who.name.startswith("hat"):
        prompts = [f"a photo of a {name} {place}" for place in PLACES[:4]]
        prompts += [f"a photo of a {name} {HAT}"]
        *plain, hatted = drawn(registry, base, prompts, seeds)
        unasked, asked = (
            [each.accessory == HAT for images in groups for each in judge.classify(images)]
            for groups in (plain, [hatted])
        )
    else:
        places = [place for place in PLACES if place != who.place][:5]
        prompts = [f"a photo of a {name} {place}" for place in places]
        plain = list(drawn(registry, base, prompts, seeds))
        judged = [
            (place, each.place)
            for place, images in zip(places, plain, strict=True)
            for each in judge.classify(images)
        ]
        unasked = [found == who.place for _, found in judged]
        asked = [found == place for place, found in judged]
    pictures = [image for images in plain for image in images]
    likeness = embed(pictures) @ embed(who.elsewhere).T
    scores = {
        "unasked": statistics.fmean(unasked),
        "asked": statistics.fmean(asked),
        "likeness": float(likeness.mean()),
    }
    return {"scores": scores, "shown": pictures[0]}


def part(
    name: str, registry: Registry, base: LoadedBase, options: argparse.Namespace
) -> dict[str, Any]:
    """Scores by each way of the part `place` or `hat`, and all rows."""
    rows: list[Row] = []
    lines: list[tuple[list[str], list[Image.Image]]] = []
    for who in sitters(name, options.concepts):
        who.enter(registry, options.out)
        for way in WAYS[name]:
            called = taught(registry, base, who, way, options.method)
            found = measured(registry, base, who, called, range(options.seeds))
            rows.append({"individual": who.name, "method": way} | found)
            print(who.name, way, found["scores"], flush=True)
        own = rows[-len(WAYS[name]) :]
        lines.append((["photo", *WAYS[name]], [who.photos[0].image, *(r["shown"] for r in own)]))
    contact_sheet(lines, side=128).save(options.out / f"masks-{name}.png")
    first, *others = WAYS[name]
    return {
        "method": options.method,
        "seeds": options.seeds,
        "ways": summary(rows),
        "differences": differences(rows, [(each, first) for each in others], SCORES),
        "rows": without_pictures(rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--method", default="attndreambooth")
    parser.add_argument("--concepts", type=int, default=len(CATEGORIES))
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    base = load_base()
    about = describe_machine() | {"base_sha256": base.sha256, "seeds": options.seeds}
    is_whole = is_as_published(parser, options, but=("parts",))
    path = RESULTS if is_whole else options.out / "masks.json"
    with Registry.open(options.out / "concepts.db", create=True) as registry:
        for name in options.parts or PARTS:
            is_found = name == "found"
            told = found(base) if is_found else part(name, registry, base, options)
            print(name, json.dumps({k: v for k, v in told.items() if k != "rows"}, indent=1))
            keep_part(path, name, told, about)


if __name__ == "__main__":
    main()

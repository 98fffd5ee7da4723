"""Training the head that knows a face from a spoiled one, measuring it and exporting it.

python -m conceptry.evaluation.faces_recipe train --out runs/faces
python -m conceptry.evaluation.faces_recipe ship --out runs/faces

Renders of one animal; in half of them its face is spoiled as bad models spoil it. In half of all
another place is spoiled the same way, so that the traces of an edit say nothing.
"""

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw, ImageFilter
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F  # noqa: N812 (everyone's name for it)

from ..models.hashes import hash_of
from ..models.miniature.architecture import SMALL_SIZE
from ..models.miniature.recipe.data import Batch, batch_of
from ..models.miniature.recipe.train import Context, Losses, Stage, train
from ..models.miniature.world.identities import identity_seed, make_identity
from ..models.miniature.world.scenes import Scene, Subject, render, sample_scene
from .faces import FACED, SHIPPED, FaceFinder, FaceHead, load_faces
from .judge import Judge, load_judge

Box = tuple[int, int, int, int]
Spoil = Callable[[Image.Image, random.Random], Image.Image]
FACE, SPOILED = "a face", "a spoiled face"
COVERING = "sunglasses"
HALF_WIDTH, HALF_HEIGHT, MIDDLE = 0.24, 0.17, 0.61
"""Of faces, and how high their middle is over the foot, as shares of a figure's height."""
SMALLEST = 8
"""Sides of what is spoiled, in pixels."""


# --- ways to spoil a piece of a picture -----------------------------------------------------------


def _blurred(piece: Image.Image, rng: random.Random) -> Image.Image:
    return piece.filter(ImageFilter.GaussianBlur(piece.width * rng.uniform(0.05, 0.14)))


def _faded(piece: Image.Image, rng: random.Random) -> Image.Image:
    return Image.blend(piece, Image.new("RGB", piece.size, _middle(piece)), rng.uniform(0.75, 1))


def _shuffled(piece: Image.Image, rng: random.Random) -> Image.Image:
    """Its quarters or ninths in another order."""
    n = rng.choice((2, 3))
    wide, high = piece.width // n, piece.height // n
    places = [(x * wide, y * high) for y in range(n) for x in range(n)]
    tiles = [piece.crop((x, y, x + wide, y + high)) for x, y in places]
    order = list(range(len(tiles)))
    while order == sorted(order):
        rng.shuffle(order)
    spoiled = piece.copy()
    for tile, place in zip(order, places, strict=True):
        spoiled.paste(tiles[tile], place)
    return spoiled


def _warped(piece: Image.Image, rng: random.Random) -> Image.Image:
    pixels = np.asarray(piece)
    height, width = pixels.shape[:2]
    noise = np.random.default_rng(rng.randrange(1 << 30))

    def shift() -> np.ndarray:
        coarse = Image.fromarray(noise.normal(size=(4, 4)).astype(np.float32))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
        return (smooth * width * rng.uniform(0.12, 0.25)).astype(int)

    y, x = np.mgrid[:height, :width]
    columns, rows = np.clip(x + shift(), 0, width - 1), np.clip(y + shift(), 0, height - 1)
    return Image.fromarray(pixels[rows, columns])


def _halved(piece: Image.Image, rng: random.Random) -> Image.Image:
    """Without its left or its right eye."""
    half = piece.width // 2
    left = rng.choice((0, half))
    spoiled = piece.copy()
    spoiled.paste(_middle(piece), (left, 0, left + half, piece.height * 5 // 8))
    return spoiled


def _doubled(piece: Image.Image, rng: random.Random) -> Image.Image:
    across = round(piece.width * rng.uniform(0.25, 0.4)) * rng.choice((-1, 1))
    down = round(piece.height * rng.uniform(-0.25, 0.25))
    shifted = ImageChops.offset(piece, across, down)
    return Image.blend(piece, shifted, rng.uniform(0.4, 0.7))


def _middle(piece: Image.Image) -> tuple[int, ...]:
    """Its median colour."""
    return tuple(int(each) for each in np.median(np.asarray(piece).reshape(-1, 3), 0))


SPOILS: tuple[Spoil, ...] = (_blurred, _faded, _shuffled, _warped, _halved, _doubled)


# --- pictures -------------------------------------------------------------------------------------


def face_of(subject: Subject, size: int) -> Box:
    """Where an animal's face is in a picture of a size, in pixels."""
    x, y = subject.x, subject.foot - MIDDLE * subject.height
    wide, high = HALF_WIDTH * subject.height, HALF_HEIGHT * subject.height
    left, top, right, bottom = (
        round(each * size) for each in (x - wide, y - high, x + wide, y + high)
    )
    return left, top, right, bottom


def spoil(picture: Image.Image, box: Box, rng: random.Random) -> None:
    """Spoil an ellipse of a picture."""
    left, top, right, bottom = box
    inside = (max(0, left), max(0, top), min(picture.width, right), min(picture.height, bottom))
    if inside[2] - inside[0] < SMALLEST or inside[3] - inside[1] < SMALLEST:
        return
    piece = picture.crop(inside)
    stencil = Image.new("L", piece.size)
    ImageDraw.Draw(stencil).ellipse((0, 0, piece.width - 1, piece.height - 1), fill=255)
    stencil = stencil.filter(ImageFilter.GaussianBlur(piece.width * 0.06))
    picture.paste(rng.choice(SPOILS)(piece, rng), inside[:2], stencil)


def example(seed: int, split: str, size: int) -> tuple[Scene, Image.Image, bool]:
    """A scene with one animal, its picture, and whether the face is whole."""
    rng = random.Random(f"face {split} {seed}")
    who = make_identity(identity_seed(rng, split), rng.choice(FACED))
    while True:
        scene = sample_scene(
            rng.randrange(1 << 40), split, identity=who, num_subjects=1, style="photo"
        )
        if COVERING not in (scene.subjects[0].accessory or ""):
            break
    picture = render(scene, 2 * size).image
    face = face_of(scene.subjects[0], picture.width)
    is_whole = rng.random() < 0.5
    if not is_whole:
        spoil(picture, face, rng)
    if rng.random() < 0.5:
        spoil(picture, _elsewhere(face, picture.width, rng), rng)
    return scene, picture.reduce(2), is_whole


def _elsewhere(face: Box, size: int, rng: random.Random) -> Box:
    """As large a box that is clear of the face: often the body, right below."""
    left, top, right, bottom = face
    width, height = right - left, bottom - top
    if rng.random() < 0.5:
        down = height + rng.randrange(height)
        return left, top + down, right, bottom + down
    while True:
        x, y = rng.randrange(size), rng.randrange(size)
        if abs(x - (left + right) / 2) > width or abs(y - (top + bottom) / 2) > height:
            return x - width // 2, y - height // 2, x + width // 2, y + height // 2


def faces_batch(step: int, *, split: str, offset: int, batch: int, size: int) -> Batch:
    """Batch `step` of examples; captions tell whether the face is whole."""
    first = offset * 1_000_000_000 + step * batch
    made = [example(seed, split, size) for seed in range(first, first + batch)]
    found = batch_of([scene for scene, _, _ in made], size)
    pixels = np.stack([np.asarray(picture) for _, picture, _ in made]).transpose(0, 3, 1, 2)
    found.images.copy_(torch.from_numpy(pixels.copy()))
    found.captions[:] = [FACE if is_whole else SPOILED for *_, is_whole in made]
    return found


# --- training -------------------------------------------------------------------------------------


def _build(context: Context) -> nn.ModuleDict:
    del context
    return nn.ModuleDict({"judge": load_judge(), "head": FaceHead()})


def _losses(
    modules: nn.ModuleDict, batch: Batch, context: Context, generator: torch.Generator
) -> Losses:
    """Binary cross-entropy; the judge's trunk stays as it is."""
    del generator
    judge = modules["judge"]
    assert isinstance(judge, Judge)
    with torch.no_grad():
        features, _ = judge.trunk(context.pixels(batch.images))
    wanted = torch.tensor([float(each == FACE) for each in batch.captions], device=context.device)
    return {"face": F.binary_cross_entropy_with_logits(modules["head"](features), wanted)}


STAGE = Stage(
    name="faces",
    images=60_000,
    batch=64,
    learning_rate=2e-3,
    make_batch=faces_batch,
    offset=8,
    build=_build,
    losses=_losses,
    learns=("head",),
    split="judge",
    size=SMALL_SIZE,
)


def measure(finder: FaceFinder, num_pictures: int = 2000) -> dict[str, float]:
    """Share of right answers for whole and for spoiled faces of held-out identities."""
    right: dict[str, list[bool]] = {FACE: [], SPOILED: []}
    for step in range(-(-num_pictures // 100)):
        batch = faces_batch(step, split="held-out", offset=9, batch=100, size=SMALL_SIZE)
        pictures = [Image.fromarray(each.permute(1, 2, 0).numpy()) for each in batch.images]
        for caption, seen in zip(batch.captions, finder.has_face(pictures), strict=True):
            right[caption].append(seen == (caption == FACE))
    return {name: round(sum(values) / len(values), 4) for name, values in right.items()}


def ship(folder: Path) -> None:
    """Export a trained head into the package, in half precision, with its measured accuracy."""
    weights = load_file(folder / f"{STAGE.name}.safetensors")
    head = {name: value.half() for name, value in weights.items() if name.startswith("head.")}
    save_file(head, SHIPPED)
    SHIPPED.chmod(0o644)
    record: dict[str, object] = {"sha256": hash_of(SHIPPED)}
    SHIPPED.with_suffix(".json").write_text(json.dumps(record))
    record["accuracy"] = measure(load_faces())
    record["training"] = json.loads((folder / f"{STAGE.name}.json").read_text())
    SHIPPED.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("train", "ship"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    if options.action == "train":
        train(STAGE, options.out, images=options.images, num_workers=options.workers)
    else:
        ship(options.out)


if __name__ == "__main__":
    main()

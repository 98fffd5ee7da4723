"""What a subject encoder brings at some strengths β, and how much of the reference's layout leaks.

    python bench/subject_encoder.py --encoder with=runs/a --encoder without=runs/b   # the ablation
    python bench/subject_encoder.py --out result.json                 # the one beside the miniature
    python bench/subject_encoder.py --untrained --individuals 1 --out x.json   # to see that it runs

DreamTuner's ablation of the ControlNet in pre-training: without it, the reference's layout leaks.
Individuals that no training has seen are drawn from one reference, which once stands on the left
and once on the right; prompts and seeds are the same for both, and for all strengths.

identity    cosine of the identity encoder between the drawn subject and the reference, both on grey
overlap     IoU of the drawn subject's region and the reference's mask
follows     how far the subject moves with its reference: 0 not at all, 1 as far as that

`gains` are differences from the same pictures at β = 0, resampled together. Regions are those of
the category's attention map (`evaluation/regions.py`). Writes bench/results/subject-encoder.json.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conceptry.adapters.adapter import injected
from conceptry.adapters.subject_encoding import SubjectEncoding
from conceptry.generation.photo_regions import regions_of_photos
from conceptry.generation.request import SamplingSettings
from conceptry.generation.sampler import draw_batch
from conceptry.models.loading import LoadedBase, load_base
from conceptry.models.miniature.world.identities import (
    CATEGORIES,
    Identity,
    identity_seed,
    make_identity,
)
from conceptry.models.miniature.world.scenes import render, sample_scene
from conceptry.models.pixels import grey_outside, on_white
from conceptry.models.subject_encoder import SubjectEncoder
from conceptry.models.subject_encoder_file import LoadedSubjectEncoder, load_subject_encoder
from conceptry.models.vision import load_vision
from environment import describe, results_file
from laboratory import embed, interval
from PIL import Image, ImageChops

RESULT = Path(__file__).parent / "results" / "subject-encoder.json"
STRENGTHS = (0.0, 0.1, 0.2, 0.5)
PROMPTS = ("a photo of a {}", "a photo of a {} on the beach", "a photo of a {} in the snow")
SHIFT = 0.15
"""How far a reference stands from its scene's middle, as a share of the picture."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A subject on white and its mask, both moved to a side."""

    picture: Image.Image
    mask: Image.Image


def identities(count: int) -> Iterator[Identity]:
    """Held-out ones, a category each in turn."""
    rng = random.Random("subject encoder")
    for i in range(count):
        yield make_identity(identity_seed(rng, "held-out"), CATEGORIES[i % len(CATEGORIES)])


def references_of(identity: Identity, size: int) -> list[Reference]:
    """On the left, and on the right."""
    scene = sample_scene(
        identity.seed, "held-out", identity=identity, num_subjects=1, style="photo"
    )
    shown = render(scene, size)
    cut, mask = on_white(shown.image, shown.masks[0]), shown.masks[0]
    found: list[Reference] = []
    for way in (-1, 1):
        to = (round(way * SHIFT * size), 0)
        moved, where = Image.new("RGB", cut.size, "white"), Image.new("L", cut.size)
        moved.paste(cut, to)
        where.paste(mask, to)
        found.append(Reference(moved, where))
    return found


def measured(
    base: LoadedBase, encoder: LoadedSubjectEncoder, who: Identity, seeds: Sequence[int], steps: int
) -> dict[float, dict[str, float]]:
    """Means of one individual over prompts, seeds and both sides, by strength."""
    references = references_of(who, base.backbone.size)
    prompts = [prompt.format(who.category) for prompt in PROMPTS]
    drawn: dict[tuple[float, int], list[Image.Image]] = {}
    for strength in STRENGTHS:
        for side, reference in enumerate(references):
            if not strength and side:
                drawn[strength, side] = drawn[strength, 0]
                continue
            encoding = SubjectEncoding.of(encoder, [reference.picture], strength)
            with injected(base.backbone, [encoding]):
                drawn[strength, side] = _drawn(base, prompts, seeds, steps)
    return {
        strength: _scores(base, who, references, [drawn[strength, side] for side in (0, 1)])
        for strength in STRENGTHS
    }


def _drawn(
    base: LoadedBase, prompts: Sequence[str], seeds: Sequence[int], steps: int
) -> list[Image.Image]:
    settings = SamplingSettings(steps=steps)
    return [
        image
        for prompt in prompts
        for image in draw_batch(base.backbone, [prompt] * len(seeds), seeds, settings)
    ]


def _scores(
    base: LoadedBase,
    who: Identity,
    references: Sequence[Reference],
    drawn: Sequence[Sequence[Image.Image]],
) -> dict[str, float]:
    likeness: list[float] = []
    overlaps: list[float] = []
    centres: list[list[float]] = []
    for reference, pictures in zip(references, drawn, strict=True):
        regions = regions_of_photos(base, pictures, who.category)
        cut = [grey_outside(*pair) for pair in zip(pictures, regions, strict=True)]
        own = embed([grey_outside(reference.picture, reference.mask)])
        likeness += (embed(cut) @ own[0]).tolist()
        overlaps += [overlap(region, reference.mask) for region in regions]
        centres.append([centre(region) for region in regions])
    moved = np.mean(centres[1]) - np.mean(centres[0])
    apart = centre(references[1].mask) - centre(references[0].mask)
    return {
        "identity": float(np.mean(likeness)),
        "overlap": float(np.mean(overlaps)),
        "follows": float(moved / apart),
    }


def overlap(region: Image.Image, mask: Image.Image) -> float:
    """IoU of a region and a mask, at the region's size."""
    ours, theirs = _hard(region), _hard(mask.resize(region.size, Image.Resampling.BOX))
    both, either = ImageChops.logical_and(ours, theirs), ImageChops.logical_or(ours, theirs)
    return np.asarray(both).sum() / max(1, np.asarray(either).sum())


def centre(region: Image.Image) -> float:
    """The mean column of a region, as a share of its width; the middle if it is empty."""
    columns = np.asarray(_hard(region)).sum(0)
    places = (np.arange(len(columns)) + 0.5) / len(columns)
    return float((columns * places).sum() / columns.sum()) if columns.any() else 0.5


def _hard(mask: Image.Image) -> Image.Image:
    return mask.convert("L").point([0] * 128 + [255] * 128).convert("1")


def summary(rows: Sequence[dict[float, dict[str, float]]]) -> dict[str, Any]:
    """Of all individuals: each score with its interval, and its gains over β = 0."""
    told: dict[str, Any] = {}
    for strength in STRENGTHS:
        names = rows[0][strength]
        told[f"{strength:g}"] = {
            "scores": {name: interval([row[strength][name] for row in rows]) for name in names},
            "gains": {
                name: interval([row[strength][name] - row[0.0][name] for row in rows])
                for name in names
            },
        }
    return told


def untrained(base: LoadedBase) -> LoadedSubjectEncoder:
    """An encoder whose sublayers put out noise: its numbers mean nothing."""
    torch.manual_seed(0)
    denoiser = base.backbone.denoiser
    encoder = SubjectEncoder.for_denoiser(load_vision("miniature", base.base).encoder, denoiser)
    for name, parameter in encoder.attention.named_parameters():
        if "to_out" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return LoadedSubjectEncoder(encoder.requires_grad_(False), "0" * 64)


def encoders(
    base: LoadedBase, options: argparse.Namespace
) -> Iterator[tuple[str, LoadedSubjectEncoder]]:
    """Each to be measured, by its label."""
    if options.untrained:
        yield "untrained", untrained(base)
        return
    for named in options.encoder or [""]:
        label, _, source = named.partition("=")
        yield label or "shipped", load_subject_encoder(base, (source or label) or None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="miniature")
    parser.add_argument("--encoder", action="append", metavar="LABEL=PATH")
    parser.add_argument("--untrained", action="store_true")
    parser.add_argument("--individuals", type=int, default=len(CATEGORIES))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    path = results_file(parser, options, RESULT, but=("encoder",))
    if path == RESULT and len(options.encoder or ()) < 2:
        sys.exit(f"name two encoders to be compared, or --out FILE: {RESULT.name} is the ablation")
    base = load_base(options.base)
    seeds = range(options.seeds)
    found: dict[str, Any] = {}
    for label, encoder in encoders(base, options):
        rows = [
            measured(base, encoder, who, seeds, options.steps)
            for who in identities(options.individuals)
        ]
        found[label] = summary(rows)
        print(label, json.dumps(found[label], indent=1), flush=True)
    document = {
        "environment": describe(),
        "individuals": options.individuals,
        "seeds": options.seeds,
        "prompts": PROMPTS,
        "encoders": found,
    }
    path.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()

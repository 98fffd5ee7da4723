"""What the miniature can do, as the judge sees it.

    python bench/miniature.py               # everything, about ten minutes on two cores
    python bench/miniature.py prompts       # one part

judge      the judge's accuracy on fresh renders of identities nobody has trained on
autoencoder  the judge on pictures that went through the autoencoder: what a U-Net could reach
prompts    pictures of 500 held-out prompts: is there what the prompt says?
attention  is the peak of a category's token map inside its subject, and inside its box? On noised
           renders; a place of the map is inside if at least half of it is the subject's
identity   does the identity encoder tell one individual from another of its category?
sharpness  outlines as sharp, and faces as whole, as the renderer's?
settling   renders that are noised and drawn from there: from which timestep are faces lost?
diversity  how many different individuals 64 seeds of one bare prompt give
time       seconds for 4 pictures, and for the whole command from a cold start
sheets     no numbers: the drawn world, and what the miniature makes of a few prompts

Shares come with 95 % Wilson intervals. Writes bench/results/miniature.json; the sheets lie beside
it as miniature-world.png and miniature-drawn.png.
"""

import argparse
import json
import math
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conceptry.evaluation.faces import FACED, load_faces
from conceptry.evaluation.judge import load_judge
from conceptry.evaluation.judge_recipe import measure
from conceptry.generation.init_request import ReadInit, UsedInit
from conceptry.generation.pictures import contact_sheet
from conceptry.generation.request import SamplingSettings
from conceptry.generation.sampler import draw
from conceptry.generation.starts import Start
from conceptry.kernels import observe
from conceptry.models.bases import DEFAULT_BASE
from conceptry.models.loading import load_base
from conceptry.models.miniature.architecture import SIZE
from conceptry.models.miniature.shipped import load_identity_encoder
from conceptry.models.miniature.world.identities import (
    CATEGORIES,
    Identity,
    identity_seed,
    make_identity,
)
from conceptry.models.miniature.world.scenes import Scene, Subject, describe, render, sample_scene
from conceptry.models.pixels import to_pixels
from environment import describe as describe_machine
from environment import keep_part
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (everyone's name for it)

RESULTS = Path(__file__).parent / "results"
NUM_PROMPTS = 500
NUM_RECONSTRUCTED = 500
NUM_ATTENTION = 400
NUM_IDENTITIES = 1500
NUM_SEEDS = 64
NUM_ANIMALS, NUM_SETTLED = 192, 96
STRENGTHS = (0.25, 0.4, 0.55, 0.7, 0.85, 1.0)
SHARP_SIDE, OUTLINE = 128, 0.05
SETTINGS = SamplingSettings(steps=25, guidance=5.0)
Share = dict[str, Any]


def share(right: Sequence[bool]) -> Share:
    """A share with its 95 % Wilson score interval."""
    n, z = len(right), 1.96
    p = sum(right) / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return {
        "mean": round(p, 4),
        "low": round(middle - half, 4),
        "high": round(middle + half, 4),
        "n": n,
    }


# --- the judge and the prompts --------------------------------------------------------------------


def judge() -> dict[str, Any]:
    return measure(load_judge(), num_scenes=4000)


@torch.no_grad()
def autoencoder(weights: str) -> dict[str, Any]:
    """Encode and decode held-out pictures, and ask the judge for what they show."""
    backbone, network = load_base(weights).backbone, load_judge()
    vae = backbone.pipeline.vae
    scenes = [
        sample_scene(seed, "held-out", style="photo")
        for seed in range(9_000_000, 9_000_000 + NUM_RECONSTRUCTED)
    ]
    pixels = to_pixels([render(scene, backbone.size).image for scene in scenes])
    decoded = torch.cat(
        [
            vae.decode(vae.encode(some).latent_dist.mean).sample.clamp(-1, 1)
            for some in pixels.split(50)
        ]
    )
    images = [
        Image.fromarray(((one + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
        for one in decoded
    ]
    right: defaultdict[str, list[bool]] = defaultdict(list)
    for scene, seen in zip(scenes, network.classify(images), strict=True):
        categories = {subject.identity.category for subject in scene.subjects}
        right["all categories"].append(categories == set(seen.categories))
        for subject in scene.subjects:
            who = subject.identity
            right["colour"].append(seen.colours.get(who.category) == who.colour)
            if subject.accessory:
                right["accessory"].append(seen.accessory == subject.accessory)
    return {
        "mean_absolute_error": round(float((decoded - pixels).abs().mean()), 4),
        **{name: share(values) for name, values in sorted(right.items())},
    }


def prompts(weights: str) -> dict[str, Any]:
    """Draw one picture for each prompt and ask the judge for what the prompt names."""
    base, network = load_base(weights), load_judge()
    scenes = [sample_scene(seed, "held-out") for seed in range(7_000_000, 7_000_000 + NUM_PROMPTS)]
    right: defaultdict[str, list[bool]] = defaultdict(list)
    started = time.perf_counter()
    for scene in scenes:
        prompt = describe(scene)
        (drawn,) = draw(base, prompt, [scene.seed], SETTINGS)
        for name, is_right in _verdicts(scene, prompt, network.classify([drawn.image])[0]):
            right[name].append(is_right)
    return {
        "settings": {"steps": SETTINGS.steps, "guidance": SETTINGS.guidance},
        "num_prompts": NUM_PROMPTS,
        "seconds": round(time.perf_counter() - started, 1),
        **{name: share(values) for name, values in sorted(right.items())},
    }


def _verdicts(scene: Scene, prompt: str, seen: Any) -> Iterator[tuple[str, bool]]:
    """Whether the judge sees what a prompt names; nothing is asked that it leaves open."""
    categories = {subject.identity.category for subject in scene.subjects}
    if len(categories) == 1:
        best = max(seen.confidence, key=seen.confidence.get)
        yield "category", best in categories
    elif len(categories) == 2:
        yield "both of two present", categories <= set(seen.categories)
    else:
        yield "all of three present", categories <= set(seen.categories)
    if len(categories) == 2 and scene.relation != "and" and f" {scene.relation} " in prompt:
        first, second = (subject.identity.category for subject in scene.subjects)
        yield "relation of two", seen.stands(scene.relation, first, second)
    if scene.place in prompt:
        yield "place", seen.place == scene.place
    yield "style", seen.style == scene.style
    for subject in scene.subjects:
        if subject.accessory and subject.accessory in prompt:
            yield "accessory", seen.accessory == subject.accessory
        if _names_colour(subject, prompt):
            is_right = seen.colours.get(subject.identity.category) == subject.identity.colour
            yield "colour", is_right
            if len(categories) == 1:
                yield "colour of a single subject", is_right


def _names_colour(subject: Subject, prompt: str) -> bool:
    who = subject.identity
    return bool(re.search(rf"\b{who.colour} (?:{who.pattern} )?{who.category}\b", prompt))


# --- attention ------------------------------------------------------------------------------------


@torch.no_grad()
def attention(weights: str) -> dict[str, Any]:
    """Average over layers, heads and the middle third of the steps; see where the peak lies.

    `chance` is the share of the picture that subjects have, and `in_box` counts the peaks in the
    box around them.
    """
    base = load_base(weights)
    inside: list[bool] = []
    in_box: list[bool] = []
    area: list[float] = []
    for seed in range(8_000_000, 8_000_000 + NUM_ATTENTION):
        scene = sample_scene(seed, "held-out")
        rendered = render(scene, base.backbone.size)
        token_map = _token_maps(base.backbone.pipeline, scene, rendered.image)
        for mask, box, grid in zip(rendered.masks, rendered.boxes(), token_map, strict=True):
            if grid is None:
                continue
            peak = int(grid.argmax())
            is_subject = np.asarray(mask.resize((16, 16), Image.Resampling.BOX)) >= 128
            inside.append(bool(is_subject.flat[peak]))
            area.append(float(is_subject.mean()))
            y, x = (peak // 16 + 0.5) / 16, (peak % 16 + 0.5) / 16
            in_box.append(box[0] <= x <= box[2] and box[1] <= y <= box[3])
    chance = round(statistics.mean(area), 3)
    return share(inside) | {"chance": chance, "in_box": share(in_box)}


def _token_maps(pipeline: Any, scene: Scene, image: Image.Image) -> list[Tensor | None]:
    """The map (16, 16) of each subject's category token, flattened."""
    prompt = describe(scene)
    tokenizer, scheduler = pipeline.tokenizer, pipeline.scheduler
    ids = tokenizer(prompt, padding="max_length", return_tensors="pt").input_ids
    states = pipeline.text_encoder(ids).last_hidden_state
    encoded = pipeline.vae.encode(to_pixels([image])).latent_dist.mean
    latents = encoded * pipeline.vae.config.scaling_factor
    scheduler.set_timesteps(SETTINGS.steps)
    third = SETTINGS.steps // 3
    steps = scheduler.timesteps[third : SETTINGS.steps - third]
    noise = torch.randn(
        (len(steps), *latents.shape[1:]), generator=torch.Generator().manual_seed(scene.seed)
    )
    noisy = scheduler.add_noise(latents.expand_as(noise), noise, steps)
    columns = [_column(tokenizer, ids, subject) for subject in scene.subjects]
    named = [column for column in columns if column is not None]
    if not named:
        return [None] * len(columns)
    with observe(pipeline.unet, columns=named, want="maps") as seen:
        pipeline.unet(noisy, steps, states.expand(len(steps), -1, -1))
    whole = torch.zeros(len(named), 16, 16)
    for maps in seen.maps.values():  # (steps, T, N)
        side = math.isqrt(maps.shape[-1])
        square = maps.mean(0).unflatten(-1, (side, side))[None]
        whole += F.interpolate(square, size=(16, 16), mode="bilinear")[0]
    flat = iter(whole.flatten(1))
    return [None if column is None else next(flat) for column in columns]


def _column(tokenizer: Any, ids: Tensor, subject: Subject) -> int | None:
    """Where a subject's category stands in the prompt."""
    token = tokenizer(subject.identity.category, add_special_tokens=False).input_ids[0]
    places = (ids[0] == token).nonzero().flatten()
    return int(places[0]) if len(places) else None


# --- sharpness ------------------------------------------------------------------------------------


def sharpness(weights: str) -> dict[str, Any]:
    """Pictures of an animal beside renders of such scenes: outlines, and faces.

    `outlines` is the mean gradient of luminance, 0..1 a pixel at 128 pixels, over the twentieth of
    a picture where it is largest. Renders are of that size; drawn pictures are enlarged to it, and
    fall behind for that, as blurred ones do. `face` is the share in which the judge's head finds
    two eyes and a nose.
    """
    base, finder = load_base(weights), load_faces()
    rendered: list[Image.Image] = []
    drawn: list[Image.Image] = []
    for i, (picture, prompt) in enumerate(_animals(NUM_ANIMALS)):
        rendered.append(picture)
        drawn += [each.image for each in draw(base, prompt, [i], SETTINGS)]
    told: dict[str, Any] = {"n": NUM_ANIMALS}
    for name, pictures in (("rendered", rendered), ("drawn", drawn)):
        outlines = statistics.mean(_outline_gradient(each) for each in pictures)
        told[name] = {"outlines": round(outlines, 4), "face": share(finder.has_face(pictures))}
    told["ratios"] = {
        "outlines": round(told["drawn"]["outlines"] / told["rendered"]["outlines"], 3),
        "face": round(told["drawn"]["face"]["mean"] / told["rendered"]["face"]["mean"], 3),
    }
    return told


def settling(weights: str) -> dict[str, Any]:
    """The faces that are left of renders, noised to some timesteps and drawn from there.

    That of a strength is `1000 * strength`; 1 begins with noise.
    """
    base, finder = load_base(weights), load_faces()
    animals = list(_animals(NUM_SETTLED))
    found: dict[str, Share] = {}
    for strength in STRENGTHS:
        drawn: list[Image.Image] = []
        for i, (picture, prompt) in enumerate(animals):
            read = ReadInit(picture.size, picture, None, UsedInit("", strength))
            start = Start.of(base.backbone, read)
            drawn += [each.image for each in draw(base, prompt, [i], SETTINGS, start=start)]
        found[f"{strength:g}"] = share(finder.has_face(drawn))
    return found


def _animals(count: int) -> Iterator[tuple[Image.Image, str]]:
    """Renders of held-out animals that wear nothing, and prompts for the like."""
    rng = random.Random("sharpness")
    for i in range(count):
        who = make_identity(identity_seed(rng, "held-out"), FACED[i % len(FACED)])
        scene = sample_scene(i, "held-out", identity=who, num_subjects=1, style="photo")
        alone = Scene(i, (replace(scene.subjects[0], accessory=None),), scene.place, "photo")
        prompt = f"a photo of a {who.colour} {who.category} {scene.place}"
        yield render(alone, SHARP_SIDE).image, prompt


def _outline_gradient(image: Image.Image) -> float:
    side = (SHARP_SIDE, SHARP_SIDE)
    grey = np.asarray(image.convert("L").resize(side, Image.Resampling.BICUBIC), dtype=float) / 255
    down, across = np.gradient(grey)
    strongest = np.sort(np.hypot(down, across), axis=None)[-round(OUTLINE * grey.size) :]
    return float(strongest.mean())


# --- identity and diversity -----------------------------------------------------------------------


def _pairs() -> tuple[Tensor, Tensor]:
    """Similarities of one individual in two scenes, and of two of one category."""
    encoder = load_identity_encoder()
    rng = random.Random("identity pairs")
    ones: list[Image.Image] = []
    twos: list[Image.Image] = []
    others: list[Image.Image] = []
    for i in range(NUM_IDENTITIES):
        category = CATEGORIES[i % len(CATEGORIES)]
        who, other = (make_identity(identity_seed(rng, "held-out"), category) for _ in range(2))
        for identity, album in ((who, ones), (who, twos), (other, others)):
            album.append(_render_of(identity, rng))
    first, second, third = (encoder.embed(album) for album in (ones, twos, others))
    return (first * second).sum(-1), (first * third).sum(-1)


def identity() -> dict[str, Any]:
    """Area under the ROC curve, with a bootstrap interval."""
    same, different = _pairs()

    def auc(same: Tensor, different: Tensor) -> float:
        order = torch.cat([same, different]).argsort().argsort().float() + 1
        n, m = len(same), len(different)
        return float((order[:n].sum() - n * (n + 1) / 2) / (n * m))

    generator = torch.Generator().manual_seed(0)
    draws = []
    for _ in range(500):
        pick = torch.randint(len(same), (len(same),), generator=generator)
        draws.append(auc(same[pick], different[pick]))
    low, high = np.quantile(draws, (0.025, 0.975))
    return {
        "auc": round(auc(same, different), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "n": NUM_IDENTITIES,
        "threshold_same_95": round(float(same.quantile(0.05)), 4),
        "different_above_threshold": round(
            float((different > same.quantile(0.05)).float().mean()), 4
        ),
    }


def diversity(weights: str) -> dict[str, Any]:
    """How many of 64 pictures of a bare prompt show individuals that are clearly different.

    Two are not if they are more alike than half of the pairs that show one individual in two
    scenes; as a stricter count, than 5 % of them. Beside it the same for renders of 64 individuals,
    of whom some are alike too, and for renders of one.
    """
    base, encoder = load_base(weights), load_identity_encoder()
    same, rng = _pairs()[0], random.Random("diversity")
    thresholds = {"half": float(same.quantile(0.5)), "strict": float(same.quantile(0.05))}
    counts: dict[str, dict[str, list[int]]] = {name: defaultdict(list) for name in thresholds}
    for category in CATEGORIES:
        prompt = f"a photo of a {category}"
        someone, *others = (
            make_identity(identity_seed(rng, "held-out"), category) for _ in range(NUM_SEEDS + 1)
        )
        albums = {
            "drawn": [
                one.image for one in draw(base, prompt, range(NUM_SEEDS), SETTINGS, batch=32)
            ],
            "renders of 64": [_render_of(who, rng) for who in others],
            "renders of one": [_render_of(someone, rng) for _ in others],
        }
        for kind, album in albums.items():
            embedded = encoder.embed(album)
            alike = embedded @ embedded.T
            for name, threshold in thresholds.items():
                counts[name][kind].append(_num_different(alike, threshold))
    return {
        "seeds": NUM_SEEDS,
        **{
            name: {kind: statistics.median(values) for kind, values in kinds.items()}
            for name, kinds in counts.items()
        },
        "per_prompt": dict(zip(CATEGORIES, counts["half"]["drawn"], strict=True)),
    }


def _render_of(who: Identity, rng: random.Random) -> Image.Image:
    scene = sample_scene(
        rng.randrange(1 << 40), "held-out", identity=who, num_subjects=1, style="photo"
    )
    return render(scene, SIZE).image


def _num_different(alike: Tensor, threshold: float) -> int:
    kept: list[int] = []
    for i in range(len(alike)):
        if all(float(alike[i, j]) < threshold for j in kept):
            kept.append(i)
    return len(kept)


# --- time -----------------------------------------------------------------------------------------


def seconds(weights: str) -> dict[str, Any]:
    """Medians of five: 4 pictures of 25 steps after loading, and the whole command."""
    base = load_base(weights)
    prompt = "a photo of a red teapot in the snow"
    after_loading, cold = [], []
    for seed in range(6):
        started = time.perf_counter()
        list(draw(base, prompt, range(4 * seed, 4 * seed + 4), SETTINGS))
        after_loading.append(time.perf_counter() - started)
    with tempfile.TemporaryDirectory() as folder:
        program = "from conceptry.cli import main; main()"
        words = ["--registry", f"{folder}/concepts.db", "generate", prompt, "--out", folder]
        for _ in range(5):
            started = time.perf_counter()
            subprocess.run(
                [sys.executable, "-c", program, *words, "--seed", "0"],
                check=True,
                capture_output=True,
            )
            cold.append(time.perf_counter() - started)
    return {
        "four_pictures_after_loading": round(statistics.median(after_loading[1:]), 2),
        "first_time": round(after_loading[0], 2),
        "whole_command": round(statistics.median(cold), 2),
    }


# --- sheets ---------------------------------------------------------------------------------------

SHOWN = (
    "a photo of a red teapot in the snow",
    "a photo of a blue spotted cat on the beach",
    "a photo of a green robot holding a balloon in the city",
    "a photo of a yellow dog wearing sunglasses in the forest",
    "a photo of a purple doll under an umbrella in a meadow",
    "a photo of a brown bear on a skateboard in space",
    "a photo of a pink bird next to a white house in the desert",
    "a pencil sketch of a car in the kitchen",
)


def sheets(weights: str) -> dict[str, Any]:
    """Pictures of the world and by the model, the first seeds of each: nothing is picked."""
    world = [[render(sample_scene(8 * row + i), SIZE).image for i in range(8)] for row in range(4)]
    contact_sheet([("", row) for row in world], side=96).save(RESULTS / "miniature-world.png")
    base = load_base(weights)
    rows = [
        (prompt, [drawn.image for drawn in draw(base, prompt, range(8), SETTINGS, batch=8)])
        for prompt in SHOWN
    ]
    contact_sheet(rows, side=96).save(RESULTS / "miniature-drawn.png")
    return {"prompts": list(SHOWN)}


PARTS = {
    "judge": lambda _: judge(),
    "autoencoder": autoencoder,
    "prompts": prompts,
    "attention": attention,
    "sharpness": sharpness,
    "settling": settling,
    "identity": lambda _: identity(),
    "diversity": diversity,
    "time": seconds,
    "sheets": sheets,
}

OF_OTHERS = ("autoencoder", "prompts", "attention", "sharpness", "diversity")
"""What there is to measure of other weights."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--base", help="other weights of it: a folder, whose results are its own")
    options = parser.parse_args()
    wanted = options.parts or list(OF_OTHERS if options.base else PARTS)
    path = RESULTS / "miniature.json"
    if options.base:
        path = RESULTS / f"miniature-{Path(options.base).name}.json"
    weights = options.base or DEFAULT_BASE
    about = describe_machine() | {"base_sha256": load_base(weights).sha256}
    for name in wanted:
        found = PARTS[name](weights)
        print(name, json.dumps(found, indent=2))
        keep_part(path, name, found, about)


if __name__ == "__main__":
    main()

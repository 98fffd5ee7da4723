"""DreamTuner's references beside their relatives, and what each of their parts brings.

    python bench/references.py --out runs/references              # hours on two cores
    python bench/references.py suns --out runs/references         # one part
    python bench/references.py taught --out runs/methods          # only where it is asked for
    python bench/references.py ways --out runs/a --split tuning --concepts 2 --seeds 1

ways    individuals of bench/methods.py, each drawn after one photo (or the first two or three) with
        its mask, without any training, by each way: the same prompts (of the suite `miniature`),
        seeds, steps and guidance. Scores are those of bench/methods.py. MasaCtrl, FreeCustom and
        the community pipeline are as `relatives.py` says. Ways with β need a subject encoder:
        the one beside the miniature, or --encoder; --with-control is another, which
        learned with a ControlNet. Without one they are left out
taught  the folder is one of bench/methods.py: individuals as AttnDreamBooth has taught them there,
        drawn after the first photo too, at weights ω, as the program does where a prompt names who
        is drawn; after three photos; and with the interleaved guidance of who was not taught
suns    why pictures that are drawn after references have a second sun now and then: pictures of the
        beach and the desert, which have one each, are drawn after a photo in the kitchen, with one
        setting changed at a time, in the same place, and on white. `twice` is the share of
        pictures in which a sun is seen twice, of those in which it is seen; `counter` is the same
        of renders, where it is the share of errors
cost    four pictures of the first individual in a batch, by some ways in turn: processor time, and
        the median of its ratios to that of the base model without references in the same round.
        `pass` is a reference's pass through the U-Net beside a call of it with one picture

Interrupted, they go on where they were. Intervals are from resampling individuals. With all
individuals of the split `measured`, writes bench/results/references.json, references.png (the first
photo of an individual, then a prompt by each way) and references-ablation.png (the paper's figure
8); else the same into the folder --out. About six hours of one core.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from operator import truediv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conceptry.adapters.adapter import injected
from conceptry.adapters.file_format import read_adapter_metadata
from conceptry.adapters.prompt_encoding import phrase_of
from conceptry.adapters.references import References
from conceptry.adapters.subject_encoding import SubjectEncoding
from conceptry.evaluation.suites import find_suite
from conceptry.generation.pictures import contact_sheet
from conceptry.generation.references import make_reference
from conceptry.generation.request import SamplingSettings
from conceptry.generation.sampler import draw, draw_batch
from conceptry.generation.self_subject_attention import ReferencePass
from conceptry.methods.method import DEFAULT_METHOD
from conceptry.models.loading import LoadedBase
from conceptry.models.miniature.world.figures import Colour
from conceptry.models.miniature.world.scenes import Scene, render, sample_scene
from conceptry.models.pixels import on_white
from conceptry.models.references import GUIDANCE, PROMPT, SHARE, TAUGHT_SHARE, WEIGHT
from conceptry.models.subject_encoder_file import LoadedSubjectEncoder, load_subject_encoder
from conceptry.registry.errors import ConceptryError
from conceptry.registry.hashes import sha256_of_json
from environment import describe as describe_machine
from environment import is_as_published, keep_part
from laboratory import (
    BARE_WAY,
    Individual,
    Laboratory,
    Row,
    Way,
    differences,
    interval,
    opened,
    parser,
    summary,
    without_pictures,
)
from PIL import Image
from relatives import Community, FreeCustom, MakeRelative, MasaCtrl, drawn_by

RESULTS = Path(__file__).parent / "results"
SHOWN = (0, 6)
PICTURES = 4
SEEDS = {"ways": 1, "taught": 2, "suns": 2, "cost": PICTURES}
"""Of each part, unless --seeds says otherwise: there are many ways, and individuals tell more."""
HEADLINES = ("seen", "likeness", "recognised", "both")


# --- ways to draw after photos --------------------------------------------------------------------

RELATIVES: dict[str, Any] = {
    "MasaCtrl": MasaCtrl,
    "MasaCtrl, own noise": partial(MasaCtrl, from_reference=False),
    "FreeCustom": FreeCustom,
    "community": Community,
    "community, AdaIN": partial(Community, adain=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceWay:
    """How pictures are drawn after photos: by self-subject-attention, or by a relative.

    `weight`, `share` and `guidance` are ω, p_r and ω_r; `strength` is β, with a subject encoder of
    that name; `place` is that of the photos, if it is not their own, and may be `WHITE`; `scale` is
    that of guidance by the prompt (only of `suns`).
    """

    label: str
    photos: int = 1
    weight: float = WEIGHT
    share: float = SHARE
    guidance: float = GUIDANCE
    has_mask: bool = True
    relative: str = ""
    strength: float = 0.0
    encoder: str = ""
    place: str = ""
    scale: float = SamplingSettings().guidance


WHITE = "cut out, on white"
BASE = ReferenceWay(label=BARE_WAY.label, photos=0)
OURS = ReferenceWay(label="references")
WAYS = (
    BASE,
    OURS,
    *(ReferenceWay(label=f"share {share:g}", share=share) for share in (0.5, 0.0)),
    *(ReferenceWay(label=f"weight {weight:g}", weight=weight) for weight in (1.0, 2.5, 10.0)),
    ReferenceWay(label="no mask", has_mask=False),
    *(ReferenceWay(label=f"{photos} photos", photos=photos) for photos in (2, 3)),
    *(ReferenceWay(label=name, relative=name) for name in RELATIVES),
    ReferenceWay(label="FreeCustom, 3 photos", relative="FreeCustom", photos=3),
)
WITH_ENCODER = (
    *(
        ReferenceWay(label=f"strength {each:g}", strength=each, encoder="own")
        for each in (0.1, 0.2, 0.5)
    ),
    ReferenceWay(label="strength 0.2, ControlNet", strength=0.2, encoder="with ControlNet"),
)
"""On top of `OURS`."""
ABLATION = (
    OURS.label,
    *(way.label for way in WITH_ENCODER[:3]),
    *(BASE.label, "weight 1", "weight 2.5", "weight 10"),
    *("no mask", WITH_ENCODER[3].label),
)
"""The paper's figure 8: β from 0 on, ω from 0 on, no mask, a ControlNet in pre-training."""
Encoders = dict[str, LoadedSubjectEncoder]


def photo_of(scene: Scene, size: int, place: str) -> tuple[Image.Image, Image.Image]:
    """A photo in its own place or in another one, and its mask."""
    elsewhere = replace(scene, place=place) if place and place != WHITE else scene
    shown = render(elsewhere, size)
    picture = on_white(shown.image, shown.masks[0]) if place == WHITE else shown.image
    return picture, shown.masks[0]


def references_of(
    base: LoadedBase, who: Individual, way: ReferenceWay, prompt: str = ""
) -> References:
    """The references that a way draws after; without a prompt they are of the category."""
    made = [
        make_reference(
            base,
            *photo_of(scene, base.backbone.size, way.place),
            prompt=prompt or PROMPT.format(who.identity.category),
            weight=way.weight,
            share=way.share,
            guidance=way.guidance,
        )
        for scene in who.scenes[: way.photos]
    ]
    return References(made) if way.has_mask else References(made).unmasked()


@contextmanager
def drawn_after(
    base: LoadedBase, who: Individual, way: ReferenceWay, encoders: Encoders
) -> Iterator[None]:
    """Pictures are drawn after an individual's photos inside the context."""
    references = references_of(base, who, way)
    with ExitStack() as stack:
        if way.relative:
            make: MakeRelative = partial(RELATIVES[way.relative], references=references.references)
            stack.enter_context(drawn_by(make))
        else:
            stack.enter_context(injected(base.backbone, [references]))
        if way.strength:
            photos = [
                on_white(*photo_of(scene, base.backbone.size, way.place))
                for scene in who.scenes[: way.photos]
            ]
            encoding = SubjectEncoding.of(encoders[way.encoder], photos, way.strength)
            stack.enter_context(injected(base.backbone, [encoding]))
        yield


def load_encoders(base: LoadedBase, sources: dict[str, str | None]) -> Encoders:
    """The subject encoders that there are, by name."""
    found: Encoders = {}
    for name, source in sources.items():
        try:
            found[name] = load_subject_encoder(base, source)
        except ConceptryError as error:
            if source is not None:
                raise
            print(f"ways with β are left out: {error.message}")
    return found


def row_of(laboratory: Laboratory, who: Individual, way: ReferenceWay, encoders: Encoders) -> Row:
    """Scores of one individual by one way, and pictures of some prompts."""
    described = asdict(way) | {"label": "", "individual": who.key}
    if way.encoder:
        described["encoder"] = encoders[way.encoder].sha256
    own = replace(
        laboratory,
        drawing=drawn_after(laboratory.base, who, way, encoders),
        kept=f"after-{sha256_of_json(described)[:16]}",
    )
    return own.row(who, BARE_WAY, SHOWN) | {"method": way.label}


def sheet(
    rows: Sequence[Row], subjects: Sequence[Individual], labels: Sequence[str]
) -> Image.Image:
    """A line for each individual and prompt: its photo, then the picture by each way."""
    by = {(row["individual"], row["method"]): row["shown"] for row in rows}
    there = [label for label in labels if (subjects[0].name, label) in by]
    return contact_sheet(
        [
            (
                ["photo", *there],
                [who.photos[0]] + [Image.open(by[who.name, label][number]) for label in there],
            )
            for who in subjects
            for number in range(len(SHOWN))
        ],
        side=96,
    ).quantize(256)


def measure_ways(laboratory: Laboratory, encoders: Encoders, out: Path) -> dict[str, Any]:
    """Draw and score all individuals by all ways, and save the sheets in `out`."""
    chosen = [*WAYS, *(way for way in WITH_ENCODER if way.encoder in encoders)]
    rows: list[Row] = []
    for who in laboratory.subjects:
        for way in chosen:
            row = row_of(laboratory, who, way, encoders)
            scores = {name: round(row["scores"][name], 3) for name in HEADLINES}
            print(who.name, way.label, scores, flush=True)
            rows.append(row)
    others = [way.label for way in chosen if way != OURS]
    sheets: dict[str, Sequence[str]] = {
        "references.png": [way.label for way in chosen],
        "references-ablation.png": ABLATION,
    }
    for name, labels in sheets.items():
        sheet(rows, laboratory.subjects, labels).save(out / name, optimize=True)
    return {
        "ways": summary(rows),
        "differences": differences(rows, [(OURS.label, each) for each in others], HEADLINES),
        "rows": without_pictures(rows),
    }


# --- individuals that were taught, drawn after a photo as well ------------------------------------

TAUGHT = Way(DEFAULT_METHOD, DEFAULT_METHOD)
TAUGHT_WAYS = (
    *(
        ReferenceWay(label=f"weight {each:g}", weight=each, share=TAUGHT_SHARE)
        for each in (0.0, 1.0, 3.0, 10.0)
    ),
    ReferenceWay(label="3 photos", photos=3, share=TAUGHT_SHARE),
    ReferenceWay(label=f"weight {WEIGHT:g}, share {SHARE:g}"),
)


def taught_row(laboratory: Laboratory, who: Individual, way: ReferenceWay) -> Row:
    """Scores of one taught individual, drawn after photos, which its own words describe."""
    chosen = laboratory.chosen(who, TAUGHT)
    metadata = read_adapter_metadata(Path(chosen.path))
    words = phrase_of(
        chosen.tokens(metadata.num_tokens),
        metadata.category,
        names_category=metadata.names_category,
    )
    references = references_of(laboratory.base, who, way, PROMPT.format(words))
    described = asdict(way) | {"label": "", "individual": who.key, "version": chosen.sha256}
    own = replace(
        laboratory,
        drawing=injected(laboratory.base.backbone, [references]),
        kept=f"after-{sha256_of_json(described)[:16]}",
    )
    row = own.row(who, TAUGHT, SHOWN)
    drifts = {"drift", "drift_base"}  # of pictures that are drawn after the references as well
    scores = {name: score for name, score in row["scores"].items() if name not in drifts}
    return row | {"method": way.label, "scores": scores}


def measure_taught(laboratory: Laboratory, out: Path) -> dict[str, Any]:
    """Draw and score all taught individuals with references and without, and save a sheet."""
    rows: list[Row] = []
    for who in laboratory.subjects:
        if laboratory.version(who, TAUGHT) is None:
            sys.exit(f"{TAUGHT.label} has not taught {who.name} -> python bench/methods.py")
        own = [laboratory.row(who, TAUGHT, SHOWN)]
        own += [taught_row(laboratory, who, way) for way in TAUGHT_WAYS]
        for row in own:
            shown = {name: round(row["scores"][name], 3) for name in HEADLINES}
            print(who.name, row["method"], shown, flush=True)
        rows += own
    labels = [TAUGHT.label, *(way.label for way in TAUGHT_WAYS)]
    sheet(rows, laboratory.subjects, labels).save(out / "references-taught.png", optimize=True)
    pairs = [(way.label, TAUGHT.label) for way in TAUGHT_WAYS]
    return {"ways": summary(rows), "differences": differences(rows, pairs, HEADLINES)}


# --- suns that are seen twice ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sun:
    """What each picture of a place has once, in its upper part: a disc of a colour.

    `lowest` is how far down it may reach, `radius` its size, as shares of the picture.
    """

    colour: Colour
    radius: float
    lowest: float


SUNS = {
    "on the beach": Sun((255, 235, 120), 0.09, 0.25),
    "in the desert": Sun((255, 120, 70), 0.10, 0.30),
}
_CLOSE = 60
"""How far, in RGB, a disc's pixels are from its colour."""
_LEAST = 0.25
"""Of a disc's area: less is not counted."""
_RENDERS = 200

SAME = "same place"
_IN_KITCHEN = replace(OURS, place="in the kitchen")
SUN_WAYS = (
    BASE,
    replace(BASE, label="base model, unguided", scale=1.0),
    _IN_KITCHEN,
    *(replace(_IN_KITCHEN, label=f"share {each:g}", share=each) for each in (0.0, 0.5, 1.0)),
    *(replace(_IN_KITCHEN, label=f"guidance {each:g}", guidance=each) for each in (1.0, 5.0)),
    *(replace(_IN_KITCHEN, label=f"weight {each:g}", weight=each) for each in (1.0, 10.0)),
    replace(_IN_KITCHEN, label="3 photos", photos=3),
    replace(_IN_KITCHEN, label="no mask", has_mask=False),
    *(replace(OURS, label=place, place=place) for place in (SAME, WHITE)),
    replace(OURS, label=f"{SAME}, no mask", place=SAME, has_mask=False),
)


def count_suns(image: Image.Image, sun: Sun) -> int:
    """How many discs of a sun's colour a picture has, whole or in part."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    side, end = image.width, round(sun.lowest * image.width)
    is_close = np.linalg.norm(pixels - np.array(sun.colour, dtype=np.float32), axis=-1) < _CLOSE
    least = _LEAST * np.pi * (sun.radius * side) ** 2
    parts = connected(is_close)
    # what reaches further down is a subject of that colour
    return sum(len(part) >= least and max(y for y, _ in part) < end for part in parts)


def connected(is_there: np.ndarray) -> list[list[tuple[int, int]]]:
    """The places (h, w) that are there, in parts that hang together."""
    left = {(int(y), int(x)) for y, x in np.argwhere(is_there)}
    parts: list[list[tuple[int, int]]] = []
    while left:
        part = [left.pop()]
        for y, x in part:
            beside = {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)} & left
            left -= beside
            part += beside
        parts.append(part)
    return parts


def counted(laboratory: Laboratory, who: Individual, place: str, way: ReferenceWay) -> list[int]:
    """Suns in the pictures of a place, one for each seed."""
    base = laboratory.base
    prompt = f"{PROMPT.format(who.identity.category)} {place}"
    there = replace(way, place=place if way.place == SAME else way.place)
    with drawn_after(base, who, there, {}):
        drawn = draw(base, prompt, laboratory.seeds, SamplingSettings(guidance=way.scale))
        return [count_suns(each.image, SUNS[place]) for each in drawn]


def measure_suns(laboratory: Laboratory, out: Path) -> dict[str, Any]:
    """Count suns by all ways; counts are kept in `out`."""
    kept = out / "suns.json"
    counts: dict[str, list[int]] = json.loads(kept.read_text()) if kept.exists() else {}
    base = laboratory.base.sha256
    by_way: dict[str, list[list[int]]] = {way.label: [] for way in SUN_WAYS}
    for who in laboratory.subjects:
        for way in SUN_WAYS:
            own: list[int] = []
            for place in SUNS:
                key = f"{who.key} {base} {way.label}, {place}, {laboratory.seeds}"
                if key not in counts:
                    counts[key] = counted(laboratory, who, place, way)
                    kept.write_text(json.dumps(counts))
                own += counts[key]
            by_way[way.label].append(own)
            print(who.name, way.label, own, flush=True)
    told = {label: _told(own) for label, own in by_way.items()}
    return {"counter": _counter(laboratory.base.backbone.size), **told}


def _told(counts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Shares of pictures, by individual: with a sun, and of those, with more than one."""
    seen = [[count for count in own if count] for own in counts]
    return {
        "pictures": sum(map(len, counts)),
        "seen": interval([len(some) / len(own) for some, own in zip(seen, counts, strict=True)]),
        "twice": interval([sum(n > 1 for n in own) / len(own) for own in seen if own]),
    }


def _counter(size: int) -> dict[str, Any]:
    """The same of renders, each of which has one sun, perhaps hidden."""
    return _told(
        [
            [count_suns(render(_scene(seed, place), size).image, sun)]
            for place, sun in SUNS.items()
            for seed in range(8_000_000, 8_000_000 + _RENDERS)
        ]
    )


def _scene(seed: int, place: str) -> Scene:
    return sample_scene(seed, "held-out", num_subjects=1, place=place, style="photo")


# --- what a reference costs -----------------------------------------------------------------------

COST_WAYS = (
    BASE,
    ReferenceWay(label="one photo, no step led", share=0.0),
    OURS,
    ReferenceWay(label="three photos, no step led", share=0.0, photos=3),
)
ROUNDS = 9


def measure_cost(laboratory: Laboratory) -> dict[str, Any]:
    """Seconds of a processor for `PICTURES` pictures in a batch, by way."""
    base, who = laboratory.base, laboratory.subjects[0]
    prompts = [f"{PROMPT.format(who.identity.category)} on the beach"] * PICTURES
    seconds: dict[str, list[float]] = {way.label: [] for way in COST_WAYS}
    for i in range(ROUNDS + 1):
        for way in COST_WAYS:
            with drawn_after(base, who, way, {}):
                started = time.process_time()
                draw_batch(base.backbone, prompts, range(PICTURES), SamplingSettings())
                taken = time.process_time() - started
            if i:  # the first time other things happen as well
                seconds[way.label].append(taken)
    plain = seconds[BASE.label]
    drawing = {
        label: {
            "seconds": round(statistics.median(own), 2),
            "ratio": round(statistics.median(map(truediv, own, plain)), 3),
        }
        for label, own in seconds.items()
    }
    return {"drawing": drawing, "pass": _pass(laboratory)}


@torch.no_grad()
def _pass(laboratory: Laboratory) -> dict[str, float]:
    """Of one reference at a time: its ratio to a call of the U-Net with one picture."""
    base, who = laboratory.base, laboratory.subjects[0]
    backbone = base.backbone
    (reference,) = references_of(base, who, OURS).references
    references = ReferencePass(backbone, [reference])
    prompt = backbone.encode_prompts([reference.prompt], backbone.size)
    latents, timestep = reference.latents[None], torch.tensor(500)
    sees = torch.ones(2 * PICTURES, dtype=torch.bool)
    calls: list[float] = []
    passes: list[float] = []
    for _ in range(20 * ROUNDS):
        started = time.process_time()
        backbone.denoise(latents, timestep, prompt)
        between = time.process_time()
        with references.seen_at(backbone, [timestep], [sees]):
            passes.append(time.process_time() - between)
        calls.append(between - started)
    ratio = statistics.median(map(truediv, passes, calls))
    return {
        "call_milliseconds": round(1000 * statistics.median(calls), 1),
        "pass_milliseconds": round(1000 * statistics.median(passes), 1),
        "ratio": round(ratio, 3),
    }


def main() -> None:
    asked = parser(__doc__)
    asked.add_argument("parts", nargs="*", choices=[*SEEDS, []], default=[])
    asked.add_argument("--split", choices=["measured", "tuning"], default="measured")
    asked.add_argument("--encoder", metavar="PATH", help="a subject encoder")
    asked.add_argument("--with-control", metavar="PATH", help="one that learned with a ControlNet")
    asked.set_defaults(seeds=None)
    options = asked.parse_args()
    home = options.out
    if is_as_published(asked, options, but=("parts", "with_control")):
        home = RESULTS
    for part in options.parts or ["ways", "suns"]:
        own = argparse.Namespace(**vars(options) | {"seeds": options.seeds or SEEDS[part]})
        with opened(own, options.split) as laboratory:
            told = measure(part, laboratory, options, home)
        print(part, json.dumps({k: v for k, v in told.items() if k != "rows"}, indent=1))
        about = describe_machine() | {
            "base_sha256": laboratory.base.sha256,
            "seeds": own.seeds,
            "prompts": [prompt.text for prompt in find_suite("miniature").prompts],
        }
        keep_part(home / "references.json", part, told, about)


def measure(
    part: str, laboratory: Laboratory, options: argparse.Namespace, home: Path
) -> dict[str, Any]:
    """The results of a part; sheets go into `home`."""
    if part == "taught":
        return measure_taught(laboratory, home)
    if part == "cost":
        return measure_cost(laboratory)
    if part == "suns":
        return measure_suns(laboratory, options.out)
    sources: dict[str, str | None] = {"own": options.encoder}
    if options.with_control:
        sources["with ControlNet"] = options.with_control
    return measure_ways(laboratory, load_encoders(laboratory.base, sources), home)


if __name__ == "__main__":
    main()

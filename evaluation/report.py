"""A report of evaluations: one HTML page that needs no network, and the numbers as CSV and JSON."""

import base64
import csv
import io
import json
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup
from PIL import Image

from ..generation.attention_maps import overlaid
from ..generation.outlines import outlined
from ..generation.regions import region
from ..registry import Registry
from ..registry.errors import ConceptNotFound, StorageError
from ..registry.files import write_file
from ..registry.names import printable
from .charts import curves, scatter
from .pages import ShownRegion, template
from .picture_cache import PictureCache
from .record import (
    DRIFT,
    REPLAY_ABOVE,
    Evaluation,
    PictureScores,
    distinct_labels,
    harmonic_mean,
    metrics_of,
)
from .scoring import SUFFIXES, ObservedPicture

NUM_WORST = 12
_LARGEST = 768
_LOSSLESS = 256
_PHOTO_SIDE = 160


def write_report(registry: Registry, found: Sequence[Evaluation], folder: Path) -> Path:
    """Write report.html, scores.csv and scores.json into a folder; returns the page's path.

    A report that is there is replaced. Raises `StorageError` if the folder cannot be written to,
    and `InvalidInput` if it is one of the registry's own.
    """
    registry.check_outside(folder)
    page = _page(registry, found)
    files = {
        "report.html": page,
        "scores.csv": _csv(found),
        "scores.json": json.dumps([each.document() for each in found], indent=1) + "\n",
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_file(folder / name, text.encode())
    except OSError as error:
        raise StorageError(f"cannot write into {folder}: {error.strerror}") from error
    return folder / "report.html"


def _csv(found: Sequence[Evaluation]) -> str:
    """A line for each picture and score."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["version", "suite", "prompt", "tests", "seed", "score", "value"])
    for each in found:
        for prompt in each.all_prompts:
            for picture in prompt.pictures:
                place = [each.label, each.suite, prompt.prompt, prompt.tests, picture.seed]
                for name, value in picture.scores.items():
                    writer.writerow(_cell(part) for part in (*place, name, value))
    return text.getvalue()


def _cell(value: object) -> object:
    """A CSV cell that no spreadsheet takes for a formula: such text is quoted."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    is_formula = unicodedata.normalize("NFKC", text.lstrip()[:1]) in ("=", "+", "-", "@")
    return f"'{text}" if is_formula or value[:1] in ("\t", "\r", "\n") else text


# --- the page -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Shown:
    """A picture on the page."""

    id: str
    version: str
    prompt: str
    seed: int
    source: str
    heat: str
    scores: list[tuple[str, str]]
    worth: float
    is_copy: bool
    size: tuple[int, int]
    regions: list[ShownRegion]


@dataclass(slots=True)
class _Row:
    """A prompt on the page: its pictures by version, and what all of them are ordered by."""

    prompt: str
    tests: str
    cells: dict[str, list[_Shown]] = field(default_factory=dict)
    worths: list[float] = field(default_factory=list)


def _page(registry: Registry, found: Sequence[Evaluation]) -> str:
    pictures = PictureCache.of(registry)
    labels = distinct_labels(found)
    shown = [
        list(_shown(each, label, number, pictures))
        for number, (each, label) in enumerate(zip(found, labels, strict=True))
    ]
    metrics = metrics_of({name for each in found for name in each.scores})
    return template("report.html.j2").render(
        title=", ".join(dict.fromkeys(each.label for each in found)),
        evaluations=found,
        labels=labels,
        legends=[
            [ShownRegion.of(i, label, [], (1, 1)) for i, label in enumerate(each.labels)]
            for each in found
            if each.others
        ],
        metrics=metrics,
        rows=_rows(found, labels, shown),
        worst=_worst(shown),
        best=_best(found),
        scatters=[Markup(each) for each in _scatters(found)],  # noqa: S704 (drawn by us, escaped)
        curves=[(name, Markup(drawing)) for name, drawing in _curves(registry, found)],  # noqa: S704
        photos=list(_photos(registry, found)),
    )


def _best(found: Sequence[Evaluation]) -> list[bool]:
    """Of each, whether it is the best of several of the same concepts that can be compared."""
    groups: dict[tuple[object, ...], list[Evaluation]] = defaultdict(list)
    for each in found:
        groups[_compared(each)].append(each)
    tops = {key: max(each.harmonic_mean for each in group) for key, group in groups.items()}
    return [
        len(groups[_compared(each)]) > 1 and each.harmonic_mean == tops[_compared(each)]
        for each in found
    ]


def _compared(each: Evaluation) -> tuple[object, ...]:
    """What evaluations have in common whose scores say which is better."""
    who = (each.concept, *(label.partition("@")[0] for label in each.others))
    return (*who, each.suite, each.made_by.get("base_sha256"), *each.chosen_by)


def _scatters(found: Sequence[Evaluation]) -> list[str]:
    """A chart for each pair of scores that versions are chosen by."""
    pairs = dict.fromkeys(tuple(each.chosen_by) for each in found)
    drawn = [scatter([each for each in found if tuple(each.chosen_by) == pair]) for pair in pairs]
    return [each for each in drawn if each]


def _worst(shown: Sequence[Sequence[_Shown]]) -> list[_Shown]:
    """The worst pictures of the suite's prompts, the worst first."""
    judged = (one for each in shown for one in each if one.worth < math.inf)
    return sorted(judged, key=lambda one: one.worth)[:NUM_WORST]


def _rows(
    found: Sequence[Evaluation], labels: Sequence[str], shown: Sequence[Sequence[_Shown]]
) -> list[_Row]:
    """A row for each prompt, the worst first."""
    rows: dict[tuple[str, int, str], _Row] = {}
    for each, label, pictures in zip(found, labels, shown, strict=True):
        left = iter(pictures)
        for number, prompt in enumerate(each.all_prompts):
            own = [next(left) for _ in prompt.pictures]
            new = _Row(_plain(prompt.prompt, found), prompt.tests)
            row = rows.setdefault((each.suite, number, new.prompt), new)  # it may name a category
            row.cells[label] = own
            row.worths += [one.worth for one in own]
    return sorted(rows.values(), key=lambda row: sum(row.worths) / max(1, len(row.worths)))


def _plain(prompt: str, found: Sequence[Evaluation]) -> str:
    """The prompt without versions, which head the columns; with several concepts, without names."""
    is_one = len({each.concept for each in found}) == 1
    return re.sub(r"<([^<>@]+)@[^<>]*>", r"<\1>" if is_one else "<…>", prompt)


def _shown(each: Evaluation, label: str, number: int, pictures: PictureCache) -> Iterator[_Shown]:
    for row, prompt in enumerate(each.all_prompts):
        for picture in prompt.pictures:
            kept = pictures.get(picture.picture, num_subjects=1 + len(each.others))
            heats = [overlaid(kept.image, own[1]) for own in kept.maps] if kept else []
            yield _Shown(
                id=f"p{number}-{row}-{picture.seed}",
                version=label,
                prompt=_plain(prompt.prompt, [each]),
                seed=picture.seed,
                source=_as_source(kept.image) if kept else "",
                heat=_as_source(_beside(heats)) if heats else "",
                scores=[(name, f"{value:.2f}") for name, value in picture.scores.items()],
                worth=_worth(each, picture),
                is_copy=picture.scores.get("replay", 0.0) > REPLAY_ABOVE,
                size=kept.image.size if kept else (1, 1),
                regions=_regions(each, picture, kept) if kept else [],
            )


def _regions(each: Evaluation, picture: PictureScores, kept: ObservedPicture) -> list[ShownRegion]:
    """Where each of several subjects was kept, else where the attention to its words is."""
    if not each.others:
        return []
    labels, size = each.labels, kept.image.size
    found = kept.regions if kept.regions is not None else region(kept.maps[:, 0]).float()
    outlines = outlined(labels, found)
    return [
        ShownRegion.of(number, label, outlines[label], size, _recognised(picture, suffix))
        for number, (label, suffix) in enumerate(zip(labels, SUFFIXES, strict=False))
    ]


def _recognised(picture: PictureScores, suffix: str) -> str:
    """Whether a subject is recognised in its region, if that was scored."""
    score = picture.scores.get(f"recognised_subject{suffix}")
    return "" if score is None else "recognised" if score else "not recognised"


def _worth(each: Evaluation, picture: PictureScores) -> float:
    """What a picture is ordered by: both of its scores, or the one that it has.

    Those that show drift come last: they have neither.
    """
    if DRIFT in picture.scores:
        return math.inf
    by_prompt, by_identity = each.chosen_by
    first = picture.scores.get(by_prompt, 0.0)
    second = picture.scores.get(by_identity)
    return first if second is None else harmonic_mean(first, second)


def _beside(images: Sequence[Image.Image]) -> Image.Image:
    width, height = images[0].size
    sheet = Image.new("RGB", (width * len(images), height))
    for i, image in enumerate(images):
        sheet.paste(image, (i * width, 0))
    return sheet


def _as_source(image: Image.Image) -> str:
    """A picture as a data URI: small ones as they are, large ones as WebP."""
    encoded = io.BytesIO()
    if max(image.size) <= _LOSSLESS:
        image.save(encoded, "png", optimize=True)
        kind = "png"
    else:
        image = image.convert("RGB")
        image.thumbnail((_LARGEST, _LARGEST))
        image.save(encoded, "webp", quality=85)
        kind = "webp"
    return f"data:image/{kind};base64,{base64.b64encode(encoded.getvalue()).decode()}"


def _photos(registry: Registry, found: Sequence[Evaluation]) -> Iterator[tuple[str, list[str]]]:
    """The photos of each concept, small."""
    shown = [label for each in found for label in (each.concept, *each.others)]
    ids = {each.concept: each.concept_id for each in found}
    for name in dict.fromkeys(label.partition("@")[0] for label in shown):
        try:
            concept = registry.show(ids.get(name, name))
        except ConceptNotFound:
            continue
        sources: list[str] = []
        for image in concept.images:
            photo = registry.read_photo(image, at_least=2 * _PHOTO_SIDE)
            photo.thumbnail((_PHOTO_SIDE, _PHOTO_SIDE))
            sources.append(_as_source(photo))
        yield name, sources


def _curves(registry: Registry, found: Sequence[Evaluation]) -> Iterator[tuple[str, str]]:
    """The losses of the training behind each version."""
    for label, key, number in dict.fromkeys((e.label, e.concept_id, e.version) for e in found):
        try:
            concept = registry.show(key)
        except ConceptNotFound:
            continue
        run = next((each.run for each in concept.versions if each.number == number), None)
        metrics = registry.metrics(run) if run else []
        if metrics:
            yield label, curves(metrics)

"""`generate` and `animate`: draw prompts with concepts into files."""

import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Literal

from PIL import Image

from ..models.loading import LoadedBase
from ..registry import Registry
from ..registry.errors import NotFound
from .drawing import Drawing, Picture, drawings_of, loaded_references
from .frames import (
    FRAME_RATE,
    ChosenFrame,
    EarlierFrame,
    FrameWeights,
    check_frame_rate,
    check_frames,
    check_keeps_frames,
    durations,
    frames_before,
)
from .injection import inject_concepts
from .observing import Wanted
from .picture_texts import FileFormat
from .pictures import contact_sheet, file_stem
from .provenance import find_same, save_picture, write_picture
from .reference_maps import Point
from .request import Request
from .resuming import KeptFrames

GRID_COLUMNS = 8
_UNITS = {"webp": 1, "gif": 10}
"""Of durations, in ms."""


def generate(
    registry: Registry,
    base: LoadedBase,
    requests: Sequence[Request],
    folder: Path,
    *,
    batch: int = 4,
    file_format: FileFormat = "png",
    with_maps: bool = False,
    with_leaks: bool = False,
    points: Sequence[Point] = (),
) -> Iterator[Picture]:
    """Draw requests into a folder, `batch` pictures at a time; yields each once it is written.

    Its provenance goes into the file and the registry; `file_format` is the pictures', maps are
    PNG. All prompts and control pictures are checked before the first is drawn. `with_maps` also
    writes heat-maps of each concept's tokens, and of where `points` of the picture, or its centre,
    look in its references; `with_leaks` measures how much of each concept's attention falls on the
    others' regions. ControlNets and subject encoders are downloaded, unless the base model was
    loaded offline. Raises what `resolve_prompt`, `inject_concepts`, `check_controls`,
    `load_control`, `load_subject_encoder`, `read_init` and `draw` raise.
    """
    wanted = Wanted(with_maps, with_leaks, tuple(points), file_format)
    drawings = drawings_of(registry, base, requests, folder, wanted)
    for (chosen, apart), group in groupby(drawings, key=lambda each: (each.chosen, each.apart)):
        together = list(group)
        references = loaded_references(together)
        with inject_concepts(base, chosen, apart=apart) as concepts:
            for drawing in together:
                yield from drawing.draw(concepts, references[drawing.asked], batch)


def animate(
    registry: Registry,
    base: LoadedBase,
    requests: Sequence[Request],
    folder: Path,
    *,
    weights: FrameWeights | None = None,
    file_format: FileFormat = "png",
    with_maps: bool = False,
    with_leaks: bool = False,
    points: Sequence[Point] = (),
) -> Iterator[Picture]:
    """Draw requests as the frames of an animation, once for each seed; as `generate` otherwise.

    All frames begin with the noise of their seed. From the second on they are drawn after earlier
    ones as well as after photos: a frame's subjects, where the maps of their categories are in it,
    are attended with the `weights` (DreamTuner's project page, and appendix B). Frames that are in
    the folder already, drawn after the same ones, are yielded from their files; with leaks, which
    files do not tell, all are drawn. Raises `InvalidInput` for requests of other seeds or sizes,
    and for JPEG, which loses what later frames are drawn after.
    """
    weights = weights or FrameWeights()
    check_frames(requests, base.backbone.size)
    check_keeps_frames(file_format)
    wanted = Wanted(with_maps, with_leaks, tuple(points), file_format)
    drawings = drawings_of(registry, base, requests, folder, wanted)
    check_frames([each.request for each in drawings], base.backbone.size)
    first = drawings[0].request.title
    frames = [
        replace(drawing, request=replace(drawing.request, seeds=[seed]), title=first, number=number)
        for seed in requests[0].seeds
        for number, drawing in enumerate(drawings, 1)
    ]
    options = {"with_maps": with_maps, "with_leaks": with_leaks, "points": points}
    kept = KeptFrames(
        registry, base.base, requests, folder, loaded=base, file_format=file_format, **options
    )
    earlier: list[EarlierFrame] = []
    for (chosen, apart), group in groupby(frames, key=lambda each: (each.chosen, each.apart)):
        together = list(group)
        references = loaded_references(together)
        with inject_concepts(base, chosen, apart=apart) as concepts:
            for frame in together:
                earlier = earlier if frame.number != 1 else []
                after = frames_before(base.base, frame.request, chosen, earlier, weights)
                picture = _kept(frame, kept, after)
                if picture is None:
                    drawing = replace(frame, frames=after)
                    (picture,) = drawing.draw(concepts, references[frame.asked], 1)
                own = EarlierFrame(frame.request, chosen, picture.sha256, picture.image)
                earlier = [*earlier[:1], own]
                yield picture


def _kept(frame: Drawing, kept: KeptFrames, after: Sequence[ChosenFrame]) -> Picture | None:
    """A frame from its file, if it is there."""
    assert frame.number is not None
    (seed,) = frame.request.seeds
    found = kept.find(frame.number, seed, after)
    with suppress(NotFound):
        return found and Picture.there(found, frame.request, seed)
    return None


def save_grid(pictures: Sequence[Picture], folder: Path) -> Path:
    """Write a contact sheet with a row or more for each prompt; returns its path."""
    rows: list[tuple[str, list[Image.Image]]] = []
    for prompt, group in groupby(pictures, key=lambda picture: picture.prompt):
        images = [picture.image for picture in group]
        rows += [
            ("" if i else prompt, images[i : i + GRID_COLUMNS])
            for i in range(0, len(images), GRID_COLUMNS)
        ]
    stem = file_stem(pictures[0].prompt, pictures[0].seed)
    metadata = {"grid": [picture.sha256 for picture in pictures]}
    return save_picture(contact_sheet(rows), folder, f"{stem}-grid", metadata)[0]


def save_animation(
    frames: Sequence[Picture],
    folder: Path,
    *,
    file_format: Literal["webp", "gif"] = "webp",
    frame_rate: float = FRAME_RATE,
) -> Path:
    """Write an animation of frames, `frame_rate` of them in a second; returns its path.

    That is of the very same, if it is there. Raises `InvalidInput` for a rate that is not 0.1 to
    50.
    """
    check_frame_rate(frame_rate)
    first, *others = [frame.image.convert("RGB") for frame in frames]
    shown = durations(len(frames), frame_rate, _UNITS[file_format])
    encoded = io.BytesIO()
    options = {"quality": 90} if file_format == "webp" else {}
    first.save(
        encoded, file_format, save_all=True, append_images=others, duration=shown, loop=0, **options
    )
    stem = file_stem(frames[0].prompt, frames[0].seed)
    data = encoded.getvalue()
    there = find_same(data, folder, stem, f".{file_format}")
    return there or write_picture(data, folder, stem, f".{file_format}")[0]

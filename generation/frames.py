"""Frames of animations: their control pictures, and what each is drawn after. Loads no weights."""

import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

from PIL import Image
from pydantic import Field

from ..models.bases import Base, find_control
from ..models.references import MAX_WEIGHT
from ..registry.errors import InvalidInput, NotFound, quoted
from ..registry.files import entries, open_file
from ..registry.hashes import sha256_of
from ..registry.images import SUFFIXES, read_file, read_photo, strict_decoding
from ..registry.validation import form_of, validated
from .control_request import ControlRequest, ReadControl, read_control
from .prompt_syntax import ChosenVersion, replaced
from .provenance import DrawnFrame
from .request import Request, naming_place

PHOTO_WEIGHT = 10.0
"""ω of photos that frames are drawn after (DreamTuner, project page)."""
MAX_FRAMES = 999
FRAME_RATE = 8.0
"""Frames in a second."""
MIN_FRAME_RATE, MAX_FRAME_RATE = 0.1, 50.0
"""What is shown for less than 20 ms, browsers show for longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameWeights:
    """ω of the earlier frames that a frame is drawn after, beside photos; with 0 it is not.

    1 for the previous frame is DreamTuner's project page; the paper's appendix B has the first
    frame too, and gives no weights. Raises `InvalidInput`.
    """

    previous: Annotated[float, Field(ge=0, le=MAX_WEIGHT)] = 1.0
    first: Annotated[float, Field(ge=0, le=MAX_WEIGHT)] = 0.0

    def __post_init__(self) -> None:
        validated(form_of(type(self)), self, noun="setting")
        if self.previous + self.first > MAX_WEIGHT:  # the first frame is the second's previous one
            raise InvalidInput(
                f"the weights of the previous and the first frame are {self.previous:g} and "
                f"{self.first:g}: {MAX_WEIGHT:g} together at most",
                hint="--previous-frame 1 --first-frame 1",
            )


@dataclass(frozen=True, slots=True)
class ChosenFrame:
    """A frame to draw after: what metadata says of it, and its pixels."""

    drawn: DrawnFrame
    image: Image.Image
    control: ReadControl | None = None
    """Its own control picture."""


@dataclass(frozen=True, slots=True)
class EarlierFrame:
    """A frame that is there: what it was asked for with, its file's hash and its pixels."""

    request: Request
    chosen: Sequence[ChosenVersion]
    sha256: str
    image: Image.Image


def frames_before(
    base: Base,
    request: Request,
    chosen: Sequence[ChosenVersion],
    earlier: Sequence[EarlierFrame],
    weights: FrameWeights,
) -> list[ChosenFrame]:
    """The last and the first of some earlier frames, once if they are one, in a request's words.

    A concept that the request's prompt does not name is its category.
    """
    names = {each.concept.id: each.mention.text for each in chosen}
    found: dict[str, ChosenFrame] = {}
    for frame, weight in zip(
        [*earlier[-1:], *earlier[:1]], (weights.previous, weights.first), strict=False
    ):
        if not weight:
            continue
        words = {
            each.mention.text: names.get(each.concept.id, each.concept.category)
            for each in frame.chosen
        }
        before = found.get(frame.sha256)
        total = weight + (before.drawn.weight if before else 0)
        control = _layout_of(base, request, frame.request)
        drawn = DrawnFrame(
            frame.sha256,
            replaced(_without_weights(frame.request.prompt, request), words),
            total,
            control=control and control.sha256,
        )
        found[frame.sha256] = ChosenFrame(drawn, frame.image, control)
    return list(found.values())


def _without_weights(prompt: str, request: Request) -> str:
    """A prompt as references are described: words have no weights there."""
    if not request.settings.prompt_weights:
        return prompt
    from ..models.weighted_prompts import parse_weights

    return "".join(each.text or " " for each in parse_weights(prompt))


def _layout_of(base: Base, request: Request, frame: Request) -> ReadControl | None:
    """The control picture of an earlier frame, if it is for the same ControlNet as the request's.

    A reference follows a ControlNet too, by its own layout (DreamTuner, project page).
    """
    own, other = request.control, frame.control
    if own is None or other is None:
        return None
    kinds = {find_control(base, each.kind) for each in (own, other)}
    return read_control(other.picture) if len(kinds) == 1 else None


def parse_controls(text: str, *, scale: float = 1.0) -> list[ControlRequest]:
    """`FOLDER` or `FOLDER:KIND`: a control for each picture directly in it, by name.

    Numbers in names count as numbers: `2.png` is before `10.png`. Raises `NotFound`, and
    `InvalidInput` for a folder without pictures.
    """
    named, _, kind = text.rpartition(":")
    for name, of in ((text, None), (named, kind)):
        folder = Path(os.path.expanduser(name))
        if name and of != "" and os.path.isdir(folder):
            return [
                ControlRequest(picture=path, kind=of, scale=scale) for path in _pictures_in(folder)
            ]
    raise NotFound(
        f"there is no folder {named or text} of control pictures", hint="FOLDER or FOLDER:KIND"
    )


def _pictures_in(folder: Path) -> list[Path]:
    try:
        found = [each for each in folder.iterdir() if each.suffix.lower() in SUFFIXES]
    except OSError as error:
        raise InvalidInput(f"cannot read the folder {folder}: {error.strerror}") from error
    pictures = [each for each in found if not each.name.startswith(".") and each.is_file()]
    if not pictures:
        raise InvalidInput(
            f"there is no picture in the folder {folder}", hint="a control picture for each frame"
        )
    return sorted(pictures, key=_by_number)


def _by_number(path: Path) -> tuple[list[int | str], str]:
    parts = re.split(r"([0-9]+)", path.name)
    return [int(part) if i % 2 else part.lower() for i, part in enumerate(parts)], path.name


def check_keeps_frames(file_format: str) -> None:
    """Raise `InvalidInput` for a format of files that later frames cannot be drawn after."""
    if file_format == "jpg":
        raise InvalidInput(
            "frames are drawn after earlier ones, of which a JPEG loses some",
            hint="--format png, or webp",
        )


def check_frames(requests: Sequence[Request], side: int | None = None) -> None:
    """Raise `InvalidInput` for requests that are not the frames of one animation.

    `side` is that of the base model's pictures, if it is known.
    """
    usual = (side, side) if side else None
    if not 0 < len(requests) <= MAX_FRAMES:
        raise InvalidInput(
            f"an animation has 1 to {MAX_FRAMES} frames, not {len(requests):,}",
            hint="fewer control pictures or prompts",
        )
    first = requests[0]
    for number, each in enumerate(requests, 1):
        with naming_place(each):
            if list(each.seeds) != list(first.seeds):
                raise InvalidInput(
                    f"frames begin with the same noise, and frame {number} has other seeds",
                    hint="the same for all of them, or --seed and -n alone",
                )
            if (each.settings.size or usual) != (first.settings.size or usual):
                raise InvalidInput(
                    f"frames have one size, and frame {number} has another",
                    hint="the same for all of them, or --size alone",
                )


def check_frame_rate(frame_rate: float) -> None:
    """Raise `InvalidInput` unless it is 0.1 to 50."""
    if not MIN_FRAME_RATE <= frame_rate <= MAX_FRAME_RATE:
        raise InvalidInput(
            f"the frame rate is {frame_rate:g}, not {MIN_FRAME_RATE:g} to {MAX_FRAME_RATE:g}",
            hint=f"--frame-rate {FRAME_RATE:g}",
        )


def durations(count: int, frame_rate: float, unit: int) -> list[int]:
    """How long each frame is shown, in ms, as multiples of `unit` that do not drift."""
    ends = [round(1000 * i / frame_rate / unit) * unit for i in range(count + 1)]
    return [end - begin for begin, end in pairwise(ends)]


# --- drawn again ----------------------------------------------------------------------------------


def find_frames(picture: Path, wanted: Sequence[DrawnFrame], given: Sequence[Path]) -> list[Path]:
    """The files of the frames that a picture was drawn after, known by their hashes.

    They are among those that are `given`, or lie beside the picture; links there are passed over.
    Raises `InvalidInput` for files that are none of them, and `NotFound`.
    """
    if given and not wanted:
        raise InvalidInput(f"{picture} was not drawn after another frame", hint="leave it out")
    found = _by_hash(picture, "frame", {each.sha256 for each in wanted}, given, beside=picture)
    for each in wanted:
        if each.sha256 not in found:
            raise NotFound(
                f"{picture} was drawn after another frame, whose file is not beside it",
                hint=f"--frame FILE; the SHA-256 of that file begins with {each.sha256[:12]}",
            )
    return [found[each.sha256] for each in wanted]


def find_layouts(
    picture: Path, wanted: Collection[str], given: Sequence[Path], *, beside: Path | None
) -> dict[str, ReadControl]:
    """The control pictures of what a picture was drawn after, by their hashes.

    They are among those that are `given`, or lie `beside` the picture's own. Raises `InvalidInput`
    for files that are none of them, and `NotFound`.
    """
    if given and not wanted:
        raise InvalidInput(
            f"{picture} was not drawn after a reference with a control picture", hint="leave it out"
        )
    found = _by_hash(picture, "control picture", wanted, given, beside=beside)
    for sha256 in wanted:
        if sha256 not in found:
            raise NotFound(
                f"{picture} was drawn after a reference with a control picture of its own",
                hint=f"--reference-control FILE; the SHA-256 of that begins with {sha256[:12]}",
            )
    return {sha256: read_control(found[sha256]) for sha256 in wanted}


def _by_hash(
    picture: Path,
    noun: str,
    wanted: Collection[str],
    given: Sequence[Path],
    *,
    beside: Path | None,
) -> dict[str, Path]:
    """The files of wanted hashes, among those given, else among those beside a picture."""
    found: dict[str, Path] = {}
    for path in given:
        if not os.path.isfile(path):
            raise NotFound(f"there is no {noun} {path}", hint=f"ls {quoted(path.parent)}")
        sha256 = sha256_of(read_file(path))
        if sha256 not in wanted:
            raise InvalidInput(
                f"{path} is no {noun} that {picture} was drawn with", hint="leave it out"
            )
        found[sha256] = path
    if beside and not found.keys() >= set(wanted):
        for path, sha256 in _hashed_beside(beside):
            found.setdefault(sha256, path)
            if found.keys() >= set(wanted):
                break
    return found


def _hashed_beside(picture: Path) -> Iterator[tuple[Path, str]]:
    """Pictures beside a picture with their hashes, its neighbours first."""
    folder = Path(os.path.realpath(picture.parent))
    beside = [Path(each.name) for each in entries(folder, folder) if each.is_file]
    pictures = [folder / each for each in beside if each.suffix.lower() in SUFFIXES]
    paths = sorted(pictures, key=_by_number)
    own = sum(_by_number(path) < _by_number(picture) for path in paths)
    for i in sorted(range(len(paths)), key=lambda i: abs(i - own)):
        with suppress(OSError), open_file(folder, paths[i]) as file:
            yield paths[i], sha256_of(file)


def read_frame(path: Path, drawn: DrawnFrame, control: ReadControl | None = None) -> ChosenFrame:
    """A frame from its file, with its control picture.

    Raises `InvalidImage`, and `NotFound` for a file with another hash.
    """
    data = read_file(path)
    if sha256_of(data) != drawn.sha256:
        raise NotFound(f"{path} has changed while it was looked at")
    with strict_decoding():
        return ChosenFrame(drawn, read_photo(data, str(path)), control)

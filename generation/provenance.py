"""Provenance of pictures: written into PNG metadata, and read from it."""

import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from PIL import Image
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ..models.bases import Layers
from ..models.references import GUIDANCE, MAX_GUIDANCE, MAX_REFERENCES, MAX_WEIGHT, SHARE
from ..registry.documents import parse_json
from ..registry.errors import ConceptryError, InvalidImage, InvalidInput, NotFound, StorageError
from ..registry.files import new_file, open_file
from ..registry.hashes import sha256_of
from ..registry.images import read_file
from ..registry.names import check_category
from ..registry.validation import problem
from .control_request import MAX_SCALE, UsedControl
from .init_request import UsedInit
from .layout import MAX_SUBJECTS, Layout
from .outlines import MAX_POINTS as MAX_OUTLINE
from .outlines import MAX_POLYGONS
from .picture_texts import FileFormat, PictureTexts, encode_picture, texts_of
from .request import MAX_SEED, SamplingSettings

MAX_BATCH = 256
"""The largest batch of pictures."""
MAX_CONCEPTS = 64
MAX_FRAMES_AFTER = 2
"""The first frame, and the previous one."""
MAX_POINTS = 16
MAX_PIXELS_AT_ONCE = 1 << 26
"""64 pictures of 1024 x 1024: the largest batch that untrusted metadata may ask for."""
MAX_PIXEL_STEPS = 1 << 34
"""Pixels times steps: 64 pictures of 1024 x 1024 in 256 steps."""

_Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Polygon = Annotated[list[tuple[_Share, _Share]], Field(min_length=3, max_length=MAX_OUTLINE)]
Regions = Annotated[
    dict[str, Annotated[list[_Polygon], Field(max_length=MAX_POLYGONS)]],
    Field(max_length=MAX_SUBJECTS),
]
"""Outlines of where each subject of a picture is, by its name."""
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Category = Annotated[str, AfterValidator(check_category)]
"""The word for a subject when a picture was drawn; older pictures have none."""


def save_picture(
    image: Image.Image,
    folder: Path,
    stem: str,
    metadata: Mapping[str, object],
    *,
    file_format: FileFormat = "png",
    parameters: str | None = None,
    record: Callable[[str], object] = lambda _: None,
) -> tuple[Path, str]:
    """Write a picture that carries `metadata` as JSON; returns its path and SHA-256.

    `parameters` are what it says of itself to other tools. The file appears whole or not at all,
    and never replaces another: `rex-7.png`, `rex-7-2.png`, … `record` gets the SHA-256 before it
    appears, so that no picture is there without its record.
    """
    data = encode_picture(image, metadata, file_format=file_format, parameters=parameters)
    return write_picture(data, folder, stem, f".{file_format}", record=record)


def write_picture(
    data: bytes,
    folder: Path,
    stem: str,
    suffix: str,
    *,
    record: Callable[[str], object] = lambda _: None,
) -> tuple[Path, str]:
    """Write the bytes of a picture, as `save_picture` does."""
    sha256 = sha256_of(data)
    names = _names(stem, suffix)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with new_file(folder) as unfinished:
            unfinished.file.write(data)
            record(sha256)
            path = next(path for name in names if unfinished.take(path := folder / name))
    except OSError as error:
        raise StorageError(f"cannot write a picture into {folder}: {error.strerror}") from error
    return path, sha256


def find_same(data: bytes, folder: Path, stem: str, suffix: str) -> Path | None:
    """The file that `write_picture` made of the same bytes, if it is there."""
    real = Path(os.path.realpath(folder))
    for name in _names(stem, suffix):
        if not os.path.lexists(real / name):
            return None
        with suppress(OSError, ConceptryError), open_file(real, real / name) as file:
            if sha256_of(file) == sha256_of(data):
                return folder / name
    raise AssertionError("names do not end")


def _names(stem: str, suffix: str) -> Iterator[str]:
    """What pictures are called, one after the other: `rex-7.png`, `rex-7-2.png`."""
    for number in itertools.count(1):
        yield f"{stem}{f'-{number}' if number > 1 else ''}{suffix}"


def read_metadata(path: Path) -> dict[str, object] | None:
    """The metadata that `save_picture` wrote; None for other pictures.

    Raises `NotFound` if there is no such file, `InvalidImage` if it cannot be read as a picture.
    """
    texts = read_texts(path)
    try:
        found = parse_json(texts.ours) if texts and texts.ours else None
    except InvalidInput as error:
        raise InvalidImage(f"{path} cannot be read as a picture: {error}") from None
    return found if isinstance(found, dict) else None


def read_texts(path: Path) -> PictureTexts | None:
    """The texts in a picture; None for a file of another format. Raises as `read_metadata`."""
    if not os.path.isfile(path):
        raise NotFound(f"{path} is a folder" if os.path.isdir(path) else f"{path} does not exist")
    try:
        return texts_of(read_file(path))
    except InvalidImage:
        raise
    except Exception as error:  # noqa: BLE001 (decoders raise anything)
        raise InvalidImage(f"{path} cannot be read as a picture: {error}") from None


def check_points(points: Sequence[object]) -> None:
    """Raise `InvalidInput` for more places than maps show."""
    if len(points) > MAX_POINTS:
        raise InvalidInput(
            f"maps show {MAX_POINTS} places at most, not {len(points):,}",
            hint="fewer of --point",
        )


@dataclass(frozen=True, slots=True)
class DrawnAfter:
    """A reference of a picture: hashes of photo and mask, and how it was described and counted.

    `control` is the hash of its own control picture, if it had one.
    """

    concept: str
    photo: str
    mask: str | None
    prompt: str
    weight: float
    share: float
    guidance: float
    control: str | None = None
    category: str | None = None


@dataclass(frozen=True, slots=True)
class DrawnFrame:
    """An earlier frame that a picture was drawn after: its file's hash, and as `DrawnAfter`."""

    sha256: str
    prompt: str
    weight: float
    share: float = SHARE
    guidance: float = GUIDANCE
    control: str | None = None

    @property
    def record(self) -> dict[str, object]:
        """As metadata."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class Provenance:
    """What made a picture, according to its file."""

    base: str
    base_sha256: str
    prompt: str
    seed: int
    batch_seeds: tuple[int, ...]
    with_maps: bool
    with_leaks: bool
    settings: SamplingSettings
    versions: Mapping[str, tuple[int, str]]
    """Concept name -> (version number, hash of its weights)."""
    categories: Mapping[str, str] = field(default_factory=dict)
    """Concept name -> the category that it had then, of those in `versions`."""
    references: tuple[DrawnAfter, ...] = ()
    points: tuple[tuple[float, float], ...] = ()
    """Those of the picture whose heat-maps in references were asked for."""
    control: UsedControl | None = None
    init: UsedInit | None = None
    frames: tuple[DrawnFrame, ...] = ()
    subject_encoder: str | None = None
    """The hash of its file."""

    @property
    def control_picture(self) -> UsedControl | None:
        """Its control picture, if that was a file: boxes of a layout are drawn again."""
        return None if self.settings.layout_control else self.control

    @property
    def layouts(self) -> set[str]:
        """The hashes of control pictures of what it was drawn after."""
        return {each.control for each in (*self.references, *self.frames) if each.control}

    @property
    def work(self) -> str:
        """How much there is to draw again, for messages."""
        count, size = len(self.batch_seeds), self.settings.size
        pictures = "a picture" if count == 1 else f"{count} pictures at once"
        sides = f", {size[0]}x{size[1]}" if size else ""
        steps = "a step" if self.settings.steps == 1 else f"{self.settings.steps} steps"
        return f"{pictures}{sides}, in {steps}"

    @property
    def is_modest(self) -> bool:
        """Whether it is within the limits for untrusted metadata."""
        width, height = self.settings.size or (1024, 1024)
        count = len(self.batch_seeds) + len(self.references) + len(self.frames)
        pixels = count * width * height
        return pixels <= MAX_PIXELS_AT_ONCE and pixels * self.settings.steps <= MAX_PIXEL_STEPS


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _AfterPart(_Part):
    model_config = ConfigDict(extra="forbid")

    prompt: str
    weight: Annotated[float, Field(ge=0, le=MAX_WEIGHT)]
    share: _Share
    guidance: Annotated[float, Field(ge=0, le=MAX_GUIDANCE)]
    control: _Sha256 | None = None


class _ReferencePart(_AfterPart):
    concept: str
    category: _Category | None = None
    photo: _Sha256
    mask: _Sha256 | None


class _FramePart(_AfterPart):
    sha256: _Sha256


class _ControlPart(_Part):
    model_config = ConfigDict(extra="forbid")

    image_sha256: _Sha256
    network: Annotated[str, Field(max_length=1000)]
    network_sha256: _Sha256
    scale: Annotated[float, Field(ge=0, le=MAX_SCALE)]
    transfers: bool = True


class _InitPart(_Part):
    model_config = ConfigDict(extra="forbid")

    image_sha256: _Sha256
    strength: Annotated[float, Field(gt=0, le=1)]
    mask_sha256: _Sha256 | None = None


class _SettingsPart(_Part):
    model_config = ConfigDict(extra="forbid")

    steps: int
    guidance: float
    negative: str
    scheduler: str | None
    size: tuple[int, int] | None
    separate: bool = False
    reference_share: float | None = None
    reference_guidance: float | None = None
    encoder_strength: float = 0.0
    layout: Layout | None = None
    layout_control: bool = False
    prompt_weights: bool = False
    perturbed_attention: float = 0
    perturbed_layers: Layers = "mid"
    subject_encoder: _Sha256 | None = None
    references: list[_ReferencePart] = Field(default_factory=list, max_length=MAX_REFERENCES)
    batch_seeds: list[_Seed] = Field(min_length=1, max_length=MAX_BATCH)
    maps: bool = False
    leaks: bool = False
    points: list[tuple[_Share, _Share]] = Field(default_factory=list, max_length=MAX_POINTS)
    control: _ControlPart | None = None
    init: _InitPart | None = None
    frames: list[_FramePart] = Field(default_factory=list, max_length=MAX_FRAMES_AFTER)
    regions: Regions = Field(default_factory=dict)


class _VersionPart(_Part):
    concept: str
    category: _Category | None = None
    version: Annotated[int, Field(ge=1, le=MAX_SEED)]
    sha256: _Sha256


class _Metadata(_Part):
    base: str
    base_sha256: str
    prompt: str
    seed: _Seed
    settings: _SettingsPart
    versions: list[_VersionPart] = Field(max_length=MAX_CONCEPTS)


def read_provenance(path: Path) -> Provenance:
    """The provenance of a picture. Raises `NotFound` and `InvalidImage`."""
    metadata = read_metadata(path)
    if isinstance(metadata, dict) and "maps_of" in metadata:
        raise InvalidImage(f"{path} is a sheet of heat-maps", hint="name the picture beside it")
    if not isinstance(metadata, dict) or "settings" not in metadata:
        raise InvalidImage(
            f"{path} does not say what made it", hint="name a picture that concept generate wrote"
        )
    try:
        provenance = _provenance(_Metadata.model_validate_json(json.dumps(metadata)))
        with Image.open(path) as picture:
            if provenance.settings.size not in (None, picture.size):
                raise InvalidInput("it has another size")
        return provenance
    except (ValidationError, InvalidInput) as error:
        reason = problem(error)
    raise InvalidImage(f"the metadata of {path} is damaged: {reason}")


def _provenance(metadata: _Metadata) -> Provenance:
    drawn = metadata.settings.model_dump()
    batch_seeds = tuple(drawn.pop("batch_seeds"))
    with_maps, with_leaks = drawn.pop("maps"), drawn.pop("leaks")
    points = tuple(drawn.pop("points"))
    references = tuple(DrawnAfter(**each) for each in drawn.pop("references"))
    control = drawn.pop("control")
    init = drawn.pop("init")
    frames = tuple(DrawnFrame(**each) for each in drawn.pop("frames"))
    subject_encoder = drawn.pop("subject_encoder")
    del drawn["regions"]  # what came of it
    if metadata.seed not in batch_seeds:
        raise InvalidInput("its seed is not in its batch")
    return Provenance(
        base=metadata.base,
        base_sha256=metadata.base_sha256,
        prompt=metadata.prompt,
        seed=metadata.seed,
        batch_seeds=batch_seeds,
        with_maps=with_maps,
        with_leaks=with_leaks,
        settings=SamplingSettings(**drawn),
        versions={each.concept: (each.version, each.sha256) for each in metadata.versions},
        categories={each.concept: each.category for each in metadata.versions if each.category},
        references=references,
        points=points,
        control=UsedControl(**control) if control else None,
        init=UsedInit(**init) if init else None,
        frames=frames,
        subject_encoder=subject_encoder,
    )

"""The frames of `concept generate --animate`, and those that `concept reproduce` needs."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .errors import interrupted, usage

if TYPE_CHECKING:
    from ..generation.control_request import ControlRequest
    from ..generation.drawing import Picture
    from ..generation.frames import FrameWeights
    from ..generation.picture_texts import FileFormat
    from ..generation.prompt_files import PromptDefaults
    from ..generation.request import Request
    from ..models.bases import Base
    from ..models.loading import LoadedBase
    from ..registry import Registry

Format = Literal["webp", "gif"]
AnimateOption = Annotated[
    bool,
    typer.Option(
        "--animate",
        help="Draw the frames of an animation, each also after the one before it, and write that: "
        "a frame for each picture of --controls, or each prompt of --prompts. With the same --seed "
        "it goes on where it was stopped.",
    ),
]
ControlsOption = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER[:KIND]",
        help="With --animate: a folder of pictures for --control, in the order of their names.",
        show_default=False,
    ),
]
PreviousOption = Annotated[
    float | None,
    typer.Option(
        "--previous-frame",
        metavar="W",
        min=0,
        max=100,
        help="With --animate: weight of the frame before as a reference; 1 by default.",
        show_default=False,
    ),
]
FirstOption = Annotated[
    float | None,
    typer.Option(
        "--first-frame",
        metavar="W",
        min=0,
        max=100,
        help="With --animate: weight of the first frame as a reference; 0 by default.",
        show_default=False,
    ),
]
RateOption = Annotated[
    float | None,
    typer.Option(
        "--frame-rate",
        metavar="X",
        min=0.1,
        max=50,
        help="With --animate: frames in a second; 8 by default.",
        show_default=False,
    ),
]
FormatOption = Annotated[
    Format | None,
    typer.Option(
        "--animation",
        metavar="FORMAT",
        help="With --animate: webp or gif; webp by default.",
        show_default=False,
    ),
]
AgainOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--frame",
        metavar="FILE",
        help="An earlier frame that the picture was drawn after, where it is not beside it; "
        "repeatable.",
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True)
class Animation:
    """What `--animate` asks for, and the animations that have been written."""

    controls: "Sequence[ControlRequest]"
    weights: "FrameWeights"
    frame_rate: float
    file_format: Format
    written: list[str] = field(default_factory=list)

    def frames(
        self, requests: "list[Request]", picture_format: "FileFormat", base: "Base", out: Path
    ) -> "list[Request]":
        """A request for each frame. Raises `InvalidInput` as `check_frames` does.

        And where frames would be written among the control pictures, and be such the next time.
        """
        from ..generation.frames import check_frames, check_keeps_frames
        from ..models.native import native_of

        check_keeps_frames(picture_format)
        if self.controls:
            folder = self.controls[0].picture.parent
            if os.path.realpath(folder) == os.path.realpath(out):
                raise usage(
                    f"frames would be control pictures the next time: {out} has these",
                    "--out FOLDER, another one",
                )
            requests = [replace(each, control=one) for each in requests for one in self.controls]
        native = native_of(base)
        check_frames(requests, native.size if native else None)
        return requests

    def chains(self, frames: "Sequence[Request]") -> bool:
        """Whether frames are drawn after earlier ones."""
        return len(frames) > 1 and bool(self.weights.previous or self.weights.first)

    @contextmanager
    def interruptible(
        self, frames: "Sequence[Request]", defaults: "PromptDefaults", *, leak: bool
    ) -> Iterator[None]:
        """Whoever interrupts is told how to go on: with the seed, unless the file says it.

        Leaks are measured while frames are drawn, so then all are drawn again.
        """
        try:
            yield
        except KeyboardInterrupt:
            if leak:
                raise
            said = f" with --seed {defaults.seed}" if not {"seed", "seeds"} & frames[0].said else ""
            raise interrupted(f"the same command{said}, which goes on") from None

    def draw(
        self,
        registry: "Registry",
        base: "LoadedBase",
        requests: "Sequence[Request]",
        out: Path,
        **options: Any,
    ) -> "Iterator[Picture]":
        """Draw frames as `generation.animate` does; after the last of a seed, writes those."""
        from ..generation.generating import animate, save_animation

        frames: list[Picture] = []
        for picture in animate(registry, base, requests, out, weights=self.weights, **options):
            frames.append(picture)
            if len(frames) == len(requests):
                path = save_animation(
                    frames, out, file_format=self.file_format, frame_rate=self.frame_rate
                )
                self.written.append(str(path))
                frames = []
            yield picture


def parse(
    controls: str | None,
    scale: float,
    *,
    is_animated: bool,
    has_prompts: bool,
    has_control: bool,
    batch: int | None,
    **options: Any,
) -> Animation | None:
    """What the options of an animation ask for; `options` are those that only animations have.

    Raises `Failure` for options that do not go together, `NotFound` and `InvalidInput`.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if not is_animated:
        for name in ["controls"] * (controls is not None) + list(given):
            raise usage(
                f"--{name.replace('_', '-')} is for animations", "with --animate, or leave it out"
            )
        return None
    if controls is None and not has_prompts:
        raise usage(
            "an animation has to know its frames",
            "--controls FOLDER, a picture for each; or --prompts FILE, a prompt for each",
        )
    if batch not in (None, 1):
        raise usage("frames are drawn one at a time, each after the one before", "without --batch")
    if controls is not None and (has_prompts or has_control):
        other = "--prompts" if has_prompts else "--control"
        raise usage(f"--controls and {other} do not go together", "leave one of them out")
    from ..generation.frames import FRAME_RATE, FrameWeights, parse_controls

    found = [] if controls is None else parse_controls(controls, scale=scale)
    weights = FrameWeights(
        previous=given.get("previous_frame", 1.0), first=given.get("first_frame", 0.0)
    )
    rate, file_format = given.get("frame_rate", FRAME_RATE), given.get("animation", "webp")
    return Animation(found, weights, rate, file_format)

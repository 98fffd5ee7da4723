"""Scripts of `concept generate`, and what `--dry-run` says of it."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import usage
from .output import count

if TYPE_CHECKING:
    from ..generation.frames import FrameWeights
    from ..generation.picture_texts import FileFormat
    from ..generation.request import Request
    from ..generation.resuming import Shot
    from ..models.bases import Base
    from ..registry import Registry
    from .framework import Session

DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="Say what would be drawn, and draw nothing."),
]


def script_of(
    file: Path | None, requests: "Sequence[Request]", out: Path, *, is_animated: bool, leak: bool
) -> Path | None:
    """A prompt file, if it has scenes.

    Raises `Failure` for options that are for nothing that scripts do, and `AlreadyExists`.
    """
    if file is None or not any(each.scene for each in requests):
        return None
    if is_animated:
        raise usage("scenes are no frames of an animation", "a list of prompts, or no --animate")
    if leak:
        raise usage("--leak is measured while drawing, and scenes are drawn once", "without --leak")
    from ..generation.story_page import page_path

    page_path(out, file)
    return file


def show_plan(
    session: "Session",
    requests: "Sequence[Request]",
    base: "Base",
    out: Path,
    *,
    is_plain: bool,
    frame_weights: "FrameWeights | None",
    with_leaks: bool,
    check: "Callable[[Registry | None], None]",
    file_format: "FileFormat" = "png",
    **options: Any,
) -> None:
    """Print what would be drawn, after what is checked before drawing."""
    from ..generation.resuming import find_frames, find_shots
    from ..registry.errors import RegistryMissing

    options |= {"file_format": file_format, "with_leaks": with_leaks}
    find = partial(find_frames, weights=frame_weights) if frame_weights else find_shots
    try:
        with session.registry() as registry:
            registry.check_outside(out)
            check(registry)
            shots = find(registry, base, requests, out, **options)
    except RegistryMissing:
        if not is_plain:
            raise
        check(None)
        shots = find(None, base, requests, out, **options)
    planned = _frames(shots, len(requests), out) if frame_weights else _pictures(shots, out)
    names = _Names(file_format)
    paths: dict[int, Path] = {}
    for each in planned:
        paths.setdefault(
            each.drawing, each.shot.kept.path if each.shot.kept else names.next(each.stem)
        )
    to_draw = len({each.drawing for each in planned if each.shot.kept is None})
    pictures = [
        {
            "scene": each.shot.request.scene,
            "prompt": each.shot.request.prompt,
            "seed": each.shot.seed,
            "path": str(paths[each.drawing]),
            "is_there": each.shot.kept is not None,
        }
        for each in planned
    ]
    lines = [
        f"{'there' if each['is_there'] else 'draw '}  {each['path']}: {each['prompt']}"
        for each in pictures
    ]
    document = {"to_draw": to_draw, "planned": pictures}
    session.output.lines(document, lines)
    session.output.note(f"{count(len(shots), 'picture')}, {to_draw:,} to draw")


@dataclass(frozen=True, slots=True)
class _Planned:
    """A picture of a plan; scenes that say the same share a `drawing`."""

    shot: "Shot"
    stem: Path
    drawing: int


def _pictures(shots: "Sequence[Shot]", out: Path) -> list[_Planned]:
    from ..generation.pictures import file_stem

    first: dict[str, int] = {}
    return [
        _Planned(
            shot,
            out / file_stem(shot.request.title, shot.seed),
            first.setdefault(shot.key, i),
        )
        for i, shot in enumerate(shots)
    ]


def _frames(shots: "Sequence[Shot]", num_frames: int, out: Path) -> list[_Planned]:
    from ..generation.pictures import file_stem

    title = shots[0].request.title
    return [
        _Planned(shot, out / file_stem(title, shot.seed, i % num_frames + 1), i)
        for i, shot in enumerate(shots)
    ]


class _Names:
    """The paths that pictures would get: `rex-7.png`, or where that is taken `rex-7-2.png`."""

    def __init__(self, file_format: "FileFormat") -> None:
        self._ending = f".{file_format}"
        self._taken: set[Path] = set()
        self._numbers: dict[Path, int] = {}

    def next(self, stem: Path) -> Path:
        """The first that is free, which then is taken."""
        number = self._numbers.get(stem, 0)
        while True:
            number += 1
            ending = f"-{number}{self._ending}" if number > 1 else self._ending
            path = stem.with_name(stem.name + ending)
            if path not in self._taken and not os.path.lexists(path):
                self._numbers[stem] = number
                self._taken.add(path)
                return path

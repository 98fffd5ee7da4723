"""Scripts of `concept generate`: which pictures are there, what is still to draw, and the page."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import usage
from .output import count

if TYPE_CHECKING:
    from ..generation.generating import Picture
    from ..generation.picture_texts import FileFormat
    from ..generation.request import Request
    from ..generation.resuming import KeptPicture, Shot
    from ..models.bases import Base
    from ..models.loading import LoadedBase
    from ..registry import Registry
    from .framework import Session

DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="Say what would be drawn, and draw nothing."),
]


@dataclass(slots=True)
class Script:
    """A prompt file with scenes, each of whose pictures is drawn once.

    `shots` are all of its pictures in order, and `left` the requests that are still to draw.
    """

    title: str
    requests: "Sequence[Request]"
    out: Path
    page: Path
    shots: "Sequence[Shot]" = ()
    left: "list[Request]" = field(default_factory=list)

    def look(self, registry: "Registry", base: "LoadedBase", **options: Any) -> "list[Request]":
        """See what is there already; returns what is left to draw."""
        from ..generation.resuming import find_shots

        self.shots = find_shots(
            registry,
            base.base,
            self.requests,
            self.out,
            base_sha256=base.sha256,
            side=base.backbone.size,
            **options,
        )
        seen: set[str] = set()
        for shot in self.shots:
            if shot.kept or shot.key in seen:
                continue
            seen.add(shot.key)
            if self.left and _is_of(self.left[-1], shot):
                self.left[-1] = replace(self.left[-1], seeds=[*self.left[-1].seeds, shot.seed])
            else:
                self.left.append(replace(shot.request, seeds=[shot.seed]))
        return self.left

    def whole(self, drawn: "Iterator[Picture]") -> "Iterator[tuple[Picture, bool]]":
        """All pictures in order, those that were there too, and whether each is new."""
        found: dict[str, Picture] = {}
        for shot in self.shots:
            if shot.kept:
                yield _picture(shot, shot.kept), False
            elif shot.key in found:
                yield found[shot.key], False
            else:
                found[shot.key] = next(drawn)
                yield found[shot.key], True
        for _ in drawn:  # which ends it
            raise AssertionError("more pictures than scenes")

    def write_page(self, paths: Sequence[str]) -> str:
        """Write the page of pictures in order; returns its path."""
        from ..generation.story_page import write_page

        panels = [
            (shot.request.scene, shot.request.prompt, shot.seed, Path(path))
            for shot, path in zip(self.shots, paths, strict=True)
        ]
        write_page(self.page, self.title, panels)
        return str(self.page)


def script_of(
    file: Path | None, requests: "Sequence[Request]", out: Path, *, is_animated: bool, leak: bool
) -> Script | None:
    """The script of a prompt file, if it has scenes.

    Raises `Failure` for options that are for nothing that scripts do, and `AlreadyExists`.
    """
    if file is None or not any(each.scene for each in requests):
        return None
    if is_animated:
        raise usage("scenes are no frames of an animation", "a list of prompts, or no --animate")
    if leak:
        raise usage("--leak is measured while drawing, and scenes are drawn once", "without --leak")
    from ..generation.scripts import title_of
    from ..generation.story_page import page_path

    return Script(title_of(file), requests, out, page_path(out, file.stem))


def show_plan(
    session: "Session",
    requests: "Sequence[Request]",
    base: "Base",
    out: Path,
    *,
    is_plain: bool,
    file_format: "FileFormat" = "png",
    **options: Any,
) -> None:
    """Print what would be drawn."""
    from ..generation.resuming import find_shots
    from ..registry.errors import RegistryMissing

    options["file_format"] = file_format
    try:
        with session.registry() as registry:
            shots = find_shots(registry, base, requests, out, **options)
    except RegistryMissing:
        if not is_plain:
            raise
        shots = find_shots(None, base, requests, out, **options)
    to_draw = sum(shot.kept is None for shot in shots)
    pictures = [
        {
            "scene": shot.request.scene,
            "prompt": shot.request.prompt,
            "seed": shot.seed,
            "path": str(shot.kept.path if shot.kept else _path(out, shot, file_format)),
            "is_there": shot.kept is not None,
        }
        for shot in shots
    ]
    lines = [
        f"{'there' if each['is_there'] else 'draw '}  {each['path']}: {each['prompt']}"
        for each in pictures
    ]
    document = {"to_draw": to_draw, "planned": pictures}
    session.output.lines(document, lines)
    session.output.note(f"{count(len(shots), 'picture')}, {to_draw:,} to draw")


def _path(out: Path, shot: "Shot", file_format: "FileFormat") -> Path:
    from ..generation.pictures import file_stem

    return out / f"{file_stem(shot.request.scene or shot.request.prompt, shot.seed)}.{file_format}"


def _is_of(request: "Request", shot: "Shot") -> bool:
    return replace(request, seeds=[0]) == replace(shot.request, seeds=[0])


def _picture(shot: "Shot", kept: "KeptPicture") -> "Picture":
    from PIL import Image

    from ..generation.generating import Picture

    with Image.open(kept.path) as image:
        own = image.convert("RGB")
    return Picture(
        kept.path,
        shot.seed,
        kept.sha256,
        shot.request.prompt,
        kept.maps,
        own,
    )

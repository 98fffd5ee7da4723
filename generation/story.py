"""The pictures of a script: which are there, which are drawn, and the page of all."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..models.loading import LoadedBase
from ..registry import Registry
from .drawing import Picture
from .generating import generate
from .request import Request
from .resuming import KeptPicture, Shot, find_shots
from .scripts import title_of
from .story_page import Panel, page_path, write_page


class Story:
    """The pictures of a script in a folder, of which only those are drawn that are not there.

    `requests` are what `read_prompts` found in the file `script`, `options` those of `generate` but
    for leaks, which files do not tell; `page` is where the page of the script is. Raises what
    `page_path` and `find_shots` raise.
    """

    def __init__(
        self,
        registry: Registry,
        base: LoadedBase,
        script: Path,
        requests: Sequence[Request],
        folder: Path,
        **options: Any,
    ) -> None:
        self.page = page_path(folder, script)
        self._script, self._title = script, title_of(script)
        self._shots = find_shots(registry, base.base, requests, folder, loaded=base, **options)
        self._left = _left(self._shots)
        self._generate = partial(generate, registry, base, self._left, folder, **options)

    @property
    def num_left(self) -> int:
        """How many pictures are still to draw."""
        return sum(len(each.seeds) for each in self._left)

    def draw(self, *, batch: int = 4) -> Iterator[Picture]:
        """All pictures in order, those that are there from their files; then writes the page.

        Scenes that say the same share a picture. Raises what `generate` raises, and `NotFound` for
        a picture that is gone by now.
        """
        drawing = self._generate(batch=batch)
        drawn: dict[str, KeptPicture] = {}
        panels: list[Panel] = []
        for shot in self._shots:
            if there := shot.kept or drawn.get(shot.key):
                picture = Picture.there(there, shot.request, shot.seed)
            else:
                picture = next(drawing)
                drawn[shot.key] = KeptPicture(picture.path, picture.sha256, picture.maps)
            panels.append((shot.request.scene, shot.request.prompt, shot.seed, picture.path))
            yield picture
        for _ in drawing:  # which ends it
            raise AssertionError("more pictures than scenes")
        write_page(self.page, self._script, self._title, panels)


def _left(shots: Sequence[Shot]) -> list[Request]:
    """Requests for what is not there, each once; neighbours that differ in their seeds are one."""
    left: list[Request] = []
    seen: set[str] = set()
    for shot in shots:
        if shot.kept or shot.key in seen:
            continue
        seen.add(shot.key)
        if left and replace(left[-1], seeds=[0]) == replace(shot.request, seeds=[0]):
            left[-1] = replace(left[-1], seeds=[*left[-1].seeds, shot.seed])
        else:
            left.append(replace(shot.request, seeds=[shot.seed]))
    return left

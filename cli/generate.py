"""`concept generate`: pictures out."""

import secrets
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .errors import usage
from .framework import session_of
from .output import count

if TYPE_CHECKING:
    from PIL import Image

    from ..methods.prompts import Chosen
    from ..models.drawing import Settings
    from ..models.loading import LoadedBase
    from ..registry import Registry

MAX_PICTURES = 10_000
MAX_SEED = (1 << 63) - 1


def generate(
    context: typer.Context,
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="What to draw.", show_default=False)
    ],
    base: Annotated[
        str,
        typer.Option(
            metavar="BASE",
            help="The base model: an alias, hub repository, folder or .safetensors file.",
        ),
    ] = "miniature",
    num_pictures: Annotated[
        int, typer.Option("-n", metavar="N", min=1, max=MAX_PICTURES, help="How many pictures.")
    ] = 4,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="SEED",
            min=0,
            help="Seed of the first picture, the others follow it; random if left out.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="Denoising steps.")] = 25,
    guidance: Annotated[
        float,
        typer.Option(
            metavar="X", min=0, max=100, help="How closely to follow the prompt; 1 adds nothing."
        ),
    ] = 5.0,
    negative: Annotated[
        str, typer.Option(metavar="TEXT", help="What to keep out.", show_default=False)
    ] = "",
    scheduler: Annotated[
        Literal["ddim", "euler", "dpm++"] | None,
        typer.Option(
            metavar="NAME",
            help="ddim, euler or dpm++; the base model's own by default.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WxH", help="In pixels; the base model's own by default.", show_default=False
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option(metavar="N", min=1, max=256, help="Pictures to draw at once.")
    ] = 4,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the pictures go.")] = Path(
        "pictures"
    ),
    grid: Annotated[bool, typer.Option("--grid", help="Also put all of them on a sheet.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Download nothing.")] = False,
) -> None:
    """Draw pictures of a prompt; <rex> in it stands for the concept rex.

    <rex@2> is a version, <rex@best> an alias, <rex:0.8> a strength. What made a picture is kept in
    the registry and in the picture itself.
    """
    session = session_of(context)
    width_and_height = _parse_size(size) if size else None
    from ..methods.prompts import choose, mentions
    from ..models.bases import find_base

    find_base(base)  # a wrong word is told before anything is loaded or made
    names_concepts = bool(mentions(prompt))
    first = secrets.randbelow(1 << 32) if seed is None else seed
    if first + num_pictures > MAX_SEED:
        raise usage(f"the seed {first} does not fit into 63 bits", "--seed 0")
    with session.registry(create=not names_concepts) as registry:
        chosen = choose(registry, prompt)
        session.output.note(f"loading {base}")
        from ..methods.wardrobe import draw_concepts
        from ..models.drawing import Settings
        from ..models.loading import load_base

        settings = Settings(
            steps=steps,
            guidance=guidance,
            negative=negative,
            scheduler=scheduler,
            size=width_and_height,
        )
        loaded = load_base(base, offline=offline)
        seeds = range(first, first + num_pictures)
        album = _Album(registry, loaded, prompt, chosen, settings, out)
        drawing = draw_concepts(loaded, prompt, chosen, seeds, settings, batch=batch)
        with session.output.progress("drawing") as advance:
            for done, drawn in enumerate(drawing, 1):
                album.add(drawn.image, drawn.seed, drawn.batch_seeds)
                if advance:
                    advance(done, num_pictures)
    document: dict[str, Any] = {
        "images": album.images,
        "base": loaded.base.name,
        "base_sha256": loaded.sha256,
        "grid": album.save_grid() if grid else None,
    }
    lines = [image["path"] for image in album.images] + [document["grid"]] * grid
    session.output.lines(document, lines)
    which = f"seeds {seeds[0]} to {seeds[-1]}" if num_pictures > 1 else f"seed {seeds[0]}"
    session.output.note(f"{count(num_pictures, 'picture')}, {which}")


class _Album:
    """The pictures of one call: each is written, then recorded."""

    def __init__(
        self,
        registry: "Registry",
        base: "LoadedBase",
        prompt: str,
        chosen: "Sequence[Chosen]",
        settings: "Settings",
        folder: Path,
    ) -> None:
        self.images: list[dict[str, Any]] = []
        self._registry = registry
        self._base = base
        self._prompt = prompt
        self._chosen = chosen
        self._settings = settings
        self._folder = folder
        self._pictures: list[Image.Image] = []

    def add(self, picture: "Image.Image", seed: int, batch_seeds: Sequence[int]) -> None:
        """Keep a picture."""
        from ..models.pictures import file_stem, save_picture

        made_by = {
            "prompt": self._prompt,
            "seed": seed,
            "base": self._base.base.name,
            "base_sha256": self._base.sha256,
            "settings": asdict(self._settings) | {"batch_seeds": list(batch_seeds)},
        }
        versions = [
            {"concept": each.concept.name, "version": each.version.number, "sha256": each.sha256}
            for each in self._chosen
        ]
        stem = file_stem(self._prompt, seed)
        path, sha256 = save_picture(picture, self._folder, stem, made_by | {"versions": versions})
        self._registry.add_generation(
            sha256,
            **made_by,
            versions=[(each.concept.name, each.version.number) for each in self._chosen],
        )
        self._pictures.append(picture)
        self.images.append(
            {"path": str(path), "seed": seed, "sha256": sha256, "prompt": self._prompt}
        )

    def save_grid(self) -> str:
        """Put all pictures on a sheet, at most eight in a row; returns its path."""
        from ..models.pictures import contact_sheet, file_stem, save_picture

        rows = [self._pictures[i : i + 8] for i in range(0, len(self._pictures), 8)]
        sheet = contact_sheet([(self._prompt if i == 0 else "", row) for i, row in enumerate(rows)])
        stem = file_stem(self._prompt, self.images[0]["seed"])
        path, _ = save_picture(sheet, self._folder, f"{stem}-grid", {"prompt": self._prompt})
        return str(path)


def _parse_size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and (height.isdecimal() or not height)):
        raise usage(f"{text!r} is not a size", "--size 512 or --size 768x512")
    return int(width), int(height or width)

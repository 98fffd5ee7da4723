"""`concept export` and `concept import`: concepts as one portable file."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..registry.errors import quoted
from .arguments import complete_concept
from .errors import usage
from .framework import session_of
from .output import count, size

if TYPE_CHECKING:
    from ..adapters.formats.options import ExportOptions
    from ..registry import Registry
    from ..registry.records import Concept
    from .framework import Session


def export(
    context: typer.Context,
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME... FILE",
            help="The concepts, then the file to write; for other formats than bundle one, NAME or "
            "NAME@VERSION.",
            autocompletion=complete_concept,
            show_default=False,
        ),
    ],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="bundle, or for other tools: embedding, embedding-mean, lora-kohya, "
            "lora-diffusers, diff, svd:RANK, checkpoint, diffusers.",
        ),
    ] = "bundle",
    base: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Where the base model is now, for checkpoint and diffusers.",
            show_default=False,
        ),
    ] = None,
    half: Annotated[
        bool, typer.Option("--half", help="Write checkpoint and diffusers in float16.")
    ] = False,
    thumbnail: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A picture to show in other tools.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace the file.")] = False,
) -> None:
    """Write concepts to one portable file, or one for other tools.

    A bundle has their photos, runs and versions; `concept import` reads it.
    """
    session = session_of(context)
    from ..adapters.formats.options import ExportOptions, parse_format

    *concepts, file = names
    chosen = parse_format(form)
    if not concepts:
        raise usage("name the concepts and then the file", f"concept export NAME {quoted(file)}")
    if chosen.name != "bundle":
        if len(concepts) > 1:
            raise usage(
                f"{chosen} holds one concept, not {len(concepts)}",
                f"concept export {quoted(concepts[0])} {quoted(file)} --format {chosen}",
            )
        options = ExportOptions(
            format=chosen, base=base, half=half, thumbnail=thumbnail, overwrite=force
        )
        _export_version(session, concepts[0], Path(file), options)
        return
    if base or half or thumbnail:
        raise usage(
            "a bundle takes no --base, --half or --thumbnail", "--format checkpoint or diffusers"
        )
    with session.registry() as registry:
        done = registry.export_bundle(concepts, Path(file), overwrite=force)
    what = f"{', '.join(done.concepts)} ({count(done.blobs, 'file')}, {size(done.bytes)})"
    session.output.result(asdict(done), f"wrote {what} to {done.path}")


def _export_version(session: "Session", label: str, path: Path, options: "ExportOptions") -> None:
    name, has_version, version = label.partition("@")
    with session.registry() as registry:
        concept = registry.show(name)
        from ..adapters.formats.exporting import export_version
        from ..generation.prompt_syntax import resolve_version

        chosen = resolve_version(registry, concept, version if has_version else None)
        done = export_version(registry, concept, chosen.version, Path(chosen.path), path, options)
    lines = [f"wrote {chosen.label} as {each.holds} to {each.path}" for each in done.files]
    if done.kept is not None:
        lines.append(f"it keeps {done.kept:.1%} of the change of weights (of its squared norm)")
    session.output.lines(done.to_document(), [*lines, f"in prompts: {done.trigger}"])


def import_(
    context: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A file from `concept export`.", show_default=False),
    ],
    new_name: Annotated[
        str | None,
        typer.Option("--as", metavar="NAME", help="Another name, if it holds a single concept."),
    ] = None,
) -> None:
    """Import the concepts of an exported file.

    All of them or, if one cannot be, none.
    """
    session = session_of(context)
    from ..registry import NotFound
    from ..registry.not_bundles import refuse_non_bundle

    if not os.path.exists(file):
        raise NotFound(f"{file} does not exist", hint=f"ls {quoted(file.parent)}")
    refuse_non_bundle(file)
    with session.registry(create=True) as registry:
        concepts = registry.import_bundle(file, name=new_name)
        undrawable = _undrawable(registry, concepts)
    lines = [
        f"imported {concept.name} ({concept.category}): {count(len(concept.images), 'photo')}, "
        f"{count(len(concept.versions), 'version')}"
        for concept in concepts
    ]
    session.output.lines({"concepts": [asdict(concept) for concept in concepts]}, lines)
    for label in undrawable:
        session.output.warn(f"{label} holds no adapter of concept train: it cannot be drawn with")


def _undrawable(registry: "Registry", concepts: "list[Concept]") -> list[str]:
    """Versions with weights that `generate` cannot use, as their files say at a glance."""
    from ..registry.tensors import is_adapter

    return [
        f"{concept.name}@{version.number}"
        for concept in concepts
        for version in concept.versions
        if not any(is_adapter(registry.path_of(each.sha256)) for each in version.artifacts)
    ]

"""`concept export` and `concept import`: bundles, and files of other tools."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..registry.errors import quoted
from .arguments import complete_concept
from .errors import ExitCode, usage
from .framework import session_of
from .output import count, size

if TYPE_CHECKING:
    from ..adapters.formats.importing import ImportedFile, ImportOptions
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
            help="The concepts, then the file to write; for other formats than bundle NAME or "
            "NAME@VERSION, several for diff, svd, checkpoint and diffusers.",
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
            "lora-diffusers, diff, svd:RANK, checkpoint, diffusers; or original, of what was "
            "imported.",
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

    A bundle has their photos, runs and versions; `concept import` reads it. In other formats
    several concepts become one model: their changes of weights are merged.
    """
    session = session_of(context)
    from ..adapters.formats.options import MERGING, ExportOptions, parse_format

    *concepts, file = names
    chosen = parse_format(form)
    if not concepts:
        raise usage("name the concepts and then the file", f"concept export {quoted(file)} FILE")
    if chosen.name != "bundle":
        if len(concepts) > 1 and chosen.name not in MERGING:
            raise usage(
                f"{chosen} holds one concept, not {len(concepts)}",
                f"concept export {quoted(concepts[0])} {quoted(file)} --format {chosen}",
            )
        options = ExportOptions(
            format=chosen, base=base, half=half, thumbnail=thumbnail, overwrite=force
        )
        export = _export_version if len(concepts) == 1 else _export_merged
        with session.registry() as registry:
            _check_file(registry, concepts, file, f"FILE --format {chosen}")
            export(session, registry, concepts, Path(file), options)
        return
    if Path(file).suffix.lower() == ".safetensors":
        raise usage(
            f"{file} would be a bundle, which no program looks for under that name",
            f"concept export {' '.join(map(quoted, concepts))} {quoted(Path(file).stem)}.concept, "
            "or --format lora-kohya, embedding, …",
        )
    if base is not None or half or thumbnail:
        raise usage(
            "a bundle takes no --base, --half or --thumbnail", "--format checkpoint or diffusers"
        )
    with session.registry() as registry:
        _check_file(registry, concepts, file, "FILE.concept")
        done = registry.export_bundle(concepts, Path(file), overwrite=force)
    what = f"{', '.join(done.concepts)} ({count(done.blobs, 'file')}, {size(done.bytes)})"
    session.output.result(asdict(done), f"wrote {what} to {done.path}")


def _check_file(registry: "Registry", concepts: list[str], file: str, form: str) -> None:
    """Refuse a file that is called like another concept, which the last word was meant for."""
    if file not in concepts and file.partition("@")[0] in registry.names():
        every = " ".join(map(quoted, [*concepts, file]))
        raise usage(
            f'"{file}" is a concept, not a file to write',
            f"name the file last: concept export {every} {form}",
        )


def _export_merged(
    session: "Session",
    registry: "Registry",
    labels: list[str],
    path: Path,
    options: "ExportOptions",
) -> None:
    """Write several concepts as one model."""
    from ..adapters.formats.report import check_target
    from ..generation.prompt_syntax import resolve_version

    chosen, written = [], []
    for label in labels:
        name, has_version, version = label.partition("@")
        found = resolve_version(registry, registry.show(name), version if has_version else None)
        chosen.append((found.concept, found.version, Path(found.path)))
        written.append(found.label)
    check_target(registry, written, path, options)
    session.output.note("merging changes of weights")
    from ..adapters.formats.exporting import export_merged

    done = export_merged(registry, chosen, path, options)
    lines = [f"wrote {each.holds} to {each.path}" for each in done.files]
    if done.kept is not None:
        lines.append(f"it keeps {done.kept:.1%} of the change of weights (of its squared norm)")
    lines += [f"{each.concept}@{each.version} in prompts: {each.trigger}" for each in done.concepts]
    session.output.lines(done.to_document(), lines)


def _export_version(
    session: "Session",
    registry: "Registry",
    labels: list[str],
    path: Path,
    options: "ExportOptions",
) -> None:
    (label,) = labels
    name, has_version, version = label.partition("@")
    concept = registry.show(name)
    from ..adapters.formats.report import check_target
    from ..adapters.formats.returning import export_original
    from ..generation.prompt_syntax import resolve_version

    chosen = resolve_version(registry, concept, version if has_version else None)
    if options.format.name == "original":
        done = export_original(registry, concept, chosen.version, path, options)
    else:
        check_target(registry, [chosen.label], path, options)
        from ..adapters.formats.exporting import export_version

        adapter = Path(chosen.path)
        done = export_version(registry, concept, chosen.version, adapter, path, options)
    lines = [f"wrote {chosen.label} as {each.holds} to {each.path}" for each in done.files]
    if done.kept is not None:
        lines.append(f"it keeps {done.kept:.1%} of the change of weights (of its squared norm)")
    lines += [f"in prompts: {done.trigger}"] if done.trigger else []
    session.output.lines(done.to_document(), lines)


def import_(
    context: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A bundle of `concept export`, or embeddings and LoRA of other tools: a "
            ".safetensors file, or a folder of them.",
            show_default=False,
        ),
    ],
    new_name: Annotated[
        str | None,
        typer.Option("--as", metavar="NAME", help="Another name, if it holds a single concept."),
    ] = None,
    category: Annotated[
        str | None,
        typer.Option(
            "--category",
            "-c",
            metavar="WORD",
            help="What other tools' files show, in a word; else what they say, or thing.",
        ),
    ] = None,
    trigger: Annotated[
        str | None,
        typer.Option(
            metavar="WORDS",
            help="What prompts say for other tools' weights; {} is an embedding's word. Else what "
            "the files say.",
        ),
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", "-t", metavar="T", help="A tag; may be repeated.")
    ] = None,
) -> None:
    """Import the concepts of a bundle, or files of other tools.

    A bundle's concepts come all or, if one cannot be, none. Each file of another tool becomes a
    concept; in a folder one that cannot stops no other, and what is there already is left out.
    Exits with 2 if all are refused.
    """
    session = session_of(context)
    from ..registry import NotFound
    from ..registry.not_bundles import is_of_other_tools, refuse_non_bundle

    if not os.path.exists(file):
        raise NotFound(f"{file} does not exist", hint=f"ls {quoted(file.parent)}")
    if is_of_other_tools(file):
        from ..adapters.formats.importing import ImportOptions

        options = ImportOptions(name=new_name, category=category, trigger=trigger, tags=tag or [])
        _import_originals(session, file, options)
        return
    if category is not None or trigger is not None or tag:
        raise usage(
            "a bundle takes no --category, --trigger or --tag: its concepts have them",
            f"concept import {quoted(file)}",
        )
    refuse_non_bundle(file)
    if session.lacks_registry():
        from ..registry.bundle import check_bundle

        check_bundle(file, name=new_name)
    with session.registry(create=True) as registry:
        concepts = registry.import_bundle(file, name=new_name)
        undrawable = _undrawable(registry, concepts)
    lines = [
        f"imported {concept.name} ({concept.category}): {count(len(concept.images), 'photo')}, "
        f"{count(len(concept.versions), 'version')}"
        for concept in concepts
    ]
    document = {"concepts": [asdict(concept) for concept in concepts], "files": []}
    session.output.lines(document, lines)
    for label in undrawable:
        session.output.warn(f"{label} holds no adapter of concept train: it cannot be drawn with")


def _import_originals(session: "Session", path: Path, options: "ImportOptions") -> None:
    from ..adapters.formats.importing import check_file, import_path

    output = session.output
    if session.lacks_registry():
        check_file(path, options)
    with session.registry(create=True) as registry, output.progress("importing") as advance:
        found = import_path(registry, path, options, on_progress=advance)
        made = [each.concept for each in found if each.concept and each.outcome == "imported"]
        concepts = [asdict(registry.show(name)) for name in made] if output.as_json else []
    document = {"concepts": concepts, "files": [each.to_document() for each in found]}
    output.lines(document, [_imported_line(each) for each in found if each.outcome == "imported"])
    for each in found:
        if each.outcome == "known":
            output.note(f"{each.path} is there already, as {each.concept}")
        elif each.outcome == "refused":
            output.warn(f"{each.path}: {each.message}" + (f" -> {each.hint}" if each.hint else ""))
        for warning in each.warnings:
            output.warn(f"{each.path} {warning}")
    if len(found) > 1:
        output.note(_counts(found))
    if all(each.outcome == "refused" for each in found):
        raise typer.Exit(ExitCode.USAGE)


def _imported_line(file: "ImportedFile") -> str:
    from ..adapters.formats.importing import family_of

    words = "; ".join(file.trigger_words)
    said = f", trigger words: {words}" if words else ""
    return f"imported {file.concept}: {file.holds} for {family_of(file.base)}, {file.prompt}{said}"


def _counts(files: "list[ImportedFile]") -> str:
    """`3 files: 1 imported, 1 there already, 1 refused`."""
    words = {"imported": "imported", "known": "there already", "refused": "refused"}
    numbers = {key: sum(each.outcome == key for each in files) for key in words}
    counted = ", ".join(f"{numbers[key]:,} {word}" for key, word in words.items() if numbers[key])
    return f"{count(len(files), 'file')}: {counted}"


def _undrawable(registry: "Registry", concepts: "list[Concept]") -> list[str]:
    """Versions with weights that `generate` cannot use, as their files say at a glance."""
    from ..registry.records import ORIGINAL
    from ..registry.tensors import is_adapter

    return [
        f"{concept.name}@{version.number}"
        for concept in concepts
        for version in concept.versions
        if not any(
            each.kind == ORIGINAL or is_adapter(registry.path_of(each.sha256))
            for each in version.artifacts
        )
    ]

"""`concept export --format original`: the files of an imported version as they came."""

import shutil
from pathlib import Path

from ...registry import Registry
from ...registry.errors import InvalidInput, StorageError, quoted
from ...registry.files import replacing, write_file
from ...registry.records import ArtifactRecord, Concept, RunRecord, VersionRecord, originals_of
from .description import PLACE, read_description
from .options import ExportOptions
from .recognising import changes_weights
from .report import ExportedFile, ExportReport, check_new_files, embedding_beside

PEFT_CONFIG = "adapter_config.json"
"""Beside a file of PEFT, which says without it less than its bytes mean."""


def export_original(
    registry: Registry,
    concept: Concept,
    version: VersionRecord,
    path: Path,
    options: ExportOptions,
) -> ExportReport:
    """Write the bytes that were imported, and what stood beside them of PEFT.

    Raises `InvalidInput` for a version that was trained, or options of other formats,
    `AlreadyExists` and `StorageError`.
    """
    name = f"{concept.name}@{version.number}"
    command = f"concept export {name} {quoted(path)} --format {options.format}"
    run = next((run for run in concept.runs if run.run == version.run), None)
    files = originals_of(version)
    if run is None or not files:
        raise InvalidInput(
            f"{name} was trained: it is no file of another tool",
            hint=f"concept export {name} {quoted(path)} --format embedding or lora-kohya",
        )
    if options.base is not None or options.half or options.thumbnail:
        raise InvalidInput(
            "original files are not changed",
            hint="leave out --base, --half and --thumbnail",
        )
    description = read_description(run.config)
    paths = [path, embedding_beside(path)][: len(files)]
    config = path.with_name(PEFT_CONFIG) if description.peft_config else None
    check_new_files(registry, [*paths, *([config] if config else [])], options, command)
    if len(paths) != len(files):
        raise InvalidInput(
            f"{concept.name}@{version.number} holds {len(files)} original files: a file and an "
            "embedding are all that can be",
            hint=f"concept rm {concept.name}, and import its file anew",
        )
    try:
        written = [_write(registry, *each, run) for each in zip(files, paths, strict=True)]
        if config:
            write_file(config, description.peft_config.encode())
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}",
            hint="free some space or name another file",
        ) from error
    trigger = description.phrase.replace(PLACE, paths[-1].stem)
    return ExportReport(concept.name, version.number, "original", trigger, written, None)


def _write(registry: Registry, file: ArtifactRecord, path: Path, run: RunRecord) -> ExportedFile:
    stored = registry.path_of(file.sha256)
    folder = path.parent.resolve()  # which may be a link of the user's
    with replacing(folder / path.name) as unfinished:
        shutil.copyfile(stored, unfinished)
    of_tensors = read_description(run.config).hashes.get(file.sha256, "")
    return ExportedFile(
        path=str(path),
        holds="weights" if changes_weights(stored) else "embedding",
        bytes=file.bytes,
        sha256=file.sha256,
        autov2=file.sha256[:10],
        autov3=of_tensors[:12] or None,
    )

"""`concept check`: whether all stored files are there and undamaged."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .errors import ExitCode, usage
from .framework import session_of
from .output import count, size


def check(
    context: typer.Context,
    read_data: Annotated[
        bool, typer.Option("--read-data", help="Read and hash every stored file.")
    ] = False,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Mend what can be mended; damaged files are set aside, not deleted."
        ),
    ] = False,
    look_in: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="DIR", help="With --repair: where lost files may be found (a backup)."
        ),
    ] = None,
) -> None:
    """Compare the database with the stored files.

    Exits with 4 if something is wrong.
    """
    session = session_of(context)
    read = "--read-data " if read_data else ""
    if look_in is not None and not repair:
        raise usage("--from goes with --repair", f"concept check {read}--repair --from {look_in}")
    with session.registry() as registry, session.output.progress("checking") as advance:
        report = registry.check(
            read_data=read_data, repair=repair, look_in=look_in, on_progress=advance
        )
    lines = [
        f"{'repaired' if problem.repaired else 'ERROR' if problem.is_error else 'note'}: "
        f"{problem.kind}: {problem.message}"
        for problem in report.problems
    ]
    hashed = ", all read" if read_data else ""
    checked = f"{count(report.blobs, 'file')} ({size(report.bytes)}) checked{hashed}"
    session.output.lines(
        asdict(report), [*lines, f"{checked}: " + ("all is well" if report.ok else "NOT WELL")]
    )
    if not report.ok:
        session.output.note(
            "add the lost photos again, or: concept check --repair --from BACKUP"
            if repair  # what was damaged is missing now
            else f"next: concept check {read}--repair --from BACKUP_OR_PHOTOS"
        )
        raise typer.Exit(ExitCode.REGISTRY)

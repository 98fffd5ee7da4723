"""`concept gc`: delete files that are no longer needed."""

import re
from dataclasses import asdict
from typing import Annotated

import typer

from .errors import ExitCode, usage
from .framework import session_of
from .output import count, size

_BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_MOST_TOLD = 10
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def gc(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    grace: Annotated[
        str, typer.Option(metavar="TIME", help="Spare files younger than this: 90s, 30m, 2h, 7d.")
    ] = "1h",
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="Also what trainings kept of their way.")
    ] = False,
    cache_size: Annotated[
        str,
        typer.Option(metavar="SIZE", help="Keep so much of what can be made again: 500MB, 2GB."),
    ] = "0",
    unknown: Annotated[
        bool,
        typer.Option(
            "--unknown", help="Also files of another or a later database, or if some are missing."
        ),
    ] = False,
) -> None:
    """Delete stored files that are no longer needed, and caches.

    The latter are class pictures of trainings and pictures that were scored. Exits with 4 if
    something cannot be deleted.
    """
    session = session_of(context)
    with session.registry() as registry:
        report = registry.gc(
            grace=_duration(grace),
            dry_run=dry_run,
            checkpoints=checkpoints,
            cache_size=_size(cache_size),
            unknown=unknown,
        )
    verb = "would remove" if dry_run else "removed"
    young = f"; {report.kept_young:,} too young to go" if report.kept_young else ""
    files = count(report.removed + report.temporary + report.cached, "file")
    session.output.result(asdict(report), f"{verb} {files} ({size(report.bytes)}){young}")
    if report.failed:
        for line in report.failed[:_MOST_TOLD]:
            session.output.note(line)
        if (more := len(report.failed) - _MOST_TOLD) > 0:
            session.output.note(f"and {count(more, 'file')} more")
        raise typer.Exit(ExitCode.REGISTRY)


def _duration(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw]?)", text)
    if match is None:
        raise usage(f"{text!r} is no time", "write 90s, 30m, 2h or 7d: concept gc --grace 2h")
    return float(match[1]) * _SECONDS[match[2]]


def _size(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGT]?B)?", text)
    if match is None:
        raise usage(f"{text!r} is no size", "write 500MB or 2GB: concept gc --cache-size 2GB")
    return float(match[1]) * _BYTES[match[2] or "B"]
